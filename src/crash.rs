//! Places where a test can make the daemon die, as if killed: between every two steps of a pod's
//! life. Debug builds only; in a release build a point is nothing at all.
//!
//! `QUILT_CRASH_AT=name` in the daemon's environment arms one point; `quiltd crash-points` lists
//! them.

/// Every point, in the order a pod meets them.
pub const POINTS: &[&str] = &[
    "image.layer_committed",
    "sandbox.recorded",
    "sandbox.namespaces",
    "sandbox.network",
    "sandbox.files",
    "sandbox.init",
    "sandbox.ready",
    "container.recorded",
    "container.prepared",
    "container.created",
    "container.starting",
    "container.cgroup",
    "container.plan",
    "container.launched",
    "container.running",
    "container.stopping",
    "container.signalled",
    "container.exit_seen",
    "container.exited",
    "container.released",
    "container.files_removed",
    "container.removed",
    "sandbox.stopping",
    "sandbox.namespaces_removed",
    "sandbox.stopped",
    "sandbox.link_removed",
    "sandbox.files_removed",
    "sandbox.removed",
];

/// Whether the environment arms a point, and which.
///
/// # Errors
/// When it names one that does not exist: a test that would not do what it says.
#[cfg(debug_assertions)]
pub fn check() -> Result<(), String> {
    match std::env::var("QUILT_CRASH_AT") {
        Ok(name) if !POINTS.contains(&name.as_str()) => Err(format!(
            "QUILT_CRASH_AT={name}: there is no such point (quiltd crash-points)"
        )),
        _ => Ok(()),
    }
}

/// A release build has no points to arm.
///
/// # Errors
/// When the environment names one all the same.
#[cfg(not(debug_assertions))]
pub fn check() -> Result<(), String> {
    match std::env::var_os("QUILT_CRASH_AT") {
        Some(_) => Err("QUILT_CRASH_AT needs a debug build".into()),
        None => Ok(()),
    }
}

/// Dies here, without another instruction, when the test asked for it.
#[cfg(debug_assertions)]
pub fn point(name: &'static str) {
    use std::sync::OnceLock;
    static ARMED: OnceLock<Option<String>> = OnceLock::new();
    debug_assert!(POINTS.contains(&name), "{name} is not listed");
    let armed = ARMED.get_or_init(|| std::env::var("QUILT_CRASH_AT").ok());
    if armed.as_deref() == Some(name) {
        std::process::abort();
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_name: &'static str) {}
