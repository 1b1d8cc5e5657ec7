//! Places where a test can make the daemon die, as if killed: between every two steps of a pod's
//! life. Debug builds only; in a release build a point is nothing at all.
//!
//! `QUILT_CRASH_AT=name` in the daemon's environment arms one point; `quiltd crash-points` lists
//! them.

/// Every point, in the order a pod meets them.
pub const POINTS: &[&str] = &[
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

/// Dies here, by SIGKILL, when the test asked for it.
#[cfg(debug_assertions)]
pub fn point(name: &'static str) {
    use std::sync::OnceLock;
    static ARMED: OnceLock<Option<String>> = OnceLock::new();
    debug_assert!(POINTS.contains(&name), "{name} is not listed");
    let armed = ARMED.get_or_init(|| std::env::var("QUILT_CRASH_AT").ok());
    if armed.as_deref() == Some(name) {
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_name: &'static str) {}
