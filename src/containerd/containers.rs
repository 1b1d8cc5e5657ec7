//! Pods and containers as containerd knows them: both are containers, told apart by a label.

use std::collections::HashMap;

use prost_types::Any;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::{Asked, KIND_LABEL, ReadError, Reader, no_filters, spec, timestamp};
use crate::lifecycle::container::State as ContainerState;
use crate::lifecycle::sandbox::State as SandboxState;
use crate::lifecycle::spec::Map;
use crate::proto::containerd::containers::container::Runtime;
use crate::proto::containerd::containers::containers_server::Containers;
use crate::proto::containerd::containers::{
    Container, GetContainerRequest, GetContainerResponse, ListContainerMessage,
    ListContainersRequest, ListContainersResponse,
};
use crate::state::container::{Container as Row, ContainerFilter};
use crate::state::named::Named;
use crate::state::sandbox::{Sandbox, SandboxFilter};

/// What runs them.
const RUNTIME: &str = "io.quilt.v1";
/// What makes writable layers.
const SNAPSHOTTER: &str = "quilt";
/// How containerd names the type of a specification.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

#[tonic::async_trait]
impl Containers for Reader {
    async fn get(
        &self,
        request: Request<GetContainerRequest>,
    ) -> Result<Response<GetContainerResponse>, Status> {
        self.call("containerd.GetContainer", request, get).await
    }

    async fn list(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let listed = self.call("containerd.ListContainers", request, list).await;
        listed.map(|answer| answer.map(|containers| ListContainersResponse { containers }))
    }

    type ListStreamStream = BoxStream<ListContainerMessage>;

    async fn list_stream(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<Self::ListStreamStream>, Status> {
        let rpc = "containerd.StreamContainers";
        let listed = self.call(rpc, request, list).await?;
        Ok(listed.map(|containers| {
            let messages = containers.into_iter().map(|container| {
                Ok(ListContainerMessage {
                    container: Some(container),
                })
            });
            Box::pin(tokio_stream::iter(messages)) as Self::ListStreamStream
        }))
    }
}

async fn get(
    reader: Reader,
    asked: Asked<GetContainerRequest>,
) -> Result<GetContainerResponse, ReadError> {
    let id = asked.message.id;
    let named = match asked.here {
        true => reader.store.named(&id).await?,
        false => None,
    };
    let found = match named {
        Some(Named::Container(id)) => {
            let row = reader.store.container(&id).await?.filter(is_visible);
            row.map(of_container)
        }
        Some(Named::Sandbox(id)) => {
            let row = reader.store.sandbox(&id).await?;
            row.filter(is_visible_pod).map(of_sandbox)
        }
        None => None,
    };
    match found {
        Some(container) => Ok(GetContainerResponse {
            container: Some(container),
        }),
        None => Err(ReadError::NotFound {
            noun: "container",
            id,
        }),
    }
}

async fn list(
    reader: Reader,
    asked: Asked<ListContainersRequest>,
) -> Result<Vec<Container>, ReadError> {
    no_filters(&asked.message.filters)?;
    if !asked.here {
        return Ok(Vec::new());
    }
    let pods = reader.store.sandboxes(&SandboxFilter::default()).await?;
    let containers = reader.store.containers(&ContainerFilter::default()).await?;
    let pods = pods.into_iter().map(of_sandbox);
    Ok(pods
        .chain(containers.into_iter().map(of_container))
        .collect())
}

fn is_visible(row: &Row) -> bool {
    !matches!(row.state, ContainerState::Preparing | ContainerState::Error)
}

fn is_visible_pod(row: &Sandbox) -> bool {
    matches!(row.state, SandboxState::Ready | SandboxState::Stopped)
}

fn of_container(row: Row) -> Container {
    Container {
        spec: Some(any(&spec::of_container(&row))),
        snapshotter: SNAPSHOTTER.into(),
        snapshot_key: row.id.to_string(),
        sandbox: row.sandbox_id.into(),
        image: row.spec.image_name.clone(),
        ..common(row.id.into(), row.created_at, &row.spec.labels, "container")
    }
}

/// A pod has no image and no writable layer.
fn of_sandbox(row: Sandbox) -> Container {
    Container {
        spec: Some(any(&spec::of_sandbox(&row))),
        ..common(row.id.into(), row.created_at, &row.spec.labels, "sandbox")
    }
}

fn common(id: String, created_at: i64, labels: &Map, kind: &str) -> Container {
    let mut labels: HashMap<String, String> = labels.clone().into_iter().collect();
    labels.insert(KIND_LABEL.into(), kind.into());
    Container {
        id,
        labels,
        runtime: Some(Runtime {
            name: RUNTIME.into(),
            options: None,
        }),
        created_at: Some(timestamp(created_at)),
        updated_at: Some(timestamp(created_at)),
        ..Default::default()
    }
}

fn any(spec: &serde_json::Value) -> Any {
    Any {
        type_url: SPEC_TYPE.into(),
        value: spec.to_string().into_bytes(),
    }
}
