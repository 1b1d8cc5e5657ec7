//! The daemon dies between any two messages to the kernel about a pod's network: what was done by
//! then is completed or taken back, and a retry succeeds.

use std::net::SocketAddr;

use super::*;
use crate::support::faults::Faults;
use crate::support::host::ipv4;
use crate::support::is_soak;

/// Passed once for each message, or batch of messages, that was sent: by then the kernel has done
/// it.
const POINT: &str = "netlink.sent";
const PORT: u16 = 8080;

/// A pod that needs everything: two addresses, a port, limits and a policy.
fn demanding(node: &Node) -> PodSandboxConfig {
    let asked = [
        ("kubernetes.io/ingress-bandwidth", "100M"),
        ("kubernetes.io/egress-bandwidth", "100M"),
        ("network.quilt/egress", "192.0.2.7"),
    ];
    PodSandboxConfig {
        port_mappings: vec![port(Protocol::Tcp, "", PORT.into(), 80)],
        ..annotated(node, "demanding", &asked)
    }
}

/// Makes a call while the daemon is to die after its message number `nth`. Returns whether it did,
/// and starts it again then.
async fn dies_at(node: &mut Node, faults: &Faults, nth: usize, call: impl AsyncFn(&Node)) -> bool {
    faults.kill(POINT, nth);
    call(node).await;
    faults.release();
    // Messages behind the answer count as well. Whoever was at the point just now has passed it, or
    // died there, by the time that a check is through.
    let _passed = node.operate(&["check"]);
    if !faults.has_fired(POINT) {
        return false;
    }
    eventually("the daemon dies", || {
        let ended = node.ended();
        async move { ended }
    })
    .await;
    node.restart().await;
    true
}

impl Scene {
    async fn new() -> Self {
        let lan = Lan::new(2);
        let mut node = Node::prepare_on(&lan.hosts[0], "");
        node.configure_network("subnet6 = \"fd00:5:5::/64\"");
        let faults = Faults::of(&mut node);
        node.restart().await;
        Self { lan, node, faults }
    }

    /// All of the pod is there.
    async fn is_whole(&self, nth: usize, config: &PodSandboxConfig) -> Guest {
        let id = self.node.cri.run_pod(config).await;
        let id = id.unwrap_or_else(|error| panic!("after message {nth}: {error}"));
        let pod = Guest::of(&self.node, id).await;
        let _server = pod.net.serve(80, "pod");
        let at_port = SocketAddr::new(ipv4(1), PORT);
        let said = self.lan.hosts[1].ask_tcp(at_port);
        let said = said.unwrap_or_else(|error| panic!("after message {nth}: {error}"));
        assert_eq!(said, "pod 192.0.2.2", "after message {nth}");
        self.nothing_is_wrong(nth);
        pod
    }

    fn nothing_is_wrong(&self, nth: usize) {
        let output = self.node.operate(&["check"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "after message {nth}: {text}");
    }
}

/// A daemon that can be killed at a point, with another host beside.
struct Scene {
    lan: Lan,
    node: Node,
    faults: Faults,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_between_two_messages_to_the_kernel_is_made_good() {
    // Each restart takes its time; the long form is killed at every message.
    let step = if is_soak() { 1 } else { 7 };
    let mut scene = Scene::new().await;
    let (mut coming, mut going) = (true, true);
    let mut deaths = 0;
    for nth in (1..).step_by(step) {
        let config = demanding(&scene.node);
        if coming {
            coming = dies_at(&mut scene.node, &scene.faults, nth, async |node| {
                let _cut_off = node.cri.run_pod(&config).await;
            })
            .await;
            deaths += usize::from(coming);
        }
        let pod = scene.is_whole(nth, &config).await;
        if going {
            going = dies_at(&mut scene.node, &scene.faults, nth, async |node| {
                let _cut_off = node.cri.stop_pod(&pod.id).await;
                let _cut_off = node.cri.remove_pod(&pod.id).await;
                // The rest is done behind the answers.
                eventually("its link is gone, or the daemon", || async {
                    let rows = node.column("SELECT address FROM network_allocations", "address");
                    (rows.is_empty() || node.cri.version().await.is_err()).then_some(())
                })
                .await;
            })
            .await;
            deaths += usize::from(going);
        }
        pod.go(&scene.node).await;
        eventually("nothing of the pod is left", || async {
            let links = scene.lan.hosts[0].links();
            let rows = scene
                .node
                .column("SELECT address FROM network_allocations", "address");
            let ours = links.iter().filter(|link| link.starts_with(['q', 'i']));
            let ours = ours.filter(|link| **link != scene.node.names.bridge);
            (rows.is_empty() && ours.count() == 0).then_some(())
        })
        .await;
        let closed = scene.lan.hosts[1].ask_tcp(SocketAddr::new(ipv4(1), PORT));
        assert!(closed.is_err(), "after message {nth}: {closed:?}");
        scene.nothing_is_wrong(nth);
        if !coming && !going {
            break;
        }
    }
    assert!(deaths > 2, "{deaths} deaths: the point is hardly met");
    nothing_is_left(&scene.lan, scene.node);
}
