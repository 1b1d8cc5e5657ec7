//! Which of the platforms that an index offers runs here (image-spec, index, "platform").
//!
//! The plainest variant wins, since it certainly runs; a variant that needs more of the processor
//! is taken where nothing plainer is offered and this processor has it. `os.version` and
//! `os.features` mean nothing on Linux.

use std::fmt;

use serde::Deserialize;

/// What a manifest in an index is for.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    variant: Option<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |text: &str| text.chars().take(40).collect::<String>();
        write!(f, "{}/{}", short(&self.os), short(&self.architecture))?;
        match &self.variant {
            Some(variant) if !variant.is_empty() => write!(f, "/{}", short(variant)),
            _ => Ok(()),
        }
    }
}

/// How well a platform fits, lower is better; `None` does not fit.
pub(super) fn rank(platform: Option<&Platform>) -> Option<u8> {
    // Who says nothing comes after everybody who says that it fits.
    let Some(platform) = platform else {
        return Some(u8::MAX);
    };
    if platform.os != "linux" || platform.architecture != architecture() {
        return None;
    }
    let variant = platform.variant.as_deref().unwrap_or("");
    rank_variant(architecture(), variant, level())
}

/// `level` is how far this processor goes beyond its architecture's baseline.
fn rank_variant(architecture: &str, variant: &str, level: u8) -> Option<u8> {
    let number = variant.strip_prefix('v').and_then(|v| v.parse::<u8>().ok());
    match (architecture, number) {
        (_, _) if variant.is_empty() => Some(0),
        ("amd64", Some(wanted)) if (1..=level).contains(&wanted) => Some(wanted - 1),
        ("arm64", Some(8)) => Some(0),
        // Here the newest is what everybody means; all older ones run too.
        ("arm", Some(wanted)) if (5..=level).contains(&wanted) => Some(level - wanted),
        _ => None,
    }
}

/// This build's architecture in Go's words, which are the image-spec's.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// This node's platform, as a message has it.
pub(super) fn this() -> String {
    format!("linux/{}", architecture())
}

/// The x86-64 micro-architecture level of this processor (System V ABI, x86-64 supplement, "Micro
/// -Architecture Levels"), or its ARM version.
#[cfg(target_arch = "x86_64")]
fn level() -> u8 {
    let has = |all: &[bool]| all.iter().all(|one| *one);
    let second = has(&[
        is_x86_feature_detected!("cmpxchg16b"),
        is_x86_feature_detected!("popcnt"),
        is_x86_feature_detected!("sse3"),
        is_x86_feature_detected!("sse4.2"),
        is_x86_feature_detected!("ssse3"),
    ]);
    let third = has(&[
        is_x86_feature_detected!("avx2"),
        is_x86_feature_detected!("bmi1"),
        is_x86_feature_detected!("bmi2"),
        is_x86_feature_detected!("f16c"),
        is_x86_feature_detected!("fma"),
        is_x86_feature_detected!("lzcnt"),
        is_x86_feature_detected!("movbe"),
    ]);
    let fourth = has(&[
        is_x86_feature_detected!("avx512f"),
        is_x86_feature_detected!("avx512bw"),
        is_x86_feature_detected!("avx512cd"),
        is_x86_feature_detected!("avx512dq"),
        is_x86_feature_detected!("avx512vl"),
    ]);
    match (second, third, fourth) {
        (false, ..) => 1,
        (_, false, _) => 2,
        (.., false) => 3,
        _ => 4,
    }
}

/// See above.
#[cfg(not(target_arch = "x86_64"))]
fn level() -> u8 {
    7
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plainest_variant_that_runs_comes_first() {
        for (architecture, level, variant, expected) in [
            ("amd64", 3, "", Some(0)),
            ("amd64", 3, "v1", Some(0)),
            ("amd64", 3, "v2", Some(1)),
            ("amd64", 3, "v3", Some(2)),
            ("amd64", 3, "v4", None),
            ("amd64", 3, "v0", None),
            ("amd64", 1, "v2", None),
            ("arm64", 7, "v8", Some(0)),
            ("arm64", 7, "v9", None),
            ("arm", 7, "v7", Some(0)),
            ("arm", 7, "v6", Some(1)),
            ("arm", 7, "v5", Some(2)),
            ("arm", 6, "v7", None),
            ("s390x", 7, "x", None),
        ] {
            let rank = rank_variant(architecture, variant, level);
            assert_eq!(rank, expected, "{architecture}/{variant} on {level}");
        }
    }
}
