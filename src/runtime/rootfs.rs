//! The root file system: an overlay of the plan's layers, mounted in the container's own mount
//! namespace by its first process, which then makes it its root.
//!
//! Nothing of it is ever visible on the node, and nothing has to be unmounted: it ends with the
//! namespace.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount,
    move_mount, open_tree, unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};

use super::error::{At, LaunchError, stage};
use super::plan::Rootfs;
use crate::sys::mounts::{MountAttributes, kernel_says, set_attributes};
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

/// The directories of an overlay.
struct Stack<'a> {
    /// Topmost first.
    lower: Vec<&'a Path>,
    /// Upper and work directory; without them the overlay is read-only.
    writable: Option<(&'a Path, &'a Path)>,
    mount_point: &'a Path,
}

impl Stack<'_> {
    fn flags(&self) -> &'static [&'static str] {
        self.writable.map_or(&[], |_| FLAGS)
    }
}

/// Mounts the layers on the plan's mount point and returns the mount.
pub(super) fn assemble(rootfs: &Rootfs, with: OverlayInterface) -> Result<OwnedFd, LaunchError> {
    if rootfs.lower.is_empty() {
        // An image without layers: the writable layer is all there is.
        return bind(&rootfs.upper, &rootfs.mount_point);
    }
    forget_volatile(&rootfs.work)?;
    let stack = Stack {
        lower: rootfs.lower.iter().map(PathBuf::as_path).collect(),
        writable: Some((&rootfs.upper, &rootfs.work)),
        mount_point: &rootfs.mount_point,
    };
    overlay(&stack, with)
}

/// Mounts layers on `mount_point`, which is empty, so that nothing can be written.
pub(super) fn assemble_read_only(
    lower: &[PathBuf],
    mount_point: &Path,
    with: OverlayInterface,
) -> Result<OwnedFd, LaunchError> {
    let mut lower: Vec<&Path> = lower.iter().map(PathBuf::as_path).collect();
    match lower.len() {
        0 => return bind(mount_point, mount_point),
        // The kernel wants two. Bound as it is, a single one would show its whiteouts.
        1 => lower.push(mount_point),
        _ => {}
    }
    let stack = Stack {
        lower,
        writable: None,
        mount_point,
    };
    overlay(&stack, with)
}

/// Mounts a directory of the node as it is.
pub(super) fn bind(directory: &Path, mount_point: &Path) -> Result<OwnedFd, LaunchError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let what = || format!("bind {directory:?}");
    let tree = open_tree(CWD, directory, flags).at(stage::ROOTFS, what)?;
    place(tree, mount_point)
}

fn overlay(stack: &Stack<'_>, with: OverlayInterface) -> Result<OwnedFd, LaunchError> {
    if stack.lower.len() > LAYERS_MAX {
        let message = format!("{} layers; at most {LAYERS_MAX} stack", stack.lower.len());
        return Err(LaunchError::invalid(stage::ROOTFS, message));
    }
    match with {
        OverlayInterface::PerLayer => {
            let overlay = overlay_per_layer(stack)?;
            place(overlay, stack.mount_point)
        }
        OverlayInterface::OnePage => overlay_one_page(stack),
    }
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

fn place(tree: OwnedFd, mount_point: &Path) -> Result<OwnedFd, LaunchError> {
    move_mount(
        &tree,
        c"",
        CWD,
        mount_point,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .at(stage::ROOTFS, || {
        format!("mount the rootfs on {mount_point:?}")
    })?;
    Ok(tree)
}

fn overlay_per_layer(stack: &Stack<'_>) -> Result<OwnedFd, LaunchError> {
    let what = || "open an overlay";
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).at(stage::ROOTFS, what)?;
    let mut handles = Vec::new();
    for layer in &stack.lower {
        set_path(&fs, "lowerdir+", layer, &mut handles)?;
    }
    if let Some((upper, work)) = stack.writable {
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
fn overlay_one_page(stack: &Stack<'_>) -> Result<OwnedFd, LaunchError> {
    let open =
        |path: &Path| open_directory(path).at(stage::ROOTFS, || format!("use layer {path:?}"));
    let lower: Vec<OwnedFd> = stack
        .lower
        .iter()
        .map(|layer| open(layer))
        .collect::<Result<_, _>>()?;
    let writable = match stack.writable {
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
    chdir("/proc/self/fd").at(stage::ROOTFS, || "enter /proc/self/fd")?;
    let flags = MountFlags::empty();
    mount(
        "overlay",
        stack.mount_point,
        "overlay",
        flags,
        data.as_c_str(),
    )
    .at(stage::ROOTFS, what)?;
    open_directory(stack.mount_point).at(stage::ROOTFS, || "open the rootfs")
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    openat(
        CWD,
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Makes `rootfs` the root of the process and of its mount namespace, and lets go of the node's
/// tree. From here on no path leads out, because there is no outside.
pub(super) fn enter(rootfs: &OwnedFd) -> Result<(), LaunchError> {
    fchdir(rootfs).at(stage::ROOTFS, || "enter the rootfs")?;
    // With both arguments `.` the old root ends up on top of the new one, needs no directory in
    // it, and is what `.` means to the umount (pivot_root(2), NOTES).
    pivot_root(".", ".").at(stage::ROOTFS, || "pivot_root")?;
    unmount(".", UnmountFlags::DETACH).at(stage::ROOTFS, || "detach the node's tree")?;
    chdir("/").at(stage::ROOTFS, || "enter the new root")
}
