//! The layering checks, tried on small sources that break them.

use super::*;

fn parse(path: &str, text: &str) -> Source {
    Source::parse(path, text).expect("valid Rust")
}

fn breaks(path: &str, text: &str) -> bool {
    let source = parse(path, text);
    !internal(&source).is_empty() || !external(&source).is_empty()
}

#[test]
fn front_and_back_never_import_each_other() {
    assert!(breaks(
        "src/cri/sandbox/run.rs",
        "use crate::reconcile::worker;"
    ));
    assert!(breaks("src/cri/sandbox/run.rs", "use crate::network;"));
    assert!(breaks(
        "src/admin/mod.rs",
        "fn f() { crate::image::pull(); }"
    ));
    assert!(breaks(
        "src/reconcile/sandbox.rs",
        "use crate::cri::status;"
    ));
    assert!(!breaks(
        "src/cri/sandbox/run.rs",
        "use crate::{state::Store, lifecycle::sandbox};"
    ));
}

#[test]
fn every_way_to_write_an_import_is_seen() {
    let inside = "src/cri/sandbox/run.rs";
    assert!(
        breaks(inside, "use crate::{id::A, reconcile::{B, C}};"),
        "a group"
    );
    assert!(
        breaks(inside, "use super::super::super::reconcile::B;"),
        "through super"
    );
    assert!(breaks(inside, "use {crate::reconcile as r};"), "renamed");
    assert!(
        breaks(inside, "fn f() -> crate::reconcile::B { loop {} }"),
        "a type"
    );
    assert!(
        breaks(inside, "fn f() { log!(\"{}\", crate::reconcile::B); }"),
        "a macro body"
    );
    assert!(
        breaks(
            inside,
            "mod x { use super::super::super::super::reconcile::B; }"
        ),
        "nested"
    );
    assert!(
        !breaks(inside, "mod x { use super::super::super::reconcile::B; }"),
        "cri::reconcile"
    );
    assert!(
        !breaks(inside, "use super::reconcile::B;"),
        "cri::sandbox::reconcile"
    );
}

#[test]
fn drivers_know_no_database_no_cri_and_not_each_other() {
    assert!(breaks("src/image/pull.rs", "use crate::snapshot::ensure;"));
    assert!(breaks("src/cgroup/mod.rs", "use crate::state::Store;"));
    assert!(breaks("src/network/pod.rs", "use crate::proto::cri;"));
    assert!(breaks("src/image/pull.rs", "use sqlx::Row;"));
    assert!(!breaks(
        "src/image/pull.rs",
        "use crate::sys::inroot; use tokio::fs;"
    ));
}

#[test]
fn only_the_session_part_of_the_shim_is_open_to_the_front() {
    assert!(!breaks(
        "src/cri/container/exec_sync.rs",
        "use crate::shim::client::Client;"
    ));
    assert!(breaks(
        "src/cri/container/exec_sync.rs",
        "use crate::shim::server::Server;"
    ));
    assert!(breaks(
        "src/admin/mod.rs",
        "use crate::shim::client::Client;"
    ));
}

#[test]
fn the_node_side_has_no_tokio_and_no_tracing_except_the_client() {
    assert!(breaks("src/shim/server.rs", "use tokio::net;"));
    assert!(breaks(
        "src/runtime/launch.rs",
        "fn f() { tracing::info!(\"x\"); }"
    ));
    assert!(breaks(
        "src/runtime/launch.rs",
        "#[derive(sqlx::FromRow)] struct A;"
    ));
    assert!(!breaks(
        "src/shim/client.rs",
        "use tokio::net; use tracing::info;"
    ));
    assert!(breaks("src/shim/client.rs", "use tonic::Status;"));
}

#[test]
fn rules_are_pure_and_the_ground_imports_nothing() {
    assert!(breaks(
        "src/lifecycle/sandbox.rs",
        "use crate::state::Store;"
    ));
    assert!(breaks("src/lifecycle/sandbox.rs", "use tokio::time;"));
    assert!(!breaks(
        "src/lifecycle/sandbox.rs",
        "use crate::id::A; use serde::Serialize;"
    ));
    assert!(breaks("src/sys/mount.rs", "use crate::id::A;"));
}

#[test]
fn protobuf_and_sqlite_stay_inside_their_fences() {
    assert!(breaks("src/reconcile/worker.rs", "use crate::proto::cri;"));
    assert!(breaks("src/state/mod.rs", "use tonic::Status;"));
    assert!(breaks("src/cri/mod.rs", "fn f() { sqlx::query(\"\"); }"));
    assert!(breaks("src/daemon.rs", "use sqlx;"));
    assert!(!breaks("src/state/store.rs", "use sqlx::Row;"));
    assert!(!breaks("src/sys/sqlite.rs", "use rusqlite::Connection;"));
    assert!(breaks("src/sys/mod.rs", "use rusqlite::Connection;"));
}

#[test]
fn tests_inside_a_module_may_use_what_they_need() {
    let text = "#[cfg(test)]\nmod tests {\n    use crate::state::Store;\n    use tokio::time;\n}\n";
    assert!(!breaks("src/lifecycle/sandbox.rs", text));
}

#[test]
fn a_module_without_a_line_in_the_table_is_reported() {
    assert!(breaks("src/magic.rs", ""));
    assert!(breaks("src/magic/mod.rs", ""));
    assert!(!breaks("tests/e2e/magic.rs", "use sqlx::Row;"));
}

#[test]
fn a_circle_is_reported_once_with_its_way() {
    let sources = [
        parse("src/shim/server.rs", "use crate::runtime::plan;"),
        parse("src/runtime/plan.rs", "use crate::sys::clone;"),
        parse("src/sys/clone.rs", "use crate::shim::server;"),
    ];
    assert_eq!(
        circles(&sources),
        ["import circle: runtime → sys → shim → runtime: cut one edge".to_owned()]
    );
    assert!(circles(&sources[..2]).is_empty());
}

#[test]
fn the_table_itself_has_no_circle() {
    for layer in LAYERS.iter().filter(|layer| !layer.imports.contains(&"*")) {
        for import in layer.imports {
            assert!(
                LAYERS.iter().any(|l| l.name == *import),
                "{import} has no line"
            );
        }
    }
    let edges = LAYERS
        .iter()
        .filter(|layer| !layer.imports.contains(&"*"))
        .map(|l| {
            (
                l.name.to_owned(),
                l.imports.iter().map(ToString::to_string).collect(),
            )
        })
        .collect::<BTreeMap<_, BTreeSet<_>>>();
    let mut found = BTreeSet::new();
    for start in edges.keys() {
        walk(&edges, &mut vec![start.clone()], &mut found);
    }
    assert!(found.is_empty(), "{found:?}");
}
