//! The end of every test: remove all pods, stop the daemon, and prove that nothing is left.
//!
//! A test that panics is only cleaned up after, with the daemon's last words shown. A test that
//! passed and left something fails here.

use std::thread;
use std::time::Duration;

use k8s_cri::v1::{PodSandbox, PodSandboxMetadata};
use quilt::proto::admin::InventoryRequest;
use quilt::proto::admin::admin_client::AdminClient;

use super::leftover::{self, Leftover};
use super::names::Names;
use super::wait::poll;
use super::{Cri, Node, client, process};

/// Removal goes on after its call was answered: a link takes the kernel some 20 ms.
const BOUND: Duration = Duration::from_secs(15);

/// Tables that hold one row per living thing.
const LIVING: [&str; 9] = [
    "sandboxes",
    "containers",
    "network_allocations",
    "network_attachments",
    "port_mappings",
    "process_monitors",
    "snapshots",
    "jobs",
    "cleanup_tasks",
];

impl Drop for Node {
    fn drop(&mut self) {
        let failing = thread::panicking();
        let mut problems = Vec::new();
        if failing {
            eprintln!("--- end of quiltd's log ---\n{}\n---", self.log_tail());
        } else if self.child.is_some() {
            match self.ended() {
                Some(status) => problems.push(format!("quiltd has ended by itself: {status}")),
                None => {
                    problems.extend(self.remove_pods());
                    problems.extend(self.settle());
                }
            }
        }
        problems.extend(self.stop());
        for shim in self.shims() {
            process::end(shim);
        }
        if !failing {
            let left = leftover::find(&self.names, &[]);
            problems.extend(left.iter().map(|l| format!("left at the end: {l}")));
        }
        leftover::remove_all(&self.names);
        if !failing && !problems.is_empty() {
            problems.dedup();
            panic!(
                "{}\n--- end of quiltd's log ---\n{}",
                problems.join("\n"),
                self.log_tail()
            );
        }
    }
}

impl Node {
    /// Stops and removes every pod over CRI.
    fn remove_pods(&self) -> Vec<String> {
        let socket = self.names.socket();
        leftover::run_apart(async move {
            let cri = Cri::new(&socket);
            let pods = match cri.list_pods(None).await {
                Ok(pods) => pods,
                Err(error) => return vec![format!("the daemon does not list its pods: {error}")],
            };
            let mut problems = Vec::new();
            for PodSandbox { id, metadata, .. } in pods {
                let name = metadata.map(|PodSandboxMetadata { name, .. }| name);
                let name = name.unwrap_or_default();
                if let Err(error) = cri.stop_pod(&id).await {
                    problems.push(format!("pod {name} {id} cannot be stopped: {error}"));
                }
                if let Err(error) = cri.remove_pod(&id).await {
                    problems.push(format!("pod {name} {id} cannot be removed: {error}"));
                }
            }
            problems
        })
    }

    /// Waits until the kernel, the disk and the database hold nothing of any pod.
    pub(crate) fn settle(&self) -> Vec<String> {
        let expected: Vec<_> = self.shims().into_iter().chain([self.pid()]).collect();
        let look = || {
            let left = leftover::find(&self.names, &expected);
            let mut problems: Vec<_> = left.iter().map(Leftover::to_string).collect();
            problems.extend(rows(&self.names));
            problems.extend(self.links_of_pods());
            problems
        };
        if poll(BOUND, || look().is_empty().then_some(())).is_some() {
            return Vec::new();
        }
        let left = look();
        left.into_iter()
            .map(|l| format!("left after the last pod was removed: {l}"))
            .collect()
    }

    /// Links that are left on the daemon's own host; on the machine they are found by name.
    fn links_of_pods(&self) -> Vec<String> {
        let links = self.host.as_ref().map(|host| host.links());
        let links = links.into_iter().flatten();
        links
            .filter(|link| link.starts_with('q') && *link != self.names.bridge)
            .map(|link| format!("network link {link}"))
            .collect()
    }

    /// Ends the daemon, as an operator would.
    fn stop(&mut self) -> Vec<String> {
        if self.child.is_none() {
            return Vec::new();
        }
        process::signal(self.pid(), nix::sys::signal::Signal::SIGTERM);
        match poll(Duration::from_secs(10), || self.ended()) {
            Some(status) if status.success() => Vec::new(),
            Some(status) => vec![format!("quiltd ended with {status} on SIGTERM")],
            None => {
                self.kill();
                vec!["SIGTERM did not end quiltd".into()]
            }
        }
    }
}

/// Rows that are left, as the daemon counts them.
fn rows(names: &Names) -> Vec<String> {
    let socket = names.state().join("admin.sock");
    leftover::run_apart(async move {
        let mut admin = AdminClient::new(client::channel(&socket));
        let rows = match admin.inventory(client::request(InventoryRequest {})).await {
            Ok(response) => response.into_inner().rows,
            Err(error) => return vec![format!("the daemon does not count its rows: {error}")],
        };
        let mut left = Vec::new();
        for table in LIVING {
            match rows.get(table) {
                Some(0) => {}
                Some(count) => left.push(format!("{count} row(s) in {table}")),
                None => left.push(format!("the inventory does not count {table}")),
            }
        }
        left
    })
}
