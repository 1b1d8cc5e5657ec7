//! The part of containerd's own API that readers use, on the CRI socket: kubelet's cAdvisor finds
//! pods and containers by it, and `ctr` lists them. Everything is read from the database; whoever
//! wants to change something is told to use CRI.
//!
//! cAdvisor asks for every cgroup of the node whose name is 64 hex digits, so most answers are
//! NOT_FOUND, which costs one indexed read.

mod containers;
mod content;
mod images;
mod node;
mod refusal;
mod spec;
mod tasks;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use prost_types::Timestamp;
use tokio::time::Instant;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};

use crate::proto::containerd as api;
use crate::state::{StateError, Store};

pub use refusal::RefuseWrites;

/// The namespace in which everything is that CRI made; kubelet's default.
const NAMESPACE: &str = "k8s.io";
/// The header that names the namespace of a request.
const NAMESPACE_HEADER: &str = "containerd-namespace";
/// The label by which cAdvisor tells pods from containers, and its two values.
const KIND_LABEL: &str = "io.cri-containerd.kind";

/// What answers. Cheap to clone.
#[derive(Clone)]
pub struct Reader {
    store: Store,
    identity: Arc<str>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    /// There is no such thing.
    #[error("{noun} {id:?} in namespace \"{NAMESPACE}\": not found")]
    NotFound { noun: &'static str, id: String },
    /// The request does not say in which namespace.
    #[error("the header {NAMESPACE_HEADER} is missing: this daemon has the namespace {NAMESPACE}")]
    NoNamespace,
    /// The request has conditions.
    #[error("filters are not served: ask without, or CRI with a label selector")]
    Filters,
    /// A place in a document that it does not have.
    #[error("offset {offset} and size {size} are not within the {length} bytes of {digest}")]
    Range {
        digest: String,
        offset: i64,
        size: i64,
        length: usize,
    },
    /// The database failed.
    #[error(transparent)]
    State(#[from] StateError),
}

impl From<&ReadError> for Code {
    fn from(error: &ReadError) -> Self {
        match error {
            ReadError::NotFound { .. } => Self::NotFound,
            ReadError::NoNamespace => Self::FailedPrecondition,
            ReadError::Filters => Self::Unimplemented,
            ReadError::Range { .. } => Self::OutOfRange,
            ReadError::State(_) => Self::Unavailable,
        }
    }
}

/// The name of a code that comes up here, for metrics.
fn name_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::NotFound => "NotFound",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Unimplemented => "Unimplemented",
        Code::OutOfRange => "OutOfRange",
        _ => "Unavailable",
    }
}

/// A request, and whether it is about the namespace that has something in it.
struct Asked<Q> {
    message: Q,
    here: bool,
}

impl Reader {
    /// Answers from `store`; `root` is what makes this daemon itself.
    #[must_use]
    pub fn new(store: Store, root: &Path) -> Self {
        Self {
            store,
            identity: node::identity(root).into(),
        }
    }

    /// Adds the services to those of a server.
    #[must_use]
    pub fn serve(self, routes: Routes) -> Routes {
        routes
            .add_service(api::version::version_server::VersionServer::new(
                self.clone(),
            ))
            .add_service(api::containers::containers_server::ContainersServer::new(
                self.clone(),
            ))
            .add_service(api::tasks::tasks_server::TasksServer::new(self.clone()))
            .add_service(api::namespaces::namespaces_server::NamespacesServer::new(
                self.clone(),
            ))
            .add_service(api::images::images_server::ImagesServer::new(self.clone()))
            .add_service(api::content::content_server::ContentServer::new(
                self.clone(),
            ))
            .add_service(api::introspection::introspection_server::IntrospectionServer::new(self))
    }

    /// Runs one call that is about a namespace.
    async fn call<Q, A, F, R>(
        &self,
        rpc: &'static str,
        request: Request<Q>,
        handler: F,
    ) -> Result<Response<A>, Status>
    where
        F: FnOnce(Self, Asked<Q>) -> R,
        R: Future<Output = Result<A, ReadError>>,
    {
        let namespace = request.metadata().get(NAMESPACE_HEADER);
        let namespace = namespace.map(|value| value.as_bytes() == NAMESPACE.as_bytes());
        let message = request.into_inner();
        self.count(rpc, async {
            let here = namespace.ok_or(ReadError::NoNamespace)?;
            handler(self.clone(), Asked { message, here }).await
        })
        .await
    }

    /// Counts and logs a call: all of them are polls.
    async fn count<A>(
        &self,
        rpc: &'static str,
        work: impl Future<Output = Result<A, ReadError>>,
    ) -> Result<Response<A>, Status> {
        let started = Instant::now();
        let result = work.await;
        let code = result.as_ref().err().map_or(Code::Ok, Code::from);
        let labels = [rpc, name_of(code)];
        self.store
            .metrics()
            .api
            .get(labels)
            .observe(started.elapsed());
        match result {
            Ok(answer) => {
                tracing::debug!(rpc, "ok");
                Ok(Response::new(answer))
            }
            Err(error) => {
                if let ReadError::State(error) = &error {
                    tracing::warn!(rpc, %error, "failed");
                }
                Err(Status::new(code, error.to_string()))
            }
        }
    }
}

/// Refuses conditions, of which empty ones are none.
fn no_filters<T: AsRef<str>>(filters: &[T]) -> Result<(), ReadError> {
    let none = filters.iter().all(|filter| filter.as_ref().is_empty());
    none.then_some(()).ok_or(ReadError::Filters)
}

/// A time in ns since 1970.
fn timestamp(ns: i64) -> Timestamp {
    const NS: i64 = 1_000_000_000;
    Timestamp {
        seconds: ns.div_euclid(NS),
        nanos: i32::try_from(ns.rem_euclid(NS)).unwrap_or_default(),
    }
}
