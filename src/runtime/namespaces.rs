//! Which namespaces a process gets: created with it, joined by path, or shared with the node.
//!
//! Pure but for the joining itself. A user namespace is joined, never made here: it is the pod's.
//! Time namespaces are refused, not ignored.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space};

use super::error::{At, LaunchError, stage};

/// What the namespaces of a plan come to.
#[derive(Debug)]
pub(super) struct Namespaces {
    /// Created by clone.
    pub(super) created: ThreadNameSpaceType,
    /// An existing PID namespace, which has to be chosen before clone.
    pub(super) pid: Option<PathBuf>,
    /// The user namespace that it lives in, joined last of all.
    pub(super) user: Option<PathBuf>,
    /// Existing namespaces that the child joins itself.
    pub(super) joined: Vec<(LinkNameSpaceType, PathBuf)>,
    /// A new cgroup namespace, which has to wait until the cgroups have been joined.
    pub(super) new_cgroup: bool,
    /// Whether the UTS namespace is new, and the host name ours to set.
    pub(super) new_uts: bool,
}

impl Namespaces {
    /// Sorts the namespaces of a runtime spec.
    pub(super) fn from_spec(namespaces: &[LinuxNamespace]) -> Result<Self, LaunchError> {
        let mut sorted = Self {
            created: ThreadNameSpaceType::empty(),
            pid: None,
            user: None,
            joined: Vec::new(),
            new_cgroup: false,
            new_uts: false,
        };
        let mut seen = Vec::new();
        for namespace in namespaces {
            let kind = namespace.typ();
            if seen.contains(&kind) {
                return Err(refuse(kind, "is given twice"));
            }
            seen.push(kind);
            let link = link_type(kind);
            match (kind, namespace.path()) {
                (LinuxNamespaceType::Time, _) => {
                    return Err(refuse(kind, "is not supported"));
                }
                (LinuxNamespaceType::User, None) => {
                    return Err(refuse(kind, "is made with the pod, and has to have a path"));
                }
                (LinuxNamespaceType::User, Some(path)) => sorted.user = Some(path.clone()),
                (LinuxNamespaceType::Mount, Some(_)) => {
                    return Err(refuse(
                        kind,
                        "cannot be shared: the rootfs is mounted in it",
                    ));
                }
                (LinuxNamespaceType::Pid, Some(path)) => sorted.pid = Some(path.clone()),
                (_, Some(path)) => sorted.joined.push((link, path.clone())),
                (LinuxNamespaceType::Cgroup, None) => sorted.new_cgroup = true,
                (_, None) => {
                    sorted.new_uts |= kind == LinuxNamespaceType::Uts;
                    sorted.created |= ThreadNameSpaceType::from_bits_retain(link as u32);
                }
            }
        }
        if !sorted.created.contains(ThreadNameSpaceType::MOUNT) {
            let message = "a container needs a mount namespace of its own";
            return Err(LaunchError::invalid(stage::PLAN, message));
        }
        Ok(sorted)
    }
}

fn refuse(kind: LinuxNamespaceType, why: &str) -> LaunchError {
    LaunchError::invalid(stage::PLAN, format!("{kind} namespace {why}"))
}

fn link_type(kind: LinuxNamespaceType) -> LinkNameSpaceType {
    match kind {
        LinuxNamespaceType::Mount => LinkNameSpaceType::Mount,
        LinuxNamespaceType::Cgroup => LinkNameSpaceType::ControlGroup,
        LinuxNamespaceType::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        LinuxNamespaceType::Ipc => LinkNameSpaceType::InterProcessCommunication,
        LinuxNamespaceType::User => LinkNameSpaceType::User,
        LinuxNamespaceType::Pid => LinkNameSpaceType::ProcessID,
        LinuxNamespaceType::Network => LinkNameSpaceType::Network,
        LinuxNamespaceType::Time => LinkNameSpaceType::Time,
    }
}

/// The namespace that the name in a pod's plan stands for.
pub(super) fn link_type_named(name: &str) -> Result<LinkNameSpaceType, LaunchError> {
    match name {
        "net" => Ok(LinkNameSpaceType::Network),
        "ipc" => Ok(LinkNameSpaceType::InterProcessCommunication),
        "uts" => Ok(LinkNameSpaceType::HostNameAndNISDomainName),
        _ => Err(LaunchError::invalid(
            stage::PLAN,
            format!("a pod has no {name:?} namespace"),
        )),
    }
}

/// Moves the calling process into the namespace at `path`, which must be of the given kind.
pub(super) fn join(kind: LinkNameSpaceType, path: &Path) -> Result<(), LaunchError> {
    let what = || format!("join namespace {path:?}");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    let fd = openat(CWD, path, flags, Mode::empty()).at(stage::NAMESPACE, what)?;
    move_into_link_name_space(fd.as_fd(), Some(kind)).at(stage::NAMESPACE, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(kind: LinuxNamespaceType, path: Option<&str>) -> LinuxNamespace {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace.set_path(path.map(PathBuf::from));
        namespace
    }

    #[test]
    fn namespaces_are_created_joined_or_deferred() {
        let sorted = Namespaces::from_spec(&[
            namespace(LinuxNamespaceType::User, Some("/u")),
            namespace(LinuxNamespaceType::Mount, None),
            namespace(LinuxNamespaceType::Uts, None),
            namespace(LinuxNamespaceType::Cgroup, None),
            namespace(LinuxNamespaceType::Pid, Some("/p")),
            namespace(LinuxNamespaceType::Network, Some("/n")),
        ])
        .expect("sorts");
        let clone = ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
        assert_eq!(sorted.created, clone);
        assert_eq!(sorted.pid, Some(PathBuf::from("/p")));
        assert_eq!(sorted.user, Some(PathBuf::from("/u")));
        assert_eq!(
            sorted.joined,
            [(LinkNameSpaceType::Network, PathBuf::from("/n"))]
        );
        assert!(sorted.new_cgroup && sorted.new_uts);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let mount = namespace(LinuxNamespaceType::Mount, None);
        for (second, word) in [
            (namespace(LinuxNamespaceType::User, None), "user"),
            (namespace(LinuxNamespaceType::Mount, None), "twice"),
        ] {
            let error = Namespaces::from_spec(&[mount.clone(), second]).expect_err("refused");
            assert!(error.message.contains(word), "{error}");
        }
        assert!(Namespaces::from_spec(&[]).is_err());
    }
}
