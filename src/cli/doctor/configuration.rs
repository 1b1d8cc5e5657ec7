//! What the daemon is told, and what it is given.

use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::probe::{Need, Node, Probe, always};
use crate::daemon::Endpoint;
use crate::engine::Engine;

/// Five descriptors a process that the shim holds: room for ten thousand.
const FILES: u64 = 50_048;

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "configuration.file",
        what: "the configuration can be used",
        need: Need::Required,
        costs: "the daemon does not start (the defaults are looked at from here on)",
        mend: "docs/configuration.md has every key",
        applies: always,
        look: file,
    },
    Probe {
        name: "configuration.socket",
        what: "the CRI socket is free, or quiltd's own",
        need: Need::Required,
        costs: "the daemon does not start",
        mend: "stop the other runtime, or name another socket (--listen)",
        applies: always,
        look: socket,
    },
    Probe {
        name: "configuration.open_files",
        what: "enough files may be open",
        need: Need::Wanted,
        costs: "the shim holds a fifth as many processes as it may open files",
        mend: "LimitNOFILE=infinity in the unit (ulimit -Hn)",
        applies: always,
        look: open_files,
    },
];

fn file(node: &Node) -> Result<String, String> {
    if let Some(problem) = &node.problem {
        return Err(problem.clone());
    }
    // What can be said only with the files that it names.
    node.config
        .image
        .rules()
        .map(|_| String::new())
        .map_err(|error| error.to_string())
}

fn socket(node: &Node) -> Result<String, String> {
    let endpoint: Endpoint = node
        .listen
        .parse()
        .map_err(|error: anyhow::Error| format!("{error:#}"))?;
    let endpoint = endpoint.to_string();
    let path = endpoint.trim_start_matches("unix://");
    let answers = UnixStream::connect(path).is_ok();
    let ours = Engine::read(&node.state).is_ok_and(|engine| engine.endpoint == endpoint);
    match (answers, ours) {
        (true, true) => Ok("a quiltd answers on it".into()),
        (true, false) => Err(format!("somebody else answers on {path}")),
        (false, _) if Path::new(path).is_dir() => Err(format!("{path} is a directory")),
        (false, _) => Ok("nobody answers on it".into()),
    }
}

fn open_files(_node: &Node) -> Result<String, String> {
    let limit = getrlimit(Resource::Nofile).maximum;
    match limit {
        Some(limit) if limit < FILES => Err(format!("{limit} may be")),
        Some(limit) => Ok(limit.to_string()),
        None => Ok("without limit".into()),
    }
}
