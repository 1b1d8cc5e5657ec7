//! The node's one shim: parent of every container process, writer of every log, keeper of every
//! exit until the daemon has it. It holds no policy, and knows no SQLite, no CRI and no tokio.
//!
//! ```text
//! daemon ── client ──(protocol, SOCK_SEQPACKET)── server ── runtime ── processes
//!                                                   ├── stdio: FIFOs ── log: CRI lines ── files
//!                                                   └── journal: exit records
//! ```
//!
//! `client` is the daemon's side, and the only file here that knows tokio.
pub mod client;
pub mod journal;
pub mod log;
pub mod protocol;
pub mod server;
pub mod stdio;
