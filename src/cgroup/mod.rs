//! The cgroup driver: creates cgroups with their limits, says how a process enters, counts, kills,
//! and removes, on cgroup v1, v2 and both beside each other ([`Layout`]).
//!
//! A cgroup is named by one path in all hierarchies ([`CgroupPath`]). Idempotent pairs: `ensure`
//! completes what is missing, `remove` takes absence for success. It blocks, for microseconds;
//! where systemd is asked ([`Systemd`]), for milliseconds, and 10 s at most. It knows no database
//! and no CRI, mounts nothing, and never touches the root of a hierarchy or a cgroup that it was
//! not told of.

mod config;
mod create;
mod devices;
mod error;
mod file;
mod layout;
mod limits;
mod mark;
mod memory;
mod oom;
mod path;
mod processes;
mod remove;
mod resources;
mod stand_in;
mod stats;
mod systemd;
mod update;

pub use config::{CgroupConfig, Driver};
pub use error::CgroupError;
pub use layout::{Cgroups, Layout};
pub use mark::IdCgroup;
pub use oom::OomCounter;
pub use path::CgroupPath;
pub use resources::weight_from_shares;
pub use systemd::{BusError, Holder, Systemd, hold};

#[cfg(test)]
mod tests;
