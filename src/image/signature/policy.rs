//! Which images may be pulled, by the beginning of their name (`[[image.policy]]`).

use std::path::PathBuf;

use serde::Deserialize;

use super::key::PublicKey;
use crate::image::reference::Reference;

/// One element of `[[image.policy]]`, as an operator writes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRule {
    /// Host and beginning of the repository, in whole components; empty is every image.
    pub prefix: String,
    /// `accept`, `reject` or `signed`.
    pub action: String,
    /// Files with public keys (PEM), any of which may have signed.
    #[serde(default)]
    pub keys: Vec<PathBuf>,
    /// Repositories, or beginnings of such, that a signature may name besides the image's own; `*`
    /// is any.
    #[serde(default)]
    pub signed_as: Vec<String>,
}

/// What is done with an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Accept,
    Reject,
    Signed(Signed),
}

/// Whose signature is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signed {
    pub(super) keys: Vec<PathBuf>,
    pub(super) signed_as: Vec<String>,
}

/// The whole policy; the default accepts every image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<PolicyRule>")]
pub struct Policy(Vec<(String, Action)>);

/// Whether `prefix` is the beginning of `repository` in whole components.
pub(super) fn covers(prefix: &str, repository: &str) -> bool {
    match repository.strip_prefix(prefix) {
        Some(rest) => prefix.is_empty() || rest.is_empty() || rest.starts_with('/'),
        None => false,
    }
}

impl Policy {
    /// What the longest prefix that fits says.
    pub(super) fn action(&self, reference: &Reference) -> &Action {
        let repository = reference.repository();
        let fitting = self
            .0
            .iter()
            .filter(|(prefix, _)| covers(prefix, &repository));
        let longest = fitting.max_by_key(|(prefix, _)| prefix.len());
        longest.map_or(&Action::Accept, |(_, action)| action)
    }

    /// Reads all keys: one that cannot be used is better met now than at a pull.
    ///
    /// # Errors
    /// The first bad file, and why it is.
    pub fn check_keys(&self) -> Result<(), String> {
        for (_, action) in &self.0 {
            if let Action::Signed(signed) = action {
                for path in &signed.keys {
                    PublicKey::read(path)?;
                }
            }
        }
        Ok(())
    }
}

impl TryFrom<Vec<PolicyRule>> for Policy {
    type Error = String;

    fn try_from(rules: Vec<PolicyRule>) -> Result<Self, String> {
        let mut policy: Vec<(String, Action)> = Vec::new();
        for rule in rules {
            let prefix = rule.prefix.clone();
            let at = |why: &str| format!("image.policy for {prefix:?}: {why}");
            check_prefix(&prefix).map_err(|why| at(&why))?;
            for name in rule.signed_as.iter().filter(|name| *name != "*") {
                check_prefix(name).map_err(|why| at(&format!("signed_as: {why}")))?;
            }
            let bare = rule.keys.is_empty() && rule.signed_as.is_empty();
            let action = match rule.action.as_str() {
                "accept" if bare => Action::Accept,
                "reject" if bare => Action::Reject,
                "accept" | "reject" => return Err(at("only \"signed\" has keys and signed_as")),
                "signed" if rule.keys.is_empty() => return Err(at("\"signed\" needs keys")),
                "signed" if rule.keys.iter().any(|key| !key.is_absolute()) => {
                    return Err(at("the path of a key is not absolute"));
                }
                "signed" => Action::Signed(Signed {
                    keys: rule.keys,
                    signed_as: rule.signed_as,
                }),
                other => {
                    let why = format!("action {other:?} is not accept, reject or signed");
                    return Err(at(&why));
                }
            };
            if policy.iter().any(|(known, _)| *known == rule.prefix) {
                return Err(at("it is there twice"));
            }
            policy.push((rule.prefix, action));
        }
        Ok(Self(policy))
    }
}

/// A beginning that no canonical name has would never be applied, and nobody would notice.
fn check_prefix(prefix: &str) -> Result<(), String> {
    if prefix.is_empty() {
        return Ok(());
    }
    let last = prefix.rsplit('/').next().unwrap_or_default();
    if prefix.contains('@') || (prefix.contains('/') && last.contains(':')) {
        return Err(format!(
            "{prefix:?} has a tag or a digest; give host and repository"
        ));
    }
    // A host alone is none of a reference's forms: with a repository behind it, it is one.
    let probe: Result<Reference, _> = format!("{prefix}/probe").parse();
    match probe {
        Ok(reference) if covers(prefix, &reference.repository()) => Ok(()),
        _ => Err(format!(
            "{prefix:?} is not a host (docker.io, registry.example:5000), perhaps with the \
             beginning of a repository"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(prefix: &str, action: &str, keys: &[&str]) -> PolicyRule {
        PolicyRule {
            prefix: prefix.into(),
            action: action.into(),
            keys: keys.iter().map(PathBuf::from).collect(),
            signed_as: Vec::new(),
        }
    }

    #[test]
    fn the_longest_prefix_of_whole_components_decides() {
        let policy = Policy::try_from(vec![
            rule("", "reject", &[]),
            rule("registry.example:5000", "accept", &[]),
            rule("registry.example:5000/team", "signed", &["/k"]),
            rule("docker.io/library", "accept", &[]),
        ])
        .expect("a policy");
        let action = |name: &str| policy.action(&name.parse().expect("a name")).clone();
        let signed = Action::Signed(Signed {
            keys: vec!["/k".into()],
            signed_as: Vec::new(),
        });
        assert_eq!(action("registry.example:5000/team/app:1"), signed);
        assert_eq!(action("registry.example:5000/team"), signed);
        assert_eq!(action("registry.example:5000/teams/app"), Action::Accept);
        assert_eq!(action("registry.example/team/app"), Action::Reject);
        assert_eq!(action("busybox"), Action::Accept);
        assert_eq!(action("someone/busybox"), Action::Reject);
        assert_eq!(
            Policy::default().action(&"a/b".parse().expect("a name")),
            &Action::Accept
        );
    }

    #[test]
    fn rules_that_would_never_apply_or_mean_nothing_are_refused() {
        for (bad, named) in [
            (rule("registry.example/", "accept", &[]), "not a host"),
            (rule("busybox", "reject", &[]), "not a host"),
            (rule("Registry.example/UPPER", "reject", &[]), "not a host"),
            (rule("registry.example/a:1", "reject", &[]), "has a tag"),
            (rule("registry.example", "maybe", &[]), "\"maybe\""),
            (rule("registry.example", "signed", &[]), "needs keys"),
            (rule("registry.example", "signed", &["k"]), "not absolute"),
            (
                rule("registry.example", "accept", &["/k"]),
                "only \"signed\"",
            ),
        ] {
            let error = Policy::try_from(vec![bad]).expect_err(named);
            assert!(error.contains(named), "{named}: {error}");
        }
        let twice = vec![rule("a.b", "accept", &[]), rule("a.b", "reject", &[])];
        assert!(Policy::try_from(twice).is_err());
    }
}
