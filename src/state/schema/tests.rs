//! Databases of every version come forward, and the stable views are what the documents say.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, Row};

use super::*;
use crate::state::Store;
use crate::state::inspect::{Bounds, Inspector, Rows, Value};

/// Rows that a node may have, by the version that has brought their tables.
const ROWS: &[(i64, &str)] = &[
    (1, include_str!("rows/0001.sql")),
    (2, include_str!("rows/0002.sql")),
    (8, include_str!("rows/0008.sql")),
    (9, include_str!("rows/0009.sql")),
    (10, include_str!("rows/0010.sql")),
    (12, include_str!("rows/0012.sql")),
    (15, include_str!("rows/0015.sql")),
    (16, include_str!("rows/0016.sql")),
];

const BOUNDS: Bounds = Bounds {
    timeout: Duration::from_secs(20),
    rows: 10_000,
    bytes: 10_000_000,
};

fn versions() -> Vec<i64> {
    MIGRATOR.iter().map(|m| m.version).collect()
}

/// A database as a program wrote it that knew versions up to `last`, with rows in every table.
async fn database(dir: &tempfile::TempDir, last: i64) -> PathBuf {
    let path = dir.path().join(format!("{last}.db"));
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true)
        .foreign_keys(true);
    let mut connection = SqliteConnection::connect_with(&options)
        .await
        .expect("a database");
    for version in versions().into_iter().filter(|version| *version <= last) {
        let known = MIGRATOR.iter().filter(|m| m.version <= version).cloned();
        let migrator = Migrator {
            migrations: Cow::Owned(known.collect()),
            ..Migrator::DEFAULT
        };
        migrator.run(&mut connection).await.expect("a migration");
        for (_, rows) in ROWS.iter().filter(|(of, _)| *of == version) {
            sqlx::raw_sql(*rows)
                .execute(&mut connection)
                .await
                .unwrap_or_else(|error| panic!("rows of version {version}: {error}"));
        }
    }
    connection.close().await.expect("a close");
    path
}

/// Every table with its rows, but the books of the migrations.
async fn tables(path: &Path) -> BTreeMap<String, Rows> {
    let mut inspector = Inspector::open(path).await.expect("a database");
    let mut tables = BTreeMap::new();
    for name in inspector.tables().await.expect("tables") {
        if name.starts_with('_') {
            continue;
        }
        let sql = format!("SELECT * FROM \"{name}\" ORDER BY 1");
        let (rows, _) = inspector.rows(&sql, &[], BOUNDS).await.expect("rows");
        tables.insert(name, rows);
    }
    inspector.close().await;
    tables
}

#[tokio::test]
async fn a_database_of_every_version_comes_forward_with_its_rows() {
    let dir = tempfile::tempdir().expect("a directory");
    for version in versions() {
        let path = database(&dir, version).await;
        let before = tables(&path).await;
        for (name, rows) in &before {
            assert!(
                !rows.rows.is_empty(),
                "version {version} has a table {name}: add a row of it to src/state/schema/rows, \
                 in the file of the version that brings it, and list the file in ROWS"
            );
        }
        drop(Store::open(&path).await.expect("it comes forward"));
        let after = tables(&path).await;
        for (name, old) in before {
            let new = after.get(&name).expect("no table goes");
            let place = |column| new.columns.iter().position(|c| c == column);
            let places: Vec<_> = old
                .columns
                .iter()
                .map(|column| place(column).expect("no column goes"))
                .collect();
            let kept = new.rows.iter().map(|row| {
                let values = places.iter().map(|place| row[*place].clone());
                values.collect::<Vec<_>>()
            });
            assert_eq!(kept.collect::<Vec<_>>(), old.rows, "{version}: {name}");
        }
        let mut inspector = Inspector::open(&path).await.expect("a database");
        assert_eq!(inspector.version(), newest_known());
        let broken = sqlx::query("PRAGMA foreign_key_check").fetch_all(inspector.connection());
        assert!(broken.await.expect("a check").is_empty());
    }
}

/// Columns by view, as `docs/database.md` lists them.
fn documented() -> BTreeMap<String, Vec<String>> {
    let text = include_str!("../../../docs/database.md");
    let mut views: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        let quoted = |line: &str| line.split('`').nth(1).map(str::to_owned);
        if line.starts_with('#') {
            current = line.strip_prefix("### ").and_then(quoted);
        } else if let Some(view) = &current
            && line.starts_with("| `")
        {
            let columns = views.entry(view.clone()).or_default();
            columns.extend(quoted(line));
        }
    }
    views
}

#[tokio::test]
async fn the_documents_list_every_view_with_its_columns() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = database(&dir, newest_known()).await;
    let mut inspector = Inspector::open(&path).await.expect("a database");
    let names = "SELECT name FROM sqlite_schema WHERE type = 'view'";
    let rows = sqlx::query(names)
        .fetch_all(inspector.connection())
        .await
        .expect("views");
    let mut views = BTreeMap::new();
    for row in rows {
        let name: String = row.get(0);
        let sql = format!("SELECT * FROM \"{name}\"");
        let (rows, _) = inspector.rows(&sql, &[], BOUNDS).await.expect("a view");
        views.insert(name, rows.columns);
    }
    assert_eq!(documented(), views);
}

/// What the view of leaks says, by kind.
async fn leaks(path: &Path) -> BTreeSet<String> {
    let mut inspector = Inspector::open(path).await.expect("a database");
    let sql = "SELECT kind, why, age_s FROM v_leaks";
    let (rows, _) = inspector.rows(sql, &[], BOUNDS).await.expect("leaks");
    inspector.close().await;
    rows.rows
        .iter()
        .map(|row| {
            assert!(matches!(row[2], Value::Real(age) if age > 0.0), "{row:?}");
            row[0].to_string()
        })
        .collect()
}

#[tokio::test]
async fn a_node_at_work_has_no_leaks_and_each_kind_of_leak_is_seen() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = database(&dir, newest_known()).await;
    assert_eq!(leaks(&path).await, BTreeSet::new());
    let statements = [
        (
            "cleanup",
            "UPDATE cleanup_tasks SET status = 'failed', error = 'busy', completed_at = NULL",
        ),
        (
            "address",
            "UPDATE network_allocations SET sandbox_id = 'gone' WHERE status = 'active'",
        ),
        (
            "attachment",
            "UPDATE network_attachments SET sandbox_id = printf('%064d', 0)",
        ),
        ("snapshot", "UPDATE snapshots SET container_id = 'gone'"),
        ("layer", "UPDATE layers SET state = 'removing'"),
        (
            "layer",
            "INSERT INTO layers (chain_id, diff_id, digest, state, created_at)
             VALUES ('sha256:03', 'x', 'x', 'fetching', 1)",
        ),
        (
            "layer",
            "INSERT INTO layers (chain_id, diff_id, digest, state, created_at)
             VALUES ('sha256:04', 'x', 'x', 'present', 1)",
        ),
        ("sandbox", "UPDATE sandboxes SET desired = 'removed'"),
        ("container", "UPDATE containers SET desired = 'removed'"),
        ("image", "UPDATE images SET desired = 'removed'"),
        (
            "cgroup",
            "UPDATE process_monitors SET status = 'completed';
             UPDATE containers SET state = 'exited', exit_code = 0, exited_at = 1",
        ),
        (
            "monitor",
            "UPDATE containers SET state = 'exited', exit_code = 0, exited_at = 1, released = 1",
        ),
    ];
    for (index, (kind, sql)) in statements.into_iter().enumerate() {
        let copy = dir.path().join(format!("leak-{index}.db"));
        std::fs::copy(&path, &copy).expect("a copy");
        let options = SqliteConnectOptions::new().filename(&copy);
        let mut connection = SqliteConnection::connect_with(&options)
            .await
            .expect("a database");
        sqlx::raw_sql(sql)
            .execute(&mut connection)
            .await
            .expect("a leak");
        connection.close().await.expect("a close");
        assert_eq!(
            leaks(&copy).await,
            BTreeSet::from([kind.to_owned()]),
            "{sql}"
        );
    }
}
