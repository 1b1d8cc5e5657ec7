//! The device controller of cgroup v1: lists of what may be used
//! (kernel documentation, cgroup-v1/devices).
//!
//! A new cgroup has its parent's rules. The usual list, "nothing, but these", is reached by the
//! difference to what is there, so that setting it again takes nothing from a running container.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use super::{Devices, LETTERS, Rule};
use crate::cgroup::error::CgroupError;
use crate::cgroup::file;

/// Everything, as the kernel writes it.
const ALL: &str = "a *:* rwm";

/// Sets the rules, in their order.
pub(super) fn apply(dir: &Path, rules: &[Rule]) -> Result<(), CgroupError> {
    let lines: Vec<(bool, String)> = rules.iter().map(|rule| (rule.allow, line(rule))).collect();
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
fn line(rule: &Rule) -> String {
    let Some(Devices {
        block,
        major,
        minor,
    }) = rule.only
    else {
        return ALL.to_owned();
    };
    let kind = if block { 'b' } else { 'c' };
    let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
    let letters = LETTERS.iter().filter(|(_, bit)| rule.access & bit != 0);
    let access: String = letters.map(|(letter, _)| letter).collect();
    format!("{kind} {}:{} {access}", number(major), number(minor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::devices::{ALL_ACCESS, READ};

    fn only(block: bool, major: Option<u32>, access: u8) -> Rule {
        let minor = Some(3);
        Rule {
            allow: true,
            only: Some(Devices {
                block,
                major,
                minor,
            }),
            access,
        }
    }

    #[test]
    fn rules_are_written_as_the_kernel_writes_them() {
        assert_eq!(line(&only(false, Some(1), ALL_ACCESS)), "c 1:3 rwm");
        assert_eq!(line(&only(true, None, READ)), "b *:3 r");
        let all = Rule {
            allow: false,
            only: None,
            access: ALL_ACCESS,
        };
        assert_eq!(line(&all), ALL);
    }
}
