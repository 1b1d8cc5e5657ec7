//! The files a sandbox gives its containers: `/etc/hosts`, `/etc/resolv.conf`, `/etc/hostname`.

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Back, ReconcileError};
use crate::lifecycle::spec::NamespaceMode;
use crate::network;
use crate::state::sandbox::Sandbox;

/// Writes the three files; writing them again gives the same.
pub(super) fn write(
    back: &Back,
    sandbox: &Sandbox,
    address: Option<Ipv4Addr>,
) -> Result<(), ReconcileError> {
    let dir = back.paths.sandbox(&sandbox.id);
    let hostname = sandbox.hostname();
    let resolv_conf = match &sandbox.spec.dns {
        Some(spec) => network::render_resolv_conf(&spec.servers, &spec.searches, &spec.options)?,
        None => network::read_node_resolv_conf(Path::new("/"))?,
    };
    let hosts = if sandbox.spec.network == NamespaceMode::Node {
        let path = Path::new("/etc/hosts");
        std::fs::read_to_string(path).map_err(ReconcileError::file("read", path))?
    } else {
        let addresses: Vec<IpAddr> = address.into_iter().map(IpAddr::from).collect();
        network::render_hosts(&hostname, &addresses)?
    };
    let files = [
        ("resolv.conf", resolv_conf),
        ("hosts", hosts),
        ("hostname", network::render_hostname(&hostname)?),
    ];
    for (name, text) in files {
        let path = dir.join(name);
        std::fs::write(&path, text).map_err(ReconcileError::file("write", path))?;
    }
    if sandbox.spec.ipc == NamespaceMode::Pod {
        mount_shm(&dir)
    } else {
        Ok(())
    }
}

/// The size of a pod's `/dev/shm`, as Docker and containerd have it.
const SHM_OPTIONS: &str = "mode=1777,size=67108864";

/// Mounts the pod's `/dev/shm`, which its containers share. Idempotent.
fn mount_shm(dir: &Path) -> Result<(), ReconcileError> {
    let shm = dir.join("shm");
    std::fs::create_dir_all(&shm).map_err(ReconcileError::file("make", &shm))?;
    if is_mount_point(&shm)? {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("shm"), &shm, Some("tmpfs"), flags, Some(SHM_OPTIONS))
        .map_err(|errno| ReconcileError::file("mount a tmpfs on", &shm)(errno.into()))
}

/// Unmounts the pod's `/dev/shm`. Idempotent.
pub(super) fn unmount_shm(dir: &Path) -> Result<(), ReconcileError> {
    let shm = dir.join("shm");
    match umount2(&shm, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(ReconcileError::file("unmount", &shm)(errno.into())),
    }
}

/// Whether something is mounted on a directory: it is on another file system than its parent.
fn is_mount_point(dir: &Path) -> Result<bool, ReconcileError> {
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev());
    let below = device(dir).map_err(ReconcileError::file("look at", dir))?;
    let above = device(&dir.join("..")).map_err(ReconcileError::file("look above", dir))?;
    Ok(below != above)
}

/// Unmounts and removes a whole sandbox directory. Idempotent.
pub(super) fn discard(dir: &Path) -> Result<(), ReconcileError> {
    network::remove_namespaces(&dir.join("ns"))?;
    unmount_shm(dir)?;
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ReconcileError::file("remove", dir)(error))
        }
        _ => Ok(()),
    }
}
