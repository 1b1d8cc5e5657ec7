//! A database that may not grow: SQLite answers as on a full disk.

use super::*;
use crate::id::SandboxId;
use crate::lifecycle::spec::SandboxSpec;
use crate::state::sandbox::SandboxFilter;
use crate::state::{DesiredWriter, ObservedWriter, Store};

#[test]
fn damage_is_not_forgotten_for_a_full_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("quilt.db");
    let storage = Storage::new(&path);
    assert_eq!(storage.problem(), None);
    let error = storage.failed("record a pod", Trouble::Full, "disk is full".into());
    let text = error.to_string();
    assert!(
        text.contains("record a pod") && text.contains("quilt.db"),
        "{text}"
    );
    assert!(text.contains("free some space"), "{text}");
    assert!(storage.may_recover());
    let _error = storage.failed("record a pod", Trouble::Damaged, "malformed".into());
    let _error = storage.failed("record a pod", Trouble::Full, "full".into());
    assert!(!storage.may_recover());
    assert!(storage.problem().expect("a problem").contains("restart"));
    assert!(Mark::of(&path).read().is_some(), "the next start knows");
}

/// Says how many pages the database may have; it never gets smaller than it is.
async fn limit(observed: &ObservedWriter, pages: i64) {
    let limited = observed.0.write("limit the database", move |tx| {
        Box::pin(async move {
            let sql = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"));
            let rows = sqlx::query(sql).fetch_all(&mut tx.connection).await;
            rows.map(drop).map_err(during("limit the database"))
        })
    });
    limited.await.expect("a limit");
}

async fn run(desired: &DesiredWriter, name: String) -> Result<SandboxId, StateError> {
    let spec = SandboxSpec {
        uid: name.clone(),
        // More than a page, so that no free place will do.
        hostname: "h".repeat(5000),
        name,
        ..Default::default()
    };
    desired.run_sandbox(SandboxId::random(), spec, None).await
}

#[tokio::test]
async fn a_full_disk_refuses_writes_by_name_reads_go_on_and_room_ends_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("quilt.db");
    let (store, desired, observed) = Store::open(&path).await.expect("a database");
    let kept = run(&desired, "before".into()).await.expect("a sandbox");
    limit(&observed, 1).await;
    // Together, so that they share transactions: not one of them may be half kept.
    let together = (0..100).map(|number| run(&desired, format!("pod-{number}")));
    for result in futures_util::future::join_all(together).await {
        let error = result.expect_err("there is no room");
        assert_eq!(error.trouble(), Some(Trouble::Full), "{error}");
        assert!(error.to_string().contains("quilt.db"), "{error}");
    }
    // A trial that needs no new page may end the trouble at any moment; the next write finds it.
    let mut problem = None;
    for number in 0..100 {
        let refused = run(&desired, format!("more-{number}")).await;
        refused.expect_err("there is no room");
        problem = store.storage_problem();
        if problem.is_some() {
            break;
        }
    }
    let problem = problem.expect("a problem");
    assert!(problem.contains("the disk is full"), "{problem}");
    let everything = store.all_sandbox_ids().await.expect("reads go on");
    assert_eq!(everything, std::slice::from_ref(&kept));
    assert!(store.sandboxes(&SandboxFilter::default()).await.is_ok());

    limit(&observed, 1_000_000).await;
    let recovered = async {
        while store.storage_problem().is_some() {
            tokio::task::yield_now().await;
        }
    };
    let bound = std::time::Duration::from_secs(20);
    tokio::time::timeout(bound, recovered)
        .await
        .expect("it goes on by itself");
    let later = run(&desired, "later".into()).await.expect("a sandbox");
    let mut everything = store.all_sandbox_ids().await.expect("ids");
    everything.sort();
    let mut expected = vec![kept, later];
    expected.sort();
    assert_eq!(everything, expected);
}
