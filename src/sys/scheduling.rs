//! How soon a thread that wakes up gets a CPU: the length of its time slices (sched_setattr(2),
//! `sched_runtime` of an ordinary thread, since Linux 6.12). The kernel lets who asks for shorter
//! slices go first when it wakes; the share of CPU time is the same.
#![expect(unsafe_code, reason = "sched_setattr has no safe wrapper")]

use std::time::Duration;

use rustix::io::Errno;

use super::process::check;

/// What the kernel takes for the shortest slice that it grants.
pub const SHORTEST_SLICE: Duration = Duration::from_micros(100);

/// Sets the slice of the calling thread; `None` is the kernel's own choice. Threads and processes
/// made later inherit it. Older kernels take the call and do nothing.
///
/// # Errors
/// When the kernel refuses.
pub fn set_slice(slice: Option<Duration>) -> Result<(), Errno> {
    // SAFETY: sched_attr is a C struct of numbers, for which all zeroes is a value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>();
    // Policy and niceness stay what they are.
    // SAFETY: the kernel writes at most `size` bytes into a struct of that size, which outlives the
    // call. 0 is the calling thread.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) })?;
    let ns = slice.map_or(0, |slice| slice.as_nanos());
    attributes.sched_runtime = u64::try_from(ns).unwrap_or(0);
    // SAFETY: the kernel only reads the struct, which outlives the call and says its own size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
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
}
