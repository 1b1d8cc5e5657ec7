//! What the database should hold: a few maps, changed by the same requests and facts.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{ContainerId, SandboxId};
use crate::lifecycle::{Verdict, allocation, container, image, sandbox};

/// A pod as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) name: u8,
    pub(super) desired: sandbox::Desired,
    pub(super) state: sandbox::State,
    /// Memory in force and wanted instead.
    pub(super) memory: i64,
    pub(super) wanted: Option<i64>,
}

/// A container as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) pod: SandboxId,
    pub(super) name: u8,
    pub(super) desired: container::Desired,
    pub(super) state: container::State,
    pub(super) exit: Option<i64>,
    /// Memory and CPU shares, in force and wanted instead.
    pub(super) limits: (i64, i64),
    pub(super) wanted: Option<(i64, i64)>,
}

/// Everything as it should be.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) pods: BTreeMap<SandboxId, Pod>,
    pub(super) members: BTreeMap<ContainerId, Member>,
    pub(super) addresses: BTreeMap<String, allocation::State>,
    pub(super) images: BTreeMap<String, image::Desired>,
    pub(super) snapshots: BTreeSet<String>,
    /// Containers whose end has been recorded, ever.
    pub(super) ended: BTreeSet<String>,
}

/// What a request should be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer<I> {
    /// A new object.
    New,
    /// The one that is there.
    Joined(I),
    /// It cannot be.
    Refused,
    /// What it is about is not there.
    NotFound,
}

impl Model {
    pub(super) fn run(&self, name: u8) -> Answer<SandboxId> {
        let twin = self.pods.iter().find(|(_, pod)| {
            pod.name == name
                && pod.desired != sandbox::Desired::Removed
                && pod.state != sandbox::State::Failed
        });
        match twin {
            None => Answer::New,
            Some((id, pod))
                if pod.desired == sandbox::Desired::Ready
                    && pod.state != sandbox::State::Stopped =>
            {
                Answer::Joined(id.clone())
            }
            Some(_) => Answer::Refused,
        }
    }

    pub(super) fn add_pod(&mut self, id: &SandboxId, name: u8) {
        let pod = Pod {
            name,
            desired: sandbox::Desired::Ready,
            state: sandbox::State::Preparing,
            memory: 0,
            wanted: None,
        };
        self.pods.insert(id.clone(), pod);
        self.addresses
            .insert(id.to_string(), allocation::State::Allocated);
    }

    /// Whether the wish changes something.
    pub(super) fn lower_pod(&mut self, id: &SandboxId, to: sandbox::Desired) -> bool {
        match self.pods.get_mut(id) {
            Some(pod) if to > pod.desired => {
                pod.desired = to;
                true
            }
            _ => false,
        }
    }

    pub(super) fn create(&self, pod: &SandboxId, name: u8, image: &str) -> Answer<ContainerId> {
        let Some(known) = self.pods.get(pod) else {
            return Answer::NotFound;
        };
        if known.desired != sandbox::Desired::Ready || known.state != sandbox::State::Ready {
            return Answer::Refused;
        }
        let twin = self.members.iter().find(|(_, member)| {
            member.pod == *pod
                && member.name == name
                && member.desired != container::Desired::Removed
                && member.state != container::State::Error
        });
        match (twin, self.images.get(image)) {
            (Some((id, _)), _) => Answer::Joined(id.clone()),
            (None, Some(image::Desired::Present)) => Answer::New,
            (None, _) => Answer::NotFound,
        }
    }

    pub(super) fn add_member(&mut self, id: &ContainerId, pod: &SandboxId, name: u8) {
        let member = Member {
            pod: pod.clone(),
            name,
            desired: container::Desired::Created,
            state: container::State::Preparing,
            exit: None,
            limits: (0, 0),
            wanted: None,
        };
        self.members.insert(id.clone(), member);
        self.snapshots.insert(id.to_string());
    }

    /// Whether the wish is admitted; `None` when there is no such container.
    pub(super) fn lower_member(
        &mut self,
        id: &ContainerId,
        to: container::Desired,
    ) -> Option<bool> {
        let member = self.members.get_mut(id)?;
        let pod = self.pods.get(&member.pod)?;
        let pod_is_up =
            pod.desired == sandbox::Desired::Ready && pod.state == sandbox::State::Ready;
        if to == container::Desired::Running && !pod_is_up {
            return Some(false);
        }
        let admitted = container::admit(to, member.desired, member.state) == Verdict::Admitted;
        if admitted {
            member.desired = to;
        }
        Some(admitted)
    }

    pub(super) fn pod_is(&mut self, id: &SandboxId, state: sandbox::State) {
        self.pods.get_mut(id).expect("a pod").state = state;
        match state {
            sandbox::State::Ready => {
                self.addresses
                    .insert(id.to_string(), allocation::State::Active);
            }
            sandbox::State::Stopped => self.address_leaves(id),
            _ => {}
        }
    }

    fn address_leaves(&mut self, id: &SandboxId) {
        if let Some(address) = self.addresses.get_mut(id.as_str()) {
            *address = allocation::State::CleanupPending;
        }
    }

    pub(super) fn pod_gone(&mut self, id: &SandboxId) {
        self.pods.remove(id);
        self.address_leaves(id);
    }

    pub(super) fn member_is(&mut self, id: &ContainerId, state: container::State) {
        self.members.get_mut(id).expect("a container").state = state;
    }

    /// An end is told of; whether it is the first time.
    pub(super) fn member_ended(&mut self, id: &ContainerId, code: i64) -> bool {
        match self.members.get_mut(id) {
            Some(member) if container::may_live(member.state) => {
                member.state = container::State::Exited;
                member.exit = Some(code);
                assert!(self.ended.insert(id.to_string()), "a container ends once");
                true
            }
            _ => false,
        }
    }

    /// The node was started anew.
    pub(super) fn rebooted(&mut self) {
        let up: Vec<SandboxId> = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.state == sandbox::State::Ready)
            .map(|(id, _)| id.clone())
            .collect();
        for id in up {
            self.pod_is(&id, sandbox::State::Stopped);
            let members: Vec<ContainerId> = self
                .members
                .iter()
                .filter(|(_, member)| member.pod == id)
                .map(|(id, _)| id.clone())
                .collect();
            for member in members {
                self.member_ended(&member, 255);
            }
        }
    }
}
