//! What a process can no longer do once it runs its command: a profile of AppArmor, and a seccomp
//! filter.
//!
//! Prepared while `/proc` is the node's, put on as the very last thing before exec. From then on
//! the child makes two system calls: execve, and, if that fails, the message that says so.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{CWD, Mode, OFlags, PROC_SUPER_MAGIC, fstatfs, openat};
use rustix::io::Errno;

use super::error::{At, LaunchError, stage};
use super::plan::SeccompFilter;
use crate::sys::seccomp;

/// Where a thread says what it wants to be after exec; a kernel without stacked security modules
/// has the second only (proc(5), `Documentation/admin-guide/LSM`).
const EXEC_ATTRIBUTES: [&str; 2] = ["thread-self/attr/apparmor/exec", "thread-self/attr/exec"];

/// What is put on before exec.
#[derive(Debug, Default)]
pub(super) struct Confinement {
    profile: Option<Profile>,
    filter: Option<(Vec<u8>, u32)>,
}

#[derive(Debug)]
struct Profile {
    /// Where the calling thread says what it wants to be, and nobody else can.
    attribute: OwnedFd,
    wish: String,
    /// The node's `/proc`, if children are to say the same of themselves.
    proc: Option<OwnedFd>,
}

impl Confinement {
    /// Takes hold of what will be needed. `/proc` has to be the node's still.
    pub(super) fn prepare(
        profile: Option<&str>,
        filter: Option<&SeccompFilter>,
    ) -> Result<Self, LaunchError> {
        let profile = profile.filter(|name| !name.is_empty()).map(|name| {
            let what = || format!("ask for AppArmor profile {name:?}: the kernel has no AppArmor");
            let attribute = open_attribute(CWD, "/proc/").at(stage::CONFINEMENT, what)?;
            Ok(Profile {
                attribute,
                wish: format!("exec {name}"),
                proc: None,
            })
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

    /// Keeps what children need to put it on. `/proc` has to be the node's still.
    pub(super) fn for_children(mut self) -> Result<Self, LaunchError> {
        if let Some(profile) = &mut self.profile {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let proc = openat(CWD, "/proc", flags, Mode::empty());
            profile.proc = Some(proc.at(stage::CONFINEMENT, || "hold the node's /proc")?);
        }
        Ok(self)
    }

    /// Whether `CAP_SYS_ADMIN` has to be there still when it is put on.
    pub(super) fn has_filter(&self) -> bool {
        self.filter.is_some()
    }

    /// Puts all of it on. A filter comes last: it may forbid everything but execve.
    pub(super) fn put_on(&self) -> Result<(), LaunchError> {
        if let Some(profile) = &self.profile {
            profile.change(&profile.attribute)?;
        }
        self.install_filter()
    }

    /// Puts all of it on in a child of the process that has prepared it.
    pub(super) fn put_on_child(&self) -> Result<(), LaunchError> {
        if let Some(profile) = &self.profile {
            let proc = profile.proc.as_ref().ok_or(Errno::BADF);
            let attribute = proc.and_then(|proc| open_attribute(proc.as_fd(), ""));
            profile.change(&attribute.at(stage::CONFINEMENT, || "ask for an AppArmor profile")?)?;
        }
        self.install_filter()
    }

    fn install_filter(&self) -> Result<(), LaunchError> {
        if let Some((program, flags)) = &self.filter {
            seccomp::install(program, *flags)
                .at(stage::CONFINEMENT, || "install the seccomp filter")?;
        }
        Ok(())
    }
}

impl Profile {
    fn change(&self, attribute: &OwnedFd) -> Result<(), LaunchError> {
        let wish = &self.wish;
        let told = rustix::io::write(attribute, wish.as_bytes());
        told.map(drop).at(stage::CONFINEMENT, || {
            format!("change to AppArmor profile: {wish}")
        })
    }
}

/// That of the calling thread, below `base` in `from`, which has to be a procfs.
fn open_attribute(from: BorrowedFd<'_>, base: &str) -> Result<OwnedFd, Errno> {
    let mut last = Errno::NOENT;
    for name in EXEC_ATTRIBUTES {
        let path = format!("{base}{name}");
        match openat(from, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) if fstatfs(&fd)?.f_type == PROC_SUPER_MAGIC => return Ok(fd),
            Ok(_) => last = Errno::NOENT,
            Err(errno) => last = errno,
        }
    }
    Err(last)
}
