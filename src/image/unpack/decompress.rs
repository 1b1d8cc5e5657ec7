//! Choosing the decompressor by the first bytes of a layer.
//!
//! The media type is not asked: Docker's `tar.gzip` may be plain, and what the bytes really are is
//! proved by the diff id in any case.

use std::io::{self, BufRead, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Zstandard skippable frames, with which seekable variants begin (RFC 8878, 3.1.2).
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// The plain tar stream of `source`.
pub(super) fn open<'a>(mut source: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    // A stream may begin with a chunk of a single byte: look at four, then put them back in front.
    let mut head = [0; 4];
    let mut filled = 0;
    while filled < head.len() {
        match source.read(&mut head[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    let known = &head[..filled];
    let skippable = filled == 4 && head[0] & 0xf0 == 0x50 && head[1..] == ZSTD_SKIPPABLE;
    let gzip = known.starts_with(&GZIP);
    let zstd = known.starts_with(&ZSTD) || skippable;
    let whole = Cursor::new(known.to_vec()).chain(source);
    match (gzip, zstd) {
        (true, _) => Ok(Box::new(MultiGzDecoder::new(whole))),
        (_, true) => Ok(Box::new(zstd::stream::read::Decoder::with_buffer(whole)?)),
        _ => Ok(Box::new(whole)),
    }
}
