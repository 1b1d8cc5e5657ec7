//! Safe wrappers over system calls: the only place where `unsafe` is written.
pub mod inroot;
pub mod tree;
pub mod xattr;
