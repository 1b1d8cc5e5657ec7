//! RunPodSandbox: the wish for a pod, and the wait until it stands.

use crate::cri::call::Deadline;
use crate::cri::{CallError, Front, validate};
use crate::id::{ObjectKey, SandboxId};
use crate::lifecycle::sandbox::{Desired, State};
use crate::lifecycle::spec::{NamespaceMode, SandboxSpec};
use crate::proto::cri as v1;
use crate::state::attachment::Joins;
use crate::state::health::PluginReport;
use crate::traces;

use super::spec;

/// Runs a pod sandbox, or joins the run of the same pod, name and attempt.
pub(in crate::cri) async fn run(
    front: Front,
    request: v1::RunPodSandboxRequest,
    deadline: Deadline,
) -> Result<v1::RunPodSandboxResponse, CallError> {
    let handler = request.runtime_handler;
    if !handler.is_empty() && !front.info.handlers.contains(&handler) {
        // In containerd's words, for which its operators look.
        let why = format!("no runtime for {handler:?} is configured");
        return Err(CallError::invalid("runtime_handler", why));
    }
    let config = validate::required("config", request.config)?;
    let mut spec = spec::from_config("config", config)?;
    spec.runtime_handler = handler;
    super::spec::of_driver(&spec, front.info.systemd_cgroups)?;
    if let (Some(_), Err(why)) = (&spec.users, &front.info.user_namespaces) {
        return Err(CallError::Missing {
            field: "config.linux.security_context.namespace_options.userns_options".into(),
            why: format!("asks for what this node cannot do: {why}"),
        });
    }
    if spec.users.is_some()
        && let Some(features) = front.info.handlers.told(&spec.runtime_handler).await
        && !features.user_namespaces
    {
        return Err(CallError::Missing {
            field: "config.linux.security_context.namespace_options.userns_options".into(),
            why: no_users(&spec.runtime_handler, &features.version),
        });
    }
    let joins = joins(&front, &spec);
    let id = front
        .desired
        .run_sandbox(SandboxId::random(), spec, joins)
        .await?;
    traces::about(id.as_str());
    front
        .wait_for("sandbox", ObjectKey::Sandbox(id.clone()), deadline, || {
            ready(&front, &id)
        })
        .await?;
    // Reached only while the client is there: a call that is given up ends where it waits.
    front.desired.claim_sandbox(id.clone());
    Ok(v1::RunPodSandboxResponse {
        pod_sandbox_id: id.into(),
    })
}

/// Why a handler's pods have no user namespaces.
fn no_users(handler: &str, version: &str) -> String {
    let version = match version {
        "" => "of an unknown version",
        version => version,
    };
    format!(
        "asks for what runtime handler {handler:?} ({version}) does not say by `features` that it \
         has: take a newer one, or say so with runtimes.{handler}.user_namespaces"
    )
}

/// How a new pod is connected, as the back has found out.
fn joins(front: &Front, spec: &SandboxSpec) -> Joins {
    if spec.network != NamespaceMode::Pod {
        return Joins::Node;
    }
    match front.health.borrow().plugins.clone() {
        None => Joins::Pool(front.info.pool.clone()),
        Some(PluginReport { usable: true, .. }) => Joins::Plugins,
        Some(PluginReport { problem, .. }) => Joins::Nothing(problem.unwrap_or_default()),
    }
}

async fn ready(front: &Front, id: &SandboxId) -> Result<Option<()>, CallError> {
    let withdrawn = || CallError::Withdrawn {
        noun: "sandbox",
        id: id.to_string(),
    };
    let Some(sandbox) = front.store.sandbox(id).await? else {
        // A failed sandbox may be gone before we look: the operation tells why.
        let failure = front.store.last_failure(id.as_str()).await?;
        return Err(failure.map_or_else(withdrawn, CallError::Failed));
    };
    match (sandbox.state, sandbox.desired) {
        (State::Failed, _) => Err(CallError::Failed(
            sandbox.error.unwrap_or_else(|| "unknown".into()),
        )),
        (State::Ready, Desired::Ready) if !sandbox.init_ended => Ok(Some(())),
        // Its init has ended right after the start: it comes down, and another is to be run.
        (State::Ready | State::Stopped, Desired::Ready) => Err(withdrawn()),
        (_, Desired::Ready) => Ok(None),
        _ => Err(withdrawn()),
    }
}
