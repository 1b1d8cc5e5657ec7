//! RuntimeClass handlers: OCI runtimes that are programs of their own, by the name under which a
//! RuntimeClass asks for them (`[runtimes.NAME]`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// All handlers but our own, which has no name.
pub type Handlers = BTreeMap<String, Handler>;

/// Longest name of a handler: a DNS label (RFC 1123), as Kubernetes wants it.
const NAME_MAX: usize = 63;
/// Longest time one call may be given. All calls of a launch fit in the launch's own bound.
const TIMEOUT_MAX_S: u64 = 20;

/// An OCI runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handler {
    /// Its program.
    pub path: PathBuf,
    /// Where it keeps what it knows of its containers (`--root`); by default a directory of ours.
    #[serde(default)]
    pub root: Option<PathBuf>,
    /// Options before its command.
    #[serde(default)]
    pub options: Vec<String>,
    /// Annotations of pods and containers that it gets to see: names, or beginnings with a `*`.
    #[serde(default)]
    pub annotations: Vec<String>,
    /// Longest time of one call, in seconds.
    #[serde(default = "default_timeout")]
    pub timeout_s: u64,
    /// Whether its containers can have a user namespace; absent is what `features` says.
    #[serde(default)]
    pub user_namespaces: Option<bool>,
}

fn default_timeout() -> u64 {
    10
}

/// What a handler can do, for Status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Features {
    /// Mounts that are read-only with everything below them.
    pub recursive_read_only_mounts: bool,
    /// Containers in a user namespace that is there already. Owners of their files are mapped by
    /// us.
    pub user_namespaces: bool,
    /// What it calls itself; empty when it says nothing.
    pub version: String,
}

impl Features {
    /// From what `RUNTIME features` prints (OCI runtime specification, "Features Structure").
    ///
    /// # Errors
    /// When that is no JSON of this form.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Document {
            #[serde(default)]
            mount_options: Vec<String>,
            #[serde(default)]
            linux: Linux,
        }
        #[derive(Default, Deserialize)]
        struct Linux {
            #[serde(default)]
            namespaces: Vec<String>,
        }
        let document: Document = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let has = |option: &str| document.mount_options.iter().any(|one| one == option);
        let mut namespaces = document.linux.namespaces.iter();
        Ok(Self {
            recursive_read_only_mounts: has("rro"),
            user_namespaces: namespaces.any(|one| one == "user"),
            version: String::new(),
        })
    }
}

impl Handler {
    /// Whether a handler of this name can be as it is written.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, name: &str) -> Result<(), String> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let is_label = (1..=NAME_MAX).contains(&name.len())
            && name.bytes().all(allowed)
            && !name.starts_with('-')
            && !name.ends_with('-');
        if !is_label {
            let why = "is no name of a handler: lower case letters, digits and dashes, 63 at most";
            return Err(format!("{name:?} {why}"));
        }
        let paths = [("path", Some(&self.path)), ("root", self.root.as_ref())];
        for (key, path) in paths {
            if path.is_some_and(|path| !path.is_absolute()) {
                return Err(format!("{name}.{key}: must be an absolute path"));
            }
        }
        if !(1..=TIMEOUT_MAX_S).contains(&self.timeout_s) {
            return Err(format!("{name}.timeout_s: must be 1 to {TIMEOUT_MAX_S}"));
        }
        Ok(())
    }

    /// Whether the runtime gets to see an annotation of this name.
    #[must_use]
    pub fn passes(&self, annotation: &str) -> bool {
        passes(&self.annotations, annotation)
    }
}

/// Whether one of `patterns`, names or beginnings with a `*`, has this annotation.
#[must_use]
pub fn passes(patterns: &[String], annotation: &str) -> bool {
    let mut patterns = patterns.iter();
    patterns.any(|pattern| match pattern.strip_suffix('*') {
        Some(beginning) => annotation.starts_with(beginning),
        None => annotation == pattern,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handler(annotations: &[&str]) -> Handler {
        Handler {
            path: "/usr/sbin/runc".into(),
            root: None,
            options: Vec::new(),
            annotations: annotations.iter().map(ToString::to_string).collect(),
            timeout_s: default_timeout(),
            user_namespaces: None,
        }
    }

    #[test]
    fn annotations_pass_by_name_or_beginning() {
        let handler = handler(&["exact", "io.example/*"]);
        for (name, passes) in [
            ("exact", true),
            ("exactly", false),
            ("io.example/a", true),
            ("io.example", false),
        ] {
            assert_eq!(handler.passes(name), passes, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_a_handler_is_refused() {
        let good = handler(&[]);
        assert_eq!(good.check("runc-2"), Ok(()));
        for name in ["", "-a", "a-", "Runc", "a_b", "a/b", &"a".repeat(64)] {
            assert!(good.check(name).is_err(), "{name}");
        }
        let relative = Handler {
            path: "runc".into(),
            ..handler(&[])
        };
        assert!(relative.check("runc").is_err());
        let hasty = Handler {
            timeout_s: 0,
            ..handler(&[])
        };
        assert!(hasty.check("runc").is_err());
    }

    #[test]
    fn features_are_read_from_what_the_runtime_says() {
        let text = br#"{"ociVersionMin": "1.0.0", "mountOptions": ["ro", "rro"], "hooks": []}"#;
        let all = Features::parse(text).expect("features");
        assert!(all.recursive_read_only_mounts && !all.user_namespaces);
        let text = br#"{"linux": {"namespaces": ["cgroup", "user"], "capabilities": []}}"#;
        let users = Features::parse(text).expect("features");
        assert!(users.user_namespaces && !users.recursive_read_only_mounts);
        assert_eq!(Features::parse(b"{}"), Ok(Features::default()));
        assert!(Features::parse(b"unknown command features").is_err());
    }
}
