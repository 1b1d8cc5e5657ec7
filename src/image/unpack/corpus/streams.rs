//! Compressed streams: damaged, glued together, padded, and dressed up.

use std::io::Write;

use flate2::{Compression, GzBuilder};

use super::super::super::testing::{Tar, gzip};
use super::Fact::File;
use super::{Attack, confined, refused};

pub(super) fn attacks() -> Vec<Attack> {
    let mut all = gzipped();
    all.extend(zstandard());
    all
}

const BROKEN: &str = "reading the layer";

fn layer() -> Vec<u8> {
    Tar::default().file("a", &"hello ".repeat(999)).end()
}

fn halves() -> (Vec<u8>, Vec<u8>) {
    let mut first = layer();
    let second = first.split_off(1000);
    (first, second)
}

fn gzipped() -> Vec<Attack> {
    let whole = gzip(&layer());
    let end = whole.len();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        bytes
    };
    let (first, second) = halves();
    let members = [gzip(&first), gzip(b""), gzip(&second)].concat();
    let named = |length: usize| {
        let mut encoder = GzBuilder::new()
            .filename(vec![b'n'; length])
            .comment("c")
            .extra(vec![0; 1000])
            .write(Vec::new(), Compression::fast());
        encoder.write_all(&layer()).expect("to memory");
        encoder.finish().expect("to memory")
    };
    let contents = || vec![File("a", Box::leak("hello ".repeat(999).into_boxed_str()))];
    vec![
        confined("gzip in three members", members, contents()),
        confined("gzip with a name and a comment", named(20), contents()),
        refused("gzip with an endless name", BROKEN, named(1 << 20)),
        refused("gzip cut in the data", BROKEN, whole[..end - 20].to_vec()),
        refused("gzip cut in the trailer", BROKEN, whole[..end - 3].to_vec()),
        refused(
            "gzip with a wrong checksum",
            BROKEN,
            with(&|b| b[end - 8] ^= 1),
        ),
        refused(
            "gzip with a wrong length",
            BROKEN,
            with(&|b| b[end - 1] ^= 1),
        ),
        refused("gzip with something after it", BROKEN, {
            with(&|b| b.extend_from_slice(b"something"))
        }),
        refused("gzip within gzip", "reading the archive", gzip(&whole)),
        refused("gzip of nothing but a magic", BROKEN, vec![0x1f, 0x8b]),
    ]
}

fn zstandard() -> Vec<Attack> {
    let pack = |bytes: &[u8]| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
        encoder.include_checksum(true).expect("an option");
        encoder.write_all(bytes).expect("to memory");
        encoder.finish().expect("to memory")
    };
    let whole = pack(&layer());
    let end = whole.len();
    let (first, second) = halves();
    let skippable = |length: u32| {
        let mut frame = vec![0x5a, 0x2a, 0x4d, 0x18];
        frame.extend_from_slice(&length.to_le_bytes());
        frame.resize(8 + 100, 0);
        frame
    };
    let frames = [
        skippable(100),
        pack(&first),
        skippable(100),
        pack(&second),
        skippable(100),
    ];
    let mut checksum = whole.clone();
    checksum[end - 1] ^= 1;
    let contents = vec![File("a", Box::leak("hello ".repeat(999).into_boxed_str()))];
    vec![
        confined(
            "zstd in frames with others between",
            frames.concat(),
            contents,
        ),
        refused("zstd cut in the data", BROKEN, whole[..end - 20].to_vec()),
        refused("zstd with a wrong checksum", BROKEN, checksum),
        refused("zstd with something after it", BROKEN, {
            [&whole[..], b"something"].concat()
        }),
        refused(
            "zstd frame to skip that never ends",
            BROKEN,
            skippable(u32::MAX),
        ),
        refused("zstd with a window of 2 GiB", BROKEN, {
            // Magic, frame header with a window descriptor of 2^31, one raw last block.
            [&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x09, 0, 0, b'x'][..]].concat()
        }),
        refused("xz, which is no format of layers", "reading the archive", {
            [&[0xfd, b'7', b'z', b'X', b'Z', 0][..], &[1; 600]].concat()
        }),
    ]
}
