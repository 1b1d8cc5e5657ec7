//! Safe wrappers over what the kernel offers: system calls and the text it shows in `/proc`.
//!
//! The only place for `unsafe`. Knows nothing of sandboxes, containers or CRI.
pub mod mountinfo;
