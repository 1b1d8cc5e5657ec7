//! What is mounted in a container: the standard file systems, the sandbox' files, and what the
//! client asked for (OCI runtime spec "Default Filesystems", CRI `Mount`).

use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount, MountBuilder};

use crate::lifecycle::id_map::IdRange;
use crate::lifecycle::spec::{ContainerSpec, MountSpec, NamespaceMode, Propagation};

/// Where a sandbox' shared files are.
pub(super) struct SandboxMounts {
    /// The directory with hosts, resolv.conf, hostname and shm.
    pub dir: PathBuf,
    /// Whether it has an IPC namespace, and with it a `/dev/shm`, of its own.
    pub own_ipc: bool,
    /// Whether it has a network namespace of its own.
    pub own_network: bool,
}

/// All mounts in order: what is below comes after what it is below of.
pub(super) fn all(
    spec: &ContainerSpec,
    sandbox: &SandboxMounts,
) -> Result<Vec<Mount>, OciSpecError> {
    let mut mounts = standard(spec, sandbox)?;
    let asked = |path: &str| {
        spec.mounts
            .iter()
            .any(|m| normal(&m.container_path) == path)
    };
    let read_only = spec.security.readonly_rootfs;
    for name in ["hosts", "resolv.conf", "hostname"] {
        let target = format!("/etc/{name}");
        if !asked(&target) {
            let access = if read_only { "ro" } else { "rw" };
            mounts.push(bind(
                &sandbox.dir.join(name),
                &target,
                &["rbind", "rprivate", access],
            )?);
        }
    }
    if !asked("/dev/shm") {
        let shm = if sandbox.own_ipc {
            sandbox.dir.join("shm")
        } else {
            PathBuf::from("/dev/shm")
        };
        let options = ["rbind", "rprivate", "rw", "nosuid", "nodev", "noexec"];
        mounts.push(bind(&shm, "/dev/shm", &options)?);
    }
    let mut images = 0..;
    let mut own: Vec<(&MountSpec, Option<usize>)> = spec
        .mounts
        .iter()
        .map(|mount| (mount, mount.image.as_ref().and_then(|_| images.next())))
        .collect();
    own.sort_by_key(|(mount, _)| Path::new(&mount.container_path).components().count());
    for (mount, image) in own {
        mounts.push(match image {
            Some(number) => image_volume(mount, number)?,
            None => requested(mount)?,
        });
    }
    Ok(mounts)
}

fn normal(path: &str) -> String {
    let parts: Vec<_> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    format!("/{}", parts.join("/"))
}

fn standard(spec: &ContainerSpec, sandbox: &SandboxMounts) -> Result<Vec<Mount>, OciSpecError> {
    let privileged = spec.security.privileged;
    let access = if privileged { "rw" } else { "ro" };
    let kernel = ["nosuid", "noexec", "nodev"];
    let with_access = ["nosuid", "noexec", "nodev", access];
    let tmpfs = ["nosuid", "strictatime", "mode=755", "size=65536k"];
    let terminals = [
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
        "gid=5",
    ];
    let mut mounts = vec![
        file_system("proc", "proc", "/proc", &kernel)?,
        file_system("tmpfs", "tmpfs", "/dev", &tmpfs)?,
        file_system("devpts", "devpts", "/dev/pts", &terminals)?,
    ];
    if spec.security.ipc == NamespaceMode::Pod {
        mounts.push(file_system("mqueue", "mqueue", "/dev/mqueue", &kernel)?);
    }
    if sandbox.own_network {
        mounts.push(file_system("sysfs", "sysfs", "/sys", &with_access)?);
    } else {
        // A sysfs of one's own needs a network namespace of one's own.
        let options = ["rbind", "rprivate", "nosuid", "noexec", "nodev", access];
        mounts.push(bind(Path::new("/sys"), "/sys", &options)?);
    }
    mounts.push(file_system(
        "cgroup",
        "cgroup",
        "/sys/fs/cgroup",
        &with_access,
    )?);
    Ok(mounts)
}

fn requested(mount: &MountSpec) -> Result<Mount, OciSpecError> {
    let propagation = match mount.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = match (mount.read_only, mount.recursive_read_only) {
        (false, _) => "rw",
        (true, false) => "ro",
        (true, true) => "rro",
    };
    // For what is mounted below as well: a restriction with holes is none.
    let further: Vec<_> = mount
        .options
        .iter()
        .map(|option| format!("r{option}"))
        .collect();
    let mut options = vec!["rbind", propagation, access];
    options.extend(further.iter().map(String::as_str));
    let bound = bind(Path::new(&mount.host_path), &mount.container_path, &options)?;
    with_ids(bound, mount)
}

/// Whose files are shown as whose.
fn with_ids(mut made: Mount, mount: &MountSpec) -> Result<Mount, OciSpecError> {
    if let Some(maps) = &mount.ids {
        made.set_uid_mappings(Some(id_map(&maps.uids)?));
        made.set_gid_mappings(Some(id_map(&maps.gids)?));
    }
    Ok(made)
}

/// A map as a runtime spec has it.
pub(super) fn id_map(ranges: &[IdRange]) -> Result<Vec<LinuxIdMapping>, OciSpecError> {
    let range = |range: &IdRange| {
        LinuxIdMappingBuilder::default()
            .container_id(range.container_id)
            .host_id(range.host_id)
            .size(range.length)
            .build()
    };
    ranges.iter().map(range).collect()
}

/// Number `number` of the plan's images. Programs in it can be executed, as Kubernetes wants it
/// since 1.36; its device nodes are of no use, whatever the cgroup allows.
fn image_volume(mount: &MountSpec, number: usize) -> Result<Mount, OciSpecError> {
    let mut options = vec!["rprivate", "ro", "nodev"];
    options.extend(mount.options.iter().map(String::as_str));
    let number = number.to_string();
    let made = file_system("image", &number, &mount.container_path, &options)?;
    with_ids(made, mount)
}

fn file_system(
    kind: &str,
    source: &str,
    target: &str,
    options: &[&str],
) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .typ(kind)
        .source(source)
        .destination(target)
        .options(
            options
                .iter()
                .map(|option| (*option).to_owned())
                .collect::<Vec<_>>(),
        )
        .build()
}

fn bind(source: &Path, target: &str, options: &[&str]) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .typ("bind")
        .source(source)
        .destination(target)
        .options(
            options
                .iter()
                .map(|option| (*option).to_owned())
                .collect::<Vec<_>>(),
        )
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::spec::ImageMount;

    fn sandbox() -> SandboxMounts {
        SandboxMounts {
            dir: "/s".into(),
            own_ipc: true,
            own_network: true,
        }
    }

    fn mount(path: &str) -> MountSpec {
        MountSpec {
            container_path: path.into(),
            host_path: "/h".into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_clients_own_hosts_file_replaces_ours() {
        let spec = ContainerSpec {
            mounts: vec![mount("/etc//hosts")],
            ..Default::default()
        };
        let mounts = all(&spec, &sandbox()).expect("mounts");
        let sources = |target: &str| {
            let to = |m: &&Mount| normal(&m.destination().display().to_string()) == target;
            mounts
                .iter()
                .filter(to)
                .map(|m| m.source().clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(sources("/etc/hosts"), [Some(PathBuf::from("/h"))]);
        assert_eq!(
            sources("/etc/resolv.conf"),
            [Some(PathBuf::from("/s/resolv.conf"))]
        );
    }

    #[test]
    fn images_keep_their_numbers_wherever_they_are_mounted() {
        let image = |path: &str| MountSpec {
            image: Some(ImageMount::default()),
            ..mount(path)
        };
        let spec = ContainerSpec {
            mounts: vec![image("/deep/below"), mount("/h"), image("/v")],
            ..Default::default()
        };
        let mounts = all(&spec, &sandbox()).expect("mounts");
        let images: Vec<_> = mounts
            .iter()
            .filter(|m| m.typ().as_deref() == Some("image"))
            .map(|m| (m.destination().clone(), m.source().clone()))
            .collect();
        let named = |path: &str, number: &str| (path.into(), Some(number.into()));
        assert_eq!(images, [named("/v", "1"), named("/deep/below", "0")]);
    }

    #[test]
    fn what_is_below_comes_later() {
        let mounts = vec![mount("/a/b"), mount("/a")];
        let spec = ContainerSpec {
            mounts,
            ..Default::default()
        };
        let mounts = all(&spec, &sandbox()).expect("mounts");
        let place = |target: &str| {
            mounts
                .iter()
                .position(|m| m.destination() == Path::new(target))
        };
        assert!(place("/a") < place("/a/b"));
    }
}
