//! The back of the walks: does what the rules say, to a node that is a few sets, and writes it down
//! through the real writer. It can fail or die before any of its side effects.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{World, image_id};
use crate::id::{ContainerId, ObjectKey, SandboxId};
use crate::lifecycle::container::{Facts, State, effective};
use crate::lifecycle::sandbox::Containers;
use crate::lifecycle::spec::ImageSpec;
use crate::lifecycle::{container, image, sandbox};
use crate::state::StateError;
use crate::state::cleanup::Resource;
use crate::state::container_facts::{Exit, Started};
use crate::state::container_update::Update;
use crate::state::image::NewImage;
use crate::state::job::{Free, Outcome};
use crate::state::layer::{NewLayer, PresentLayer};
use crate::state::now_ns;
use crate::state::operation::Finished;

/// What exists beside the database; the daemon's death does not change it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Kernel {
    pub(super) links: BTreeSet<String>,
    pub(super) snapshots: BTreeSet<String>,
    pub(super) layers: BTreeSet<String>,
    /// Processes that run, and those that have ended and are not told of yet.
    pub(super) processes: BTreeMap<ContainerId, ()>,
    /// The shim's journal: ends that are not acknowledged.
    pub(super) told: Vec<(ContainerId, i32)>,
}

impl Kernel {
    /// A process ends, if it runs.
    pub(super) fn ends(&mut self, id: &ContainerId, code: i32) {
        let told = self.told.iter().any(|(ended, _)| ended == id);
        if self.processes.contains_key(id) && !told {
            self.told.push((id.clone(), code));
        }
    }

    pub(super) fn reboot(&mut self) {
        self.links.clear();
        self.processes.clear();
        self.told.clear();
    }
}

/// What goes wrong with a claimed job, and before which of its side effects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mishap {
    None,
    /// The step fails and is tried again.
    Passing(u8),
    /// The step fails for good.
    Lasting,
    /// The daemon dies.
    Death(u8),
    /// A process ends before it is recorded as running.
    Quick,
}

pub(super) fn any_mishap() -> impl Strategy<Value = Mishap> {
    prop_oneof![
        8 => Just(Mishap::None),
        2 => (0_u8..4).prop_map(Mishap::Passing),
        1 => Just(Mishap::Lasting),
        2 => (0_u8..6).prop_map(Mishap::Death),
        2 => Just(Mishap::Quick),
    ]
}

/// Why a look ends early.
enum Stop {
    Failed,
    Died,
}

impl From<StateError> for Stop {
    fn from(error: StateError) -> Self {
        panic!("the database refuses what the rules allow: {error}")
    }
}

type Look = Result<Outcome, Stop>;

fn done(kind: &'static str, id: &str, error: Option<String>) -> Finished {
    Finished {
        kind,
        object_id: id.into(),
        started_at: now_ns(),
        duration_ns: 1,
        error,
        stages: vec![],
    }
}

fn exit(code: i32, ran: bool) -> Exit {
    Exit {
        code,
        at: now_ns(),
        reason: if code == 0 { "Completed" } else { "Error" },
        error: None,
        ran,
    }
}

/// How far the mishap of a look is away.
struct Fuel(Mishap);

impl Fuel {
    /// In front of each side effect.
    fn burn(&mut self) -> Result<(), Stop> {
        match &mut self.0 {
            Mishap::Passing(0) => Err(Stop::Failed),
            Mishap::Death(0) => Err(Stop::Died),
            Mishap::Passing(left) | Mishap::Death(left) => {
                *left -= 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn lasting(&self) -> bool {
        self.0 == Mishap::Lasting
    }
}

impl World {
    /// Records the ends the shim tells of, some of them twice.
    pub(super) async fn hear(&mut self, twice: bool) {
        for (id, code) in std::mem::take(&mut self.kernel.told) {
            for _ in 0..=u8::from(twice) {
                let recorded = self.observed.container_exited(id.clone(), exit(code, true));
                let recorded = recorded.await.expect("an end");
                assert_eq!(recorded, self.model.member_ended(&id, i64::from(code)));
            }
            self.kernel.processes.remove(&id);
        }
    }

    /// Claims jobs and looks at each; one, by choice, has the mishap. One that the daemon's death
    /// cuts off stays claimed, as do those after it.
    pub(super) async fn work(&mut self, count: u32, choice: u8, mishap: Mishap) {
        let claimed = self.observed.claim_jobs(Free::each(count)).await;
        let (claims, _) = claimed.expect("claims");
        let chosen = usize::from(choice) % claims.len().max(1);
        for (index, claim) in claims.into_iter().enumerate() {
            // A process may end at once whoever is unlucky besides.
            let unlucky = index == chosen || mishap == Mishap::Quick;
            let mut fuel = Fuel(if unlucky { mishap } else { Mishap::None });
            let outcome = match self.look(&claim.key, &mut fuel).await {
                Ok(outcome) => outcome,
                Err(Stop::Failed) => Outcome::Failed("a mishap".into()),
                Err(Stop::Died) => return self.next_daemon().await,
            };
            let put_down = self.observed.finish_job(claim.key, outcome).await;
            put_down.expect("put down");
        }
    }

    async fn look(&mut self, key: &ObjectKey, fuel: &mut Fuel) -> Look {
        match key {
            ObjectKey::Sandbox(id) => self.look_at_pod(id, fuel).await,
            ObjectKey::Container(id) => self.look_at_container(id, fuel).await,
            ObjectKey::Pull(reference) => self.pull(reference, fuel).await,
            ObjectKey::Image(id) => self.remove_image(id, fuel).await,
            ObjectKey::Cleanup(id) => self.clean_up(*id, fuel).await,
            ObjectKey::Prepared => Ok(Outcome::Done),
            ObjectKey::Attachment(_) => unreachable!("no pod of the walk has one"),
        }
    }

    async fn look_at_pod(&mut self, id: &SandboxId, fuel: &mut Fuel) -> Look {
        loop {
            let Some(pod) = self.store.sandbox(id).await? else {
                return Ok(Outcome::Done);
            };
            let members = self.store.sandbox_containers(id).await?;
            let alive = members.iter().filter(|c| container::may_live(c.state));
            let counts = Containers {
                known: members.len() as u64,
                alive: alive.count() as u64,
            };
            match sandbox::next_step(pod.desired, pod.state, counts) {
                sandbox::Step::Rest
                    if pod.update.is_wanted() && pod.state == sandbox::State::Ready =>
                {
                    self.put_pod_limits(id, pod.update, fuel).await?;
                }
                sandbox::Step::Rest => return Ok(Outcome::Done),
                sandbox::Step::SetUp => self.set_up(id, fuel).await?,
                sandbox::Step::StopContainers | sandbox::Step::RemoveContainers => {
                    let keys = members.into_iter().map(|c| ObjectKey::Container(c.id));
                    self.observed.enqueue(keys.collect()).await?;
                    return Ok(Outcome::Again(0));
                }
                sandbox::Step::TearDown => {
                    fuel.burn()?;
                    self.kernel.links.remove(&link(id));
                    fuel.burn()?;
                    let done = done("stop_sandbox", id.as_str(), None);
                    self.observed.sandbox_stopped(id.clone(), done).await?;
                    self.model.pod_is(id, sandbox::State::Stopped);
                    fuel.burn()?;
                }
                sandbox::Step::Remove => {
                    fuel.burn()?;
                    self.observed.sandbox_removed(id.clone()).await?;
                    self.model.pod_gone(id);
                    fuel.burn()?;
                    return Ok(Outcome::Done);
                }
            }
        }
    }

    async fn set_up(&mut self, id: &SandboxId, fuel: &mut Fuel) -> Result<(), Stop> {
        fuel.burn()?;
        self.kernel.links.insert(link(id));
        fuel.burn()?;
        if fuel.lasting() {
            let done = done("run_sandbox", id.as_str(), Some("for good".into()));
            self.observed.sandbox_failed(id.clone(), done).await?;
            self.model.pod_is(id, sandbox::State::Failed);
        } else {
            let done = done("run_sandbox", id.as_str(), None);
            let boot = format!("boot {}", self.boot);
            self.observed.sandbox_ready(id.clone(), boot, done).await?;
            self.model.pod_is(id, sandbox::State::Ready);
        }
        fuel.burn()
    }

    async fn look_at_container(&mut self, id: &ContainerId, fuel: &mut Fuel) -> Look {
        loop {
            let Some(known) = self.store.container(id).await? else {
                return Ok(Outcome::Done);
            };
            let facts = Facts {
                signalled: known.signalled_at.is_some(),
                grace_over: known.sandbox.0 != sandbox::Desired::Ready
                    || known.stop_at.is_none_or(|at| at <= now_ns()),
                released: known.released,
                limits_wanted: known.update.is_wanted(),
            };
            let desired = effective(known.desired, known.sandbox.0, known.sandbox.1);
            match container::next_step(desired, known.state, facts) {
                container::Step::Rest => return Ok(Outcome::Done),
                container::Step::Prepare => self.prepare(id, fuel).await?,
                container::Step::Limit => self.put_limits(id, known.update, fuel).await?,
                container::Step::Launch => {
                    let wanted = desired <= container::Desired::Running;
                    self.launch(id, known.state, wanted, fuel).await?;
                }
                container::Step::Signal => {
                    fuel.burn()?;
                    self.kernel.ends(id, 143);
                    fuel.burn()?;
                    self.observed.container_signalled(id.clone(), 15, 0).await?;
                }
                container::Step::AwaitGrace => return Ok(Outcome::Again(0)),
                container::Step::Kill => {
                    fuel.burn()?;
                    self.kernel.ends(id, 137);
                    return Ok(Outcome::Again(0));
                }
                container::Step::Release => {
                    fuel.burn()?;
                    self.observed.container_released(id.clone()).await?;
                }
                container::Step::Remove => {
                    fuel.burn()?;
                    let pod = known.sandbox_id.clone();
                    self.observed.container_removed(id.clone(), pod).await?;
                    self.model.members.remove(id);
                    fuel.burn()?;
                    return Ok(Outcome::Done);
                }
            }
        }
    }

    async fn put_pod_limits(
        &mut self,
        id: &SandboxId,
        update: Update,
        fuel: &mut Fuel,
    ) -> Result<(), Stop> {
        fuel.burn()?;
        let pod = self.model.pods.get_mut(id).expect("a pod");
        let wanted = update.wanted.expect("limits that are wanted");
        assert_eq!(pod.wanted.take(), Some(wanted.memory_limit_bytes));
        let refused = fuel.lasting().then(|| "for good".to_owned());
        let in_force = refused.is_none().then_some(wanted);
        if let Some(limits) = &in_force {
            pod.memory = limits.memory_limit_bytes;
        }
        let done = done("update_sandbox", id.as_str(), refused);
        let number = update.asked;
        self.observed
            .sandbox_updated(id.clone(), number, in_force, done)
            .await?;
        fuel.burn()
    }

    async fn put_limits(
        &mut self,
        id: &ContainerId,
        update: Update,
        fuel: &mut Fuel,
    ) -> Result<(), Stop> {
        let wanted = update.wanted.expect("limits that are wanted");
        fuel.burn()?;
        let member = self.model.members.get_mut(id).expect("a member");
        let model = member.wanted.take().expect("an update");
        assert_eq!(model, (wanted.memory_limit_bytes, wanted.cpu_shares));
        let refused = fuel.lasting().then(|| "for good".to_owned());
        let in_force = refused.is_none().then_some(wanted);
        if in_force.is_some() {
            member.limits = model;
        }
        let done = done("update_container", id.as_str(), refused);
        let number = update.asked;
        let updated = self
            .observed
            .container_updated(id.clone(), number, (in_force, None), done);
        updated.await?;
        fuel.burn()
    }

    async fn prepare(&mut self, id: &ContainerId, fuel: &mut Fuel) -> Result<(), Stop> {
        fuel.burn()?;
        self.kernel.snapshots.insert(id.to_string());
        fuel.burn()?;
        if fuel.lasting() {
            let done = done("create_container", id.as_str(), Some("for good".into()));
            self.observed.container_error(id.clone(), done).await?;
            self.model.member_is(id, State::Error);
        } else {
            let done = done("create_container", id.as_str(), None);
            let created = self
                .observed
                .container_created(id.clone(), "/u".into(), done);
            created.await?;
            self.model.member_is(id, State::Created);
        }
        fuel.burn()
    }

    async fn launch(
        &mut self,
        id: &ContainerId,
        state: State,
        wanted: bool,
        fuel: &mut Fuel,
    ) -> Result<(), Stop> {
        let runs = self.kernel.processes.contains_key(id);
        if !(state == State::Starting && runs) {
            if !wanted {
                let gone = self.observed.container_exited(id.clone(), exit(128, false));
                assert_eq!(gone.await?, self.model.member_ended(id, 128));
                return Ok(());
            }
            fuel.burn()?;
            self.observed.container_starting(id.clone()).await?;
            self.model.member_is(id, State::Starting);
            fuel.burn()?;
            if fuel.lasting() {
                let done = done("start_container", id.as_str(), Some("for good".into()));
                let exit = exit(128, false);
                let failed = self.observed.container_start_failed(id.clone(), exit, done);
                failed.await?;
                self.model.member_ended(id, 128);
                return Ok(());
            }
            self.kernel.processes.insert(id.clone(), ());
            fuel.burn()?;
        }
        let quick = fuel.0 == Mishap::Quick;
        if quick {
            self.kernel.ends(id, 3);
            self.hear(false).await;
        }
        let started = Started {
            pid: 7,
            start: 8,
            at: now_ns(),
            runs_as: None,
            limits: None,
        };
        let done = done("start_container", id.as_str(), None);
        self.observed
            .container_running(id.clone(), started, done)
            .await?;
        if !quick {
            self.model.member_is(id, State::Running);
        }
        fuel.burn()
    }

    async fn pull(&mut self, reference: &str, fuel: &mut Fuel) -> Look {
        let pull = self.store.pull(reference).await?.expect("a pull");
        if pull.finished >= pull.requested {
            return Ok(Outcome::Done);
        }
        // Some fail before they have got anything, the others after their first layer.
        if fuel.lasting() && reference.ends_with(['0', '2', '4', '6', '8']) {
            return self.pull_fails(reference).await;
        }
        let number: u8 = reference
            .rsplit(':')
            .next()
            .and_then(|n| n.parse().ok())
            .expect("ours");
        // All images lie on the same layer.
        let chain = ["base".to_owned(), format!("top-{number}")];
        let layers = chain.iter().enumerate().map(|(index, chain_id)| NewLayer {
            chain_id: chain_id.clone(),
            parent: (index > 0).then(|| chain[0].clone()),
            diff_id: "d".into(),
            digest: "b".into(),
        });
        fuel.burn()?;
        if !self
            .observed
            .expect_layers(reference.into(), layers.collect())
            .await?
        {
            return Ok(Outcome::Again(0));
        }
        for chain_id in &chain {
            if self.store.has_layer(chain_id).await? {
                assert!(
                    self.kernel.layers.contains(chain_id),
                    "{chain_id} is not on disk"
                );
                continue;
            }
            fuel.burn()?;
            self.kernel.layers.insert(chain_id.clone());
            fuel.burn()?;
            let layer = PresentLayer {
                chain_id: chain_id.clone(),
                size_bytes: 10,
                inodes: 2,
                ..Default::default()
            };
            self.observed.layer_present(layer).await?;
            if fuel.lasting() {
                // What it has got waits for a retry, which may never come.
                return self.pull_fails(reference).await;
            }
        }
        fuel.burn()?;
        let id = image_id(number);
        let new = NewImage {
            id: id.clone(),
            manifest_digest: "m".into(),
            top_chain_id: chain.last().cloned(),
            spec: ImageSpec::default(),
            tags: vec![reference.into()],
            ..Default::default()
        };
        let done = done("pull_image", &id, None);
        self.observed
            .image_present(new, Some(reference.into()), done)
            .await?;
        self.model.images.insert(id, image::Desired::Present);
        Ok(Outcome::Done)
    }

    async fn pull_fails(&mut self, reference: &str) -> Look {
        let done = done("pull_image", reference, Some("for good".into()));
        let kept_until = now_ns() + 1_000_000;
        let failed =
            self.observed
                .pull_failed(reference.into(), ("other", "no".into()), kept_until, done);
        failed.await?;
        Ok(Outcome::Done)
    }

    async fn remove_image(&mut self, id: &str, fuel: &mut Fuel) -> Look {
        let Some(known) = self.store.image(id).await? else {
            return Ok(Outcome::Done);
        };
        if image::next_step(known.desired) == image::Step::Remove {
            fuel.burn()?;
            self.observed.image_removed(id.to_owned()).await?;
            self.model.images.remove(id);
            fuel.burn()?;
        }
        Ok(Outcome::Done)
    }

    async fn clean_up(&mut self, id: i64, fuel: &mut Fuel) -> Look {
        let Some(task) = self.store.cleanup_task(id).await? else {
            return Ok(Outcome::Done);
        };
        fuel.burn()?;
        if fuel.lasting() {
            self.observed.cleanup_failed(id, "for good".into()).await?;
            return Err(Stop::Failed);
        }
        match task.resource {
            Resource::Network => self.kernel.links.remove(&task.path),
            Resource::Rootfs => self.kernel.snapshots.remove(&task.path),
            Resource::Layer => self.kernel.layers.remove(&task.path),
            other => panic!("nothing of {other:?} was made"),
        };
        fuel.burn()?;
        match task.resource {
            Resource::Network => drop(self.model.addresses.remove(&task.owner)),
            Resource::Rootfs => drop(self.model.snapshots.remove(&task.owner)),
            _ => {}
        }
        self.observed.cleanup_completed(id, task).await?;
        fuel.burn()?;
        Ok(Outcome::Done)
    }
}

/// The node's end of a pod's link, as the database names it.
fn link(id: &SandboxId) -> String {
    format!("q{}", id.short())
}
