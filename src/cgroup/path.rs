//! The path of a cgroup, relative to the roots of the hierarchies, checked once.

use std::fmt;
use std::path::{Path, PathBuf};

use super::error::CgroupError;
use crate::lifecycle::slice::{self, Units};

/// Longest path in bytes: `PATH_MAX` less room for the mount point and a file name.
const MAX_PATH_BYTES: usize = 3500;
/// Longest component in bytes (`NAME_MAX`).
const MAX_COMPONENT_BYTES: usize = 255;
/// More levels than this is nobody's intention; the kernel's own limit is per hierarchy.
const MAX_DEPTH: usize = 32;

/// A cgroup, named alike in every hierarchy: `/kubepods/burstable/pod…/<container id>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupPath(String);

impl CgroupPath {
    /// Checks an absolute path. `/` is the root of the hierarchies.
    ///
    /// # Errors
    ///
    /// [`CgroupError::InvalidPath`] when it is relative, too long or too deep, has an empty or
    /// dotted component, control characters, or a name that the kernel reserves.
    pub fn parse(path: &str) -> Result<Self, CgroupError> {
        let invalid = |reason| CgroupError::InvalidPath {
            path: shorten(path),
            reason,
        };
        let relative = path
            .strip_prefix('/')
            .ok_or_else(|| invalid("must be absolute"))?;
        if path.len() > MAX_PATH_BYTES {
            return Err(invalid("too long"));
        }
        if relative.is_empty() {
            return Ok(Self(String::new()));
        }
        let components: Vec<&str> = relative.split('/').collect();
        if components.len() > MAX_DEPTH {
            return Err(invalid("too deep"));
        }
        for component in components {
            check_component(component).map_err(invalid)?;
        }
        Ok(Self(relative.to_owned()))
    }

    /// A child of this cgroup.
    ///
    /// # Errors
    ///
    /// As [`CgroupPath::parse`]; a child's name has no slash.
    pub fn join(&self, name: &str) -> Result<Self, CgroupError> {
        if name.contains('/') {
            let reason = "a child's name has no slash";
            return Err(CgroupError::InvalidPath {
                path: shorten(name),
                reason,
            });
        }
        Self::parse(&format!("{}/{name}", self.trimmed()))
    }

    /// Checks what a client or the configuration names as a parent: a path, or a systemd slice by
    /// its name or its path.
    ///
    /// # Errors
    ///
    /// As [`CgroupPath::parse`], and for a slice that cannot be or does not lie there.
    pub fn parse_parent(text: &str) -> Result<Self, CgroupError> {
        let path = slice::parent(text).map_err(|reason| CgroupError::InvalidPath {
            path: shorten(text),
            reason,
        })?;
        Self::parse(&path)
    }

    /// The cgroup of a pod or container with this id, in this one. In a systemd slice it is that of
    /// a scope ([`slice::member`]).
    ///
    /// # Errors
    ///
    /// As [`CgroupPath::parse`].
    pub fn member(&self, id: &str) -> Result<Self, CgroupError> {
        Self::parse(&slice::member(&self.trimmed(), id))
    }

    /// The systemd units behind [`CgroupPath::member`]'s.
    #[must_use]
    pub fn units(&self) -> Option<Units> {
        slice::units(&self.trimmed())
    }

    /// The name of the systemd slice that this is, if it is one.
    #[must_use]
    pub fn slice(&self) -> Option<&str> {
        let name = self.0.rsplit('/').next()?;
        slice::is_slice(name).then_some(name)
    }

    /// The whole of what a pod or container has: of a scope its slice, which is there before it and
    /// after it; of any other cgroup itself.
    #[must_use]
    pub fn whole(&self) -> Self {
        match self.units() {
            Some(_) => self.parent().unwrap_or_else(|| self.clone()),
            None => self.clone(),
        }
    }

    /// The cgroup above, or `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        Some(Self(
            self.0
                .rsplit_once('/')
                .map_or("", |(parent, _)| parent)
                .to_owned(),
        ))
    }

    /// Whether this is the root of the hierarchies.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory of this cgroup below a hierarchy's mount point.
    #[must_use]
    pub fn below(&self, mount_point: &Path) -> PathBuf {
        if self.is_root() {
            mount_point.to_owned()
        } else {
            mount_point.join(&self.0)
        }
    }

    /// This cgroup and those above it, topmost first, without the root.
    pub(super) fn levels(&self) -> impl Iterator<Item = Self> + '_ {
        let ends = self.0.match_indices('/').map(|(at, _)| at);
        let whole = (!self.is_root()).then_some(self.0.len());
        ends.chain(whole).map(|end| Self(self.0[..end].to_owned()))
    }

    fn trimmed(&self) -> String {
        if self.is_root() {
            String::new()
        } else {
            format!("/{}", self.0)
        }
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0)
    }
}

fn check_component(component: &str) -> Result<(), &'static str> {
    // A cgroup's directory shares its names between children and the kernel's own files.
    const RESERVED: [&str; 3] = ["tasks", "release_agent", "notify_on_release"];
    if component.is_empty() {
        Err("has an empty component")
    } else if component == "." || component == ".." {
        Err("has a component that leads elsewhere")
    } else if component.len() > MAX_COMPONENT_BYTES {
        Err("has a component longer than 255 bytes")
    } else if component.chars().any(char::is_control) {
        Err("has control characters")
    } else if RESERVED.contains(&component) || component.starts_with("cgroup.") {
        Err("has a component that the kernel reserves")
    } else {
        Ok(())
    }
}

/// Bounds what an error repeats of its cause.
fn shorten(path: &str) -> String {
    path.chars().take(128).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_is_absolute_and_leads_nowhere_else() {
        for bad in [
            "",
            "a",
            "../a",
            "/..",
            "/a/../b",
            "/a//b",
            "/a/",
            "/./a",
            "/a\nb",
            "//",
            "/cgroup.procs",
            "/a/tasks",
        ] {
            assert!(CgroupPath::parse(bad).is_err(), "{bad:?}");
        }
        assert!(CgroupPath::parse(&format!("/{}", "a".repeat(256))).is_err());
        assert!(CgroupPath::parse(&"/a".repeat(33)).is_err());
        assert!(CgroupPath::parse(&format!("/{}", "a/".repeat(4000))).is_err());
        for good in [
            "/",
            "/a",
            "/kubepods/burstable/podx/y",
            "/kubepods.slice/a.scope",
            "/a b",
        ] {
            assert_eq!(CgroupPath::parse(good).unwrap().to_string(), good);
        }
    }

    #[test]
    fn parents_and_levels_agree() {
        let path = CgroupPath::parse("/a/b/c").unwrap();
        let levels: Vec<_> = path.levels().map(|level| level.to_string()).collect();
        assert_eq!(levels, ["/a", "/a/b", "/a/b/c"]);
        assert_eq!(path.parent().unwrap().to_string(), "/a/b");
        let root = CgroupPath::parse("/").unwrap();
        assert_eq!((root.levels().count(), root.parent()), (0, None));
        assert_eq!(root.join("x").unwrap().to_string(), "/x");
        assert!(root.join("x/y").is_err() && root.join("..").is_err());
    }

    proptest! {
        #[test]
        fn no_path_leaves_its_hierarchy(text in "[/.a-c]{0,24}") {
            if let Ok(path) = CgroupPath::parse(&text) {
                let below = path.below(Path::new("/mount"));
                prop_assert!(below.starts_with("/mount"));
                let plain =
                    below.components().all(|c| !matches!(c, std::path::Component::ParentDir));
                prop_assert!(plain);
            }
        }
    }
}
