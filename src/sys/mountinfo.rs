//! The mount table as the kernel shows it in `/proc/*/mountinfo` (proc_pid_mountinfo(5)).
//!
//! Reads and parses; mounts nothing.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// The mount's id, as `statx(2)` gives it in `stx_mnt_id`; reused after unmounting.
    pub id: u64,
    /// The path inside the file system that is the root of this mount.
    pub root: PathBuf,
    /// Where it is mounted, relative to the reader's root.
    pub mount_point: PathBuf,
    /// Whether mounts made below it spread to other mounts (`shared:N`, mount_namespaces(7)).
    pub shared: bool,
    /// Whether what is mounted below its peers spreads to it (`master:N`).
    pub slave: bool,
    /// File system type, such as `cgroup2`.
    pub fs_type: String,
    /// Options of the super block, such as the controllers of a cgroup v1 hierarchy.
    pub super_options: Vec<String>,
}

/// Reads the mount table of the calling thread's mount namespace.
///
/// # Errors
///
/// When `/proc/thread-self/mountinfo` cannot be read.
pub fn read() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read("/proc/thread-self/mountinfo")?))
}

/// Parses the text of a mountinfo file. Lines that do not have its form are left out, so that a
/// newer kernel's additions do no harm.
#[must_use]
pub fn parse(text: &[u8]) -> Vec<MountEntry> {
    text.split(|byte| *byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime shared:1 - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = text(fields.next()?)?.parse().ok()?;
    let root = path(fields.nth(2)?);
    let mount_point = path(fields.next()?);
    let _mount_options = fields.next()?;
    let (mut shared, mut slave) = (false, false);
    loop {
        match fields.next()? {
            b"-" => break,
            field => {
                shared |= field.starts_with(b"shared:");
                slave |= field.starts_with(b"master:");
            }
        }
    }
    let fs_type = text(fields.next()?)?.to_owned();
    let super_options = text(fields.nth(1)?)?
        .split(',')
        .map(str::to_owned)
        .collect();
    Some(MountEntry {
        id,
        root,
        mount_point,
        shared,
        slave,
        fs_type,
        super_options,
    })
}

fn text(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field).ok()
}

/// Undoes the kernel's escapes: space, tab, newline and backslash are written as `\ooo`.
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = (byte == b'\\')
            .then(|| tail.get(..3).and_then(text))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(value) = octal {
            bytes.push(value);
            rest = &tail[3..];
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_field_by_field() {
        let line =
            b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime shared:1 master:2 - ext3 /dev/root rw,a=b\n";
        assert_eq!(
            parse(line),
            [MountEntry {
                id: 36,
                root: "/mnt1".into(),
                mount_point: "/mnt 2".into(),
                shared: true,
                slave: true,
                fs_type: "ext3".into(),
                super_options: vec!["rw".into(), "a=b".into()],
            }]
        );
    }

    #[test]
    fn a_private_mount_has_no_optional_fields() {
        let entries = parse(b"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n");
        assert_eq!(entries.len(), 1);
        assert!(!entries[0].shared && !entries[0].slave);
    }

    #[test]
    fn lines_of_another_form_are_left_out() {
        assert!(parse(b"\nnonsense\n1 2 3:4 / /x rw shared:1\n").is_empty());
        assert_eq!(path(b"/a\\9zz\\"), PathBuf::from("/a\\9zz\\"));
    }

    #[test]
    fn the_kernel_s_own_table_has_a_root() {
        let entries = read().unwrap();
        assert!(
            entries
                .iter()
                .any(|entry| entry.mount_point.as_os_str() == "/")
        );
    }
}
