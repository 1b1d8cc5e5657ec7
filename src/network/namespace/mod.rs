//! A pod's namespaces, which live without a process: made by a thread that ends at once, and held
//! by bind mounts of their `/proc` files ("pins", namespaces(7)).
//!
//! ```text
//! absent ──thread: unshare, host name, lo, sysctls──► made ──bind mount──► pinned
//! ```
//!
//! Those of a pod with a user namespace belong to it, and are made by a process (`sys::userns`),
//! which is gone as soon as they are pinned.
//!
//! The pin is the last step, so what is pinned is complete, and what is not pinned ended with its
//! thread: a crash leaves nothing half made.
//!
//! A pin must stay where it is. A copy in another mount namespace would keep the pod's network
//! alive after its end, so the directory of the pins has to be in a mount that does not share
//! ([`ensure_pin_directory`]), and each pin is unbindable: a container that mounts the node's root
//! recursively gets none. Mount namespaces that are cloned do get copies, and let go of them when
//! they detach the old root; that costs a clone about 4 µs for each pod.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{AtFlags, CWD, FsWord, Gid, StatxAttributes, StatxFlags, Uid, statfs, statx};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};

use rustix::thread::{set_thread_res_gid, set_thread_res_uid};

use super::error::NetworkError;
use super::link;
use super::netlink::Socket;
use super::sysctl::{Sysctl, SysctlScope};
use crate::sys::mountinfo;

mod users;

/// `NSFS_MAGIC` of `linux/magic.h`: the file system that namespace files are on.
const NSFS_MAGIC: FsWord = 0x6e73_6673;

/// Longest host name in bytes (`__NEW_UTS_LEN`).
pub const MAX_HOSTNAME_BYTES: usize = 64;

/// The namespaces that a pod has of its own, and what is set in them.
#[derive(Debug, Clone, Copy)]
pub struct NamespaceSpec<'a> {
    /// Where the files `net`, `ipc` and `uts` are made. It is created when absent; its parent
    /// must have gone through [`ensure_pin_directory`].
    pub dir: &'a Path,
    /// A network namespace of its own, with the loopback interface up.
    pub net: bool,
    /// An IPC namespace of its own.
    pub ipc: bool,
    /// A UTS namespace of its own with this host name, at most 64 bytes.
    pub hostname: Option<&'a str>,
    /// Names and values. Those of an interface are left to
    /// [`ensure_pod_link`](super::ensure_pod_link).
    pub sysctls: &'a [(String, String)],
    /// A user namespace of its own, to which the others belong; it is pinned as `user`.
    pub users: Option<&'a UserSpec>,
}

/// The ids of a user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserSpec {
    /// Lines for `/proc/PID/uid_map`.
    pub uids: String,
    /// Lines for `/proc/PID/gid_map`.
    pub gids: String,
    /// Which user and group of the node are its root.
    pub root: (u32, u32),
}

/// One of the namespaces that can be pinned here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pin {
    Net,
    Ipc,
    Uts,
    /// Who owns the others, and so the last to go.
    User,
}

impl Pin {
    const ALL: [Self; 4] = [Self::Net, Self::Ipc, Self::Uts, Self::User];

    /// The name of the file in `/proc/*/ns`, and of the pin.
    fn file_name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::User => "user",
        }
    }

    fn clone_flag(self) -> CloneFlags {
        match self {
            Self::Net => CloneFlags::CLONE_NEWNET,
            Self::Ipc => CloneFlags::CLONE_NEWIPC,
            Self::Uts => CloneFlags::CLONE_NEWUTS,
            Self::User => CloneFlags::CLONE_NEWUSER,
        }
    }

    fn is_wanted(self, spec: &NamespaceSpec<'_>) -> bool {
        match self {
            Self::Net => spec.net,
            Self::Ipc => spec.ipc,
            Self::Uts => spec.hostname.is_some(),
            Self::User => spec.users.is_some(),
        }
    }
}

/// Makes sure that mounts made below `dir` stay in this mount namespace. Where they do already
/// (the mount that `dir` is on is not shared), nothing is mounted; otherwise `dir` becomes a
/// private mount of itself. To be called once, before the first pin.
///
/// # Errors
///
/// When the directory cannot be made or mounted.
pub fn ensure_pin_directory(dir: &Path) -> Result<(), NetworkError> {
    std::fs::create_dir_all(dir).map_err(NetworkError::file("create", dir))?;
    let place = MountPlace::of(dir)?;
    if !place.is_shared()? {
        return Ok(());
    }
    if !place.is_mount_point {
        mount_bind(dir, dir).map_err(|e| NetworkError::file("bind", dir)(e.into()))?;
    }
    mount_change(dir, MountPropagationFlags::PRIVATE)
        .map_err(|e| NetworkError::file("make private", dir)(e.into()))
}

/// Undoes [`ensure_pin_directory`]: lets go of the mount, if one was made. The directory stays.
///
/// # Errors
///
/// When it cannot be unmounted, such as while pins are in it.
pub fn remove_pin_directory(dir: &Path) -> Result<(), NetworkError> {
    if !dir.exists() || !MountPlace::of(dir)?.is_mount_point {
        return Ok(());
    }
    unmount(dir, UnmountFlags::NOFOLLOW).map_err(|e| NetworkError::file("unmount", dir)(e.into()))
}

/// The mount that a directory is on.
struct MountPlace {
    id: u64,
    is_mount_point: bool,
}

impl MountPlace {
    fn of(dir: &Path) -> Result<Self, NetworkError> {
        let found = statx(CWD, dir, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID)
            .map_err(|errno| NetworkError::file("examine", dir)(errno.into()))?;
        let is_mount_point = found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        Ok(Self {
            id: found.stx_mnt_id,
            is_mount_point,
        })
    }

    fn is_shared(&self) -> Result<bool, NetworkError> {
        let table =
            mountinfo::read().map_err(NetworkError::file("read", "/proc/thread-self/mountinfo"))?;
        Ok(table
            .iter()
            .any(|entry| entry.id == self.id && entry.shared))
    }
}

/// Creates and pins the namespaces of `spec` that are not pinned yet. What is pinned is kept as it
/// is, and its host name and sysctls are not set again ([`settle_namespaces`] does). Returns
/// whether anything was pinned before.
///
/// # Errors
///
/// [`NetworkError::Invalid`] for a bad host name or sysctl, before anything is touched; otherwise
/// the step that failed. A namespace that could not be pinned is gone.
pub fn ensure_namespaces(spec: &NamespaceSpec<'_>) -> Result<bool, NetworkError> {
    let sysctls = validate(spec)?;
    let wanted = Pin::ALL.into_iter().filter(|pin| pin.is_wanted(spec));
    let (there, missing): (Vec<Pin>, Vec<Pin>) =
        wanted.partition(|pin| is_pinned(&spec.dir.join(pin.file_name())));
    if missing.is_empty() {
        return Ok(!there.is_empty());
    }
    std::fs::create_dir_all(spec.dir).map_err(NetworkError::file("create", spec.dir))?;
    for pin in &missing {
        create_mount_target(&spec.dir.join(pin.file_name()))?;
    }
    // A thread of its own, because unshare(2) changes whoever calls it, and a pool's thread
    // would carry the pod's namespaces into its next task.
    std::thread::scope(|scope| {
        scope
            .spawn(|| match spec.users {
                None => make_and_pin(spec, &missing, &sysctls),
                Some(ids) => users::make_and_pin(spec, ids, &missing, &sysctls),
            })
            .join()
            .map_err(|_| NetworkError::ThreadPanicked("makes the pod's namespaces"))?
    })?;
    Ok(!there.is_empty())
}

/// Sets host name and sysctls in namespaces that were made before they were known; all of `spec`
/// must be pinned. Only for a pod in which nothing has run yet: what it sets itself would be lost.
///
/// # Errors
///
/// [`NetworkError::Invalid`] before anything is touched; otherwise the step that failed.
pub fn settle_namespaces(spec: &NamespaceSpec<'_>) -> Result<(), NetworkError> {
    let sysctls = validate(spec)?;
    let needs = |pin| match pin {
        Pin::User => false,
        Pin::Uts => spec.hostname.is_some(),
        Pin::Net => sysctls
            .iter()
            .any(|sysctl| matches!(sysctl.scope(), SysctlScope::Network)),
        Pin::Ipc => sysctls
            .iter()
            .any(|sysctl| matches!(sysctl.scope(), SysctlScope::Ipc)),
    };
    let mut namespaces = Vec::new();
    for pin in Pin::ALL.into_iter().filter(|pin| needs(*pin)) {
        let path = spec.dir.join(pin.file_name());
        if !is_pinned(&path) {
            return Err(NetworkError::NotANamespace(path));
        }
        let file = File::open(&path).map_err(NetworkError::file("open", &path))?;
        namespaces.push((file, pin.clone_flag()));
    }
    let set = || {
        for (file, kind) in &namespaces {
            setns(file, *kind).map_err(|errno| NetworkError::System {
                action: "enter a namespace of the pod",
                source: errno.into(),
            })?;
        }
        if let Some(name) = spec.hostname {
            set_hostname(name)?;
        }
        let set = Pin::ALL.into_iter().filter(|pin| needs(*pin));
        apply_sysctls(&sysctls, &set.collect::<Vec<_>>(), spec.users)
    };
    std::thread::scope(|scope| {
        let set = scope.spawn(set);
        set.join()
            .map_err(|_| NetworkError::ThreadPanicked("sets up the pod's namespaces"))?
    })
}

fn set_hostname(name: &str) -> Result<(), NetworkError> {
    let set = rustix::system::sethostname(name.as_bytes());
    set.map_err(|errno| NetworkError::System {
        action: "set the pod's host name",
        source: errno.into(),
    })
}

/// Pins a namespace of a pod again, whose pin was lost while a process still lives in it. `kind` is
/// `net`, `ipc`, `uts` or `user`; `source` is that namespace, opened from the process'
/// `/proc/PID/ns`.
///
/// # Errors
///
/// [`NetworkError::Invalid`] when the namespace is the caller's own, and so the node's; otherwise
/// the step that failed.
pub fn pin_again(dir: &Path, kind: &'static str, source: &File) -> Result<(), NetworkError> {
    let own = Path::new("/proc/thread-self/ns").join(kind);
    let id = |found: std::fs::Metadata| (found.dev(), found.ino());
    let node = std::fs::metadata(&own).map_err(NetworkError::file("examine", &own))?;
    let path = dir.join(kind);
    let wanted = source
        .metadata()
        .map_err(NetworkError::file("examine", &path))?;
    if id(node) == id(wanted) {
        return Err(NetworkError::Invalid {
            field: "namespace",
            value: kind.to_owned(),
            reason: "the process is in the node's own",
        });
    }
    std::fs::create_dir_all(dir).map_err(NetworkError::file("create", dir))?;
    create_mount_target(&path)?;
    let file = format!("/proc/thread-self/fd/{}", source.as_raw_fd());
    mount_bind(file.as_str(), &path).map_err(|e| NetworkError::file("pin", &path)(e.into()))?;
    mount_change(&path, MountPropagationFlags::UNBINDABLE)
        .map_err(|e| NetworkError::file("make unbindable", &path)(e.into()))
}

/// Whether a namespace is pinned at `path`.
#[must_use]
pub fn is_pinned(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.f_type == NSFS_MAGIC)
}

/// Lets go of all pins in `dir`, and removes their files and the directory if nothing else is in
/// it. The namespaces end with the last process in them. Absence is success, and one failure does
/// not stop the rest.
///
/// # Errors
///
/// [`NetworkError::Several`] with everything that failed.
pub fn remove_namespaces(dir: &Path) -> Result<(), NetworkError> {
    let mut errors: Vec<NetworkError> = Pin::ALL
        .into_iter()
        .filter_map(|pin| remove_pin(&dir.join(pin.file_name())).err())
        .collect();
    match std::fs::remove_dir(dir) {
        Err(error)
            if error.kind() != io::ErrorKind::NotFound
                && error.kind() != io::ErrorKind::DirectoryNotEmpty =>
        {
            errors.push(NetworkError::file("remove", dir)(error));
        }
        _ => {}
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(NetworkError::Several(errors))
    }
}

fn remove_pin(path: &Path) -> Result<(), NetworkError> {
    // More than one mount can lie on the file when a crash fell between mounting and a second
    // attempt; the bound is against a mount that does not go away.
    for _ in 0..8 {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(errno) => return Err(NetworkError::file("unmount", path)(errno.into())),
        }
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(NetworkError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn validate(spec: &NamespaceSpec<'_>) -> Result<Vec<Sysctl>, NetworkError> {
    if let Some(name) = spec.hostname {
        validate_hostname(name)?;
    }
    let mut sysctls = Vec::with_capacity(spec.sysctls.len());
    for (name, value) in spec.sysctls {
        let sysctl = Sysctl::parse(name, value)?;
        let of_the_node = match sysctl.scope() {
            SysctlScope::Network | SysctlScope::Interface(_) => !spec.net,
            SysctlScope::Ipc => !spec.ipc,
        };
        if of_the_node {
            return Err(NetworkError::Invalid {
                field: "sysctl",
                value: name.clone(),
                reason: "the pod shares that namespace with the node",
            });
        }
        sysctls.push(sysctl);
    }
    Ok(sysctls)
}

fn validate_hostname(name: &str) -> Result<(), NetworkError> {
    let sound = (1..=MAX_HOSTNAME_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_graphic());
    let reason = "a host name is 1 to 64 printable ASCII characters";
    let invalid = NetworkError::Invalid {
        field: "hostname",
        value: name.to_owned(),
        reason,
    };
    sound.then_some(()).ok_or(invalid)
}

fn create_mount_target(path: &Path) -> Result<(), NetworkError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
        .map(drop)
        .map_err(NetworkError::file("create", path))
}

/// Runs in a thread of its own, which ends with it.
fn make_and_pin(
    spec: &NamespaceSpec<'_>,
    missing: &[Pin],
    sysctls: &[Sysctl],
) -> Result<(), NetworkError> {
    // 1. All namespaces in one call.
    let flags = missing.iter().map(|pin| pin.clone_flag()).collect();
    unshare(flags).map_err(|errno| NetworkError::System {
        action: "unshare the pod's namespaces",
        source: errno.into(),
    })?;
    // 2. What is in them. Only the new ones are touched: this thread is in the node's own
    //    namespace of every kind that was pinned before.
    furnish(spec, missing)?;
    apply_sysctls(sysctls, missing, None)?;
    // 3. Pin them, now that they are complete.
    let own = Path::new("/proc/thread-self/ns");
    missing
        .iter()
        .try_for_each(|pin| pin_one(spec.dir, *pin, &own.join(pin.file_name())))
}

/// Puts into new namespaces, which the calling thread is in, what a pod finds there.
fn furnish(spec: &NamespaceSpec<'_>, new: &[Pin]) -> Result<(), NetworkError> {
    if let (true, Some(name)) = (new.contains(&Pin::Uts), spec.hostname) {
        set_hostname(name)?;
    }
    if new.contains(&Pin::Net) {
        set_loopback_up()?;
    }
    Ok(())
}

/// Sets the sysctls of `new` namespaces, which the calling thread is in and ends in.
///
/// Those of an IPC namespace belong to the root of its user namespace, and to nobody else since
/// Linux 6.9 (proc_sys(5)); this thread becomes him for them.
fn apply_sysctls(
    sysctls: &[Sysctl],
    new: &[Pin],
    users: Option<&UserSpec>,
) -> Result<(), NetworkError> {
    let of = |scope: SysctlScope, pin| {
        let all = sysctls
            .iter()
            .filter(move |sysctl| *sysctl.scope() == scope);
        all.filter(move |_| new.contains(&pin))
    };
    of(SysctlScope::Network, Pin::Net).try_for_each(Sysctl::apply)?;
    let mut of_ipc = of(SysctlScope::Ipc, Pin::Ipc).peekable();
    if let (Some(users), Some(_)) = (users, of_ipc.peek()) {
        let (uid, gid) = (Uid::from_raw(users.root.0), Gid::from_raw(users.root.1));
        set_thread_res_gid(None, gid, None)
            .and_then(|()| set_thread_res_uid(None, uid, None))
            .map_err(|errno| NetworkError::System {
                action: "become the root of the pod",
                source: errno.into(),
            })?;
    }
    of_ipc.try_for_each(Sysctl::apply)
}

fn pin_one(dir: &Path, pin: Pin, namespace: &Path) -> Result<(), NetworkError> {
    let path = dir.join(pin.file_name());
    mount_bind(namespace, &path).map_err(|e| NetworkError::file("pin", &path)(e.into()))?;
    mount_change(&path, MountPropagationFlags::UNBINDABLE)
        .map_err(|e| NetworkError::file("make unbindable", &path)(e.into()))
}

fn set_loopback_up() -> Result<(), NetworkError> {
    let failed = NetworkError::netlink("set up", "lo");
    let mut message = link::named("lo");
    link::set_up(&mut message);
    let outcome = Socket::open().and_then(|mut socket| socket.one(link::change(message)));
    outcome.map(drop).map_err(failed)
}
