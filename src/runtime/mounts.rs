//! The mounts of a plan, in two halves around the change of root.
//!
//! Before it, [`prepare`] checks every mount and takes hold of what comes from the node: bind
//! sources become detached mounts, which still belong to the node's peer groups, as propagation
//! needs. Images become detached mounts as soon as propagation is cut ([`assemble_images`]), and
//! new file systems in the container's namespaces ([`create_all`]). After the change,
//! [`attach_all`] puts everything in place, each onto a target that was resolved inside the new
//! root and is held by a descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::Mount;
use rustix::fs::{CWD, FileType, fstat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::cgroup_mount::{self, CgroupSource};
use super::error::{At, LaunchError, stage};
use super::id_maps::{self, IdMaps, Maps};
use super::image_volume;
use super::mount_options::{self, MountOptions};
use super::plan::{CgroupEntry, ImageVolume};
use super::root::{Missing, Root};
use super::rootfs::Site;
use crate::sys::mounts::{MountAttributes, kernel_says, map_ids, set_attributes};

/// The type of a mount whose source is an image of the plan.
const IMAGE: &str = "image";

/// A mount whose source is in hand.
#[derive(Debug)]
pub(super) struct Prepared {
    destination: String,
    /// `mount DESTINATION`, the stage of its errors.
    stage: String,
    options: MountOptions,
    source: Source,
    /// Whose files are shown as whose.
    ids: Option<Maps>,
}

#[derive(Debug)]
enum Source {
    /// A detached copy of a tree of the node, its flags and propagation set.
    Tree(OwnedFd),
    /// An image of the plan, by its number, until it has become a tree.
    Image(usize),
    /// A file system to be created, by type and source name.
    New(String, String),
    Cgroup(CgroupSource),
}

/// Checks `mounts` and takes hold of their sources.
pub(super) fn prepare(
    mounts: &[Mount],
    cgroup: &CgroupEntry,
    id_maps: &mut IdMaps<'_>,
) -> Result<Vec<Prepared>, LaunchError> {
    mounts
        .iter()
        .map(|mount| prepare_one(mount, cgroup, id_maps))
        .collect()
}

fn prepare_one(
    mount: &Mount,
    cgroup: &CgroupEntry,
    id_maps: &mut IdMaps<'_>,
) -> Result<Prepared, LaunchError> {
    let destination = mount
        .destination()
        .to_str()
        .filter(|path| path.starts_with('/'));
    let Some(destination) = destination else {
        let message = format!(
            "mount destination {:?} is no absolute path",
            mount.destination()
        );
        return Err(LaunchError::invalid(stage::MOUNT, message));
    };
    let kind = mount.typ().as_deref().unwrap_or_default();
    let stage = match kind {
        IMAGE => stage::IMAGE_VOLUME,
        _ => stage::MOUNT,
    };
    let at = format!("{stage} {destination}");
    let options = mount_options::parse(kind, mount.options().as_deref().unwrap_or_default())
        .map_err(|error| LaunchError::invalid(at.as_str(), error))?;
    let ids = id_maps::of_mount(mount);
    let source = if let Some(recursive) = options.bind {
        let Some(path) = mount.source() else {
            return Err(LaunchError::invalid(at, "a bind mount has no source"));
        };
        let tree = tree_of(path, recursive, &at)?;
        restrict_bind(&tree, &options).at(&at, || format!("set the flags of {path:?}"))?;
        if let Some(ids) = &ids {
            show_as(&tree, recursive, id_maps.namespace(ids, &at)?, (path, &at))?;
        }
        Source::Tree(tree)
    } else if kind == IMAGE {
        Source::Image(image_number(mount, &options, &at)?)
    } else if kind == "cgroup" {
        Source::Cgroup(cgroup_mount::prepare(cgroup, &at)?)
    } else if kind.is_empty() {
        return Err(LaunchError::invalid(
            at,
            "a mount has neither a type nor `bind`",
        ));
    } else {
        let name = mount
            .source()
            .as_ref()
            .and_then(|source| source.to_str())
            .unwrap_or(kind);
        Source::New(kind.to_owned(), name.to_owned())
    };
    if ids.is_some() && matches!(source, Source::New(..) | Source::Cgroup(_)) {
        let message = "its ids cannot be mapped: it is neither a bind mount nor an image";
        return Err(LaunchError::invalid(at, message));
    }
    Ok(Prepared {
        destination: destination.to_owned(),
        stage: at,
        options,
        source,
        ids,
    })
}

/// A detached copy of what is at `path`. It is still of the same peer groups.
fn tree_of(path: &Path, recursive: bool, at: &str) -> Result<OwnedFd, LaunchError> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags).at(at, || format!("bind source {path:?}"))
}

/// Maps the owners in a tree. What is mounted below and does not take that stays as it is, so that
/// its owners are nobody to the container; the top has to take it.
fn show_as(
    tree: &OwnedFd,
    recursive: bool,
    users: BorrowedFd<'_>,
    (path, at): (&Path, &str),
) -> Result<(), LaunchError> {
    let shown = match map_ids(tree, recursive, users) {
        Err(Errno::INVAL | Errno::PERM) if recursive => map_ids(tree, false, users),
        done => done,
    };
    shown.at(at, || {
        format!("map the owners of {path:?} (its file system has to take idmapped mounts)")
    })
}

/// The source of a bind mount, shown with the owners that it asks for, for somebody else to mount;
/// `None` if it is no bind mount. `always` says whether one that asks for none is wanted as well.
pub(super) fn bind_source(
    mount: &Mount,
    always: bool,
    id_maps: &mut IdMaps<'_>,
) -> Result<Option<OwnedFd>, LaunchError> {
    let at = format!("{} {}", stage::MOUNT, mount.destination().display());
    let kind = mount.typ().as_deref().unwrap_or_default();
    let options = mount_options::parse(kind, mount.options().as_deref().unwrap_or_default())
        .map_err(|error| LaunchError::invalid(at.as_str(), error))?;
    let ids = id_maps::of_mount(mount);
    let (Some(recursive), Some(path)) = (options.bind, mount.source()) else {
        return Ok(None);
    };
    if ids.is_none() && !always {
        return Ok(None);
    }
    let tree = tree_of(path, recursive, &at)?;
    if let Some(ids) = &ids {
        show_as(&tree, recursive, id_maps.namespace(ids, &at)?, (path, &at))?;
    }
    Ok(Some(tree))
}

/// The image that a mount names.
fn image_number(mount: &Mount, options: &MountOptions, at: &str) -> Result<usize, LaunchError> {
    if let Some((name, _)) = options.parameters.first() {
        let message = format!("mount option {name:?} makes no sense for an image");
        return Err(LaunchError::invalid(at, message));
    }
    let source = mount.source().as_ref().and_then(|source| source.to_str());
    let number = source.and_then(|number| number.parse().ok());
    number.ok_or_else(|| {
        let message = format!("its source, {source:?}, is no number of an image");
        LaunchError::invalid(at, message)
    })
}

/// Makes detached trees of the images among `mounts`. Those without maps of their own are shown as
/// `site` has it.
pub(super) fn assemble_images(
    mounts: &mut [Prepared],
    images: &[ImageVolume],
    site: Site<'_>,
    id_maps: &mut IdMaps<'_>,
) -> Result<(), LaunchError> {
    for mount in mounts {
        let Source::Image(number) = mount.source else {
            continue;
        };
        let at = mount.stage.as_str();
        let image = images.get(number).ok_or_else(|| {
            LaunchError::invalid(at, format!("the plan has no image number {number}"))
        })?;
        let users = match &mount.ids {
            Some(ids) => Some(id_maps.namespace(ids, at)?),
            None => site.users,
        };
        let site = Site { users, ..site };
        let tree = image_volume::open(image, site).map_err(|error| LaunchError {
            stage: at.to_owned(),
            ..error
        })?;
        restrict_bind(&tree, &mount.options).at(at, || "set the flags of the image")?;
        mount.source = Source::Tree(tree);
    }
    Ok(())
}

/// Creates the file systems that are new. In a user namespace the kernel makes a proc or sysfs only
/// for who sees one already, so this comes before the node's tree is let go of.
pub(super) fn create_all(mounts: &mut [Prepared]) -> Result<(), LaunchError> {
    for mount in mounts {
        let (at, options) = (mount.stage.as_str(), &mount.options);
        let tree = match &mount.source {
            Source::New(kind, name) => create(kind, name, &options.parameters, options, at)?,
            Source::Cgroup(CgroupSource::Unified) => create("cgroup2", "cgroup", &[], options, at)?,
            Source::Tree(_) | Source::Image(_) | Source::Cgroup(_) => continue,
        };
        mount.source = Source::Tree(tree);
    }
    Ok(())
}

/// Gives a detached tree its flags, and by default cuts its propagation.
fn restrict_bind(tree: &OwnedFd, options: &MountOptions) -> Result<(), Errno> {
    let (propagation, recursive) = options.propagation.unwrap_or((libc::MS_PRIVATE, true));
    let change = MountAttributes {
        propagation,
        ..MountAttributes::default()
    };
    set_attributes(tree, recursive, change)?;
    if !options.flags.is_empty() {
        set_attributes(tree, false, options.flags.to_change())?;
    }
    if !options.recursive_flags.is_empty() {
        set_attributes(tree, true, options.recursive_flags.to_change())?;
    }
    Ok(())
}

/// Puts everything in place, in the order of the plan.
pub(super) fn attach_all(root: &Root, mounts: &[Prepared]) -> Result<(), LaunchError> {
    mounts.iter().try_for_each(|mount| attach_one(root, mount))
}

fn attach_one(root: &Root, mount: &Prepared) -> Result<(), LaunchError> {
    let at = mount.stage.as_str();
    let what = || format!("prepare the mount point {:?}", mount.destination);
    let missing = match &mount.source {
        Source::Tree(tree) if !is_directory(tree).at(at, what)? => Missing::File,
        _ => Missing::Directory,
    };
    let target = root.ensure(&mount.destination, missing).at(at, what)?;
    if root.is(&target).at(at, what)? {
        return Err(LaunchError::invalid(
            at,
            "the root itself cannot be mounted over",
        ));
    }
    let what = || format!("mount on {:?}", mount.destination);
    match &mount.source {
        Source::Tree(tree) => attach(tree, &target).at(at, what),
        Source::Image(_) | Source::New(..) | Source::Cgroup(CgroupSource::Unified) => {
            Err(LaunchError::invalid(at, "it was not made in time"))
        }
        Source::Cgroup(CgroupSource::Hierarchies(hierarchies)) => {
            // Directories have to be made in it first: read-only comes last.
            let mode = [("mode".to_owned(), Some("755".to_owned()))];
            let tmpfs = create("tmpfs", "cgroup", &mode, &MountOptions::default(), at)?;
            attach(&tmpfs, &target).at(at, what)?;
            let flags = mount.options.flags.to_change();
            cgroup_mount::attach_hierarchies(&tmpfs, hierarchies, flags, at)
        }
    }
}

pub(super) fn is_directory(fd: &OwnedFd) -> Result<bool, Errno> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Directory)
}

/// Creates a file system and a detached mount of it.
fn create(
    kind: &str,
    name: &str,
    parameters: &[(String, Option<String>)],
    options: &MountOptions,
    at: &str,
) -> Result<OwnedFd, LaunchError> {
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).at(at, || format!("open a {kind}"))?;
    let refused = |what: String, errno| {
        LaunchError::refused(at, format!("{what}{}", kernel_says(&fs)), errno)
    };
    fsconfig_set_string(&fs, "source", name)
        .map_err(|errno| refused(format!("name the {kind} {name:?}"), errno))?;
    for (key, value) in parameters {
        let set = match value {
            Some(value) => fsconfig_set_string(&fs, key.as_str(), value.as_str()),
            None => fsconfig_set_flag(&fs, key.as_str()),
        };
        set.map_err(|errno| refused(format!("set {key} of the {kind}"), errno))?;
    }
    fsconfig_create(&fs).map_err(|errno| refused(format!("create the {kind}"), errno))?;
    let what = || format!("mount the {kind}");
    let flags = u32::try_from(options.flags.set).unwrap_or_default();
    let flags = MountAttrFlags::from_bits_retain(flags);
    let tree = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, flags).at(at, what)?;
    if !options.recursive_flags.is_empty() {
        set_attributes(&tree, true, options.recursive_flags.to_change()).at(at, what)?;
    }
    if let Some((propagation, recursive)) = options.propagation {
        let change = MountAttributes {
            propagation,
            ..MountAttributes::default()
        };
        set_attributes(&tree, recursive, change).at(at, what)?;
    }
    Ok(tree)
}

/// Attaches a detached mount to what a descriptor refers to: no path is looked up.
pub(super) fn attach(tree: impl AsFd, target: impl AsFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree.as_fd(), c"", target.as_fd(), c"", flags)
}

/// A detached mount of just what `fd` refers to, and of the mounts below it if `recursive`.
pub(super) fn clone_of(fd: impl AsFd, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(fd.as_fd(), c"", flags)
}
