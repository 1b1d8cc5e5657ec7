//! Style and architecture as a test: it reads the crate's own sources and fails with a list of
//! what to change and how.
//!
//! What it checks: who may import whom, where `unsafe` and the protobuf types live, a `//!` header
//! on every file, size budgets, names, and a reason on every lint exception. What clippy checks
//! already is repeated only where clippy looks at functions and we look at files.
//!
//! Every check is a function from sources to problems, so each is tested here on small sources made
//! in memory: a gate that cannot fail guards nothing.

#[path = "tidy/budget.rs"]
mod budget;
#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/words.rs"]
mod words;

use std::path::Path;

use source::Source;

/// Where Rust lives in this repository.
const ROOTS: [&str; 5] = ["build.rs", "src", "tests", "hack", "fuzz"];

#[test]
fn the_sources_keep_the_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    let mut problems = Vec::new();
    for name in ROOTS {
        source::collect(root, &root.join(name), &mut sources, &mut problems);
    }
    assert!(
        sources.iter().any(|s| s.path == "src/lib.rs"),
        "no src/lib.rs below {root:?}"
    );
    problems.extend(check_all(&sources));
    println!("{}", budget::summary(&sources));
    assert!(
        problems.is_empty(),
        "{} problem(s):\n{}",
        problems.len(),
        problems.join("\n")
    );
}

/// Runs every check over every source, and returns what is wrong, one line each.
fn check_all(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    for source in sources {
        problems.extend(words::header(source));
        problems.extend(words::names(source));
        problems.extend(words::unfinished(source));
        problems.extend(words::exceptions(source));
        problems.extend(words::unsafe_code(source));
        problems.extend(budget::lines(source));
        problems.extend(budget::functions(source));
        problems.extend(layers::internal(source));
        problems.extend(layers::external(source));
    }
    problems.extend(layers::circles(sources));
    problems
}

#[test]
fn sources_that_keep_the_rules_raise_nothing() {
    let sources = [
        Source::parse(
            "src/lifecycle/sandbox.rs",
            "//! Rules.\nuse crate::id::SandboxId;\n",
        ),
        Source::parse(
            "src/cri/node.rs",
            "//! Node.\nuse crate::{proto::cri, state::Store};\n",
        ),
    ]
    .map(|parsed| parsed.expect("valid Rust"));
    assert_eq!(check_all(&sources), Vec::<String>::new());
}
