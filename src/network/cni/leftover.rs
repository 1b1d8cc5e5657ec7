//! Plugins that a former daemon has started and that still run: what they would do comes too late
//! or twice, so they are ended before the network is touched again.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::child::MARK_VARIABLE;

/// How long they are waited for, and between two looks.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(2);
/// Verbs whose processes are nobody's once their daemon is gone.
const NOBODYS: [&str; 4] = ["CHECK", "GC", "STATUS", "VERSION"];

/// Ends plugins with this daemon's mark that were asked about one of `containers`, or about no
/// container, and waits for them. What a plugin has left running on purpose, for a pod that is up,
/// goes on. Returns how many there were. Blocks.
///
/// # Errors
/// When the processes of the node cannot be listed.
pub fn end_leftovers(mark: &str, containers: &BTreeSet<String>) -> std::io::Result<usize> {
    let mut ended = 0;
    let end = Instant::now() + PATIENCE;
    loop {
        let found = find(mark, containers)?;
        if found.is_empty() || Instant::now() > end {
            return Ok(ended);
        }
        for pid in found {
            let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
                continue;
            };
            // Looked at after opening: if it is that process now, it was that process then.
            if is_leftover(pid, mark, containers)
                && pidfd_send_signal(&process, Signal::KILL).is_ok()
            {
                ended += 1;
            }
        }
        // One that was just killed is there for a moment; killing it again does no harm.
        std::thread::sleep(PAUSE);
    }
}

fn find(mark: &str, containers: &BTreeSet<String>) -> std::io::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        let pid = number.and_then(Pid::from_raw);
        found.extend(pid.filter(|pid| is_leftover(*pid, mark, containers)));
    }
    Ok(found)
}

fn is_leftover(pid: Pid, mark: &str, containers: &BTreeSet<String>) -> bool {
    let of = |name: &str| {
        Path::new("/proc")
            .join(pid.as_raw_nonzero().to_string())
            .join(name)
    };
    // One that has ended has no environment any more.
    let Ok(environment) = std::fs::read(of("environ")) else {
        return false;
    };
    let value = |name: &str| {
        let mut pairs = environment.split(|byte| *byte == 0);
        pairs.find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    };
    if value(MARK_VARIABLE) != Some(mark.as_bytes()) {
        return false;
    }
    let namespace = |path: &Path| std::fs::read_link(path).ok();
    // A container may call itself anything; it does not see what we see.
    if namespace(&of("ns/mnt")) != namespace(Path::new("/proc/thread-self/ns/mnt")) {
        return false;
    }
    let asked = value("CNI_COMMAND").unwrap_or_default();
    let about = value("CNI_CONTAINERID").unwrap_or_default();
    let about = String::from_utf8_lossy(about);
    containers.contains(about.as_ref()) || NOBODYS.iter().any(|verb| verb.as_bytes() == asked)
}
