//! Which security modules this node has.

use std::path::Path;

/// The AppArmor profile that `RuntimeDefault` means: ours, or what the node's administrator has
/// loaded by this name.
pub const APPARMOR_DEFAULT: &str = "quilt-default";
/// Ours, as AppArmor's compiler reads it (`docs/apparmor.md`).
pub const APPARMOR_PROFILE: &str = include_str!("apparmor.profile");

/// Says whether AppArmor is on (its module's parameter, as Kubernetes asks).
#[must_use]
pub fn has_apparmor() -> bool {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    enabled.is_ok_and(|text| text.trim() == "Y")
}

/// Says whether SELinux is on: its file system is mounted.
#[must_use]
pub fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// Whether the AppArmor profile of this name is loaded. `false` also when nobody can say.
#[must_use]
pub fn apparmor_profile_is_loaded(name: &str) -> bool {
    let loaded = std::fs::read_to_string("/sys/kernel/security/apparmor/profiles");
    loaded.is_ok_and(|text| is_listed(&text, name))
}

/// A line is a name and its mode: `docker-default (enforce)`.
fn is_listed(profiles: &str, name: &str) -> bool {
    profiles.lines().any(|line| {
        line.rsplit_once(" (")
            .is_some_and(|(listed, _)| listed == name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_is_called_what_is_looked_for() {
        let head = format!("\nprofile {APPARMOR_DEFAULT} ");
        assert!(APPARMOR_PROFILE.contains(&head));
        assert!(APPARMOR_PROFILE.contains(&format!("peer={APPARMOR_DEFAULT},")));
    }

    #[test]
    fn a_profile_is_found_by_its_whole_name() {
        let text = "docker-default (enforce)\n/usr/bin/man (x) (complain)\n";
        assert!(is_listed(text, "docker-default"));
        assert!(is_listed(text, "/usr/bin/man (x)"));
        assert!(!is_listed(text, "docker") && !is_listed("", ""));
    }
}
