//! Capabilities: their names, and which of them a container gets (capabilities(7)).

use super::spec::Security;

/// Every capability of Linux 6.x, without `CAP_`, by number.
pub const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has when nobody says otherwise: the set that Docker made customary and
/// containerd keeps.
pub const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The capabilities of a container, without `CAP_`, in the kernel's order. `ALL` is applied before
/// single names, adding before dropping, as Kubernetes documents.
#[must_use]
pub fn granted(security: &Security) -> Vec<&'static str> {
    if security.privileged {
        return of_kernel(|_| true);
    }
    let has = |list: &[String], name: &str| list.iter().any(|item| item == name);
    let all_added = has(&security.add_capabilities, "ALL");
    let all_dropped = has(&security.drop_capabilities, "ALL");
    of_kernel(|name| {
        if has(&security.add_capabilities, name) || has(&security.add_ambient_capabilities, name) {
            return !has(&security.drop_capabilities, name);
        }
        let base = if all_dropped {
            false
        } else {
            all_added || DEFAULT.contains(&name)
        };
        base && !has(&security.drop_capabilities, name)
    })
}

/// Those of [`granted`] that are ambient as well.
#[must_use]
pub fn ambient(security: &Security) -> Vec<&'static str> {
    let granted = granted(security);
    let asked = of_kernel(|name| security.add_ambient_capabilities.iter().any(|n| n == name));
    asked
        .into_iter()
        .filter(|name| granted.contains(name))
        .collect()
}

fn of_kernel(keep: impl Fn(&str) -> bool) -> Vec<&'static str> {
    ALL.into_iter().filter(|name| keep(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn security(add: &[&str], drop: &[&str]) -> Security {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Security {
            add_capabilities: own(add),
            drop_capabilities: own(drop),
            ..Default::default()
        }
    }

    #[test]
    fn the_default_set_is_the_customary_one() {
        assert_eq!(granted(&security(&[], &[])).len(), DEFAULT.len());
    }

    #[test]
    fn all_comes_before_single_names() {
        assert_eq!(granted(&security(&["NET_ADMIN"], &["ALL"])), ["NET_ADMIN"]);
        let but_one = granted(&security(&["ALL"], &["SYS_ADMIN"]));
        assert_eq!(but_one.len(), ALL.len() - 1);
        assert!(!but_one.contains(&"SYS_ADMIN"));
    }
}
