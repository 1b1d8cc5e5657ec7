//! What the back last found out about itself: for the conditions of CRI Status, and for whoever
//! counts.

use std::sync::{Mutex, PoisonError};

/// Whether the node can run pods, and why not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Why containers cannot be run; `None` is ready.
    pub runtime_problem: Option<String>,
    /// Why pods cannot be connected; `None` is ready.
    pub network_problem: Option<String>,
    /// How plugins are, when it is they who connect new pods.
    pub plugins: Option<PluginReport>,
}

/// How the plugins are that connect pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PluginReport {
    /// Whether there is a network that pods can be connected to, ready or not.
    pub usable: bool,
    /// Why pods cannot be connected; `None` is ready.
    pub problem: Option<String>,
}

/// What the sweeps of this daemon's life have found. Totals only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SweepFigures {
    /// Sweeps that have ended, whoever had asked for them.
    pub runs: u64,
    /// Sweeps that could not be finished.
    pub failures: u64,
    /// When the newest one ended, ns since 1970; 0 before the first.
    pub last_at: i64,
    /// How long it took, ns.
    pub last_duration_ns: i64,
    /// Differences the newest one has found.
    pub last_differences: u64,
    /// Things without a row found, over all runs.
    pub orphans: u64,
    /// Rows without a thing, or things that were wrong, over all runs.
    pub broken: u64,
}

/// The figures of the sweep, in memory.
#[derive(Debug, Default)]
pub struct Sweeps(Mutex<SweepFigures>);

impl Sweeps {
    /// The figures now.
    #[must_use]
    pub fn figures(&self) -> SweepFigures {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the figures.
    pub fn update(&self, change: impl FnOnce(&mut SweepFigures)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
