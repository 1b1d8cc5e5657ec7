//! A profile as it is written: the JSON of Docker, of which that of the OCI runtime spec is a part.
//!
//! Docker's adds conditions on capabilities, architecture and kernel, and families of
//! architectures; resolving removes both. A key that no profile has is an error: a misspelt
//! `syscalls` must not pass for a profile without rules.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompBuilder,
    LinuxSeccompFilterFlag, LinuxSyscall, LinuxSyscallBuilder,
};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::error::SeccompError;
use super::syscalls::{Architecture, exists};

/// The largest error number that the kernel returns (linux/err.h, `MAX_ERRNO`).
const ERRNO_MAX: u32 = 4095;
/// A system call has at most six arguments.
const ARGUMENTS: usize = 6;

/// A profile.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Profile {
    #[serde(rename = "comment")]
    _comment: Option<IgnoredAny>,
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<Arch>>,
    arch_map: Option<Vec<Family>>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
    syscalls: Option<Vec<Rule>>,
}

/// An architecture, and those whose programs run on it too.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Family {
    architecture: Arch,
    sub_architectures: Option<Vec<Arch>>,
}

/// What to do with some calls.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    #[serde(rename = "comment")]
    _comment: Option<IgnoredAny>,
    names: Option<Vec<String>>,
    /// A single one, as in old profiles.
    name: Option<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
    includes: Option<Condition>,
    excludes: Option<Condition>,
}

/// When a rule counts.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// What conditions ask about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Container<'a> {
    /// Without `CAP_`.
    pub(super) capabilities: &'a [&'a str],
    /// Major and minor version.
    pub(super) kernel: (u32, u32),
}

impl Profile {
    pub(super) fn parse(text: &str) -> Result<Self, SeccompError> {
        serde_json::from_str(text).map_err(SeccompError::Parse)
    }

    /// The rules that are left for `container`, checked, without conditions.
    pub(super) fn resolve(self, container: &Container<'_>) -> Result<LinuxSeccomp, SeccompError> {
        let key = |key, why: &str| SeccompError::Key {
            key,
            why: why.to_owned(),
        };
        if self.listener_path.is_some() || self.listener_metadata.is_some() {
            let why = "asks for an agent, and there is none: no call is handed to another program";
            return Err(key("listenerPath", why));
        }
        check_action("defaultAction", self.default_action, self.default_errno_ret)
            .map_err(|why| key("defaultAction", &why))?;
        let architectures = match (self.architectures, self.arch_map) {
            (Some(list), Some(map)) if !list.is_empty() && !map.is_empty() => {
                return Err(key("archMap", "excludes architectures"));
            }
            (_, Some(map)) if !map.is_empty() => family(map),
            (list, _) => list.unwrap_or_default(),
        };
        let mut rules = Vec::new();
        let default = (self.default_action, self.default_errno_ret);
        for (number, rule) in self.syscalls.unwrap_or_default().into_iter().enumerate() {
            rules.extend(rule.resolve(number, container, default)?);
        }
        let mut whole = LinuxSeccompBuilder::default()
            .default_action(self.default_action)
            .architectures(architectures)
            .syscalls(rules);
        if let Some(errno) = self.default_errno_ret {
            whole = whole.default_errno_ret(errno);
        }
        if let Some(flags) = self.flags {
            whole = whole.flags(flags);
        }
        whole
            .build()
            .map_err(|error| key("syscalls", &error.to_string()))
    }
}

/// Those of the machine's own family.
fn family(map: Vec<Family>) -> Vec<Arch> {
    let own = |family: &Family| Architecture::named(family.architecture);
    let found = map
        .into_iter()
        .find(|family| own(family) == Some(Architecture::NATIVE));
    let Some(family) = found else {
        return Vec::new();
    };
    let mut all = vec![family.architecture];
    all.extend(family.sub_architectures.unwrap_or_default());
    all
}

impl Rule {
    fn resolve(
        self,
        number: usize,
        container: &Container<'_>,
        default: (LinuxSeccompAction, Option<u32>),
    ) -> Result<Option<LinuxSyscall>, SeccompError> {
        let mut names = self.names.unwrap_or_default();
        names.extend(self.name);
        let first = names.first().cloned().unwrap_or_default();
        let error = |syscall: &str, why: String| SeccompError::Rule {
            number,
            syscall: format!("{syscall:?}"),
            why,
        };
        if names.is_empty() {
            return Err(error("", "names no system call".into()));
        }
        check_action("action", self.action, self.errno_ret).map_err(|why| error(&first, why))?;
        let args = self.args.unwrap_or_default();
        if let Some(arg) = args.iter().find(|arg| arg.index() >= ARGUMENTS) {
            let why = format!("looks at argument {}, and the last is 5", arg.index());
            return Err(error(&first, why));
        }
        // A rule that allows what does not exist allows nothing. One that forbids it is a mistake
        // that would leave something open.
        let looser = permissiveness(self.action) > permissiveness(default.0);
        if let Some(unknown) = names.iter().find(|name| !looser && !exists(name)) {
            let why = "names a system call that does not exist".to_owned();
            return Err(error(unknown, why));
        }
        let includes = self.includes.unwrap_or_default();
        let excludes = self.excludes.unwrap_or_default();
        let counts = includes
            .all_hold(container)
            .and_then(|all| Ok(all && !excludes.any_holds(container)?));
        if !counts.map_err(|why| error(&first, why))? {
            return Ok(None);
        }
        let mut rule = LinuxSyscallBuilder::default()
            .names(names)
            .action(self.action);
        if let Some(errno) = self.errno_ret {
            rule = rule.errno_ret(errno);
        }
        if !args.is_empty() {
            rule = rule.args(args);
        }
        let rule = rule.build();
        rule.map(Some).map_err(|why| error(&first, why.to_string()))
    }
}

impl Condition {
    fn all_hold(&self, container: &Container<'_>) -> Result<bool, String> {
        let has = |name: &String| container.has(name);
        let caps = self.caps.iter().flatten().all(has);
        let arches = self.arches.as_deref().unwrap_or_default();
        let arch = arches.is_empty() || on_this_machine(arches);
        Ok(caps && arch && self.kernel_is_new_enough(container)?.unwrap_or(true))
    }

    fn any_holds(&self, container: &Container<'_>) -> Result<bool, String> {
        let has = |name: &String| container.has(name);
        let caps = self.caps.iter().flatten().any(has);
        let arch = on_this_machine(self.arches.as_deref().unwrap_or_default());
        Ok(caps || arch || self.kernel_is_new_enough(container)?.unwrap_or(false))
    }

    fn kernel_is_new_enough(&self, container: &Container<'_>) -> Result<Option<bool>, String> {
        let Some(text) = &self.min_kernel else {
            return Ok(None);
        };
        let least =
            version(text).ok_or_else(|| format!("has minKernel {text:?}: not a version"))?;
        Ok(Some(container.kernel >= least))
    }
}

impl Container<'_> {
    fn has(&self, name: &str) -> bool {
        let name = name.strip_prefix("CAP_").unwrap_or(name);
        self.capabilities.contains(&name)
    }
}

fn on_this_machine(arches: &[String]) -> bool {
    let own = Architecture::NATIVE.go_name();
    arches.iter().any(|arch| arch == own)
}

/// Major and minor number at the beginning of a kernel's version.
pub(super) fn version(text: &str) -> Option<(u32, u32)> {
    let (major, rest) = text.split_once('.')?;
    let end = rest.find(|c: char| !c.is_ascii_digit());
    let minor = &rest[..end.unwrap_or(rest.len())];
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn check_action(key: &str, action: LinuxSeccompAction, errno: Option<u32>) -> Result<(), String> {
    if action == LinuxSeccompAction::ScmpActNotify {
        return Err(format!(
            "has {key} SCMP_ACT_NOTIFY, and there is no agent that would be asked"
        ));
    }
    match errno {
        Some(errno) if errno > ERRNO_MAX => Err(format!(
            "has error number {errno}, and the largest is {ERRNO_MAX}"
        )),
        _ => Ok(()),
    }
}

/// How much an action lets through, in the kernel's own order (seccomp(2)).
fn permissiveness(action: LinuxSeccompAction) -> u8 {
    match action {
        LinuxSeccompAction::ScmpActKillProcess => 0,
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => 1,
        LinuxSeccompAction::ScmpActTrap => 2,
        LinuxSeccompAction::ScmpActErrno => 3,
        LinuxSeccompAction::ScmpActNotify => 4,
        LinuxSeccompAction::ScmpActTrace => 5,
        LinuxSeccompAction::ScmpActLog => 6,
        LinuxSeccompAction::ScmpActAllow => 7,
    }
}
