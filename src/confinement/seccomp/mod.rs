//! Seccomp: from a profile to the program that the kernel runs at every system call.
//!
//! ```text
//! profile (JSON)  ─ resolve ─►  rules (OCI)  ─ compile ─►  program (classic BPF)
//!  profile.rs        for one     LinuxSeccomp    rules.rs     bpf.rs
//!                    container                   syscalls.rs
//! ```
//!
//! Pure but for reading a profile's file. Nothing is installed here: the program travels in the
//! launch plan, and the container's process puts it on itself as the last thing before exec.
//! What `RuntimeDefault` means is in `default.json`, and why in `docs/seccomp.md`.

mod bpf;
mod error;
mod profile;
mod rules;
mod syscalls;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use oci_spec::runtime::LinuxSeccomp;
use sha2::{Digest, Sha256};

pub use error::SeccompError;
use profile::{Container, Profile};

/// The longest profile that is read. Docker's own has 14 KiB.
pub const PROFILE_MAX_BYTES: u64 = 1024 * 1024;
/// Programs that are kept. Pods of a node have few profiles and few sets of capabilities.
const KEPT_PROGRAMS: usize = 64;

/// The profile that `RuntimeDefault` stands for.
const DEFAULT: &str = include_str!("default.json");

/// A profile, made ready for one container.
#[derive(Debug, Clone, PartialEq)]
pub struct Compiled {
    /// The rules that are left for this container, as an OCI runtime spec has them.
    pub rules: LinuxSeccomp,
    /// `struct sock_filter` after `struct sock_filter`, in the byte order of this machine.
    pub program: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_*` of seccomp(2).
    pub flags: u32,
}

/// Where a profile comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    /// This runtime's own.
    RuntimeDefault,
    /// A file on the node, in the form of Docker or of the OCI runtime spec.
    Localhost(&'a Path),
}

/// The program of a profile for a container that has `capabilities` (by name, without `CAP_`).
/// Reads a file and may take some milliseconds the first time.
///
/// # Errors
///
/// The file cannot be read, is no profile, or asks for what cannot be done: see [`SeccompError`].
pub fn compile(source: Source<'_>, capabilities: &[&str]) -> Result<Arc<Compiled>, SeccompError> {
    let text = match source {
        Source::RuntimeDefault => DEFAULT.to_owned(),
        Source::Localhost(path) => read(path)?,
    };
    let mut capabilities = capabilities.to_vec();
    capabilities.sort_unstable();
    let key: [u8; 32] = Sha256::new()
        .chain_update(capabilities.join(","))
        .chain_update(";")
        .chain_update(&text)
        .finalize()
        .into();
    if let Some(known) = programs().get(&key) {
        return Ok(known.clone());
    }
    let container = Container {
        capabilities: &capabilities,
        kernel: kernel(),
    };
    let rules = Profile::parse(&text)?.resolve(&container)?;
    let compiled = Arc::new(rules::compile(rules)?);
    let mut programs = programs();
    if programs.len() >= KEPT_PROGRAMS {
        programs.clear();
    }
    programs.insert(key, compiled.clone());
    Ok(compiled)
}

type Programs = HashMap<[u8; 32], Arc<Compiled>>;

/// What has been compiled, by the digest of all it was made from: nothing in it can be out of date.
fn programs() -> std::sync::MutexGuard<'static, Programs> {
    static PROGRAMS: OnceLock<Mutex<Programs>> = OnceLock::new();
    let programs = PROGRAMS.get_or_init(Mutex::default);
    programs.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A regular file only, and never waits: whoever names a FIFO is told so.
fn read(path: &Path) -> Result<String, SeccompError> {
    let failed = |source| SeccompError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(SeccompError::NoFile(path.to_owned()));
    }
    let mut text = Vec::new();
    file.take(PROFILE_MAX_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > PROFILE_MAX_BYTES {
        return Err(SeccompError::TooLarge(path.to_owned()));
    }
    String::from_utf8(text).map_err(|_| SeccompError::NoText(path.to_owned()))
}

/// Major and minor version of the running kernel, by which profiles choose rules.
fn kernel() -> (u32, u32) {
    let name = rustix::system::uname();
    profile::version(&name.release().to_string_lossy()).unwrap_or((0, 0))
}
