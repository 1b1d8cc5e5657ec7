//! Which devices the processes of a cgroup may open and make: the rules of the OCI runtime spec.
//!
//! cgroup v1 keeps them as lists (`lists.rs`). cgroup v2 has no files for devices; there a BPF
//! program decides (`program.rs`), which is made of the rules (`policy.rs`).

mod lists;
mod policy;
mod program;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::error::CgroupError;
use super::file;
use super::layout::Cgroups;
use super::path::CgroupPath;

/// A kind of access, as the kernel numbers them for programs (`BPF_DEVCG_ACC_*`), with its letter.
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL_ACCESS: u8 = MKNOD | READ | WRITE;
/// In the order in which v1 writes them.
const LETTERS: [(char, u8); 3] = [('r', READ), ('w', WRITE), ('m', MKNOD)];

/// One rule, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    /// `None` for all devices and all access.
    only: Option<Devices>,
    /// Bits of kinds of access.
    access: u8,
}

/// Devices by type and number; `None` is any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Devices {
    block: bool,
    major: Option<u32>,
    minor: Option<u32>,
}

/// Checks the rules' types, numbers and access letters.
pub(super) fn validate(rules: &[LinuxDeviceCgroup]) -> Result<(), CgroupError> {
    rules.iter().try_for_each(|given| rule(given).map(drop))
}

/// Sets the rules, in their order, in the way that the hierarchies of this node have.
pub(super) fn apply(
    cgroups: &Cgroups,
    path: &CgroupPath,
    rules: &[LinuxDeviceCgroup],
) -> Result<(), CgroupError> {
    let rules = rules.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    if let Some(dir) = cgroups.v1_dir("devices", path) {
        lists::apply(&dir, &rules)
    } else if let Some(dir) = cgroups.unified_dir(path) {
        program::apply(&dir, &rules)
    } else {
        Ok(())
    }
}

fn rule(given: &LinuxDeviceCgroup) -> Result<Rule, CgroupError> {
    let block = match given.typ().unwrap_or_default() {
        LinuxDeviceType::A => return all(given),
        LinuxDeviceType::B => true,
        LinuxDeviceType::C | LinuxDeviceType::U => false,
        LinuxDeviceType::P => return Err(invalid("fifo", "is not limited by device rules")),
    };
    Ok(Rule {
        allow: given.allow(),
        only: Some(Devices {
            block,
            major: number(given.major())?,
            minor: number(given.minor())?,
        }),
        access: access(given)?,
    })
}

/// The kernel takes `a` for every device and every access, whatever else is written.
fn all(given: &LinuxDeviceCgroup) -> Result<Rule, CgroupError> {
    if given.major().is_none_or(|n| n < 0)
        && given.minor().is_none_or(|n| n < 0)
        && access(given)? == ALL_ACCESS
    {
        return Ok(Rule {
            allow: given.allow(),
            only: None,
            access: ALL_ACCESS,
        });
    }
    Err(invalid(
        "a",
        "a rule for all types is for all devices and all access",
    ))
}

fn number(number: Option<i64>) -> Result<Option<u32>, CgroupError> {
    match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| invalid(&number.to_string(), "not a device number")),
    }
}

/// The kinds of access; none given is all of them.
fn access(given: &LinuxDeviceCgroup) -> Result<u8, CgroupError> {
    let letters = given.access().as_deref().filter(|given| !given.is_empty());
    letters
        .unwrap_or("rwm")
        .chars()
        .try_fold(0, |bits, letter| {
            let known = LETTERS.iter().find(|(known, _)| *known == letter);
            known
                .map(|(_, bit)| bits | bit)
                .ok_or_else(|| invalid(&letter.to_string(), "access is made of r, w and m"))
        })
}

fn invalid(value: &str, reason: &'static str) -> CgroupError {
    CgroupError::InvalidValue {
        field: "devices",
        value: file::cut(value),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(typ: LinuxDeviceType, major: i64, access: &str) -> LinuxDeviceCgroup {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true)
            .set_typ(Some(typ))
            .set_major(Some(major))
            .set_minor(Some(3));
        rule.set_access(Some(access.to_owned()));
        rule
    }

    #[test]
    fn rules_are_read_as_the_runtime_spec_has_them() {
        let read = rule(&given(LinuxDeviceType::B, -1, "r")).unwrap();
        let only = Some(Devices {
            block: true,
            major: None,
            minor: Some(3),
        });
        let access = READ;
        assert_eq!(
            read,
            Rule {
                allow: true,
                only,
                access
            }
        );
        let every = rule(&given(LinuxDeviceType::U, 5, "")).unwrap();
        assert_eq!(every.access, ALL_ACCESS);
        assert_eq!(rule(&LinuxDeviceCgroup::default()).unwrap().only, None);
    }

    #[test]
    fn rules_that_would_mean_something_else_are_refused() {
        assert!(rule(&given(LinuxDeviceType::A, 1, "rwm")).is_err());
        assert!(rule(&given(LinuxDeviceType::P, 1, "rwm")).is_err());
        assert!(rule(&given(LinuxDeviceType::C, -2, "rwm")).is_err());
        assert!(rule(&given(LinuxDeviceType::C, 1 << 40, "rwm")).is_err());
        assert!(rule(&given(LinuxDeviceType::C, 1, "rx")).is_err());
    }
}
