//! The CRI log of one container: from the bytes it writes to lines in a file.
//!
//! `line` cuts (pure), `timestamp` says when (pure), `file` writes, `rotated` knows the files that
//! were the log before, `rate` says how fast (pure). Each line has the form
//! `2016-10-06T00:17:09.669794202Z stdout F content\n`, which the kubelet parses; the tag is `P`
//! for a piece of a line that goes on in the next entry of the same stream, `F` for its end.
mod config;
pub mod file;
pub mod line;
pub mod rate;
pub mod rotated;
pub mod timestamp;

pub use config::LogsConfig;
