//! Containers, one file per verb.

pub mod create;
pub mod exec_sync;
mod leaf;
pub mod list;
pub mod remove;
pub mod reopen_log;
mod security;
mod spec;
pub mod start;
pub mod stats;
pub mod status;
pub mod stop;
mod view;
