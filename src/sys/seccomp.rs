//! seccomp(2): putting a filter on the calling thread.
#![expect(unsafe_code, reason = "seccomp has no safe wrapper")]

use rustix::io::Errno;

/// The most instructions that the kernel takes (linux/bpf_common.h, `BPF_MAXINSNS`).
pub const PROGRAM_MAX: usize = 4096;

/// Puts a filter on the calling thread, and so on all that it executes. It cannot be taken off.
///
/// `program` is `struct sock_filter` after `struct sock_filter`, in this machine's byte order;
/// `flags` are `SECCOMP_FILTER_FLAG_*`. Needs `no_new_privs` or `CAP_SYS_ADMIN`.
///
/// # Errors
///
/// `INVAL` for a length that is none, and what seccomp(2) returns: `ACCESS` without one of the two,
/// `INVAL` for a program that the kernel does not accept.
pub fn install(program: &[u8], flags: u32) -> Result<(), Errno> {
    let (chunks, rest) = program.as_chunks::<8>();
    if !rest.is_empty() || !(1..=PROGRAM_MAX).contains(&chunks.len()) {
        return Err(Errno::INVAL);
    }
    let mut instructions: Vec<libc::sock_filter> = chunks
        .iter()
        .map(|one| libc::sock_filter {
            code: u16::from_ne_bytes([one[0], one[1]]),
            jt: one[2],
            jf: one[3],
            k: u32::from_ne_bytes([one[4], one[5], one[6], one[7]]),
        })
        .collect();
    let argument = libc::sock_fprog {
        len: u16::try_from(instructions.len()).map_err(|_| Errno::INVAL)?,
        filter: instructions.as_mut_ptr(),
    };
    // SAFETY: the struct and the array it points to, whose length it tells, outlive the call, which
    // copies them.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const argument,
        )
    };
    super::process::check(returned)
}
