//! Looking at a dead child without reaping it.
#![expect(
    unsafe_code,
    reason = "no safe wrapper tells the process id and leaves real-time signals alone"
)]

/// The process id of a child that is dead and not reaped; `None` if there is none.
///
/// The same one is told until it is reaped (waitpid(2), `WNOWAIT`).
#[must_use]
pub fn dead_child() -> Option<i32> {
    // SAFETY: siginfo_t is a C struct of integers, for which all zeroes is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the struct outlives the call.
    let returned = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) };
    if returned != 0 {
        return None;
    }
    // SAFETY: waitid fills in the fields of a SIGCHLD, or leaves the zeroes.
    let pid = unsafe { info.si_pid() };
    (pid != 0).then_some(pid)
}
