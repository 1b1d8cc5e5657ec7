//! The device rules of a cgroup v2: a BPF program of type `BPF_PROG_TYPE_CGROUP_DEVICE`, which the
//! kernel asks at each open and mknod of a device (kernel documentation, cgroup-v2, "Device
//! controller"). Those of the cgroups above are asked as well; all must agree.
//!
//! The program compares one exception after the other and ends at the first that matches. Ours is
//! known by its name, so that what others have attached stays; it is replaced in one step, so that
//! setting rules again takes nothing from a running container and leaves no moment without rules.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;

use super::policy::Policy;
use super::{ALL_ACCESS, Devices, Rule};
use crate::cgroup::error::CgroupError;
use crate::sys::bpf::{self, Instruction};

/// What our programs are called.
const NAME: &str = "quilt_devices";

/// Sets the rules.
pub(super) fn apply(dir: &Path, rules: &[Rule]) -> Result<(), CgroupError> {
    let policy = Policy::of(rules);
    let cgroup = File::open(dir).map_err(CgroupError::file("open", dir))?;
    let cgroup = cgroup.as_fd();
    let failed = |action| CgroupError::file(action, dir);
    let attached = bpf::device_programs(cgroup).map_err(failed("ask for the device rules of"))?;
    let mut ours = attached
        .into_iter()
        .filter(|(name, _)| name == NAME)
        .map(|(_, program)| program);
    let former = ours.next();
    if !policy.allows_all() {
        let program = bpf::load_device_program(NAME, &compile(&policy))
            .map_err(failed("make the device rules of"))?;
        let replaced = former.as_ref().map(std::os::fd::AsFd::as_fd);
        bpf::attach_device_program(cgroup, program.as_fd(), replaced)
            .map_err(failed("set the device rules of"))?;
    } else if let Some(former) = &former {
        bpf::detach_device_program(cgroup, former.as_fd())
            .map_err(failed("lift the device rules of"))?;
    }
    Ok(())
}

// Registers. The kernel's question lies where r1 points to: access and type in one word, then the
// two numbers (`struct bpf_cgroup_dev_ctx`).
const R0: u8 = 0;
const R1: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Types of device as programs are told them (`BPF_DEVCG_DEV_*`).
const BLOCK: i32 = 1;
const CHAR: i32 = 2;

// Operations (`linux/bpf.h`, `linux/bpf_common.h`): all with 32 bits, as the numbers have.
const LOAD_WORD: u8 = 0x61; // LDX | MEM | W
const AND: u8 = 0x54; // ALU | AND | K
const SHIFT_RIGHT: u8 = 0x74; // ALU | RSH | K
const MOVE: u8 = 0xb4; // ALU | MOV | K
const COPY: u8 = 0xbc; // ALU | MOV | X
const JUMP_IF_EQUAL: u8 = 0x16; // JMP32 | JEQ | K
const JUMP_IF_OTHER: u8 = 0x56; // JMP32 | JNE | K
const EXIT: u8 = 0x95; // JMP | EXIT

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: source << 4 | destination,
        offset,
        immediate,
    }
}

fn compile(policy: &Policy) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_WORD, TYPE, R1, 0, 0),
        instruction(COPY, ACCESS, TYPE, 0, 0),
        instruction(AND, TYPE, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, R1, 4, 0),
        instruction(LOAD_WORD, MINOR, R1, 8, 0),
    ];
    for (devices, access) in &policy.exceptions {
        exception(&mut program, !policy.allow, devices, *access);
    }
    program.extend(answer(policy.allow));
    program
}

fn answer(allow: bool) -> [Instruction; 2] {
    [
        instruction(MOVE, R0, 0, 0, allow.into()),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

/// Conditions, each of which jumps behind the answer when it does not hold. All access must be in
/// an exception that allows; any of it, in one that denies.
fn exception(program: &mut Vec<Instruction>, allow: bool, devices: &Devices, access: u8) {
    let kind = if devices.block { BLOCK } else { CHAR };
    let mut conditions = vec![instruction(JUMP_IF_OTHER, TYPE, 0, 0, kind)];
    for (register, number) in [(MAJOR, devices.major), (MINOR, devices.minor)] {
        if let Some(number) = number {
            let number = number.cast_signed();
            conditions.push(instruction(JUMP_IF_OTHER, register, 0, 0, number));
        }
    }
    // Nobody needs what all access is there for; but to ask for none is not to be denied any.
    if !allow || access != ALL_ACCESS {
        let (bits, unless) = if allow {
            (ALL_ACCESS & !access, JUMP_IF_OTHER)
        } else {
            (access, JUMP_IF_EQUAL)
        };
        // r1 is not needed any more: the question has been read.
        conditions.push(instruction(COPY, R1, ACCESS, 0, 0));
        conditions.push(instruction(AND, R1, 0, 0, bits.into()));
        conditions.push(instruction(unless, R1, 0, 0, 0));
    }
    let answer = answer(allow);
    let length = conditions.len();
    for (at, condition) in conditions.iter_mut().enumerate() {
        if matches!(condition.code, JUMP_IF_OTHER | JUMP_IF_EQUAL) {
            // From the next instruction to the one behind the answer; eight at most.
            condition.offset = (length - at - 1 + answer.len()) as i16;
        }
    }
    program.extend(conditions);
    program.extend(answer);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cgroup::devices::{MKNOD, READ, WRITE};

    /// What is asked of a program.
    #[derive(Debug, Clone, Copy)]
    struct Question {
        block: bool,
        access: u8,
        major: u32,
        minor: u32,
    }

    /// Runs a program as the kernel does.
    fn run(program: &[Instruction], question: Question) -> bool {
        let kind = if question.block { BLOCK } else { CHAR };
        let context = [
            u32::from(question.access) << 16 | kind.cast_unsigned(),
            question.major,
            question.minor,
        ];
        let (mut registers, mut at) = ([0u32; 10], 0usize);
        loop {
            let one = program[at];
            at += 1;
            let destination = usize::from(one.registers & 0xf);
            let source = registers[usize::from(one.registers >> 4)];
            let constant = one.immediate.cast_unsigned();
            let value = &mut registers[destination];
            let mut jump = |holds: bool| at += if holds { one.offset as usize } else { 0 };
            match one.code {
                LOAD_WORD => *value = context[one.offset as usize / 4],
                AND => *value &= constant,
                SHIFT_RIGHT => *value >>= constant,
                MOVE => *value = constant,
                COPY => *value = source,
                JUMP_IF_EQUAL => jump(*value == constant),
                JUMP_IF_OTHER => jump(*value != constant),
                EXIT => return registers[0] == 1,
                other => panic!("{other:#x} is not used"),
            }
        }
    }

    /// What the kernel's own code for v1 says, in its words: `match_exception` and
    /// `match_exception_partial`.
    fn decided(policy: &Policy, asked: Question) -> bool {
        let excepted = policy.exceptions.iter().any(|(devices, access)| {
            devices.block == asked.block
                && devices.major.is_none_or(|major| major == asked.major)
                && devices.minor.is_none_or(|minor| minor == asked.minor)
                && if policy.allow {
                    asked.access & access != 0
                } else {
                    asked.access & !access == 0
                }
        });
        excepted != policy.allow
    }

    fn rules() -> impl Strategy<Value = Vec<Rule>> {
        // Few numbers, so that rules meet; two of them are negative as the kernel's constants.
        let number = || prop::sample::select(vec![0, 1, 3, u32::MAX, 1 << 31]);
        let some = (
            any::<bool>(),
            prop::option::of(number()),
            prop::option::of(number()),
        );
        let some = some.prop_map(|(block, major, minor)| Devices {
            block,
            major,
            minor,
        });
        let rule = (
            any::<bool>(),
            prop::option::weighted(0.9, some),
            1..=ALL_ACCESS,
        );
        let rule = rule.prop_map(|(allow, only, access)| Rule {
            allow,
            only,
            access: if only.is_some() { access } else { ALL_ACCESS },
        });
        prop::collection::vec(rule, 0..12)
    }

    proptest! {
        #[test]
        fn a_program_decides_as_cgroup_v1_does(rules in rules()) {
            let policy = Policy::of(&rules);
            let program = compile(&policy);
            for (block, access, major, minor) in questions(&[0, 1, 2, 3, 1 << 31, u32::MAX]) {
                let asked = Question { block, access, major, minor };
                prop_assert_eq!(run(&program, asked), decided(&policy, asked), "{:?}", asked);
            }
        }
    }

    /// Every question about these numbers.
    fn questions(numbers: &[u32]) -> Vec<(bool, u8, u32, u32)> {
        let mut all = Vec::new();
        for access in 0..=ALL_ACCESS {
            for major in numbers {
                for minor in numbers {
                    all.push((false, access, *major, *minor));
                    all.push((true, access, *major, *minor));
                }
            }
        }
        all
    }

    #[test]
    fn the_usual_list_lets_null_be_used_and_no_disk() {
        let null = Devices {
            block: false,
            major: Some(1),
            minor: Some(3),
        };
        let any_node = Devices {
            block: true,
            major: None,
            minor: None,
        };
        let rule = |only, access| Rule {
            allow: true,
            only: Some(only),
            access,
        };
        let nothing = Rule {
            allow: false,
            only: None,
            access: ALL_ACCESS,
        };
        let rules = [nothing, rule(null, ALL_ACCESS), rule(any_node, MKNOD)];
        let program = compile(&Policy::of(&rules));
        let ask = |block, access, major, minor| {
            let asked = Question {
                block,
                access,
                major,
                minor,
            };
            run(&program, asked)
        };
        assert!(ask(false, READ | WRITE, 1, 3));
        assert!(!ask(false, READ, 1, 5));
        assert!(ask(true, MKNOD, 8, 0));
        assert!(!ask(true, READ, 8, 0) && !ask(true, READ | MKNOD, 8, 0));
    }
}
