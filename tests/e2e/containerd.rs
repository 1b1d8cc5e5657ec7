//! The part of containerd's own API that readers use: what kubelet's cAdvisor asks, in its order,
//! and what `ctr` prints.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use quilt::proto::containerd::containers::containers_client::ContainersClient;
use quilt::proto::containerd::containers::{Container, GetContainerRequest, ListContainersRequest};
use quilt::proto::containerd::images::ListImagesRequest;
use quilt::proto::containerd::images::images_client::ImagesClient;
use quilt::proto::containerd::task::{Process, Status as TaskStatus};
use quilt::proto::containerd::tasks::tasks_client::TasksClient;
use quilt::proto::containerd::tasks::{GetRequest, ListTasksRequest};
use quilt::proto::containerd::version::version_client::VersionClient;
use tonic::{Code, Request, Status};

use crate::support::client::request;
use crate::support::cri::NamespaceMode;
use crate::support::pod::{exited, namespaces, shell};
use crate::support::prometheus::Page;
use crate::support::{Node, Pod, cgroup, eventually, registry};

/// A request as cAdvisor makes it.
fn asked<T>(message: T) -> Request<T> {
    within("k8s.io", message)
}

fn within<T>(namespace: &'static str, message: T) -> Request<T> {
    let mut request = request(message);
    let namespace = namespace.parse().expect("a header");
    request
        .metadata_mut()
        .insert("containerd-namespace", namespace);
    request
}

async fn container(node: &Node, id: &str) -> Result<Container, Status> {
    let mut client = ContainersClient::new(node.cri.channel());
    let message = GetContainerRequest { id: id.into() };
    let answer = client.get(asked(message)).await?.into_inner();
    Ok(answer.container.expect("a container"))
}

async fn task(node: &Node, id: &str) -> Result<Process, Status> {
    let mut client = TasksClient::new(node.cri.channel());
    let message = GetRequest {
        container_id: id.into(),
        ..Default::default()
    };
    let answer = client.get(asked(message)).await?.into_inner();
    Ok(answer.process.expect("a process"))
}

/// The directories of the cgroup that bears an id, in all hierarchies.
fn cgroups_of(node: &Node, id: &str) -> Vec<PathBuf> {
    let trees = cgroup::roots(&node.names);
    let dirs = trees.iter().flat_map(|root| cgroup::tree(root));
    dirs.filter(|dir| dir.file_name().is_some_and(|name| name == id))
        .collect()
}

/// When the cgroup that bears an id was made, by what the kernel gives no second one.
fn made(node: &Node, id: &str) -> Option<u64> {
    let dirs = cgroups_of(node, id);
    let first = dirs.first()?;
    std::fs::metadata(first).ok().map(|found| found.ino())
}

/// The network namespace of a process.
fn network_of(pid: u32) -> u64 {
    let path = format!("/proc/{pid}/ns/net");
    std::fs::metadata(&path).expect(&path).ino()
}

/// The specification that cAdvisor parses.
fn spec(container: &Container) -> serde_json::Value {
    let any = container.spec.as_ref().expect("a specification");
    assert!(any.type_url.ends_with("runtime-spec/1/Spec"), "{any:?}");
    serde_json::from_slice(&any.value).expect("JSON")
}

/// Waits until the pod's cgroup stands for another process than before, if there was one.
async fn stands_anew(node: &Node, pod: &Pod, before: Option<u64>) -> u64 {
    eventually("the pod has a cgroup of its own", || {
        let now = made(node, &pod.id).filter(|now| Some(*now) != before);
        async move { now }
    })
    .await
}

#[tokio::test]
async fn cadvisor_finds_a_pod_its_containers_and_its_network() {
    let mut node = Node::start().await;
    let mut version = VersionClient::new(node.cri.channel());
    let answer = version.version(request(())).await.expect("Version");
    assert_eq!(answer.into_inner().version, env!("CARGO_PKG_VERSION"));
    let pod = node.pod("seen").await;
    // Nothing of the pod runs yet.
    assert_eq!(made(&node, &pod.id), None);
    let error = task(&node, &pod.id).await.expect_err("no process");
    assert_eq!(error.code(), Code::NotFound);
    let config = shell("main", "trap 'exit 3' TERM; while :; do sleep 0.05; done");
    let id = pod.run(&config).await;

    let found = container(&node, &id).await.expect("Containers/Get");
    assert_eq!(found.labels["io.cri-containerd.kind"], "container");
    assert_eq!(found.labels["io.kubernetes.container.name"], "main");
    assert_eq!(found.sandbox, pod.id);
    assert_eq!(spec(&found)["process"]["args"][0], "sh");
    let found = container(&node, &pod.id).await.expect("Containers/Get");
    assert_eq!(found.labels["io.cri-containerd.kind"], "sandbox");
    assert_eq!(found.labels["app"], "seen");
    assert!(spec(&found)["process"].is_object());

    let first = stands_anew(&node, &pod, None).await;
    let of_container = task(&node, &id).await.expect("Tasks/Get");
    let of_pod = task(&node, &pod.id).await.expect("Tasks/Get");
    assert_eq!(of_container.status(), TaskStatus::Running);
    assert_eq!(of_pod.pid, of_container.pid);
    let traffic = std::fs::read_to_string(format!("/proc/{}/net/dev", of_pod.pid));
    assert!(traffic.expect("the pod's network").contains("eth0:"));
    // Another container does not change who stands for the pod; the first one's end does.
    let other = pod.idle("other").await;
    node.cri.stop(&id, 10).await.expect("StopContainer");
    exited(&node.cri, &id).await;
    let second = stands_anew(&node, &pod, Some(first)).await;
    let of_pod = task(&node, &pod.id).await.expect("Tasks/Get");
    let of_other = task(&node, &other).await.expect("Tasks/Get");
    assert_eq!(of_pod.pid, of_other.pid);
    let ended = task(&node, &id).await.expect("Tasks/Get");
    assert_eq!(
        (ended.status(), ended.exit_status),
        (TaskStatus::Stopped, 3)
    );

    // A restart of the daemon is none of the pod's business.
    node.kill();
    node.restart().await;
    assert_eq!(
        task(&node, &pod.id).await.expect("Tasks/Get").pid,
        of_other.pid
    );
    assert_eq!(made(&node, &pod.id), Some(second));
    node.cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
    assert_eq!(cgroups_of(&node, &pod.id), Vec::<PathBuf>::new());
    let error = task(&node, &pod.id).await.expect_err("it is down");
    assert_eq!(error.code(), Code::NotFound);
    node.cri
        .remove_pod(&pod.id)
        .await
        .expect("RemovePodSandbox");
    let error = container(&node, &pod.id).await.expect_err("it is gone");
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test]
async fn a_pod_with_an_init_stands_for_itself_and_the_nodes_network_for_nobody() {
    let node = Node::start().await;
    let mut shared = node.pod_config("shared");
    namespaces(&mut shared).pid = NamespaceMode::Pod as i32;
    let shared = node.pod_from(shared).await;
    let init = task(&node, &shared.id).await.expect("Tasks/Get");
    let mut config = shell("main", "trap 'exit 0' TERM; while :; do sleep 0.05; done");
    let linux = config.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().pid = NamespaceMode::Pod as i32;
    let main = shared.run(&config).await;
    let main = task(&node, &main).await.expect("Tasks/Get");
    assert_ne!(main.pid, init.pid);
    assert_eq!(network_of(main.pid), network_of(init.pid));
    let again = task(&node, &shared.id).await.expect("Tasks/Get");
    assert_eq!(again.pid, init.pid);

    let mut hosted = node.pod_config("hosted");
    namespaces(&mut hosted).network = NamespaceMode::Node as i32;
    let hosted = node.pod_from(hosted).await;
    hosted.idle("main").await;
    // One that has a network of its own gets its cgroup, after which the other would have had it.
    let own = node.pod("own").await;
    own.idle("main").await;
    stands_anew(&node, &own, None).await;
    assert_eq!(made(&node, &hosted.id), None);
}

#[tokio::test]
async fn what_is_not_ours_is_not_found_by_one_read() {
    let node = Node::start().await;
    let count = || {
        let page = node.operate(&["metrics"]).stdout;
        let page = Page::read(&String::from_utf8(page).expect("text"));
        let name = "database_operation_duration_seconds_count";
        let labels = [("operation", "find what an id names"), ("outcome", "ok")];
        page.get(name, &labels).unwrap_or_default()
    };
    let before = count();
    for number in 0..600 {
        let error = container(&node, &format!("{number:064x}")).await;
        assert_eq!(error.expect_err("nobody's").code(), Code::NotFound);
    }
    assert_eq!(count() - before, 600.0);
    // What cannot be an id is not even looked for.
    for odd in ["", "short", &"A".repeat(65), &"é".repeat(40)] {
        let error = container(&node, odd).await.expect_err("no id");
        assert_eq!(error.code(), Code::NotFound, "{odd}");
    }
    assert_eq!(count() - before, 600.0);
}

#[tokio::test]
async fn everything_is_in_one_namespace_and_nothing_can_be_changed() {
    let node = Node::start().await;
    let pod = node.pod("listed").await;
    let id = pod.idle("main").await;
    let mut containers = ContainersClient::new(node.cri.channel());
    let mut tasks = TasksClient::new(node.cri.channel());
    let mut images = ImagesClient::new(node.cri.channel());
    let all = ListContainersRequest::default;
    let listed = containers.list(asked(all())).await.expect("List");
    let mut ids: Vec<_> = listed.into_inner().containers;
    ids.sort_by_key(|one| one.labels["io.cri-containerd.kind"].clone());
    let ids: Vec<_> = ids.into_iter().map(|one| one.id).collect();
    assert_eq!(ids, [id.clone(), pod.id.clone()]);
    let mut stream = containers
        .list_stream(asked(all()))
        .await
        .expect("ListStream");
    let mut count = 0;
    while let Some(message) = stream.get_mut().message().await.expect("a message") {
        assert!(ids.contains(&message.container.expect("a container").id));
        count += 1;
    }
    assert_eq!(count, 2);
    let running = tasks.list(asked(ListTasksRequest::default())).await;
    let running = running.expect("List").into_inner().tasks;
    let running: Vec<_> = running.into_iter().map(|task| task.id).collect();
    assert_eq!(running, std::slice::from_ref(&id));

    let empty = containers.list(within("moby", all())).await.expect("List");
    assert!(empty.into_inner().containers.is_empty());
    let empty = images.list(within("moby", ListImagesRequest::default()));
    assert!(empty.await.expect("List").into_inner().images.is_empty());
    let message = GetContainerRequest { id: id.clone() };
    let error = containers.get(within("moby", message)).await;
    assert_eq!(error.expect_err("elsewhere").code(), Code::NotFound);
    let error = containers.list(request(all())).await;
    let error = error.expect_err("no namespace");
    assert_eq!(error.code(), Code::FailedPrecondition);
    let filtered = ListContainersRequest {
        filters: vec!["id==x".into()],
    };
    let error = containers.list(asked(filtered)).await.expect_err("filters");
    assert_eq!(error.code(), Code::Unimplemented);

    for (call, instead) in [
        ("tasks.v1.Tasks/Kill", "crictl"),
        ("containers.v1.Containers/Delete", "crictl"),
        ("images.v1.Images/Delete", "crictl rmi"),
        ("snapshots.v1.Snapshots/List", "crictl"),
        ("events.v1.Events/Subscribe", "quiltd events"),
    ] {
        let error = raw(&node, &format!("/containerd.services.{call}")).await;
        assert_eq!(error.code(), Code::Unimplemented, "{call}: {error}");
        assert!(error.message().contains(instead), "{call}: {error}");
    }
    let status = node.cri.status(&id).await.expect("ContainerStatus");
    assert_eq!(status.exit_code, 0);
}

/// Calls what we have no client of, with an empty message.
async fn raw(node: &Node, path: &str) -> Status {
    let mut grpc = tonic::client::Grpc::new(node.cri.channel());
    grpc.ready().await.expect("a connection");
    let path = path.parse().expect("a path");
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let answer = grpc.unary(asked(()), path, codec).await;
    answer.expect_err("it changes something")
}

/// What `ctr` prints, and what it complains of.
fn ctr(node: &Node, arguments: &[&str]) -> (String, String) {
    let binary: PathBuf = [
        env!("CARGO_MANIFEST_DIR"),
        "target/hack/containerd/usr/bin/ctr",
    ]
    .iter()
    .collect();
    assert!(binary.exists(), "there is no ctr: run `make deps`");
    let output = Command::new(binary)
        .arg("--address")
        .arg(node.names.socket())
        .args(["--namespace", "k8s.io"])
        .args(arguments)
        .output()
        .expect("ctr runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {out}{err}");
    (out, err)
}

#[tokio::test]
async fn ctr_prints_what_is_there() {
    let node = Node::start().await;
    let pod = node.pod("printed").await;
    let id = pod.idle("main").await;
    let (version, _) = ctr(&node, &["version"]);
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    let (containers, complaints) = ctr(&node, &["containers", "ls"]);
    assert!(containers.contains(&id) && containers.contains(&pod.id));
    assert!(containers.contains("busybox"), "{containers}");
    assert_eq!(complaints, "");
    let (info, _) = ctr(&node, &["containers", "info", &id]);
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["Spec"]["process"]["args"][0], "sh", "{info}");
    let pid = task(&node, &id).await.expect("Tasks/Get").pid.to_string();
    let (tasks, complaints) = ctr(&node, &["tasks", "ls"]);
    let line = tasks.lines().find(|line| line.starts_with(&id));
    let words: Vec<_> = line.expect("the container").split_whitespace().collect();
    assert_eq!(words, [id.as_str(), &pid, "RUNNING"]);
    assert_eq!(complaints, "");
    let (images, complaints) = ctr(&node, &["images", "ls"]);
    let name = registry().image("busybox:latest");
    let line = images.lines().find(|line| line.starts_with(&name));
    let line = line.expect("the image");
    assert!(line.contains("linux/amd64"), "{line}");
    assert!(line.contains("KiB") || line.contains("MiB"), "{line}");
    assert_eq!(complaints, "");
    let (namespaces, _) = ctr(&node, &["namespaces", "ls"]);
    assert!(namespaces.contains("k8s.io"), "{namespaces}");
    let (plugins, _) = ctr(&node, &["plugins", "ls"]);
    assert!(plugins.contains("tasks"), "{plugins}");
}
