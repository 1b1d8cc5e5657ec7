//! An empty cgroup that stands for a process which lives elsewhere.
//!
//! A pod has no process of its own here, and so no cgroup under its id. cAdvisor looks for one: it
//! watches for new directories and asks once, when it sees one, which process is behind it. So the
//! cgroup is made for a process, says which as an attribute of its own (xattr(7)), and is made anew
//! when it is to stand for another.
//!
//! It is there in as few hierarchies as will do: the one that bears marks, by which it is found
//! again, and on v1 one that cAdvisor watches.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::create::create_dir;
use super::error::CgroupError;
use super::layout::Cgroups;
use super::path::CgroupPath;
use crate::sys::xattr;

/// The attribute that says for whom.
const ATTRIBUTE: &[u8] = b"trusted.quilt.stands_for";
/// A v1 controller whose hierarchy cAdvisor watches wherever there is one.
const WATCHED: &str = "cpu";

impl Cgroups {
    /// Sees to it that the cgroup is there and stands for `whom`. Returns whether it had to be made
    /// (anew). A parent that is gone has no children any more, and nothing is made.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; [`CgroupError::StillPopulated`] when somebody put a process in.
    pub fn stand_in(&self, path: &CgroupPath, mark: &str, whom: &str) -> Result<bool, CgroupError> {
        let dirs = self.stand_in_dirs(path);
        let Some(first) = dirs.first() else {
            return Ok(false);
        };
        if stands_for(first)?.is_some_and(|known| known == whom)
            && dirs.iter().all(|dir| dir.is_dir())
        {
            return Ok(false);
        }
        self.remove(path)?;
        for dir in &dirs {
            if !create_dir(dir)? {
                return Ok(false);
            }
        }
        self.mark(path, mark)?;
        let said = File::open(first).and_then(|dir| xattr::set(dir, ATTRIBUTE, whom.as_bytes()));
        match said {
            Err(error) if !is_unsupported(&error) => Err(CgroupError::file("mark", first)(error)),
            _ => Ok(true),
        }
    }

    fn stand_in_dirs(&self, path: &CgroupPath) -> Vec<PathBuf> {
        let mut dirs: Vec<PathBuf> = self.all_dirs(path).into_iter().take(1).collect();
        let watched = self.v1_dir(WATCHED, path);
        dirs.extend(watched.filter(|dir| !dirs.contains(dir)));
        dirs
    }
}

/// For whom a directory stands; empty where the kernel keeps no attributes, so that one that is
/// there stays. `None` when it is not there.
fn stands_for(dir: &Path) -> Result<Option<String>, CgroupError> {
    let said = File::open(dir).and_then(|dir| xattr::get(dir, ATTRIBUTE));
    match said {
        Ok(whom) => {
            let whom = String::from_utf8_lossy(&whom.unwrap_or_default()).into_owned();
            Ok(Some(whom))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(CgroupError::file("read the mark of", dir)(error)),
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EOPNOTSUPP)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn it_is_made_anew_for_another_and_kept_for_the_same() {
        let cgroups = Cgroups::probe(Path::new("/sys/fs/cgroup")).unwrap();
        let pod = CgroupPath::parse(&format!("/qlt-stand-in-{}", std::process::id())).unwrap();
        let path = pod.join(&"c".repeat(64)).unwrap();
        assert!(!cgroups.stand_in(&path, "quilt:/t", "1").unwrap(), "no pod");
        cgroups.ensure(&pod, None).unwrap();
        let inode = || {
            std::fs::metadata(&cgroups.stand_in_dirs(&path)[0])
                .unwrap()
                .ino()
        };
        assert!(cgroups.stand_in(&path, "quilt:/t", "1").unwrap());
        let first = inode();
        assert!(!cgroups.stand_in(&path, "quilt:/t", "1").unwrap());
        assert_eq!(inode(), first);
        assert!(cgroups.stand_in(&path, "quilt:/t", "2").unwrap());
        assert_ne!(inode(), first, "watchers hear of a new one");
        let found = cgroups.list_ids(&pod).unwrap();
        let found = found.iter().find(|found| found.path == path).unwrap();
        assert_eq!(found.mark.as_deref(), Some("quilt:/t"));
        cgroups.remove(&pod).unwrap();
        assert!(!cgroups.exists(&path));
    }
}
