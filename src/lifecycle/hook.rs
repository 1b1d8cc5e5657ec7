//! OCI hooks as operators drop them into directories: one JSON file each, in the form of
//! oci-hooks(5), version 1.0.0. Which container a hook is for, and at which stages.

use std::path::PathBuf;

use regex::{Regex, RegexBuilder};
use serde::Deserialize;

use super::spec::Map;

/// The version of the form.
const VERSION: &str = "1.0.0";
/// Bytes that a compiled pattern may take.
const PATTERN_BYTES: usize = 1024 * 1024;

/// `[hooks]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HooksConfig {
    /// Where hooks are. Of files with the same name the one in the last directory counts.
    pub directories: Vec<PathBuf>,
    /// Annotations of pods and containers that hooks get to see: names, or beginnings with a `*`.
    pub annotations: Vec<String>,
    /// Longest time of a hook that names none, in seconds.
    pub timeout_s: u64,
}

/// Longest time that a hook may ask for: the launch it is part of has no more.
const TIMEOUT_MAX_S: u64 = 20;

impl Default for HooksConfig {
    fn default() -> Self {
        Self {
            directories: Vec::new(),
            annotations: Vec::new(),
            timeout_s: 10,
        }
    }
}

impl HooksConfig {
    /// Whether it can be as it is written.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), String> {
        if let Some(path) = self.directories.iter().find(|path| !path.is_absolute()) {
            return Err(format!("directory {path:?} must be an absolute path"));
        }
        if !(1..=TIMEOUT_MAX_S).contains(&self.timeout_s) {
            return Err(format!("timeout_s must be 1 to {TIMEOUT_MAX_S}"));
        }
        Ok(())
    }
}

/// When a hook runs (OCI runtime specification, "Lifecycle").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// As `CreateRuntime`; its name before.
    Prestart,
    /// On the node, when the container's namespaces are there.
    CreateRuntime,
    /// In the container's namespaces, with the node's files.
    CreateContainer,
    /// In the container, before its command.
    StartContainer,
    /// On the node, when its command runs.
    Poststart,
    /// On the node, when nothing is left of it.
    Poststop,
}

/// A hook that is there.
#[derive(Debug, Clone)]
pub struct Hook {
    /// What is run.
    pub command: HookCommand,
    /// When.
    pub stages: Vec<Stage>,
    when: When,
}

/// A program and what it gets.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookCommand {
    /// An absolute path.
    pub path: PathBuf,
    /// Arguments, with the program's own name.
    #[serde(default)]
    pub args: Vec<String>,
    /// The whole environment.
    #[serde(default)]
    pub env: Vec<String>,
    /// Longest time, in seconds.
    #[serde(default)]
    pub timeout: Option<u64>,
}

impl HookCommand {
    /// Whether it can be run as it is written.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), String> {
        if !self.path.is_absolute() {
            return Err("path must be an absolute path".into());
        }
        let timeout = self.timeout;
        if timeout.is_some_and(|it| !(1..=TIMEOUT_MAX_S).contains(&it)) {
            return Err(format!("timeout must be 1 to {TIMEOUT_MAX_S}"));
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
struct When {
    always: Option<bool>,
    has_bind_mounts: Option<bool>,
    annotations: Vec<(Regex, Regex)>,
    commands: Vec<Regex>,
}

/// What a container is asked about.
#[derive(Debug)]
pub struct Subject<'a> {
    /// Its annotations, and its pod's.
    pub annotations: &'a Map,
    /// Its command.
    pub command: &'a str,
    /// Whether the client has asked for paths of the node.
    pub has_bind_mounts: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: String,
    hook: HookCommand,
    when: Conditions,
    stages: Vec<Stage>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct Conditions {
    always: Option<bool>,
    has_bind_mounts: Option<bool>,
    annotations: Map,
    commands: Vec<String>,
}

impl Hook {
    /// From the text of a file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let file: File = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if file.version != VERSION {
            return Err(format!("version {:?} is not {VERSION:?}", file.version));
        }
        file.hook.check().map_err(|why| format!("hook.{why}"))?;
        if file.stages.is_empty() {
            return Err("stages must not be empty".into());
        }
        let mut stages = file.stages;
        stages.sort_unstable();
        stages.dedup();
        let annotations = file.when.annotations.iter();
        let annotations = annotations.map(|(key, value)| Ok((pattern(key)?, pattern(value)?)));
        let commands = file.when.commands.iter().map(|text| pattern(text));
        Ok(Self {
            command: file.hook,
            stages,
            when: When {
                always: file.when.always,
                has_bind_mounts: file.when.has_bind_mounts,
                annotations: annotations.collect::<Result<_, String>>()?,
                commands: commands.collect::<Result<_, String>>()?,
            },
        })
    }

    /// Whether it is for this container: all that it names has to be so, and it has to name
    /// something.
    #[must_use]
    pub fn is_for(&self, subject: &Subject<'_>) -> bool {
        let when = &self.when;
        let annotated = |(key, value): &(Regex, Regex)| {
            let mut annotations = subject.annotations.iter();
            annotations.any(|(name, text)| key.is_match(name) && value.is_match(text))
        };
        let commands = when.commands.iter();
        let commanded = (!when.commands.is_empty()).then(|| {
            commands
                .clone()
                .any(|command| command.is_match(subject.command))
        });
        let bound = when
            .has_bind_mounts
            .map(|wanted| wanted && subject.has_bind_mounts);
        let mut all = when
            .annotations
            .iter()
            .map(annotated)
            .chain(when.always)
            .chain(bound)
            .chain(commanded)
            .peekable();
        all.peek().is_some() && all.all(|holds| holds)
    }
}

fn pattern(text: &str) -> Result<Regex, String> {
    let compiled = RegexBuilder::new(text).size_limit(PATTERN_BYTES).build();
    compiled.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(when: &str) -> Hook {
        let text = format!(
            r#"{{"version": "1.0.0", "hook": {{"path": "/bin/true"}}, "when": {when},
                "stages": ["poststop", "prestart", "poststop"]}}"#
        );
        Hook::parse(text.as_bytes()).expect("a hook")
    }

    #[test]
    fn a_hook_is_for_whom_all_its_conditions_hold() {
        let annotations = Map::from([("com.example/gpu".into(), "yes".into())]);
        let subject = Subject {
            annotations: &annotations,
            command: "/usr/bin/python3",
            has_bind_mounts: true,
        };
        for (when, is_for) in [
            ("{}", false),
            (r#"{"always": true}"#, true),
            (r#"{"always": false}"#, false),
            (r#"{"always": true, "hasBindMounts": true}"#, true),
            (r#"{"hasBindMounts": false}"#, false),
            (r#"{"commands": ["^/bin/", "python"]}"#, true),
            (r#"{"commands": ["^/bin/"]}"#, false),
            (r#"{"annotations": {"^com\\.example/": "^yes$"}}"#, true),
            (r#"{"annotations": {"^com\\.example/": "^no$"}}"#, false),
            (
                r#"{"annotations": {"gpu$": "y"}, "commands": ["ruby"]}"#,
                false,
            ),
        ] {
            assert_eq!(hook(when).is_for(&subject), is_for, "{when}");
        }
        assert_eq!(hook("{}").stages, [Stage::Prestart, Stage::Poststop]);
    }

    #[test]
    fn what_is_no_hook_is_refused() {
        let good = r#"{"version": "1.0.0", "hook": {"path": "/bin/true"},
            "when": {"always": true}, "stages": ["prestart"]}"#;
        assert!(Hook::parse(good.as_bytes()).is_ok());
        for (from, to) in [
            ("1.0.0", "0.1.0"),
            ("/bin/true", "true"),
            ("\"prestart\"", "\"later\""),
            ("\"prestart\"", ""),
            ("\"always\": true", "\"commands\": [\"(\"]"),
            ("\"always\": true", "\"sometimes\": true"),
            ("\"path\"", "\"timeout\": 0, \"path\""),
        ] {
            let bad = good.replace(from, to);
            assert!(Hook::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
