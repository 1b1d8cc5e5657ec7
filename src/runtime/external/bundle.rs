//! The bundle of a container: `config.json` with absolute paths, and what it mounts that only this
//! mount namespace has.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, RootBuilder, Spec};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::super::error::{At, LaunchError, stage};
use super::super::image_volume;
use super::super::mounts::{attach, is_directory};
use super::super::oci;
use super::super::plan::{BUNDLE, ExternalRuntime, LaunchPlan};
use super::super::rootfs::{OverlayInterface, Site};
use super::super::user::Account;
use super::driver::as_errno;
use crate::sys::mountinfo;
use crate::sys::mounts::{MountAttributes, set_attributes};

/// Older runtimes refuse a bundle of a newer version; this one has all that plans ask for.
const OCI_VERSION: &str = "1.0.2";

/// Where each image of the plan is mounted, by its number.
pub(super) type Images = BTreeMap<usize, PathBuf>;

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

/// Mounts the images that the container mounts, each below the bundle.
pub(super) fn mount_images(
    plan: &LaunchPlan,
    overlay: OverlayInterface,
) -> Result<Images, LaunchError> {
    let mut images = Images::new();
    for mount in plan.spec.mounts().iter().flatten() {
        let Some(number) = number_of(mount) else {
            continue;
        };
        let at = format!("{} {}", stage::IMAGE_VOLUME, mount.destination().display());
        let placed = place_image(plan, number, overlay);
        let placed = placed.map_err(|error| LaunchError { stage: at, ..error })?;
        images.insert(number, placed);
    }
    Ok(images)
}

fn place_image(
    plan: &LaunchPlan,
    number: usize,
    overlay: OverlayInterface,
) -> Result<PathBuf, LaunchError> {
    let none = || LaunchError::invalid("", format!("the plan has no image number {number}"));
    let image = plan.image_volumes.get(number).ok_or_else(none)?;
    let tree = image_volume::open(image, Site::of_node(plan, overlay))?;
    // The working directory is the bundle.
    let place = Path::new(".").join(format!("image-{number}"));
    let what = || format!("mount image number {number}");
    let made = match is_directory(&tree).at("", what)? {
        true => fs::create_dir_all(&place),
        false => File::create(&place).map(drop),
    };
    made.map_err(as_errno).at("", what)?;
    let target = openat(CWD, &place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let target = target.at("", what)?;
    attach(tree.as_fd(), target.as_fd()).at("", what)?;
    fs::canonicalize(&place).map_err(as_errno).at("", what)
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
    images: &Images,
) -> Result<(), LaunchError> {
    let what = || "write the bundle's config.json";
    let spec = spec(plan, runtime, account, images);
    let json = serde_json::to_vec(&spec);
    let json = json.map_err(|error| LaunchError::invalid(stage::RUNTIME, error))?;
    fs::write("config.json", json)
        .map_err(as_errno)
        .at(stage::RUNTIME, what)
}

/// Writes `config.json` for the hooks of a container that we start ourselves: their programs look
/// there for what it is.
pub(in super::super) fn write_for_hooks(plan: &LaunchPlan) -> Result<(), LaunchError> {
    let bundle = plan.stdio.fifo_dir.join(BUNDLE);
    let what = || format!("write the bundle {bundle:?}");
    let mut spec = oci::spec(plan, None);
    let root = RootBuilder::default().path(&plan.rootfs.mount_point);
    spec.set_root(root.build().ok());
    let json = serde_json::to_vec(&spec);
    let json = json.map_err(|error| LaunchError::invalid(stage::HOOK, error))?;
    fs::create_dir_all(&bundle)
        .and_then(|()| fs::write(bundle.join("config.json"), json))
        .map_err(as_errno)
        .at(stage::HOOK, what)
}

fn spec(plan: &LaunchPlan, runtime: &ExternalRuntime, account: &Account, images: &Images) -> Spec {
    let mut spec = oci::spec(plan, Some(&account.identity));
    spec.set_version(OCI_VERSION.to_owned());
    let read_only = spec.root().as_ref().and_then(|root| root.readonly());
    let root = RootBuilder::default()
        .path(&plan.rootfs.mount_point)
        .readonly(read_only.unwrap_or(false));
    spec.set_root(root.build().ok());
    let given = plan.spec.mounts().iter().flatten();
    let exported = spec.mounts().iter().flatten().cloned();
    let mounts = given.zip(exported).map(|(given, exported)| {
        let place = number_of(given).and_then(|number| images.get(&number));
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

/// The mount of an image as the bind of where it is.
fn bound(given: &Mount, place: &Path) -> Mount {
    let mut mount = given.clone();
    let mut options = mount.options().clone().unwrap_or_default();
    options.push("rbind".to_owned());
    mount.set_typ(Some("bind".to_owned()));
    mount.set_source(Some(place.to_owned()));
    mount.set_options(Some(options));
    mount
}
