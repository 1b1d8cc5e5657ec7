//! The pod network of the node as a whole: the bridge with its addresses, and the packet rules.
//!
//! ```text
//! configuration, kubelet's range, rows of addresses and ports ──► as it should be
//!       ▲                                                              │ put in place
//!       └──────── read again: nothing has changed meanwhile? ◄─────────┘
//! ```
//!
//! Put in place at start, when somebody took something out of our table (the kernel tells), when
//! kubelet tells another range, and by the sweep. A pod's own ports are opened and closed with it,
//! one element each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};

use super::{Back, ReconcileError, blocking, pod_network, prepared};
use crate::fault;
use crate::id::{ObjectKey, SandboxId};
use crate::lifecycle::egress;
use crate::lifecycle::port::{HostPort, host_ports};
use crate::network::{
    self, BridgeSpec, EgressPolicy, EgressRule, NetworkError, PortForward, RuleSpec, RuleWatch,
};
use crate::state::health::Report;
use crate::state::network::Allocation;
use crate::state::policy::PodPolicy;
use crate::state::port::PortMapping;
use crate::state::sandbox::Sandbox;
use crate::sys::async_fd;

/// How often what should be is read again after it was put in place. Whoever still changes it
/// afterwards sees to its own part.
const ROUNDS: usize = 16;
/// Between the first word of a change and the look at it: changes come many at a time.
const BURST: Duration = Duration::from_millis(20);
/// Before listening is tried again after it failed.
const LISTEN_AGAIN: Duration = Duration::from_secs(60);

/// The network as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    gateway: Ipv4Net,
    others: Vec<IpNet>,
    mtu: u32,
    /// The packet rules.
    pub(super) rules: RuleSpec,
}

impl Wanted {
    /// Whether only ports and policies of pods are others.
    fn differs_by_pods_alone(&self, other: &Self) -> bool {
        let of_the_node = |wanted: &Self| {
            let mut wanted = wanted.clone();
            wanted.rules.forwards.clear();
            wanted.rules.policies.clear();
            wanted
        };
        of_the_node(self) == of_the_node(other)
    }

    /// The bridge.
    pub(super) fn bridge(&self) -> BridgeSpec<'_> {
        BridgeSpec {
            name: &self.rules.bridge,
            gateway: self.gateway,
            others: &self.others,
            mtu: self.mtu,
            alias: &self.rules.alias,
        }
    }
}

/// Reads how the network should be.
pub(super) async fn wanted(back: &Back) -> Result<Wanted, ReconcileError> {
    let allocations = back.store.allocations().await?;
    let ports = if back.network.host_ports {
        back.store.wanted_ports().await?
    } else {
        Vec::new()
    };
    let policies = back.store.wanted_policies().await?;
    with_rows(back, &allocations, &ports, policies).await
}

/// How the network should be with these addresses, ports and policies.
async fn with_rows(
    back: &Back,
    allocations: &[Allocation],
    ports: &[PortMapping],
    policies: Vec<PodPolicy>,
) -> Result<Wanted, ReconcileError> {
    let config = &back.network;
    let pool = back.store.pool_now(&prepared::pool(config)).await?;
    let gateway = Ipv4Net::new_assert(pool.gateway, pool.subnet.prefix_len());
    let mut others = BTreeSet::new();
    if let Some((gateway, net)) = pool.gateway6().zip(pool.subnet6) {
        let net = Ipv6Net::new_assert(gateway, net.prefix_len());
        others.insert(IpNet::V6(net));
    }
    for allocation in allocations {
        others.extend(gateways(allocation));
    }
    let subnets: BTreeSet<IpNet> = others
        .iter()
        .chain([&IpNet::V4(gateway)])
        .map(IpNet::trunc)
        .collect();
    Ok(Wanted {
        gateway,
        others: others.into_iter().collect(),
        mtu: config.mtu,
        rules: RuleSpec {
            bridge: config.bridge.clone(),
            alias: back.paths.marker(),
            subnets: subnets.into_iter().collect(),
            direct: config.masquerade_except.clone(),
            masquerade: config.masquerade,
            host_ports: config.host_ports,
            forwards: all_forwards(ports, allocations).into_keys().collect(),
            policies: policies.into_iter().map(as_rules).collect(),
        },
    })
}

/// The bridge's addresses that a pod needs.
fn gateways(allocation: &Allocation) -> impl Iterator<Item = IpNet> {
    let ipv4 = Ipv4Net::new(allocation.gateway, allocation.prefix_length);
    let ipv6 = allocation
        .ipv6
        .and_then(|given| Ipv6Net::new(given.gateway, given.prefix_length).ok());
    ipv4.ok()
        .map(IpNet::V4)
        .into_iter()
        .chain(ipv6.map(IpNet::V6))
}

/// What a port of a pod is in the rules: one entry for each family that it is about.
fn forwards(port: &HostPort, allocation: &Allocation) -> Vec<PortForward> {
    let ipv6 = allocation.ipv6.map(|given| IpAddr::V6(given.address));
    let pods = [Some(IpAddr::V4(allocation.address)), ipv6];
    pods.into_iter()
        .flatten()
        .filter(|pod| {
            port.address
                .is_none_or(|address| address.is_ipv4() == pod.is_ipv4())
        })
        .map(|pod| PortForward {
            protocol: port.protocol.number(),
            address: port.address.filter(|address| !address.is_unspecified()),
            port: port.port,
            pod: SocketAddr::new(pod, port.container_port),
        })
        .collect()
}

/// A policy as the driver takes it.
fn as_rules(policy: PodPolicy) -> EgressPolicy {
    let rules = policy.allowed.into_iter().map(|allowed| EgressRule {
        net: allowed.net,
        protocol: allowed.protocol,
        ports: allowed.ports,
    });
    EgressPolicy {
        link: policy.link,
        rules: rules.collect(),
    }
}

/// A policy in the words of the sweep.
pub(super) fn policy_name(link: &str) -> String {
    format!("egress policy of {link}")
}

/// The entries of all these ports, and whose they are.
fn all_forwards(
    ports: &[PortMapping],
    allocations: &[Allocation],
) -> BTreeMap<PortForward, String> {
    let by_pod: BTreeMap<&str, &Allocation> = allocations
        .iter()
        .map(|allocation| (allocation.sandbox_id.as_str(), allocation))
        .collect();
    let mut all = BTreeMap::new();
    for mapping in ports {
        if let Some(allocation) = by_pod.get(mapping.sandbox_id.as_str()) {
            let entries = forwards(&mapping.port, allocation).into_iter();
            all.extend(entries.map(|entry| (entry, mapping.sandbox_id.clone())));
        }
    }
    all
}

/// Every port that may be open and every policy that may be in place, as text, and whether they
/// must be.
pub(super) async fn known_ports(back: &Back) -> Result<BTreeMap<String, bool>, ReconcileError> {
    let allocations = back.store.allocations().await?;
    let ready: BTreeSet<PortForward> = all_forwards(&back.store.ready_ports().await?, &allocations)
        .into_keys()
        .collect();
    let all = all_forwards(&back.store.all_ports().await?, &allocations);
    let ports = all
        .into_keys()
        .map(|entry| (entry.to_string(), ready.contains(&entry)));
    let ready: BTreeSet<String> = back
        .store
        .ready_policies()
        .await?
        .into_iter()
        .map(|policy| policy.link)
        .collect();
    let policies = allocations.iter().map(|allocation| {
        let link = &allocation.host_link;
        (policy_name(link), ready.contains(link))
    });
    Ok(ports.chain(policies).collect())
}

/// Puts the bridge and the rules in place, as often as what they should be changes meanwhile.
pub(super) async fn ensure(back: &Back) -> Result<(), ReconcileError> {
    if !pod_network::is_native(back).await? {
        return Ok(());
    }
    let mut target = wanted(back).await?;
    put_in_place(back, target.clone()).await?;
    for _ in 0..ROUNDS {
        let now = wanted(back).await?;
        if now == target {
            break;
        }
        if now.differs_by_pods_alone(&target) {
            follow(back, &target, &now).await?;
        } else {
            put_in_place(back, now.clone()).await?;
        }
        target = now;
    }
    Ok(())
}

async fn put_in_place(back: &Back, target: Wanted) -> Result<(), ReconcileError> {
    let back = back.clone();
    blocking(move || {
        network::ensure_bridge(&target.bridge())?;
        fault::blocking_point("network.bridge_up")?;
        network::ensure_rules(&back.netfilter, &target.rules)?;
        fault::blocking_point("network.rules_up")?;
        Ok(())
    })
    .await
}

/// Pods have come and gone while rules were put in place that knew nothing of it: their ports are
/// opened and closed once more. Policies are put in place by the pods, and taken away with links.
async fn follow(back: &Back, before: &Wanted, now: &Wanted) -> Result<(), ReconcileError> {
    let beside = |these: &Wanted, those: &Wanted| -> Vec<PortForward> {
        let those: BTreeSet<_> = those.rules.forwards.iter().collect();
        let these = these.rules.forwards.iter();
        these.filter(|one| !those.contains(one)).copied().collect()
    };
    let (gone, come) = (beside(before, now), beside(now, before));
    let (back, bridge) = (back.clone(), now.rules.bridge.clone());
    blocking(move || {
        network::close_ports(&back.netfilter, &bridge, &gone)?;
        network::open_ports(&back.netfilter, &bridge, &come)?;
        Ok(())
    })
    .await
}

/// [`ensure`]; what goes wrong is what Status tells of the network.
pub async fn mend(back: &Back, health: &watch::Sender<Report>) {
    let problem = match ensure(back).await {
        Ok(()) => None,
        // The database's trouble is not the network's, and is told of by itself.
        Err(ReconcileError::State(error)) => {
            let error = ReconcileError::State(error).full_text();
            tracing::warn!(error, "the pod network could not be looked at");
            return;
        }
        Err(error) => Some(error.full_text()),
    };
    if let Some(problem) = &problem {
        tracing::error!(problem, "pods cannot be connected");
    }
    health.send_modify(|report| report.network_problem = problem);
}

/// Lets the node's ports lead to a pod, if it asks for any. Its link is up.
pub(super) async fn open_ports(
    back: &Back,
    sandbox: &Sandbox,
    allocation: &Allocation,
) -> Result<(), ReconcileError> {
    let ports = host_ports(&sandbox.spec).unwrap_or_default();
    if ports.is_empty() || !back.network.host_ports {
        return Ok(());
    }
    let entries: Vec<_> = ports
        .iter()
        .flat_map(|port| forwards(port, allocation))
        .collect();
    let (back_too, opened) = (back.clone(), entries.clone());
    let there = blocking(move || {
        let bridge = &back_too.network.bridge;
        Ok(network::open_ports(&back_too.netfilter, bridge, &opened)?)
    });
    if !there.await? {
        ensure(back).await?;
    }
    let back = back.clone();
    blocking(move || Ok(network::forget_before(&back.netfilter, &entries)?)).await
}

/// Lets the pod send no more than its policy allows, if it has one. Its link is there, and nothing
/// has run in it.
pub(super) async fn open_policy(
    back: &Back,
    sandbox: &Sandbox,
    allocation: &Allocation,
) -> Result<(), ReconcileError> {
    // Checked by the front.
    let Some(allowed) = egress::of(&sandbox.spec.annotations).unwrap_or_default() else {
        return Ok(());
    };
    let policy = as_rules(PodPolicy {
        link: allocation.host_link.clone(),
        allowed,
    });
    let back = back.clone();
    blocking(move || {
        let (bridge, marker) = (&back.network.bridge, back.paths.marker());
        Ok(network::open_policy(
            &back.netfilter,
            bridge,
            &marker,
            &policy,
        )?)
    })
    .await?;
    fault::point("sandbox.policy").await.map_err(Into::into)
}

/// Nothing runs in the pod any more: its policy goes, if it has one.
pub(super) async fn close_policy(back: &Back, sandbox: &Sandbox) -> Result<(), ReconcileError> {
    if !sandbox.spec.annotations.contains_key(egress::EGRESS) {
        return Ok(());
    }
    let Some(allocation) = back.store.allocation(&sandbox.id).await? else {
        return Ok(());
    };
    let policy = EgressPolicy {
        link: allocation.host_link,
        rules: Vec::new(),
    };
    let back = back.clone();
    blocking(move || {
        let bridge = &back.network.bridge;
        Ok(network::close_policy(&back.netfilter, bridge, &policy)?)
    })
    .await
}

/// Nothing leads to the pod any more. Its rows still hold the ports, so they are nobody else's.
pub(super) async fn close_ports(back: &Back, id: &SandboxId) -> Result<(), ReconcileError> {
    let ports = back.store.ports(id).await?;
    if ports.is_empty() || !back.network.host_ports {
        return Ok(());
    }
    let Some(allocation) = back.store.allocation(id).await? else {
        return Ok(());
    };
    let entries: Vec<_> = ports
        .iter()
        .flat_map(|port| forwards(port, &allocation))
        .collect();
    let back = back.clone();
    blocking(move || {
        network::close_ports(&back.netfilter, &back.network.bridge, &entries)?;
        Ok(network::forget_closed(&back.netfilter, &entries)?)
    })
    .await
}

/// Puts things right when they have changed, until `stop` turns true.
pub async fn run(
    back: Back,
    health: watch::Sender<Report>,
    range_told: Arc<Notify>,
    mut stop: watch::Receiver<bool>,
) {
    let mut listener = Listener::begin(&back);
    if listener.is_some() {
        // What happened between the start and now was not heard.
        look_again(&back, &health).await;
    }
    loop {
        let heard = async {
            match &mut listener {
                Some(listener) => listener.something_went().await,
                None => {
                    tokio::time::sleep(LISTEN_AGAIN).await;
                    Ok(false)
                }
            }
        };
        tokio::select! {
            _ = stop.changed() => return,
            () = range_told.notified() => {
                mend(&back, &health).await;
                prepare_anew(&back).await;
            }
            heard = heard => match heard {
                Ok(true) => look_again(&back, &health).await,
                Ok(false) if listener.is_some() => {}
                other => {
                    if let Err(error) = other {
                        tracing::warn!(error = %error, "changes of the rules are not heard");
                    }
                    listener = Listener::begin(&back);
                    // What happened meanwhile was not heard.
                    if listener.is_some() {
                        look_again(&back, &health).await;
                    }
                }
            },
        }
    }
}

/// Networks that wait for a pod are of the former range.
async fn prepare_anew(back: &Back) {
    let keys = vec![ObjectKey::Prepared];
    if let Err(error) = back.observed.enqueue(keys).await {
        tracing::warn!(%error, "the prepared networks are of another range; no pod takes them");
    }
}

/// Mends the rules if they are not as they should be.
async fn look_again(back: &Back, health: &watch::Sender<Report>) {
    tokio::time::sleep(BURST).await;
    match lacking_twice(back).await {
        Ok(None) => {}
        Ok(Some(problem)) => {
            tracing::warn!(
                problem,
                "somebody changed the packet rules; they are put back"
            );
            let told = back.observed.node_event("rules_mended", problem).await;
            if let Err(error) = told {
                tracing::warn!(%error, "an event is lost");
            }
            mend(back, health).await;
        }
        Err(error) => {
            tracing::warn!(
                error = error.full_text(),
                "the packet rules cannot be looked at"
            );
        }
    }
}

/// What two looks have shown not to be as it should be: a pod may have come down between the
/// reading of the rows and a look.
async fn lacking_twice(back: &Back) -> Result<Option<String>, ReconcileError> {
    let first = lacking(back).await?;
    if first.is_empty() {
        return Ok(None);
    }
    let mut problems = lacking(back).await?;
    problems.retain(|problem| first.contains(problem));
    Ok((!problems.is_empty()).then(|| problems.join("; ")))
}

async fn lacking(back: &Back) -> Result<Vec<String>, ReconcileError> {
    if !pod_network::is_native(back).await? {
        return Ok(Vec::new());
    }
    let allocations = back.store.allocations().await?;
    // Pods on their way up open their ports themselves, in a moment.
    let ports = if back.network.host_ports {
        back.store.ready_ports().await?
    } else {
        Vec::new()
    };
    let policies = back.store.ready_policies().await?;
    let rules = with_rows(back, &allocations, &ports, policies).await?.rules;
    let back = back.clone();
    blocking(move || lacks(&back, &rules)).await
}

/// What is not as it should be.
fn lacks(back: &Back, wanted: &RuleSpec) -> Result<Vec<String>, ReconcileError> {
    if !wanted.is_wanted() {
        return Ok(Vec::new());
    }
    let seen = network::look_at_rules(&back.netfilter, wanted)?;
    let closed = wanted
        .forwards
        .iter()
        .filter(|entry| !seen.forwards.contains(entry));
    let mut problems = seen.problems.clone();
    problems.extend(closed.map(|entry| format!("no rule for {entry}")));
    let is_whole = |policy: &&EgressPolicy| seen.policies.get(&policy.link) == Some(&true);
    let open = wanted.policies.iter().filter(|policy| !is_whole(policy));
    problems.extend(open.map(|policy| format!("no {}", policy_name(&policy.link))));
    Ok(problems)
}

/// Hears of changes of the rules.
struct Listener {
    watch: RuleWatch,
    readiness: AsyncFd<std::os::fd::OwnedFd>,
}

impl Listener {
    /// `None` where the kernel does not tell.
    fn begin(back: &Back) -> Option<Self> {
        match Self::open(&back.network.bridge) {
            Ok(listener) => Some(listener),
            Err(error) => {
                let error = error.full_text();
                tracing::warn!(error, "changes of the rules are found by the sweep alone");
                None
            }
        }
    }

    fn open(bridge: &str) -> Result<Self, ReconcileError> {
        use std::os::fd::AsFd;
        let watch = RuleWatch::begin(bridge)?;
        let descriptor = watch.as_fd().try_clone_to_owned();
        let register = descriptor.and_then(async_fd::register);
        let readiness = register.map_err(ReconcileError::file("listen on", "a netlink socket"))?;
        Ok(Self { watch, readiness })
    }

    async fn something_went(&mut self) -> Result<bool, NetworkError> {
        match self.readiness.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            Err(source) => {
                let action = "wait for changes of the packet rules";
                return Err(NetworkError::System { action, source });
            }
        }
        self.watch.something_went()
    }
}
