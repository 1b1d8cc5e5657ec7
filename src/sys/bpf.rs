//! bpf(2), as far as it says which devices a cgroup v2 may use: loading a program of type
//! `BPF_PROG_TYPE_CGROUP_DEVICE`, attaching it to a cgroup, and finding it there again.
//!
//! Structures and numbers are those of `linux/bpf.h`. The kernel takes a prefix of its `bpf_attr`
//! for the whole with zeros after it, so each command passes only what it uses.
#![expect(unsafe_code, reason = "bpf has no safe wrapper in the crates we use")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Longest name of a program (`BPF_OBJ_NAME_LEN`, with its zero).
const NAME_LENGTH: usize = 16;
/// Programs looked for on one cgroup; the kernel takes 64 there.
const PROGRAMS_MAX: usize = 64;
/// How often a load is tried that a signal has interrupted.
const TRIES: usize = 5;

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;

/// `BPF_PROG_TYPE_CGROUP_DEVICE`.
const TYPE_CGROUP_DEVICE: u32 = 15;
/// `BPF_CGROUP_DEVICE`, where it is attached.
const AT_CGROUP_DEVICE: u32 = 6;
/// `BPF_F_ALLOW_MULTI`: others may be attached to the same cgroup and to those below.
const ALLOW_MULTI: u32 = 1 << 1;
/// `BPF_F_REPLACE`: the new program takes the place of another in one step (Linux 5.6).
const REPLACE: u32 = 1 << 2;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Class, operation and kind of operand.
    pub code: u8,
    /// Destination in the low half, source in the high one (little-endian machines).
    pub registers: u8,
    /// Jump, or place in memory.
    pub offset: i16,
    /// Constant.
    pub immediate: i32,
}

#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; NAME_LENGTH],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct Attach {
    target_fd: RawFd,
    attach_bpf_fd: RawFd,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: RawFd,
}

#[repr(C)]
struct Query {
    target_fd: RawFd,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

#[repr(C)]
struct ById {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

#[repr(C)]
struct InfoByFd {
    bpf_fd: RawFd,
    info_len: u32,
    info: u64,
}

/// `struct bpf_prog_info` up to the name.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    lengths: [u32; 2],
    programs: [u64; 2],
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; NAME_LENGTH],
}

/// Checks a program and makes it ready to be attached. It is gone when nothing holds it: neither
/// the descriptor nor a cgroup. `name` is what others see it by, of letters, digits, `_` and `.`.
///
/// # Errors
/// `INVAL` for a name that is too long; `PERM` without `CAP_BPF` or `CAP_SYS_ADMIN`, `NOSYS` and
/// `INVAL` from a kernel without such programs, `E2BIG` and `ACCES` for one it does not accept.
pub fn load_device_program(name: &str, instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let mut prog_name = [0; NAME_LENGTH];
    let Some(place) = prog_name[..NAME_LENGTH - 1].get_mut(..name.len()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    place.copy_from_slice(name.as_bytes());
    let count =
        u32::try_from(instructions.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    // The kernel asks what may be linked with its own helpers; none is called.
    let license = c"Apache-2.0";
    let attributes = Load {
        prog_type: TYPE_CGROUP_DEVICE,
        insn_cnt: count,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name,
        prog_ifindex: 0,
        expected_attach_type: AT_CGROUP_DEVICE,
    };
    let mut tries = 0;
    loop {
        tries += 1;
        // SAFETY: `Load` is the part of `bpf_attr` that BPF_PROG_LOAD reads. The instructions,
        // whose number it tells, and the license, which ends in a zero, outlive the call, which
        // copies both.
        match unsafe { bpf(PROG_LOAD, &raw const attributes) } {
            // SAFETY: the call has just made this descriptor, and nobody else has it.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            // The check of a program gives way to a signal.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && tries < TRIES => {}
            Err(error) => return Err(error),
        }
    }
}

/// Attaches a program to an open cgroup directory, beside others; `replaced`, which must be there,
/// goes in the same step.
///
/// # Errors
/// `BADF` for what is no cgroup v2 directory, `NOENT` when `replaced` is not there, `PERM` when a
/// cgroup above does not let others be attached below.
pub fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let attributes = Attach {
        target_fd: cgroup.as_raw_fd(),
        attach_bpf_fd: program.as_raw_fd(),
        attach_type: AT_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI | replaced.map_or(0, |_| REPLACE),
        replace_bpf_fd: replaced.map_or(0, |fd| fd.as_raw_fd()),
    };
    // SAFETY: `Attach` is the part of `bpf_attr` that BPF_PROG_ATTACH reads; it holds descriptors
    // that are open for the call, and no address.
    unsafe { bpf(PROG_ATTACH, &raw const attributes) }.map(drop)
}

/// Takes a program off a cgroup.
///
/// # Errors
/// `NOENT` when it is not there.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = Attach {
        target_fd: cgroup.as_raw_fd(),
        attach_bpf_fd: program.as_raw_fd(),
        attach_type: AT_CGROUP_DEVICE,
        attach_flags: 0,
        replace_bpf_fd: 0,
    };
    // SAFETY: `Attach` is the part of `bpf_attr` that BPF_PROG_DETACH reads; it holds descriptors
    // that are open for the call, and no address.
    unsafe { bpf(PROG_DETACH, &raw const attributes) }.map(drop)
}

/// The programs for devices that are attached to this cgroup itself, with their names. What goes
/// meanwhile is left out.
///
/// # Errors
/// `BADF` for what is no cgroup v2 directory, `INVAL` from a kernel without such programs.
pub fn device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<(String, OwnedFd)>> {
    let mut ids = [0u32; PROGRAMS_MAX];
    let mut attributes = Query {
        target_fd: cgroup.as_raw_fd(),
        attach_type: AT_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: PROGRAMS_MAX as u32,
        padding: 0,
    };
    // SAFETY: `Query` is the part of `bpf_attr` that BPF_PROG_QUERY reads and, being writable,
    // writes; `ids` has room for as many numbers as it tells, and outlives the call.
    unsafe { bpf(PROG_QUERY, (&raw mut attributes).cast_const()) }?;
    let found = usize::try_from(attributes.prog_cnt).map_or(0, |count| count.min(PROGRAMS_MAX));
    let mut programs = Vec::with_capacity(found);
    for id in &ids[..found] {
        let by_id = ById {
            prog_id: *id,
            next_id: 0,
            open_flags: 0,
        };
        // SAFETY: `ById` is the part of `bpf_attr` that BPF_PROG_GET_FD_BY_ID reads; it holds no
        // address.
        let program = match unsafe { bpf(PROG_GET_FD_BY_ID, &raw const by_id) } {
            // SAFETY: the call has just made this descriptor, and nobody else has it.
            Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            Err(error) => return Err(error),
        };
        programs.push((name_of(&program)?, program));
    }
    Ok(programs)
}

fn name_of(program: &OwnedFd) -> io::Result<String> {
    let mut info = ProgramInfo::default();
    let attributes = InfoByFd {
        bpf_fd: program.as_raw_fd(),
        info_len: size_of::<ProgramInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: `InfoByFd` is the part of `bpf_attr` that BPF_OBJ_GET_INFO_BY_FD reads; `info` is
    // writable, as long as it tells, zeroed as the kernel asks, and outlives the call.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &raw const attributes) }?;
    let name: Vec<u8> = info
        .name
        .into_iter()
        .take_while(|byte| *byte != 0)
        .collect();
    Ok(String::from_utf8_lossy(&name).into_owned())
}

/// Returns what bpf(2) does.
///
/// # Safety
/// `attributes` must be what the command reads of `bpf_attr`, and the addresses in it valid for
/// what the command does with them.
unsafe fn bpf<T>(command: libc::c_int, attributes: *const T) -> io::Result<libc::c_int> {
    // SAFETY: the caller vouches for the attributes; their size is the type's.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_as_long_as_the_kernel_s() {
        assert_eq!(size_of::<Instruction>(), 8);
        assert_eq!(size_of::<Load>(), 72);
        assert_eq!(size_of::<Attach>(), 20);
        assert_eq!(size_of::<Query>(), 32);
        assert_eq!(std::mem::offset_of!(ProgramInfo, name), 64);
    }

    #[test]
    fn a_name_that_is_too_long_is_refused() {
        let refused = load_device_program("a_name_of_16_char", &[]);
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
