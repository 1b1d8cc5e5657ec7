//! The pseudo-terminal of a process, taken from the container's own devpts.
//!
//! The master side goes to the shim; the slave side becomes the standard streams, the controlling
//! terminal and, for a container's first process, `/dev/console`.

use std::os::fd::OwnedFd;

use rustix::fs::{FsWord, OFlags, fstatfs};
use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::error::{At, LaunchError, stage};
use super::launch::ProcessStreams;
use super::mounts::{attach, clone_of};
use super::root::{Missing, Root};

/// Magic number of devpts (linux/magic.h).
const DEVPTS_SUPER_MAGIC: FsWord = 0x1cd1;

/// Both sides of a pseudo-terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    pub(super) master: OwnedFd,
    pub(super) slave: OwnedFd,
}

/// Allocates a pseudo-terminal, of `size` (rows, columns) if there is one.
pub(super) fn open(root: &Root, size: Option<(u16, u16)>) -> Result<Terminal, LaunchError> {
    let what = || "allocate a pseudo-terminal from /dev/pts/ptmx";
    let at = stage::TERMINAL;
    let master = root
        .open("/dev/pts/ptmx", OFlags::RDWR | OFlags::NOCTTY)
        .at(at, what)?;
    if fstatfs(&master).at(at, what)?.f_type != DEVPTS_SUPER_MAGIC {
        return Err(LaunchError::invalid(at, "/dev/pts is not a devpts"));
    }
    unlockpt(&master).at(at, what)?;
    // The peer by its master, not by a name that something else could answer to.
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, flags).at(at, what)?;
    if let Some((rows, columns)) = size {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&slave, size).at(at, || "set the size of the terminal")?;
    }
    Ok(Terminal { master, slave })
}

/// Binds the slave side on `/dev/console`.
pub(super) fn make_console(root: &Root, slave: &OwnedFd) -> Result<(), LaunchError> {
    let what = || "bind the terminal on /dev/console";
    let target = root
        .ensure("/dev/console", Missing::File)
        .at(stage::TERMINAL, what)?;
    let tree = clone_of(slave, false).at(stage::TERMINAL, what)?;
    attach(&tree, &target).at(stage::TERMINAL, what)
}

/// Makes the slave side the controlling terminal of the calling process, which leads a session
/// without one, and its three streams.
pub(super) fn into_streams(slave: OwnedFd) -> Result<ProcessStreams, LaunchError> {
    ioctl_tiocsctty(&slave).at(stage::TERMINAL, || "make it the controlling terminal")?;
    let copy =
        || rustix::io::fcntl_dupfd_cloexec(&slave, 3).at(stage::TERMINAL, || "copy the terminal");
    let (stdin, stdout) = (copy()?, copy()?);
    Ok(ProcessStreams {
        stdin,
        stdout,
        stderr: slave,
    })
}
