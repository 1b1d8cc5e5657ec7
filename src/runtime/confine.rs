//! What a process can no longer do once it runs its command: a profile of AppArmor, and a seccomp
//! filter.
//!
//! Prepared while `/proc` is the node's, put on as the very last thing before exec. From then on
//! the child makes two system calls: execve, and, if that fails, the message that says so.

use std::os::fd::OwnedFd;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{CWD, Mode, OFlags, PROC_SUPER_MAGIC, fstatfs, openat};
use rustix::io::Errno;

use super::error::{At, LaunchError, stage};
use super::plan::SeccompFilter;
use crate::sys::seccomp;

/// Where a thread says what it wants to be after exec; a kernel without stacked security modules
/// has the second only (proc(5), `Documentation/admin-guide/LSM`).
const EXEC_ATTRIBUTES: [&str; 2] = [
    "/proc/thread-self/attr/apparmor/exec",
    "/proc/thread-self/attr/exec",
];

/// What is put on before exec.
#[derive(Debug, Default)]
pub(super) struct Confinement {
    profile: Option<(OwnedFd, String)>,
    filter: Option<(Vec<u8>, u32)>,
}

impl Confinement {
    /// Takes hold of what will be needed. `/proc` has to be the node's still.
    pub(super) fn prepare(
        profile: Option<&str>,
        filter: Option<&SeccompFilter>,
    ) -> Result<Self, LaunchError> {
        let profile = profile.filter(|name| !name.is_empty()).map(|name| {
            let what = || format!("ask for AppArmor profile {name:?}: the kernel has no AppArmor");
            let attribute = open_attribute().at(stage::CONFINEMENT, what)?;
            Ok((attribute, format!("exec {name}")))
        });
        let filter = filter.map(|filter| match STANDARD.decode(&filter.program) {
            Ok(program) => Ok((program, filter.flags)),
            Err(_) => {
                let message = "the seccomp program of the plan is no base64";
                Err(LaunchError::invalid(stage::PLAN, message))
            }
        });
        Ok(Self {
            profile: profile.transpose()?,
            filter: filter.transpose()?,
        })
    }

    /// Whether `CAP_SYS_ADMIN` has to be there still when it is put on.
    pub(super) fn has_filter(&self) -> bool {
        self.filter.is_some()
    }

    /// Puts all of it on. A filter comes last: it may forbid everything but execve.
    pub(super) fn put_on(&self) -> Result<(), LaunchError> {
        if let Some((attribute, wish)) = &self.profile {
            rustix::io::write(attribute, wish.as_bytes()).at(stage::CONFINEMENT, || {
                format!("change to AppArmor profile: {wish}")
            })?;
        }
        if let Some((program, flags)) = &self.filter {
            seccomp::install(program, *flags)
                .at(stage::CONFINEMENT, || "install the seccomp filter")?;
        }
        Ok(())
    }
}

fn open_attribute() -> Result<OwnedFd, Errno> {
    let mut last = Errno::NOENT;
    for path in EXEC_ATTRIBUTES {
        match openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) if fstatfs(&fd)?.f_type == PROC_SUPER_MAGIC => return Ok(fd),
            Ok(_) => last = Errno::NOENT,
            Err(errno) => last = errno,
        }
    }
    Err(last)
}
