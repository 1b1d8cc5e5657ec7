//! Exits: whatever happens to the daemon meanwhile, each is recorded once, in order, with its exact
//! code and time.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quilt::proto::admin::admin_client::AdminClient;
use quilt::proto::admin::{Event, ListEventsRequest};

use crate::support::cri::*;
use crate::support::database::WriteLock;
use crate::support::pod::{exited, namespaces, shell};
use crate::support::{Node, Pod, client, eventually, is_soak, process};

/// Containers of a round. All of them are held by the shim until they are removed.
const BATCH: usize = 60;
/// Rounds of the long form, which comes to a thousand containers.
const ROUNDS_SOAK: usize = 17;
/// Deaths of the daemon in a round.
const KILLS: usize = 4;
const PODS: usize = 4;

/// A small generator, so that a failing run says with what it can be repeated.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let seed = now.map_or(1, |now| now.as_nanos() as u64) | 1;
        eprintln!("seed {seed}");
        Self(seed)
    }

    /// Below `end`.
    fn below(&mut self, end: u64) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// A container that ends by itself, and how.
struct Mortal {
    id: String,
    name: String,
    code: i32,
}

/// Where containers leave the mark of their end.
fn ends(node: &Node) -> Mount {
    Mount {
        container_path: "/ends".into(),
        host_path: node.path("volumes").display().to_string(),
        ..Default::default()
    }
}

/// Runs for some milliseconds, touches a file of the node as the last thing it does, and ends with
/// the code.
async fn mortal(node: &Node, pod: &Pod, name: String, code: i32, ms: u64) -> Mortal {
    let us = ms * 1000;
    let mut config = shell(
        &name,
        &format!("usleep {us}; : > /ends/{name}; exit {code}"),
    );
    config.mounts.push(ends(node));
    let id = pod.create(&config).await;
    Mortal { id, name, code }
}

/// Everything in the node's history, oldest first.
async fn events(node: &Node) -> Vec<Event> {
    let socket = node.names.state().join("admin.sock");
    let mut admin = AdminClient::new(client::channel(&socket));
    let mut all: Vec<Event> = Vec::new();
    loop {
        let request = ListEventsRequest {
            after_sequence: all.last().map_or(0, |event| event.sequence),
            limit: 10_000,
            ..Default::default()
        };
        let answer = admin.list_events(client::request(request)).await;
        let more = answer.expect("ListEvents").into_inner().events;
        if more.is_empty() {
            return all;
        }
        all.extend(more);
    }
}

/// What the shim has written down and the daemon may not have heard: time and code by container.
fn journal(node: &Node) -> HashMap<String, (i64, i64)> {
    let text = fs::read_to_string(node.names.state().join("shim/exits"));
    let text = text.expect("the shim's journal");
    let records = text.lines().filter_map(|line| {
        let (json, _checksum) = line.strip_prefix("exit ")?.rsplit_once(' ')?;
        let record: serde_json::Value = serde_json::from_str(json).ok()?;
        let id = record["id"].as_str()?.to_owned();
        Some((id, (record["at_ns"].as_i64()?, record["code"].as_i64()?)))
    });
    records.collect()
}

/// One exit as all sources tell it.
async fn assert_exact(node: &Node, mortal: &Mortal, journaled: &HashMap<String, (i64, i64)>) {
    let Mortal { id, name, code } = mortal;
    let status = exited(&node.cri, id).await;
    assert_eq!(status.exit_code, *code, "{status:?}");
    let reason = if *code == 0 { "Completed" } else { "Error" };
    assert_eq!(status.reason, reason, "{status:?}");
    assert!(status.started_at > 0, "{status:?}");
    assert!(status.started_at <= status.finished_at, "{status:?}");
    // The container's own last act, by the node's clock, which marks files to a tick or so.
    let mark = fs::metadata(node.path("volumes").join(name)).expect("it came to its end");
    let touched = mark.mtime() * 1_000_000_000 + mark.mtime_nsec();
    assert!(
        touched <= status.finished_at,
        "it touched at {touched}: {status:?}"
    );
    if let Some((at_ns, journaled)) = journaled.get(id) {
        assert_eq!(status.finished_at, *at_ns, "{status:?}");
        assert_eq!(i64::from(status.exit_code), *journaled);
    }
}

/// Every exit is an event, once, after its start, in the order in which they happened.
async fn assert_told_once_in_order(node: &Node, mortals: &[Mortal]) {
    let codes: HashMap<&str, i32> = mortals.iter().map(|m| (m.id.as_str(), m.code)).collect();
    let mut started = HashSet::new();
    let mut told = Vec::new();
    for event in events(node).await {
        let Some((id, code)) = codes.get_key_value(event.object_id.as_str()) else {
            continue;
        };
        match event.kind.as_str() {
            "started" => drop(started.insert(*id)),
            "exited" => {
                let text = format!("exit code {code},");
                assert!(event.message.starts_with(&text), "{}", event.message);
                told.push(*id);
            }
            _ => {}
        }
    }
    let once: HashSet<&str> = told.iter().copied().collect();
    assert_eq!(told.len(), once.len(), "an exit is told twice");
    assert_eq!(once.len(), mortals.len(), "an exit is not told");
    let mut last = 0;
    for id in told {
        let finished_at = node
            .cri
            .status(id)
            .await
            .expect("ContainerStatus")
            .finished_at;
        assert!(last <= finished_at, "{id} is told out of order");
        last = finished_at;
    }
}

/// Starts what has not been started, for as long as the daemon is allowed to live.
async fn start_for(node: &Node, mortals: &[Mortal], life: Duration) {
    let starts = mortals.iter().map(|mortal| async {
        let status = node.cri.status(&mortal.id).await;
        if status.is_ok_and(|status| status.state() == ContainerState::ContainerCreated) {
            // An error here means that somebody was quicker, or that the daemon is about to die.
            let _ = node.cri.start(&mortal.id).await;
        }
    });
    // Cut short at a moment that nobody chose.
    let _ = tokio::time::timeout(life, futures_util::future::join_all(starts)).await;
}

async fn round(node: &mut Node, pods: &[Pod], dice: &mut Dice, number: usize) {
    let mut mortals = Vec::new();
    for n in 0..BATCH {
        let (code, ms) = (dice.below(256) as i32, dice.below(400));
        let name = format!("r{number}n{n}");
        mortals.push(mortal(node, &pods[n % PODS], name, code, ms).await);
    }
    let mut journaled = HashMap::new();
    for _ in 0..KILLS {
        let life = Duration::from_millis(dice.below(300));
        start_for(node, &mortals, life).await;
        node.kill();
        journaled.extend(journal(node));
        node.restart().await;
    }
    eventually("all have been started", || async {
        start_for(node, &mortals, Duration::from_secs(20)).await;
        let listed = node.cri.list(None).await.expect("ListContainers");
        let created = ContainerState::ContainerCreated;
        listed
            .iter()
            .all(|one| one.state() != created)
            .then_some(())
    })
    .await;
    for mortal in &mortals {
        assert_exact(node, mortal, &journaled).await;
    }
    assert_told_once_in_order(node, &mortals).await;
    for mortal in &mortals {
        node.cri.remove(&mortal.id).await.expect("RemoveContainer");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_exit_is_recorded_exactly_once_however_often_the_daemon_dies() {
    let mut node = Node::start().await;
    let mut dice = Dice::new();
    let mut pods = Vec::new();
    for place in 0..PODS {
        pods.push(node.pod(&format!("mortals-{place}")).await);
    }
    let rounds = if is_soak() { ROUNDS_SOAK } else { 1 };
    for number in 0..rounds {
        round(&mut node, &pods, &mut dice, number).await;
    }
}

/// Containers that run until [`let_go`], and then end each with a code of its own.
async fn waiting(node: &Node, pod: &Pod) -> Vec<Mortal> {
    let mut mortals = Vec::new();
    for n in 0..12 {
        let name = format!("n{n}");
        let script =
            format!("until [ -e /ends/go ]; do usleep 5000; done; : > /ends/{name}; exit {n}");
        let mut config = shell(&name, &script);
        config.mounts.push(ends(node));
        let id = pod.run(&config).await;
        mortals.push(Mortal { id, name, code: n });
    }
    mortals
}

/// Ends those of [`waiting`]; returns when the shim has written down all ends, and what.
async fn let_go(node: &Node, mortals: &[Mortal]) -> HashMap<String, (i64, i64)> {
    fs::write(node.path("volumes/go"), "").expect("a file for all of them");
    eventually("the shim has written down all ends", || async {
        let journal = journal(node);
        let all = mortals.iter().all(|one| journal.contains_key(&one.id));
        all.then_some(journal)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn exits_that_nobody_heard_have_the_time_at_which_they_happened() {
    let mut node = Node::start().await;
    let pod = node.pod("unheard").await;
    let mortals = waiting(&node, &pod).await;
    node.kill();
    let journaled = let_go(&node, &mortals).await;
    node.restart().await;
    for mortal in &mortals {
        assert_exact(&node, mortal, &journaled).await;
    }
    assert_told_once_in_order(&node, &mortals).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exits_wait_for_a_locked_database() {
    let mut node = Node::start().await;
    let pod = node.pod("locked").await;
    let mortals = waiting(&node, &pod).await;
    let lock = WriteLock::take(&node).await;
    let journaled = let_go(&node, &mortals).await;
    // Nothing of it is in the database, and nobody is told anything else.
    for mortal in &mortals {
        let status = node.cri.status(&mortal.id).await.expect("ContainerStatus");
        assert_eq!(status.state(), ContainerState::ContainerRunning);
    }
    // Not even the daemon's death loses them.
    node.kill();
    lock.release().await;
    node.restart().await;
    for mortal in &mortals {
        assert_exact(&node, mortal, &journaled).await;
    }
    assert_told_once_in_order(&node, &mortals).await;
}

/// Ends are heard of although many write as fast as they can: the shim goes before them, and what
/// it starts are ordinary processes.
#[tokio::test]
async fn the_shim_goes_before_others_and_what_it_starts_does_not() {
    let node = Node::start().await;
    // A pod's init has the shim's arguments.
    let [shim] = node.shims()[..] else {
        panic!("one shim");
    };
    let mut config = node.pod_config("share");
    namespaces(&mut config).pid = NamespaceMode::Pod.into();
    let pod = node.pod_from(config).await;
    let id = pod.idle("main").await;
    assert_eq!(process::nice(shim), Some(-10));
    let init = process::in_cgroup_of(&node.names, &pod.id);
    assert_eq!(process::nice(init), Some(0), "the pod's init");
    let main = process::in_cgroup_of(&node.names, &id);
    assert_eq!(process::nice(main), Some(0), "a container");
    let own = node.cri.output(&id, "cut -d ' ' -f 19 /proc/$$/stat").await;
    assert_eq!(own, "0", "a command");
}
