//! Resource limits and the OOM score of a process.
//!
//! Raising either needs `CAP_SYS_RESOURCE`, which a restricted node lacks. A score that cannot be
//! lowered stays what it is: the container merely dies earlier. A limit that cannot be set is an
//! error: the program would fail later, and stranger.

use oci_spec::OciSpecError;
use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType};
use rustix::fs::{CWD, Mode, OFlags, PROC_SUPER_MAGIC, fstatfs, openat};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::error::{At, LaunchError, stage};
use crate::sys::process::limit_of;

/// All that a process has.
const KINDS: [PosixRlimitType; 16] = [
    PosixRlimitType::RlimitCpu,
    PosixRlimitType::RlimitFsize,
    PosixRlimitType::RlimitData,
    PosixRlimitType::RlimitStack,
    PosixRlimitType::RlimitCore,
    PosixRlimitType::RlimitRss,
    PosixRlimitType::RlimitNproc,
    PosixRlimitType::RlimitNofile,
    PosixRlimitType::RlimitMemlock,
    PosixRlimitType::RlimitAs,
    PosixRlimitType::RlimitLocks,
    PosixRlimitType::RlimitSigpending,
    PosixRlimitType::RlimitMsgqueue,
    PosixRlimitType::RlimitNice,
    PosixRlimitType::RlimitRtprio,
    PosixRlimitType::RlimitRttime,
];

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

/// Sets the limits of a plan on the calling process.
pub(super) fn set_rlimits(limits: &[PosixRlimit]) -> Result<(), LaunchError> {
    set_each(limits, PosixRlimit::soft)
}

/// Sets the hard limits of a plan, for a process that is about to lose the right to raise them and
/// has work to do before the soft ones hold.
pub(super) fn set_hard_limits(limits: &[PosixRlimit]) -> Result<(), LaunchError> {
    set_each(limits, PosixRlimit::hard)
}

fn set_each(limits: &[PosixRlimit], soft: fn(&PosixRlimit) -> u64) -> Result<(), LaunchError> {
    for limit in limits {
        let kind = resource(limit.typ());
        // u64::MAX is RLIM_INFINITY in the plan as in the kernel; rustix says it with `None`.
        let bound = |value: u64| (value != u64::MAX).then_some(value);
        let wanted = Rlimit {
            current: bound(soft(limit)),
            maximum: bound(limit.hard()),
        };
        setrlimit(kind, wanted).map_err(|errno| {
            let now = getrlimit(kind)
                .maximum
                .map_or("unlimited".into(), |max| max.to_string());
            let (soft, hard) = (limit.soft(), limit.hard());
            let what = format!(
                "set {} to soft {soft}, hard {hard} (the node's hard limit is {now})",
                limit.typ()
            );
            LaunchError::refused(stage::LIMITS, what, errno)
        })?;
    }
    Ok(())
}

/// What a further process of a container takes over from the first.
#[derive(Debug)]
pub(super) struct Inherited {
    limits: Vec<(PosixRlimitType, Rlimit)>,
    oom_score_adj: Option<i32>,
}

impl Inherited {
    /// The limits as a runtime spec has them.
    pub(super) fn rlimits(&self) -> Result<Vec<PosixRlimit>, OciSpecError> {
        let unlimited = |bound: Option<u64>| bound.unwrap_or(u64::MAX);
        let limits = self.limits.iter();
        let limits = limits.map(|(kind, limit)| {
            PosixRlimitBuilder::default()
                .typ(*kind)
                .soft(unlimited(limit.current))
                .hard(unlimited(limit.maximum))
                .build()
        });
        limits.collect()
    }

    /// The OOM score.
    pub(super) fn oom_score_adj(&self) -> Option<i32> {
        self.oom_score_adj
    }
}

/// Reads the limits and the OOM score of a process.
pub(super) fn of_process(pid: i32) -> Inherited {
    let read = |kind| Some((kind, limit_of(pid, resource(kind)).ok()?));
    let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"));
    Inherited {
        limits: KINDS.into_iter().filter_map(read).collect(),
        oom_score_adj: score.ok().and_then(|text| text.trim().parse().ok()),
    }
}

/// Gives them to the calling process. A limit that may not be raised stays.
pub(super) fn inherit(from: &Inherited) -> Result<(), LaunchError> {
    for (kind, wanted) in &from.limits {
        let kind = resource(*kind);
        if getrlimit(kind) != *wanted {
            let _ = setrlimit(kind, *wanted);
        }
    }
    from.oom_score_adj.map_or(Ok(()), set_oom_score_adj)
}

/// Sets the OOM score adjustment of the calling process, or leaves it if it may not be lowered.
///
/// Goes through the node's procfs, before the container's is in sight, and makes sure of it.
pub(super) fn set_oom_score_adj(wanted: i32) -> Result<(), LaunchError> {
    let what = || format!("set oom_score_adj to {wanted}");
    if !(-1000..=1000).contains(&wanted) {
        return Err(LaunchError::refused(stage::LIMITS, what(), Errno::INVAL));
    }
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let file =
        openat(CWD, "/proc/self/oom_score_adj", flags, Mode::empty()).at(stage::LIMITS, what)?;
    if fstatfs(&file).at(stage::LIMITS, what)?.f_type != PROC_SUPER_MAGIC {
        return Err(LaunchError::invalid(stage::LIMITS, "/proc is not a procfs"));
    }
    let mut buffer = [0_u8; 16];
    let length = rustix::io::read(&file, &mut buffer).at(stage::LIMITS, what)?;
    let now = std::str::from_utf8(&buffer[..length])
        .ok()
        .and_then(|text| text.trim().parse().ok());
    match rustix::io::write(&file, wanted.to_string().as_bytes()) {
        Ok(_) => Ok(()),
        Err(Errno::ACCESS | Errno::PERM) if now.is_some_and(|now: i32| wanted < now) => Ok(()),
        Err(errno) => Err(LaunchError::refused(stage::LIMITS, what(), errno)),
    }
}
