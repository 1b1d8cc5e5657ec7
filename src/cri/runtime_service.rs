//! The 37 calls of RuntimeService, one line each. What is not built yet says so by name.

use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::pieces::streamed;
use super::{Front, container, events, metrics, node, sandbox, sessions};
use crate::proto::cri as v1;

fn unimplemented(rpc: &str) -> Status {
    Status::unimplemented(format!("{rpc} is not implemented by this version"))
}

#[tonic::async_trait]
impl v1::runtime_service_server::RuntimeService for Front {
    async fn version(
        &self,
        request: Request<v1::VersionRequest>,
    ) -> Result<Response<v1::VersionResponse>, Status> {
        self.call("Version", request, node::version).await
    }
    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Result<Response<v1::RunPodSandboxResponse>, Status> {
        self.call("RunPodSandbox", request, sandbox::run::run).await
    }
    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Result<Response<v1::StopPodSandboxResponse>, Status> {
        self.call("StopPodSandbox", request, sandbox::stop::stop)
            .await
    }
    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Result<Response<v1::RemovePodSandboxResponse>, Status> {
        self.call("RemovePodSandbox", request, sandbox::remove::remove)
            .await
    }
    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Result<Response<v1::PodSandboxStatusResponse>, Status> {
        self.call("PodSandboxStatus", request, sandbox::status::status)
            .await
    }
    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Result<Response<v1::ListPodSandboxResponse>, Status> {
        self.call("ListPodSandbox", request, sandbox::list::list)
            .await
    }
    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Result<Response<BoxStream<v1::StreamPodSandboxesResponse>>, Status> {
        let pieces = self.call("StreamPodSandboxes", request, sandbox::list::in_pieces);
        Ok(streamed(pieces.await?))
    }
    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Result<Response<v1::CreateContainerResponse>, Status> {
        self.call("CreateContainer", request, container::create::create)
            .await
    }
    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Result<Response<v1::StartContainerResponse>, Status> {
        self.call("StartContainer", request, container::start::start)
            .await
    }
    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Result<Response<v1::StopContainerResponse>, Status> {
        self.call("StopContainer", request, container::stop::stop)
            .await
    }
    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Result<Response<v1::RemoveContainerResponse>, Status> {
        self.call("RemoveContainer", request, container::remove::remove)
            .await
    }
    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Result<Response<v1::ListContainersResponse>, Status> {
        self.call("ListContainers", request, container::list::list)
            .await
    }
    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Result<Response<BoxStream<v1::StreamContainersResponse>>, Status> {
        let pieces = self.call("StreamContainers", request, container::list::in_pieces);
        Ok(streamed(pieces.await?))
    }
    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Result<Response<v1::ContainerStatusResponse>, Status> {
        self.call("ContainerStatus", request, container::status::status)
            .await
    }
    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Result<Response<v1::UpdateContainerResourcesResponse>, Status> {
        let update = container::update::update;
        self.call("UpdateContainerResources", request, update).await
    }
    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Result<Response<v1::ReopenContainerLogResponse>, Status> {
        self.call("ReopenContainerLog", request, container::reopen_log::reopen)
            .await
    }
    async fn exec_sync(
        &self,
        request: Request<v1::ExecSyncRequest>,
    ) -> Result<Response<v1::ExecSyncResponse>, Status> {
        self.call("ExecSync", request, container::exec_sync::exec_sync)
            .await
    }
    async fn exec(
        &self,
        request: Request<v1::ExecRequest>,
    ) -> Result<Response<v1::ExecResponse>, Status> {
        self.call("Exec", request, sessions::exec).await
    }
    async fn attach(
        &self,
        request: Request<v1::AttachRequest>,
    ) -> Result<Response<v1::AttachResponse>, Status> {
        self.call("Attach", request, sessions::attach).await
    }
    async fn port_forward(
        &self,
        request: Request<v1::PortForwardRequest>,
    ) -> Result<Response<v1::PortForwardResponse>, Status> {
        self.call("PortForward", request, sessions::port_forward)
            .await
    }
    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Result<Response<v1::ContainerStatsResponse>, Status> {
        self.call("ContainerStats", request, container::stats::one)
            .await
    }
    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Result<Response<v1::ListContainerStatsResponse>, Status> {
        self.call("ListContainerStats", request, container::stats::list)
            .await
    }
    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Result<Response<BoxStream<v1::StreamContainerStatsResponse>>, Status> {
        let pieces = self.call("StreamContainerStats", request, container::stats::in_pieces);
        Ok(streamed(pieces.await?))
    }
    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Result<Response<v1::PodSandboxStatsResponse>, Status> {
        self.call("PodSandboxStats", request, sandbox::stats::one)
            .await
    }
    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Result<Response<v1::ListPodSandboxStatsResponse>, Status> {
        self.call("ListPodSandboxStats", request, sandbox::stats::list)
            .await
    }
    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Result<Response<BoxStream<v1::StreamPodSandboxStatsResponse>>, Status> {
        let pieces = self.call("StreamPodSandboxStats", request, sandbox::stats::in_pieces);
        Ok(streamed(pieces.await?))
    }
    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Result<Response<v1::UpdateRuntimeConfigResponse>, Status> {
        self.call("UpdateRuntimeConfig", request, node::update_runtime_config)
            .await
    }
    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        self.call("Status", request, node::status).await
    }
    async fn checkpoint_container(
        &self,
        _request: Request<v1::CheckpointContainerRequest>,
    ) -> Result<Response<v1::CheckpointContainerResponse>, Status> {
        Err(unimplemented("CheckpointContainer"))
    }
    async fn checkpoint_pod(
        &self,
        _request: Request<v1::CheckpointPodRequest>,
    ) -> Result<Response<v1::CheckpointPodResponse>, Status> {
        Err(unimplemented("CheckpointPod"))
    }
    async fn restore_pod(
        &self,
        _request: Request<v1::RestorePodRequest>,
    ) -> Result<Response<v1::RestorePodResponse>, Status> {
        Err(unimplemented("RestorePod"))
    }
    async fn get_container_events(
        &self,
        request: Request<v1::GetEventsRequest>,
    ) -> Result<Response<BoxStream<v1::ContainerEventResponse>>, Status> {
        events::get(self, request).await
    }
    async fn list_metric_descriptors(
        &self,
        request: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Result<Response<v1::ListMetricDescriptorsResponse>, Status> {
        self.call("ListMetricDescriptors", request, metrics::descriptors)
            .await
    }
    async fn list_pod_sandbox_metrics(
        &self,
        request: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Result<Response<v1::ListPodSandboxMetricsResponse>, Status> {
        self.call("ListPodSandboxMetrics", request, metrics::list)
            .await
    }
    async fn stream_pod_sandbox_metrics(
        &self,
        request: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<BoxStream<v1::StreamPodSandboxMetricsResponse>>, Status> {
        let pieces = self.call("StreamPodSandboxMetrics", request, metrics::in_pieces);
        Ok(streamed(pieces.await?))
    }
    async fn runtime_config(
        &self,
        request: Request<v1::RuntimeConfigRequest>,
    ) -> Result<Response<v1::RuntimeConfigResponse>, Status> {
        self.call("RuntimeConfig", request, node::runtime_config)
            .await
    }
    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<v1::UpdatePodSandboxResourcesResponse>, Status> {
        self.call(
            "UpdatePodSandboxResources",
            request,
            sandbox::update::update,
        )
        .await
    }
}
