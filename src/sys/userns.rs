//! User namespaces, and namespaces that belong to one: made by a process that does nothing else,
//! and goes as soon as they are held otherwise.
//!
//! A thread cannot do it: a process with threads never leaves its user namespace. The process is a
//! copy of the caller, has none of its descriptors, and makes system calls alone. Nobody can see it
//! but the caller's own PID namespace.
//!
//! ```text
//! cloned ─► in the user namespace ─► the others made ─► says so ─► waits for its owner to let go
//! ```

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{
    DumpableBehavior, Signal, WaitId, WaitIdOptions, pidfd_send_signal, set_dumpable_behavior,
    waitid,
};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags, move_into_link_name_space,
};

use super::clone::{Child, spawn};
use super::nsfd::unshare_namespaces;
use super::process::close_all_but;

/// A process in namespaces of its own. It is gone, and reaped, when this is dropped.
#[derive(Debug)]
pub struct Holder {
    child: Child,
    /// Its end of file is the process' sign to go.
    _gate: OwnedFd,
}

impl Holder {
    /// A new user namespace, without maps as yet, and new namespaces of the kinds in `others`,
    /// which belong to it.
    ///
    /// # Errors
    ///
    /// What clone3(2) or unshare(2) returns: `NOSPC` when the node allows no (more) user
    /// namespaces.
    pub fn new(others: ThreadNameSpaceType) -> Result<Self, Errno> {
        Self::make(None, others)
    }

    /// New namespaces that belong to `users`.
    ///
    /// # Errors
    ///
    /// What setns(2) or unshare(2) returns.
    pub fn within(users: impl AsFd, others: ThreadNameSpaceType) -> Result<Self, Errno> {
        Self::make(Some(users.as_fd()), others)
    }

    fn make(users: Option<BorrowedFd<'_>>, others: ThreadNameSpaceType) -> Result<Self, Errno> {
        let (gate, inside) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let created = match users {
            None => ThreadNameSpaceType::USER,
            Some(_) => ThreadNameSpaceType::empty(),
        };
        let child = spawn(created, None, |_| {
            match settle(inside.as_fd(), users, others) {
                Ok(()) => 0,
                Err(errno) => errno.raw_os_error(),
            }
        })?;
        drop(inside);
        let mut holder = Self { child, _gate: gate };
        match holder.hears_that_all_is_made()? {
            true => Ok(holder),
            false => Err(holder.failure()),
        }
    }

    fn hears_that_all_is_made(&self) -> Result<bool, Errno> {
        let mut word = [0_u8; 1];
        rustix::io::retry_on_intr(|| rustix::io::read(&self._gate, &mut word))
            .map(|length| length == 1)
    }

    /// Why the process ended by itself.
    fn failure(&mut self) -> Errno {
        let status = waitid(
            WaitId::PidFd(self.child.pidfd.as_fd()),
            WaitIdOptions::EXITED,
        );
        let code = status
            .ok()
            .flatten()
            .and_then(|status| status.exit_status());
        code.filter(|code| *code > 0)
            .map_or(Errno::CHILD, Errno::from_raw_os_error)
    }

    /// Says which ids of the node stand behind those inside, as lines of `/proc/PID/uid_map` and
    /// `gid_map` (user_namespaces(7)). Once, and for a new namespace.
    ///
    /// # Errors
    ///
    /// When the kernel does not take them.
    pub fn map(&self, uids: &str, gids: &str) -> std::io::Result<()> {
        let pid = self.child.pid;
        fs::write(format!("/proc/{pid}/uid_map"), uids)?;
        fs::write(format!("/proc/{pid}/gid_map"), gids)
    }

    /// Where one of its namespaces is, by its name in `/proc/PID/ns`, for as long as this lives.
    #[must_use]
    pub fn path(&self, kind: &str) -> PathBuf {
        format!("/proc/{}/ns/{kind}", self.child.pid).into()
    }

    /// One of its namespaces, which lives as long as it is open.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub fn open(&self, kind: &str) -> std::io::Result<File> {
        File::open(self.path(kind))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.child.pidfd, Signal::KILL);
        // It waits for a byte and nothing else: there is nothing that could keep it from dying.
        let _ = waitid(
            WaitId::PidFd(self.child.pidfd.as_fd()),
            WaitIdOptions::EXITED,
        );
    }
}

/// The process itself. It may have been copied while another thread held the allocator's lock:
/// nothing here allocates.
fn settle(
    gate: BorrowedFd<'_>,
    users: Option<BorrowedFd<'_>>,
    others: ThreadNameSpaceType,
) -> Result<(), Errno> {
    let gate_number = gate.as_raw_fd();
    let mut kept = [
        gate_number,
        users.map_or(gate_number, |users| users.as_raw_fd()),
    ];
    close_all_but(&mut kept)?;
    if let Some(users) = users {
        move_into_link_name_space(users, Some(LinkNameSpaceType::User))?;
    }
    unshare_namespaces(UnshareFlags::from_bits_retain(others.bits()))?;
    // Last: changing user namespaces sets it anew.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::io::write(gate, b"1")?;
    let mut word = [0_u8; 1];
    rustix::io::retry_on_intr(|| rustix::io::read(gate, &mut word)).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::sys::nsfd::owner_of;

    const OTHERS: ThreadNameSpaceType = ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        .union(ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME);

    fn number(file: &File) -> u64 {
        file.metadata().expect("a namespace").ino()
    }

    #[test]
    fn namespaces_belong_to_the_user_namespace_and_outlive_their_maker() {
        let holder = Holder::new(OTHERS).expect("namespaces");
        holder.map("0 70000 100", "0 80000 100").expect("maps");
        let (users, ipc) = (holder.open("user").unwrap(), holder.open("ipc").unwrap());
        let text = fs::read_to_string(format!("/proc/{}/uid_map", holder.child.pid)).unwrap();
        let fields: Vec<_> = text.split_ascii_whitespace().collect();
        assert_eq!(fields, ["0", "70000", "100"]);
        let pid = holder.child.pid;
        drop(holder);
        assert!(
            !fs::exists(format!("/proc/{pid}/ns")).unwrap(),
            "it is still there"
        );
        let owner = File::from(owner_of(&ipc).expect("its owner"));
        assert_eq!(number(&owner), number(&users));
        let more = Holder::within(&users, OTHERS).expect("more of them");
        let uts = more.open("uts").expect("one of them");
        let owner = File::from(owner_of(&uts).expect("its owner"));
        assert_eq!(number(&owner), number(&users));
        assert_ne!(number(&more.open("ipc").unwrap()), number(&ipc));
    }

    #[test]
    fn what_the_kernel_refuses_is_told() {
        let file = File::open("/dev/null").expect("a file that is no namespace");
        let refused = Holder::within(&file, ThreadNameSpaceType::empty());
        assert_eq!(refused.expect_err("no namespace"), Errno::INVAL);
        let holder = Holder::new(ThreadNameSpaceType::empty()).expect("a namespace");
        assert!(holder.map("0 0", "0 0").is_err());
    }
}
