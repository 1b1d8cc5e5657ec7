//! The device controller of cgroup v1: which devices may be opened and made
//! (kernel documentation, cgroup-v1/devices).
//!
//! A new cgroup has its parent's rules. The usual list, "nothing, but these", is reached by the
//! difference to what is there, so that setting it again takes nothing from a running container.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::error::CgroupError;
use super::file;

/// Everything, as the kernel writes it.
const ALL: &str = "a *:* rwm";

/// Checks the rules' types, numbers and access letters.
pub(super) fn validate(rules: &[LinuxDeviceCgroup]) -> Result<(), CgroupError> {
    rules.iter().try_for_each(|rule| line(rule).map(drop))
}

/// Sets the rules, in their order.
pub(super) fn apply(dir: &Path, rules: &[LinuxDeviceCgroup]) -> Result<(), CgroupError> {
    let lines: Vec<(bool, String)> = rules
        .iter()
        .map(|rule| line(rule).map(|line| (rule.allow(), line)))
        .collect::<Result<_, _>>()?;
    match lines.split_first() {
        None => Ok(()),
        Some(((false, first), rest)) if first == ALL && rest.iter().all(|(allow, _)| *allow) => {
            let wanted = rest.iter().map(|(_, line)| line.as_str()).collect();
            apply_allow_list(dir, &wanted)
        }
        Some(_) => {
            for (allow, line) in &lines {
                file::write(dir, file_name(*allow), line)?;
            }
            Ok(())
        }
    }
}

fn apply_allow_list(dir: &Path, wanted: &BTreeSet<&str>) -> Result<(), CgroupError> {
    let text = file::read(dir, "devices.list")?;
    let current: BTreeSet<&str> = text.lines().collect();
    if current == *wanted {
        return Ok(());
    }
    if current.contains(ALL) {
        file::write(dir, file_name(false), ALL)?;
    } else {
        write_lines(dir, false, current.difference(wanted))?;
    }
    // All of them, not only the new ones: the kernel joins rules for one device into one line, and
    // what was denied above may have been such a line.
    write_lines(dir, true, wanted.iter())
}

fn write_lines<'a>(
    dir: &Path,
    allow: bool,
    lines: impl Iterator<Item = &'a &'a str>,
) -> Result<(), CgroupError> {
    let path = dir.join(file_name(allow));
    let mut file = OpenOptions::new()
        .write(true)
        .open(&path)
        .map_err(CgroupError::file("open", &path))?;
    for line in lines {
        // One line for each write, which is all that the kernel reads of it.
        file.write_all(line.as_bytes())
            .map_err(|source| CgroupError::Write {
                path: path.clone(),
                value: (*line).to_owned(),
                source,
            })?;
    }
    Ok(())
}

fn file_name(allow: bool) -> &'static str {
    if allow {
        "devices.allow"
    } else {
        "devices.deny"
    }
}

/// A rule as the kernel writes it: `c 1:3 rwm`.
fn line(rule: &LinuxDeviceCgroup) -> Result<String, CgroupError> {
    let kind = match rule.typ().unwrap_or_default() {
        LinuxDeviceType::A => return all(rule),
        LinuxDeviceType::B => 'b',
        LinuxDeviceType::C | LinuxDeviceType::U => 'c',
        LinuxDeviceType::P => return Err(invalid("fifo", "is not limited by device rules")),
    };
    let access = access(rule)?;
    Ok(format!(
        "{kind} {}:{} {access}",
        number(rule.major())?,
        number(rule.minor())?
    ))
}

/// The kernel takes `a` for every device and every access, whatever else is written.
fn all(rule: &LinuxDeviceCgroup) -> Result<String, CgroupError> {
    if rule.major().is_none_or(|n| n < 0)
        && rule.minor().is_none_or(|n| n < 0)
        && access(rule)? == "rwm"
    {
        return Ok(ALL.to_owned());
    }
    Err(invalid(
        "a",
        "a rule for all types is for all devices and all access",
    ))
}

fn number(number: Option<i64>) -> Result<String, CgroupError> {
    match number {
        None | Some(-1) => Ok("*".to_owned()),
        Some(number) => u32::try_from(number)
            .map(|number| number.to_string())
            .map_err(|_| invalid(&number.to_string(), "not a device number")),
    }
}

/// The access letters in the kernel's order; none given is all of them.
fn access(rule: &LinuxDeviceCgroup) -> Result<String, CgroupError> {
    let given = rule
        .access()
        .as_deref()
        .filter(|given| !given.is_empty())
        .unwrap_or("rwm");
    if let Some(odd) = given.chars().find(|letter| !"rwm".contains(*letter)) {
        return Err(invalid(&odd.to_string(), "access is made of r, w and m"));
    }
    Ok("rwm"
        .chars()
        .filter(|letter| given.contains(*letter))
        .collect())
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

    fn rule(typ: LinuxDeviceType, major: i64, access: &str) -> LinuxDeviceCgroup {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true)
            .set_typ(Some(typ))
            .set_major(Some(major))
            .set_minor(Some(3));
        rule.set_access(Some(access.to_owned()));
        rule
    }

    #[test]
    fn rules_are_written_as_the_kernel_writes_them() {
        assert_eq!(
            line(&rule(LinuxDeviceType::C, 1, "mwr")).unwrap(),
            "c 1:3 rwm"
        );
        assert_eq!(line(&rule(LinuxDeviceType::B, -1, "r")).unwrap(), "b *:3 r");
        assert_eq!(line(&rule(LinuxDeviceType::U, 5, "")).unwrap(), "c 5:3 rwm");
        assert_eq!(line(&LinuxDeviceCgroup::default()).unwrap(), ALL);
    }

    #[test]
    fn rules_that_would_mean_something_else_are_refused() {
        assert!(line(&rule(LinuxDeviceType::A, 1, "rwm")).is_err());
        assert!(line(&rule(LinuxDeviceType::P, 1, "rwm")).is_err());
        assert!(line(&rule(LinuxDeviceType::C, -2, "rwm")).is_err());
        assert!(line(&rule(LinuxDeviceType::C, 1 << 40, "rwm")).is_err());
        assert!(line(&rule(LinuxDeviceType::C, 1, "rx")).is_err());
    }
}
