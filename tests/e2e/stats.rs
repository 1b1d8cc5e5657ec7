//! Statistics and metrics, beside what the kernel's own files say just before and just after.

use std::collections::{BTreeMap, BTreeSet};

use quilt::proto::cri as newest;
use quilt::proto::cri::runtime_service_client::RuntimeServiceClient;

use crate::support::client::request;
use crate::support::cri::*;
use crate::support::pod::{namespaces, resources, shell};
use crate::support::{Node, Pod, cgroup, eventually};

/// Looks every second, so that a test has to wait for one only.
const EVERY_SECOND: &str = "[stats]\ninterval_s = 1\n";

async fn node() -> Node {
    let mut node = Node::prepare(EVERY_SECOND);
    node.spawn();
    node.answers().await;
    node
}

/// Takes CPU, memory and a file, and then keeps a little busy.
const BUSY: &str = "trap 'exit 0' TERM; x=$(head -c 20000000 /dev/zero | tr '\\0' x)
    dd if=/dev/zero of=/written bs=1M count=4 2>/dev/null; echo ready
    while :; do i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; sleep 0.05; done";

async fn busy(pod: &Pod) -> String {
    let mut config = shell("main", BUSY);
    *resources(&mut config) = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 200 << 20,
        ..Default::default()
    };
    let id = pod.run(&config).await;
    eventually("it is ready", || {
        let ready = pod.log(&config).iter().any(|line| line.content == b"ready");
        async move { ready.then_some(()) }
    })
    .await;
    id
}

fn kernel(node: &Node, id: &str, controller: &str, v1: &str, v2: &str, key: &str) -> u64 {
    let text = cgroup::read(&node.names, id, controller, v1, v2);
    let number = match text.lines().find_map(|line| line.strip_prefix(key)) {
        Some(number) if !key.is_empty() => number,
        _ => &text,
    };
    number.trim().parse().expect("a number")
}

/// CPU time, ns.
fn cpu_of(node: &Node, id: &str) -> u64 {
    let v2 = cgroup::is_v2("cpuacct");
    let value = kernel(
        node,
        id,
        "cpuacct",
        "cpuacct.usage",
        "cpu.stat",
        "usage_usec ",
    );
    if v2 { value * 1000 } else { value }
}

fn value(number: Option<&UInt64Value>) -> u64 {
    number.expect("a figure").value
}

/// The statistics of a container from after `at` (ns since 1970).
async fn after(node: &Node, id: &str, at: i64) -> ContainerStats {
    eventually("a look of the sampler", || async {
        let stats = node.cri.stats(id).await.expect("ContainerStats");
        let looked = stats.cpu.as_ref().map(|cpu| cpu.timestamp);
        (looked > Some(at)).then_some(stats)
    })
    .await
}

fn now_ns() -> i64 {
    let now = std::time::UNIX_EPOCH.elapsed().expect("a time after 1970");
    i64::try_from(now.as_nanos()).expect("before 2262")
}

#[tokio::test]
async fn a_container_is_told_as_the_kernel_counts() {
    let node = node().await;
    let pod = node.pod("busy").await;
    let id = busy(&pod).await;
    let before = cpu_of(&node, &id);
    let stats = after(&node, &id, now_ns()).await;
    let afterwards = cpu_of(&node, &id);
    let cpu = stats.cpu.expect("CPU");
    let told = value(cpu.usage_core_nano_seconds.as_ref());
    assert!(
        (before..=afterwards).contains(&told),
        "{before} {told} {afterwards}"
    );
    // The second look knows a rate; nothing runs faster than its quota and a little.
    let rate = value(
        after(&node, &id, cpu.timestamp)
            .await
            .cpu
            .expect("CPU")
            .usage_nano_cores
            .as_ref(),
    );
    assert!(rate > 0 && rate < 900_000_000, "{rate}");
    let memory = stats.memory.expect("memory");
    let usage = kernel(
        &node,
        &id,
        "memory",
        "memory.usage_in_bytes",
        "memory.current",
        "",
    );
    let near = |told: u64| told.abs_diff(usage) < 8 << 20;
    assert!(
        near(value(memory.usage_bytes.as_ref())),
        "{memory:?} {usage}"
    );
    let (rss, set) = (memory.rss_bytes.as_ref(), memory.working_set_bytes.as_ref());
    assert!(
        (20_000_000..120_000_000).contains(&value(rss)),
        "{memory:?}"
    );
    assert!(value(set) >= value(rss), "{memory:?}");
    let left = value(memory.available_bytes.as_ref());
    assert_eq!(left + value(set), 200 << 20);
    assert!(value(memory.page_faults.as_ref()) > 1000, "{memory:?}");
}

#[tokio::test]
async fn a_pod_is_told_with_its_network_and_its_containers() {
    let node = node().await;
    let pod = node.pod("net").await;
    let id = busy(&pod).await;
    let ask = |id: String| {
        let mut runtime = node.cri.runtime();
        let request = node.cri.wrap(PodSandboxStatsRequest { pod_sandbox_id: id });
        async move {
            let answer = runtime.pod_sandbox_stats(request).await;
            answer.map(|answer| answer.into_inner().stats.expect("statistics"))
        }
    };
    let own = "cat /proc/net/dev | awk '/eth0:/ {print $2, $10}'";
    // A thousand packets there and back.
    let gateway = node
        .cri
        .output(&id, "ip route | awk '/default/ {print $3}'")
        .await;
    let sent = format!(
        "ping -q -c 200 -A -w 10 {} | grep -c ' 0% packet loss'",
        gateway.trim()
    );
    assert_eq!(node.cri.output(&id, &sent).await.trim(), "1");
    let traffic = |text: String| {
        let mut numbers = text.split_ascii_whitespace().map(|n| n.parse::<u64>());
        let mut next = || numbers.next().expect("two").expect("numbers");
        (next(), next())
    };
    let (rx_before, tx_before) = traffic(node.cri.output(&id, own).await);
    let at = now_ns();
    let stats = eventually("a look of the sampler", || async {
        let stats = ask(pod.id.clone()).await.expect("PodSandboxStats");
        let network = stats
            .linux
            .as_ref()
            .and_then(|linux| linux.network.as_ref());
        let looked = network.map(|network| network.timestamp);
        (looked > Some(at)).then_some(stats)
    })
    .await;
    let (rx_after, tx_after) = traffic(node.cri.output(&id, own).await);
    assert_eq!(stats.attributes.expect("attributes").id, pod.id);
    let linux = stats.linux.expect("figures");
    let network = linux.network.expect("network");
    let default = network.default_interface.expect("a default interface");
    assert_eq!(
        (default.name.as_str(), network.interfaces.len()),
        ("eth0", 0)
    );
    let (rx, tx) = (
        value(default.rx_bytes.as_ref()),
        value(default.tx_bytes.as_ref()),
    );
    assert!(
        (rx_before..=rx_after).contains(&rx),
        "{rx_before} {rx} {rx_after}"
    );
    assert!(
        (tx_before..=tx_after).contains(&tx),
        "{tx_before} {tx} {tx_after}"
    );
    assert!(tx > 200 * 64, "{tx}");
    let containers: Vec<_> = linux
        .containers
        .into_iter()
        .map(|c| c.attributes.expect("who").id)
        .collect();
    assert_eq!(containers, [id]);
    let processes = value(linux.process.expect("processes").process_count.as_ref());
    assert!((1..10).contains(&processes), "{processes}");
    assert!(value(linux.cpu.expect("CPU").usage_core_nano_seconds.as_ref()) > 0);
    // The node's network is not a pod's.
    let mut config = node.pod_config("host");
    namespaces(&mut config).network = NamespaceMode::Node as i32;
    let host = node.pod_from(config).await;
    host.idle("idle").await;
    let of_host = eventually("figures of the other pod", || async {
        let stats = ask(host.id.clone()).await.expect("PodSandboxStats");
        let linux = stats.linux?;
        linux.cpu.is_some().then_some(linux)
    })
    .await;
    assert_eq!(of_host.network, None);
    let error = ask("0".repeat(64)).await.expect_err("no such pod");
    assert_eq!(error.code(), tonic::Code::NotFound, "{error}");
}

#[tokio::test]
async fn metrics_have_cadvisors_names_and_the_kernels_values() {
    let node = node().await;
    let pod = node.pod("metrics").await;
    let id = busy(&pod).await;
    let at = now_ns();
    after(&node, &id, at).await;
    let mut runtime = node.cri.runtime();
    let request = node.cri.wrap(ListMetricDescriptorsRequest {});
    let descriptors = runtime.list_metric_descriptors(request).await;
    let descriptors = descriptors
        .expect("ListMetricDescriptors")
        .into_inner()
        .descriptors;
    let keys: BTreeMap<_, _> = descriptors
        .into_iter()
        .map(|d| (d.name, d.label_keys))
        .collect();
    assert_eq!(keys.len(), 56, "{:?}", keys.keys());
    let request = node.cri.wrap(ListPodSandboxMetricsRequest {});
    let listed = runtime.list_pod_sandbox_metrics(request).await;
    let listed = listed
        .expect("ListPodSandboxMetrics")
        .into_inner()
        .pod_metrics;
    let [own] = listed.as_slice() else {
        panic!("{} pods", listed.len());
    };
    let [container] = own.container_metrics.as_slice() else {
        panic!("{} containers", own.container_metrics.len());
    };
    assert_eq!(
        (own.pod_sandbox_id.as_str(), container.container_id.as_str()),
        (&*pod.id, &*id)
    );
    let mut seen = BTreeMap::new();
    for (metric, of) in own
        .metrics
        .iter()
        .map(|m| (m, "POD"))
        .chain(container.metrics.iter().map(|m| (m, "main")))
    {
        let keys = &keys[&metric.name];
        assert_eq!(keys.len(), metric.label_values.len(), "{metric:?}");
        let labels: BTreeMap<_, _> = keys
            .iter()
            .map(String::as_str)
            .zip(metric.label_values.iter().map(String::as_str))
            .collect();
        assert_eq!(
            (labels["container"], labels["pod"], labels["namespace"]),
            (of, "metrics", "e2e")
        );
        seen.insert(metric.name.as_str(), metric.value.expect("a value").value);
    }
    // What this machine's devices and kernel may not count is left out, and nothing else.
    let missing: BTreeSet<_> = keys
        .keys()
        .map(String::as_str)
        .filter(|name| !seen.contains_key(name))
        .collect();
    let may_lack = |name: &&str| {
        [
            "_blkio_",
            "_fs_reads_",
            "_fs_writes_",
            "_hugetlb_",
            "_pressure_",
        ]
        .iter()
        .any(|part| name.contains(part))
    };
    assert!(missing.iter().all(|name| may_lack(name)), "{missing:?}");
    let told = |name: &str| seen[&*format!("container_{name}")];
    assert_eq!(told("spec_cpu_quota"), 50_000);
    assert_eq!(told("spec_cpu_shares"), 512);
    assert_eq!(told("spec_memory_limit_bytes"), 200 << 20);
    assert!(
        told("memory_rss") > 20_000_000 && told("memory_max_usage_bytes") >= told("memory_rss")
    );
    assert!((1..10).contains(&told("processes")) && told("threads") >= told("processes"));
    assert!(
        told("file_descriptors") >= 3,
        "{}",
        told("file_descriptors")
    );
    let started = node
        .cri
        .status(&id)
        .await
        .expect("ContainerStatus")
        .started_at;
    assert_eq!(
        told("start_time_seconds"),
        u64::try_from(started / 1_000_000_000).expect("a time")
    );
    let limit = node.cri.output(&id, "ulimit -n").await;
    assert_eq!(told("ulimits_soft").to_string(), limit.trim());
}

#[tokio::test]
async fn a_stream_tells_what_a_list_does() {
    let node = node().await;
    let pod = node.pod("streamed").await;
    let (one, two) = (pod.idle("one").await, pod.idle("two").await);
    let mut runtime = RuntimeServiceClient::new(node.cri.channel());
    let asked = request(newest::StreamContainersRequest::default());
    let stream = runtime
        .stream_containers(asked)
        .await
        .expect("StreamContainers");
    let mut stream = stream.into_inner();
    let mut ids = Vec::new();
    while let Some(piece) = stream.message().await.expect("a piece") {
        assert!(!piece.containers.is_empty());
        ids.extend(piece.containers.into_iter().map(|container| container.id));
    }
    assert_eq!(ids, [two.clone(), one.clone()]);
    let asked = request(newest::StreamPodSandboxesRequest::default());
    let stream = runtime
        .stream_pod_sandboxes(asked)
        .await
        .expect("StreamPodSandboxes");
    let piece = stream
        .into_inner()
        .message()
        .await
        .expect("a piece")
        .expect("one");
    assert_eq!(piece.pod_sandboxes.len(), 1);
    let asked = request(newest::StreamContainerStatsRequest {
        filter: Some(newest::ContainerStatsFilter {
            id: one.clone(),
            ..Default::default()
        }),
    });
    let stream = runtime
        .stream_container_stats(asked)
        .await
        .expect("StreamContainerStats");
    let piece = stream
        .into_inner()
        .message()
        .await
        .expect("a piece")
        .expect("one");
    let [stats] = piece.container_stats.as_slice() else {
        panic!("{} containers", piece.container_stats.len());
    };
    assert_eq!(stats.attributes.as_ref().expect("who").id, one);
    let asked = request(newest::StreamPodSandboxStatsRequest::default());
    let stream = runtime
        .stream_pod_sandbox_stats(asked)
        .await
        .expect("StreamPodSandboxStats");
    let piece = stream
        .into_inner()
        .message()
        .await
        .expect("a piece")
        .expect("one");
    assert_eq!(
        piece.pod_sandbox_stats[0]
            .linux
            .as_ref()
            .expect("figures")
            .containers
            .len(),
        2
    );
    let asked = request(newest::StreamPodSandboxMetricsRequest {});
    let stream = runtime
        .stream_pod_sandbox_metrics(asked)
        .await
        .expect("StreamPodSandboxMetrics");
    let piece = stream
        .into_inner()
        .message()
        .await
        .expect("a piece")
        .expect("one");
    assert_eq!(piece.pod_sandbox_metrics[0].container_metrics.len(), 2);
    // Nothing to tell is no piece.
    let asked = request(newest::StreamContainersRequest {
        filter: Some(newest::ContainerFilter {
            id: "f".repeat(64),
            ..Default::default()
        }),
    });
    let stream = runtime
        .stream_containers(asked)
        .await
        .expect("StreamContainers");
    assert_eq!(stream.into_inner().message().await.expect("the end"), None);
}
