//! What exists: listed from kernel and disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::lifecycle::container::State;
use crate::lifecycle::difference::{Found, FoundCgroup, FoundLink, FoundRules, Kind};
use crate::network::{self, BridgeProblem};
use crate::reconcile::node_network::{self, Wanted};
use crate::reconcile::{Back, ReconcileError, inspect};
use crate::snapshot;
use crate::state::container::Container;
use crate::state::network::Allocation;
use crate::state::sandbox::Sandbox;
use crate::sys::mountinfo;

/// What is looked at one by one.
#[derive(Default)]
pub(super) struct Rows {
    /// Pods that are up, with their addresses.
    pub(super) pods: Vec<(Sandbox, Option<Allocation>)>,
    /// Containers that are prepared or run.
    pub(super) containers: Vec<Container>,
    /// Bridge and rules as they should be, where there are any.
    pub(super) network: Option<Wanted>,
    /// What plugins have found wrong, by pod.
    pub(super) check_errors: BTreeMap<String, String>,
}

/// Lists everything of ours, and looks at pods and containers. Blocks; the time grows with what
/// there is, some milliseconds for a hundred pods.
pub(super) fn list(back: &Back, rows: &Rows) -> Result<Found, ReconcileError> {
    let mut found = Found {
        sandbox_dirs: names(&back.paths.sandboxes())?,
        container_dirs: names(&back.paths.containers())?,
        snapshots: snapshot::list_snapshots(&back.paths.root)?
            .into_iter()
            .collect(),
        layers: back
            .images
            .list_layers()?
            .iter()
            .map(ToString::to_string)
            .collect(),
        links: links(back)?,
        bridge_problem: rows.network.as_ref().map_or(Ok(None), bridge_problem)?,
        rules: rows
            .network
            .as_ref()
            .map_or(Ok(None), |wanted| rules(back, wanted))?,
        mounts: mounts(&back.paths.state)?,
        cgroups: cgroups(back)?,
        ..Found::default()
    };
    for (sandbox, allocation) in &rows.pods {
        match inspect::pod(back, sandbox, allocation.as_ref()) {
            Ok(mut seen) => {
                seen.attachment_problem = rows.check_errors.get(sandbox.id.as_str()).cloned();
                found.pods.insert(sandbox.id.to_string(), seen);
            }
            // It may be on its way down, and then nobody wants to know.
            Err(error) => {
                let error = error.full_text();
                tracing::warn!(sandbox = %sandbox.id, error, "cannot look at a pod");
            }
        }
    }
    for container in &rows.containers {
        if matches!(container.state, State::Created | State::Running) {
            let seen = inspect::container(back, container);
            found.containers.insert(container.id.to_string(), seen);
        }
    }
    Ok(found)
}

fn links(back: &Back) -> Result<Vec<FoundLink>, ReconcileError> {
    let links = network::list_links(&back.paths.marker())?;
    Ok(links
        .into_iter()
        .map(|link| FoundLink {
            name: link.name,
            kind: link.kind,
            alias: link.alias,
        })
        .collect())
}

fn rules(back: &Back, wanted: &Wanted) -> Result<Option<FoundRules>, ReconcileError> {
    if !wanted.rules.is_wanted() {
        return Ok(None);
    }
    let seen = network::look_at_rules(&back.netfilter, &wanted.rules)?;
    let policies = seen.policies.keys();
    let policies = policies.map(|link| node_network::policy_name(link));
    let ports = seen.forwards.iter().map(ToString::to_string);
    Ok(Some(FoundRules {
        problems: seen.problems,
        ports: ports.chain(policies).collect(),
    }))
}

fn bridge_problem(wanted: &Wanted) -> Result<Option<(Kind, String)>, ReconcileError> {
    let problems = network::check_bridge(&wanted.bridge())?;
    let kind = if problems.contains(&BridgeProblem::Missing) {
        Kind::Missing
    } else {
        Kind::Wrong
    };
    let texts: Vec<_> = problems.iter().map(BridgeProblem::to_string).collect();
    Ok((!texts.is_empty()).then(|| (kind, texts.join("; "))))
}

fn mounts(state: &Path) -> Result<Vec<String>, ReconcileError> {
    let table =
        mountinfo::read().map_err(ReconcileError::file("read the mount table for", state))?;
    Ok(table
        .into_iter()
        .filter(|entry| entry.mount_point.starts_with(state))
        .filter_map(|entry| entry.mount_point.into_os_string().into_string().ok())
        .collect())
}

fn cgroups(back: &Back) -> Result<Vec<FoundCgroup>, ReconcileError> {
    let found = back.cgroups.list_ids(&back.cgroup_root)?;
    Ok(found
        .into_iter()
        .map(|cgroup| FoundCgroup {
            path: cgroup.path.to_string(),
            mark: cgroup.mark,
            populated: cgroup.populated,
        })
        .collect())
}

fn names(dir: &Path) -> Result<BTreeSet<String>, ReconcileError> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(dir).map_err(ReconcileError::file("list", dir))? {
        let entry = entry.map_err(ReconcileError::file("list", dir))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}
