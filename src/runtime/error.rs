//! How a launch fails: at which stage, with what, and the kernel's word on it.
//!
//! One struct and not an enum of sources, because it crosses a process boundary (child to shim) and
//! then a socket (shim to daemon), and ends as a sentence in a container's status.

use std::fmt::Display;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// Stages of a launch, in the order in which they are reached.
pub mod stage {
    /// The plan contradicts itself or asks for what this runtime does not do.
    pub const PLAN: &str = "plan";
    /// Creating the process.
    pub const CLONE: &str = "clone";
    /// Joining cgroups.
    pub const CGROUP: &str = "cgroup";
    /// Joining or creating namespaces, naming the host.
    pub const NAMESPACE: &str = "namespace";
    /// Assembling the layers and making them the root.
    pub const ROOTFS: &str = "rootfs";
    /// The mounts of the plan; reported as `mount DESTINATION`.
    pub const MOUNT: &str = "mount";
    /// An image that is mounted; reported as `image volume DESTINATION`.
    pub const IMAGE_VOLUME: &str = "image volume";
    /// Device nodes.
    pub const DEVICES: &str = "devices";
    /// Masked and read-only paths.
    pub const PATHS: &str = "paths";
    /// The pseudo-terminal.
    pub const TERMINAL: &str = "terminal";
    /// Finding out who the user is.
    pub const USER: &str = "user";
    /// Standard streams.
    pub const STDIO: &str = "stdio";
    /// The working directory.
    pub const CWD: &str = "cwd";
    /// Resource limits and the OOM score.
    pub const LIMITS: &str = "limits";
    /// Ids and capabilities.
    pub const CAPABILITIES: &str = "capabilities";
    /// AppArmor and seccomp.
    pub const CONFINEMENT: &str = "confinement";
    /// Replacing the process by the command.
    pub const EXEC: &str = "exec";
    /// A hook, or what runs it.
    pub const HOOK: &str = "hook";
    /// An OCI runtime that is a program of its own.
    pub const RUNTIME: &str = "runtime";
    /// The child did not get done in time.
    pub const TIMEOUT: &str = "timeout";
}

/// Why a process did not start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct LaunchError {
    /// One of [`stage`], for `mount` followed by the destination.
    pub stage: String,
    /// The kernel's error number, if it was the kernel that refused.
    pub errno: Option<i32>,
    /// What failed, with what: `exec "/nope": no such file or directory`.
    pub message: String,
}

impl LaunchError {
    /// Something that the kernel refused.
    #[must_use]
    pub fn refused(stage: impl Into<String>, what: impl Display, errno: Errno) -> Self {
        let raw = errno.raw_os_error();
        let message = format!("{what}: {}", describe(raw));
        Self {
            stage: stage.into(),
            errno: Some(raw),
            message,
        }
    }

    /// Something that we refuse.
    #[must_use]
    pub fn invalid(stage: impl Into<String>, message: impl Display) -> Self {
        Self {
            stage: stage.into(),
            errno: None,
            message: message.to_string(),
        }
    }

    /// Whether the command or its working directory is to blame: it does not exist, may not be
    /// executed, or is no program. The user can mend it; nothing on the node can.
    #[must_use]
    pub fn is_command_error(&self) -> bool {
        self.stage == stage::EXEC || self.stage == stage::CWD
    }

    /// Whether it was an image to be mounted that stood in the way.
    #[must_use]
    pub fn is_image_volume_error(&self) -> bool {
        self.stage.starts_with(stage::IMAGE_VOLUME)
    }

    /// Whether the command (or its interpreter) or its working directory does not exist.
    #[must_use]
    pub fn is_command_not_found(&self) -> bool {
        let absent = [libc::ENOENT, libc::ENOTDIR];
        self.is_command_error() && self.errno.is_some_and(|errno| absent.contains(&errno))
    }
}

/// The text of an error number as it reads in the middle of a sentence.
fn describe(errno: i32) -> String {
    let text = nix::errno::Errno::from_raw(errno).desc();
    let mut characters = text.chars();
    match (characters.next(), text.chars().nth(1)) {
        (Some(first), Some(second)) if second.is_lowercase() => {
            first.to_lowercase().chain(characters).collect()
        }
        _ => text.to_owned(),
    }
}

/// Puts a stage and a subject to what a system call returned.
pub(crate) trait At<T> {
    /// `what` is evaluated only on failure.
    fn at<S: Display>(self, stage: &str, what: impl FnOnce() -> S) -> Result<T, LaunchError>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at<S: Display>(self, stage: &str, what: impl FnOnce() -> S) -> Result<T, LaunchError> {
        self.map_err(|errno| LaunchError::refused(stage, what(), errno))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_as_one_sentence() {
        let error = LaunchError::refused(stage::EXEC, "exec \"/nope\"", Errno::NOENT);
        assert_eq!(
            error.to_string(),
            "exec \"/nope\": no such file or directory"
        );
        assert!(error.is_command_error() && error.is_command_not_found());
        assert_eq!(describe(libc::EIO), "I/O error");
    }

    #[test]
    fn a_refused_mount_is_not_the_commands_fault() {
        let error = LaunchError::refused("mount /proc", "mount proc on /proc", Errno::PERM);
        assert!(!error.is_command_error());
    }
}
