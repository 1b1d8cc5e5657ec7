//! Mount options as a plan writes them (fstab style, OCI runtime spec) into what the mount API
//! takes.
//!
//! Pure. Whether an option makes sense for a file system is for the kernel to say; what would
//! weaken a bind mount's source is not an option here.

use super::error::{LaunchError, stage};
use crate::sys::mounts::MountAttributes;

/// The options of one mount, sorted by what they act on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct MountOptions {
    /// `Some(recursive)` for a bind mount.
    pub(super) bind: Option<bool>,
    /// Flags of the mount itself.
    pub(super) flags: Attributes,
    /// Flags of the mount and all below it (`rro`, …).
    pub(super) recursive_flags: Attributes,
    /// Propagation (`MS_PRIVATE`, …) and whether it is for all mounts below too.
    pub(super) propagation: Option<(u64, bool)>,
    /// Parameters of the file system: `size=64k` or a bare `sync`.
    pub(super) parameters: Vec<(String, Option<String>)>,
}

/// `MOUNT_ATTR_*` to set, and those that a later option took back.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) set: u64,
    /// The access time field, which holds a number rather than bits, is being replaced.
    pub(super) access_time: bool,
}

impl Attributes {
    fn set(&mut self, flag: u64) {
        self.set |= flag;
    }

    fn take_back(&mut self, flag: u64) {
        self.set &= !flag;
    }

    fn set_access_time(&mut self, value: u64) {
        self.set = (self.set & !libc::MOUNT_ATTR__ATIME) | value;
        self.access_time = true;
    }

    /// For mount_setattr(2), which wants the access time field cleared before it is set.
    pub(super) fn to_change(self) -> MountAttributes {
        let clear = if self.access_time {
            libc::MOUNT_ATTR__ATIME
        } else {
            0
        };
        MountAttributes {
            set: self.set,
            clear,
            propagation: 0,
        }
    }

    /// Whether there is anything to change.
    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// Sorts `options` of a mount of type `kind`.
///
/// For a bind mount only flags make sense, and they only add restrictions: `rw`, `suid`, `dev` and
/// `exec` take back what the same list set before, never what the source has.
pub(super) fn parse(kind: &str, options: &[String]) -> Result<MountOptions, LaunchError> {
    let mut parsed = MountOptions::default();
    if matches!(kind, "bind" | "rbind") {
        parsed.bind = Some(kind == "rbind");
    }
    for option in options {
        if option.contains('\0') {
            return Err(LaunchError::invalid(
                stage::MOUNT,
                "a mount option holds a NUL",
            ));
        }
        parse_one(&mut parsed, option)?;
    }
    if parsed.bind.is_some()
        && let Some((name, _)) = parsed.parameters.first()
    {
        let message = format!("mount option {name:?} makes no sense for a bind mount");
        return Err(LaunchError::invalid(stage::MOUNT, message));
    }
    Ok(parsed)
}

fn parse_one(parsed: &mut MountOptions, option: &str) -> Result<(), LaunchError> {
    match option {
        "" | "defaults" => {}
        "bind" => parsed.bind = Some(parsed.bind.unwrap_or(false)),
        "rbind" => parsed.bind = Some(true),
        "remount" | "idmap" | "ridmap" | "tmpcopyup" => {
            let message = format!("mount option {option:?} is not supported");
            return Err(LaunchError::invalid(stage::MOUNT, message));
        }
        _ => {
            if let Some(propagation) = propagation(option) {
                parsed.propagation = Some(propagation);
            } else if !parse_flag(&mut parsed.flags, option)
                && !option
                    .strip_prefix('r')
                    .is_some_and(|flag| parse_flag(&mut parsed.recursive_flags, flag))
            {
                let (name, value) = match option.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (option, None),
                };
                parsed.parameters.push((name.to_owned(), value));
            }
        }
    }
    Ok(())
}

fn propagation(option: &str) -> Option<(u64, bool)> {
    Some(match option {
        "private" => (libc::MS_PRIVATE, false),
        "rprivate" => (libc::MS_PRIVATE, true),
        "slave" => (libc::MS_SLAVE, false),
        "rslave" => (libc::MS_SLAVE, true),
        "shared" => (libc::MS_SHARED, false),
        "rshared" => (libc::MS_SHARED, true),
        "unbindable" => (libc::MS_UNBINDABLE, false),
        "runbindable" => (libc::MS_UNBINDABLE, true),
        _ => return None,
    })
}

/// Applies `option` to `flags` if it is a flag of a mount (and not of a file system).
fn parse_flag(flags: &mut Attributes, option: &str) -> bool {
    match option {
        "ro" => flags.set(libc::MOUNT_ATTR_RDONLY),
        "rw" => flags.take_back(libc::MOUNT_ATTR_RDONLY),
        "nosuid" => flags.set(libc::MOUNT_ATTR_NOSUID),
        "suid" => flags.take_back(libc::MOUNT_ATTR_NOSUID),
        "nodev" => flags.set(libc::MOUNT_ATTR_NODEV),
        "dev" => flags.take_back(libc::MOUNT_ATTR_NODEV),
        "noexec" => flags.set(libc::MOUNT_ATTR_NOEXEC),
        "exec" => flags.take_back(libc::MOUNT_ATTR_NOEXEC),
        "nodiratime" => flags.set(libc::MOUNT_ATTR_NODIRATIME),
        "diratime" => flags.take_back(libc::MOUNT_ATTR_NODIRATIME),
        "nosymfollow" => flags.set(libc::MOUNT_ATTR_NOSYMFOLLOW),
        "symfollow" => flags.take_back(libc::MOUNT_ATTR_NOSYMFOLLOW),
        "noatime" => flags.set_access_time(libc::MOUNT_ATTR_NOATIME),
        "strictatime" | "norelatime" => flags.set_access_time(libc::MOUNT_ATTR_STRICTATIME),
        "relatime" | "atime" | "nostrictatime" => {
            flags.set_access_time(libc::MOUNT_ATTR_RELATIME);
        }
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(kind: &str, options: &[&str]) -> MountOptions {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        parse(kind, &options).expect("parses")
    }

    #[test]
    fn flags_parameters_and_propagation_are_told_apart() {
        let options = parsed(
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=64k", "slave"],
        );
        let flags = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_STRICTATIME;
        assert_eq!(options.flags.set, flags);
        assert_eq!(options.propagation, Some((libc::MS_SLAVE, false)));
        let names: Vec<_> = options
            .parameters
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(names, ["mode", "size"]);
    }

    #[test]
    fn read_only_is_recursive_only_when_it_says_so() {
        let plain = parsed("bind", &["rbind", "ro"]);
        assert_eq!(plain.bind, Some(true));
        assert_eq!(plain.flags.set, libc::MOUNT_ATTR_RDONLY);
        assert!(plain.recursive_flags.is_empty());
        let recursive = parsed("", &["bind", "rro"]);
        assert_eq!(recursive.bind, Some(false));
        assert_eq!(recursive.recursive_flags.set, libc::MOUNT_ATTR_RDONLY);
    }

    #[test]
    fn names_that_begin_like_a_recursive_flag_stay_what_they_are() {
        let options = parsed("bind", &["rbind", "relatime", "rprivate"]);
        assert!(options.flags.access_time && options.recursive_flags.is_empty());
        assert_eq!(options.propagation, Some((libc::MS_PRIVATE, true)));
    }

    #[test]
    fn the_last_of_two_opposites_counts() {
        assert_eq!(parsed("tmpfs", &["ro", "rw"]).flags.set, 0);
        let noatime = parsed("tmpfs", &["strictatime", "noatime"]).flags.set;
        assert_eq!(noatime, libc::MOUNT_ATTR_NOATIME);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (kind, option) in [("bind", "size=1"), ("bind", "idmap"), ("tmpfs", "remount")] {
            let error = parse(kind, &[option.to_owned()]).expect_err("refused");
            assert!(
                error
                    .message
                    .contains(option.split('=').next().unwrap_or_default())
            );
        }
    }

    proptest! {
        #[test]
        fn a_bind_never_asks_to_clear_a_restriction(
            options in proptest::collection::vec(
                "(r?(ro|rw|suid|nosuid|dev|noatime|exec)|private)", 0..8
            )
        ) {
            let parsed = parse("bind", &options);
            if let Ok(parsed) = parsed {
                let recursive = parsed.recursive_flags.to_change().clear;
                let clear = parsed.flags.to_change().clear | recursive;
                prop_assert_eq!(clear & !libc::MOUNT_ATTR__ATIME, 0);
            }
        }
    }
}
