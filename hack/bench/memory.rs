//! What a runtime's own processes take: proportional set size, as `/proc/<pid>/smaps_rollup` has it
//! (proc(5)), so that shared pages are counted once.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::Serialize;

/// Which processes are the runtime.
#[derive(Debug)]
pub(crate) struct Selection {
    /// The process that listens here is one.
    pub(crate) socket: PathBuf,
    /// So are these,
    pub(crate) pids: Vec<i32>,
    /// and all with these names.
    pub(crate) names: Vec<String>,
}

/// One process of the runtime.
#[derive(Debug, Serialize)]
pub(crate) struct Process {
    pid: i32,
    name: String,
    /// Bytes.
    pub(crate) pss_bytes: u64,
}

/// Every process of the runtime.
pub(crate) fn processes(selection: &Selection) -> Result<Vec<i32>> {
    let daemon = listener(&selection.socket)?;
    let state = state_argument(daemon);
    let chosen = |&pid: &i32| {
        let name = comm(pid);
        pid == daemon
            || selection.pids.contains(&pid)
            || selection.names.iter().any(|wanted| matches(&name, wanted))
            || is_sibling(pid, daemon, state.as_deref())
    };
    Ok(all_pids()?.into_iter().filter(chosen).collect())
}

/// Measures every process of the runtime, the largest first.
pub(crate) fn measure(selection: &Selection) -> Result<Vec<Process>> {
    let pids = processes(selection)?.into_iter();
    // A process may end between being listed and being read.
    let mut found: Vec<Process> = pids
        .filter_map(|pid| {
            Some(Process {
                pid,
                name: comm(pid),
                pss_bytes: pss(pid)?,
            })
        })
        .collect();
    found.sort_by_key(|process| std::cmp::Reverse(process.pss_bytes));
    Ok(found)
}

/// The process at the other end of the socket (`SO_PEERCRED`, unix(7)).
pub(crate) fn listener(socket: &Path) -> Result<i32> {
    let stream =
        UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    let peer = getsockopt(&stream, PeerCredentials).context("ask who listens")?;
    Ok(peer.pid())
}

/// The value of the daemon's `--state`, which its shim has too.
fn state_argument(pid: i32) -> Option<String> {
    let mut arguments = command_line(pid).into_iter();
    arguments.find(|argument| argument == "--state")?;
    arguments.next()
}

/// Whether a process is the daemon's on the daemon's own state: itself, or its shim, which runs
/// from a mount of its own and so under another path.
fn is_sibling(pid: i32, daemon: i32, state: Option<&str>) -> bool {
    let arguments = command_line(pid);
    let role = arguments.get(1).map(String::as_str);
    state.is_some_and(|state| arguments.iter().any(|argument| argument == state))
        && (pid == daemon || role == Some("shim"))
}

fn all_pids() -> Result<Vec<i32>> {
    let entries = fs::read_dir("/proc").context("list /proc")?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

/// The kernel keeps 15 bytes of a name.
fn matches(comm: &str, wanted: &str) -> bool {
    comm == wanted.get(..15).unwrap_or(wanted)
}

fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .unwrap_or_default()
        .trim_end()
        .to_owned()
}

fn command_line(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|&byte| byte == 0)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect()
}

fn pss(pid: i32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}
