//! Device nodes and the links every program expects in `/dev`.
//!
//! Made with mknod in the container's own `/dev`. In a user namespace nobody may do that, so they
//! are made outside, before the node's tree is let go of, and bound; where not even the node lets
//! us make them (no `CAP_MKNOD`) its own are bound. A `/dev` that is itself a bind mount is left as
//! it is.

use std::os::fd::OwnedFd;
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, makedev, mknodat, statat, symlinkat,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::thread::{CapabilitySet, capabilities};

use super::error::{At, LaunchError, stage};
use super::mounts::attach;
use super::root::{Missing, Root};
use super::scratch::Scratch;
use super::user_namespace::Users;

/// Present in every container (OCI runtime spec, "Default Devices").
const DEFAULTS: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// One node to be made.
#[derive(Debug, PartialEq, Eq)]
struct Device {
    path: String,
    kind: FileType,
    number: u64,
    mode: u32,
    /// Who it belongs to inside; whoever is not named is the node's root.
    owner: (Option<u32>, Option<u32>),
}

/// What `/dev` will hold.
#[derive(Debug)]
pub(super) struct Prepared {
    devices: Vec<Device>,
    /// Mounts of them, in the same order, if they cannot be made inside.
    bound: Option<Vec<OwnedFd>>,
}

/// Works out the devices of `spec`; `None` if its `/dev` comes from elsewhere. With `users` it is
/// for a container in a user namespace, and `scratch` an empty directory in a mount namespace from
/// which nothing travels.
pub(super) fn prepare(
    spec: &Spec,
    users: Option<&Users>,
    scratch: &Path,
) -> Result<Option<Prepared>, LaunchError> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let bind = |mount: &oci_spec::runtime::Mount| {
        let options = mount.options().as_deref().unwrap_or_default();
        matches!(mount.typ().as_deref(), Some("bind" | "rbind"))
            || options
                .iter()
                .any(|option| matches!(option.as_str(), "bind" | "rbind"))
    };
    let is_dev = |mount: &&oci_spec::runtime::Mount| {
        mount
            .destination()
            .to_str()
            .map(|path| path.trim_end_matches('/'))
            == Some("/dev")
    };
    if mounts.iter().rfind(is_dev).is_some_and(bind) {
        return Ok(None);
    }
    let extra = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.devices().as_deref());
    let devices = list(extra.unwrap_or_default())?;
    let bound = match (can_make_nodes(), users) {
        (true, None) => None,
        (true, Some(users)) => Some(make_outside(&devices, users, scratch)?),
        (false, _) => Some(bind_sources(&devices)?),
    };
    Ok(Some(Prepared { devices, bound }))
}

/// The devices of the plan, then the default ones it does not name.
fn list(extra: &[LinuxDevice]) -> Result<Vec<Device>, LaunchError> {
    let mut devices = extra.iter().map(from_spec).collect::<Result<Vec<_>, _>>()?;
    for (path, major, minor) in DEFAULTS {
        if !devices.iter().any(|device| device.path == path) {
            devices.push(Device {
                path: path.to_owned(),
                kind: FileType::CharacterDevice,
                number: makedev(major, minor),
                mode: 0o666,
                owner: (None, None),
            });
        }
    }
    Ok(devices)
}

fn from_spec(device: &LinuxDevice) -> Result<Device, LaunchError> {
    let invalid = |why: &str| {
        LaunchError::invalid(stage::DEVICES, format!("device {:?} {why}", device.path()))
    };
    let path = device.path().to_str().filter(|path| path.starts_with('/'));
    let path = path.ok_or_else(|| invalid("is no absolute path"))?;
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => return Err(invalid("has no definite type")),
    };
    let number = |number: i64| u32::try_from(number).map_err(|_| invalid("has an odd number"));
    Ok(Device {
        path: path.to_owned(),
        kind,
        number: makedev(number(device.major())?, number(device.minor())?),
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        owner: (device.uid(), device.gid()),
    })
}

/// Whether nodes we make will open. The right to make them is not enough in a user namespace.
fn can_make_nodes() -> bool {
    let capable =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::MKNOD));
    let initial = std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_ascii_whitespace().eq(["0", "0", "4294967295"]));
    capable && initial
}

/// Makes each node on a tmpfs and binds it out of there. It belongs to whom it would belong to
/// inside, or to the node's root, who is nobody there.
fn make_outside(
    devices: &[Device],
    users: &Users,
    scratch: &Path,
) -> Result<Vec<OwnedFd>, LaunchError> {
    let scratch = Scratch::on(scratch)?;
    let make_one = |(index, device): (usize, &Device)| {
        let what = || format!("device {}", device.path);
        let (name, mode) = (index.to_string(), Mode::from_raw_mode(device.mode));
        mknodat(scratch.directory(), &name, device.kind, mode, device.number)
            .at(stage::DEVICES, what)?;
        let (uid, gid) = device.owner;
        let root = users.root()?;
        let (to_uid, to_gid) = users
            .outside(uid.unwrap_or(0), gid.unwrap_or(0))
            .unwrap_or(root);
        chownat(
            scratch.directory(),
            &name,
            uid.map(|_| Uid::from_raw(to_uid)),
            gid.map(|_| Gid::from_raw(to_gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .at(stage::DEVICES, what)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(scratch.directory(), &name, flags).at(stage::DEVICES, what)
    };
    devices.iter().enumerate().map(make_one).collect()
}

fn bind_sources(devices: &[Device]) -> Result<Vec<OwnedFd>, LaunchError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    devices
        .iter()
        .map(|device| {
            open_tree(CWD, &device.path, flags).at(stage::DEVICES, || {
                format!("bind the node's {}", device.path)
            })
        })
        .collect()
}

/// Makes (or binds) the devices, and the links.
pub(super) fn create(root: &Root, prepared: &Prepared) -> Result<(), LaunchError> {
    let what = || "open /dev";
    let dev = root
        .ensure("/dev", Missing::Directory)
        .at(stage::DEVICES, what)?;
    for (index, device) in prepared.devices.iter().enumerate() {
        let what = || format!("device {}", device.path);
        if let Some(tree) = prepared.bound.as_ref().and_then(|bound| bound.get(index)) {
            let target = root
                .ensure(&device.path, Missing::File)
                .at(stage::DEVICES, what)?;
            attach(tree, &target).at(stage::DEVICES, what)?;
            continue;
        }
        match device.path.strip_prefix("/dev/") {
            Some(name) if !name.contains('/') => make(&dev, name, device),
            _ => root
                .ensure_parent(&device.path)
                .and_then(|(parent, name)| make(&parent, name, device)),
        }
        .at(stage::DEVICES, what)?;
    }
    for (name, target) in LINKS {
        match symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => {
                return Err(LaunchError::refused(
                    stage::DEVICES,
                    format!("link /dev/{name}"),
                    errno,
                ));
            }
        }
    }
    Ok(())
}

/// Makes one node. One that is there already has to be the same device: an image cannot pass off
/// something else as `/dev/null`.
fn make(parent: &OwnedFd, name: &str, device: &Device) -> Result<(), Errno> {
    if matches!(name, "" | "." | "..") {
        return Err(Errno::INVAL);
    }
    let mode = Mode::from_raw_mode(device.mode);
    match mknodat(parent, name, device.kind, mode, device.number) {
        Err(Errno::EXIST) => {
            let there = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let same = FileType::from_raw_mode(there.st_mode) == device.kind
                && (device.kind == FileType::Fifo || there.st_rdev == device.number);
            return if same { Ok(()) } else { Err(Errno::EXIST) };
        }
        other => other?,
    }
    let (owner, group) = (device.owner.0.unwrap_or(0), device.owner.1.unwrap_or(0));
    if (owner, group) == (0, 0) {
        return Ok(());
    }
    let (owner, group) = (Uid::from_raw(owner), Gid::from_raw(group));
    chownat(
        parent,
        name,
        Some(owner),
        Some(group),
        AtFlags::SYMLINK_NOFOLLOW,
    )
}

/// The container's `/dev/null`, proved to be it, to be bound over files.
pub(super) fn open_null(root: &Root) -> Result<OwnedFd, Errno> {
    let null = root.open("/dev/null", OFlags::PATH | OFlags::NOFOLLOW)?;
    let there = rustix::fs::fstat(&null)?;
    let is_null = FileType::from_raw_mode(there.st_mode) == FileType::CharacterDevice
        && there.st_rdev == makedev(1, 3);
    if is_null { Ok(null) } else { Err(Errno::NODEV) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_overrides_a_default_device() {
        let mut null = LinuxDevice::default();
        null.set_path("/dev/null".into());
        null.set_typ(LinuxDeviceType::C);
        null.set_major(1);
        null.set_minor(3);
        null.set_file_mode(Some(0o600));
        let devices = list(&[null]).expect("lists");
        assert_eq!(devices.len(), DEFAULTS.len());
        assert_eq!(devices[0].mode, 0o600);
    }

    #[test]
    fn devices_without_a_type_or_a_path_are_refused() {
        let mut device = LinuxDevice::default();
        device.set_path("dev/x".into());
        device.set_typ(LinuxDeviceType::C);
        assert!(list(&[device.clone()]).is_err());
        device.set_path("/dev/x".into());
        device.set_typ(LinuxDeviceType::A);
        assert!(list(&[device]).is_err());
    }
}
