//! What the processes of a container hold, from `/proc`.

use std::fs;

use crate::state::sample::ProcessFigures;

/// Descriptors of one container that are looked at one by one, to see which are sockets. More cost
/// more than the figure is worth.
const LOOKED_AT: usize = 4096;

/// Counts what these processes hold; those that end meanwhile hold nothing. `first` is the one
/// whose limit is told.
pub(super) fn figures(pids: &[i32], first: Option<i32>) -> ProcessFigures {
    let mut figures = ProcessFigures {
        count: pids.len() as u64,
        descriptors_limit: first.and_then(descriptors_limit),
        ..ProcessFigures::default()
    };
    let mut left = LOOKED_AT;
    for pid in pids {
        let dir = format!("/proc/{pid}/fd");
        // Since Linux 6.2 the size of the directory is the number of its entries.
        figures.descriptors += match fs::metadata(&dir).map(|dir| dir.len()) {
            Ok(0) => fs::read_dir(&dir).map_or(0, |entries| entries.count() as u64),
            Ok(count) => count,
            Err(_) => 0,
        };
        let Some(entries) = (left > 0).then(|| fs::read_dir(&dir).ok()).flatten() else {
            continue;
        };
        for entry in entries.flatten().take(left) {
            left -= 1;
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let is_socket = target.to_string_lossy().starts_with("socket:");
            figures.sockets += u64::from(is_socket);
        }
    }
    figures
}

/// The soft limit of `Max open files` (proc_pid_limits(5)); `None` also for `unlimited`.
fn descriptors_limit(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_told_from_other_descriptors() {
        let own = i32::try_from(std::process::id()).unwrap();
        let sockets = std::os::unix::net::UnixStream::pair().unwrap();
        let file = fs::File::open("/proc/self/status").unwrap();
        let after = figures(&[own], Some(own));
        // Other tests open and close theirs meanwhile.
        assert!(after.descriptors > 3 && after.sockets >= 2, "{after:?}");
        assert!(after.sockets < after.descriptors, "{after:?}");
        assert_eq!(after.count, 1);
        assert!(after.descriptors_limit.is_some(), "{after:?}");
        drop((sockets, file));
        assert_eq!(figures(&[i32::MAX], None).descriptors, 0);
    }
}
