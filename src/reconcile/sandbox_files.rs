//! The files a sandbox gives its containers: `/etc/hosts`, `/etc/resolv.conf`, `/etc/hostname`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::pod_network::Given;
use super::{Back, ReconcileError};
use crate::lifecycle::spec::NamespaceMode;
use crate::network;
use crate::state::sandbox::Sandbox;
use crate::sys::{mountinfo, tree};

/// Writes the three files; writing them again gives the same.
pub(super) fn write(back: &Back, sandbox: &Sandbox, given: &Given) -> Result<(), ReconcileError> {
    let dir = back.paths.sandbox(&sandbox.id);
    let hostname = sandbox.hostname();
    // What the request says, else what the pod's network says, else what the node has.
    let resolv_conf = match (&sandbox.spec.dns, &given.dns) {
        (Some(own), _) => network::render_resolv_conf(&own.servers, &own.searches, &own.options)?,
        (None, Some(its)) => {
            network::render_resolv_conf(&its.servers, &its.searches, &its.options)?
        }
        (None, None) => network::read_node_resolv_conf(Path::new("/"))?,
    };
    let hosts = if sandbox.spec.network == NamespaceMode::Node {
        let path = Path::new("/etc/hosts");
        std::fs::read_to_string(path).map_err(ReconcileError::file("read", path))?
    } else {
        network::render_hosts(&hostname, &given.addresses)?
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
pub(super) fn mount_shm(dir: &Path) -> Result<(), ReconcileError> {
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
    unmount(&dir.join("shm"))
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
    discard_tree(dir)
}

/// Removes a directory of ours. What is mounted in it is let go of, and a mount that stays is never
/// entered: its content is somebody else's. Idempotent.
pub(super) fn discard_tree(dir: &Path) -> Result<(), ReconcileError> {
    match tree::remove_tree(dir) {
        // Only now is the table of all mounts of the node worth its length.
        Err(error) if is_mounted(&error) => {}
        done => return discarded(dir, done),
    }
    let table = mountinfo::read().map_err(ReconcileError::file("read the mount table for", dir))?;
    let mut inside: Vec<_> = table
        .into_iter()
        .map(|entry| entry.mount_point)
        .filter(|point| point.starts_with(dir))
        .collect();
    // The newest first: it may lie on or in an older one.
    while let Some(point) = inside.pop() {
        unmount(&point)?;
    }
    discarded(dir, tree::remove_tree(dir))
}

/// Whether something is mounted in a tree that could not be removed.
fn is_mounted(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EXDEV))
}

fn discarded(dir: &Path, done: std::io::Result<()>) -> Result<(), ReconcileError> {
    match done {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ReconcileError::file("remove", dir)(error))
        }
        _ => Ok(()),
    }
}

/// Lets go of one mount. Idempotent.
pub(super) fn unmount(point: &Path) -> Result<(), ReconcileError> {
    match umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(ReconcileError::file("unmount", point)(errno.into())),
    }
}

/// Generated files that are not there.
pub(super) fn missing(dir: &Path) -> Vec<&'static str> {
    let names = ["hosts", "resolv.conf", "hostname"];
    names
        .into_iter()
        .filter(|name| !dir.join(name).is_file())
        .collect()
}

/// Whether the pod's `/dev/shm` is mounted.
pub(super) fn has_shm(dir: &Path) -> bool {
    is_mount_point(&dir.join("shm")).unwrap_or(false)
}
