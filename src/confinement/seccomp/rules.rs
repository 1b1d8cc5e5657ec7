//! From the rules of an OCI runtime spec to a program.
//!
//! What the spec leaves open is decided as libseccomp and runc do, because profiles are written for
//! them:
//!
//! - a rule with the same result as the default says nothing;
//! - a rule without arguments beats all others for its call; among those with arguments the first
//!   that holds decides;
//! - a rule that looks at one argument twice is one rule for each look;
//! - a call of a later kernel than the profile knows does not exist, so that programs fall back to
//!   what does (`ENOSYS` rather than `EPERM`).

use std::collections::BTreeMap;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};

use super::Compiled;
use super::bpf::{self, Comparison, Decision, Test};
use super::error::SeccompError;
use super::syscalls::{ARM_OWN, Architecture, X32_BIT};

/// For programs of an architecture that the profile does not name (`SECCOMP_RET_KILL_PROCESS`).
pub(super) const FOREIGN: u32 = 0x8000_0000;
/// `SECCOMP_RET_ERRNO` with `ENOSYS`.
pub(super) const ABSENT: u32 = 0x0005_0000 | libc::ENOSYS.cast_unsigned();

/// Compiles rules that have been checked.
pub(super) fn compile(rules: LinuxSeccomp) -> Result<Compiled, SeccompError> {
    let named = rules.architectures().iter().flatten();
    let mut architectures: Vec<_> = named.filter_map(|one| Architecture::named(*one)).collect();
    // The container's own programs are always meant.
    architectures.push(Architecture::NATIVE);
    architectures.sort_unstable();
    architectures.dedup();
    let x32 = architectures.contains(&Architecture::X32);
    let mut sections = Vec::new();
    for architecture in architectures {
        // They share a section with x86-64.
        if architecture == Architecture::X32 {
            continue;
        }
        let mut decisions = decisions(&rules, architecture);
        if architecture == Architecture::X86_64 {
            match x32 {
                true => decisions.extend(self::decisions(&rules, Architecture::X32)),
                // Not the default, which may be to allow.
                false => decisions.push((X32_BIT, Decision::always(ABSENT))),
            }
        }
        sections.push((architecture.audit(), bpf::by_number(&merged(decisions))));
    }
    let code = bpf::by_architecture(&sections, FOREIGN);
    if code.len() > bpf::PROGRAM_MAX {
        return Err(SeccompError::TooLong {
            instructions: code.len(),
        });
    }
    Ok(Compiled {
        program: bpf::bytes(&code),
        flags: flags(rules.flags().as_deref()),
        rules,
    })
}

/// What is done with each call of an architecture, in the order of numbers, each up to the next.
fn decisions(rules: &LinuxSeccomp, architecture: Architecture) -> Vec<(u32, Decision)> {
    let default = rules.default_action().as_u32(rules.default_errno_ret());
    let mut calls: BTreeMap<u32, Calls> = BTreeMap::new();
    for rule in rules.syscalls().iter().flatten() {
        for number in rule
            .names()
            .iter()
            .filter_map(|name| architecture.number(name))
        {
            calls
                .entry(number)
                .or_default()
                .add(rule, default, architecture);
        }
    }
    let first = if architecture == Architecture::X32 {
        X32_BIT
    } else {
        0
    };
    let newest = calls.keys().rfind(|number| **number & !X32_BIT < ARM_OWN);
    let newer = newest.map_or(first, |newest| newest + 1);
    let mut decisions = vec![(first, Decision::always(default))];
    for (number, call) in calls {
        decisions.push((number, call.decision(default)));
        decisions.push((number + 1, Decision::always(default)));
    }
    if is_refusal(rules) {
        let own = decisions.partition_point(|(number, _)| *number <= newer);
        decisions.insert(own, (newer, Decision::always(ABSENT)));
    }
    decisions
}

/// Whether the default is to refuse, without a word on how.
fn is_refusal(rules: &LinuxSeccomp) -> bool {
    match rules.default_action() {
        LinuxSeccompAction::ScmpActErrno => rules.default_errno_ret().is_none(),
        LinuxSeccompAction::ScmpActKill
        | LinuxSeccompAction::ScmpActKillThread
        | LinuxSeccompAction::ScmpActKillProcess => true,
        _ => false,
    }
}

/// What the rules say of one call.
#[derive(Debug, Default)]
struct Calls {
    always: Option<u32>,
    cases: Vec<(Vec<Comparison>, u32)>,
}

impl Calls {
    fn add(&mut self, rule: &LinuxSyscall, default: u32, architecture: Architecture) {
        let value = rule.action().as_u32(rule.errno_ret());
        if value == default {
            return;
        }
        let args = rule.args().as_deref().unwrap_or_default();
        let comparisons: Vec<_> = args
            .iter()
            .map(|arg| comparison(arg, architecture))
            .collect();
        let twice = |one: &Comparison| {
            let same = comparisons
                .iter()
                .filter(|other| other.argument == one.argument);
            same.count() > 1
        };
        if comparisons.is_empty() {
            self.always.get_or_insert(value);
        } else if comparisons.iter().any(twice) {
            let each = comparisons.into_iter().map(|one| (vec![one], value));
            self.cases.extend(each);
        } else {
            self.cases.push((comparisons, value));
        }
    }

    fn decision(self, default: u32) -> Decision {
        match self.always {
            Some(always) => Decision::always(always),
            None => Decision {
                cases: self.cases,
                otherwise: default,
            },
        }
    }
}

/// On 32-bit architectures arguments have 32 bits, and so have the values they are compared with.
fn comparison(arg: &LinuxSeccompArg, architecture: Architecture) -> Comparison {
    let cut = |value: u64| {
        if architecture.is_wide() {
            value
        } else {
            value & 0xffff_ffff
        }
    };
    let (value, second) = (cut(arg.value()), cut(arg.value_two().unwrap_or_default()));
    let test = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => Test::Different(value),
        LinuxSeccompOperator::ScmpCmpLt => Test::Less(value),
        LinuxSeccompOperator::ScmpCmpLe => Test::AtMost(value),
        LinuxSeccompOperator::ScmpCmpEq => Test::Equal(value),
        LinuxSeccompOperator::ScmpCmpGe => Test::AtLeast(value),
        LinuxSeccompOperator::ScmpCmpGt => Test::Greater(value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => Test::Masked(value, second),
    };
    Comparison {
        argument: u8::try_from(arg.index()).unwrap_or(u8::MAX),
        test,
    }
}

/// Of several entries for one number the last counts; of neighbours that are the same, one is left.
fn merged(decisions: Vec<(u32, Decision)>) -> Vec<(u32, Decision)> {
    let mut merged: Vec<(u32, Decision)> = Vec::with_capacity(decisions.len());
    for (number, decision) in decisions {
        if merged.last().is_some_and(|(last, _)| *last == number) {
            merged.pop();
        }
        if merged.last().is_none_or(|(_, last)| *last != decision) {
            merged.push((number, decision));
        }
    }
    merged
}

/// Without flags: no slow-down of branch prediction, as runc has it since kernels no longer do so
/// by themselves (5.16). Synchronising threads means nothing for a process that has one.
fn flags(flags: Option<&[LinuxSeccompFilterFlag]>) -> u32 {
    let Some(flags) = flags else {
        return SPEC_ALLOW;
    };
    flags.iter().fold(0, |all, flag| {
        all | match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => SPEC_ALLOW,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync
            | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        }
    })
}

/// `SECCOMP_FILTER_FLAG_LOG` (linux/seccomp.h).
const LOG: u32 = 1 << 1;
/// `SECCOMP_FILTER_FLAG_SPEC_ALLOW`.
const SPEC_ALLOW: u32 = 1 << 2;
