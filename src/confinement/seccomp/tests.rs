//! Programs against a model of the rules, and against the kernel's own header of what each means.

use std::collections::BTreeSet;

use oci_spec::runtime::LinuxSeccomp;
use proptest::prelude::*;

use super::bpf::code;
use super::profile::{Container, Profile};
use super::syscalls::{Architecture, X32_BIT};
use super::*;

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = rules::ABSENT;
const KILL: u32 = rules::FOREIGN;

/// A system call as a filter sees it.
#[derive(Debug, Clone, Copy)]
struct Call {
    architecture: u32,
    number: u32,
    args: [u64; 6],
}

/// Runs a program as the kernel does, and insists on what the kernel checks beforehand.
fn run(program: &[u8], call: Call) -> u32 {
    let (instructions, rest) = program.as_chunks::<8>();
    assert!(rest.is_empty() && (1..=4096).contains(&instructions.len()));
    let (mut at, mut loaded) = (0, 0_u32);
    loop {
        let one = instructions[at];
        let code = u16::from_ne_bytes([one[0], one[1]]);
        let value = u32::from_ne_bytes([one[4], one[5], one[6], one[7]]);
        let jump = |holds: bool| usize::from(if holds { one[2] } else { one[3] });
        at += 1;
        match code {
            code::RETURN => return value,
            code::LOAD => loaded = load(call, value),
            code::AND => loaded &= value,
            code::JUMP => at += value as usize,
            code::EQUAL => at += jump(loaded == value),
            code::GREATER => at += jump(loaded > value),
            code::AT_LEAST => at += jump(loaded >= value),
            other => panic!("no filter has instruction {other:#x}"),
        }
    }
}

fn load(call: Call, offset: u32) -> u32 {
    assert!(offset < 64 && offset.is_multiple_of(4));
    let word = |value: u64| {
        (if offset.is_multiple_of(8) {
            value
        } else {
            value >> 32
        }) as u32
    };
    match offset {
        0 => call.number,
        4 => call.architecture,
        8 | 12 => 0,
        _ => word(call.args[(offset as usize - 16) / 8]),
    }
}

/// What the rules say, read off them one by one.
fn model(rules: &LinuxSeccomp, architecture: Architecture, call: Call) -> u32 {
    let default = rules.default_action().as_u32(rules.default_errno_ret());
    let all = || rules.syscalls().iter().flatten();
    let numbers = || {
        all().flat_map(|rule| {
            rule.names()
                .iter()
                .filter_map(|name| architecture.number(name))
        })
    };
    let of_call = || {
        all().filter(|rule| {
            let mut names = rule.names().iter();
            names.any(|name| architecture.number(name) == Some(call.number))
        })
    };
    let said =
        |rule: &&oci_spec::runtime::LinuxSyscall| rule.action().as_u32(rule.errno_ret()) != default;
    let bare =
        |rule: &&oci_spec::runtime::LinuxSyscall| rule.args().as_ref().is_none_or(Vec::is_empty);
    if let Some(rule) = of_call().filter(said).find(bare) {
        return rule.action().as_u32(rule.errno_ret());
    }
    for rule in of_call().filter(said) {
        let args = rule.args().clone().unwrap_or_default();
        let distinct: BTreeSet<_> = args.iter().map(|arg| arg.index()).collect();
        let mut holding = args.iter().map(|arg| holds(arg, architecture, call));
        let whole = match distinct.len() == args.len() {
            true => holding.all(|one| one),
            false => holding.any(|one| one),
        };
        if whole {
            return rule.action().as_u32(rule.errno_ret());
        }
    }
    let refuses = default != ALLOW && rules.default_errno_ret().is_none();
    let newest = numbers().max();
    if refuses && newest.is_none_or(|newest| call.number > newest) {
        return ENOSYS;
    }
    default
}

fn holds(arg: &oci_spec::runtime::LinuxSeccompArg, on: Architecture, call: Call) -> bool {
    use oci_spec::runtime::LinuxSeccompOperator as Is;
    let bits = if on.is_wide() { u64::MAX } else { 0xffff_ffff };
    let given = call.args[arg.index()];
    let (value, second) = (arg.value() & bits, arg.value_two().unwrap_or(0) & bits);
    match arg.op() {
        Is::ScmpCmpNe => given != value,
        Is::ScmpCmpLt => given < value,
        Is::ScmpCmpLe => given <= value,
        Is::ScmpCmpEq => given == value,
        Is::ScmpCmpGe => given >= value,
        Is::ScmpCmpGt => given > value,
        Is::ScmpCmpMaskedEq => given & value == second & value,
    }
}

fn compiled(text: &str) -> Compiled {
    try_compile(text, &[]).expect("a profile")
}

fn try_compile(text: &str, capabilities: &[&str]) -> Result<Compiled, SeccompError> {
    let kernel = (6, 1);
    let container = Container {
        capabilities,
        kernel,
    };
    rules::compile(Profile::parse(text)?.resolve(&container)?)
}

/// A call of the native architecture, by name.
fn native(name: &str, args: &[u64]) -> Call {
    on(Architecture::NATIVE, name, args)
}

fn on(architecture: Architecture, name: &str, args: &[u64]) -> Call {
    let mut six = [0; 6];
    six[..args.len()].copy_from_slice(args);
    Call {
        architecture: architecture.audit(),
        number: architecture.number(name).expect(name),
        args: six,
    }
}

fn default_for(capabilities: &[&str]) -> std::sync::Arc<Compiled> {
    compile(Source::RuntimeDefault, capabilities).expect("the default profile")
}

#[test]
fn the_default_profile_allows_daily_work_and_nothing_that_reaches_the_node() {
    let program = &default_for(&["CHOWN"]).program;
    for name in [
        "openat",
        "execve",
        "futex",
        "ptrace",
        "mknodat",
        "memfd_secret",
    ] {
        assert_eq!(run(program, native(name, &[])), ALLOW, "{name}");
    }
    for name in [
        "mount",
        "umount2",
        "setns",
        "unshare",
        "bpf",
        "keyctl",
        "add_key",
        "io_uring_setup",
        "kexec_load",
        "init_module",
        "reboot",
        "swapon",
        "userfaultfd",
        "open_by_handle_at",
        "perf_event_open",
        "settimeofday",
        "chroot",
        "pivot_root",
        "acct",
        "fsopen",
    ] {
        assert_eq!(run(program, native(name, &[])), EPERM, "{name}");
    }
    assert_eq!(run(program, native("clone3", &[])), ENOSYS);
    // What no kernel has yet is absent, not forbidden.
    let mut new = native("openat", &[]);
    new.number = 1000;
    assert_eq!(run(program, new), ENOSYS);
    new.architecture = 0x1234;
    assert_eq!(run(program, new), KILL);
}

#[test]
fn namespaces_need_a_capability_whatever_else_clone_is_told() {
    let program = &default_for(&[]).program;
    let thread = 0x3d_0f00 | 17;
    assert_eq!(run(program, native("clone", &[thread])), ALLOW);
    for shift in [17, 25, 26, 27, 28, 29, 30] {
        let flag = 1_u64 << shift;
        assert_eq!(
            run(program, native("clone", &[thread | flag])),
            EPERM,
            "{flag:#x}"
        );
        // The kernel looks at the lower half only, and so must we.
        let hidden = 1 << 40 | flag;
        assert_eq!(run(program, native("clone", &[hidden])), EPERM, "{flag:#x}");
    }
    let program = &default_for(&["SYS_ADMIN"]).program;
    assert_eq!(run(program, native("clone", &[1 << 28])), ALLOW);
    assert_eq!(run(program, native("clone3", &[])), ALLOW);
}

#[test]
fn two_families_of_sockets_are_refused_whatever_the_upper_half_says() {
    let program = &default_for(&[]).program;
    for family in 0..128_u64 {
        let wanted = if family < 64 && ![38, 40].contains(&family) {
            ALLOW
        } else {
            EPERM
        };
        for upper in [0, 1 << 32, u64::MAX << 32] {
            let call = native("socket", &[upper | family]);
            assert_eq!(run(program, call), wanted, "{family}");
        }
    }
}

#[test]
fn each_capability_opens_its_own_calls() {
    for (capability, name) in [
        ("SYS_ADMIN", "mount"),
        ("BPF", "bpf"),
        ("PERFMON", "perf_event_open"),
        ("DAC_READ_SEARCH", "open_by_handle_at"),
        ("SYS_BOOT", "reboot"),
        ("SYS_CHROOT", "chroot"),
        ("SYS_MODULE", "finit_module"),
        ("SYS_NICE", "mbind"),
        ("SYS_PACCT", "acct"),
        ("SYS_PTRACE", "kcmp"),
        ("SYS_TIME", "clock_settime"),
        ("SYS_TTY_CONFIG", "vhangup"),
        ("SYSLOG", "syslog"),
    ] {
        let with = default_for(&[capability]);
        assert_eq!(run(&with.program, native(name, &[])), ALLOW, "{name}");
        let without = default_for(&["KILL"]);
        assert_eq!(run(&without.program, native(name, &[])), EPERM, "{name}");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_default_profile_holds_for_32_bit_programs_and_x32_does_not_exist() {
    let program = &default_for(&[]).program;
    let call = |name, args: &[u64]| run(program, on(Architecture::X86, name, args));
    assert_eq!(call("openat", &[]), ALLOW);
    assert_eq!(call("mount", &[]), EPERM);
    assert_eq!(call("socketcall", &[]), EPERM);
    assert_eq!(call("socket", &[40]), EPERM);
    assert_eq!(call("clone", &[1 << 28]), EPERM);
    assert_eq!(run(program, on(Architecture::X32, "openat", &[])), ENOSYS);
    // A list of what is forbidden says nothing of x32 either, and must not let it through.
    let deny = r#"{"defaultAction":"SCMP_ACT_ALLOW",
        "syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}"#;
    let program = compiled(deny).program;
    assert_eq!(run(&program, on(Architecture::X32, "chmod", &[])), ENOSYS);
    assert_eq!(run(&program, on(Architecture::X86, "chmod", &[])), KILL);
    assert_eq!(run(&program, native("chmod", &[])), EPERM);
    assert_eq!(run(&program, native("fchmod", &[])), ALLOW);
}

#[test]
fn errors_name_what_is_wrong() {
    let text = |profile: &str| {
        let error = try_compile(profile, &[]).expect_err(profile);
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error} {}", source.unwrap_or_default())
    };
    for (profile, word) in [
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","sysclals":[]}"#,
            "sysclals",
        ),
        (r#"{"defaultAction":"SCMP_ACT_MAYBE"}"#, "SCMP_ACT_MAYBE"),
        (r#"{}"#, "defaultAction"),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x"}"#,
            "listenerPath",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
                {"names":["chmodd"],"action":"SCMP_ACT_ERRNO"}]}"#,
            "\"chmodd\"",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
                {"names":["kill"],"action":"SCMP_ACT_NOTIFY"}]}"#,
            "SCMP_ACT_NOTIFY",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["kill"],
                "action":"SCMP_ACT_ERRNO","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
            "argument 6",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
                {"names":["kill"],"action":"SCMP_ACT_ERRNO","errnoRet":5000}]}"#,
            "5000",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],
                "archMap":[{"architecture":"SCMP_ARCH_X86_64"}]}"#,
            "archMap",
        ),
    ] {
        let said = text(profile);
        assert!(said.contains(word), "{said}");
    }
    // What is only allowed may be unknown: the call is refused all the same.
    let newer = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
        {"names":["read","call_of_next_year"],"action":"SCMP_ACT_ALLOW"}]}"#;
    assert_eq!(run(&compiled(newer).program, native("read", &[])), ALLOW);
}

#[test]
fn conditions_of_dockers_profiles_are_asked() {
    let profile = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
        {"name":"read","action":"SCMP_ACT_ALLOW","args":null},
        {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
        {"names":["chmod"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]}},
        {"names":["kill"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"6.1"}},
        {"names":["fork"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"6.2"}},
        {"names":["vfork"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["s390x"]}},
        {"names":["pause"],"action":"SCMP_ACT_ALLOW","excludes":{"arches":["s390x"]}}]}"#;
    let results = |capabilities: &[&str]| {
        let program = try_compile(profile, capabilities)
            .expect("a profile")
            .program;
        ["read", "mount", "chmod", "kill", "fork", "vfork", "pause"]
            .map(|name| run(&program, native(name, &[])) == ALLOW)
    };
    assert_eq!(results(&[]), [true, false, true, true, false, false, true]);
    assert_eq!(
        results(&["SYS_ADMIN"]),
        [true, true, false, true, false, false, true]
    );
}

#[test]
fn a_profile_is_a_bounded_regular_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = |path: &Path| {
        let error = compile(Source::Localhost(path), &[]).expect_err("refused");
        error.to_string()
    };
    assert!(text(dir.path()).contains("no regular file"));
    assert!(text(&dir.path().join("absent")).contains("absent"));
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    assert!(text(&fifo).contains("no regular file"));
    let large = dir.path().join("large");
    let file = File::create(&large).expect("a file");
    file.set_len(PROFILE_MAX_BYTES + 1).expect("longer");
    assert!(text(&large).contains("larger than"));
    std::fs::write(&large, [0xff]).expect("written");
    assert!(text(&large).contains("UTF-8"));
}

#[test]
fn a_program_that_the_kernel_would_not_take_is_refused_by_its_length() {
    let args = |value| {
        format!(
            r#"{{"names":["kill"],"action":"SCMP_ACT_ERRNO","args":[
            {{"index":0,"value":{value},"op":"SCMP_CMP_EQ"}}]}}"#
        )
    };
    let profile = |count: u64| {
        let rules: Vec<_> = (0..count).map(args).collect();
        format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{}]}}"#,
            rules.join(",")
        )
    };
    // Its rules alone are longer than any jump of one byte.
    let long = compiled(&profile(700));
    assert_eq!(run(&long.program, native("kill", &[699])), EPERM);
    assert_eq!(run(&long.program, native("kill", &[700])), ALLOW);
    assert_eq!(run(&long.program, native("read", &[])), ALLOW);
    let error = try_compile(&profile(2000), &[]).expect_err("too long");
    assert!(matches!(error, SeccompError::TooLong { .. }), "{error}");
}

fn values() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..4_u64,
        any::<u64>(),
        (0..4_u64).prop_map(|low| low | 1 << 32),
        (0..4_u64).prop_map(|low| u64::MAX << 32 | low),
        Just(u64::MAX),
        Just(0xffff_ffff),
    ]
}

fn rule() -> impl Strategy<Value = String> {
    let names = proptest::sample::subsequence(
        vec![
            "read",
            "write",
            "open",
            "chmod",
            "kill",
            "clone",
            "newfstatat",
            "mseal",
            "socket",
        ],
        1..4,
    );
    let action = proptest::sample::select(vec![
        r#""SCMP_ACT_ALLOW""#,
        r#""SCMP_ACT_ERRNO""#,
        r#""SCMP_ACT_ERRNO","errnoRet":13"#,
        r#""SCMP_ACT_LOG""#,
        r#""SCMP_ACT_KILL_PROCESS""#,
    ]);
    let operator = proptest::sample::select(vec!["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"]);
    let arg = (0..6_usize, values(), values(), operator).prop_map(|(index, value, two, op)| {
        format!(r#"{{"index":{index},"value":{value},"valueTwo":{two},"op":"SCMP_CMP_{op}"}}"#)
    });
    (names, action, prop::collection::vec(arg, 0..4)).prop_map(|(names, action, args)| {
        format!(
            r#"{{"names":{names:?},"action":{action},"args":[{}]}}"#,
            args.join(",")
        )
    })
}

proptest! {
    /// Whatever is in the file: a program that the kernel would take, or an error.
    #[test]
    fn a_spoilt_profile_is_a_program_or_an_error(
        at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let mut text = DEFAULT.as_bytes().to_vec();
        for (index, byte) in at {
            let index = index.index(text.len());
            text[index] = byte;
        }
        if !whole {
            text.truncate(cut.index(text.len()));
        }
        if let Ok(text) = String::from_utf8(text)
            && let Ok(compiled) = try_compile(&text, &["SYS_ADMIN"])
        {
            run(&compiled.program, native("read", &[]));
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn programs_say_what_the_rules_say(
        default in proptest::sample::select(vec!["ALLOW", "ERRNO", "KILL_PROCESS"]),
        rules in prop::collection::vec(rule(), 0..8),
        calls in prop::collection::vec((0..12_usize, prop::array::uniform6(values())), 40),
    ) {
        let text = format!(
            r#"{{"defaultAction":"SCMP_ACT_{default}","syscalls":[{}],"architectures":
                ["SCMP_ARCH_X86","SCMP_ARCH_X32"]}}"#,
            rules.join(",")
        );
        let compiled = compiled(&text);
        use Architecture::{X32, X86, X86_64};
        for architecture in [X86_64, X86, X32] {
            let base = if architecture == X32 { X32_BIT } else { 0 };
            let name = |name| architecture.number(name).unwrap_or(base);
            let numbers = [
                name("read"), name("write"), name("open"), name("chmod"), name("kill"),
                name("clone"), name("newfstatat"), name("mseal"), name("socket"),
                base | 463, base | 0x3fff_ffff, base,
            ];
            for (number, args) in &calls {
                let narrow = |value: u64| value & 0xffff_ffff;
                let args = if architecture == X86 { args.map(narrow) } else { *args };
                let architecture_number = architecture.audit();
                let call = Call {
                    architecture: architecture_number,
                    number: numbers[*number],
                    args,
                };
                prop_assert_eq!(
                    run(&compiled.program, call),
                    model(&compiled.rules, architecture, call),
                    "{:?} {:x?}", architecture, call
                );
            }
        }
    }
}
