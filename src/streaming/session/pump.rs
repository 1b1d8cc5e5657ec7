//! Moving bytes between a client's channels and a process's descriptors.

use rustix::termios::{Winsize, tcsetwinsize};
use serde::Deserialize;
use tokio::sync::watch;

use crate::streaming::channel::{Gone, Inlet, Outlet, turned};
use crate::streaming::descriptor::Descriptor;

/// Moved at once.
const PIECE_BYTES: usize = 32 * 1024;
/// The longest message about a window's size.
const RESIZE_MAX_BYTES: usize = 1024;

/// Moves what the client writes until it ends, or nobody reads any more.
pub(super) async fn input(mut from: Inlet, to: &Descriptor) {
    let mut buffer = vec![0; PIECE_BYTES];
    while let length @ 1.. = from.read(&mut buffer).await {
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// Moves what a process writes until the end, or, once `exited` turns true, until what it has left
/// is moved. What others still write then is not its output.
pub(super) async fn output(
    from: &Descriptor,
    to: &mut Outlet,
    exited: &watch::Sender<bool>,
) -> Result<(), Gone> {
    let mut exit = exited.subscribe();
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            () = turned(&mut exit) => break,
        };
        match read {
            Ok(length @ 1..) => to.write(&buffer[..length]).await?,
            Ok(0) | Err(_) => return to.finish().await,
        }
    }
    // A pipe is read as far as it was full then; a terminal has been hung up, and ends by itself.
    let mut left = if rustix::termios::isatty(from.fd()) {
        usize::MAX
    } else {
        from.waiting()
    };
    while left > 0 {
        let Some(Ok(length @ 1..)) = from.read_ready(&mut buffer) else {
            break;
        };
        to.write(&buffer[..length]).await?;
        left = left.saturating_sub(length);
    }
    to.finish().await
}

/// What a client says about its window.
#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Size {
    #[serde(rename = "Width")]
    columns: u16,
    #[serde(rename = "Height")]
    rows: u16,
}

/// Gives a terminal the sizes that the client sends, until it ends or sends something else.
pub(super) async fn resize(mut from: Inlet, terminal: &Descriptor) {
    let mut buffer = vec![0; RESIZE_MAX_BYTES];
    let mut filled = 0;
    while let length @ 1.. = from.read(&mut buffer[filled..]).await {
        filled += length;
        let (sizes, consumed) = sizes(&buffer[..filled]);
        if let Some(size) = sizes.last() {
            let size = Winsize {
                ws_row: size.rows,
                ws_col: size.columns,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            // One that has ended needs no size.
            let _ = tcsetwinsize(terminal.fd(), size);
        }
        let Some(consumed) = consumed.filter(|it| filled - it < RESIZE_MAX_BYTES) else {
            return tracing::debug!("a client's window has no size");
        };
        buffer.copy_within(consumed..filled, 0);
        filled -= consumed;
    }
}

/// The sizes at the beginning of `text`, and how much of it they are; `None`: what follows is none.
fn sizes(text: &[u8]) -> (Vec<Size>, Option<usize>) {
    let mut stream = serde_json::Deserializer::from_slice(text).into_iter::<Size>();
    let mut sizes = Vec::new();
    loop {
        match stream.next() {
            None => return (sizes, Some(text.len())),
            Some(Ok(size)) => sizes.push(size),
            Some(Err(error)) if error.is_eof() => return (sizes, Some(stream.byte_offset())),
            Some(Err(_)) => return (sizes, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_in_pieces_and_several_at_once() {
        let text = br#"{"Width":80,"Height":24}
{"Width":100,"Height":30}
{"Width":1"#;
        let (found, consumed) = sizes(text);
        assert_eq!(found.len(), 2);
        assert_eq!((found[1].columns, found[1].rows), (100, 30));
        let rest = &text[consumed.unwrap()..];
        assert_eq!(rest.trim_ascii_start(), br#"{"Width":1"#);
        assert_eq!(sizes(b"\n").1, Some(1));
    }

    #[test]
    fn what_is_no_size_is_not_taken() {
        for bad in [&b"80x24"[..], br#"{"Width":-1,"Height":24}"#, b"[1]"] {
            assert_eq!(sizes(bad).1, None, "{bad:?}");
        }
    }
}
