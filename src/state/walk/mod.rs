//! Random walks through everything that can be asked of the state engine and everything that can
//! happen to it: requests, ends of processes, outcomes of jobs, deaths of the daemon in the middle
//! of a step, reboots. The database is the real one; beside it is a small model, and after each
//! event the two must agree. At the end the queue drains, every wish is reached, and when all is
//! removed not a row is left.

mod back;
mod model;

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::container::NewContainer;
use super::*;
use crate::id::{ContainerId, ObjectKey, SandboxId};
use crate::lifecycle::spec::{ContainerSpec, Resources, SandboxSpec};
use crate::lifecycle::{address, allocation, container, image, sandbox};
use back::{Kernel, Mishap};
use model::{Answer, Model};

/// Names of pods, of containers in a pod, and images: few, so that requests meet.
const NAMES: u8 = 3;

/// What happens next. Numbers choose among what there is.
#[derive(Debug, Clone)]
enum Event {
    Run(u8),
    StopPod(u8),
    RemovePod(u8),
    Create(u8, u8, u8),
    Start(u8),
    Stop(u8, bool),
    Remove(u8),
    /// Other memory, or other CPU shares.
    Limit(u8, bool, u8),
    /// Other memory for a pod.
    LimitPod(u8, u8),
    Pull(u8),
    RemoveImage(u8),
    /// A process ends by itself.
    End(u8, u8),
    /// The shim tells of ends; of some twice, as after a lost acknowledgement.
    Hear(bool),
    /// The worker claims so many jobs of each kind; one of them goes wrong.
    Work(u8, u8, Mishap),
    /// The daemon dies between two steps.
    Die,
    Reboot,
}

fn any_event() -> impl Strategy<Value = Event> {
    let n = || 0..NAMES;
    prop_oneof![
        4 => n().prop_map(Event::Run),
        1 => any::<u8>().prop_map(Event::StopPod),
        1 => any::<u8>().prop_map(Event::RemovePod),
        5 => (any::<u8>(), n(), n()).prop_map(|(pod, name, image)| Event::Create(pod, name, image)),
        5 => any::<u8>().prop_map(Event::Start),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(c, grace)| Event::Stop(c, grace)),
        1 => any::<u8>().prop_map(Event::Remove),
        2 => (any::<u8>(), any::<bool>(), 1_u8..9)
            .prop_map(|(c, memory, value)| Event::Limit(c, memory, value)),
        2 => (any::<u8>(), 1_u8..9).prop_map(|(pod, value)| Event::LimitPod(pod, value)),
        3 => n().prop_map(Event::Pull),
        1 => n().prop_map(Event::RemoveImage),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(c, code)| Event::End(c, code)),
        3 => any::<bool>().prop_map(Event::Hear),
        12 => (1_u8..5, any::<u8>(), back::any_mishap())
            .prop_map(|(count, choice, mishap)| Event::Work(count, choice, mishap)),
        1 => Just(Event::Die),
        1 => Just(Event::Reboot),
    ]
}

/// The daemon, the node it runs on, and what should be so.
struct World {
    dir: tempfile::TempDir,
    store: Store,
    desired: DesiredWriter,
    observed: ObservedWriter,
    kernel: Kernel,
    model: Model,
    boot: u32,
    last_event: i64,
}

fn reference(number: u8) -> String {
    format!("registry.test/image:{number}")
}

fn image_id(number: u8) -> String {
    format!("sha256:{number}")
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let opened = Store::open(&dir.path().join("quilt.db")).await;
        let (store, desired, observed) = opened.expect("a database");
        Self {
            dir,
            store,
            desired,
            observed,
            kernel: Kernel::default(),
            model: Model::default(),
            boot: 0,
            last_event: 0,
        }
    }

    /// Another daemon opens the file and recovers, as `reconcile::recovery` does.
    async fn next_daemon(&mut self) {
        let opened = Store::open(&self.dir.path().join("quilt.db")).await;
        (self.store, self.desired, self.observed) = opened.expect("a database");
        let boot = format!("boot {}", self.boot);
        let forgotten = self.observed.forget_other_boots(boot).await;
        forgotten.expect("the last boot forgotten");
        self.observed.reclaim_jobs().await.expect("jobs reclaimed");
        self.look_at_everything().await;
    }

    /// Has every object looked at now, as recovery does; stands for the time that passes.
    async fn look_at_everything(&self) {
        let mut keys = Vec::new();
        let pods = self.store.all_sandbox_ids().await.expect("pods");
        keys.extend(pods.into_iter().map(ObjectKey::Sandbox));
        let containers = self.store.all_containers().await.expect("containers");
        keys.extend(containers.into_iter().map(|c| ObjectKey::Container(c.id)));
        let pulls = self.store.unfinished_pulls().await.expect("pulls");
        keys.extend(pulls.into_iter().map(ObjectKey::Pull));
        let images = self.store.leaving_images().await.expect("images");
        keys.extend(images.into_iter().map(ObjectKey::Image));
        let cleanups = self.store.pending_cleanups().await.expect("cleanups");
        keys.extend(cleanups.into_iter().map(ObjectKey::Cleanup));
        self.observed.enqueue(keys).await.expect("queued");
    }

    fn pod(&self, choice: u8) -> Option<SandboxId> {
        let count = self.model.pods.len().max(1);
        let mut ids = self.model.pods.keys();
        ids.nth(usize::from(choice) % count).cloned()
    }

    fn member(&self, choice: u8) -> Option<ContainerId> {
        let count = self.model.members.len().max(1);
        let mut ids = self.model.members.keys();
        ids.nth(usize::from(choice) % count).cloned()
    }

    async fn happens(&mut self, event: Event) {
        match event {
            Event::Run(name) => self.run(name).await,
            Event::StopPod(choice) => self.lower_pod(choice, sandbox::Desired::Stopped).await,
            Event::RemovePod(choice) => self.lower_pod(choice, sandbox::Desired::Removed).await,
            Event::Create(pod, name, image) => self.create(pod, name, image).await,
            Event::Start(choice) => self.lower(choice, container::Desired::Running, None).await,
            Event::Stop(choice, grace) => {
                let stop_at = if grace { i64::MAX } else { 1 };
                self.lower(choice, container::Desired::Stopped, Some(stop_at))
                    .await;
            }
            Event::Remove(choice) => self.lower(choice, container::Desired::Removed, None).await,
            Event::Limit(choice, memory, value) => self.limit(choice, memory, value.into()).await,
            Event::LimitPod(choice, value) => self.limit_pod(choice, value.into()).await,
            Event::Pull(number) => {
                let nobody = super::pull::Secret::default();
                let asked = self
                    .desired
                    .request_pull(&self.store, reference(number), nobody);
                asked.await.expect("a request");
            }
            Event::RemoveImage(number) => {
                let id = image_id(number);
                let known = self.desired.remove_image(id.clone()).await.expect("a wish");
                assert_eq!(known, self.model.images.contains_key(&id));
                if let Some(desired) = self.model.images.get_mut(&id) {
                    *desired = image::Desired::Removed;
                }
            }
            Event::End(choice, code) => {
                if let Some(id) = self.member(choice) {
                    self.kernel.ends(&id, i32::from(code));
                }
            }
            Event::Hear(twice) => self.hear(twice).await,
            Event::Work(count, choice, mishap) => {
                self.work(u32::from(count), choice, mishap).await;
            }
            Event::Die => self.next_daemon().await,
            Event::Reboot => {
                self.boot += 1;
                self.kernel.reboot();
                self.model.rebooted();
                self.next_daemon().await;
            }
        }
    }

    async fn run(&mut self, name: u8) {
        let expected = self.model.run(name);
        let spec = SandboxSpec {
            name: format!("pod-{name}"),
            namespace: "default".into(),
            uid: format!("uid-{name}"),
            ..Default::default()
        };
        let pool = address::Pool {
            subnet: "10.1.2.0/24".parse().expect("a subnet"),
            gateway: "10.1.2.1".parse().expect("an address"),
            bridge: "b".into(),
            subnet6: None,
            quarantine_ns: 0,
            mtu: 1500,
            prepared: 0,
        };
        let new = SandboxId::random();
        let answer = self
            .desired
            .run_sandbox(new.clone(), spec, Some(pool))
            .await;
        match (expected, answer) {
            (Answer::New, Ok(id)) if id == new => self.model.add_pod(&id, name),
            (Answer::Joined(twin), Ok(id)) => assert_eq!(twin, id),
            (Answer::Refused, Err(StateError::Impossible(_))) => {}
            (expected, answer) => panic!("run: {expected:?} is not {answer:?}"),
        }
    }

    async fn lower_pod(&mut self, choice: u8, to: sandbox::Desired) {
        let Some(id) = self.pod(choice) else { return };
        let changed = self.desired.lower_sandbox(id.clone(), to).await;
        assert_eq!(changed.expect("a wish"), self.model.lower_pod(&id, to));
    }

    async fn create(&mut self, choice: u8, name: u8, image: u8) {
        // A pod that is not there is asked for as well.
        let pod = self.pod(choice).unwrap_or_else(SandboxId::random);
        let expected = self.model.create(&pod, name, &image_id(image));
        let new = NewContainer {
            id: ContainerId::random(),
            sandbox_id: pod.clone(),
            image_id: image_id(image),
            spec: ContainerSpec {
                name: format!("container-{name}"),
                ..Default::default()
            },
        };
        let id = new.id.clone();
        match (expected, self.desired.create_container(new).await) {
            (Answer::New, Ok(created)) if created == id => self.model.add_member(&id, &pod, name),
            (Answer::Joined(twin), Ok(joined)) => assert_eq!(twin, joined),
            (Answer::Refused, Err(StateError::Impossible(_)))
            | (Answer::NotFound, Err(StateError::NotFound { .. })) => {}
            (expected, answer) => panic!("create: {expected:?} is not {answer:?}"),
        }
    }

    async fn lower(&mut self, choice: u8, to: container::Desired, stop_at: Option<i64>) {
        let Some(id) = self.member(choice) else {
            return;
        };
        let verdict = self.desired.lower_container(id.clone(), to, stop_at).await;
        let admitted = self.model.lower_member(&id, to);
        let verdict = verdict.expect("a verdict");
        let written = verdict == crate::lifecycle::Verdict::Admitted;
        assert_eq!(admitted, Some(written), "{to:?}: {verdict:?}");
    }

    async fn limit(&mut self, choice: u8, memory: bool, value: i64) {
        let Some(id) = self.member(choice) else {
            return;
        };
        let change = match memory {
            true => Resources {
                memory_limit_bytes: value,
                ..Default::default()
            },
            false => Resources {
                cpu_shares: value,
                ..Default::default()
            },
        };
        let member = self.model.members.get_mut(&id).expect("a member");
        let refused = member.desired == container::Desired::Removed
            || matches!(
                member.state,
                container::State::Preparing | container::State::Error
            );
        match self.desired.update_container(id, change).await {
            Ok(_) if !refused => {
                let (old_memory, old_shares) = member.wanted.unwrap_or(member.limits);
                member.wanted = Some(match memory {
                    true => (value, old_shares),
                    false => (old_memory, value),
                });
            }
            Err(StateError::Impossible(_)) if refused => {}
            answer => panic!("limit: {answer:?}"),
        }
    }

    async fn limit_pod(&mut self, choice: u8, memory_limit_bytes: i64) {
        let Some(id) = self.pod(choice) else { return };
        let change = Resources {
            memory_limit_bytes,
            ..Default::default()
        };
        let pod = self.model.pods.get_mut(&id).expect("a pod");
        let up = pod.desired == sandbox::Desired::Ready && pod.state == sandbox::State::Ready;
        match self.desired.update_sandbox(id, change).await {
            Ok(_) if up => pod.wanted = Some(memory_limit_bytes),
            Err(StateError::Impossible(_)) if !up => {}
            answer => panic!("limit a pod: {answer:?}"),
        }
    }

    /// Compares the database with the model, and the node with the database.
    async fn check(&mut self) {
        let pods = self
            .rows("SELECT id || ' ' || desired || ' ' || state FROM sandboxes")
            .await;
        let expected = self.model.pods.iter();
        let expected = expected
            .map(|(id, pod)| format!("{id} {} {}", pod.desired.as_str(), pod.state.as_str()));
        assert_eq!(pods, sorted(expected), "sandboxes");
        let containers = "SELECT id || ' ' || sandbox_id || ' ' || desired || ' ' || state || ' '
             || coalesce(exit_code, '-') FROM containers";
        let expected = self.model.members.iter().map(|(id, member)| {
            let exit = member.exit.map_or("-".into(), |code| code.to_string());
            let (desired, state) = (member.desired.as_str(), member.state.as_str());
            format!("{id} {} {desired} {state} {exit}", member.pod)
        });
        assert_eq!(self.rows(containers).await, sorted(expected), "containers");
        let limits = "SELECT id || ' ' || coalesce(resources ->> 'memory_limit_bytes', 0) || ' '
             || coalesce(resources ->> 'cpu_shares', 0) || ' ' || (updates_wanted > updates_done)
             FROM containers";
        let expected = self.model.members.iter().map(|(id, member)| {
            let (memory, shares) = member.limits;
            format!(
                "{id} {memory} {shares} {}",
                u8::from(member.wanted.is_some())
            )
        });
        assert_eq!(self.rows(limits).await, sorted(expected), "limits");
        let limits = "SELECT id || ' ' || coalesce(resources ->> 'memory_limit_bytes', 0) || ' '
             || (updates_wanted > updates_done) FROM sandboxes";
        let expected = self.model.pods.iter();
        let expected = expected
            .map(|(id, pod)| format!("{id} {} {}", pod.memory, u8::from(pod.wanted.is_some())));
        assert_eq!(self.rows(limits).await, sorted(expected), "limits of pods");
        let addresses = "SELECT sandbox_id || ' ' || status FROM network_allocations";
        let expected = self.model.addresses.iter();
        let expected = expected.map(|(id, state)| format!("{id} {}", state.as_str()));
        assert_eq!(self.rows(addresses).await, sorted(expected), "addresses");
        let given = self.rows("SELECT address FROM network_allocations").await;
        let mut distinct = given.clone();
        distinct.dedup();
        assert_eq!(given, distinct, "one address, two pods");
        let images = self.rows("SELECT id || ' ' || desired FROM images").await;
        let expected = self.model.images.iter();
        let expected = expected.map(|(id, desired)| format!("{id} {}", desired.as_str()));
        assert_eq!(images, sorted(expected), "images");
        let snapshots = self.rows("SELECT container_id FROM snapshots").await;
        assert_eq!(snapshots, sorted(self.model.snapshots.iter().cloned()));
        self.check_events().await;
        self.check_node().await;
    }

    /// Events only grow, and each container that has ended has ended once.
    async fn check_events(&mut self) {
        let newest: i64 = sqlx::query_scalar("SELECT coalesce(max(sequence), 0) FROM events")
            .fetch_one(&self.store.readers)
            .await
            .expect("a number");
        assert!(newest >= self.last_event, "the sequence went back");
        self.last_event = newest;
        let ended = "SELECT object_id FROM events WHERE kind = 'exited'";
        let expected = sorted(self.model.ended.iter().cloned());
        assert_eq!(self.rows(ended).await, expected, "one end of each");
    }

    /// What exists has its row (invariant I5).
    async fn check_node(&self) {
        let links = self.rows("SELECT host_link FROM network_allocations").await;
        for link in &self.kernel.links {
            assert!(links.contains(link), "link {link} has no row");
        }
        for owner in &self.kernel.snapshots {
            assert!(
                self.model.snapshots.contains(owner),
                "snapshot {owner} has no row"
            );
        }
        let layers = self.rows("SELECT chain_id FROM layers").await;
        for layer in &self.kernel.layers {
            assert!(layers.contains(layer), "layer {layer} has no row");
        }
        for id in self.kernel.processes.keys() {
            let state = self.model.members.get(id).map(|member| member.state);
            assert!(
                state.is_some_and(container::may_live),
                "{id} lives and is {state:?}"
            );
        }
        let whole = "SELECT i.id FROM images i JOIN layers l ON l.chain_id = i.top_chain_id
             WHERE l.state <> 'present'";
        assert!(self.rows(whole).await.is_empty(), "an image is not whole");
    }

    async fn rows(&self, sql: &'static str) -> Vec<String> {
        let rows = sqlx::query_scalar(sql).fetch_all(&self.store.readers).await;
        sorted(rows.expect(sql))
    }

    /// Lets the worker work, and time pass, until nothing is left to do.
    async fn rest(&mut self) {
        for _ in 0..200 {
            self.hear(false).await;
            self.work(64, 0, Mishap::None).await;
            let left = self.store.count_jobs().await.expect("a count");
            if left == 0 && self.kernel.told.is_empty() {
                return;
            }
            self.look_at_everything().await;
        }
        let jobs =
            self.rows("SELECT key || ' ' || status || ' ' || coalesce(last_error, '') FROM jobs");
        panic!("the queue does not drain: {:?}", jobs.await);
    }

    /// Every wish is a fact.
    fn check_wishes(&self) {
        for (id, pod) in &self.model.pods {
            match pod.desired {
                // After a reboot it is down, and says so.
                sandbox::Desired::Ready => assert_ne!(pod.state, sandbox::State::Preparing, "{id}"),
                sandbox::Desired::Stopped => assert_eq!(pod.state, sandbox::State::Stopped, "{id}"),
                sandbox::Desired::Removed => panic!("{id} is to be gone and is {:?}", pod.state),
            }
            assert_ne!(pod.state, sandbox::State::Failed, "{id} is to be gone");
            let up = pod.state == sandbox::State::Ready;
            assert!(!up || pod.wanted.is_none(), "the limits of {id}");
        }
        for (id, member) in &self.model.members {
            assert_eq!(member.wanted, None, "the limits of {id}");
            let pod = &self.model.pods[&member.pod];
            let desired = container::effective(member.desired, pod.desired, pod.state);
            assert_ne!(desired, container::Desired::Removed, "{id} is to be gone");
            let rests = match desired {
                container::Desired::Created => !container::may_live(member.state),
                container::Desired::Running => matches!(
                    member.state,
                    container::State::Running | container::State::Exited
                ),
                _ => !container::may_live(member.state),
            };
            assert!(
                rests,
                "{id} is wished {desired:?} and is {:?}",
                member.state
            );
        }
        for (id, desired) in &self.model.images {
            assert_eq!(*desired, image::Desired::Present, "{id} is to be gone");
        }
        for (id, state) in &self.model.addresses {
            assert_eq!(*state, allocation::State::Active, "the address of {id}");
        }
    }

    /// Removes everything, after which nothing is left.
    async fn end(&mut self) {
        for id in self.model.pods.keys().cloned().collect::<Vec<_>>() {
            let lowered = self
                .desired
                .lower_sandbox(id.clone(), sandbox::Desired::Removed);
            lowered.await.expect("a wish");
            self.model.lower_pod(&id, sandbox::Desired::Removed);
        }
        for number in 0..NAMES {
            self.happens(Event::RemoveImage(number)).await;
        }
        self.rest().await;
        // Layers of failed pulls have waited long enough in a moment.
        while self
            .store
            .next_unused_layer()
            .await
            .expect("a read")
            .is_some()
        {
            self.observed.collect_layers().await.expect("collected");
        }
        self.rest().await;
        self.check().await;
        let counts = self.store.count_rows().await.expect("counts");
        let counts: BTreeMap<_, _> = counts.into_iter().collect();
        for table in [
            "sandboxes",
            "containers",
            "process_monitors",
            "network_allocations",
            "port_mappings",
            "snapshots",
            "image_volumes",
            "images",
            "image_references",
            "layers",
            "jobs",
            "cleanup_tasks",
        ] {
            assert_eq!(counts[table], 0, "{table}");
        }
        assert_eq!(self.kernel, Kernel::default(), "the node is as it was");
    }
}

fn sorted(rows: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut rows: Vec<String> = rows.into_iter().collect();
    rows.sort();
    rows
}

/// Two pods with a container each that is asked to run: from nothing, most walks would not come so
/// far.
fn warm_up() -> Vec<Event> {
    let work = || Event::Work(4, 0, Mishap::None);
    vec![
        Event::Pull(0),
        Event::Pull(1),
        Event::Run(0),
        Event::Run(1),
        work(),
        Event::Create(0, 0, 0),
        Event::Create(1, 1, 1),
        work(),
        Event::Start(0),
        Event::Start(1),
    ]
}

async fn walk(events: Vec<Event>) {
    let mut world = World::new().await;
    for event in warm_up().into_iter().chain(events) {
        world.happens(event).await;
        world.check().await;
    }
    world.rest().await;
    world.check().await;
    world.check_wishes();
    world.end().await;
}

/// `QUILT_SOAK` asks for the long form; `PROPTEST_CASES` for any other.
#[test]
fn whatever_happens_the_database_agrees_with_the_model() {
    let soak = std::env::var_os("QUILT_SOAK").is_some();
    let mut config = Config::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = if soak { 2000 } else { 32 };
    }
    config.max_shrink_iters = 200;
    config.failure_persistence = None;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let mut runner = TestRunner::new(config);
    let events = proptest::collection::vec(any_event(), 10..60);
    let walked = runner.run(&events, |events| {
        runtime.block_on(walk(events));
        Ok(())
    });
    if let Err(error) = walked {
        panic!("{error}");
    }
}
