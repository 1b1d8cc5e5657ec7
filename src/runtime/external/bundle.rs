//! The bundle of a container: `config.json` with absolute paths, and what it mounts that only this
//! mount namespace has.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, RootBuilder, Spec};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::super::error::{At, LaunchError, stage};
use super::super::id_maps::{self, IdMaps};
use super::super::image_volume;
use super::super::mounts::{attach, bind_source, is_directory};
use super::super::oci;
use super::super::plan::{BUNDLE, ExternalRuntime, LaunchPlan};
use super::super::rootfs::Site;
use super::super::user::Account;
use super::super::user_namespace::{Users, maps_of, root_of};
use super::driver::as_errno;
use crate::sys::mountinfo;
use crate::sys::mounts::{MountAttributes, set_attributes};
use crate::sys::ownership::write_private;

/// Older runtimes refuse a bundle of a newer version; this one has all that plans ask for.
const OCI_VERSION: &str = "1.0.2";

/// Where the sources of mounts are that the runtime does not find by itself, by the mount's place
/// in the plan.
pub(super) type Sources = BTreeMap<usize, PathBuf>;

/// Makes sure that what is mounted on `mount_point` from here on does not reach the node, and
/// changes no other mount: volumes have to hear of the node's, and the node of theirs.
pub(super) fn keep_mounts_inside(mount_point: &Path) -> Result<(), LaunchError> {
    let what = || format!("find what {mount_point:?} is on");
    let table = mountinfo::read()
        .map_err(as_errno)
        .at(stage::ROOTFS, what)?;
    let above = table.iter();
    let above = above.filter(|mount| mount_point.starts_with(&mount.mount_point));
    let Some(on) = above.max_by_key(|mount| mount.mount_point.components().count()) else {
        return Ok(());
    };
    if !on.shared {
        return Ok(());
    }
    let what = || format!("keep mounts on {:?} inside", on.mount_point);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mount = openat(CWD, &on.mount_point, flags, Mode::empty()).at(stage::ROOTFS, what)?;
    let change = MountAttributes {
        propagation: libc::MS_SLAVE,
        ..MountAttributes::default()
    };
    set_attributes(&mount, false, change).at(stage::ROOTFS, what)
}

/// Mounts, below the bundle, the images that the container mounts, and what has mapped owners. In
/// a user namespace that is all that is bound: its root may not find the way to the node's paths.
pub(super) fn mount_sources(
    plan: &LaunchPlan,
    site: Site<'_>,
    users: Option<&Users>,
) -> Result<Sources, LaunchError> {
    let mut id_maps = IdMaps::new(users);
    let mut sources = Sources::new();
    for (index, mount) in plan.spec.mounts().iter().flatten().enumerate() {
        let (tree, at) = match number_of(mount) {
            Some(number) => {
                let at = format!("{} {}", stage::IMAGE_VOLUME, mount.destination().display());
                let tree = open_image(plan, mount, number, (site, &mut id_maps));
                let tree = tree.map_err(|error| LaunchError {
                    stage: at.clone(),
                    ..error
                })?;
                (Some(tree), at)
            }
            None => {
                let at = format!("{} {}", stage::MOUNT, mount.destination().display());
                (bind_source(mount, users.is_some(), &mut id_maps)?, at)
            }
        };
        if let Some(tree) = tree {
            sources.insert(index, place(&tree, index, &at)?);
        }
    }
    Ok(sources)
}

fn open_image(
    plan: &LaunchPlan,
    mount: &Mount,
    number: usize,
    (site, id_maps): (Site<'_>, &mut IdMaps<'_>),
) -> Result<OwnedFd, LaunchError> {
    let none = || LaunchError::invalid("", format!("the plan has no image number {number}"));
    let image = plan.image_volumes.get(number).ok_or_else(none)?;
    let users = match id_maps::of_mount(mount) {
        Some(ids) => Some(id_maps.namespace(&ids, "")?),
        None => site.users,
    };
    image_volume::open(image, Site { users, ..site })
}

/// Attaches a tree below the working directory, which is the bundle.
fn place(tree: &OwnedFd, index: usize, at: &str) -> Result<PathBuf, LaunchError> {
    let place = Path::new(".").join(format!("mount-{index}"));
    let what = || format!("mount its source at {place:?}");
    let made = match is_directory(tree).at(at, what)? {
        true => fs::create_dir_all(&place),
        false => File::create(&place).map(drop),
    };
    made.map_err(as_errno).at(at, what)?;
    let target = openat(CWD, &place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let target = target.at(at, what)?;
    attach(tree, target.as_fd()).at(at, what)?;
    fs::canonicalize(&place).map_err(as_errno).at(at, what)
}

fn number_of(mount: &Mount) -> Option<usize> {
    if mount.typ().as_deref() != Some("image") {
        return None;
    }
    mount.source().as_ref()?.to_str()?.parse().ok()
}

/// Writes `config.json` into the working directory.
pub(super) fn write(
    plan: &LaunchPlan,
    runtime: &ExternalRuntime,
    account: &Account,
    sources: &Sources,
) -> Result<(), LaunchError> {
    let spec = spec(plan, runtime, account, sources);
    write_spec(Path::new("."), &spec, stage::RUNTIME)
}

/// Writes `config.json` into `bundle`, for the node's root and, where there is another, for that of
/// the container, whose hooks read it: the environment in it is nobody else's business.
fn write_spec(bundle: &Path, spec: &Spec, at: &str) -> Result<(), LaunchError> {
    let json = serde_json::to_vec(spec).map_err(|error| LaunchError::invalid(at, error))?;
    let path = bundle.join("config.json");
    let root = maps_of(spec).and_then(|maps| root_of(&maps));
    let written = || {
        let file = write_private(&path, &json)?;
        if let Some((_, gid)) = root {
            fchown(&file, None, Some(gid))?;
            file.set_permissions(Permissions::from_mode(0o640))?;
        }
        Ok(())
    };
    written()
        .map_err(as_errno)
        .at(at, || format!("write {path:?}"))
}

/// Writes `config.json` for the hooks of a container that we start ourselves: their programs look
/// there for what it is.
pub(in super::super) fn write_for_hooks(plan: &LaunchPlan) -> Result<(), LaunchError> {
    let bundle = plan.stdio.fifo_dir.join(BUNDLE);
    let mut spec = oci::spec(plan, None);
    let root = RootBuilder::default().path(&plan.rootfs.mount_point);
    spec.set_root(root.build().ok());
    fs::create_dir_all(&bundle)
        .map_err(as_errno)
        .at(stage::HOOK, || format!("make the bundle {bundle:?}"))?;
    write_spec(&bundle, &spec, stage::HOOK)
}

fn spec(
    plan: &LaunchPlan,
    runtime: &ExternalRuntime,
    account: &Account,
    sources: &Sources,
) -> Spec {
    let mut spec = oci::spec(plan, Some(&account.identity));
    spec.set_version(OCI_VERSION.to_owned());
    let read_only = spec.root().as_ref().and_then(|root| root.readonly());
    let root = RootBuilder::default()
        .path(&plan.rootfs.mount_point)
        .readonly(read_only.unwrap_or(false));
    spec.set_root(root.build().ok());
    let given = plan.spec.mounts().iter().flatten();
    let exported = spec.mounts().iter().flatten().cloned();
    let mounts = given.zip(exported).enumerate();
    let mounts = mounts.map(|(index, (given, exported))| {
        let place = sources.get(&index);
        place.map_or(exported, |place| bound(given, place))
    });
    spec.set_mounts(Some(mounts.collect()));
    if let Some(process) = spec.process_mut() {
        let mut environment = process.env().clone().unwrap_or_default();
        if !environment.iter().any(|entry| entry.starts_with("HOME=")) {
            environment.push(format!("HOME={}", String::from_utf8_lossy(&account.home)));
            process.set_env(Some(environment));
        }
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_cgroups_path(Some(PathBuf::from(&runtime.cgroup)));
    }
    spec
}

/// A mount as the bind of where its source is, which has its owners as they are to be seen.
fn bound(given: &Mount, place: &Path) -> Mount {
    let mut mount = given.clone();
    let mut options = mount.options().clone().unwrap_or_default();
    if number_of(given).is_some() {
        options.push("rbind".to_owned());
    }
    mount.set_typ(Some("bind".to_owned()));
    mount.set_source(Some(place.to_owned()));
    mount.set_options(Some(options));
    mount.set_uid_mappings(None);
    mount.set_gid_mappings(None);
    mount
}
