//! What readers do not use of containerd's API: it is refused before it gets to a service, with a
//! word on what does the same here.

use std::task::{Context, Poll};

use futures_util::future::{Either, Ready, ready};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http;

/// Where all of containerd's services are.
const SERVICES: &str = "/containerd.services.";

/// The calls that are answered.
const SERVED: [&str; 14] = [
    "version.v1.Version/Version",
    "containers.v1.Containers/Get",
    "containers.v1.Containers/List",
    "containers.v1.Containers/ListStream",
    "tasks.v1.Tasks/Get",
    "tasks.v1.Tasks/List",
    "namespaces.v1.Namespaces/Get",
    "namespaces.v1.Namespaces/List",
    "images.v1.Images/Get",
    "images.v1.Images/List",
    "content.v1.Content/Info",
    "content.v1.Content/Read",
    "introspection.v1.Introspection/Plugins",
    "introspection.v1.Introspection/Server",
];

/// Why a call is refused; `None` when it is not one of containerd's, or is answered.
fn refusal(path: &str) -> Option<Status> {
    let call = path.strip_prefix(SERVICES)?;
    if SERVED.contains(&call) {
        return None;
    }
    let instead = match call.split('.').next() {
        Some("images" | "content" | "transfer" | "diff" | "leases") => {
            "pull and remove images by CRI (crictl pull, crictl rmi) or `quiltd image`"
        }
        Some("containers" | "tasks" | "sandbox" | "snapshots") => {
            "run and change pods and containers by CRI (kubelet, crictl)"
        }
        Some("events") => "follow events by CRI's GetContainerEvents or `quiltd events`",
        _ => "use CRI (kubelet, crictl) or quiltd's own commands",
    };
    Some(Status::unimplemented(format!(
        "containerd's {call} is not served: of that API this daemon has what readers use; {instead}"
    )))
}

/// Puts the refusals before the services.
#[derive(Debug, Clone, Copy)]
pub struct RefuseWrites;

impl<S> tower::Layer<S> for RefuseWrites {
    type Service = Refusing<S>;

    fn layer(&self, inner: S) -> Refusing<S> {
        Refusing(inner)
    }
}

/// Services with the refusals before them.
#[derive(Debug, Clone)]
pub struct Refusing<S>(S);

impl<S, Q> tower::Service<http::Request<Q>> for Refusing<S>
where
    S: tower::Service<http::Request<Q>, Response = http::Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, task: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(task)
    }

    fn call(&mut self, request: http::Request<Q>) -> Self::Future {
        match refusal(request.uri().path()) {
            Some(status) => Either::Right(ready(Ok(status.into_http()))),
            None => Either::Left(self.0.call(request)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_readers_use_gets_through() {
        for call in SERVED {
            assert!(refusal(&format!("{SERVICES}{call}")).is_none(), "{call}");
        }
        assert!(refusal("/runtime.v1.RuntimeService/Version").is_none());
        for (call, instead) in [
            ("containers.v1.Containers/Delete", "crictl"),
            ("tasks.v1.Tasks/Kill", "crictl"),
            ("images.v1.Images/Create", "crictl pull"),
            ("events.v1.Events/Subscribe", "quiltd events"),
            ("leases.v1.Leases/Create", "crictl"),
            ("diff.v1.Diff/Apply", "crictl"),
            ("nonsense", "CRI"),
        ] {
            let status = refusal(&format!("{SERVICES}{call}")).expect(call);
            assert_eq!(status.code(), tonic::Code::Unimplemented);
            assert!(status.message().contains(instead), "{status}");
            assert!(status.message().contains(call), "{status}");
        }
    }
}
