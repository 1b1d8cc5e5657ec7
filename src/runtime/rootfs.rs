//! The root file system: an overlay of the plan's layers, mounted in the container's own mount
//! namespace by its first process, which then makes it its root.
//!
//! In a user namespace layers are shown with mapped owners (idmapped mounts), each by itself: an
//! overlay as a whole cannot be. Nothing shared is changed on the disk.
//!
//! Nothing of it is ever visible on the node, and nothing has to be unmounted: it ends with the
//! namespace.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, chownat, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, open_tree,
    unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};

use super::error::{At, LaunchError, stage};
use super::plan::{LaunchPlan, Rootfs};
use super::scratch::{Scratch, move_to};
use crate::sys::mounts::{MountAttributes, kernel_says, map_ids, set_attributes};
use crate::sys::overlay::{SETTINGS, VOLATILE};

/// The kernel stacks no more layers (overlayfs, `OVL_MAX_STACK`).
const LAYERS_MAX: usize = 500;
/// fsconfig(2) takes no longer string.
const STRING_MAX: usize = 255;

/// Options without a value of every writable overlay.
const FLAGS: &[&str] = &[VOLATILE];

/// How this kernel wants its layers, found out once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OverlayInterface {
    /// One `lowerdir+` per layer (Linux 6.5).
    PerLayer,
    /// mount(2), with all options in one page.
    OnePage,
}

impl OverlayInterface {
    /// Asks the kernel, the first time. Call it in the parent, so that children inherit the answer.
    pub(super) fn of_this_kernel() -> Self {
        static ANSWER: OnceLock<OverlayInterface> = OnceLock::new();
        *ANSWER.get_or_init(|| {
            // Older kernels collect strings unseen; newer ones look the directory up at once.
            let probe = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
                .and_then(|fs| fsconfig_set_string(&fs, "lowerdir+", "/proc/self/no-such-layer"));
            if probe == Err(Errno::NOENT) {
                Self::PerLayer
            } else {
                Self::OnePage
            }
        })
    }
}

/// Stops mount events from travelling between this namespace and the node's, in both directions.
pub(super) fn isolate_propagation() -> Result<(), LaunchError> {
    let what = || "make the mount namespace private";
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, "/", flags, Mode::empty()).at(stage::ROOTFS, what)?;
    let private = MountAttributes {
        propagation: libc::MS_PRIVATE,
        ..MountAttributes::default()
    };
    set_attributes(&root, true, private).at(stage::ROOTFS, what)
}

/// Where layers are put together, and for whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Site<'a> {
    /// An empty directory, in a mount namespace from which nothing travels. It is as empty
    /// afterwards as before.
    pub(super) mount_point: &'a Path,
    pub(super) with: OverlayInterface,
    /// The user namespace whose ids the layers are shown in.
    pub(super) users: Option<BorrowedFd<'a>>,
}

impl<'a> Site<'a> {
    /// Where a container has its root, for the ids of the node.
    pub(super) fn of_node(plan: &'a LaunchPlan, with: OverlayInterface) -> Self {
        Self {
            mount_point: &plan.rootfs.mount_point,
            with,
            users: None,
        }
    }
}

/// The directories of an overlay.
struct Stack {
    /// Topmost first.
    lower: Vec<PathBuf>,
    /// Upper and work directory; without them the overlay is read-only.
    writable: Option<(PathBuf, PathBuf)>,
}

impl Stack {
    fn flags(&self) -> &'static [&'static str] {
        self.writable.as_ref().map_or(&[], |_| FLAGS)
    }
}

/// Puts the layers together and returns the mount, which is attached nowhere.
pub(super) fn assemble(rootfs: &Rootfs, site: Site<'_>) -> Result<OwnedFd, LaunchError> {
    if rootfs.lower.is_empty() {
        // An image without layers, or a copy of one: the writable layer is all there is.
        return bind(&rootfs.upper, site.users);
    }
    forget_volatile(&rootfs.work)?;
    let stack = Stack {
        lower: rootfs.lower.clone(),
        writable: Some((rootfs.upper.clone(), rootfs.work.clone())),
    };
    overlay(stack, site)
}

/// Puts layers together so that nothing can be written.
pub(super) fn assemble_read_only(
    lower: &[PathBuf],
    site: Site<'_>,
) -> Result<OwnedFd, LaunchError> {
    if lower.is_empty() {
        return bind(site.mount_point, None);
    }
    let stack = Stack {
        lower: lower.to_vec(),
        writable: None,
    };
    overlay(stack, site)
}

/// Gives the writable layer to the root of a user namespace. Layers are shown as if they were his,
/// each container's own one is: an overlay writes to it as the node's root, who is nobody in such a
/// namespace, and could write nothing that was shown so.
pub(super) fn give_upper(rootfs: &Rootfs, (uid, gid): (u32, u32)) -> Result<(), LaunchError> {
    if rootfs.lower.is_empty() {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    chownat(CWD, &rootfs.upper, Some(uid), Some(gid), flags).at(stage::ROOTFS, || {
        format!("give {:?} to the pod", rootfs.upper)
    })
}

/// A directory of the node as it is, or with its owners as `users` maps them.
pub(super) fn bind(
    directory: &Path,
    users: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, LaunchError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let what = || format!("bind {directory:?}");
    let tree = open_tree(CWD, directory, flags).at(stage::ROOTFS, what)?;
    if let Some(users) = users {
        map_ids(&tree, false, users)
            .at(stage::ROOTFS, || format!("map the owners of {directory:?}"))?;
    }
    Ok(tree)
}

fn overlay(mut stack: Stack, site: Site<'_>) -> Result<OwnedFd, LaunchError> {
    if stack.lower.len() > LAYERS_MAX {
        let message = format!("{} layers; at most {LAYERS_MAX} stack", stack.lower.len());
        return Err(LaunchError::invalid(stage::ROOTFS, message));
    }
    let scratch = match site.users {
        Some(users) => Some(show_mapped(&mut stack, site.mount_point, users)?),
        None => None,
    };
    if stack.writable.is_none() && stack.lower.len() == 1 {
        // The kernel wants two. Bound as it is, a single one would show its whiteouts.
        let empty = match &scratch {
            Some(scratch) => scratch.make_directory(EMPTY)?,
            None => site.mount_point.to_owned(),
        };
        stack.lower.push(empty);
    }
    match site.with {
        OverlayInterface::PerLayer => overlay_per_layer(&stack),
        OverlayInterface::OnePage => overlay_one_page(&stack, site.mount_point),
    }
}

/// The name of a directory that stays empty, among those of layers, which are numbers.
const EMPTY: &str = "empty";

/// Mounts each layer once more, with its owners as `users` maps them, and lets the overlay have
/// those. Before Linux 6.15 it takes attached mounts only.
fn show_mapped(
    stack: &mut Stack,
    mount_point: &Path,
    users: BorrowedFd<'_>,
) -> Result<Scratch, LaunchError> {
    let scratch = Scratch::on(mount_point)?;
    for (index, layer) in stack.lower.iter_mut().enumerate() {
        let tree = bind(layer, Some(users))?;
        let place = scratch.make_directory(&index.to_string())?;
        move_to(&tree, &place)?;
        *layer = place;
    }
    Ok(scratch)
}

/// A volatile overlay leaves a mark that forbids using its layer again, because a crash in between
/// may have lost writes. A launch tried again after the shim was killed is no such crash; after a
/// crash of the node the container is not started again.
fn forget_volatile(work: &Path) -> Result<(), LaunchError> {
    let mark = work.join("work/incompat/volatile");
    for (path, flags) in [
        (&mark.join("dirty"), AtFlags::empty()),
        (&mark, AtFlags::REMOVEDIR),
    ] {
        match unlinkat(CWD, path, flags) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => {
                return Err(LaunchError::refused(
                    stage::ROOTFS,
                    format!("remove {path:?}"),
                    errno,
                ));
            }
        }
    }
    Ok(())
}

fn overlay_per_layer(stack: &Stack) -> Result<OwnedFd, LaunchError> {
    let what = || "open an overlay";
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).at(stage::ROOTFS, what)?;
    let mut handles = Vec::new();
    for layer in &stack.lower {
        set_path(&fs, "lowerdir+", layer, &mut handles)?;
    }
    if let Some((upper, work)) = &stack.writable {
        set_path(&fs, "upperdir", upper, &mut handles)?;
        set_path(&fs, "workdir", work, &mut handles)?;
    }
    for (name, value) in SETTINGS {
        fsconfig_set_string(&fs, name, value)
            .at(stage::ROOTFS, || format!("set {name}={value}"))?;
    }
    for name in stack.flags() {
        fsconfig_set_flag(&fs, *name).at(stage::ROOTFS, || format!("set {name}"))?;
    }
    fsconfig_create(&fs).map_err(|errno| {
        let what = format!("assemble {} layers{}", stack.lower.len(), kernel_says(&fs));
        LaunchError::refused(stage::ROOTFS, what, errno)
    })?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .at(stage::ROOTFS, || "mount the overlay")
}

/// Passes a directory by its path or, if that is too long for a string, through a descriptor.
fn set_path(
    fs: &OwnedFd,
    key: &str,
    path: &Path,
    handles: &mut Vec<OwnedFd>,
) -> Result<(), LaunchError> {
    let what = || format!("use layer {path:?}");
    if path.as_os_str().len() <= STRING_MAX {
        return fsconfig_set_string(fs, key, path).at(stage::ROOTFS, what);
    }
    let handle = open_directory(path).at(stage::ROOTFS, what)?;
    let name = format!("/proc/self/fd/{}", handle.as_raw_fd());
    handles.push(handle);
    fsconfig_set_string(fs, key, name.as_str()).at(stage::ROOTFS, what)
}

/// Before Linux 6.5 all options share one page. Descriptors, named from within `/proc/self/fd`, are
/// short enough for any number of layers, and no path needs escaping.
fn overlay_one_page(stack: &Stack, mount_point: &Path) -> Result<OwnedFd, LaunchError> {
    let open =
        |path: &Path| open_directory(path).at(stage::ROOTFS, || format!("use layer {path:?}"));
    let lower: Vec<OwnedFd> = stack
        .lower
        .iter()
        .map(|layer| open(layer))
        .collect::<Result<_, _>>()?;
    let writable = match &stack.writable {
        Some((upper, work)) => Some((open(upper)?, open(work)?)),
        None => None,
    };
    let names: Vec<String> = lower.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
    let mut data = format!("lowerdir={}", names.join(":"));
    if let Some((upper, work)) = &writable {
        let (upper, work) = (upper.as_raw_fd(), work.as_raw_fd());
        data.push_str(&format!(",upperdir={upper},workdir={work}"));
    }
    for (name, value) in SETTINGS {
        data.push_str(&format!(",{name}={value}"));
    }
    for name in stack.flags() {
        data.push_str(&format!(",{name}"));
    }
    let what = || format!("assemble {} layers", lower.len());
    let data = CString::new(data)
        .map_err(|_| Errno::INVAL)
        .at(stage::ROOTFS, what)?;
    // Whoever calls names files by where it is, as the driver of another runtime does.
    let home = open(Path::new("."))?;
    chdir("/proc/self/fd").at(stage::ROOTFS, || "enter /proc/self/fd")?;
    let flags = MountFlags::empty();
    let data = data.as_c_str();
    let mounted = mount("overlay", mount_point, "overlay", flags, data);
    fchdir(&home).at(stage::ROOTFS, || "go back from /proc/self/fd")?;
    mounted.at(stage::ROOTFS, what)?;
    // Held otherwise, like all others.
    let tree = bind(mount_point, None)?;
    unmount(mount_point, UnmountFlags::DETACH)
        .at(stage::ROOTFS, || format!("clear {mount_point:?}"))?;
    Ok(tree)
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    openat(
        CWD,
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Makes `rootfs`, which is attached, the root of the process and of its mount namespace, and lets
/// go of the node's tree. From here on no path leads out, because there is no outside.
pub(super) fn enter(rootfs: &OwnedFd) -> Result<(), LaunchError> {
    fchdir(rootfs).at(stage::ROOTFS, || "enter the rootfs")?;
    // With both arguments `.` the old root ends up on top of the new one, needs no directory in
    // it, and is what `.` means to the umount (pivot_root(2), NOTES).
    pivot_root(".", ".").at(stage::ROOTFS, || "pivot_root")?;
    unmount(".", UnmountFlags::DETACH).at(stage::ROOTFS, || "detach the node's tree")?;
    chdir("/").at(stage::ROOTFS, || "enter the new root")
}
