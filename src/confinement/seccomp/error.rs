//! Why a profile cannot be used.

use std::path::PathBuf;

/// A profile that cannot be used. Each names the key, the rule or the system call that is to blame.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The file cannot be read.
    #[error("read seccomp profile {path:?}")]
    Read {
        /// Of the profile.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is a directory, a device or a FIFO.
    #[error("seccomp profile {0:?} is no regular file")]
    NoFile(PathBuf),
    /// It has more than [`super::PROFILE_MAX_BYTES`].
    #[error("seccomp profile {0:?} is larger than {max} bytes", max = super::PROFILE_MAX_BYTES)]
    TooLarge(PathBuf),
    /// It is not UTF-8.
    #[error("seccomp profile {0:?} is not UTF-8")]
    NoText(PathBuf),
    /// It is not JSON, or has a key or a value that no profile has.
    #[error("the seccomp profile cannot be understood")]
    Parse(#[source] serde_json::Error),
    /// A key has a value that cannot be used.
    #[error("{key} of the seccomp profile {why}")]
    Key {
        /// Of the profile.
        key: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A rule cannot be used.
    #[error("rule {number} of the seccomp profile, for {syscall}, {why}")]
    Rule {
        /// Its place in `syscalls`, from 0.
        number: usize,
        /// The system call it is about.
        syscall: String,
        /// What is wrong with it.
        why: String,
    },
    /// It compiles to more than the kernel takes.
    #[error(
        "the seccomp profile comes to {instructions} instructions, and the kernel takes {max}: \
         give it fewer rules with arguments",
        max = super::bpf::PROGRAM_MAX
    )]
    TooLong {
        /// How many.
        instructions: usize,
    },
}
