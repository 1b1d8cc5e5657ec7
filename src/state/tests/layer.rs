//! Layers and who holds them.

use super::*;

impl Engine {
    async fn ask(&self) {
        let asked = self
            .desired
            .request_pull(&self.store, "one".into(), pull::Secret::default());
        asked.await.expect("a pull");
    }

    async fn expect(&self, chain: &[&str]) {
        let layer = |(index, chain_id): (usize, &&str)| NewLayer {
            chain_id: (*chain_id).into(),
            parent: (index > 0).then(|| chain[index - 1].to_owned()),
            diff_id: "d".into(),
            digest: "b".into(),
        };
        let layers = chain.iter().enumerate().map(layer).collect();
        let expected = self.observed.expect_layers("one".into(), layers).await;
        assert!(expected.expect("rows"));
    }

    async fn present(&self, chain_id: &str) {
        let layer = PresentLayer {
            chain_id: chain_id.into(),
            seal: "s".into(),
            ..Default::default()
        };
        self.observed.layer_present(layer).await.expect("a row");
    }

    async fn fails(&self, kept_until: i64) {
        let why = ("other", "no".into());
        let failed = self
            .observed
            .pull_failed("one".into(), why, kept_until, done("one"));
        failed.await.expect("a row");
    }

    async fn collect(&self) {
        self.observed.collect_layers().await.expect("collected");
    }

    async fn layers(&self) -> Vec<String> {
        let sql = "SELECT chain_id || ' ' || state FROM layers ORDER BY chain_id";
        let rows = sqlx::query_scalar(sql).fetch_all(&self.store.readers);
        rows.await.expect("layers")
    }
}

#[tokio::test]
async fn layers_of_a_failed_pull_wait_for_a_retry_and_go_when_nobody_comes() {
    let engine = engine().await;
    engine.ask().await;
    engine.expect(&["a", "b"]).await;
    engine.present("a").await;
    // While the pull is under way nothing takes its layers, not even another's end.
    engine.collect().await;
    assert_eq!(engine.layers().await, ["a present", "b fetching"]);
    engine.fails(now_ns() + 3_600_000_000_000).await;
    let layers = engine.layers().await;
    assert_eq!(layers, ["a present", "b removing"], "what it has got waits");
    engine.collect().await;
    assert_eq!(engine.layers().await[0], "a present", "not yet");
    let due = engine.store.next_unused_layer().await.expect("a read");
    assert!(due.is_some_and(|due| due > now_ns()));
    engine.ask().await;
    engine.fails(0).await;
    let layers = engine.layers().await;
    assert_eq!(layers[0], "a present", "that try has held nothing");
    engine.ask().await;
    engine.expect(&["a"]).await;
    engine.fails(1).await;
    assert_eq!(engine.layers().await[0], "a removing", "its time is over");
}

#[tokio::test]
async fn an_image_ends_the_wait_of_its_layers() {
    let engine = engine().await;
    engine.ask().await;
    engine.expect(&["a", "b"]).await;
    engine.present("a").await;
    engine.fails(now_ns() + 3_600_000_000_000).await;
    let cleanups = engine.store.pending_cleanups().await.expect("tasks");
    for id in cleanups {
        let task = engine.store.cleanup_task(id).await.expect("a read");
        let done = engine.observed.cleanup_completed(id, task.expect("a task"));
        done.await.expect("completed");
    }
    engine.image("sha256:1", &["a", "b"], "one").await;
    let due = engine.store.next_unused_layer().await.expect("a read");
    assert_eq!(due, None);
    let removed = engine.desired.remove_image("sha256:1".into()).await;
    assert!(removed.expect("a wish"));
    let removed = engine.observed.image_removed("sha256:1".into()).await;
    removed.expect("removed");
    assert_eq!(engine.layers().await, ["a removing", "b removing"]);
}

#[tokio::test]
async fn a_damaged_layer_is_there_and_does_not_count_until_it_is_whole_again() {
    let engine = engine().await;
    engine.image("sha256:1", &["a"], "one").await;
    let check = async |damage: Option<&str>| {
        let damage = damage.map(str::to_owned);
        let checked = engine.observed.layer_checked("a".into(), damage, None);
        checked.await.expect("a row");
    };
    let counts = async || engine.store.has_layer("a").await.expect("a read");
    check(Some("/x is gone")).await;
    assert!(!counts().await);
    assert!(engine.store.is_layer_present("a").await.expect("a read"));
    let layers = engine.store.layers_of("a").await.expect("layers");
    assert_eq!(layers[0].damage.as_deref(), Some("/x is gone"));
    assert!(layers[0].checked_at.is_some());
    engine.present("a").await;
    assert!(counts().await, "fetched again");
    check(Some("/x is gone")).await;
    check(None).await;
    assert!(counts().await, "whole after all");
}
