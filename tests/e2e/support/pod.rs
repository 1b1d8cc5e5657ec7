//! Pods and containers as a test wants them: configurations with kubelet's habits, and a handle on
//! a running pod.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use prost::Message;
use quilt::proto::cri as ours;
use quilt::proto::cri::runtime_service_client::RuntimeServiceClient;

use super::client::request;
use super::cri::*;
use super::log::{self, Line};
use super::{Cri, Node, eventually, registry};

/// A pod that runs, and what it was made from.
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) config: PodSandboxConfig,
    cri: Cri,
}

impl Node {
    /// What kubelet would send for a pod without special wishes.
    pub(crate) fn pod_config(&self, name: &str) -> PodSandboxConfig {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let uid = format!("00000000-0000-4000-8000-{count:012}");
        let namespaces = NamespaceOption {
            pid: NamespaceMode::Container as i32,
            ..Default::default()
        };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: uid.clone(),
                namespace: "e2e".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: self
                .path(&format!("logs/{name}-{count}"))
                .display()
                .to_string(),
            labels: labels(&[("app", name), ("io.kubernetes.pod.uid", &uid)]),
            annotations: labels(&[("example.com/note", "kept as it is")]),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.names.pod_parent(&uid),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// A running pod; the image of [`container`] is present.
    pub(crate) async fn pod(&self, name: &str) -> Pod {
        self.pod_from(self.pod_config(name)).await
    }

    /// A running pod made from a configuration.
    pub(crate) async fn pod_from(&self, config: PodSandboxConfig) -> Pod {
        let image = registry().image("busybox:latest");
        if self
            .cri
            .image_status(&image)
            .await
            .expect("ImageStatus")
            .is_none()
        {
            self.cri.pull(&image).await.expect("PullImage");
        }
        let id = self.cri.run_pod(&config).await.expect("RunPodSandbox");
        Pod {
            id,
            config,
            cri: self.cri.clone(),
        }
    }
}

impl Node {
    /// A running pod of a RuntimeClass handler.
    pub(crate) async fn pod_of(&self, handler: &str, config: PodSandboxConfig) -> Pod {
        let image = registry().image("busybox:latest");
        self.cri.pull(&image).await.expect("PullImage");
        let message = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.into(),
        };
        let run = self
            .cri
            .runtime()
            .run_pod_sandbox(self.cri.wrap(message))
            .await;
        Pod {
            id: run.expect("RunPodSandbox").into_inner().pod_sandbox_id,
            config,
            cri: self.cri.clone(),
        }
    }
}

impl Pod {
    /// Creates a container from a configuration of which `change` says more than the independent
    /// client's API, which is older, has words for.
    pub(crate) async fn create_with(
        &self,
        config: &ContainerConfig,
        change: impl FnOnce(&mut ours::ContainerConfig),
    ) -> Result<String, tonic::Status> {
        let like = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config.clone()),
            sandbox_config: Some(self.config.clone()),
        };
        let wire = like.encode_to_vec();
        let mut whole = ours::CreateContainerRequest::decode(wire.as_slice()).expect("the same");
        change(whole.config.as_mut().expect("a configuration"));
        let mut runtime = RuntimeServiceClient::new(self.cri.channel());
        let answer = runtime.create_container(request(whole)).await?;
        Ok(answer.into_inner().container_id)
    }

    pub(crate) async fn create(&self, config: &ContainerConfig) -> String {
        self.cri
            .create(&self.id, config, &self.config)
            .await
            .expect("CreateContainer")
    }

    /// Creates and starts.
    pub(crate) async fn run(&self, config: &ContainerConfig) -> String {
        let id = self.create(config).await;
        self.cri.start(&id).await.expect("StartContainer");
        id
    }

    /// Runs a container until it has ended by itself.
    pub(crate) async fn run_to_end(&self, config: &ContainerConfig) -> ContainerStatus {
        let id = self.run(config).await;
        exited(&self.cri, &id).await
    }

    /// A container that only waits for others to exec in it.
    pub(crate) async fn idle(&self, name: &str) -> String {
        self.run(&shell(
            name,
            "trap 'exit 0' TERM; while :; do sleep 0.05; done",
        ))
        .await
    }

    pub(crate) async fn ip(&self) -> String {
        let status = self
            .cri
            .pod_status(&self.id)
            .await
            .expect("PodSandboxStatus");
        status.network.expect("a network status").ip
    }

    /// Where a container's log is.
    pub(crate) fn log_path(&self, config: &ContainerConfig) -> PathBuf {
        PathBuf::from(&self.config.log_directory).join(&config.log_path)
    }

    /// A container's log so far, each line checked for its form.
    pub(crate) fn log(&self, config: &ContainerConfig) -> Vec<Line> {
        log::read(&self.log_path(config))
    }
}

/// Waits for a container's end.
pub(crate) async fn exited(cri: &Cri, id: &str) -> ContainerStatus {
    eventually("the container has exited", || async {
        let status = cri.status(id).await.expect("ContainerStatus");
        (status.state() == ContainerState::ContainerExited).then_some(status)
    })
    .await
}

/// A container of the busybox image.
pub(crate) fn container(name: &str, command: &[&str]) -> ContainerConfig {
    let image = registry().image("busybox:latest");
    let namespaces = NamespaceOption {
        pid: NamespaceMode::Container as i32,
        ..Default::default()
    };
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: name.into(),
            attempt: 0,
        }),
        image: Some(ImageSpec {
            image,
            ..Default::default()
        }),
        command: command.iter().map(ToString::to_string).collect(),
        labels: labels(&[("io.kubernetes.container.name", name)]),
        log_path: format!("{name}/0.log"),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources::default()),
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(namespaces),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// A container that runs a shell script.
pub(crate) fn shell(name: &str, script: &str) -> ContainerConfig {
    container(name, &["sh", "-c", script])
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect()
}

/// The limits of a container, to be changed.
pub(crate) fn resources(config: &mut ContainerConfig) -> &mut LinuxContainerResources {
    config
        .linux
        .get_or_insert_default()
        .resources
        .get_or_insert_default()
}

/// The security context of a container, to be changed.
pub(crate) fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default()
}

/// The namespaces of a pod, to be changed.
pub(crate) fn namespaces(config: &mut PodSandboxConfig) -> &mut NamespaceOption {
    let linux = config.linux.get_or_insert_default();
    linux
        .security_context
        .get_or_insert_default()
        .namespace_options
        .get_or_insert_default()
}

impl Pod {
    /// The length of a container's log in bytes; absent is 0. Unlike [`Pod::log`] it may be asked
    /// while a line is being written.
    pub(crate) fn log_len(&self, config: &ContainerConfig) -> u64 {
        std::fs::metadata(self.log_path(config)).map_or(0, |meta| meta.len())
    }
}
