//! Who can change a file, asked before a program is run as root because a file says so; and files
//! that nobody but root can read.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Write permission of the group and of others (inode(7)).
const OTHERS_WRITE: u32 = 0o022;

/// Whether nobody but the node's root can write what `found` is about: a file, or the entries of a
/// directory.
#[must_use]
pub fn only_root_writes(found: &Metadata) -> bool {
    found.uid() == 0 && found.mode() & OTHERS_WRITE == 0
}

/// Writes a file that nobody but its owner can read, in place of one that may be there with other
/// permissions.
///
/// # Errors
/// What the file system refused; then there is no file, or a part of it.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = File::options();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    #[test]
    fn what_others_can_write_is_not_roots_alone() {
        let tmp = tempfile::tempdir().expect("a directory");
        let path = tmp.path().join("file");
        fs::write(&path, "").expect("a file");
        for (uid, mode, alone) in [
            (0, 0o644, true),
            (0, 0o755, true),
            (0, 0o664, false),
            (0, 0o602, false),
            (1000, 0o600, false),
        ] {
            chown(&path, Some(uid), None).expect("chown");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            let found = fs::metadata(&path).expect("its own file");
            assert_eq!(only_root_writes(&found), alone, "{uid} {mode:o}");
        }
    }

    #[test]
    fn what_is_private_was_never_open_to_others() {
        let tmp = tempfile::tempdir().expect("a directory");
        let path = tmp.path().join("file");
        fs::write(&path, "open to all").expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        let mut seen_by_others = File::open(&path).expect("it is open to all");
        for text in ["secret", "other"] {
            write_private(&path, text.as_bytes()).expect("it is written");
            assert_eq!(fs::read_to_string(&path).expect("its own file"), text);
            let found = fs::metadata(&path).expect("its own file");
            assert_eq!(found.mode() & 0o777, 0o600);
        }
        let seen = io::read_to_string(&mut seen_by_others).expect("the old file");
        assert_eq!(seen, "open to all");
    }
}
