//! Pods and containers as OCI runtime specifications, for those who look: made from their rows, so
//! no more than those know. What really runs is the launch plan, which is the back's.

use serde_json::{Value, json};

use crate::lifecycle::spec::{Map, Resources};
use crate::state::container::Container;
use crate::state::sandbox::Sandbox;

/// Version of the specification that this follows.
const OCI_VERSION: &str = "1.2.0";
/// Annotations by which other programs of the node find the pod of a container, as containerd and
/// CRI-O set them.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// A container. `process` is there always: cAdvisor does not look whether it is.
pub(super) fn of_container(row: &Container) -> Value {
    let spec = &row.spec;
    let ids = row.runs_as.clone().unwrap_or_default();
    json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": spec.tty,
            "user": {"uid": ids.uid, "gid": ids.gid, "additionalGids": ids.groups},
            "args": spec.process.args,
            "env": spec.process.env,
            "cwd": spec.process.cwd,
            "noNewPrivileges": spec.security.no_new_privs,
        },
        "root": {"path": "rootfs", "readonly": spec.security.readonly_rootfs},
        "annotations": annotations(&spec.annotations, "container", row.sandbox_id.as_str()),
        "linux": {"resources": resources(&spec.resources)},
    })
}

/// A pod, which has no process of its own and no root.
pub(super) fn of_sandbox(row: &Sandbox) -> Value {
    json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": [],
            "env": [],
            "cwd": "/",
        },
        "hostname": row.hostname(),
        "annotations": annotations(&row.spec.annotations, "sandbox", row.id.as_str()),
        "linux": {"sysctl": row.spec.sysctls},
    })
}

fn annotations(own: &Map, kind: &str, sandbox: &str) -> Map {
    let mut all = own.clone();
    all.insert(CONTAINER_TYPE.into(), kind.into());
    all.insert(SANDBOX_ID.into(), sandbox.into());
    all
}

/// The limits that are in force; what is not limited is left out.
fn resources(limits: &Resources) -> Value {
    let given = |value: i64| (value != 0).then_some(value);
    let list = |list: &str| (!list.is_empty()).then(|| list.to_owned());
    let pages = limits.hugepage_limits.iter();
    let pages: Vec<Value> = pages
        .map(|(size, limit)| json!({"pageSize": size, "limit": limit}))
        .collect();
    json!({
        "memory": without_nulls(json!({
            "limit": given(limits.memory_limit_bytes),
            "swap": given(limits.memory_swap_limit_bytes),
        })),
        "cpu": without_nulls(json!({
            "shares": given(limits.cpu_shares),
            "quota": given(limits.cpu_quota_us),
            "period": given(limits.cpu_period_us),
            "cpus": list(&limits.cpuset_cpus),
            "mems": list(&limits.cpuset_mems),
        })),
        "hugepageLimits": pages,
        "unified": limits.unified,
    })
}

fn without_nulls(mut value: Value) -> Value {
    if let Value::Object(members) = &mut value {
        members.retain(|_, member| !member.is_null());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_are_not_set_are_left_out() {
        let limits = Resources {
            memory_limit_bytes: 1 << 20,
            cpu_shares: 2,
            ..Resources::default()
        };
        let shown = resources(&limits);
        assert_eq!(shown["memory"], json!({"limit": 1 << 20}));
        assert_eq!(shown["cpu"], json!({"shares": 2}));
        // The same library that reads other runtimes' specifications reads it.
        let whole = json!({"ociVersion": OCI_VERSION, "linux": {"resources": shown}});
        let read: oci_spec::runtime::Spec = serde_json::from_value(whole).expect("a spec");
        let linux = read.linux().clone().expect("linux");
        let memory = linux.resources().clone().and_then(|all| *all.memory());
        assert_eq!(memory.and_then(|memory| memory.limit()), Some(1 << 20));
    }
}
