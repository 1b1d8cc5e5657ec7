//! CRI as kubelet speaks it, through types that are not the daemon's: one method per call, no
//! `&mut`, and a deadline on everything.

use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::*;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

/// Longer than any bound of the daemon that a test waits for.
const DEADLINE: Duration = Duration::from_secs(60);
/// ExecSync may answer with 16 MiB of each stream, more than gRPC's default.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// A connection to one daemon. It connects with the first call, and again when it was cut.
#[derive(Clone)]
pub(crate) struct Cri {
    channel: Channel,
    deadline: Duration,
}

/// A channel over a unix socket that connects when it is used.
pub(crate) fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect)
}

/// Wraps a message with the harness' deadline.
pub(crate) fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

impl Cri {
    pub(crate) fn new(socket: &Path) -> Self {
        Self {
            channel: channel(socket),
            deadline: DEADLINE,
        }
    }

    /// The same connection with another deadline on each call.
    pub(crate) fn within(&self, deadline: Duration) -> Self {
        Self {
            deadline,
            ..self.clone()
        }
    }

    /// Wraps a message with the deadline of this connection.
    pub(crate) fn wrap<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline);
        request
    }

    /// The same connection for types of the newest API.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn image(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) async fn version(&self) -> Result<VersionResponse, Status> {
        let message = VersionRequest {
            version: "0.1.0".into(),
        };
        Ok(self
            .runtime()
            .version(self.wrap(message))
            .await?
            .into_inner())
    }

    pub(crate) async fn run_pod(&self, config: &PodSandboxConfig) -> Result<String, Status> {
        let message = RunPodSandboxRequest {
            config: Some(config.clone()),
            ..Default::default()
        };
        let response = self.runtime().run_pod_sandbox(self.wrap(message)).await?;
        Ok(response.into_inner().pod_sandbox_id)
    }

    pub(crate) async fn update_runtime_config(&self, pod_cidr: &str) -> Result<(), Status> {
        let message = UpdateRuntimeConfigRequest {
            runtime_config: Some(RuntimeConfig {
                network_config: Some(NetworkConfig {
                    pod_cidr: pod_cidr.into(),
                }),
            }),
        };
        let request = self.wrap(message);
        self.runtime()
            .update_runtime_config(request)
            .await
            .map(drop)
    }

    pub(crate) async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let message = StopPodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        self.runtime()
            .stop_pod_sandbox(self.wrap(message))
            .await
            .map(drop)
    }

    pub(crate) async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let message = RemovePodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        self.runtime()
            .remove_pod_sandbox(self.wrap(message))
            .await
            .map(drop)
    }

    pub(crate) async fn pod_status(&self, id: &str) -> Result<PodSandboxStatus, Status> {
        let message = PodSandboxStatusRequest {
            pod_sandbox_id: id.into(),
            verbose: false,
        };
        let response = self
            .runtime()
            .pod_sandbox_status(self.wrap(message))
            .await?
            .into_inner();
        response
            .status
            .ok_or_else(|| Status::data_loss("PodSandboxStatus without a status"))
    }

    pub(crate) async fn list_pods(
        &self,
        filter: Option<PodSandboxFilter>,
    ) -> Result<Vec<PodSandbox>, Status> {
        let message = ListPodSandboxRequest { filter };
        Ok(self
            .runtime()
            .list_pod_sandbox(self.wrap(message))
            .await?
            .into_inner()
            .items)
    }

    pub(crate) async fn create(
        &self,
        pod: &str,
        config: &ContainerConfig,
        sandbox: &PodSandboxConfig,
    ) -> Result<String, Status> {
        let message = CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox.clone()),
        };
        let response = self.runtime().create_container(self.wrap(message)).await?;
        Ok(response.into_inner().container_id)
    }

    pub(crate) async fn start(&self, id: &str) -> Result<(), Status> {
        let message = StartContainerRequest {
            container_id: id.into(),
        };
        self.runtime()
            .start_container(self.wrap(message))
            .await
            .map(drop)
    }

    /// `grace_s` is the time between the stop signal and SIGKILL.
    pub(crate) async fn stop(&self, id: &str, grace_s: i64) -> Result<(), Status> {
        let message = StopContainerRequest {
            container_id: id.into(),
            timeout: grace_s,
        };
        self.runtime()
            .stop_container(self.wrap(message))
            .await
            .map(drop)
    }

    pub(crate) async fn remove(&self, id: &str) -> Result<(), Status> {
        let message = RemoveContainerRequest {
            container_id: id.into(),
        };
        self.runtime()
            .remove_container(self.wrap(message))
            .await
            .map(drop)
    }

    /// What is 0 or empty in `limits` stays as it is.
    pub(crate) async fn update(
        &self,
        id: &str,
        limits: LinuxContainerResources,
    ) -> Result<(), Status> {
        let message = UpdateContainerResourcesRequest {
            container_id: id.into(),
            linux: Some(limits),
            ..Default::default()
        };
        let mut runtime = self.runtime();
        let updated = runtime.update_container_resources(self.wrap(message));
        updated.await.map(drop)
    }

    pub(crate) async fn stats(&self, id: &str) -> Result<ContainerStats, Status> {
        let message = ContainerStatsRequest {
            container_id: id.into(),
        };
        let response = self.runtime().container_stats(self.wrap(message)).await?;
        let stats = response.into_inner().stats;
        stats.ok_or_else(|| Status::data_loss("ContainerStats without statistics"))
    }

    pub(crate) async fn status(&self, id: &str) -> Result<ContainerStatus, Status> {
        let message = ContainerStatusRequest {
            container_id: id.into(),
            verbose: false,
        };
        let response = self
            .runtime()
            .container_status(self.wrap(message))
            .await?
            .into_inner();
        response
            .status
            .ok_or_else(|| Status::data_loss("ContainerStatus without a status"))
    }

    pub(crate) async fn list(
        &self,
        filter: Option<ContainerFilter>,
    ) -> Result<Vec<Container>, Status> {
        let message = ListContainersRequest { filter };
        Ok(self
            .runtime()
            .list_containers(self.wrap(message))
            .await?
            .into_inner()
            .containers)
    }

    pub(crate) async fn reopen_log(&self, id: &str) -> Result<(), Status> {
        let message = ReopenContainerLogRequest {
            container_id: id.into(),
        };
        self.runtime()
            .reopen_container_log(self.wrap(message))
            .await
            .map(drop)
    }

    /// `timeout_s` 0 waits for ever.
    pub(crate) async fn exec(
        &self,
        id: &str,
        command: &[&str],
        timeout_s: i64,
    ) -> Result<ExecSyncResponse, Status> {
        let cmd = command.iter().map(ToString::to_string).collect();
        let message = ExecSyncRequest {
            container_id: id.into(),
            cmd,
            timeout: timeout_s,
        };
        Ok(self
            .runtime()
            .exec_sync(self.wrap(message))
            .await?
            .into_inner())
    }

    /// Runs a shell script in a container and returns what it printed; it must succeed.
    pub(crate) async fn output(&self, id: &str, script: &str) -> String {
        let response = self
            .exec(id, &["sh", "-c", script], 20)
            .await
            .expect("ExecSync");
        let text = |bytes| String::from_utf8_lossy(bytes).trim_end().to_owned();
        let (out, err) = (text(&response.stdout), text(&response.stderr));
        assert_eq!(response.exit_code, 0, "`{script}` failed: {out} {err}");
        out
    }

    /// Makes the file on which a container ends. The command that makes it may be killed by that
    /// end: with the init of a PID namespace everything in it goes (pid_namespaces(7)).
    pub(crate) async fn end_by_file(&self, id: &str, path: &str) {
        let response = self.exec(id, &["touch", path], 20).await.expect("ExecSync");
        let code = response.exit_code;
        assert!(matches!(code, 0 | 137), "touch {path} ended with {code}");
    }

    pub(crate) async fn pull(&self, image: &str) -> Result<String, Status> {
        let image = ImageSpec {
            image: image.into(),
            ..Default::default()
        };
        let message = PullImageRequest {
            image: Some(image),
            ..Default::default()
        };
        Ok(self
            .image()
            .pull_image(self.wrap(message))
            .await?
            .into_inner()
            .image_ref)
    }

    pub(crate) async fn image_status(&self, image: &str) -> Result<Option<Image>, Status> {
        let image = ImageSpec {
            image: image.into(),
            ..Default::default()
        };
        let message = ImageStatusRequest {
            image: Some(image),
            verbose: false,
        };
        Ok(self
            .image()
            .image_status(self.wrap(message))
            .await?
            .into_inner()
            .image)
    }

    pub(crate) async fn list_images(&self) -> Result<Vec<Image>, Status> {
        let message = ListImagesRequest::default();
        Ok(self
            .image()
            .list_images(self.wrap(message))
            .await?
            .into_inner()
            .images)
    }

    pub(crate) async fn remove_image(&self, image: &str) -> Result<(), Status> {
        let image = ImageSpec {
            image: image.into(),
            ..Default::default()
        };
        let message = RemoveImageRequest { image: Some(image) };
        self.image()
            .remove_image(self.wrap(message))
            .await
            .map(drop)
    }
}
