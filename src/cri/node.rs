//! Calls about the node: Version, Status, RuntimeConfig, UpdateRuntimeConfig.

use std::collections::HashMap;

use crate::cri::call::Deadline;
use crate::cri::{CallError, Front};
use crate::lifecycle::address;
use crate::proto::cri as v1;

/// Name under which the runtime appears in `kubectl get node -o wide`.
const RUNTIME_NAME: &str = "quilt";
/// Version of the interface's version message, which kubelet sends and has never changed.
const KUBELET_API_VERSION: &str = "0.1.0";

/// Version: all four fields are filled, or kubelet refuses the answer.
pub(super) async fn version(
    _front: Front,
    _request: v1::VersionRequest,
    _deadline: Deadline,
) -> Result<v1::VersionResponse, CallError> {
    Ok(v1::VersionResponse {
        version: KUBELET_API_VERSION.into(),
        runtime_name: RUNTIME_NAME.into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        runtime_api_version: "v1".into(),
    })
}

/// Status: what the back last found out about itself.
pub(super) async fn status(
    front: Front,
    request: v1::StatusRequest,
    _deadline: Deadline,
) -> Result<v1::StatusResponse, CallError> {
    let report = front.health.borrow().clone();
    let runtime_problem = report
        .runtime_problem
        .or_else(|| front.store.storage_problem());
    let condition = |name: &str, reason: &str, problem: Option<String>| v1::RuntimeCondition {
        r#type: name.into(),
        status: problem.is_none(),
        reason: problem
            .as_ref()
            .map(|_| reason.to_owned())
            .unwrap_or_default(),
        message: problem.unwrap_or_default(),
    };
    let mut info = HashMap::new();
    if request.verbose {
        let config = serde_json::json!({
            "imageRoot": front.info.image_root,
            "snapshotRoot": front.info.snapshot_root,
            "stateDir": front.info.state_dir,
            "bridge": front.info.pool.bridge,
            "subnet": front.info.pool.subnet.to_string(),
        });
        info.insert("config".into(), config.to_string());
        info.insert("jobs".into(), front.store.count_jobs().await?.to_string());
        info.insert(
            "cleanupTasks".into(),
            front.store.count_cleanup_tasks().await?.to_string(),
        );
    }
    Ok(v1::StatusResponse {
        status: Some(v1::RuntimeStatus {
            conditions: vec![
                condition("RuntimeReady", "RuntimeNotReady", runtime_problem),
                match report.plugins {
                    Some(plugins) => {
                        condition("NetworkReady", "NetworkPluginNotReady", plugins.problem)
                    }
                    None => condition("NetworkReady", "NetworkNotReady", report.network_problem),
                },
            ],
        }),
        info,
        runtime_handlers: handlers(&front),
        features: Some(v1::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: front.info.user_namespaces.is_ok(),
            mount_options: true,
        }),
    })
}

/// Our own runtime, and those that are configured beside it.
fn handlers(front: &Front) -> Vec<v1::RuntimeHandler> {
    let own = v1::RuntimeHandler {
        name: String::new(),
        features: Some(v1::RuntimeHandlerFeatures {
            recursive_read_only_mounts: front.info.recursive_read_only,
            user_namespaces: front.info.user_namespaces.is_ok(),
        }),
    };
    let others = front.info.handlers.iter();
    let others = others.map(|(name, features)| v1::RuntimeHandler {
        name: name.to_owned(),
        // Nothing, for as long as it has not said so: that it can do nothing may not be so.
        features: features.map(|features| v1::RuntimeHandlerFeatures {
            recursive_read_only_mounts: features.recursive_read_only_mounts,
            user_namespaces: features.user_namespaces && front.info.user_namespaces.is_ok(),
        }),
    });
    std::iter::once(own).chain(others).collect()
}

/// RuntimeConfig: the cgroup driver, which kubelet reads once.
pub(super) async fn runtime_config(
    front: Front,
    _request: v1::RuntimeConfigRequest,
    _deadline: Deadline,
) -> Result<v1::RuntimeConfigResponse, CallError> {
    Ok(v1::RuntimeConfigResponse {
        linux: Some(v1::LinuxRuntimeConfiguration {
            cgroup_driver: match front.info.systemd_cgroups {
                true => v1::CgroupDriver::Systemd.into(),
                false => v1::CgroupDriver::Cgroupfs.into(),
            },
        }),
    })
}

/// UpdateRuntimeConfig: from now on new pods get their addresses out of the range; the back gives
/// the bridge its address in it. Pods that are there keep theirs.
pub(super) async fn update_runtime_config(
    front: Front,
    request: v1::UpdateRuntimeConfigRequest,
    _deadline: Deadline,
) -> Result<v1::UpdateRuntimeConfigResponse, CallError> {
    let config = request.runtime_config.unwrap_or_default();
    let Some(network) = config
        .network_config
        .filter(|network| !network.pod_cidr.is_empty())
    else {
        return Ok(v1::UpdateRuntimeConfigResponse {});
    };
    if let Err(why) = address::parse_range(&network.pod_cidr) {
        let field = "runtime_config.network_config.pod_cidr";
        return Err(CallError::invalid(field, why));
    }
    front.desired.set_pod_cidr(network.pod_cidr).await?;
    front.range_told.notify_one();
    Ok(v1::UpdateRuntimeConfigResponse {})
}
