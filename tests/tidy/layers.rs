//! Who may import whom: the table of the architecture, read as code.
//!
//! Data goes one way round: the front writes desired rows, the back observes and writes observed
//! rows, and both meet in `state` and `lifecycle`. An import that is not in the table is a new edge
//! in the architecture: decide it there, then write it here.

use std::collections::{BTreeMap, BTreeSet};

use syn::visit::{self, Visit};

use crate::source::Source;

/// A top-level module and what of the crate it may import. `"*"` composes the whole.
struct Layer {
    name: &'static str,
    imports: &'static [&'static str],
}

const fn layer(name: &'static str, imports: &'static [&'static str]) -> Layer {
    Layer { name, imports }
}

const LAYERS: &[Layer] = &[
    // Composition: builds the parts and joins them.
    layer("main", &["*"]),
    layer("daemon", &["*"]),
    layer("cli", &["*"]),
    layer("config", &["*"]),
    layer("telemetry", &[]),
    // Front: validates, writes desired rows, answers. Never the back. Sessions (exec, attach,
    // port-forward, log reopen) change no state and speak to the shim directly.
    layer(
        "cri",
        &[
            "state",
            "lifecycle",
            "proto",
            "id",
            "telemetry",
            "shim",
            "runtime",
            "metrics",
            "streaming",
            "confinement",
            "cdi",
            "traces",
        ],
    ),
    layer(
        "streaming",
        &[
            "metrics",
            "state",
            "lifecycle",
            "id",
            "telemetry",
            "shim",
            "runtime",
            "sys",
        ],
    ),
    layer(
        "containerd",
        &["state", "lifecycle", "proto", "id", "telemetry", "metrics"],
    ),
    layer(
        "admin",
        &[
            "state",
            "lifecycle",
            "proto",
            "id",
            "engine",
            "telemetry",
            "metrics",
        ],
    ),
    // Middle: where they meet.
    layer("state", &["lifecycle", "id", "sys", "metrics"]),
    layer("lifecycle", &["id"]),
    // Back: observes, and drives the kernel, the disk and the registry. Drivers know no database,
    // no CRI, and not each other.
    layer(
        "reconcile",
        &[
            "state",
            "lifecycle",
            "image",
            "snapshot",
            "network",
            "cgroup",
            "confinement",
            "cdi",
            "shim",
            "runtime",
            "sys",
            "id",
            "telemetry",
            "metrics",
        ],
    ),
    layer("image", &["lifecycle", "sys", "id"]),
    layer("snapshot", &["sys", "id"]),
    layer("network", &["sys", "id"]),
    layer("cgroup", &["lifecycle", "sys", "id"]),
    // Pure but for reading what the node has: also for the front, which refuses what is not there.
    layer("confinement", &[]),
    layer("cdi", &["sys"]),
    // Node side: lives without the daemon.
    layer("shim", &["runtime", "sys", "id"]),
    layer("runtime", &["sys", "id"]),
    // Ground.
    layer("proto", &[]),
    layer("fault", &[]),
    layer("causes", &[]),
    layer("metrics", &[]),
    layer("engine", &[]),
    layer("traces", &["metrics"]),
    layer("sys", &[]),
    layer("id", &[]),
];

/// What every layer may import: named points where a test makes a step fail, the text of errors.
const EVERYWHERE: [&str; 2] = ["fault", "causes"];

/// Of a whole module only this part is open to these layers.
const PARTS: &[(&str, &str, &[&str])] = &[
    ("cri", "shim", &["client", "protocol"]),
    ("streaming", "shim", &["client", "protocol"]),
    ("reconcile", "shim", &["client", "protocol"]),
    ("cri", "runtime", &["plan"]),
    ("streaming", "runtime", &["plan"]),
    // An image that a container mounts is tried before a client is told that there is one.
    (
        "reconcile",
        "runtime",
        &["plan", "image_volume", "hooks", "error"],
    ),
];

/// A crate, and the only places that may name it: modules of the top level, or single ones.
struct Fence {
    crates: &'static [&'static str],
    inside: &'static [&'static str],
    why: &'static str,
}

const FENCES: &[Fence] = &[
    Fence {
        crates: &["sqlx", "rusqlite"],
        inside: &["state", "sys::sqlite"],
        why: "only state/ opens the database",
    },
    Fence {
        crates: &["tonic", "prost", "tonic_prost"],
        inside: &["proto", "cri", "admin", "containerd", "cli", "daemon"],
        why: "gRPC and protobuf types stay in the front",
    },
];

/// A module (longest first) and crates it must not name.
const FORBIDDEN: &[(&str, &[&str], &str)] = &[
    (
        "shim::client",
        &[],
        "the daemon's half of the shim runs in the daemon",
    ),
    (
        "shim::server::tests",
        &[],
        "the tests speak to the shim as the daemon does",
    ),
    (
        "shim",
        &["tokio", "tracing", "tokio_util", "reqwest"],
        "the shim is one small epoll loop",
    ),
    (
        "runtime",
        &["tokio", "tracing", "tokio_util", "reqwest"],
        "it runs in the shim and after clone",
    ),
    (
        "sys::async_fd",
        &[],
        "readiness of descriptors for the daemon, which runs on tokio",
    ),
    (
        "sys",
        &["tokio", "tracing", "tokio_util", "reqwest"],
        "system calls only",
    ),
    (
        "lifecycle",
        &[
            "tokio",
            "tracing",
            "nix",
            "rustix",
            "libc",
            "reqwest",
            "rtnetlink",
        ],
        "rules are pure",
    ),
];

/// Imports between top-level modules that the table does not have.
pub(crate) fn internal(source: &Source) -> Vec<String> {
    let Some(module) = source.module() else {
        return Vec::new();
    };
    let Some(from) = module.first() else {
        return Vec::new();
    };
    if module.contains(&"tests") {
        // A test may put two drivers together to see that they fit.
        return Vec::new();
    }
    let Some(layer) = LAYERS.iter().find(|layer| layer.name == *from) else {
        return vec![format!(
            "{}: top-level module `{from}` has no line in tests/tidy/layers.rs: \
             say there what it may import",
            source.path
        )];
    };
    let mut problems = BTreeSet::new();
    for import in imports(source) {
        let Some(to) = import.path.first() else {
            continue;
        };
        if to == from
            || EVERYWHERE.contains(&to.as_str())
            || !LAYERS.iter().any(|layer| layer.name == to)
        {
            continue;
        }
        let place = format!("{}:{}", source.path, import.line);
        if !layer.imports.contains(&"*") && !layer.imports.contains(&to.as_str()) {
            problems.insert(format!(
                "{place}: `{from}` may not import `{to}`: {}",
                if layer.imports.is_empty() {
                    "it imports nothing of ours".into()
                } else {
                    format!("only {}", layer.imports.join(", "))
                }
            ));
        }
        let part = PARTS.iter().find(|(a, b, _)| a == from && b == to);
        if let (Some((_, _, open)), Some(inner)) = (part, import.path.get(1))
            && !open.contains(&inner.as_str())
        {
            problems.insert(format!(
                "{place}: of `{to}` only {} is open to `{from}`, not `{inner}`",
                open.join(", ")
            ));
        }
    }
    problems.into_iter().collect()
}

/// Crates named where they may not be.
pub(crate) fn external(source: &Source) -> Vec<String> {
    let Some(module) = source.module() else {
        return Vec::new();
    };
    let name = module.join("::");
    let top = module.first().copied().unwrap_or_default();
    let forbidden = FORBIDDEN.iter().find(|(prefix, _, _)| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    });
    let mut problems = BTreeSet::new();
    for (word, line) in crates(source) {
        let fence = FENCES.iter().find(|f| {
            let may = f.inside.contains(&top) || f.inside.contains(&name.as_str());
            f.crates.contains(&word) && !may
        });
        let ban = forbidden.filter(|(_, crates, _)| crates.contains(&word));
        let why = fence.map(|f| f.why).or(ban.map(|(_, _, why)| *why));
        if let Some(why) = why {
            problems.insert(format!(
                "{}:{line}: `{word}` in `{name}`: {why}",
                source.path
            ));
        }
    }
    problems.into_iter().collect()
}

/// Circles among top-level modules.
pub(crate) fn circles(sources: &[Source]) -> Vec<String> {
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources {
        let Some(from) = source
            .module()
            .and_then(|m| m.first().map(ToString::to_string))
        else {
            continue;
        };
        for import in imports(source) {
            let Some(to) = import.path.into_iter().next() else {
                continue;
            };
            if to != from && LAYERS.iter().any(|layer| layer.name == to) {
                edges.entry(from.clone()).or_default().insert(to);
            }
        }
    }
    let mut found = BTreeSet::new();
    for start in edges.keys() {
        walk(&edges, &mut vec![start.clone()], &mut found);
    }
    found
        .into_iter()
        .map(|circle| format!("import circle: {circle}: cut one edge"))
        .collect()
}

/// Follows edges from the last of `trail`; a circle is reported from its smallest name.
fn walk(
    edges: &BTreeMap<String, BTreeSet<String>>,
    trail: &mut Vec<String>,
    found: &mut BTreeSet<String>,
) {
    let Some(next) = trail.last().and_then(|last| edges.get(last)) else {
        return;
    };
    for to in next {
        if *to == trail[0] {
            if trail.iter().all(|name| *name >= trail[0]) {
                found.insert(format!("{} → {to}", trail.join(" → ")));
            }
        } else if !trail.contains(to) {
            trail.push(to.clone());
            walk(edges, trail, found);
            trail.pop();
        }
    }
}

/// A path below the crate that a line outside tests names.
struct Import {
    path: Vec<String>,
    line: usize,
}

/// Everything of the crate that the file names: in `use`, in paths, in macro bodies.
fn imports(source: &Source) -> Vec<Import> {
    let mut visitor = Paths {
        module: source
            .module()
            .unwrap_or_default()
            .iter()
            .map(ToString::to_string)
            .collect(),
        found: Vec::new(),
    };
    visitor.visit_file(&source.tree);
    let mut found = visitor.found;
    let tokens = &source.tokens;
    for (index, token) in tokens.iter().enumerate() {
        let text = |offset: usize| tokens.get(index + offset).map_or("", |t| t.text.as_str());
        if token.text == "crate" && text(1) == ":" && text(2) == ":" {
            let mut path = vec![text(3).to_owned()];
            if text(4) == ":" && text(5) == ":" {
                path.push(text(6).to_owned());
            }
            found.push(Import {
                path,
                line: token.line,
            });
        }
    }
    found.retain(|import| !source.is_test_line(import.line));
    found
}

/// Names that stand at the start of a path, with their lines: crates among them.
fn crates(source: &Source) -> impl Iterator<Item = (&str, usize)> {
    let tokens = &source.tokens;
    let starts = tokens.iter().enumerate().filter_map(|(index, token)| {
        let is = |at: usize, text: &str| tokens.get(at).is_some_and(|t| t.text == text);
        let starts_path = is(index + 1, ":") && is(index + 2, ":");
        let continues = index >= 2 && is(index - 1, ":") && is(index - 2, ":");
        let whole_use = index >= 1 && is(index - 1, "use");
        (whole_use || (starts_path && !continues)).then_some((token.text.as_str(), token.line))
    });
    starts.filter(|(_, line)| !source.is_test_line(*line))
}

/// Resolves `crate::`, `self::` and `super::` in `use` trees (with groups) and in paths.
struct Paths {
    module: Vec<String>,
    found: Vec<Import>,
}

impl Paths {
    fn resolve(&mut self, words: &[String], line: usize) {
        let mut path = match words.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self" | "super") => self.module.clone(),
            _ => return,
        };
        for word in words {
            match word.as_str() {
                "crate" | "self" => {}
                "super" => {
                    path.pop();
                }
                other => path.push(other.into()),
            }
        }
        self.found.push(Import { path, line });
    }

    fn tree(&mut self, tree: &syn::UseTree, words: &mut Vec<String>, line: usize) {
        match tree {
            syn::UseTree::Path(path) => {
                words.push(path.ident.to_string());
                self.tree(&path.tree, words, path.ident.span().start().line);
                words.pop();
            }
            syn::UseTree::Group(group) => {
                for item in &group.items {
                    self.tree(item, words, line);
                }
            }
            syn::UseTree::Name(syn::UseName { ident })
            | syn::UseTree::Rename(syn::UseRename { ident, .. }) => {
                words.push(ident.to_string());
                self.resolve(words, ident.span().start().line);
                words.pop();
            }
            syn::UseTree::Glob(_) => self.resolve(words, line),
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.tree(
            &item.tree,
            &mut Vec::new(),
            item.use_token.span.start().line,
        );
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if let Some(first) = path.segments.first() {
            let words: Vec<_> = path.segments.iter().map(|s| s.ident.to_string()).collect();
            self.resolve(&words, first.ident.span().start().line);
        }
        visit::visit_path(self, path);
    }
}

#[cfg(test)]
#[path = "layers_tests.rs"]
mod tests;
