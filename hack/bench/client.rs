//! A CRI client that times its calls. It checks that calls succeed and interprets nothing else.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use prost::Message;
use quilt::proto::containerd::containers::GetContainerRequest;
use quilt::proto::containerd::containers::containers_client::ContainersClient;
use quilt::proto::cri;
use quilt::proto::cri::image_service_client::ImageServiceClient;
use quilt::proto::cri::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use crate::raw::Raw;

/// The label that marks every pod of one run.
pub(crate) const RUN_LABEL: &str = "quilt.bench/run";

/// What kubelet allows a message to have, in bytes.
const MESSAGE_LIMIT: usize = 16 * 1024 * 1024;

/// The longest any call may take.
const CALL_BOUND: Duration = Duration::from_secs(120);

/// One connection to a runtime; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    containers: ContainersClient<Channel>,
    raw: tonic::client::Grpc<Channel>,
}

/// What is asked over and over.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Poll {
    ContainerStatus,
    ImageFsInfo,
    ImageStatus,
    ListContainerStats,
    ListContainers,
    ListImages,
    ListPodSandbox,
    Status,
    Version,
    /// cAdvisor, about a cgroup that is not the runtime's.
    ContainerdNotFound,
}

/// Times one call and names it in its error.
macro_rules! timed {
    ($what:literal, $call:expr) => {{
        let start = Instant::now();
        let answer = $call.await.context($what)?.into_inner();
        (answer, start.elapsed())
    }};
}

impl Cri {
    pub(crate) async fn connect(socket: &Path) -> Result<Self> {
        let path: PathBuf = socket.to_owned();
        let channel = Endpoint::from_static("http://localhost")
            .timeout(CALL_BOUND)
            .connect_with_connector(tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
            .with_context(|| format!("connect to {}", socket.display()))?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_LIMIT),
            images: ImageServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_LIMIT),
            containers: ContainersClient::new(channel.clone()),
            raw: tonic::client::Grpc::new(channel).max_decoding_message_size(MESSAGE_LIMIT),
        })
    }

    /// The bytes of an answer of the runtime service, and how long they took.
    async fn raw<T: Message + 'static>(
        &mut self,
        method: &'static str,
        request: T,
    ) -> Result<(Bytes, Duration)> {
        let path = format!("/runtime.v1.RuntimeService/{method}");
        let path = path.parse().context("a path")?;
        self.raw.ready().await.context(method)?;
        let start = Instant::now();
        let call = self.raw.unary(Request::new(request), path, Raw::default());
        let answer = call.await.context(method)?.into_inner();
        Ok((answer, start.elapsed()))
    }

    pub(crate) async fn version(&mut self) -> Result<cri::VersionResponse> {
        let request = cri::VersionRequest::default();
        Ok(timed!("Version", self.runtime.version(request)).0)
    }

    pub(crate) async fn has_image(&mut self, image: &str) -> Result<bool> {
        let request = cri::ImageStatusRequest {
            image: Some(image_spec(image)),
            ..Default::default()
        };
        let (answer, _) = timed!("ImageStatus", self.images.image_status(request));
        Ok(answer.image.is_some())
    }

    /// Bytes of an image that is there.
    pub(crate) async fn image_bytes(&mut self, image: &str) -> Result<u64> {
        let request = cri::ImageStatusRequest {
            image: Some(image_spec(image)),
            ..Default::default()
        };
        let (answer, _) = timed!("ImageStatus", self.images.image_status(request));
        Ok(answer.image.map_or(0, |image| image.size))
    }

    pub(crate) async fn pull(&mut self, image: &str) -> Result<Duration> {
        let request = cri::PullImageRequest {
            image: Some(image_spec(image)),
            ..Default::default()
        };
        Ok(timed!("PullImage", self.images.pull_image(request)).1)
    }

    pub(crate) async fn remove_image(&mut self, image: &str) -> Result<()> {
        let request = cri::RemoveImageRequest {
            image: Some(image_spec(image)),
        };
        timed!("RemoveImage", self.images.remove_image(request));
        Ok(())
    }

    pub(crate) async fn run_pod(
        &mut self,
        config: cri::PodSandboxConfig,
    ) -> Result<(String, Duration)> {
        let request = cri::RunPodSandboxRequest {
            config: Some(config),
            ..Default::default()
        };
        let (answer, took) = timed!("RunPodSandbox", self.runtime.run_pod_sandbox(request));
        Ok((answer.pod_sandbox_id, took))
    }

    pub(crate) async fn stop_pod(&mut self, pod: &str) -> Result<Duration> {
        let request = cri::StopPodSandboxRequest {
            pod_sandbox_id: pod.to_owned(),
        };
        Ok(timed!("StopPodSandbox", self.runtime.stop_pod_sandbox(request)).1)
    }

    pub(crate) async fn remove_pod(&mut self, pod: &str) -> Result<Duration> {
        let request = cri::RemovePodSandboxRequest {
            pod_sandbox_id: pod.to_owned(),
        };
        Ok(timed!("RemovePodSandbox", self.runtime.remove_pod_sandbox(request)).1)
    }

    pub(crate) async fn create(
        &mut self,
        pod: &str,
        sandbox: cri::PodSandboxConfig,
        config: cri::ContainerConfig,
    ) -> Result<(String, Duration)> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox),
        };
        let (answer, took) = timed!("CreateContainer", self.runtime.create_container(request));
        Ok((answer.container_id, took))
    }

    pub(crate) async fn start(&mut self, container: &str) -> Result<Duration> {
        let request = cri::StartContainerRequest {
            container_id: container.to_owned(),
        };
        Ok(timed!("StartContainer", self.runtime.start_container(request)).1)
    }

    pub(crate) async fn stop(&mut self, container: &str, grace_s: i64) -> Result<Duration> {
        let request = cri::StopContainerRequest {
            container_id: container.to_owned(),
            timeout: grace_s,
        };
        Ok(timed!("StopContainer", self.runtime.stop_container(request)).1)
    }

    /// Kills a container, and waits no longer than this for its end.
    pub(crate) async fn stop_within(&mut self, container: &str, patience: Duration) -> Result<()> {
        let mut request = tonic::Request::new(cri::StopContainerRequest {
            container_id: container.to_owned(),
            timeout: 0,
        });
        request.set_timeout(patience);
        timed!("StopContainer", self.runtime.stop_container(request));
        Ok(())
    }

    /// The process of a container, as the runtime tells it among the particulars of its status:
    /// under `pid`, or in the JSON under `info`.
    pub(crate) async fn pid(&mut self, container: &str) -> Result<i32> {
        let request = cri::ContainerStatusRequest {
            container_id: container.to_owned(),
            verbose: true,
        };
        let (answer, _) = timed!("ContainerStatus", self.runtime.container_status(request));
        let plain = answer.info.get("pid").and_then(|pid| pid.parse().ok());
        let nested = || {
            let info: serde_json::Value = serde_json::from_str(answer.info.get("info")?).ok()?;
            i32::try_from(info["pid"].as_i64()?).ok()
        };
        plain
            .or_else(nested)
            .ok_or_else(|| anyhow!("the runtime does not tell the process of {container}"))
    }

    pub(crate) async fn remove(&mut self, container: &str) -> Result<Duration> {
        let request = cri::RemoveContainerRequest {
            container_id: container.to_owned(),
        };
        Ok(timed!("RemoveContainer", self.runtime.remove_container(request)).1)
    }

    pub(crate) async fn status(
        &mut self,
        container: &str,
    ) -> Result<(cri::ContainerStatus, Duration)> {
        let request = cri::ContainerStatusRequest {
            container_id: container.to_owned(),
            verbose: false,
        };
        let (answer, took) = timed!("ContainerStatus", self.runtime.container_status(request));
        let status = answer
            .status
            .ok_or_else(|| anyhow!("ContainerStatus of {container} is empty"))?;
        Ok((status, took))
    }

    /// Lists all containers; returns how many there are.
    pub(crate) async fn list(&mut self) -> Result<(usize, Duration)> {
        let request = cri::ListContainersRequest::default();
        let (answer, took) = timed!("ListContainers", self.runtime.list_containers(request));
        Ok((answer.containers.len(), took))
    }

    /// Statistics of all containers; returns of how many.
    pub(crate) async fn list_stats(&mut self) -> Result<(usize, Duration)> {
        let request = cri::ListContainerStatsRequest::default();
        let (bytes, took) = self.raw("ListContainerStats", request).await?;
        let answer = cri::ListContainerStatsResponse::decode(bytes)?;
        Ok((answer.stats.len(), took))
    }

    /// Metrics of all pods; returns of how many.
    pub(crate) async fn pod_metrics(&mut self) -> Result<(usize, Duration)> {
        let request = cri::ListPodSandboxMetricsRequest::default();
        let (bytes, took) = self.raw("ListPodSandboxMetrics", request).await?;
        let answer = cri::ListPodSandboxMetricsResponse::decode(bytes)?;
        Ok((answer.pod_metrics.len(), took))
    }

    /// Streams all containers; returns how many there are, and the bytes of the largest message.
    pub(crate) async fn stream_containers(&mut self) -> Result<(usize, usize, Duration)> {
        let start = Instant::now();
        let request = cri::StreamContainersRequest::default();
        let answer = self.runtime.stream_containers(request).await;
        let mut stream = answer.context("StreamContainers")?.into_inner();
        let (mut count, mut largest) = (0, 0);
        while let Some(message) = stream.message().await.context("StreamContainers")? {
            count += message.containers.len();
            largest = largest.max(message.encoded_len());
        }
        Ok((count, largest, start.elapsed()))
    }

    /// Asks what kubelet asks while nothing happens.
    pub(crate) async fn poll(&mut self, poll: Poll, container: &str, image: &str) -> Result<()> {
        match poll {
            Poll::ListContainers => drop(self.list().await?),
            Poll::ListPodSandbox => {
                let request = cri::ListPodSandboxRequest::default();
                timed!("ListPodSandbox", self.runtime.list_pod_sandbox(request));
            }
            Poll::ContainerStatus => drop(self.status(container).await?),
            Poll::Version => drop(self.version().await?),
            Poll::Status => {
                let request = cri::StatusRequest::default();
                timed!("Status", self.runtime.status(request));
            }
            Poll::ImageFsInfo => {
                let request = cri::ImageFsInfoRequest::default();
                timed!("ImageFsInfo", self.images.image_fs_info(request));
            }
            Poll::ListContainerStats => drop(self.list_stats().await?),
            Poll::ImageStatus => drop(self.has_image(image).await?),
            Poll::ListImages => {
                let request = cri::ListImagesRequest::default();
                timed!("ListImages", self.images.list_images(request));
            }
            Poll::ContainerdNotFound => {
                let mut request = Request::new(GetContainerRequest { id: "0".repeat(64) });
                let namespace = "k8s.io".parse().context("a header")?;
                let metadata = request.metadata_mut();
                metadata.insert("containerd-namespace", namespace);
                // A runtime without this API is asked as well, and says so.
                let answer = self.containers.get(request).await;
                anyhow::ensure!(answer.is_err(), "there is a container of zeroes");
            }
        }
        Ok(())
    }

    /// How many containers run.
    pub(crate) async fn count_running(&mut self) -> Result<usize> {
        let request = cri::ListContainersRequest::default();
        let (answer, _) = timed!("ListContainers", self.runtime.list_containers(request));
        let running = cri::ContainerState::ContainerRunning;
        let states = answer.containers.iter().map(|found| found.state());
        Ok(states.filter(|state| *state == running).count())
    }

    pub(crate) async fn exec_true(&mut self, container: &str) -> Result<Duration> {
        let request = cri::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: vec!["true".to_owned()],
            timeout: 30,
        };
        let (answer, took) = timed!("ExecSync", self.runtime.exec_sync(request));
        anyhow::ensure!(
            answer.exit_code == 0,
            "`true` ended with {}",
            answer.exit_code
        );
        Ok(took)
    }

    /// Stops and removes every pod of a run, going on past errors; the last one is returned.
    pub(crate) async fn sweep(&mut self, run: &str) -> Result<()> {
        let request = cri::ListPodSandboxRequest {
            filter: Some(cri::PodSandboxFilter {
                label_selector: [(RUN_LABEL.to_owned(), run.to_owned())].into(),
                ..Default::default()
            }),
        };
        let (answer, _) = timed!("ListPodSandbox", self.runtime.list_pod_sandbox(request));
        let mut last = Ok(());
        for pod in answer.items {
            let stopped = self.stop_pod(&pod.id).await.map(drop);
            let removed = self.remove_pod(&pod.id).await.map(drop);
            last = last.and(stopped).and(removed);
        }
        last
    }
}

fn image_spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec {
        image: image.to_owned(),
        ..Default::default()
    }
}
