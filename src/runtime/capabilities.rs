//! Ids and capabilities of a process: the point after which it can no longer do harm.
//!
//! Capabilities that this node does not have itself are left out without an error, so that the same
//! pod runs on a restricted node; whatever needs them will fail where it does.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use super::confine::Confinement;
use super::error::{At, LaunchError, stage};
use super::user::Identity;

/// The five sets of a process (capabilities(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sets {
    pub(super) bounding: CapabilitySet,
    pub(super) permitted: CapabilitySet,
    pub(super) effective: CapabilitySet,
    pub(super) inheritable: CapabilitySet,
    pub(super) ambient: CapabilitySet,
}

impl Sets {
    pub(super) const NONE: Self = Self {
        bounding: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        effective: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
        ambient: CapabilitySet::empty(),
    };

    /// Those of a runtime spec; what it does not mention is empty.
    pub(super) fn from_spec(spec: Option<&LinuxCapabilities>) -> Self {
        let Some(spec) = spec else { return Self::NONE };
        Self {
            bounding: set(spec.bounding().as_ref()),
            permitted: set(spec.permitted().as_ref()),
            effective: set(spec.effective().as_ref()),
            inheritable: set(spec.inheritable().as_ref()),
            ambient: set(spec.ambient().as_ref()),
        }
    }

    /// Those of an exec: the same bounding, permitted and effective set.
    pub(super) fn from_names(names: &[String]) -> Result<Self, LaunchError> {
        let mut all = CapabilitySet::empty();
        for name in names {
            let known = name
                .strip_prefix("CAP_")
                .unwrap_or(name)
                .parse::<Capability>();
            let Ok(capability) = known else {
                let message = format!("capability {name:?} does not exist");
                return Err(LaunchError::invalid(stage::CAPABILITIES, message));
            };
            all |= flag(capability);
        }
        Ok(Self {
            bounding: all,
            permitted: all,
            effective: all,
            ..Self::NONE
        })
    }

    /// What is left of the sets for a process that has only `own`, made consistent as the kernel
    /// demands: effective within permitted, ambient within permitted and inheritable.
    fn within(self, own: CapabilitySet) -> Self {
        let permitted = self.permitted & own;
        let inheritable = self.inheritable & own & self.bounding;
        Self {
            bounding: self.bounding,
            permitted,
            effective: self.effective & permitted,
            inheritable,
            ambient: self.ambient & permitted & inheritable,
        }
    }
}

/// The sets of a spec without what this node does not have itself, for those who would refuse it.
pub(super) fn of_this_node(spec: &LinuxCapabilities) -> LinuxCapabilities {
    let mut own_sets = spec.clone();
    let Ok(own) = capabilities(None) else {
        return own_sets;
    };
    let within = |set: &Option<Capabilities>| {
        let set = set.iter().flatten().copied();
        let set = set.filter(|one| own.permitted.contains(flag(*one)));
        Some(set.collect::<Capabilities>())
    };
    own_sets
        .set_bounding(within(spec.bounding()))
        .set_permitted(within(spec.permitted()))
        .set_effective(within(spec.effective()))
        .set_inheritable(within(spec.inheritable()))
        .set_ambient(within(spec.ambient()));
    own_sets
}

fn set(capabilities: Option<&Capabilities>) -> CapabilitySet {
    capabilities
        .into_iter()
        .flatten()
        .fold(CapabilitySet::empty(), |all, one| all | flag(*one))
}

fn flag(capability: Capability) -> CapabilitySet {
    match capability {
        Capability::AuditControl => CapabilitySet::AUDIT_CONTROL,
        Capability::AuditRead => CapabilitySet::AUDIT_READ,
        Capability::AuditWrite => CapabilitySet::AUDIT_WRITE,
        Capability::BlockSuspend => CapabilitySet::BLOCK_SUSPEND,
        Capability::Bpf => CapabilitySet::BPF,
        Capability::CheckpointRestore => CapabilitySet::CHECKPOINT_RESTORE,
        Capability::Chown => CapabilitySet::CHOWN,
        Capability::DacOverride => CapabilitySet::DAC_OVERRIDE,
        Capability::DacReadSearch => CapabilitySet::DAC_READ_SEARCH,
        Capability::Fowner => CapabilitySet::FOWNER,
        Capability::Fsetid => CapabilitySet::FSETID,
        Capability::IpcLock => CapabilitySet::IPC_LOCK,
        Capability::IpcOwner => CapabilitySet::IPC_OWNER,
        Capability::Kill => CapabilitySet::KILL,
        Capability::Lease => CapabilitySet::LEASE,
        Capability::LinuxImmutable => CapabilitySet::LINUX_IMMUTABLE,
        Capability::MacAdmin => CapabilitySet::MAC_ADMIN,
        Capability::MacOverride => CapabilitySet::MAC_OVERRIDE,
        Capability::Mknod => CapabilitySet::MKNOD,
        Capability::NetAdmin => CapabilitySet::NET_ADMIN,
        Capability::NetBindService => CapabilitySet::NET_BIND_SERVICE,
        Capability::NetBroadcast => CapabilitySet::NET_BROADCAST,
        Capability::NetRaw => CapabilitySet::NET_RAW,
        Capability::Perfmon => CapabilitySet::PERFMON,
        Capability::Setgid => CapabilitySet::SETGID,
        Capability::Setfcap => CapabilitySet::SETFCAP,
        Capability::Setpcap => CapabilitySet::SETPCAP,
        Capability::Setuid => CapabilitySet::SETUID,
        Capability::SysAdmin => CapabilitySet::SYS_ADMIN,
        Capability::SysBoot => CapabilitySet::SYS_BOOT,
        Capability::SysChroot => CapabilitySet::SYS_CHROOT,
        Capability::SysModule => CapabilitySet::SYS_MODULE,
        Capability::SysNice => CapabilitySet::SYS_NICE,
        Capability::SysPacct => CapabilitySet::SYS_PACCT,
        Capability::SysPtrace => CapabilitySet::SYS_PTRACE,
        Capability::SysRawio => CapabilitySet::SYS_RAWIO,
        Capability::SysResource => CapabilitySet::SYS_RESOURCE,
        Capability::SysTime => CapabilitySet::SYS_TIME,
        Capability::SysTtyConfig => CapabilitySet::SYS_TTY_CONFIG,
        Capability::Syslog => CapabilitySet::SYSLOG,
        Capability::WakeAlarm => CapabilitySet::WAKE_ALARM,
    }
}

/// What is still to come once a process is who it will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    /// Nothing.
    Exec,
    /// Nothing, and exec may not add privileges (prctl(2), `PR_SET_NO_NEW_PRIVS`). That alone
    /// allows a filter.
    NoNewPrivileges,
    /// A filter, which without the former needs `CAP_SYS_ADMIN`. It is kept until exec takes it:
    /// what a process may do afterwards comes from its bounding, inheritable and ambient sets
    /// (capabilities(7)), which never had it. So no call that a profile might forbid comes between
    /// the filter and exec.
    Filter,
}

impl Last {
    pub(super) fn of(confinement: &Confinement, no_new_privileges: bool) -> Self {
        match (no_new_privileges, confinement.has_filter()) {
            (true, _) => Self::NoNewPrivileges,
            (false, true) => Self::Filter,
            (false, false) => Self::Exec,
        }
    }
}

/// Becomes `identity` with `sets`. The order is the kernel's: the bounding set and the groups can
/// only be changed while still capable, and the ids must change before the last capability goes.
pub(super) fn become_user(identity: &Identity, sets: Sets, last: Last) -> Result<(), LaunchError> {
    let at = stage::CAPABILITIES;
    let own = capabilities(None).at(at, || "read capabilities")?.permitted;
    let sets = sets.within(own);
    drop_bounding(sets.bounding).at(at, || "drop capabilities from the bounding set")?;
    set_keep_capabilities(true).at(at, || "keep capabilities across setuid")?;
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    set_thread_groups(&groups).at(at, || format!("set groups {:?}", identity.groups))?;
    let gid = Gid::from_raw(identity.gid);
    set_thread_res_gid(gid, gid, gid).at(at, || format!("set group id {}", identity.gid))?;
    let uid = Uid::from_raw(identity.uid);
    set_thread_res_uid(uid, uid, uid).at(at, || format!("set user id {}", identity.uid))?;
    if last == Last::NoNewPrivileges {
        set_no_new_privs(true).at(at, || "set no_new_privs")?;
    }
    let kept = match last {
        Last::Filter => CapabilitySet::SYS_ADMIN & own,
        Last::Exec | Last::NoNewPrivileges => CapabilitySet::empty(),
    };
    let wanted = CapabilitySets {
        effective: sets.effective | kept,
        permitted: sets.permitted | kept,
        inheritable: sets.inheritable,
    };
    set_capabilities(None, wanted).at(at, || format!("set capabilities {wanted:?}"))?;
    clear_ambient_capability_set().at(at, || "clear ambient capabilities")?;
    for one in sets.ambient.iter() {
        configure_capability_in_ambient_set(one, true)
            .at(at, || format!("raise ambient {one:?}"))?;
    }
    Ok(())
}

/// Drops everything but `keep`, up to the last capability that this kernel knows.
fn drop_bounding(keep: CapabilitySet) -> Result<(), Errno> {
    for number in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if keep.contains(one) {
            continue;
        }
        match remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_oci_names() {
        let names = ["CAP_CHOWN".to_owned(), "NET_RAW".to_owned()];
        let sets = Sets::from_names(&names).expect("known");
        assert_eq!(sets.bounding, CapabilitySet::CHOWN | CapabilitySet::NET_RAW);
        assert!(sets.ambient.is_empty() && sets.inheritable.is_empty());
        let error = Sets::from_names(&["CAP_FLY".to_owned()]).expect_err("unknown");
        assert!(error.message.contains("CAP_FLY"));
    }

    proptest! {
        #[test]
        fn sets_are_always_ones_that_the_kernel_accepts(
            bounding: u64, permitted: u64, effective: u64, inheritable: u64, ambient: u64, own: u64
        ) {
            let bits = CapabilitySet::from_bits_retain;
            let sets = Sets {
                bounding: bits(bounding),
                permitted: bits(permitted),
                effective: bits(effective),
                inheritable: bits(inheritable),
                ambient: bits(ambient),
            };
            let sets = sets.within(bits(own));
            prop_assert!(bits(own).contains(sets.permitted));
            prop_assert!(sets.permitted.contains(sets.effective));
            prop_assert!((sets.permitted & sets.inheritable).contains(sets.ambient));
        }
    }
}
