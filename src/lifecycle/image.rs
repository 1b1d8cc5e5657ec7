//! The rules of an image.
//!
//! ```text
//!                 all layers on disk            removal asked for
//!  (no row) ───────────────────────► present ─────────────────────► removed ───► (row deleted)
//!     ▲                                                                │
//!     └───────────── pulled again before it was gone: a new row ◄──────┘
//! ```
//!
//! An image has one wish and no state of its own: its row is there when it is whole, and its layers
//! (`layer`) have theirs. A removal is not taken back. Who pulls again what is leaving gets a new
//! row for it, and the old one has left.

use std::str::FromStr;

use super::reference::Reference;
use super::stored_as_text;

/// The word at the beginning of an error by which kubelet knows that an image could not be mounted
/// (`k8s.io/cri-api/pkg/errors`).
pub const VOLUME_FAILED: &str = "ImageVolumeMountFailed";
/// The same for an image that the operator's policy does not admit.
pub const SIGNATURE_FAILED: &str = "SignatureValidationFailed";

stored_as_text! {
    /// What the client wants. Written by the front alone.
    Desired {
        /// Kept.
        Present = "present",
        /// Gone, with its names.
        Removed = "removed",
    }
}

/// What the worker does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing: wish and fact agree.
    Rest,
    /// Delete names and row; layers that nothing else needs go to cleanup.
    Remove,
}

/// Whether one wish may come after another.
#[must_use]
pub const fn may_follow(from: Desired, to: Desired) -> bool {
    matches!((from, to), (Desired::Present, Desired::Removed))
}

/// The next step for an image that has a row.
#[must_use]
pub const fn next_step(desired: Desired) -> Step {
    match desired {
        Desired::Present => Step::Rest,
        Desired::Removed => Step::Remove,
    }
}

/// Which images clients are advised to keep (CRI `Image.pinned`), by their names.
///
/// A pattern is a name, made canonical as a reference is; or `start*`, or `*part*`, as CRI-O's
/// operators write them. The last two are compared with canonical names as they stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pins(Vec<Pattern>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Name(Reference),
    Start(String),
    Part(String),
}

impl Pins {
    /// Parses patterns.
    ///
    /// # Errors
    /// The first one that is none, and why.
    pub fn parse(patterns: &[String]) -> Result<Self, String> {
        let parsed = patterns.iter().map(|text| {
            let pattern = text.parse();
            pattern.map_err(|why| format!("{text:?} {why}"))
        });
        parsed.collect::<Result<_, _>>().map(Self)
    }

    /// Whether no image fits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a canonical name of an image fits.
    #[must_use]
    pub fn fit(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| match pattern {
            Pattern::Start(start) => name.starts_with(start),
            Pattern::Part(part) => name.contains(part),
            Pattern::Name(wanted) => name.parse().is_ok_and(|name: Reference| {
                // A digest names the content; a tag beside it is for people.
                name == *wanted
                    || wanted
                        .digest()
                        .is_some_and(|d| name == wanted.with_digest(d))
            }),
        })
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let inner = text.trim_matches('*');
        if inner.is_empty() || inner.contains('*') {
            return Err("is none of: a name, start*, *part*".into());
        }
        match (text.starts_with('*'), text.ends_with('*')) {
            (true, true) => Ok(Self::Part(inner.into())),
            (false, true) => Ok(Self::Start(inner.into())),
            (false, false) => {
                let name = inner
                    .parse()
                    .map_err(|error| format!("is no name: {error}"))?;
                Ok(Self::Name(name))
            }
            (true, false) => Err("ends where a name may go on: use *part*".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_names_starts_and_parts() {
        let pins = |text: &str| Pins::parse(&[text.to_owned()]).unwrap();
        let digest = format!("sha256:{}", "a".repeat(64));
        let fits = [
            ("busybox", "docker.io/library/busybox:latest", true),
            ("busybox", "docker.io/library/busybox:1", false),
            (
                "registry.k8s.io/pause:3.10",
                "registry.k8s.io/pause:3.10",
                true,
            ),
            ("registry.k8s.io/pause*", "registry.k8s.io/pause:3.10", true),
            (
                "registry.k8s.io/pause*",
                "mirror.io/registry.k8s.io/pause:3",
                false,
            ),
            ("*pause*", "mirror.io/registry.k8s.io/pause:3", true),
            ("*pause*", "docker.io/library/busybox:latest", false),
        ];
        for (pattern, name, expected) in fits {
            assert_eq!(pins(pattern).fit(name), expected, "{pattern} {name}");
        }
        let by_digest = format!("docker.io/library/a@{digest}");
        assert!(pins(&format!("a:tag@{digest}")).fit(&by_digest));
        assert!(Pins::default().is_empty() && !Pins::default().fit("a"));
        for bad in ["", "*", "**", "a*b", "*a", "A"] {
            assert!(Pins::parse(&[bad.to_owned()]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_what_is_to_go_is_removed_and_that_is_not_taken_back() {
        assert_eq!(next_step(Desired::Present), Step::Rest);
        assert_eq!(next_step(Desired::Removed), Step::Remove);
        assert!(!may_follow(Desired::Removed, Desired::Present));
    }
}
