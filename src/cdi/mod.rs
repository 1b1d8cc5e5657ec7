//! CDI, the Container Device Interface: what vendors write down about their devices, and what a
//! container gets that asks for one by name (`vendor.com/class=device`).
//!
//! Files are read when they are needed, so what counts is what lies in the directories now: there
//! is nothing to reload. A file that cannot be read or is no specification spoils nothing but
//! itself, and is named when a device is not found.
//!
//! Nothing of the node is looked at here; that is for whoever makes the edits.

mod directory;
mod name;
mod spec;

pub use directory::{CdiError, find};
pub use name::requested;
pub use spec::{DeviceNode, Edits, Hook, Mount};
