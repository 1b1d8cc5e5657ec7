//! What a list of rules comes to, by the rules of cgroup v1 (kernel, `security/device_cgroup.c`),
//! which is what the OCI runtime spec means by its list. Pure.
//!
//! ```text
//! a rule for all devices  ─► decides what holds by default; what was said before is forgotten
//! one against the default ─► an exception; those for the same devices become one
//! one with the default    ─► takes its access out of the exception for the same devices
//! ```

use std::collections::BTreeMap;

use super::{Devices, Rule};

/// What may be used, but for exceptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    /// What holds for whatever no exception speaks of.
    pub(super) allow: bool,
    /// Where the contrary holds, and for which kinds of access.
    pub(super) exceptions: BTreeMap<Devices, u8>,
}

impl Policy {
    /// Without a rule everything is allowed, as in a cgroup without a program.
    pub(super) fn of(rules: &[Rule]) -> Self {
        let mut policy = Self {
            allow: true,
            exceptions: BTreeMap::new(),
        };
        for rule in rules {
            policy.add(rule);
        }
        policy
    }

    fn add(&mut self, rule: &Rule) {
        let Some(devices) = rule.only else {
            self.allow = rule.allow;
            self.exceptions.clear();
            return;
        };
        if rule.allow != self.allow {
            *self.exceptions.entry(devices).or_default() |= rule.access;
        } else if let Some(access) = self.exceptions.get_mut(&devices) {
            *access &= !rule.access;
            if *access == 0 {
                self.exceptions.remove(&devices);
            }
        }
    }

    /// Whether it says nothing.
    pub(super) fn allows_all(&self) -> bool {
        self.allow && self.exceptions.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::devices::{ALL_ACCESS, MKNOD, READ, WRITE};

    const NULL: Devices = Devices {
        block: false,
        major: Some(1),
        minor: Some(3),
    };

    fn rule(allow: bool, only: Option<Devices>, access: u8) -> Rule {
        Rule {
            allow,
            only,
            access,
        }
    }

    #[test]
    fn exceptions_for_the_same_devices_become_one() {
        let policy = Policy::of(&[
            rule(false, None, ALL_ACCESS),
            rule(true, Some(NULL), READ),
            rule(true, Some(NULL), WRITE | MKNOD),
            rule(false, Some(NULL), MKNOD),
        ]);
        assert!(!policy.allow);
        assert_eq!(policy.exceptions, [(NULL, READ | WRITE)].into());
    }

    #[test]
    fn a_rule_for_all_forgets_what_was_before() {
        let policy = Policy::of(&[
            rule(false, Some(NULL), READ),
            rule(true, None, ALL_ACCESS),
            rule(true, Some(NULL), READ),
        ]);
        assert!(policy.allows_all(), "{policy:?}");
        assert!(Policy::of(&[]).allows_all());
    }
}
