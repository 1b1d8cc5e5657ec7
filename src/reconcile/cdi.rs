//! What CDI devices add to a container: nodes, mounts, environment, groups.
//!
//! Files are read again at the start of a container: what they say then counts.

use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxDeviceType, Mount, MountBuilder};
use rustix::fs::stat;

use super::devices::{self, Node, Nodes};
use super::{Back, ReconcileError, hooks};
use crate::cdi::{self, DeviceNode, Edits};
use crate::lifecycle::hook::HookCommand;
use crate::lifecycle::process::ProcessSpec;
use crate::lifecycle::spec::ContainerSpec;
use crate::runtime::plan::LaunchPlan;

/// What the devices of a container come to. Reads files.
pub(super) fn edits(back: &Back, spec: &ContainerSpec) -> Result<Edits, ReconcileError> {
    Ok(cdi::find(&back.cdi_directories, &spec.cdi_devices)?)
}

/// Adds the nodes. What is not said of one is looked up at its place on the node.
pub(super) fn add_nodes(
    nodes: &mut Nodes,
    edits: &Edits,
    process: &ProcessSpec,
) -> Result<(), ReconcileError> {
    for edit in &edits.device_nodes {
        nodes.insert(edit.path.clone().into(), node(edit, process)?);
    }
    Ok(())
}

fn node(edit: &DeviceNode, process: &ProcessSpec) -> Result<Node, ReconcileError> {
    let access = match edit.permissions.as_str() {
        "" => "rwm",
        asked => asked,
    };
    let kind = match edit.kind.as_str() {
        "b" => Some(LinuxDeviceType::B),
        "c" | "u" => Some(LinuxDeviceType::C),
        "p" => Some(LinuxDeviceType::P),
        _ => None,
    };
    let is_told = edit.kind == "p" || (kind.is_some() && (edit.major, edit.minor) != (0, 0));
    let mut node = match kind {
        Some(kind) if is_told => Node::told(kind, (edit.major, edit.minor), access),
        _ => {
            let source = Path::new(edit.source());
            let found = stat(source).map_err(|errno| devices::failed(source, errno))?;
            devices::node(&found, access).ok_or_else(|| {
                ReconcileError::Plan(format!("{source:?}, of a CDI device, is no device"))
            })?
        }
    };
    if let Some(mode) = edit.file_mode {
        node.mode = mode & 0o777;
    }
    // A container's own user gets at its devices (CDI specification, `uid` and `gid`).
    let id = |text: &str| text.parse::<u32>().ok().filter(|id| *id > 0);
    let group = process.group.as_deref().and_then(id);
    node.named = (edit.uid.or_else(|| id(&process.user)), edit.gid.or(group));
    Ok(node)
}

/// Adds the rest. A hook that names no time has `hook_timeout_s`.
pub(super) fn add_to(
    plan: &mut LaunchPlan,
    edits: &Edits,
    hook_timeout_s: u64,
) -> Result<(), ReconcileError> {
    add_hooks(plan, &edits.hooks, hook_timeout_s)?;
    let failed = |error: OciSpecError| ReconcileError::Plan(error.to_string());
    if let Some(process) = plan.spec.process() {
        let mut process = process.clone();
        let mut env = process.env().clone().unwrap_or_default();
        for entry in &edits.env {
            set_variable(&mut env, entry);
        }
        process.set_env(Some(env));
        plan.spec.set_process(Some(process));
    }
    let mut added = edits
        .mounts
        .iter()
        .map(mount)
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    // What is below comes after what it is below of.
    added.sort_by_key(|mount| mount.destination().components().count());
    let mut mounts = plan.spec.mounts().clone().unwrap_or_default();
    mounts.extend(added);
    plan.spec.set_mounts(Some(mounts));
    for gid in &edits.additional_gids {
        if !plan.user.additional_gids.contains(gid) {
            plan.user.additional_gids.push(*gid);
        }
    }
    Ok(())
}

/// Adds hooks, after those that operators have dropped into directories.
fn add_hooks(
    plan: &mut LaunchPlan,
    added: &[cdi::Hook],
    timeout_s: u64,
) -> Result<(), ReconcileError> {
    if added.is_empty() {
        return Ok(());
    }
    let mut all = plan.spec.hooks().clone().unwrap_or_default();
    for hook in added {
        let (stage, path) = (hook.hook_name.as_str(), &hook.path);
        let failed = |why: String| {
            ReconcileError::Plan(format!("{stage} hook {path:?} of a CDI device: {why}"))
        };
        let command = HookCommand {
            path: path.into(),
            args: hook.args.clone(),
            env: hook.env.clone(),
            timeout: hook.timeout,
        };
        command.check().map_err(failed)?;
        let built = hooks::build(&command, timeout_s);
        let built = built.map_err(|error| failed(error.to_string()))?;
        let place = match stage {
            "prestart" => all.prestart_mut(),
            "createRuntime" => all.create_runtime_mut(),
            "createContainer" => all.create_container_mut(),
            "startContainer" => all.start_container_mut(),
            "poststart" => all.poststart_mut(),
            "poststop" => all.poststop_mut(),
            _ => return Err(failed("there is no such stage".into())),
        };
        place.get_or_insert_default().push(built);
    }
    plan.spec.set_hooks(Some(all));
    Ok(())
}

/// Sets `NAME=value`, in the place of another value of that name.
fn set_variable(env: &mut Vec<String>, entry: &str) {
    let name = |entry: &str| entry.split('=').next().map(str::to_owned);
    let own = name(entry);
    env.retain(|other| name(other) != own);
    env.push(entry.to_owned());
}

fn mount(edit: &cdi::Mount) -> Result<Mount, OciSpecError> {
    let kind = match edit.is_bind() {
        true => "bind",
        false => edit.kind.as_str(),
    };
    MountBuilder::default()
        .typ(kind)
        .source(&edit.host_path)
        .destination(&edit.container_path)
        .options(edit.options.clone())
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_takes_the_place_of_one_with_its_name() {
        let mut env = vec!["A=1".to_owned(), "AB=2".into()];
        set_variable(&mut env, "A=3=4");
        set_variable(&mut env, "C=");
        assert_eq!(env, ["AB=2", "A=3=4", "C="]);
    }

    #[test]
    fn a_node_is_what_is_said_of_it_or_what_is_there() {
        let process = ProcessSpec {
            user: "1000".into(),
            ..Default::default()
        };
        let told = DeviceNode {
            path: "/dev/x".into(),
            kind: "b".into(),
            major: 7,
            minor: 1,
            gid: Some(44),
            permissions: "r".into(),
            ..Default::default()
        };
        let node_told = node(&told, &process).expect("told");
        assert_eq!(node_told.named, (Some(1000), Some(44)));
        let found = DeviceNode {
            path: "/dev/x".into(),
            host_path: "/dev/null".into(),
            file_mode: Some(0o600),
            ..Default::default()
        };
        let root = ProcessSpec::default();
        let node_found = node(&found, &root).expect("found");
        assert_eq!((node_found.mode, node_found.named), (0o600, (None, None)));
        let absent = DeviceNode {
            host_path: "/dev/no-such-device".into(),
            ..found
        };
        assert!(node(&absent, &root).is_err());
    }
}
