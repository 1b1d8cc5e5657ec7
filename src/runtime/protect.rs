//! What keeps a container from reaching the runtime that starts it (CVE-2019-5736 and its kin).
//!
//! Between clone and exec the child is this program, inside the container. Three things keep it out
//! of reach there: it is not dumpable, so that processes of the container can neither trace it nor
//! open anything below its `/proc` entry; no magic link is executed; and the program file itself is
//! seen through a read-only mount, so that even a container that gets it executed (a script whose
//! interpreter is `/proc/self/exe`) holds a file it cannot write.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;

use nix::fcntl::AtFlags;
use rustix::fs::{CWD, StatVfsMountFlags, statvfs};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::sys::mounts::{MountAttributes, set_attributes};
use crate::sys::process::new_session_keyring;

/// Makes the calling process non-dumpable (prctl(2), `PR_SET_DUMPABLE`). Children inherit it; exec
/// of a readable file ends it.
///
/// # Errors
///
/// What prctl(2) returns.
pub fn protect_self() -> Result<(), Errno> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// Leaves the session keyring of the shim, which all containers would share otherwise: keys are in
/// no namespace.
///
/// # Errors
///
/// What keyctl(2) returns, but for a kernel or a filter around us that has no keys at all.
pub fn leave_keyring() -> Result<(), Errno> {
    match new_session_keyring() {
        Err(Errno::NOSYS | Errno::PERM) => Ok(()),
        other => other,
    }
}

/// Executes this program again through a read-only mount of its own file, with the same arguments
/// and environment. Returns at once if that has been done.
///
/// The mount is attached nowhere: nothing can remount it, it needs no cleaning up, and it shares
/// the page cache with the original file. `/proc/self/exe` of the process no longer tells a path.
/// Descriptors that are to survive must not be close-on-exec.
///
/// # Errors
///
/// What open_tree(2), mount_setattr(2) or execveat(2) returns; the process is then as it was.
pub fn reexec_read_only() -> Result<(), Errno> {
    let exe = "/proc/self/exe";
    if statvfs(exe)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let file = open_tree(CWD, exe, flags)?;
    let change = MountAttributes {
        set: libc::MOUNT_ATTR_RDONLY,
        propagation: libc::MS_PRIVATE,
        ..MountAttributes::default()
    };
    set_attributes(&file, false, change)?;
    let arguments = std::env::args_os().map(|argument| CString::new(argument.into_vec()));
    let arguments: Vec<CString> = arguments
        .collect::<Result<_, _>>()
        .map_err(|_| Errno::INVAL)?;
    let environment = std::env::vars_os().map(|(name, value)| {
        CString::new([name.into_vec(), b"=".to_vec(), value.into_vec()].concat())
    });
    let environment: Vec<CString> = environment
        .collect::<Result<_, _>>()
        .map_err(|_| Errno::INVAL)?;
    let flags = AtFlags::AT_EMPTY_PATH;
    match nix::unistd::execveat(file.as_fd(), c"", &arguments, &environment, flags) {
        Ok(never) => match never {},
        Err(errno) => Err(Errno::from_raw_os_error(errno as i32)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::launch_tests::alone;

    #[test]
    fn the_program_can_run_from_a_file_that_nobody_can_write() {
        alone(|| {
            reexec_read_only().expect("a new process, or the same the second time");
            // Changing its mode asks the mount alone; opening it for writing would also find it
            // busy.
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            let changed = std::fs::set_permissions("/proc/self/exe", mode);
            assert_eq!(
                changed.expect_err("read-only").raw_os_error(),
                Some(libc::EROFS)
            );
        });
    }

    #[test]
    fn a_protected_process_is_not_dumpable() {
        alone(|| {
            protect_self().expect("prctl");
            let now = rustix::process::dumpable_behavior().expect("prctl");
            assert_eq!(now, DumpableBehavior::NotDumpable);
        });
    }
}
