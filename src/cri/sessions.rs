//! Exec, Attach and PortForward: checked here, and begun under the URL that is the answer.

use super::call::Deadline;
use super::{CallError, Front, validate};
use crate::lifecycle::Impossible;
use crate::lifecycle::sandbox::State;
use crate::lifecycle::spec::{NamespaceMode, PortMapping};
use crate::proto::cri as v1;
use crate::streaming::{Ask, AttachAsk, ExecAsk, PodNetwork, PortForwardAsk, TokenError};
use crate::traces;

/// Most ports that one request may name.
const PORTS_MAX: usize = 64;

/// A URL for a command in a running container.
pub(super) async fn exec(
    front: Front,
    request: v1::ExecRequest,
    _deadline: Deadline,
) -> Result<v1::ExecResponse, CallError> {
    let v1::ExecRequest {
        container_id,
        cmd,
        tty,
        stdin,
        stdout,
        stderr,
        ..
    } = request;
    check_streams(tty, stdin, stdout, stderr)?;
    let command = validate::words("cmd", cmd)?;
    if command.first().is_none_or(String::is_empty) {
        return Err(CallError::invalid("cmd", "is missing"));
    }
    let to = "host of a command";
    let because = "only a running container can execute one";
    let found = front.running_container(container_id, to, because).await?;
    let url = front.url(Ask::Exec(ExecAsk {
        container: found.id,
        command,
        tty,
        stdin,
        stdout,
        stderr,
    }))?;
    Ok(v1::ExecResponse { url })
}

/// A URL for the streams of a running container. Whether it has a terminal and an input is the
/// container's affair: a request that says otherwise gets what there is, as with other runtimes.
pub(super) async fn attach(
    front: Front,
    request: v1::AttachRequest,
    _deadline: Deadline,
) -> Result<v1::AttachResponse, CallError> {
    let v1::AttachRequest {
        container_id,
        stdin,
        tty,
        stdout,
        stderr,
    } = request;
    check_streams(tty, stdin, stdout, stderr)?;
    let to = "host of a session";
    let because = "only a running container can be attached to";
    let found = front.running_container(container_id, to, because).await?;
    let url = front.url(Ask::Attach(AttachAsk {
        container: found.id,
        tty,
        has_tty: found.spec.tty,
        stdin,
        has_stdin: found.spec.stdin,
        stdout,
        stderr,
    }))?;
    Ok(v1::AttachResponse { url })
}

/// A URL for connections to ports of a ready pod.
pub(super) async fn port_forward(
    front: Front,
    request: v1::PortForwardRequest,
    _deadline: Deadline,
) -> Result<v1::PortForwardResponse, CallError> {
    let port = |number: i32| {
        let valid = u16::try_from(number).ok().filter(|port| *port > 0);
        valid.ok_or_else(|| CallError::invalid("port", format!("{number} is no TCP port")))
    };
    let ports: Vec<u16> = request
        .port
        .into_iter()
        .map(port)
        .collect::<Result<_, _>>()?;
    if ports.len() > PORTS_MAX {
        return Err(CallError::invalid("port", "there are more than 64"));
    }
    let id = front
        .find_sandbox("pod_sandbox_id", request.pod_sandbox_id)
        .await?;
    traces::about(id.as_str());
    let not_found = || CallError::NotFound {
        noun: "sandbox",
        id: id.to_string(),
    };
    let sandbox = front.store.sandbox(&id).await?.ok_or_else(not_found)?;
    if sandbox.state != State::Ready {
        return Err(CallError::Impossible(Impossible {
            noun: "sandbox",
            id: id.to_string(),
            from: sandbox.state.as_str(),
            to: "target of connections",
            because: "only a ready pod has a network",
        }));
    }
    let network = if sandbox.spec.network == NamespaceMode::Node {
        PodNetwork::Node
    } else {
        let pod = front.info.state_dir.join("sandboxes").join(id.as_str());
        PodNetwork::Own(pod.join("ns").join("net"))
    };
    let url = front.url(Ask::PortForward(PortForwardAsk {
        network,
        udp_ports: udp_ports(&sandbox.spec.port_mappings),
        ports,
    }))?;
    Ok(v1::PortForwardResponse { url })
}

/// Ports that are declared for UDP and not for TCP as well.
fn udp_ports(mappings: &[PortMapping]) -> Vec<u16> {
    let declared = |protocol: v1::Protocol, port: i32| {
        let mut all = mappings.iter();
        all.any(|it| it.protocol == protocol as i32 && it.container_port == port)
    };
    let udp = mappings.iter().map(|mapping| mapping.container_port);
    let udp = udp.filter(|port| declared(v1::Protocol::Udp, *port));
    let alone = udp.filter(|port| !declared(v1::Protocol::Tcp, *port));
    alone.filter_map(|port| u16::try_from(port).ok()).collect()
}

/// As kubelet's own server checks them.
fn check_streams(tty: bool, stdin: bool, stdout: bool, stderr: bool) -> Result<(), CallError> {
    if tty && stderr {
        return Err(CallError::invalid(
            "stderr",
            "cannot be true with tty: a terminal has one output",
        ));
    }
    if !(stdin || stdout || stderr) {
        return Err(CallError::invalid(
            "stdin, stdout, stderr",
            "one of them must be true",
        ));
    }
    Ok(())
}

impl Front {
    fn url(&self, ask: Ask) -> Result<String, CallError> {
        self.door.open(ask).map_err(|error| match error {
            error @ TokenError::TooMany => CallError::TooMany(error.to_string()),
        })
    }
}
