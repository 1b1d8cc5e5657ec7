//! Statistics and metrics, beside what the kernel's own files say just before and just after.

use std::collections::BTreeMap;

use quilt::proto::cri as newest;
use quilt::proto::cri::runtime_service_client::RuntimeServiceClient;
use tonic::{Code, Response, Status, Streaming};

use crate::support::client::request;
use crate::support::cri::*;
use crate::support::pod::{namespaces, resources, shell};
use crate::support::{Node, Pod, cgroup, eventually, in_time};

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

/// Bytes that have come in and gone out at `eth0`, as the container sees them.
async fn traffic(node: &Node, id: &str) -> (u64, u64) {
    let script = "awk '/eth0:/ {print $2, $10}' /proc/net/dev";
    let text = node.cri.output(id, script).await;
    let mut numbers = text.split_ascii_whitespace().map(|n| n.parse::<u64>());
    let mut next = || numbers.next().expect("two").expect("numbers");
    (next(), next())
}

async fn pod_stats(node: &Node, id: &str) -> Result<PodSandboxStats, Status> {
    let asked = request(PodSandboxStatsRequest {
        pod_sandbox_id: id.into(),
    });
    let answer = node.cri.runtime().pod_sandbox_stats(asked).await?;
    Ok(answer.into_inner().stats.expect("statistics"))
}

#[tokio::test]
async fn a_pod_is_told_with_its_network_and_its_containers() {
    let node = node().await;
    let pod = node.pod("net").await;
    let id = busy(&pod).await;
    let gateway = "ip route | awk '/default/ {print $3}'";
    let gateway = node.cri.output(&id, gateway).await;
    let packets = format!(
        "ping -q -c 200 -A -w 10 {} | grep -c ' 0% packet'",
        gateway.trim()
    );
    assert_eq!(node.cri.output(&id, &packets).await.trim(), "1");
    let (rx_before, tx_before) = traffic(&node, &id).await;
    let at = now_ns();
    let linux = eventually("a look of the sampler", || async {
        let stats = pod_stats(&node, &pod.id).await.expect("PodSandboxStats");
        let linux = stats.linux.expect("figures");
        let looked = linux.network.as_ref().map(|network| network.timestamp);
        (looked > Some(at)).then_some(linux)
    })
    .await;
    let (rx_after, tx_after) = traffic(&node, &id).await;
    let network = linux.network.expect("network");
    let default = network.default_interface.expect("a default interface");
    assert_eq!(
        (default.name.as_str(), network.interfaces.len()),
        ("eth0", 0)
    );
    let rx = value(default.rx_bytes.as_ref());
    let tx = value(default.tx_bytes.as_ref());
    assert!(
        (rx_before..=rx_after).contains(&rx),
        "{rx_before} {rx} {rx_after}"
    );
    assert!(
        (tx_before..=tx_after).contains(&tx),
        "{tx_before} {tx} {tx_after}"
    );
    assert!(tx > 200 * 64, "{tx}");
    let of = linux
        .containers
        .into_iter()
        .map(|c| c.attributes.expect("who").id);
    assert_eq!(of.collect::<Vec<_>>(), [id]);
    let processes = value(linux.process.expect("processes").process_count.as_ref());
    assert!((1..10).contains(&processes), "{processes}");
    let cpu = linux.cpu.expect("CPU").usage_core_nano_seconds;
    assert!(value(cpu.as_ref()) > 0);
    let error = pod_stats(&node, &"0".repeat(64)).await;
    assert_eq!(error.expect_err("no such pod").code(), Code::NotFound);
}

#[tokio::test]
async fn who_asks_right_after_a_start_is_told_figures() {
    // A look of the sampler comes by itself only long after this test.
    let mut node = Node::prepare("[stats]\ninterval_s = 600\n");
    node.spawn();
    node.answers().await;
    let pod = node.pod("new").await;
    for count in 0..5 {
        let id = pod.idle(&format!("main{count}")).await;
        let stats = node.cri.stats(&id).await.expect("ContainerStats");
        assert!(stats.cpu.is_some() && stats.memory.is_some(), "{stats:?}");
        let linux = pod_stats(&node, &pod.id).await.expect("PodSandboxStats");
        let linux = linux.linux.expect("figures");
        assert!(linux.network.is_some() && linux.cpu.is_some(), "{linux:?}");
        assert_eq!(linux.containers.len(), count + 1);
        assert!(linux.containers.iter().all(|one| one.memory.is_some()));
    }
    // Nor does a daemon that has just been started know nothing of what runs.
    node.kill();
    node.restart().await;
    let linux = pod_stats(&node, &pod.id).await.expect("PodSandboxStats");
    let containers = linux.linux.expect("figures").containers;
    assert!(containers.iter().all(|one| one.memory.is_some()));
}

/// A load of known size: half a core at most, which it would use whole; 64 MiB of memory; 10 MB of
/// a file.
const KNOWN: &str = "dd if=/dev/zero of=/written bs=1000 count=10000 conv=fsync 2>/dev/null
    exec awk 'BEGIN { s = \"x\"; while (length(s) < 67108864) s = s s
        print \"ready\"; fflush(); while (1) i++ }'";
const TOUCHED: u64 = 64 << 20;
const WRITTEN: u64 = 10_000_000;

/// CPU time and the moment at which it was read, ns.
fn cpu_told(stats: &ContainerStats) -> (u64, i64) {
    let cpu = stats.cpu.as_ref().expect("CPU");
    (value(cpu.usage_core_nano_seconds.as_ref()), cpu.timestamp)
}

/// Never more than that, and as much as the kernel has counted between two looks.
fn is_half_a_core(node: &Node, id: &str, (first, second): (&ContainerStats, &ContainerStats)) {
    let ((used, at), (used_then, then)) = (cpu_told(second), cpu_told(first));
    let elapsed = u64::try_from(at - then).expect("later");
    let rate = value(
        second
            .cpu
            .as_ref()
            .and_then(|cpu| cpu.usage_nano_cores.as_ref()),
    );
    let counted = u128::from(used - used_then) * 1_000_000_000 / u128::from(elapsed);
    assert!((50_000_000..=560_000_000).contains(&counted), "{counted}");
    // On a slow machine there may have been a look in between.
    if elapsed < 1_500_000_000 {
        assert!(u128::from(rate).abs_diff(counted) <= 1, "{rate} {counted}");
    }
    let throttled = kernel(node, id, "cpu", "cpu.stat", "cpu.stat", "nr_throttled ");
    assert!(throttled > 0, "it would use the core whole");
}

#[tokio::test]
async fn a_load_of_known_size_is_told_in_statistics_and_metrics() {
    let node = node().await;
    let pod = node.pod("metrics").await;
    let mut config = shell("main", KNOWN);
    *resources(&mut config) = LinuxContainerResources {
        cpu_period: 20_000,
        cpu_quota: 10_000,
        memory_limit_in_bytes: 200 << 20,
        ..Default::default()
    };
    let id = pod.run(&config).await;
    let log = || pod.log(&config).iter().any(|line| line.content == b"ready");
    eventually("it is ready", || {
        let ready = log();
        async move { ready.then_some(()) }
    })
    .await;
    let gateway = "ip route | awk '/default/ {print $3}'";
    let gateway = node.cri.output(&id, gateway).await;
    let ping = format!("ping -q -c 1000 -A -w 60 {} | tail -n 2", gateway.trim());
    let pinged = node.cri.output(&id, &ping).await;
    assert!(pinged.contains("1000 packets received"), "{pinged}");

    let first = after(&node, &id, now_ns()).await;
    let second = after(&node, &id, first.cpu.as_ref().expect("CPU").timestamp).await;
    is_half_a_core(&node, &id, (&first, &second));
    let memory = second.memory.as_ref().expect("memory");
    let rss = value(memory.rss_bytes.as_ref());
    assert!((TOUCHED..TOUCHED + (8 << 20)).contains(&rss), "{memory:?}");
    assert!(value(memory.working_set_bytes.as_ref()) >= rss);
    let layer = eventually("its layer has been measured", || async {
        let stats = node.cri.stats(&id).await.expect("ContainerStats");
        let layer = stats
            .writable_layer
            .filter(|layer| value(layer.used_bytes.as_ref()) > 0);
        layer.filter(|layer| value(layer.used_bytes.as_ref()) >= WRITTEN)
    })
    .await;
    let written = value(layer.used_bytes.as_ref());
    assert!(written < WRITTEN + (1 << 20), "{written}");

    let keys = label_keys(&node).await;
    let told = told(&node, &keys, (&pod.id, &id)).await;
    let metric = |name: &str| told[&format!("container_{name}")].1;
    assert!((TOUCHED..TOUCHED + (8 << 20)).contains(&metric("memory_rss")));
    assert!(metric("cpu_cfs_throttled_periods_total") > 0);
    let limit = metric("spec_cpu_quota") as f64 / metric("spec_cpu_period") as f64;
    assert!((limit - 0.5).abs() < 1e-9, "{limit}");
    // Echoes, replies, and a few of the network's own.
    for name in [
        "network_receive_packets_total",
        "network_transmit_packets_total",
    ] {
        assert!(
            (1_000..1_100).contains(&metric(name)),
            "{name}: {}",
            metric(name)
        );
    }
    // Where the disk's controller counts this container, it has counted all of it.
    let writes = told.get("container_fs_writes_bytes_total");
    assert!(
        writes.is_none_or(|(_, bytes)| *bytes >= WRITTEN),
        "{writes:?}"
    );
}

#[tokio::test]
async fn the_network_of_the_node_is_no_pods() {
    let node = node().await;
    let mut config = node.pod_config("host");
    namespaces(&mut config).network = NamespaceMode::Node as i32;
    let host = node.pod_from(config).await;
    host.idle("idle").await;
    let linux = eventually("a look of the sampler", || async {
        let stats = pod_stats(&node, &host.id).await.expect("PodSandboxStats");
        stats.linux.filter(|linux| linux.cpu.is_some())
    })
    .await;
    assert_eq!(linux.network, None);
}

/// Each metric's name, whose container it names, and its value.
type Told = BTreeMap<String, (String, u64)>;

/// The labels of each metric, by its name.
async fn label_keys(node: &Node) -> BTreeMap<String, Vec<String>> {
    let asked = request(ListMetricDescriptorsRequest {});
    let descriptors = node.cri.runtime().list_metric_descriptors(asked).await;
    let descriptors = descriptors.expect("ListMetricDescriptors").into_inner();
    let descriptors = descriptors.descriptors.into_iter();
    descriptors.map(|d| (d.name, d.label_keys)).collect()
}

/// The metrics of the one pod with its one container, their labels checked against `keys`.
async fn told(node: &Node, keys: &BTreeMap<String, Vec<String>>, ids: (&str, &str)) -> Told {
    let asked = request(ListPodSandboxMetricsRequest {});
    let listed = node.cri.runtime().list_pod_sandbox_metrics(asked).await;
    let listed = listed.expect("ListPodSandboxMetrics").into_inner();
    let [pod] = listed.pod_metrics.as_slice() else {
        panic!("{} pods", listed.pod_metrics.len());
    };
    let [container] = pod.container_metrics.as_slice() else {
        panic!("{} containers", pod.container_metrics.len());
    };
    assert_eq!((&*pod.pod_sandbox_id, &*container.container_id), ids);
    let mut told = Told::new();
    for metric in pod.metrics.iter().chain(&container.metrics) {
        let keys = &keys[&metric.name];
        assert_eq!(keys.len(), metric.label_values.len(), "{metric:?}");
        let labels = keys.iter().map(String::as_str);
        let labels: BTreeMap<_, _> = labels.zip(&metric.label_values).collect();
        assert_eq!(
            (&**labels["pod"], &**labels["namespace"]),
            ("metrics", "e2e")
        );
        let value = metric.value.as_ref().expect("a value").value;
        told.insert(metric.name.clone(), (labels["container"].clone(), value));
    }
    told
}

#[tokio::test]
async fn metrics_have_cadvisors_names_and_the_kernels_values() {
    let node = node().await;
    let pod = node.pod("metrics").await;
    let id = busy(&pod).await;
    after(&node, &id, now_ns()).await;
    let keys = label_keys(&node).await;
    assert_eq!(keys.len(), 56, "{:?}", keys.keys());
    let told = told(&node, &keys, (&pod.id, &id)).await;
    // What this machine's devices and kernel may not count is left out, and nothing else.
    let may_lack = [
        "_blkio_",
        "_fs_reads_",
        "_fs_writes_",
        "_hugetlb_",
        "_pressure_",
    ];
    for name in keys.keys().filter(|name| !told.contains_key(*name)) {
        assert!(
            may_lack.iter().any(|part| name.contains(part)),
            "{name} is missing"
        );
    }
    for (name, (container, _)) in &told {
        let of = if name.contains("_network_") {
            "POD"
        } else {
            "main"
        };
        assert_eq!(container, of, "{name}");
    }
    let value = |name: &str| told[&format!("container_{name}")].1;
    assert_eq!(value("spec_cpu_quota"), 50_000);
    assert_eq!(value("spec_cpu_shares"), 512);
    assert_eq!(value("spec_memory_limit_bytes"), 200 << 20);
    assert!(value("memory_rss") > 20_000_000);
    assert!(value("memory_max_usage_bytes") >= value("memory_rss"));
    assert!((1..10).contains(&value("processes")));
    assert!(value("threads") >= value("processes"));
    assert!(value("file_descriptors") >= 3);
    let status = node.cri.status(&id).await.expect("ContainerStatus");
    let started_s = u64::try_from(status.started_at / 1_000_000_000);
    assert_eq!(value("start_time_seconds"), started_s.expect("a time"));
    let limit = node.cri.output(&id, "ulimit -n").await;
    assert_eq!(value("ulimits_soft").to_string(), limit.trim());
}

/// All messages of a stream.
async fn pieces<T>(stream: Result<Response<Streaming<T>>, Status>) -> Vec<T> {
    let mut stream = stream.expect("a stream").into_inner();
    let mut pieces = Vec::new();
    while let Some(piece) = in_time("a piece", stream.message()).await.expect("a piece") {
        pieces.push(piece);
    }
    pieces
}

#[tokio::test]
async fn a_stream_tells_what_a_list_does() {
    let node = node().await;
    let pod = node.pod("streamed").await;
    let (one, two) = (pod.idle("one").await, pod.idle("two").await);
    let mut runtime = RuntimeServiceClient::new(node.cri.channel());
    let asked = request(newest::StreamContainersRequest::default());
    let containers = pieces(runtime.stream_containers(asked).await).await;
    let ids = containers.into_iter().flat_map(|piece| piece.containers);
    let ids: Vec<_> = ids.map(|container| container.id).collect();
    assert_eq!(ids, [two, one.clone()]);
    let asked = request(newest::StreamPodSandboxesRequest::default());
    let pods = pieces(runtime.stream_pod_sandboxes(asked).await).await;
    assert_eq!(pods[0].pod_sandboxes[0].id, pod.id);
    let asked = request(newest::StreamContainerStatsRequest {
        filter: Some(newest::ContainerStatsFilter {
            id: one.clone(),
            ..Default::default()
        }),
    });
    let stats = pieces(runtime.stream_container_stats(asked).await).await;
    let [stats] = stats[0].container_stats.as_slice() else {
        panic!("{} containers", stats[0].container_stats.len());
    };
    assert_eq!(stats.attributes.as_ref().expect("who").id, one);
    let asked = request(newest::StreamPodSandboxStatsRequest::default());
    let stats = pieces(runtime.stream_pod_sandbox_stats(asked).await).await;
    let linux = stats[0].pod_sandbox_stats[0].linux.as_ref();
    assert_eq!(linux.expect("figures").containers.len(), 2);
    let asked = request(newest::StreamPodSandboxMetricsRequest {});
    let metrics = pieces(runtime.stream_pod_sandbox_metrics(asked).await).await;
    assert_eq!(metrics[0].pod_sandbox_metrics[0].container_metrics.len(), 2);
    // Nothing to tell is no piece.
    let asked = request(newest::StreamContainersRequest {
        filter: Some(newest::ContainerFilter {
            id: "f".repeat(64),
            ..Default::default()
        }),
    });
    let none = pieces(runtime.stream_containers(asked).await).await;
    assert_eq!(none, []);
}
