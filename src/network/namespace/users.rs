//! Namespaces of a pod that has a user namespace, to which the others belong.
//!
//! Which of them are missing differs: all when the pod is made, single ones when something has
//! taken a pin. A user namespace whose own pin is gone is found again through a namespace that it
//! owns.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sched::setns;
use rustix::thread::ThreadNameSpaceType;

use super::{
    NamespaceSpec, NetworkError, Pin, Sysctl, UserSpec, apply_sysctls, furnish, is_pinned, pin_one,
};
use crate::sys::nsfd::owner_of;
use crate::sys::userns::Holder;

/// Makes and pins what is missing. Runs in a thread of its own, which ends with it.
pub(super) fn make_and_pin(
    spec: &NamespaceSpec<'_>,
    users: &UserSpec,
    missing: &[Pin],
    sysctls: &[Sysctl],
) -> Result<(), NetworkError> {
    // 1. All namespaces, in a process that stays until they are pinned.
    let others = missing.iter().filter(|pin| **pin != Pin::User);
    let flags = others.clone().map(|pin| kind(*pin)).collect();
    let known = owner(spec.dir)?;
    let holder = match &known {
        None => Holder::new(flags),
        Some(owner) => Holder::within(owner, flags),
    };
    let holder = holder.map_err(|errno| NetworkError::System {
        action: "make the pod's user namespace",
        source: errno.into(),
    })?;
    if known.is_none() {
        let mapped = holder.map(&users.uids, &users.gids);
        mapped.map_err(|source| NetworkError::System {
            action: "map the ids of the pod's user namespace",
            source,
        })?;
    }
    // 2. What is in them. This thread is in the node's own of every other kind.
    for pin in others {
        let path = holder.path(pin.file_name());
        let file = File::open(&path).map_err(NetworkError::file("open", &path))?;
        setns(&file, pin.clone_flag()).map_err(|errno| NetworkError::System {
            action: "enter a namespace of the pod",
            source: errno.into(),
        })?;
    }
    furnish(spec, missing)?;
    // A thread in the same namespaces: it may end as somebody who could pin nothing.
    std::thread::scope(|scope| {
        let set = scope.spawn(|| apply_sysctls(sysctls, missing, Some(users)));
        set.join()
            .map_err(|_| NetworkError::ThreadPanicked("sets the pod's sysctls"))?
    })?;
    // 3. Pin them, now that they are complete.
    missing
        .iter()
        .try_for_each(|pin| pin_one(spec.dir, *pin, &holder.path(pin.file_name())))
}

fn kind(pin: Pin) -> ThreadNameSpaceType {
    match pin {
        Pin::Net => ThreadNameSpaceType::NETWORK,
        Pin::Ipc => ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION,
        Pin::Uts => ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
        Pin::User => ThreadNameSpaceType::USER,
    }
}

/// The user namespace that the pod has already.
fn owner(dir: &Path) -> Result<Option<OwnedFd>, NetworkError> {
    let pinned = |pin: &Pin| is_pinned(&dir.join(pin.file_name()));
    let Some(pin) = Pin::ALL.into_iter().rev().find(pinned) else {
        return Ok(None);
    };
    let path = dir.join(pin.file_name());
    let file = File::open(&path).map_err(NetworkError::file("open", &path))?;
    if pin == Pin::User {
        return Ok(Some(file.into()));
    }
    let owner = owner_of(&file).map_err(|errno| NetworkError::file("ask", &path)(errno.into()))?;
    Ok(Some(owner))
}
