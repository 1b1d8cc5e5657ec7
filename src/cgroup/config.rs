//! `[cgroup]` of the configuration.

use serde::Deserialize;

use super::error::CgroupError;
use super::path::CgroupPath;

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// This daemon, as directories.
    #[default]
    Cgroupfs,
    /// systemd, as scopes in slices.
    Systemd,
}

impl Driver {
    /// Its name, as kubelet spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }
}

/// `[cgroup]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CgroupConfig {
    /// Who makes cgroups. Kubelet asks, and does the same.
    pub driver: Driver,
    /// Parent of the containers of sandboxes that name none; empty is the driver's own.
    pub root: String,
}

impl CgroupConfig {
    /// The parent of sandboxes that name none.
    ///
    /// # Errors
    /// [`CgroupError::InvalidPath`] when it is none, the root of the hierarchies, or not of the
    /// driver's kind.
    pub fn root(&self) -> Result<CgroupPath, CgroupError> {
        let refused = |reason| CgroupError::InvalidPath {
            path: self.root.clone(),
            reason,
        };
        let text = match (self.root.as_str(), self.driver) {
            ("", Driver::Cgroupfs) => "/quilt",
            ("", Driver::Systemd) => "quilt.slice",
            (text, _) => text,
        };
        let path = CgroupPath::parse_parent(text)?;
        match (self.driver, path.slice()) {
            _ if path.is_root() => Err(refused("must not be the root of the hierarchy")),
            (Driver::Cgroupfs, Some(_)) => {
                Err(refused("is a systemd slice, and the driver is cgroupfs"))
            }
            (Driver::Systemd, None) => Err(refused(
                "must be a slice, such as quilt.slice: the driver is systemd",
            )),
            _ => Ok(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_of_the_drivers_kind() {
        let root = |driver, root: &str| {
            let root = root.to_owned();
            let path = CgroupConfig { driver, root }.root();
            path.map(|path| path.to_string()).ok()
        };
        let (plain, systemd) = (Driver::Cgroupfs, Driver::Systemd);
        assert_eq!(root(plain, "").as_deref(), Some("/quilt"));
        assert_eq!(root(systemd, "").as_deref(), Some("/quilt.slice"));
        let nested = Some("/a.slice/a-b.slice");
        assert_eq!(root(systemd, "a-b.slice").as_deref(), nested);
        for (driver, text) in [
            (plain, "/"),
            (plain, "quilt"),
            (plain, "quilt.slice"),
            (systemd, "/quilt"),
            (systemd, "-.slice"),
        ] {
            assert_eq!(root(driver, text), None, "{text}");
        }
    }
}
