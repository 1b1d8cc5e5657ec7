//! How soon a thread that wakes up gets a CPU, and how much of it (sched_setattr(2)): the length of
//! its time slices (`sched_runtime` of an ordinary thread, since Linux 6.12) and its nice value.
//! The kernel lets who asks for shorter slices go first when it wakes; the share of CPU time is the
//! same. A nice value is a share, among the threads and groups of the same cgroup.
#![expect(unsafe_code, reason = "sched_setattr has no safe wrapper")]

use std::time::Duration;

use rustix::io::Errno;

use super::process::check;

/// What the kernel takes for the shortest slice that it grants.
pub const SHORTEST_SLICE: Duration = Duration::from_micros(100);

/// `SCHED_FLAG_RESET_ON_FORK` of `linux/sched.h`.
const RESET_ON_FORK: u64 = 1;

/// Sets the slice of the calling thread; `None` is the kernel's own choice. Threads and processes
/// made later inherit it. Older kernels take the call and do nothing.
///
/// # Errors
/// When the kernel refuses.
pub fn set_slice(slice: Option<Duration>) -> Result<(), Errno> {
    let mut attributes = attributes()?;
    let ns = slice.map_or(0, |slice| slice.as_nanos());
    attributes.sched_runtime = u64::try_from(ns).unwrap_or(0);
    // Policy and niceness stay what they are.
    set(&attributes)
}

/// Gives the calling thread a nice value (-20 to 19, lower is more) and the shortest slices, for
/// itself alone: threads and processes made later are ordinary ones with the nice value 0 and the
/// kernel's own slices, whatever becomes of the caller (`SCHED_FLAG_RESET_ON_FORK`). Nothing
/// changes, and the answer is `false`, for one whose nice value is not 0: somebody has chosen it.
///
/// # Errors
/// When the kernel refuses, as without `CAP_SYS_NICE`.
pub fn go_before_others(nice: i32) -> Result<bool, Errno> {
    let mut attributes = attributes()?;
    if attributes.sched_nice != 0 {
        return Ok(false);
    }
    attributes.sched_nice = nice;
    attributes.sched_flags |= RESET_ON_FORK;
    attributes.sched_runtime = u64::try_from(SHORTEST_SLICE.as_nanos()).unwrap_or(0);
    set(&attributes).map(|()| true)
}

/// Those of the calling thread.
fn attributes() -> Result<libc::sched_attr, Errno> {
    // SAFETY: sched_attr is a C struct of numbers, for which all zeroes is a value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>();
    // SAFETY: the kernel writes at most `size` bytes into a struct of that size, which outlives the
    // call. 0 is the calling thread.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) })?;
    Ok(attributes)
}

fn set(attributes: &libc::sched_attr) -> Result<(), Errno> {
    // SAFETY: the kernel only reads the struct, which outlives the call and says its own size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const *attributes, 0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_inherited_and_given_back() {
        std::thread::spawn(|| {
            set_slice(Some(SHORTEST_SLICE)).expect("an ordinary thread may");
            std::thread::spawn(|| set_slice(None).expect("so may its child"))
                .join()
                .expect("a thread");
            set_slice(None).expect("and back");
        })
        .join()
        .expect("a thread");
    }

    #[test]
    fn who_goes_before_others_does_so_alone() {
        std::thread::spawn(|| {
            assert_eq!(go_before_others(-5), Ok(true));
            let own = attributes().expect("one's own");
            assert_eq!(own.sched_nice, -5);
            let child = std::thread::spawn(attributes).join().expect("a thread");
            let child = child.expect("its own");
            assert_eq!((child.sched_nice, child.sched_flags), (0, 0));
            assert_eq!(go_before_others(-10), Ok(false), "a chosen value is kept");
        })
        .join()
        .expect("a thread");
    }
}
