//! The mark that says whose a cgroup is, and finding the cgroups that are named by an id.
//!
//! Clients choose the parents of our cgroups, and other runtimes name theirs by 64 hex digits as
//! well. So each cgroup gets an extended attribute (`trusted.quilt`; xattr(7)) right after it was
//! made. It stays with the cgroup whatever happens to the database, and ends with it. Of a scope it
//! is on the slice that is its alone.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use super::error::CgroupError;
use super::layout::Cgroups;
use super::path::CgroupPath;
use super::remove::child_dirs;
use crate::lifecycle::slice;
use crate::sys::xattr;

/// The attribute.
const ATTRIBUTE: &[u8] = b"trusted.quilt";
/// Directories looked at in one walk; a node has some thousand at most.
const WALK_MAX: usize = 100_000;

/// A cgroup that is named by an id: 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdCgroup {
    /// Where it is.
    pub path: CgroupPath,
    /// Who marked it.
    pub mark: Option<String>,
    /// Whether a process is in it or below it.
    pub populated: bool,
}

impl Cgroups {
    /// Marks a cgroup that exists. Where the kernel keeps no attributes on cgroups, nothing is
    /// done, and only what lies below our own root will be known as ours.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn mark(&self, path: &CgroupPath, mark: &str) -> Result<(), CgroupError> {
        let Some(dir) = self.all_dirs(&path.whole()).into_iter().next() else {
            return Ok(());
        };
        let set = File::open(&dir).and_then(|dir| xattr::set(dir, ATTRIBUTE, mark.as_bytes()));
        match set {
            Err(error) if error.raw_os_error() != Some(libc::EOPNOTSUPP) => {
                Err(CgroupError::file("mark", &dir)(error))
            }
            _ => Ok(()),
        }
    }

    /// Every cgroup that is named by an id: in the hierarchy that bears marks anywhere, and below
    /// `root` in all of them. What is inside such a cgroup is its container's and not looked at.
    ///
    /// # Errors
    ///
    /// When a directory cannot be read.
    pub fn list_ids(&self, root: &CgroupPath) -> Result<Vec<IdCgroup>, CgroupError> {
        let mut paths = BTreeSet::new();
        let top = CgroupPath::parse("/")?;
        for (index, mount) in self.all_dirs(&top).iter().enumerate() {
            walk(mount, if index == 0 { &top } else { root }, &mut paths)?;
        }
        paths
            .into_iter()
            .map(|path| {
                Ok(IdCgroup {
                    mark: self.mark_of(&path)?,
                    populated: self.has_processes(&path)?,
                    path,
                })
            })
            .collect()
    }

    fn mark_of(&self, path: &CgroupPath) -> Result<Option<String>, CgroupError> {
        let Some(dir) = self.all_dirs(&path.whole()).into_iter().next() else {
            return Ok(None);
        };
        match File::open(&dir).and_then(|dir| xattr::get(dir, ATTRIBUTE)) {
            Ok(mark) => Ok(mark.and_then(|bytes| String::from_utf8(bytes).ok())),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(CgroupError::file("read the mark of", &dir)(error)),
        }
    }

    /// Whether there is a process in any hierarchy: a cgroup may be left in some of them only.
    fn has_processes(&self, path: &CgroupPath) -> Result<bool, CgroupError> {
        if self.is_populated(path)? {
            return Ok(true);
        }
        for dir in self.all_dirs(path) {
            let file = dir.join("cgroup.procs");
            let mut first = [0; 1];
            match File::open(&file).and_then(|mut file| file.read(&mut first)) {
                Ok(0) => {}
                Ok(_) => return Ok(true),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(CgroupError::file("read", &file)(error)),
            }
        }
        Ok(false)
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn walk(
    mount: &Path,
    from: &CgroupPath,
    found: &mut BTreeSet<CgroupPath>,
) -> Result<(), CgroupError> {
    let mut open = vec![from.clone()];
    let mut seen = 0;
    while let Some(path) = open.pop() {
        for child in child_dirs(&path.below(mount))? {
            seen += 1;
            if seen > WALK_MAX {
                return Ok(());
            }
            // A name that cannot be one of ours leads to none of ours.
            let name = child.file_name().and_then(|name| name.to_str());
            let Some(name) = name else { continue };
            let (Ok(below), id) = (path.join(name), slice::id_of(name)) else {
                continue;
            };
            match id.and_then(|id| Some((path.member(&id).ok()?, id))) {
                // One that stands for a process is named by the id alone, in a slice as well.
                Some((_, id)) if name == id => found.insert(below),
                Some((member, _)) if member.whole() == below => found.insert(member),
                _ => {
                    open.push(below);
                    false
                }
            };
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ID_LENGTH;

    /// Removes what a test made, whether it passes or not.
    struct Made<'a>(&'a Cgroups, CgroupPath);

    impl Drop for Made<'_> {
        fn drop(&mut self) {
            self.0.remove(&self.1).expect("an empty cgroup");
        }
    }

    #[test]
    fn a_mark_tells_ours_from_another_cgroup_of_such_a_name() {
        let cgroups = Cgroups::probe(Path::new("/sys/fs/cgroup")).unwrap();
        let name = format!("/qlt-mark-{}", std::process::id());
        let foreign = Made(&cgroups, CgroupPath::parse(&name).unwrap());
        let ids = ["a", "b"].map(|digit| foreign.1.join(&digit.repeat(ID_LENGTH)).unwrap());
        for id in &ids {
            cgroups.ensure(id, None).unwrap();
        }
        cgroups
            .ensure(&foreign.1.join("no-id").unwrap(), None)
            .unwrap();
        cgroups.mark(&ids[0], "quilt:/one").unwrap();
        let root = CgroupPath::parse("/qlt-somewhere-else").unwrap();
        let found = cgroups.list_ids(&root).unwrap();
        let marks: Vec<_> = found
            .into_iter()
            .filter(|found| found.path.to_string().starts_with(&name))
            .map(|found| (found.path, found.mark, found.populated))
            .collect();
        let [one, other] = ids;
        assert_eq!(
            marks,
            [
                (one, Some("quilt:/one".to_owned()), false),
                (other, None, false)
            ]
        );
    }
}
