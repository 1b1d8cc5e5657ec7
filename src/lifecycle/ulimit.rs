//! Resource limits that every container gets (setrlimit(2)), as operators write them:
//! `NAME=SOFT:HARD`, in the form of Docker's `--ulimit`. The CRI has no field for them.

use serde::Deserialize;

/// What an operator can limit, and the name that the OCI runtime specification has for it.
const KINDS: [(&str, &str); 16] = [
    ("as", "RLIMIT_AS"),
    ("core", "RLIMIT_CORE"),
    ("cpu", "RLIMIT_CPU"),
    ("data", "RLIMIT_DATA"),
    ("fsize", "RLIMIT_FSIZE"),
    ("locks", "RLIMIT_LOCKS"),
    ("memlock", "RLIMIT_MEMLOCK"),
    ("msgqueue", "RLIMIT_MSGQUEUE"),
    ("nice", "RLIMIT_NICE"),
    ("nofile", "RLIMIT_NOFILE"),
    ("nproc", "RLIMIT_NPROC"),
    ("rss", "RLIMIT_RSS"),
    ("rtprio", "RLIMIT_RTPRIO"),
    ("rttime", "RLIMIT_RTTIME"),
    ("sigpending", "RLIMIT_SIGPENDING"),
    ("stack", "RLIMIT_STACK"),
];

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ulimit {
    /// As the OCI runtime specification names it: `RLIMIT_NOFILE`.
    pub kind: &'static str,
    /// What holds, in the unit of its kind; `u64::MAX` is none.
    pub soft: u64,
    /// Up to where a process may raise it.
    pub hard: u64,
}

/// `[container]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerConfig {
    /// Limits of every container, each as `NAME=SOFT` or `NAME=SOFT:HARD`; `unlimited` is none.
    pub ulimits: Vec<String>,
}

impl ContainerConfig {
    /// The limits.
    ///
    /// # Errors
    /// Which entry is none, and why.
    pub fn limits(&self) -> Result<Vec<Ulimit>, String> {
        let mut limits: Vec<Ulimit> = Vec::new();
        for text in &self.ulimits {
            let limit = parse(text)?;
            if limits.iter().any(|other| other.kind == limit.kind) {
                return Err(format!("{text:?}: it is there twice"));
            }
            limits.push(limit);
        }
        Ok(limits)
    }
}

fn parse(text: &str) -> Result<Ulimit, String> {
    let wrong = |why: String| format!("{text:?}: {why}");
    let (name, bounds) = text
        .split_once('=')
        .ok_or_else(|| wrong("it is not NAME=SOFT:HARD".into()))?;
    let Some((_, kind)) = KINDS.iter().find(|(known, _)| *known == name) else {
        let known: Vec<_> = KINDS.iter().map(|(known, _)| *known).collect();
        return Err(wrong(format!("{name:?} is none of {}", known.join(", "))));
    };
    let bound = |text: &str| match text {
        "unlimited" | "-1" => Ok(u64::MAX),
        number => number
            .parse()
            .map_err(|_| wrong(format!("{number:?} is neither a number nor \"unlimited\""))),
    };
    let (soft, hard) = bounds.split_once(':').unwrap_or((bounds, bounds));
    let (soft, hard) = (bound(soft)?, bound(hard)?);
    if soft > hard {
        return Err(wrong("the soft limit is above the hard one".into()));
    }
    Ok(Ulimit { kind, soft, hard })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(texts: &[&str]) -> Result<Vec<Ulimit>, String> {
        let ulimits = texts.iter().map(ToString::to_string).collect();
        ContainerConfig { ulimits }.limits()
    }

    #[test]
    fn a_limit_is_a_name_and_one_or_two_bounds() {
        let found = limits(&[
            "nofile=1024:4096",
            "core=0",
            "memlock=unlimited",
            "cpu=1:-1",
        ]);
        let of = |kind, soft, hard| Ulimit { kind, soft, hard };
        assert_eq!(
            found,
            Ok(vec![
                of("RLIMIT_NOFILE", 1024, 4096),
                of("RLIMIT_CORE", 0, 0),
                of("RLIMIT_MEMLOCK", u64::MAX, u64::MAX),
                of("RLIMIT_CPU", 1, u64::MAX),
            ])
        );
    }

    #[test]
    fn what_is_no_limit_is_named() {
        for (texts, told) in [
            (&["nofile"][..], "NAME=SOFT:HARD"),
            (&["files=1"], "none of as, core"),
            (&["nofile=many"], "\"many\" is neither"),
            (&["nofile=2:1"], "above the hard one"),
            (&["core=0", "core=1"], "twice"),
        ] {
            let error = limits(texts).expect_err(told);
            assert!(error.contains(told), "{error}");
        }
    }
}
