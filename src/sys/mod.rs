//! Safe wrappers over what the kernel offers: system calls that no safe crate has, and the text it
//! shows in `/proc`.
//!
//! The only place for `unsafe`: each file opens the lint for itself, each block carries its proof.
//! Nothing here knows what a container is.
pub mod async_fd;
pub mod bpf;
pub mod clone;
pub mod copy;
pub mod inroot;
pub mod memory;
pub mod mountinfo;
pub mod mounts;
pub mod nsfd;
pub mod overlay;
pub mod ownership;
pub mod pidfd_info;
pub mod process;
pub mod reaper;
pub mod scheduling;
pub mod seccomp;
pub mod seqpacket;
pub mod sqlite;
pub mod tree;
pub mod userns;
pub mod wait;
pub mod xattr;
