//! The user namespace of a pod, as a process that is about to live in it sees it.
//!
//! It was made with the pod, which owns it and is owned by it: its network, IPC and UTS namespaces
//! belong to it. Who has joined it has every right over those and none over the node.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid, openat};
use rustix::thread::{
    LinkNameSpaceType, move_into_link_name_space, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use super::error::{At, LaunchError, stage};
use super::id_maps::Maps;
use super::protect::protect_self;
use super::user::Identity;

/// A user namespace, and which ids of the node it has.
#[derive(Debug)]
pub(super) struct Users {
    namespace: OwnedFd,
    maps: Maps,
}

impl Users {
    /// That of a plan, if it has one.
    pub(super) fn in_plan(spec: &Spec) -> Result<Option<Self>, LaunchError> {
        let linux = spec.linux().as_ref();
        let mut namespaces = linux
            .and_then(|linux| linux.namespaces().as_ref())
            .into_iter()
            .flatten();
        let own = namespaces.find(|namespace| namespace.typ() == LinuxNamespaceType::User);
        let path = own.and_then(|namespace| namespace.path().as_ref());
        path.map(|path| Self::of_plan(spec, path)).transpose()
    }

    /// That of a plan, which is at `path`.
    pub(super) fn of_plan(spec: &Spec, path: &Path) -> Result<Self, LaunchError> {
        let Some(maps) = maps_of(spec) else {
            let message = "a user namespace is given without the ids that it has";
            return Err(LaunchError::invalid(stage::PLAN, message));
        };
        Ok(Self {
            namespace: open(path)?,
            maps,
        })
    }

    pub(super) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    pub(super) fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Who of the node stands behind its user and group 0.
    pub(super) fn root(&self) -> Result<(u32, u32), LaunchError> {
        root_of(&self.maps).ok_or_else(|| {
            let message = "the user namespace has no root: its maps do not begin at 0";
            LaunchError::invalid(stage::PLAN, message)
        })
    }

    /// Who of the node stands behind a user and a group inside.
    pub(super) fn outside(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        Some((outside(&self.maps.0, uid)?, outside(&self.maps.1, gid)?))
    }

    /// Moves the calling process, which has one thread, into it. It is nobody there as yet.
    pub(super) fn join(&self) -> Result<(), LaunchError> {
        join(self.namespace())
    }
}

/// The maps of a plan that has a user namespace.
pub(super) fn maps_of(spec: &Spec) -> Option<Maps> {
    let linux = spec.linux().as_ref()?;
    Some((linux.uid_mappings().clone()?, linux.gid_mappings().clone()?))
}

/// Who of the node stands behind `identity` in a user namespace with these maps. An error if a
/// process cannot be that there.
pub(super) fn check(maps: &Maps, identity: &Identity) -> Result<(u32, u32), LaunchError> {
    let absent = |what: &str, id: u32| {
        let message = format!("{what} {id} is not among the ids of the pod's user namespace");
        LaunchError::invalid(stage::USER, message)
    };
    let uid = outside(&maps.0, identity.uid).ok_or_else(|| absent("user", identity.uid))?;
    let group = |gid: u32| outside(&maps.1, gid).ok_or_else(|| absent("group", gid));
    for gid in &identity.groups {
        group(*gid)?;
    }
    Ok((uid, group(identity.gid)?))
}

/// Who of the node stands behind user and group 0 of some maps.
pub(super) fn root_of(maps: &Maps) -> Option<(u32, u32)> {
    Some((outside(&maps.0, 0)?, outside(&maps.1, 0)?))
}

fn outside(map: &[LinuxIdMapping], inside: u32) -> Option<u32> {
    map.iter().find_map(|range| {
        let offset = inside.checked_sub(range.container_id())?;
        let host = range.host_id().checked_add(offset)?;
        (offset < range.size()).then_some(host)
    })
}

pub(super) fn open(path: &Path) -> Result<OwnedFd, LaunchError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    openat(CWD, path, flags, Mode::empty())
        .at(stage::NAMESPACE, || format!("open user namespace {path:?}"))
}

/// Moves the calling process, which has one thread, into a user namespace.
pub(super) fn join(namespace: BorrowedFd<'_>) -> Result<(), LaunchError> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::User))
        .at(stage::NAMESPACE, || "join the pod's user namespace")?;
    stay_protected()
}

/// Who changes namespaces or ids is dumpable by the node's rules (proc_sys_fs(5), `suid_dumpable`),
/// and root of the namespace may trace whoever is in it.
pub(super) fn stay_protected() -> Result<(), LaunchError> {
    protect_self().at(stage::NAMESPACE, || "make the process non-dumpable")
}

/// Makes the calling process root of the user namespace that it has joined; until then it is
/// somebody who is not known there, and can make no file.
pub(super) fn become_root() -> Result<(), LaunchError> {
    let at = stage::NAMESPACE;
    let what = || "become root of the user namespace";
    set_thread_groups(&[]).at(at, what)?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).at(at, what)?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).at(at, what)?;
    stay_protected()
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxIdMappingBuilder;

    use super::*;

    fn users(ranges: &[(u32, u32, u32)]) -> Vec<LinuxIdMapping> {
        let range = |&(inside, outside, length): &(u32, u32, u32)| {
            let range = LinuxIdMappingBuilder::default().container_id(inside);
            let range = range.host_id(outside).size(length);
            range.build().expect("a range")
        };
        ranges.iter().map(range).collect()
    }

    #[test]
    fn who_is_outside_of_the_maps_is_named() {
        let users = Users {
            namespace: open(Path::new("/proc/self/ns/user")).expect("our own"),
            maps: (users(&[(0, 70_000, 100)]), users(&[(0, 80_000, 200)])),
        };
        assert_eq!(users.root(), Ok((70_000, 80_000)));
        assert_eq!(users.outside(7, 150), Some((70_007, 80_150)));
        let identity = |uid, gid, groups: &[u32]| Identity {
            uid,
            gid,
            groups: groups.to_vec(),
        };
        let found = check(users.maps(), &identity(99, 199, &[199]));
        assert_eq!(found, Ok((70_099, 80_199)));
        for (wrong, word) in [
            (identity(100, 0, &[]), "user 100"),
            (identity(0, 200, &[]), "group 200"),
            (identity(0, 0, &[0, 300]), "group 300"),
        ] {
            let error = check(users.maps(), &wrong).expect_err(word);
            assert!(error.message.starts_with(word), "{error}");
        }
    }
}
