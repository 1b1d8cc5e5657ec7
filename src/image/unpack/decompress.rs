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

/// The largest window, as a power of two: what `zstd --ultra` uses, and what a decompressor may be
/// made to hold in memory.
const WINDOW_LOG_MAX: u32 = 27;

/// Whether a file that begins with these bytes, four or fewer, is compressed.
pub(crate) fn is_compressed(head: &[u8]) -> bool {
    is_gzip(head) || is_zstd(head)
}

fn is_gzip(head: &[u8]) -> bool {
    head.starts_with(&GZIP)
}

fn is_zstd(head: &[u8]) -> bool {
    let skippable = head.len() >= 4 && head[0] & 0xf0 == 0x50 && head[1..4] == ZSTD_SKIPPABLE;
    head.starts_with(&ZSTD) || skippable
}

/// The plain tar stream of `source`.
pub(crate) fn open<'a>(mut source: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
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
    let (gzip, zstd) = (is_gzip(known), is_zstd(known));
    let whole = Cursor::new(known.to_vec()).chain(source);
    match (gzip, zstd) {
        (true, _) => Ok(Box::new(MultiGzDecoder::new(whole))),
        (_, true) => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
            decoder.window_log_max(WINDOW_LOG_MAX)?;
            Ok(Box::new(decoder))
        }
        _ => Ok(Box::new(whole)),
    }
}
