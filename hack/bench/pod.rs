//! Pods and containers as kubelet asks for them: labels, log paths, a PID namespace per container,
//! and limits.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use quilt::proto::cri;

use crate::client::RUN_LABEL;

/// Ends on SIGTERM at once, which a bare `sleep` as process 1 would not.
const RUNNING: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; sleep 1000000 & wait"];

/// Makes the configurations of one run, no two alike.
#[derive(Debug)]
pub(crate) struct Maker {
    run: String,
    image: String,
    logs: PathBuf,
    next: AtomicU32,
}

impl Maker {
    pub(crate) fn new(image: &str, logs: &Path) -> Self {
        Self {
            run: format!("bench-{}", std::process::id()),
            image: image.to_owned(),
            logs: logs.to_owned(),
            next: AtomicU32::new(0),
        }
    }

    /// The label value of everything this run makes.
    pub(crate) fn run(&self) -> &str {
        &self.run
    }

    pub(crate) fn image(&self) -> &str {
        &self.image
    }

    /// A pod with a network, an IPC and a UTS namespace of its own, or on the node's network.
    pub(crate) fn pod(&self, network: cri::NamespaceMode) -> cri::PodSandboxConfig {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}", self.run);
        let uid = format!(
            "00000000-0000-4000-8000-{:08}{number:04}",
            std::process::id()
        );
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.clone(),
                uid: uid.clone(),
                namespace: "bench".to_owned(),
                attempt: 0,
            }),
            hostname: match network {
                cri::NamespaceMode::Node => String::new(),
                _ => name.clone(),
            },
            log_directory: self.logs.join(&uid).to_string_lossy().into_owned(),
            labels: [
                ("io.kubernetes.pod.name".to_owned(), name),
                ("io.kubernetes.pod.namespace".to_owned(), "bench".to_owned()),
                ("io.kubernetes.pod.uid".to_owned(), uid),
                (RUN_LABEL.to_owned(), self.run.clone()),
            ]
            .into(),
            linux: Some(cri::LinuxPodSandboxConfig {
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces(network)),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// A container that runs until it is stopped.
    pub(crate) fn running(&self) -> cri::ContainerConfig {
        self.container(&RUNNING)
    }

    /// A container that ends at once.
    pub(crate) fn short_lived(&self) -> cri::ContainerConfig {
        self.container(&["true"])
    }

    fn container(&self, command: &[&str]) -> cri::ContainerConfig {
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata {
                name: "main".to_owned(),
                attempt: 0,
            }),
            image: Some(cri::ImageSpec {
                image: self.image.clone(),
                ..Default::default()
            }),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            labels: [("io.kubernetes.container.name".to_owned(), "main".to_owned())].into(),
            log_path: "main_0.log".to_owned(),
            linux: Some(cri::LinuxContainerConfig {
                resources: Some(cri::LinuxContainerResources {
                    cpu_period: 100_000,
                    cpu_shares: 102,
                    memory_limit_in_bytes: 64 * 1024 * 1024,
                    ..Default::default()
                }),
                security_context: Some(cri::LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces(cri::NamespaceMode::Pod)),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }
    }
}

fn namespaces(network: cri::NamespaceMode) -> cri::NamespaceOption {
    cri::NamespaceOption {
        network: network.into(),
        pid: cri::NamespaceMode::Container.into(),
        ipc: cri::NamespaceMode::Pod.into(),
        ..Default::default()
    }
}
