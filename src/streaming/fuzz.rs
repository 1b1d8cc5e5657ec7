//! Ways for a fuzzer into what parses the bytes of a session's client. Compiled for tests and
//! fuzzers only; the targets of `fuzz/` call these.
//!
//! Each is right as long as it returns: a panic, an overflow, endless memory, or a difference that
//! only comes from where reads fall is the finding.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::runtime::{Builder, Runtime};

use super::channel::{Activity, Inlet};
use super::spdy::frame::{Decoder, Encoder, Frame};
use super::spdy::{self, SpdyError};
use super::websocket;
use super::websocket::channels::{Said, Subprotocol};

/// A session that has not ended by itself by then hangs: all that its client sends is there.
const PATIENCE: Duration = Duration::from_secs(10);
/// Few streams and little room, so that both ends are met.
const BOUNDS: spdy::Bounds = spdy::Bounds {
    streams: 8,
    waiting: 1024,
};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
}

/// Frames of SPDY: the same wherever reads fall, and the same again once written.
///
/// # Panics
/// When they are not.
pub fn spdy(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else {
        return;
    };
    let at_once = decode(rest, rest.len().max(1));
    let in_pieces = decode(rest, usize::from(first) % 64 + 1);
    assert_eq!(at_once, in_pieces);
    let (mut encoder, mut written) = (Encoder::default(), BytesMut::new());
    for frame in &at_once.0 {
        // Headers may take more room than they came in.
        if encoder.put(frame, &mut written).is_err() {
            return;
        }
    }
    let (again, error) = decode(&written, written.len().max(1));
    assert_eq!((again, error), (at_once.0, None));
}

/// The frames of `input`, read in pieces of this size; the pieces of a data frame put together.
fn decode(input: &[u8], piece: usize) -> (Vec<Frame>, Option<SpdyError>) {
    let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::new());
    let mut frames: Vec<Frame> = Vec::new();
    for piece in input.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.next(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (joined(frames), Some(error)),
            }
        }
    }
    (joined(frames), None)
}

fn joined(frames: Vec<Frame>) -> Vec<Frame> {
    let mut all: Vec<Frame> = Vec::new();
    for frame in frames {
        match (all.last_mut(), frame) {
            (
                Some(Frame::Data {
                    stream,
                    bytes,
                    fin: fin @ false,
                }),
                Frame::Data {
                    stream: next,
                    bytes: more,
                    fin: end,
                },
            ) if *stream == next => {
                *bytes = [&bytes[..], &more[..]].concat().into();
                *fin = end;
            }
            (_, frame) => all.push(frame),
        }
    }
    all
}

/// A whole connection of SPDY whose client sends this and has no more to say.
///
/// # Panics
/// When it hangs.
pub fn spdy_connection(data: &[u8]) {
    run(data, async |io| {
        let never = std::future::pending();
        let mut connection = spdy::serve(io, BOUNDS, Activity::default(), never);
        while let Some(stream) = connection.next().await {
            if stream.accept().await.is_err() {
                break;
            }
            let (inlet, mut writer) = stream.into_parts();
            tokio::spawn(async move {
                read(inlet).await;
                let _ = writer.write(b"answer").await;
                let _ = writer.finish().await;
            });
        }
    });
}

/// Messages of Kubernetes' subprotocols, decoded and written again; and a whole connection of a
/// WebSocket whose client sends this.
///
/// # Panics
/// When what is written is another message, or the connection hangs.
pub fn websocket(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else {
        return;
    };
    let names: Vec<&str> = Subprotocol::spoken().collect();
    let name = names[usize::from(first) % names.len()];
    let Some(protocol) = Subprotocol::choose([name]) else {
        return;
    };
    let said = protocol.decode(Bytes::copy_from_slice(rest));
    if let Ok(Some(Said::Bytes(channel, bytes))) = said {
        let again = protocol.decode(protocol.encode(channel, &bytes).into_data());
        assert_eq!(again, Ok(Some(Said::Bytes(channel, bytes))));
    }
    run(rest, async |io| {
        let never = std::future::pending();
        let read_channels = [0, 4];
        let channels = (read_channels.as_slice(), BOUNDS.waiting);
        let serving = websocket::serve(io, protocol, channels, Activity::default(), never);
        let mut connection = serving.await;
        for inlet in read_channels.map(|channel| connection.inlet(channel)) {
            tokio::spawn(async move {
                if let Some(inlet) = inlet {
                    read(inlet).await;
                }
            });
        }
        connection.line().gone().await;
    });
}

async fn read(mut inlet: Inlet) {
    let mut buffer = [0; 1024];
    while inlet.read(&mut buffer).await > 0 {}
}

/// Serves a client that sends `data`, reads whatever comes, and has gone when all is said.
fn run(data: &[u8], serve: impl AsyncFnOnce(DuplexStream)) {
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let (client, server) = duplex(4096);
            let (mut from, mut to) = tokio::io::split(client);
            let data = data.to_vec();
            let sending = tokio::spawn(async move {
                let _ = to.write_all(&data).await;
                let _ = to.shutdown().await;
            });
            let reading = tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                while let Ok(1..) = from.read(&mut buffer).await {}
            });
            let served = tokio::time::timeout(PATIENCE, serve(server)).await;
            sending.abort();
            reading.abort();
            served.expect("a session that ends when its client has");
        });
    });
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::super::spdy::headers::Headers;
    use super::*;

    fn frames() -> Vec<u8> {
        let (mut encoder, mut bytes) = (Encoder::default(), BytesMut::new());
        let headers = Headers::new(vec![("streamtype".into(), "stdin".into())]);
        let stream = 1;
        let data = |bytes: &'static [u8], fin| Frame::Data {
            stream,
            bytes: Bytes::from_static(bytes),
            fin,
        };
        for frame in [
            Frame::SynStream {
                stream,
                fin: false,
                headers: headers.clone(),
            },
            Frame::Settings {
                initial_window: Some(70_000),
            },
            Frame::Ping(1),
            data(b"hello", false),
            Frame::WindowUpdate { stream, delta: 9 },
            Frame::Headers {
                stream,
                fin: false,
                headers,
            },
            data(b"", true),
            Frame::RstStream { stream, status: 5 },
            Frame::GoAway {
                last_stream: 0,
                status: 0,
            },
        ] {
            encoder.put(&frame, &mut bytes).unwrap();
        }
        bytes.to_vec()
    }

    /// What a client puts on the wire for these messages.
    fn messages(all: &[Message]) -> Vec<u8> {
        use futures_util::SinkExt;
        RUNTIME.with(|runtime| {
            runtime.block_on(async {
                let (ours, mut theirs) = duplex(1 << 16);
                let mut client = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
                for message in all {
                    client.send(message.clone()).await.unwrap();
                }
                drop(client);
                let mut bytes = Vec::new();
                theirs.read_to_end(&mut bytes).await.unwrap();
                bytes
            })
        })
    }

    fn seeds() -> Vec<(&'static str, Vec<u8>)> {
        let prefixed = |first: u8, rest: &[u8]| [&[first][..], rest].concat();
        let binary = messages(&[
            Message::binary(b"\0input".to_vec()),
            Message::Ping(Bytes::from_static(b"p")),
            Message::binary(b"\x04{\"Width\":80,\"Height\":24}".to_vec()),
            Message::binary(b"\xff\0".to_vec()),
            Message::Close(None),
        ]);
        let text = messages(&[Message::text("0aW5wdXQ="), Message::text("4e30=")]);
        vec![
            ("spdy", prefixed(7, &frames())),
            ("spdy_connection", frames()),
            ("websocket", prefixed(0, &binary)),
            ("websocket", prefixed(2, &text)),
            ("websocket", prefixed(2, b"0aW5wdXQ=")),
            ("websocket", prefixed(0, b"\xff\0")),
        ]
    }

    fn feed(target: &str, input: &[u8]) {
        match target {
            "spdy" => spdy(input),
            "spdy_connection" => spdy_connection(input),
            "websocket" => websocket(input),
            other => panic!("no target {other}"),
        }
    }

    #[test]
    fn every_seed_is_taken_by_its_target() {
        let (frames, error) = decode(&frames(), 1 << 16);
        assert_eq!((frames.len(), error), (9, None));
        for (number, (target, input)) in seeds().into_iter().enumerate() {
            // Where `make fuzz` wants them, too.
            if let Some(directory) = std::env::var_os("QUILT_FUZZ_SEEDS") {
                let directory = Path::new(&directory).join(target);
                std::fs::create_dir_all(&directory).unwrap();
                std::fs::write(directory.join(format!("seed-{number}")), &input).unwrap();
            }
            feed(target, &input);
        }
    }

    proptest! {
        #[test]
        fn damaged_sessions_end(
            which in any::<prop::sample::Index>(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let seeds = seeds();
            let (target, input) = which.get(&seeds);
            let mut bytes = input.clone();
            for (at, with) in damage {
                let at = at.index(bytes.len());
                bytes[at] = with;
            }
            bytes.truncate(cut.index(bytes.len()) + 1);
            feed(target, &bytes);
        }
    }
}
