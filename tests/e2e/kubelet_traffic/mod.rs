//! Requests recorded from a real kubelet (`fixtures/`: by name, in JSON with the field names of the
//! API). Each decodes, the plain pod is followed through its life, and `pods` runs all of them.

mod pods;
mod special;

use std::fs;
use std::path::Path;

use prost::Message;
use quilt::proto::cri::runtime_service_client::RuntimeServiceClient;
use quilt::proto::cri::{CreateContainerRequest, RunPodSandboxRequest};
use serde_json::{Map, Value};
use tonic::Code;
use tonic::transport::Channel;

use crate::support::client::request;
use crate::support::cri::{ContainerState, PodSandboxState};
use crate::support::log::contents;
use crate::support::protojson::Api;
use crate::support::{Node, eventually, log, registry};

static PODS: &str = include_str!("../fixtures/RunPodSandbox.json");
static CONTAINERS: &str = include_str!("../fixtures/CreateContainer.json");

fn recorded(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).expect("recorded JSON")
}

/// Through the wire form into the daemon's own type.
fn decode<M: Message + Default>(message: &str, value: &Value) -> M {
    let wire = Api::load()
        .encode(message, value)
        .unwrap_or_else(|error| panic!("{error}"));
    M::decode(wire.as_slice()).unwrap_or_else(|error| panic!("{message}: {error}"))
}

#[test]
fn every_recorded_request_decodes_and_nothing_of_it_is_lost() {
    let api = Api::load();
    fn check<M: Message + Default, K: Message + Default>(name: &str, wire: &[u8]) {
        let ours = M::decode(wire).unwrap_or_else(|error| panic!("{name}: {error}"));
        // A field that our types lack would be dropped here.
        assert_eq!(ours.encoded_len(), wire.len(), "{name}: something is lost");
        K::decode(ours.encode_to_vec().as_slice()).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    for (name, value) in recorded(PODS) {
        let wire = api
            .encode("RunPodSandboxRequest", &value)
            .unwrap_or_else(|e| panic!("{e}"));
        check::<RunPodSandboxRequest, k8s_cri::v1::RunPodSandboxRequest>(&name, &wire);
    }
    for (name, value) in recorded(CONTAINERS) {
        let wire = api
            .encode("CreateContainerRequest", &value)
            .unwrap_or_else(|e| panic!("{e}"));
        check::<CreateContainerRequest, k8s_cri::v1::CreateContainerRequest>(&name, &wire);
    }
}

/// Moves what a request names on its node into the test's own: logs, cgroups, volumes, images.
fn rewrite(node: &Node, value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| rewrite(node, item)),
        Value::Object(fields) => {
            let written = fields.get("user_specified_image").and_then(Value::as_str);
            let image = image_for(written.unwrap_or_default());
            for (key, value) in fields {
                let Some(text) = value.as_str() else {
                    rewrite(node, value);
                    continue;
                };
                *value = match key.as_str() {
                    "log_directory" => format!("{}/logs{text}", node.names.dir.display()),
                    "cgroup_parent" => node.names.recorded_parent(text),
                    "host_path" => volume(&node.path("volumes"), text),
                    "localhost_ref" => profile(&node.path("profile.json")),
                    "image" if text.starts_with("sha256:") => registry().pushed(image).id(),
                    _ => continue,
                }
                .into();
            }
        }
        _ => {}
    }
}

/// What stands for an image of the recording: a web server, a volume with a mark, or a shell.
fn image_for(written: &str) -> &'static str {
    if written.contains("nginx") {
        "kubelet/web:latest"
    } else if written.contains("test-image-1") {
        "schema2:latest"
    } else {
        "busybox:latest"
    }
}

/// Makes what kubelet had made at `path`, below `dir`.
fn volume(dir: &Path, path: &str) -> String {
    let own = dir.join(path.trim_start_matches('/'));
    let last = path.rsplit('/').next().unwrap_or_default();
    let is_file = matches!(last, "etc-hosts" | "file") || path.contains("/containers/");
    let made = if is_file {
        let parent = own.parent().expect("a path below the test's directory");
        fs::create_dir_all(parent).and_then(|()| fs::write(&own, format!("# {last}\n")))
    } else {
        fs::create_dir_all(&own)
    };
    made.expect("a volume of the test");
    own.display().to_string()
}

/// A seccomp profile that allows everything.
fn profile(path: &Path) -> String {
    fs::write(path, r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).expect("a file of the test");
    path.display().to_string()
}

/// Sends the recorded requests of pods and containers.
struct Replay {
    node: Node,
    client: RuntimeServiceClient<Channel>,
}

impl Replay {
    async fn start() -> Self {
        let node = Node::start().await;
        for name in ["busybox:latest", "schema2:latest", "kubelet/web:latest"] {
            let name = registry().image(name);
            node.cri.pull(&name).await.expect("PullImage");
        }
        let client = RuntimeServiceClient::new(node.cri.channel());
        Self { node, client }
    }

    async fn run_pod(&self, recorded: &Value) -> Result<String, tonic::Status> {
        let mut value = recorded.clone();
        rewrite(&self.node, &mut value);
        let message: RunPodSandboxRequest = decode("RunPodSandboxRequest", &value);
        let response = self
            .client
            .clone()
            .run_pod_sandbox(request(message))
            .await?;
        Ok(response.into_inner().pod_sandbox_id)
    }

    async fn create(&self, recorded: &Value, pod: &str) -> Result<String, tonic::Status> {
        let mut value = recorded.clone();
        value["pod_sandbox_id"] = pod.into();
        rewrite(&self.node, &mut value);
        let message: CreateContainerRequest = decode("CreateContainerRequest", &value);
        let response = self
            .client
            .clone()
            .create_container(request(message))
            .await?;
        Ok(response.into_inner().container_id)
    }
}

#[tokio::test]
async fn the_plain_pod_lives_from_its_recorded_requests() {
    let replay = Replay::start().await;
    let cri = &replay.node.cri;
    let pod = recorded(PODS)["plain-node"].clone();
    let container = recorded(CONTAINERS)["plain-node-main"].clone();
    let pod_id = replay.run_pod(&pod).await.expect("RunPodSandbox");
    let id = replay
        .create(&container, &pod_id)
        .await
        .expect("CreateContainer");
    cri.start(&id).await.expect("StartContainer");

    let file = replay.node.names.dir.join(format!(
        "logs{}/main/0.log",
        pod["config"]["log_directory"]
            .as_str()
            .expect("a directory")
    ));
    let line = eventually("the first line", || async {
        contents(&log::read(&file), "stdout").into_iter().next()
    })
    .await;
    assert_eq!(line, "start hello world hello world x y");
    assert_eq!(cri.output(&id, "env | grep -c '^EMPTY=$'").await, "1");
    assert_eq!(
        cri.output(&id, "echo $EXPANDED; pwd").await,
        "hello world!\n/tmp"
    );
    assert_eq!(cri.output(&id, "cat /etc/hosts").await, "# etc-hosts");
    let resolver = cri.output(&id, "cat /etc/resolv.conf").await;
    assert!(resolver.contains("nameserver 10.96.0.10"), "{resolver}");
    cri.output(&id, "echo the end > /dev/termination-log").await;
    let adjust = cri.output(&id, "cat /proc/1/oom_score_adj").await;
    assert_eq!(adjust, "1000");
    assert_eq!(cri.output(&id, "hostname").await, "plain-node");

    // The order in which kubelet ends a pod.
    cri.stop(&id, 20).await.expect("StopContainer");
    cri.stop_pod(&pod_id).await.expect("StopPodSandbox");
    let status = cri.status(&id).await.expect("ContainerStatus");
    assert_eq!(
        (status.state(), status.exit_code),
        (ContainerState::ContainerExited, 0)
    );
    cri.remove(&id).await.expect("RemoveContainer");
    assert_eq!(
        cri.status(&id).await.expect_err("removed").code(),
        Code::NotFound
    );
    let status = cri.pod_status(&pod_id).await.expect("PodSandboxStatus");
    assert_eq!(status.state(), PodSandboxState::SandboxNotready);
    cri.stop_pod(&pod_id).await.expect("StopPodSandbox again");
    cri.remove_pod(&pod_id).await.expect("RemovePodSandbox");
}
