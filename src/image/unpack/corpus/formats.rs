//! Sparse files whose maps lie.

use tar::{EntryType, Header};

use super::super::super::testing::Tar;
use super::Fact::Size;
use super::{Attack, confined, refused};

pub(super) fn attacks() -> Vec<Attack> {
    let mut all = in_records();
    all.extend(in_data());
    all.extend(old());
    all
}

const WRONG: &str = "sparse map is inconsistent";

fn in_records() -> Vec<Attack> {
    let map = |map: &[u8], size: &[u8], data: &str| {
        Tar::default()
            .pax(&[("GNU.sparse.map", map), ("GNU.sparse.size", size)])
            .file("s", data)
            .end()
    };
    vec![
        refused(
            "extents that overlap",
            WRONG,
            map(b"0,5,2,5", b"100", "0123456789"),
        ),
        refused(
            "extents that go back",
            WRONG,
            map(b"50,5,0,5", b"100", "0123456789"),
        ),
        refused(
            "an extent behind the end",
            WRONG,
            map(b"96,5", b"100", "01234"),
        ),
        refused("an extent at the end of numbers", WRONG, {
            map(b"18446744073709551615,5", b"100", "01234")
        }),
        refused(
            "an extent without a length",
            WRONG,
            map(b"0,5,50", b"100", "01234"),
        ),
        refused(
            "extents for more than there is",
            WRONG,
            map(b"0,5,50,5", b"100", "01234"),
        ),
        refused(
            "extents for less than there is",
            WRONG,
            map(b"0,5", b"100", "0123456789"),
        ),
        refused("a file of 4 EiB without data", "bytes of files", {
            map(b"0,1", b"4611686018427387904", "x")
        }),
        refused("a size before a map without one", WRONG, {
            Tar::default()
                .pax(&[("GNU.sparse.numbytes", b"5"), ("GNU.sparse.size", b"9")])
                .file("s", "01234")
                .end()
        }),
        refused("a map without the size of its file", WRONG, {
            Tar::default()
                .pax(&[("GNU.sparse.map", b"0,5")])
                .file("s", "01234")
                .end()
        }),
        confined(
            "an empty extent at the end",
            map(b"0,5,100,0", b"100", "01234"),
            vec![Size("s", 100)],
        ),
    ]
}

fn in_data() -> Vec<Attack> {
    let data = |text: &str, rest: &str| {
        let mut data = text.as_bytes().to_vec();
        data.resize(data.len().next_multiple_of(512), 0);
        data.extend_from_slice(rest.as_bytes());
        Tar::default()
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.realsize", b"100"),
                ("GNU.sparse.name", b"s"),
            ])
            .entry(EntryType::Regular, "GNUSparseFile.1/s", "", &data)
            .end()
    };
    vec![
        confined(
            "a map in the data",
            data("1\n95\n5\n", "01234"),
            vec![Size("s", 100)],
        ),
        refused("a map of more extents than there are", WRONG, {
            data("18446744073709551615\n", "")
        }),
        refused(
            "a map that does not end",
            WRONG,
            data(&"1".repeat(2048), ""),
        ),
        refused("a map of words", WRONG, data("one\nfive\nsix\n", "01234")),
        refused(
            "a map of negative numbers",
            WRONG,
            data("1\n-5\n10\n", "01234"),
        ),
        refused("a map as large as the file", WRONG, data("", "")),
    ]
}

fn old() -> Vec<Attack> {
    let sparse = |extents: &[(u64, u64)], extended: bool, size: u64, data: &[u8]| {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[0] = b's';
        header.set_entry_type(EntryType::GNUSparse);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(data.len() as u64);
        if let Some(gnu) = header.as_gnu_mut() {
            gnu.set_real_size(size);
            gnu.set_is_extended(extended);
            for (place, (offset, length)) in gnu.sparse.iter_mut().zip(extents) {
                place.set_offset(*offset);
                place.set_length(*length);
            }
        }
        header.set_cksum();
        Tar::default().raw(&header, data)
    };
    // A block of the map says whether another follows.
    let mut endless = [0; 512];
    endless[504] = 1;
    let chain = endless.repeat(3000);
    vec![
        confined(
            "the old format",
            sparse(&[(0, 3), (97, 3)], false, 100, b"abcdef").end(),
            vec![Size("s", 100)],
        ),
        refused("the old format, overlapping", WRONG, {
            sparse(&[(0, 5), (2, 1)], false, 100, b"abcdef").end()
        }),
        refused("the old format, behind the end", WRONG, {
            sparse(&[(98, 6)], false, 100, b"abcdef").end()
        }),
        refused("a map without an end", "extension header of", {
            sparse(&[], true, 100, &chain).end()
        }),
        refused("a map that is cut", "reading the archive", {
            sparse(&[], true, 100, &endless)
                .end()
                .into_iter()
                .take(1024)
                .collect()
        }),
    ]
}
