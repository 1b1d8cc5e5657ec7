//! What a specification says (CDI specification 0.1.0 to 1.1.0), and what it comes to.
//!
//! An unknown key is an error: it stands for an edit that would be left out.

use serde::Deserialize;
use serde_json::Value;

use super::name;

/// Versions that exist and are understood.
const VERSIONS: [&str; 10] = [
    "0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0",
];
/// Entries of one list in a specification.
const LIST_MAX: usize = 4096;

/// One file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Spec {
    cdi_version: String,
    pub(super) kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: Value,
    pub(super) devices: Vec<Device>,
    /// Made for whoever asks for any of its devices.
    #[serde(default)]
    pub(super) container_edits: RawEdits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default, rename = "annotations")]
    _annotations: Value,
    #[serde(default)]
    pub(super) container_edits: RawEdits,
}

/// As they are written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct RawEdits {
    env: Vec<String>,
    device_nodes: Vec<DeviceNode>,
    mounts: Vec<Mount>,
    hooks: Vec<Hook>,
    additional_gids: Vec<u32>,
    intel_rdt: Option<Value>,
    net_devices: Vec<Value>,
}

/// A node for the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DeviceNode {
    /// Where, inside.
    pub path: String,
    /// What, on the node; empty is the same path.
    pub host_path: String,
    /// `b`, `c`, `u` or `p`; empty is what is found at the node's path.
    #[serde(rename = "type")]
    pub kind: String,
    /// 0 with `minor` 0 is what is found at the node's path.
    pub major: i64,
    /// See `major`.
    pub minor: i64,
    /// Mode; none is the node's.
    pub file_mode: Option<u32>,
    /// Of `r`, `w`, `m`; empty is all.
    pub permissions: String,
    /// Owner inside; none is the container's user.
    pub uid: Option<u32>,
    /// Group inside; none is the container's.
    pub gid: Option<u32>,
}

/// A file or directory of the node for the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Mount {
    /// What, on the node.
    pub host_path: String,
    /// Where, inside.
    pub container_path: String,
    /// As in an OCI runtime specification.
    pub options: Vec<String>,
    /// A type of file system; empty is a bind mount.
    #[serde(rename = "type")]
    pub kind: String,
}

/// A program that is run at a stage of the container's life. How long it may take is for whoever
/// runs hooks to say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Hook {
    /// The stage: `prestart`, `createRuntime`, `createContainer`, `startContainer`, `poststart` or
    /// `poststop`.
    pub hook_name: String,
    /// The program.
    pub path: String,
    /// Arguments, with the program's own name.
    pub args: Vec<String>,
    /// The whole environment, as `NAME=value`.
    pub env: Vec<String>,
    /// Longest time, in seconds.
    pub timeout: Option<u64>,
}

/// Stages at which hooks run (OCI runtime specification, "POSIX-platform Hooks").
const STAGES: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// What a container gets, in the order in which it is to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Device nodes.
    pub device_nodes: Vec<DeviceNode>,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// Programs to be run.
    pub hooks: Vec<Hook>,
    /// Groups of its process.
    pub additional_gids: Vec<u32>,
}

impl Spec {
    /// Checks what serde cannot. The error names the place.
    pub(super) fn check(&self) -> Result<(), String> {
        if !VERSIONS.contains(&self.cdi_version.trim_start_matches('v')) {
            let (version, newest) = (&self.cdi_version, VERSIONS[VERSIONS.len() - 1]);
            return Err(format!(
                "cdiVersion: {version:?} is not known; the newest is {newest}"
            ));
        }
        name::split_kind(&self.kind)?;
        if self.devices.is_empty() || self.devices.len() > LIST_MAX {
            let count = self.devices.len();
            return Err(format!("devices: there are {count}, not 1 to {LIST_MAX}"));
        }
        self.container_edits.check("containerEdits")?;
        for (index, device) in self.devices.iter().enumerate() {
            let place = format!("devices[{index}]");
            name::check_device(&device.name).map_err(|why| format!("{place}.name: {why}"))?;
            let mut before = self.devices[..index].iter();
            if before.any(|other| other.name == device.name) {
                return Err(format!("{place}.name: {:?} is there twice", device.name));
            }
            device
                .container_edits
                .check(&format!("{place}.containerEdits"))?;
        }
        Ok(())
    }
}

impl RawEdits {
    fn check(&self, place: &str) -> Result<(), String> {
        let lengths = [
            ("env", self.env.len()),
            ("deviceNodes", self.device_nodes.len()),
            ("mounts", self.mounts.len()),
            ("hooks", self.hooks.len()),
            ("additionalGids", self.additional_gids.len()),
        ];
        if let Some((name, length)) = lengths.into_iter().find(|(_, length)| *length > LIST_MAX) {
            return Err(format!(
                "{place}.{name}: {length} entries, more than {LIST_MAX}"
            ));
        }
        check_env(&self.env).map_err(|why| format!("{place}.{why}"))?;
        for (index, node) in self.device_nodes.iter().enumerate() {
            node.check()
                .map_err(|why| format!("{place}.deviceNodes[{index}].{why}"))?;
        }
        for (index, mount) in self.mounts.iter().enumerate() {
            mount
                .check()
                .map_err(|why| format!("{place}.mounts[{index}].{why}"))?;
        }
        for (index, hook) in self.hooks.iter().enumerate() {
            hook.check()
                .map_err(|why| format!("{place}.hooks[{index}].{why}"))?;
        }
        Ok(())
    }

    /// Whether it has programs run.
    pub(super) fn has_hooks(&self) -> bool {
        !self.hooks.is_empty()
    }

    /// What it asks for that is not done.
    pub(super) fn unsupported(&self) -> Option<&'static str> {
        let asked = [
            (self.intel_rdt.is_some(), "intelRdt"),
            (!self.net_devices.is_empty(), "netDevices"),
        ];
        let mut asked = asked.into_iter().filter(|(asked, _)| *asked);
        asked.next().map(|(_, name)| name)
    }

    pub(super) fn add_to(&self, edits: &mut Edits) {
        edits.env.extend(self.env.iter().cloned());
        edits.device_nodes.extend(self.device_nodes.iter().cloned());
        edits.mounts.extend(self.mounts.iter().cloned());
        edits.hooks.extend(self.hooks.iter().cloned());
        // Group 0 is nothing that a device could grant (specification, `additionalGids`).
        let gids = self.additional_gids.iter().copied().filter(|gid| *gid != 0);
        for gid in gids {
            if !edits.additional_gids.contains(&gid) {
                edits.additional_gids.push(gid);
            }
        }
    }
}

impl DeviceNode {
    /// Where it is on the node.
    #[must_use]
    pub fn source(&self) -> &str {
        match self.host_path.as_str() {
            "" => &self.path,
            path => path,
        }
    }

    fn check(&self) -> Result<(), String> {
        absolute("path", &self.path)?;
        absolute("hostPath", self.source())?;
        if !["", "b", "c", "u", "p"].contains(&self.kind.as_str()) {
            return Err(format!("type: {:?} is none of b, c, u, p", self.kind));
        }
        if self
            .permissions
            .bytes()
            .any(|letter| !b"rwm".contains(&letter))
        {
            return Err(format!(
                "permissions: {:?} holds more than r, w, m",
                self.permissions
            ));
        }
        let number = |number: i64| u32::try_from(number).is_ok();
        if !number(self.major) || !number(self.minor) {
            return Err(format!("major: {}:{} is no device", self.major, self.minor));
        }
        Ok(())
    }
}

impl Mount {
    fn check(&self) -> Result<(), String> {
        absolute("containerPath", &self.container_path)?;
        if self.is_bind() {
            absolute("hostPath", &self.host_path)?;
        }
        match self.options.iter().any(|option| option.contains('\0')) {
            true => Err("options: one holds a zero byte".into()),
            false => Ok(()),
        }
    }

    /// Whether the node's path is what is mounted.
    #[must_use]
    pub fn is_bind(&self) -> bool {
        matches!(self.kind.as_str(), "" | "bind" | "rbind" | "none")
    }
}

impl Hook {
    fn check(&self) -> Result<(), String> {
        if !STAGES.contains(&self.hook_name.as_str()) {
            let stages = STAGES.join(", ");
            return Err(format!(
                "hookName: {:?} is none of {stages}",
                self.hook_name
            ));
        }
        absolute("path", &self.path)?;
        if self.args.len() > LIST_MAX || self.env.len() > LIST_MAX {
            return Err(format!("args: more than {LIST_MAX} entries, or of env"));
        }
        if self.args.iter().any(|word| word.contains('\0')) {
            return Err("args: one holds a zero byte".into());
        }
        check_env(&self.env)
    }
}

fn check_env(env: &[String]) -> Result<(), String> {
    let named = |entry: &str| {
        let name = entry.split_once('=');
        name.is_some_and(|(name, _)| !name.is_empty()) && !entry.contains('\0')
    };
    match env.iter().position(|entry| !named(entry)) {
        None => Ok(()),
        Some(index) => Err(format!("env[{index}]: {:?} is not NAME=value", env[index])),
    }
}

fn absolute(name: &str, path: &str) -> Result<(), String> {
    let climbs = path.split('/').any(|part| part == "..");
    match path.starts_with('/') && !climbs && !path.contains('\0') && path.len() < 4096 {
        true => Ok(()),
        false => Err(format!("{name}: {path:?} is no absolute path")),
    }
}
