//! The launch plan as an OCI runtime spec that any runtime understands.
//!
//! What a plan says beside its spec is put into it: who the user turned out to be, and images as
//! overlays. What an OCI spec has no place for, the layers of the rootfs, becomes annotations: a
//! bundle's `rootfs` is what an overlay of them gives.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec, User};

use super::capabilities;
use super::launch::Identity;
use super::plan::{ImageVolume, LaunchPlan};

/// Before the names of the annotations that hold the rootfs.
const ROOTFS: &str = "io.quilt.rootfs.";

/// The spec of a plan; `identity` is who its user was found to be when it was launched.
#[must_use]
pub fn spec(plan: &LaunchPlan, identity: Option<&Identity>) -> Spec {
    let mut spec = plan.spec.clone();
    if let Some(process) = spec.process() {
        let mut process = process.clone();
        process.set_user(user(plan, identity, process.user()));
        let granted = process.capabilities().as_ref();
        process.set_capabilities(granted.map(capabilities::of_this_node));
        spec.set_process(Some(process));
    }
    let mounts = spec.mounts().iter().flatten();
    let mounts = mounts.map(|mount| as_overlay(mount, &plan.image_volumes));
    spec.set_mounts(Some(mounts.collect()));
    let mut annotations: HashMap<String, String> = spec.annotations().clone().unwrap_or_default();
    let path = |path: &Path| path.display().to_string();
    let rootfs = [
        ("lowerdir", joined(&plan.rootfs.lower)),
        ("upperdir", path(&plan.rootfs.upper)),
        ("workdir", path(&plan.rootfs.work)),
    ];
    annotations.extend(rootfs.map(|(name, value)| (format!("{ROOTFS}{name}"), value)));
    spec.set_annotations(Some(annotations));
    if let (Some(kind), Some(linux)) = (propagation(plan), spec.linux_mut()) {
        linux.set_rootfs_propagation(Some(kind.to_owned()));
    }
    spec
}

/// What the root mount has to be for the plan's mounts to spread as they should: others cut all
/// propagation at first, and give back what is asked for here.
fn propagation(plan: &LaunchPlan) -> Option<&'static str> {
    let mounts = plan.spec.mounts().iter().flatten();
    let options: Vec<&String> = mounts
        .filter_map(|mount| mount.options().as_ref())
        .flatten()
        .collect();
    let asked = |kind: &str| options.iter().any(|option| *option == kind);
    ["rshared", "rslave"].into_iter().find(|kind| asked(kind))
}

/// A name that was never looked up stays out: an OCI spec has numbers only.
fn user(plan: &LaunchPlan, identity: Option<&Identity>, given: &User) -> User {
    let mut user = given.clone();
    let number = |text: &str| text.parse::<u32>().ok();
    match identity {
        Some(identity) => {
            user.set_uid(identity.uid);
            user.set_gid(identity.gid);
            user.set_additional_gids(Some(identity.groups.clone()));
        }
        None => {
            user.set_uid(number(&plan.user.user).unwrap_or(0));
            let group = plan.user.group.as_deref().and_then(number);
            user.set_gid(group.unwrap_or(0));
            user.set_additional_gids(Some(plan.user.additional_gids.clone()));
        }
    }
    user
}

fn as_overlay(mount: &Mount, images: &[ImageVolume]) -> Mount {
    let mut mount = mount.clone();
    if mount.typ().as_deref() != Some("image") {
        return mount;
    }
    let number = mount.source().as_ref().and_then(|source| source.to_str());
    let image = number
        .and_then(|number| number.parse::<usize>().ok())
        .and_then(|number| images.get(number));
    let lower = image.map_or_else(String::new, |image| joined(&image.lower));
    let mut options = mount.options().clone().unwrap_or_default();
    options.push(format!("lowerdir={lower}"));
    mount.set_typ(Some("overlay".to_owned()));
    mount.set_source(Some(PathBuf::from("overlay")));
    mount.set_options(Some(options));
    mount
}

/// As overlayfs takes them: topmost first, with colons and backslashes escaped.
fn joined(layers: &[PathBuf]) -> String {
    let escaped = |layer: &PathBuf| {
        let text = layer.display().to_string();
        text.replace('\\', "\\\\").replace(':', "\\:")
    };
    layers.iter().map(escaped).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_plan_says_beside_its_spec_is_in_the_spec() {
        let plan = serde_json::json!({
            "spec": {
                "ociVersion": "1.2.0",
                "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["true"]},
                "mounts": [{"destination": "/v", "type": "image", "source": "0",
                    "options": ["ro"]}],
            },
            "rootfs": {"lower": ["/a:b", "/c"], "upper": "/u", "work": "/w", "mount_point": "/m"},
            "image_volumes": [{"lower": ["/x", "/y"], "sub_path": ""}],
            "user": {"user": "7", "group": null, "additional_gids": [9],
                "merge_image_groups": false},
            "cgroup": {"unified_dir": null, "v1_tasks_files": []},
            "stdio": {"fifo_dir": "/f", "log_path": null, "terminal": false, "stdin": false,
                "stdin_once": false},
        });
        let plan: LaunchPlan = serde_json::from_value(plan).expect("a plan");
        let user = |identity: Option<&Identity>| {
            let spec = spec(&plan, identity);
            let user = spec.process().as_ref().expect("a process").user().clone();
            (user.uid(), user.gid(), user.additional_gids().clone())
        };
        assert_eq!(user(None), (7, 0, Some(vec![9])));
        let found = Identity {
            uid: 7,
            gid: 8,
            groups: vec![8, 9],
        };
        assert_eq!(user(Some(&found)), (7, 8, Some(vec![8, 9])));
        let spec = spec(&plan, None);
        let mount = &spec.mounts().as_ref().expect("mounts")[0];
        assert_eq!(mount.typ().as_deref(), Some("overlay"));
        let options = mount.options().clone().expect("options");
        assert_eq!(options, ["ro", "lowerdir=/x:/y"]);
        let annotations = spec.annotations().as_ref().expect("annotations");
        assert_eq!(annotations["io.quilt.rootfs.lowerdir"], "/a\\:b:/c");
    }
}
