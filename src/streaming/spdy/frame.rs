//! Frames of SPDY/3.1 to and from bytes (SPDY/3.1 draft, section 2.2). Pure: no sockets, no state
//! of streams; only the header compression goes on from frame to frame.
//!
//! Data is decoded in pieces as it comes, so a long data frame takes no memory; every other frame
//! is bounded.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::SpdyError;
use super::headers::{Deflater, Headers, Inflater};

/// The longest frame that is not data.
pub const CONTROL_MAX_BYTES: usize = 16 * 1024;
/// The longest piece of data that is decoded or encoded at once.
pub const PIECE_MAX_BYTES: usize = 32 * 1024;
/// Most entries in a settings frame.
const SETTINGS_MAX: usize = 64;

const VERSION: u16 = 3;
const HEAD_BYTES: usize = 8;
const CONTROL_BIT: u16 = 0x8000;
const STREAM_MASK: u32 = 0x7fff_ffff;
const FLAG_FIN: u8 = 1;
const INITIAL_WINDOW: u32 = 7;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Why a stream is reset (section 2.6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    /// The peer broke the rules of a stream.
    Protocol = 1,
    /// There is no such stream.
    Invalid = 2,
    /// There are too many streams; nothing was done.
    Refused = 3,
    /// Nobody wants the stream any more.
    Cancel = 5,
    /// A window has become too large.
    FlowControl = 7,
    /// A stream number was used twice.
    InUse = 8,
}

/// One frame, or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream {
        /// Its number.
        stream: u32,
        /// Nothing follows from whoever opened it.
        fin: bool,
        /// Who or what it is for.
        headers: Headers,
    },
    /// Accepts a stream.
    SynReply {
        /// Its number.
        stream: u32,
        /// Nothing follows from whoever accepted it.
        fin: bool,
        /// Mostly none.
        headers: Headers,
    },
    /// Ends a stream in both directions.
    RstStream {
        /// Its number.
        stream: u32,
        /// Why; see [`Reset`].
        status: u32,
    },
    /// How the sender wants to be treated.
    Settings {
        /// Bytes it takes of a stream before its first window update.
        initial_window: Option<u32>,
    },
    /// To be sent back by whoever has not chosen the number.
    Ping(u32),
    /// No new streams are taken.
    GoAway {
        /// The last stream that was taken.
        last_stream: u32,
        /// Why; 0 is no error, 1 a broken rule.
        status: u32,
    },
    /// Further headers of a stream.
    Headers {
        /// Its number.
        stream: u32,
        /// Nothing follows.
        fin: bool,
        /// They.
        headers: Headers,
    },
    /// More may be sent.
    WindowUpdate {
        /// On this stream; 0 is the connection.
        stream: u32,
        /// Bytes.
        delta: u32,
    },
    /// Content of a stream, or a piece of it.
    Data {
        /// Its number.
        stream: u32,
        /// At most [`PIECE_MAX_BYTES`].
        bytes: Bytes,
        /// Nothing follows.
        fin: bool,
    },
}

/// Turns bytes into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    inflater: Inflater,
    data: Option<Data>,
}

/// A data frame whose end has not come.
#[derive(Debug)]
struct Data {
    stream: u32,
    left: usize,
    fin: bool,
}

impl Decoder {
    /// The next frame, or the next piece of a data frame, taken off `input`; `None` when more bytes
    /// are needed. Frames of unknown kinds are passed over.
    ///
    /// # Errors
    /// [`SpdyError`]: the connection cannot go on.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, SpdyError> {
        loop {
            if let Some(data) = &mut self.data {
                let length = data.left.min(input.len()).min(PIECE_MAX_BYTES);
                if length == 0 && data.left > 0 {
                    return Ok(None);
                }
                data.left -= length;
                let done = data.left == 0;
                let frame = Frame::Data {
                    stream: data.stream,
                    bytes: input.split_to(length).freeze(),
                    fin: done && data.fin,
                };
                if done {
                    self.data = None;
                }
                return Ok(Some(frame));
            }
            let Some(head) = input.first_chunk::<HEAD_BYTES>() else {
                return Ok(None);
            };
            let [a, b, c, d, flags, rest @ ..] = *head;
            let length = usize::try_from(u32::from_be_bytes([0, rest[0], rest[1], rest[2]]))
                .unwrap_or(usize::MAX);
            let (first, kind) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            if first & CONTROL_BIT == 0 {
                input.advance(HEAD_BYTES);
                let stream = u32::from_be_bytes([a, b, c, d]) & STREAM_MASK;
                let (left, fin) = (length, flags & FLAG_FIN != 0);
                self.data = Some(Data { stream, left, fin });
                continue;
            }
            let version = first & !CONTROL_BIT;
            if version != VERSION {
                return Err(SpdyError::Version(version));
            }
            if length > CONTROL_MAX_BYTES {
                return Err(SpdyError::TooLong { kind, length });
            }
            if input.len() < HEAD_BYTES + length {
                return Ok(None);
            }
            input.advance(HEAD_BYTES);
            let body = input.split_to(length).freeze();
            if let Some(frame) = self.control(kind, flags, body)? {
                return Ok(Some(frame));
            }
        }
    }

    fn control(
        &mut self,
        kind: u16,
        flags: u8,
        mut body: Bytes,
    ) -> Result<Option<Frame>, SpdyError> {
        let mut number = || {
            body.try_get_u32()
                .map_err(|_| SpdyError::Malformed { kind })
        };
        let fin = flags & FLAG_FIN != 0;
        let frame = match kind {
            SYN_STREAM => {
                let (stream, _associated) = (number()? & STREAM_MASK, number()?);
                // Priority and credential slot.
                body.try_get_u16()
                    .map_err(|_| SpdyError::Malformed { kind })?;
                let headers = self.inflater.read(&body)?;
                Frame::SynStream {
                    stream,
                    fin,
                    headers,
                }
            }
            SYN_REPLY | HEADERS => {
                let stream = number()? & STREAM_MASK;
                let headers = self.inflater.read(&body)?;
                if kind == SYN_REPLY {
                    Frame::SynReply {
                        stream,
                        fin,
                        headers,
                    }
                } else {
                    Frame::Headers {
                        stream,
                        fin,
                        headers,
                    }
                }
            }
            RST_STREAM => Frame::RstStream {
                stream: number()? & STREAM_MASK,
                status: number()?,
            },
            SETTINGS => {
                let count = usize::try_from(number()?).unwrap_or(usize::MAX);
                if count > SETTINGS_MAX {
                    return Err(SpdyError::Malformed { kind });
                }
                let mut initial_window = None;
                for _ in 0..count {
                    let (id, value) = (number()? & 0x00ff_ffff, number()?);
                    if id == INITIAL_WINDOW {
                        initial_window = Some(value);
                    }
                }
                Frame::Settings { initial_window }
            }
            PING => Frame::Ping(number()?),
            GOAWAY => Frame::GoAway {
                last_stream: number()? & STREAM_MASK,
                status: number()?,
            },
            WINDOW_UPDATE => Frame::WindowUpdate {
                stream: number()? & STREAM_MASK,
                delta: number()? & STREAM_MASK,
            },
            _ => return Ok(None),
        };
        Ok(Some(frame))
    }
}

/// Turns frames into bytes.
#[derive(Debug, Default)]
pub struct Encoder {
    deflater: Deflater,
}

impl Encoder {
    /// Appends a frame.
    ///
    /// # Errors
    /// [`SpdyError::TooLong`] when its headers or its data are longer than a frame.
    pub fn put(&mut self, frame: &Frame, output: &mut BytesMut) -> Result<(), SpdyError> {
        let flags = |fin: bool| if fin { FLAG_FIN } else { 0 };
        match frame {
            Frame::SynStream {
                stream,
                fin,
                headers,
            } => {
                let block = self.deflater.write(headers)?;
                let length = head(output, SYN_STREAM, flags(*fin), 10 + block.len())?;
                output.reserve(length);
                output.put_u32(*stream);
                output.put_bytes(0, 6);
                output.put_slice(&block);
            }
            Frame::SynReply {
                stream,
                fin,
                headers,
            }
            | Frame::Headers {
                stream,
                fin,
                headers,
            } => {
                let reply = matches!(frame, Frame::SynReply { .. });
                let kind = if reply { SYN_REPLY } else { HEADERS };
                let block = self.deflater.write(headers)?;
                head(output, kind, flags(*fin), 4 + block.len())?;
                output.put_u32(*stream);
                output.put_slice(&block);
            }
            Frame::RstStream { stream, status } => pair(output, RST_STREAM, *stream, *status)?,
            Frame::Settings { initial_window } => {
                let entries: &[u32] = initial_window.as_slice();
                head(output, SETTINGS, 0, 4 + 8 * entries.len())?;
                output.put_u32(u32::from(initial_window.is_some()));
                for value in entries {
                    output.put_u32(INITIAL_WINDOW);
                    output.put_u32(*value);
                }
            }
            Frame::Ping(number) => {
                head(output, PING, 0, 4)?;
                output.put_u32(*number);
            }
            Frame::GoAway {
                last_stream,
                status,
            } => pair(output, GOAWAY, *last_stream, *status)?,
            Frame::WindowUpdate { stream, delta } => pair(output, WINDOW_UPDATE, *stream, *delta)?,
            Frame::Data { stream, bytes, fin } => {
                let length = bytes.len();
                let too_long = SpdyError::TooLong { kind: 0, length };
                let short = u32::try_from(length).ok().filter(|it| *it < 1 << 24);
                let short = short.ok_or(too_long)?;
                output.put_u32(stream & STREAM_MASK);
                output.put_u32(u32::from(flags(*fin)) << 24 | short);
                output.put_slice(bytes);
            }
        }
        Ok(())
    }
}

/// The first eight bytes of a control frame.
fn head(output: &mut BytesMut, kind: u16, flags: u8, length: usize) -> Result<usize, SpdyError> {
    let short = u32::try_from(length).ok();
    let short = short.filter(|_| length <= CONTROL_MAX_BYTES);
    let short = short.ok_or(SpdyError::TooLong { kind, length })?;
    output.put_u16(CONTROL_BIT | VERSION);
    output.put_u16(kind);
    output.put_u32(u32::from(flags) << 24 | short);
    Ok(length)
}

fn pair(output: &mut BytesMut, kind: u16, first: u32, second: u32) -> Result<(), SpdyError> {
    head(output, kind, 0, 8)?;
    output.put_u32(first);
    output.put_u32(second);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        let stream = 1..STREAM_MASK;
        let headers = prop::collection::btree_map("[a-z]{1,12}", "\\PC{0,40}", 0..6)
            .prop_map(|pairs| Headers::new(pairs.into_iter().collect()));
        let data = prop::collection::vec(any::<u8>(), 0..5000);
        prop_oneof![
            (stream.clone(), any::<bool>(), headers.clone()).prop_map(|(stream, fin, headers)| {
                Frame::SynStream {
                    stream,
                    fin,
                    headers,
                }
            }),
            (stream.clone(), any::<bool>(), headers.clone()).prop_map(|(stream, fin, headers)| {
                Frame::SynReply {
                    stream,
                    fin,
                    headers,
                }
            }),
            (stream.clone(), any::<bool>(), headers).prop_map(|(stream, fin, headers)| {
                Frame::Headers {
                    stream,
                    fin,
                    headers,
                }
            }),
            (stream.clone(), any::<u32>())
                .prop_map(|(stream, status)| Frame::RstStream { stream, status }),
            prop::option::of(any::<u32>())
                .prop_map(|initial_window| Frame::Settings { initial_window }),
            any::<u32>().prop_map(Frame::Ping),
            (stream.clone(), any::<u32>()).prop_map(|(last_stream, status)| Frame::GoAway {
                last_stream,
                status
            }),
            (stream.clone(), 1..STREAM_MASK)
                .prop_map(|(stream, delta)| Frame::WindowUpdate { stream, delta }),
            (stream, data, any::<bool>()).prop_map(|(stream, data, fin)| Frame::Data {
                stream,
                bytes: data.into(),
                fin,
            }),
        ]
    }

    /// Data comes in pieces; put together they are what was sent.
    fn joined(frames: Vec<Frame>) -> Vec<Frame> {
        let mut all: Vec<Frame> = Vec::new();
        for frame in frames {
            if let (
                Some(Frame::Data {
                    stream: before,
                    bytes,
                    fin: ended @ false,
                }),
                Frame::Data {
                    stream,
                    bytes: more,
                    fin,
                },
            ) = (all.last_mut(), &frame)
                && before == stream
            {
                *bytes = [bytes.as_ref(), more.as_ref()].concat().into();
                *ended = *fin;
                continue;
            }
            all.push(frame);
        }
        all
    }

    fn decode(bytes: &[u8]) -> Result<Option<Frame>, SpdyError> {
        Decoder::default().next(&mut BytesMut::from(bytes))
    }

    #[test]
    fn the_bytes_are_those_of_the_draft() {
        let mut output = BytesMut::new();
        let mut encoder = Encoder::default();
        encoder.put(&Frame::Ping(1), &mut output).unwrap();
        assert_eq!(output.as_ref(), [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]);
        output.clear();
        let (stream, bytes, fin) = (5, Bytes::from_static(b"ab"), true);
        encoder
            .put(&Frame::Data { stream, bytes, fin }, &mut output)
            .unwrap();
        assert_eq!(output.as_ref(), [0, 0, 0, 5, 1, 0, 0, 2, b'a', b'b']);
        output.clear();
        let (stream, fin, headers) = (1, false, Headers::default());
        let frame = Frame::SynReply {
            stream,
            fin,
            headers,
        };
        encoder.put(&frame, &mut output).unwrap();
        // The block begins with the zlib header and the number of the dictionary.
        assert_eq!(output[12] & 0x0f, 8);
        assert_eq!(output[14..18], [0xe3, 0xc6, 0xa7, 0xc2]);
    }

    #[test]
    fn a_frame_of_another_version_or_a_wrong_length_ends_the_connection() {
        let version = decode(&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]).unwrap_err();
        assert!(matches!(version, SpdyError::Version(2)));
        let long = decode(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]).unwrap_err();
        assert!(matches!(long, SpdyError::TooLong { kind: 1, .. }));
        // Each of these kinds cut short, but SETTINGS, whose length says so itself.
        for (kind, length) in [
            (1, 9),
            (2, 3),
            (3, 7),
            (4, 3),
            (6, 3),
            (7, 4),
            (8, 0),
            (9, 7),
        ] {
            let mut bytes = vec![0x80, 3, 0, kind, 0, 0, 0, length];
            bytes.resize(8 + usize::from(length), 0);
            let error = decode(&bytes).unwrap_err();
            assert!(
                matches!(error, SpdyError::Malformed { .. }),
                "{kind}: {error}"
            );
        }
        let settings = [0x80, 3, 0, 4, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff];
        assert!(decode(&settings).is_err());
    }

    #[test]
    fn an_unknown_kind_is_passed_over() {
        let mut input = BytesMut::from(&[0x80, 3, 0, 99, 0, 0, 0, 2, 1, 2][..]);
        input.extend_from_slice(&[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9]);
        let frame = Decoder::default().next(&mut input).unwrap();
        assert_eq!(frame, Some(Frame::Ping(9)));
    }

    #[test]
    fn a_long_data_frame_comes_in_pieces_and_ends_once() {
        let mut input = BytesMut::from(&[0, 0, 0, 3, 1, 1, 0, 0][..]);
        input.extend_from_slice(&[7; 0x1_0000]);
        let mut decoder = Decoder::default();
        let (mut total, mut ends) = (0, 0);
        while let Some(frame) = decoder.next(&mut input).unwrap() {
            let Frame::Data { bytes, fin, .. } = frame else {
                panic!("{frame:?}")
            };
            assert!(bytes.len() <= PIECE_MAX_BYTES);
            total += bytes.len();
            ends += u32::from(fin);
        }
        assert_eq!((total, ends), (0x1_0000, 1));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_however_it_is_cut(
            frames in prop::collection::vec(any_frame(), 1..12),
            cuts in prop::collection::vec(1_usize..200, 1..20),
        ) {
            let mut bytes = BytesMut::new();
            let mut encoder = Encoder::default();
            for frame in &frames {
                encoder.put(frame, &mut bytes).unwrap();
            }
            let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
            let mut decoded = Vec::new();
            let mut cuts = cuts.into_iter().cycle();
            while !bytes.is_empty() {
                let cut = cuts.next().unwrap().min(bytes.len());
                input.extend_from_slice(&bytes.split_to(cut));
                while let Some(frame) = decoder.next(&mut input).unwrap() {
                    decoded.push(frame);
                }
            }
            prop_assert!(input.is_empty());
            prop_assert_eq!(joined(decoded), joined(frames));
        }

        #[test]
        fn any_bytes_are_frames_or_an_error(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            kind in 0_u8..12,
        ) {
            let _ = decode(&bytes);
            // The same behind a head that is right.
            let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
            let mut input = BytesMut::from(&[0x80, 3, 0, kind, 0, 0, length[0], length[1]][..]);
            input.extend_from_slice(&bytes);
            let mut decoder = Decoder::default();
            while let Ok(Some(_)) = decoder.next(&mut input) {}
        }
    }
}
