//! What a runtime spec may ask for and this runtime does not do: refused, never passed over.
//!
//! A container that was promised a confinement must not run without it. Resources and sysctls are
//! not here: somebody else has applied them before the launch.

use oci_spec::runtime::{Linux, LinuxNamespaceType, Spec};

use super::error::{LaunchError, stage};

/// Checks that `spec` asks for nothing that would be passed over. Its seccomp rules count only if
/// they have been `compiled`.
pub(super) fn refuse(spec: &Spec, compiled: bool) -> Result<(), LaunchError> {
    let linux = spec.linux().as_ref();
    if linux.is_some_and(|linux| linux.seccomp().is_some()) && !compiled {
        let message = "linux.seccomp has not been compiled";
        return Err(LaunchError::invalid(stage::PLAN, message));
    }
    let mut asked = of_process(spec).into_iter().chain(of_linux(spec));
    asked.next().map_or(Ok(()), |what| {
        Err(LaunchError::invalid(
            stage::PLAN,
            format!("{what} is not supported"),
        ))
    })
}

fn of_process(spec: &Spec) -> Vec<&'static str> {
    let Some(process) = spec.process() else {
        return Vec::new();
    };
    let named = |name: &Option<String>| name.as_ref().is_some_and(|name| !name.is_empty());
    named_true([
        (named(process.selinux_label()), "process.selinuxLabel"),
        (process.scheduler().is_some(), "process.scheduler"),
        (process.io_priority().is_some(), "process.ioPriority"),
        (
            process.exec_cpu_affinity().is_some(),
            "process.execCPUAffinity",
        ),
    ])
}

fn of_linux(spec: &Spec) -> Vec<&'static str> {
    let Some(linux) = spec.linux() else {
        return Vec::new();
    };
    named_true([
        (
            linux.uid_mappings().is_some() && !has_user_namespace(linux),
            "linux.uidMappings without a user namespace",
        ),
        (
            linux.gid_mappings().is_some() && !has_user_namespace(linux),
            "linux.gidMappings without a user namespace",
        ),
        (linux.mount_label().is_some(), "linux.mountLabel"),
        (linux.intel_rdt().is_some(), "linux.intelRdt"),
        (linux.memory_policy().is_some(), "linux.memoryPolicy"),
        (linux.personality().is_some(), "linux.personality"),
        (linux.time_offsets().is_some(), "linux.timeOffsets"),
        (linux.net_devices().is_some(), "linux.netDevices"),
    ])
}

fn has_user_namespace(linux: &Linux) -> bool {
    let mut namespaces = linux.namespaces().iter().flatten();
    namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::User)
}

fn named_true<const N: usize>(parts: [(bool, &'static str); N]) -> Vec<&'static str> {
    parts
        .into_iter()
        .filter(|(asked, _)| *asked)
        .map(|(_, name)| name)
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_confinement_that_would_be_missing_is_an_error() {
        let spec = |linux, process| {
            let mut process: serde_json::Value = process;
            process["user"] = json!({"uid": 0, "gid": 0});
            process["cwd"] = json!("/");
            let spec = json!({"ociVersion": "1.2.0", "linux": linux, "process": process});
            serde_json::from_value::<Spec>(spec).expect("a runtime spec")
        };
        assert_eq!(
            refuse(&spec(json!({}), json!({"selinuxLabel": ""})), false),
            Ok(())
        );
        let seccomp = json!({"seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}});
        let error = refuse(&spec(seccomp.clone(), json!({})), false).expect_err("refused");
        assert_eq!(error.message, "linux.seccomp has not been compiled");
        assert_eq!(refuse(&spec(seccomp, json!({})), true), Ok(()));
        let maps = json!({"uidMappings": [{"containerID": 0, "hostID": 7, "size": 1}]});
        assert!(refuse(&spec(maps, json!({})), true).is_err());
        let label = json!({"selinuxLabel": "system_u:system_r:container_t:s0"});
        assert!(refuse(&spec(json!({}), label), true).is_err());
    }
}
