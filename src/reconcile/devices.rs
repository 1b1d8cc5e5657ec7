//! Which device nodes a container has, and which devices its cgroup lets it use.
//!
//! Besides those of every container: what was asked for, single nodes or whole directories of
//! them; and for a privileged container all that the node has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};
use rustix::fs::{FileType, Stat, lstat, stat};

use super::ReconcileError;
use crate::lifecycle::spec::ContainerSpec;

/// Nodes of a container, and how deep below a directory they may be.
const NODES_MAX: usize = 4096;
const DEPTH_MAX: usize = 16;
/// Of the node's own, what is a container's own in a container.
const OWN: [&str; 2] = ["/dev/console", "/dev/ptmx"];

/// A device node in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    kind: LinuxDeviceType,
    major: i64,
    minor: i64,
    mode: u32,
    owner: (u32, u32),
    access: String,
}

/// By their path in the container.
pub(super) type Nodes = BTreeMap<PathBuf, Node>;

/// Looks at the node's devices. For a thread that others do not wait for.
pub(super) fn nodes(spec: &ContainerSpec) -> Result<Nodes, ReconcileError> {
    let mut nodes = Nodes::new();
    if spec.security.privileged {
        let dev = Path::new("/dev");
        let own = stat(dev).map_err(|errno| failed(dev, errno))?;
        walk(dev, dev, "rwm", own.st_dev, &mut nodes)?;
        nodes.retain(|path, _| !OWN.iter().any(|own| path == Path::new(own)));
    }
    for device in &spec.devices {
        let host = Path::new(&device.host_path);
        let access = match device.permissions.as_str() {
            "" => "rwm",
            asked => asked,
        };
        // A link is followed: names below /dev/disk/by-id and the like are links.
        let found = stat(host).map_err(|errno| failed(host, errno))?;
        let inside = PathBuf::from(&device.container_path);
        if let Some(node) = node(&found, access) {
            nodes.insert(inside, node);
        } else if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            walk(host, &inside, access, found.st_dev, &mut nodes)?;
        } else {
            let why = format!("device {host:?} is neither a device nor a directory of devices");
            return Err(ReconcileError::Plan(why));
        }
    }
    Ok(nodes)
}

fn failed(path: &Path, errno: rustix::io::Errno) -> ReconcileError {
    ReconcileError::file("look at device", path)(errno.into())
}

/// All nodes below `host`, on its file system: what is mounted below (terminals, shared memory) is
/// left out, as are links.
fn walk(
    host: &Path,
    inside: &Path,
    access: &str,
    file_system: u64,
    nodes: &mut Nodes,
) -> Result<(), ReconcileError> {
    let mut directories = vec![(host.to_owned(), inside.to_owned(), 0)];
    while let Some((host, inside, depth)) = directories.pop() {
        let entries = match std::fs::read_dir(&host) {
            // A device that is unplugged just now takes its directory along.
            Err(error) if depth > 0 && error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(ReconcileError::file("list", &host))?,
        };
        for entry in entries.filter_map(Result::ok) {
            // One that has gone meanwhile is not there.
            let Ok(found) = lstat(entry.path()) else {
                continue;
            };
            let inside = inside.join(entry.file_name());
            let kind = FileType::from_raw_mode(found.st_mode);
            if kind == FileType::Directory && found.st_dev == file_system && depth < DEPTH_MAX {
                directories.push((entry.path(), inside, depth + 1));
            } else if let Some(node) = node(&found, access) {
                nodes.insert(inside, node);
            }
            if nodes.len() > NODES_MAX {
                let why = format!("there are more than {NODES_MAX} devices for it");
                return Err(ReconcileError::Plan(why));
            }
        }
    }
    Ok(())
}

fn node(found: &Stat, access: &str) -> Option<Node> {
    let kind = match FileType::from_raw_mode(found.st_mode) {
        FileType::CharacterDevice => LinuxDeviceType::C,
        FileType::BlockDevice => LinuxDeviceType::B,
        _ => return None,
    };
    Some(Node {
        kind,
        major: rustix::fs::major(found.st_rdev).into(),
        minor: rustix::fs::minor(found.st_rdev).into(),
        mode: found.st_mode & 0o777,
        owner: (found.st_uid, found.st_gid),
        access: access.to_owned(),
    })
}

/// As a launch plan has them.
pub(super) fn of_plan(nodes: &Nodes) -> Result<Vec<LinuxDevice>, OciSpecError> {
    let device = |(path, node): (&PathBuf, &Node)| {
        LinuxDeviceBuilder::default()
            .path(path)
            .typ(node.kind)
            .major(node.major)
            .minor(node.minor)
            .file_mode(node.mode)
            .uid(node.owner.0)
            .gid(node.owner.1)
            .build()
    };
    nodes.iter().map(device).collect()
}

/// Device numbers every container may use: null, zero, full, tty, random, urandom, ptmx and the
/// terminals of its own devpts.
const STANDARD: [(i64, Option<i64>); 8] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (5, Some(0)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(2)),
    (136, None),
];

/// What the cgroup lets it use.
pub(super) fn rules(
    privileged: bool,
    nodes: &Nodes,
) -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let rule = |allow, kind, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut rule = LinuxDeviceCgroupBuilder::default();
        rule = rule.allow(allow).typ(kind).access(access);
        if let Some(major) = major {
            rule = rule.major(major);
        }
        if let Some(minor) = minor {
            rule = rule.minor(minor);
        }
        rule.build()
    };
    if privileged {
        return Ok(vec![rule(true, LinuxDeviceType::A, None, None, "rwm")?]);
    }
    let mut rules = vec![
        rule(false, LinuxDeviceType::A, None, None, "rwm")?,
        // Making a node is no access to the device behind it.
        rule(true, LinuxDeviceType::C, None, None, "m")?,
        rule(true, LinuxDeviceType::B, None, None, "m")?,
    ];
    for (major, minor) in STANDARD {
        rules.push(rule(true, LinuxDeviceType::C, Some(major), minor, "rwm")?);
    }
    for node in nodes.values() {
        let (major, minor) = (Some(node.major), Some(node.minor));
        rules.push(rule(true, node.kind, major, minor, &node.access)?);
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::spec::{DeviceSpec, Security};

    fn asking(host_path: &str, container_path: &str, permissions: &str) -> ContainerSpec {
        ContainerSpec {
            devices: vec![DeviceSpec {
                host_path: host_path.into(),
                container_path: container_path.into(),
                permissions: permissions.into(),
            }],
            ..Default::default()
        }
    }

    #[test]
    fn a_device_a_link_to_one_and_a_directory_of_them_are_taken_and_nothing_else_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let below = dir.path().join("a/b");
        std::fs::create_dir_all(&below).expect("a directory");
        let mode = rustix::fs::Mode::from_raw_mode(0o640);
        let device = rustix::fs::makedev(1, 3);
        let made = below.join("nothing");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &made,
            FileType::CharacterDevice,
            mode,
            device,
        )
        .expect("a node of the test");
        std::os::unix::fs::symlink(&made, dir.path().join("link")).expect("a link");
        std::fs::write(dir.path().join("file"), "").expect("a file");
        let path = |name: &str| dir.path().join(name).display().to_string();

        let whole = nodes(&asking(&path(""), "/dev/x", "r")).expect("a directory");
        assert_eq!(
            whole.keys().collect::<Vec<_>>(),
            [Path::new("/dev/x/a/b/nothing")]
        );
        let linked = nodes(&asking(&path("link"), "/dev/y", "")).expect("a link");
        let node = &linked[Path::new("/dev/y")];
        assert_eq!((node.major, node.minor, node.mode), (1, 3, 0o640));
        assert_eq!(node.access, "rwm");
        let rules = rules(false, &whole).expect("rules");
        assert_eq!(
            rules.last().and_then(|rule| rule.access().clone()),
            Some("r".into())
        );
        for other in ["file", "absent"] {
            let error = nodes(&asking(&path(other), "/dev/z", "")).expect_err(other);
            assert!(error.to_string().contains(other), "{error}");
        }
    }

    #[test]
    fn a_privileged_container_has_the_nodes_devices_and_its_own_terminals() {
        let spec = ContainerSpec {
            security: Security {
                privileged: true,
                ..Default::default()
            },
            ..Default::default()
        };
        let nodes = nodes(&spec).expect("the node's devices");
        assert!(nodes.contains_key(Path::new("/dev/null")));
        for own in ["/dev/ptmx", "/dev/console", "/dev/pts/ptmx", "/dev/pts/0"] {
            assert!(!nodes.contains_key(Path::new(own)), "{own}");
        }
    }
}
