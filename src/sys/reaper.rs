//! The loop of a process that only reaps, on its stack alone.
//!
//! In one piece with giving up the heap, because that is sound only if nothing allocates, frees or
//! looks at the heap afterwards.
#![expect(unsafe_code, reason = "giving memory back under the allocator's feet")]

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::process::exit_now;

/// Where the allocator's main heap is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heap {
    start: usize,
    length: usize,
}

impl Heap {
    /// Reads it from `/proc/self/maps`; `None` if there is none.
    #[must_use]
    pub fn of_this_process() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/self/maps").ok()?)
    }

    fn parse(maps: &str) -> Option<Self> {
        let line = maps.lines().find(|line| line.ends_with("[heap]"))?;
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        Some(Self {
            start,
            length: end.checked_sub(start)?,
        })
    }
}

/// Gives `heap` back to the kernel, content and all, and reaps children until SIGTERM comes from
/// outside of the PID namespace. Signals have to be blocked, and `signals` has to take them.
///
/// For a copy of another process: nothing that others may not see stays in its heap. Memory that
/// the allocator mapped apart from it (large blocks) is not covered.
pub fn reap_until_told(signals: SignalFd, heap: Option<Heap>) -> ! {
    if let Some(heap) = heap {
        let start = std::ptr::without_provenance_mut(heap.start);
        // SAFETY: from here to the end of the process nothing uses the heap: the calls below work
        // on the stack, no destructor runs, and the process leaves by _exit.
        unsafe { libc::madvise(start, heap.length, libc::MADV_DONTNEED) };
    }
    loop {
        match signals.read_signal() {
            Ok(Some(info)) if info.ssi_signo == Signal::SIGCHLD as u32 => reap(),
            // The sender's number is 0 if it has none here: the runtime, not a container.
            Ok(Some(info)) if info.ssi_signo == Signal::SIGTERM as u32 && info.ssi_pid == 0 => {
                exit_now(0)
            }
            Ok(_) | Err(Errno::EINTR) => {}
            // Cannot happen to a descriptor that nobody else has; ending is better than spinning.
            Err(_) => exit_now(1),
        }
    }
}

/// One signal may stand for many children.
fn reap() {
    while matches!(
        waitpid(None, Some(WaitPidFlag::WNOHANG)),
        Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..))
    ) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heap_is_found_among_other_mappings() {
        let maps = "00400000-00452000 r-xp 00000000 08:02 1 /bin/x\n\
            55550000-55560000 rw-p 00000000 00:00 0                          [heap]\n";
        let heap = Heap {
            start: 0x5555_0000,
            length: 0x1_0000,
        };
        assert_eq!(Heap::parse(maps), Some(heap));
        assert_eq!(Heap::parse("nonsense [heap]"), None);
    }
}
