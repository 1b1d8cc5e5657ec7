//! Images as volumes (KEP-4639): a read-only overlay of an image's layers, or a directory or file
//! in it. The KEP speaks of directories; a file is mounted as one, as with the `subPath` of any
//! other volume.
//!
//! Where it goes in the container is an ordinary mount's business (`mounts`). Here it is assembled,
//! in a mount namespace of which nothing reaches the node, and the path is looked up in it by the
//! kernel: what the image's own links and whiteouts make of a path counts, and no path leads out of
//! the image.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;

use rustix::fs::{FileType, OFlags, fstat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::thread::UnshareFlags;

use super::error::{At, LaunchError, stage};
use super::mounts::clone_of;
use super::plan::ImageVolume;
use super::root::Root;
use super::rootfs::{self, OverlayInterface, Site};
use super::scratch::move_to;
use crate::sys::nsfd::unshare_namespaces;

/// Whether `volume` can be mounted: its layers stack, and its path is in them. Done in a mount
/// namespace that ends with the call. `mount_point` is an empty directory.
///
/// # Errors
///
/// What a launch would fail with.
pub fn check(volume: &ImageVolume, mount_point: &Path) -> Result<(), LaunchError> {
    let look = || {
        // A thread that has a mount namespace of its own has a working directory of its own too.
        unshare_namespaces(UnshareFlags::NEWNS)
            .at(stage::IMAGE_VOLUME, || "create a mount namespace")?;
        rootfs::isolate_propagation()?;
        let site = Site {
            mount_point,
            with: OverlayInterface::of_this_kernel(),
            users: None,
        };
        open(volume, site).map(drop)
    };
    thread::scope(|scope| {
        let looking = thread::Builder::new()
            .name("image-volume".into())
            .spawn_scoped(scope, look);
        match looking.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(found)) => found,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EAGAIN);
                Err(Errno::from_raw_os_error(errno)).at(stage::IMAGE_VOLUME, || "start a thread")
            }
        }
    })
}

/// A detached mount of what `volume` means, put together at `site`.
pub(super) fn open(volume: &ImageVolume, site: Site<'_>) -> Result<OwnedFd, LaunchError> {
    let mount_point = site.mount_point;
    let whole = match &volume.copy {
        Some(copy) => rootfs::bind(copy, site.users)?,
        None => rootfs::assemble_read_only(&volume.lower, site)?,
    };
    move_to(&whole, mount_point)?;
    let root = Root::at(whole);
    let path = match volume.sub_path.as_str() {
        "" => ".",
        path => path,
    };
    let what = || format!("open {path:?} of the image");
    let found = root
        .open(path, OFlags::PATH)
        .at(stage::IMAGE_VOLUME, what)?;
    let stat = fstat(&found).at(stage::IMAGE_VOLUME, what)?;
    if !matches!(
        FileType::from_raw_mode(stat.st_mode),
        FileType::Directory | FileType::RegularFile
    ) {
        let message = format!("{path:?} of the image is neither a directory nor a file");
        return Err(LaunchError::invalid(stage::IMAGE_VOLUME, message));
    }
    // A part of a mount can be taken while the mount is in a namespace (open_tree(2)).
    let tree = clone_of(&found, false).at(stage::IMAGE_VOLUME, || format!("bind {path:?}"))?;
    drop((found, root));
    unmount(mount_point, UnmountFlags::DETACH)
        .at(stage::IMAGE_VOLUME, || format!("clear {mount_point:?}"))?;
    Ok(tree)
}
