//! Places where a test can make a step fail, wait or be the daemon's last one: between every two
//! side effects of the back. Only builds with the feature `fault-points` have them; in any other
//! build a point is nothing at all: no branch, and not even its name is in the binary.
//!
//! `QUILT_FAULTS` in the daemon's environment arms points from the start. `QUILT_FAULTS_FILE` names
//! a file with the same content that is read at each passage, so that a test arms points while the
//! daemon runs; what fires is appended to the file of that name with `.fired` behind it.
//!
//! ```text
//! QUILT_FAULTS="sandbox.network=error*1;container.launched=delay:500;container.exited=abort@2"
//!
//! name=action[:ms][*times][@nth]     several are parted by `;` or by the end of a line
//!
//!   error   the step fails, and trying again may go better
//!   fail    the step fails for good
//!   delay   the step goes on after so many milliseconds, or when the points are armed anew
//!   panic   the step panics
//!   abort   the daemon dies here, without another instruction
//!   times   fires so often and then no more; without it, at every passage
//!   nth     the first passage that counts; 1 without it
//! ```
//!
//! `quiltd fault-points` lists the names.

#[cfg(feature = "fault-points")]
mod armed;
#[cfg(feature = "fault-points")]
mod points;

#[cfg(feature = "fault-points")]
pub use armed::{Fault, blocking_point, check, point};
#[cfg(feature = "fault-points")]
pub use points::POINTS;

/// What a point would answer; without the feature there is no such answer.
#[cfg(not(feature = "fault-points"))]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {}

#[cfg(not(feature = "fault-points"))]
impl Fault {
    /// Whether trying again may go better.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match *self {}
    }
}

/// Nothing.
///
/// # Errors
/// Never.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub fn point(_name: &'static str) -> std::future::Ready<Result<(), Fault>> {
    std::future::ready(Ok(()))
}

/// Nothing.
///
/// # Errors
/// Never.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub fn blocking_point(_name: &'static str) -> Result<(), Fault> {
    Ok(())
}

/// This build has no points to arm.
///
/// # Errors
/// When the environment arms some all the same: a test that would not do what it says.
#[cfg(not(feature = "fault-points"))]
pub fn check() -> Result<(), String> {
    for variable in ["QUILT_FAULTS", "QUILT_FAULTS_FILE"] {
        if std::env::var_os(variable).is_some() {
            return Err(format!(
                "{variable} needs a build with --features fault-points"
            ));
        }
    }
    Ok(())
}
