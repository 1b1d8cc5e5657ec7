//! Who can change a file: asked before a program is run as root because a file says so.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Write permission of the group and of others (inode(7)).
const OTHERS_WRITE: u32 = 0o022;

/// Whether nobody but the node's root can write what `found` is about: a file, or the entries of a
/// directory.
#[must_use]
pub fn only_root_writes(found: &Metadata) -> bool {
    found.uid() == 0 && found.mode() & OTHERS_WRITE == 0
}

#[cfg(test)]
mod tests {
    use std::fs;
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
}
