//! Processes of a test: found by what is exactly theirs, ended by pid.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::leftover::is_in_cgroup;
use super::names::Names;
use super::wait::poll;

/// Every process of the machine.
pub(crate) fn all() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The arguments of a process; empty when it is gone, a zombie, or a kernel thread.
pub(crate) fn arguments(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.split('\0')
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Processes with `argument` among their arguments, exactly.
pub(crate) fn with_argument(argument: &str) -> Vec<i32> {
    all()
        .into_iter()
        .filter(|pid| arguments(*pid).iter().any(|a| a == argument))
        .collect()
}

/// Processes of a daemon's containers with `argument` among their arguments, exactly.
pub(crate) fn of_containers(names: &Names, argument: &str) -> Vec<i32> {
    let mut found = with_argument(argument);
    found.retain(|pid| is_in_cgroup(names, *pid));
    found
}

/// Whether a process runs: neither gone nor a zombie.
pub(crate) fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses and may hold any character.
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// Children of a process that have ended and are not reaped.
pub(crate) fn zombies_of(parent: i32) -> Vec<i32> {
    let is_zombie = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        rest.starts_with(&format!("Z {parent} "))
    };
    all().into_iter().filter(is_zombie).collect()
}

/// Sends a signal; a process that is gone is no error.
pub(crate) fn signal(pid: i32, signal: Signal) {
    assert!(
        pid > 1 && pid != std::process::id() as i32,
        "{pid} is nobody a test may signal"
    );
    // The one error besides "gone" is "not permitted", and tests run as root.
    let _gone = kill(Pid::from_raw(pid), signal);
}

/// Asks a process to end, then ends it. Returns when it has ended.
pub(crate) fn end(pid: i32) {
    signal(pid, Signal::SIGTERM);
    let gone = || (!is_running(pid)).then_some(());
    if poll(Duration::from_secs(2), gone).is_none() {
        signal(pid, Signal::SIGKILL);
        let ended = poll(Duration::from_secs(5), gone);
        assert!(
            ended.is_some(),
            "process {pid} survives SIGKILL: {:?}",
            arguments(pid)
        );
    }
}

/// When a process began, in ticks since the boot: proc_pid_stat(5), field 22.
fn began(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The nice value of a process: proc_pid_stat(5), field 19.
pub(crate) fn nice(pid: i32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(16)?.parse().ok()
}

/// The first process of a container, found by its cgroup; it must run. Numbers are given out from
/// the lowest again, so the first is not the one with the least.
pub(crate) fn in_cgroup_of(names: &Names, id: &str) -> i32 {
    let inside = |pid: &i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        text.lines()
            .any(|line| line.contains(&names.cgroup_root) && line.contains(id))
    };
    let found = poll(Duration::from_secs(5), || {
        let members = all().into_iter().filter(inside);
        let with_times = members.filter_map(|pid| Some((began(pid)?, pid)));
        with_times.min().map(|(_, pid)| pid)
    });
    found.unwrap_or_else(|| panic!("no process is in a cgroup of {id}"))
}

/// Waits until SIGTERM is caught: proc_pid_status(5), SigCgt, bit 14.
pub(crate) async fn catches_sigterm(pid: i32) {
    super::eventually("the trap is set", || async {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let caught = status
            .lines()
            .find_map(|line| line.strip_prefix("SigCgt:"))?;
        (u64::from_str_radix(caught.trim(), 16).ok()? >> 14 & 1 == 1).then_some(())
    })
    .await;
}
