//! What the back last found out about itself, for the conditions of CRI Status.

/// Whether the node can run pods, and why not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Why containers cannot be run; `None` is ready.
    pub runtime_problem: Option<String>,
    /// Why pods cannot be connected; `None` is ready.
    pub network_problem: Option<String>,
}
