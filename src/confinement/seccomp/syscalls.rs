//! Names and numbers of system calls, by architecture.
//!
//! The numbers are a library's; what it lacks is added here: x32, and the calls that arm has for
//! itself.

use std::collections::HashMap;
use std::sync::OnceLock;

use oci_spec::runtime::Arch;

/// What a filter can be made for: the architectures that this runtime runs on, and those whose
/// programs run on them too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Architecture {
    /// 64-bit Intel and AMD.
    X86_64,
    /// Their 32-bit programs.
    X86,
    /// 64-bit instructions with 32-bit pointers: calls of `X86_64` with a bit set in their number.
    X32,
    /// 64-bit ARM.
    Aarch64,
    /// Its 32-bit programs.
    Arm,
}

/// Set in the numbers of x32 (asm/unistd.h, `__X32_SYSCALL_BIT`).
pub(super) const X32_BIT: u32 = 0x4000_0000;
/// Where arm's own calls begin (asm/unistd.h, `__ARM_NR_BASE`).
pub(super) const ARM_OWN: u32 = 0x000f_0000;

/// Calls of x32 with other numbers than those of x86-64, without the bit.
const X32_OWN: [(&str, u32); 36] = [
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];

/// arm's own (asm/unistd.h): without `set_tls` no 32-bit program begins.
const ARM_PRIVATE: [(&str, u32); 6] = [
    ("breakpoint", ARM_OWN + 1),
    ("cacheflush", ARM_OWN + 2),
    ("usr26", ARM_OWN + 3),
    ("usr32", ARM_OWN + 4),
    ("set_tls", ARM_OWN + 5),
    ("get_tls", ARM_OWN + 6),
];

type Table = HashMap<&'static str, u32>;

macro_rules! table {
    ($architecture:ident) => {{
        static TABLE: OnceLock<Table> = OnceLock::new();
        TABLE.get_or_init(|| {
            use ::syscalls::$architecture::Sysno;
            // Its iterator leaves out the last.
            let all = Sysno::iter().chain([Sysno::last()]);
            all.map(|call| (call.name(), call.id().cast_unsigned()))
                .collect()
        })
    }};
}

impl Architecture {
    /// That of this program.
    pub(super) const NATIVE: Self = if cfg!(target_arch = "aarch64") {
        Self::Aarch64
    } else {
        Self::X86_64
    };

    /// By the name that profiles give it; `None` if no program of it runs where this runtime does.
    pub(super) fn named(arch: Arch) -> Option<Self> {
        match arch {
            Arch::ScmpArchNative => Some(Self::NATIVE),
            Arch::ScmpArchX86_64 => Some(Self::X86_64),
            Arch::ScmpArchX86 => Some(Self::X86),
            Arch::ScmpArchX32 => Some(Self::X32),
            Arch::ScmpArchAarch64 => Some(Self::Aarch64),
            Arch::ScmpArchArm => Some(Self::Arm),
            _ => None,
        }
    }

    /// As conditions of Docker's profiles name the native one.
    pub(super) const fn go_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::X86 => "x86",
            Self::X32 => "x32",
            Self::Aarch64 => "arm64",
            Self::Arm => "arm",
        }
    }

    /// `AUDIT_ARCH_*` (linux/audit.h), which the kernel gives to a filter. x32 has that of x86-64.
    pub(super) const fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Whether arguments have 64 bits.
    pub(super) const fn is_wide(self) -> bool {
        matches!(self, Self::X86_64 | Self::Aarch64 | Self::X32)
    }

    /// The number of a call; `None` if the architecture has none of the name.
    pub(super) fn number(self, name: &str) -> Option<u32> {
        let own = |list: &[(&str, u32)]| {
            let found = list.iter().find(|(own, _)| *own == name);
            found.map(|(_, number)| *number)
        };
        match self {
            Self::X86_64 => table!(x86_64).get(name).copied(),
            Self::X86 => table!(x86).get(name).copied(),
            Self::X32 => own(&X32_OWN)
                .or_else(|| table!(x86_64).get(name).copied())
                .map(|number| number | X32_BIT),
            // The library has the kernel's inner name of one call.
            Self::Aarch64 if name == "newfstatat" => table!(aarch64).get("fstatat").copied(),
            Self::Aarch64 => table!(aarch64).get(name).copied(),
            Self::Arm => own(&ARM_PRIVATE).or_else(|| table!(arm).get(name).copied()),
        }
    }
}

/// Whether any architecture of Linux has a call of this name.
pub(super) fn exists(name: &str) -> bool {
    [Architecture::X86_64, Architecture::X86, Architecture::Arm]
        .iter()
        .any(|one| one.number(name).is_some())
        || elsewhere().contains_key(name)
}

/// Calls of other architectures, which profiles for many name as well.
fn elsewhere() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut all = Table::new();
        macro_rules! add {
            ($($architecture:ident),*) => {$(
                all.extend(::syscalls::$architecture::Sysno::iter().map(|call| (call.name(), 0)));
            )*};
        }
        add!(
            aarch64,
            loongarch64,
            mips,
            mips64,
            powerpc,
            powerpc64,
            riscv32,
            riscv64,
            s390x
        );
        add!(sparc, sparc64);
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernels_headers() {
        use Architecture::{Aarch64, Arm, X32, X86, X86_64};
        for (architecture, name, number) in [
            (X86_64, "execve", 59),
            (X86, "execve", 11),
            (X32, "execve", X32_BIT | 520),
            (X32, "read", X32_BIT),
            (Aarch64, "execve", 221),
            (Aarch64, "newfstatat", 79),
            (Arm, "set_tls", 0x000f_0005),
            (X86_64, "file_setattr", 469),
        ] {
            assert_eq!(architecture.number(name), Some(number), "{name}");
        }
        assert_eq!(Aarch64.number("open"), None);
        assert!(exists("s390_pci_mmio_read") && exists("spu_run") && !exists("chmodd"));
    }
}
