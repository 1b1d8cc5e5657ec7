//! The processes of pods and containers.
//!
//! A pod has a process of its own only when its containers share a PID namespace. For the others
//! the oldest of their containers' processes stands in: it lives in the pod's network, whose
//! traffic cAdvisor reads from it.

use tonic::{Request, Response, Status};

use super::{Asked, ReadError, Reader, no_filters, timestamp};
use crate::lifecycle::container::State;
use crate::proto::containerd::task::{Process, Status as TaskStatus};
use crate::proto::containerd::tasks::tasks_server::Tasks;
use crate::proto::containerd::tasks::{
    GetRequest, GetResponse, ListTasksRequest, ListTasksResponse,
};
use crate::state::container::{Container, ContainerFilter};
use crate::state::named::Named;
use crate::state::sandbox::{Sandbox, SandboxFilter};

#[tonic::async_trait]
impl Tasks for Reader {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        self.call("containerd.GetTask", request, get).await
    }

    async fn list(
        &self,
        request: Request<ListTasksRequest>,
    ) -> Result<Response<ListTasksResponse>, Status> {
        self.call("containerd.ListTasks", request, list).await
    }
}

async fn get(reader: Reader, asked: Asked<GetRequest>) -> Result<GetResponse, ReadError> {
    let GetRequest {
        container_id: id,
        exec_id,
    } = asked.message;
    // Commands that are executed in a container have no row.
    let named = match asked.here && exec_id.is_empty() {
        true => reader.store.named(&id).await?,
        false => None,
    };
    let process = match named {
        Some(Named::Container(id)) => reader.store.container(&id).await?.and_then(of_container),
        Some(Named::Sandbox(id)) => {
            let pid = reader.store.pod_process(&id).await?;
            pid.map(|pid| running(id.into(), pid))
        }
        None => None,
    };
    match process {
        Some(process) => Ok(GetResponse {
            process: Some(process),
        }),
        None => Err(ReadError::NotFound {
            noun: "task of",
            id,
        }),
    }
}

/// Pods are listed if they have a process of their own: another's is listed as that one's.
async fn list(
    reader: Reader,
    asked: Asked<ListTasksRequest>,
) -> Result<ListTasksResponse, ReadError> {
    no_filters(&[asked.message.filter])?;
    if !asked.here {
        return Ok(ListTasksResponse::default());
    }
    let up = SandboxFilter {
        ready: Some(true),
        ..Default::default()
    };
    let pods = reader.store.sandboxes(&up).await?;
    let containers = reader.store.containers(&ContainerFilter::default()).await?;
    let pods = pods
        .into_iter()
        .filter_map(|Sandbox { id, init, .. }| Some(running(id.into(), init?.0)));
    let tasks = pods.chain(containers.into_iter().filter_map(of_container));
    Ok(ListTasksResponse {
        tasks: tasks.collect(),
    })
}

fn running(id: String, pid: i32) -> Process {
    Process {
        id,
        pid: pid.unsigned_abs(),
        status: TaskStatus::Running.into(),
        ..Default::default()
    }
}

/// What has not been started has none.
fn of_container(row: Container) -> Option<Process> {
    let pid = row.process.map_or(0, |(pid, _)| pid);
    let process = running(row.id.into(), pid);
    match row.state {
        State::Running => Some(Process {
            terminal: row.spec.tty,
            ..process
        }),
        State::Exited => Some(Process {
            status: TaskStatus::Stopped.into(),
            exit_status: row.exit_code.unwrap_or_default().unsigned_abs(),
            exited_at: row.exited_at.map(timestamp),
            ..process
        }),
        State::Preparing | State::Created | State::Starting | State::Error => None,
    }
}
