//! Classic BPF: the instructions that a filter needs, and how decisions become jumps.
//!
//! Everything here is a piece of code that can be put anywhere: jumps are relative and forward, and
//! no piece runs out of its end.

/// The most instructions that the kernel takes (linux/bpf_common.h, `BPF_MAXINSNS`).
pub(super) const PROGRAM_MAX: usize = 4096;

/// Offsets in `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// `struct sock_filter` (linux/filter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) if_true: u8,
    pub(super) if_false: u8,
    pub(super) value: u32,
}

/// Code that ends in a result whichever way it is run through.
pub(super) type Code = Vec<Instruction>;

/// Codes of the instructions in use (linux/bpf_common.h).
pub(super) mod code {
    /// Load a word of the data.
    pub(in crate::confinement::seccomp) const LOAD: u16 = 0x20;
    /// Mask what has been loaded.
    pub(in crate::confinement::seccomp) const AND: u16 = 0x54;
    /// Jump.
    pub(in crate::confinement::seccomp) const JUMP: u16 = 0x05;
    /// Jump if equal.
    pub(in crate::confinement::seccomp) const EQUAL: u16 = 0x15;
    /// Jump if greater, unsigned.
    pub(in crate::confinement::seccomp) const GREATER: u16 = 0x25;
    /// Jump if greater or equal, unsigned.
    pub(in crate::confinement::seccomp) const AT_LEAST: u16 = 0x35;
    /// End.
    pub(in crate::confinement::seccomp) const RETURN: u16 = 0x06;
}

const fn plain(code: u16, value: u32) -> Instruction {
    branch(code, value, 0, 0)
}

const fn branch(code: u16, value: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction {
        code,
        if_true,
        if_false,
        value,
    }
}

/// The piece that decides, whatever the call.
pub(super) fn result(value: u32) -> Code {
    vec![plain(code::RETURN, value)]
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Test {
    Equal(u64),
    Different(u64),
    Greater(u64),
    AtLeast(u64),
    Less(u64),
    AtMost(u64),
    /// Mask, and what has to be left.
    Masked(u64, u64),
}

/// A test of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Comparison {
    /// 0 to 5.
    pub(super) argument: u8,
    pub(super) test: Test,
}

/// What is done with a call: the first of the cases whose comparisons all hold decides.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Decision {
    pub(super) cases: Vec<(Vec<Comparison>, u32)>,
    pub(super) otherwise: u32,
}

impl Decision {
    /// Always the same.
    pub(super) fn always(value: u32) -> Self {
        Self {
            cases: Vec::new(),
            otherwise: value,
        }
    }

    /// As code.
    pub(super) fn code(&self) -> Code {
        let mut all = Code::new();
        for (comparisons, value) in &self.cases {
            all.extend(case(comparisons, *value));
        }
        all.extend(result(self.otherwise));
        all
    }
}

/// Falls out of its end when a comparison does not hold. At most six of them, of different
/// arguments, so that no jump is longer than a byte can say.
fn case(comparisons: &[Comparison], value: u32) -> Code {
    let mut code = result(value);
    for comparison in comparisons.iter().rev() {
        let mut piece = compare(*comparison, u8::try_from(code.len()).unwrap_or(u8::MAX));
        piece.extend(code);
        code = piece;
    }
    code
}

/// Goes on behind its end if the comparison holds, and `skip` instructions further if not. The two
/// halves of an argument are words of their own, the lower one first.
fn compare(comparison: Comparison, skip: u8) -> Code {
    use code::{AND, AT_LEAST, EQUAL, GREATER};
    let low = plain(code::LOAD, ARGUMENTS + 8 * u32::from(comparison.argument));
    let high = plain(code::LOAD, low.value + 4);
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let ordered = |value: u64, last: u16, yes: u8, no: u8| {
        let (above, below) = halves(value);
        vec![
            high,
            branch(GREATER, above, yes + 3, 0),
            branch(EQUAL, above, 0, no + 2),
            low,
            branch(last, below, yes, no),
        ]
    };
    match comparison.test {
        Test::Equal(value) => {
            let (above, below) = halves(value);
            vec![
                high,
                branch(EQUAL, above, 0, skip + 2),
                low,
                branch(EQUAL, below, 0, skip),
            ]
        }
        Test::Different(value) => {
            let (above, below) = halves(value);
            vec![
                high,
                branch(EQUAL, above, 0, 2),
                low,
                branch(EQUAL, below, skip, 0),
            ]
        }
        Test::Greater(value) => ordered(value, GREATER, 0, skip),
        Test::AtLeast(value) => ordered(value, AT_LEAST, 0, skip),
        Test::Less(value) => ordered(value, AT_LEAST, skip, 0),
        Test::AtMost(value) => ordered(value, GREATER, skip, 0),
        Test::Masked(mask, value) => {
            let ((above, below), (mask_above, mask_below)) = (halves(value & mask), halves(mask));
            vec![
                high,
                plain(AND, mask_above),
                branch(EQUAL, above, 0, skip + 3),
                low,
                plain(AND, mask_below),
                branch(EQUAL, below, 0, skip),
            ]
        }
    }
}

/// The decisions about all calls of an architecture: each entry counts from its number up to the
/// next one's. The first begins at 0. A tree of comparisons, so that no call waits for many.
pub(super) fn by_number(decisions: &[(u32, Decision)]) -> Code {
    let mut code = vec![plain(code::LOAD, NUMBER)];
    code.extend(tree(decisions));
    code
}

fn tree(decisions: &[(u32, Decision)]) -> Code {
    match decisions {
        [] => Code::new(),
        [(_, only)] => only.code(),
        _ => {
            let (left, right) = decisions.split_at(decisions.len() / 2);
            let pivot = right[0].0;
            let (left, right) = (tree(left), tree(right));
            let mut code = over(branch(code::AT_LEAST, pivot, 1, 0), left.len());
            code.extend(left);
            code.extend(right);
            code
        }
    }
}

/// For programs of each architecture its own code; for all others `otherwise`.
pub(super) fn by_architecture(sections: &[(u32, Code)], otherwise: u32) -> Code {
    let mut code = vec![plain(code::LOAD, ARCHITECTURE)];
    for (architecture, section) in sections {
        code.extend(over(
            branch(code::EQUAL, *architecture, 0, 1),
            section.len(),
        ));
        code.extend(section);
    }
    code.extend(result(otherwise));
    code
}

/// A branch whose way marked with 1 leads over the next `length` instructions, however many.
fn over(condition: Instruction, length: usize) -> Code {
    if let Ok(length) = u8::try_from(length) {
        return vec![Instruction {
            if_true: condition.if_true * length,
            if_false: condition.if_false * length,
            ..condition
        }];
    }
    // The way marked with 1 comes to the jump, the other passes over it.
    vec![
        Instruction {
            if_true: 1 - condition.if_true,
            if_false: 1 - condition.if_false,
            ..condition
        },
        plain(code::JUMP, u32::try_from(length).unwrap_or(u32::MAX)),
    ]
}

/// As the kernel reads it.
pub(super) fn bytes(code: &[Instruction]) -> Vec<u8> {
    code.iter()
        .flat_map(|one| {
            let mut bytes = [0; 8];
            bytes[..2].copy_from_slice(&one.code.to_ne_bytes());
            bytes[2] = one.if_true;
            bytes[3] = one.if_false;
            bytes[4..].copy_from_slice(&one.value.to_ne_bytes());
            bytes
        })
        .collect()
}
