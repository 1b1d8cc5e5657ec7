//! Safe wrappers over system calls: the only place where `unsafe` is written.
pub mod async_fd;
pub mod pidfd_info;
pub mod seqpacket;
