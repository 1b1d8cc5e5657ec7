//! Reading a real database file from outside.

use std::path::PathBuf;

use super::*;
use crate::state::Store;

/// A database of the present schema, with its writer still open.
async fn database() -> (tempfile::TempDir, PathBuf, Store) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("quilt.db");
    let (store, desired, _observed) = Store::open(&path).await.expect("a database");
    desired
        .set_pod_cidr("10.1.0.0/24".into())
        .await
        .expect("a row");
    (dir, path, store)
}

const BOUNDS: Bounds = Bounds {
    timeout: Duration::from_secs(20),
    rows: 1000,
    bytes: 1_000_000,
};

#[tokio::test]
async fn values_come_with_their_types() {
    let (_dir, path, _store) = database().await;
    let mut inspector = Inspector::open(&path).await.expect("open");
    let sql = "SELECT 1 AS a, 2.5 AS a, 'x' AS b, x'00ff' AS c, NULL AS d, ?1 AS e";
    let parameter = [Value::Text("it's; fine".into())];
    let (rows, end) = inspector
        .rows(sql, &parameter, BOUNDS)
        .await
        .expect("an answer");
    assert_eq!(end, End::Whole);
    assert_eq!(rows.columns, ["a", "a_2", "b", "c", "d", "e"]);
    let json: Vec<_> = rows.rows[0].iter().map(Value::to_json).collect();
    let wanted = serde_json::json!([1, 2.5, "x", "00ff", null, "it's; fine"]);
    assert_eq!(serde_json::Value::from(json), wanted);
}

#[tokio::test]
async fn an_answer_without_rows_has_columns() {
    let (_dir, path, _store) = database().await;
    let mut inspector = Inspector::open(&path).await.expect("open");
    let (rows, _) = inspector
        .rows("SELECT key, value FROM network_state WHERE 0", &[], BOUNDS)
        .await
        .expect("an answer");
    assert_eq!(rows.columns, ["key", "value"]);
    assert!(rows.rows.is_empty());
}

#[tokio::test]
async fn a_query_is_cut_at_its_bounds() {
    let (_dir, path, _store) = database().await;
    let mut inspector = Inspector::open(&path).await.expect("open");
    let endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c";
    let (rows, end) = inspector.rows(endless, &[], BOUNDS).await.expect("rows");
    assert_eq!(end, End::Cut(1000));
    assert_eq!(rows.rows.len(), 1000);
    let large = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)
                 SELECT zeroblob(400000) FROM c";
    let (rows, end) = inspector.rows(large, &[], BOUNDS).await.expect("rows");
    assert_eq!(end, End::Cut(2));
    assert_eq!(rows.rows.len(), 2);
    // And the connection is as good as before.
    let (rows, _) = inspector.rows("SELECT 7", &[], BOUNDS).await.expect("rows");
    assert_eq!(rows.rows, [[Value::Integer(7)]]);
}

#[tokio::test]
async fn a_query_that_takes_too_long_is_stopped() {
    let (_dir, path, _store) = database().await;
    let mut inspector = Inspector::open(&path).await.expect("open");
    let endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)
                   SELECT count(*) FROM c";
    let short = Bounds {
        timeout: Duration::from_millis(50),
        ..BOUNDS
    };
    let stopped = inspector.rows(endless, &[], short).await;
    assert!(
        matches!(stopped, Err(StateError::TooSlow { .. })),
        "{stopped:?}"
    );
    let (rows, _) = inspector.rows("SELECT 7", &[], BOUNDS).await.expect("rows");
    assert_eq!(rows.rows, [[Value::Integer(7)]]);
}

#[tokio::test]
async fn a_function_that_does_not_return_is_left_alone() {
    let (_dir, path, _store) = database().await;
    let mut inspector = Inspector::open(&path).await.expect("open");
    // Compares half of the text at half of its places: one step of SQLite's machine, and seconds.
    let stuck = "SELECT instr(printf('%.*c', 800000, 'a'), printf('%.*c', 400000, 'a') || 'b')";
    let short = Bounds {
        timeout: Duration::from_millis(50),
        ..BOUNDS
    };
    let stopped = inspector.rows(stuck, &[], short).await;
    assert!(
        matches!(stopped, Err(StateError::TooSlow { .. })),
        "{stopped:?}"
    );
}

#[tokio::test]
async fn nothing_can_be_written_even_past_the_gate() {
    let (_dir, path, store) = database().await;
    let mut inspector = Inspector::open(&path).await.expect("open");
    for sql in [
        "WITH a AS (SELECT 1) DELETE FROM network_state",
        "WITH a AS (SELECT 1) INSERT INTO network_state VALUES ('a', 'b', 0)",
        "WITH a AS (SELECT 1) UPDATE network_state SET value = ''",
    ] {
        let refused = inspector.rows(sql, &[], BOUNDS).await;
        assert!(
            matches!(refused, Err(StateError::Query(_))),
            "{sql}: {refused:?}"
        );
    }
    for sql in ["SELECT load_extension('x')", "SELECT * FROM no_such_table"] {
        let refused = inspector.rows(sql, &[], BOUNDS).await;
        assert!(
            matches!(refused, Err(StateError::Query(_))),
            "{sql}: {refused:?}"
        );
    }
    let fact = store.fact("pod_cidr").await.expect("a read");
    assert_eq!(fact.as_deref(), Some("10.1.0.0/24"));
}

#[tokio::test]
async fn a_held_state_does_not_move_nor_hold_the_writer_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("quilt.db");
    let (_store, desired, _observed) = Store::open(&path).await.expect("a database");
    let mut inspector = Inspector::open(&path).await.expect("open");
    inspector.hold_still().await.expect("a read transaction");
    desired.set_pod_cidr("a".into()).await.expect("a write");
    let sql = "SELECT count(*) FROM network_state";
    let (rows, _) = inspector.rows(sql, &[], BOUNDS).await.expect("rows");
    assert_eq!(rows.rows, [[Value::Integer(0)]]);
    inspector.close().await;
    let mut inspector = Inspector::open(&path).await.expect("open");
    let (rows, _) = inspector.rows(sql, &[], BOUNDS).await.expect("rows");
    assert_eq!(rows.rows, [[Value::Integer(1)]]);
}

#[tokio::test]
async fn what_is_no_database_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("quilt.db");
    assert!(Inspector::open(&path).await.is_err());
    assert!(!path.exists(), "nothing is made by looking");
    std::fs::write(&path, "this is text and no database at all").expect("a file");
    let refused = Inspector::open(&path).await.map(drop);
    assert!(
        matches!(refused, Err(StateError::Open { .. })),
        "{refused:?}"
    );
}
