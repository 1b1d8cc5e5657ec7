//! Pod networks that a cluster brings along: Container Network Interface 1.1 (containernetworking,
//! SPEC.md), from the side of the runtime.
//!
//! ```text
//! directory ─► NetworkList ─► one request a plugin ─► child process ─► result, or error object
//!   (list.rs)   (version.rs)      (request.rs)          (child.rs)        (result.rs)
//! ```
//!
//! `verbs.rs` has what is asked of a network as a whole: ADD and CHECK in the order of the list,
//! DEL in reverse, GC and STATUS of every plugin, VERSION to agree on one. It knows no pod and no
//! database: what was asked and answered is the caller's to remember. Nothing blocks a thread; what
//! a plugin may take, write and say is bounded.

mod child;
mod error;
mod leftover;
mod list;
mod request;
mod result;
mod verbs;
mod version;

pub use child::Plugins;
pub use error::CniError;
pub use leftover::end_leftovers;
pub use list::{Directory, ListError, NetworkList};
pub use request::{Attachment, INTERFACE, arguments};
pub use result::{Dns, addresses, dns};
pub use verbs::{Call, Verb};
pub use version::SpecVersion;

#[cfg(test)]
mod tests;
