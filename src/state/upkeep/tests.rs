//! Real files, with the daemon's own writer where it matters.

use super::*;
use crate::state::{DesiredWriter, Store};

const LONG: Duration = Duration::from_secs(60);

/// Makes a database one of a later program.
const NEWER: &str = "INSERT INTO _sqlx_migrations
    SELECT 9999, 'later', installed_on, 1, x'00', 0 FROM _sqlx_migrations LIMIT 1";

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a directory"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn database(&self) -> PathBuf {
        self.path("quilt.db")
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).expect("a directory");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("an entry").file_name())
            .map(|name| name.into_string().expect("a name"))
            .collect();
        names.sort();
        names
    }

    /// A database in which one fact stands, closed in an orderly way.
    async fn write(&self, name: &str, fact: &str) {
        let options = SqliteConnectOptions::new()
            .filename(self.path(name))
            .journal_mode(sqlx::sqlite::SqliteJournalMode::Wal)
            .create_if_missing(true);
        let mut connection = SqliteConnection::connect_with(&options)
            .await
            .expect("a database");
        schema::MIGRATOR
            .run(&mut connection)
            .await
            .expect("the schema");
        sqlx::query("INSERT INTO network_state VALUES ('pod_cidr', ?, 0)")
            .bind(fact)
            .execute(&mut connection)
            .await
            .expect("a fact");
        connection.close().await.expect("a close");
    }

    async fn open(&self, name: &str) -> (Store, DesiredWriter) {
        let (store, desired, _observed) = Store::open(&self.path(name)).await.expect("a database");
        (store, desired)
    }

    async fn fact(&self, name: &str) -> String {
        let mut inspector = Inspector::open(&self.path(name)).await.expect("a database");
        let fact = sqlx::query_scalar("SELECT value FROM network_state")
            .fetch_one(inspector.connection())
            .await
            .expect("a fact");
        inspector.close().await;
        fact
    }
}

#[tokio::test]
async fn a_backup_is_whole_private_and_never_overwrites() {
    let place = Place::new();
    let (_store, desired) = place.open("quilt.db").await;
    desired.set_pod_cidr("one".into()).await.expect("a fact");
    let file = place.path("copy.db");
    let bytes = backup(&place.database(), &file, LONG)
        .await
        .expect("a copy");
    let meta = fs::metadata(&file).expect("a file");
    assert_eq!((meta.len(), meta.mode() & 0o777), (bytes, 0o600));
    assert_eq!(place.fact("copy.db").await, "one");

    desired.set_pod_cidr("two".into()).await.expect("a fact");
    let refused = backup(&place.database(), &file, LONG).await;
    assert!(
        matches!(refused, Err(StateError::Exists { .. })),
        "{refused:?}"
    );
    assert_eq!(place.fact("copy.db").await, "one");
    let left: Vec<_> = place.names();
    let partial = left.iter().find(|name| name.contains("partial"));
    assert_eq!(partial, None);
}

#[tokio::test]
async fn a_backup_into_a_directory_that_is_not_there_leaves_nothing() {
    let place = Place::new();
    place.write("quilt.db", "one").await;
    let file = place.path("no/such/copy.db");
    assert!(backup(&place.database(), &file, LONG).await.is_err());
    let names = place.names();
    assert!(names.iter().all(|name| name.starts_with("quilt.db")));
}

#[tokio::test]
async fn a_restore_keeps_what_was_there_and_can_be_repeated() {
    let place = Place::new();
    place.write("old.db", "old").await;
    place.write("quilt.db", "new").await;
    let restored = restore(&place.database(), &place.path("old.db"), LONG)
        .await
        .expect("a restore");
    assert_eq!(restored.kept, Some(place.path("quilt.db.bak")));
    assert!(restored.changed);
    assert_eq!(place.fact("quilt.db").await, "old");
    assert_eq!(place.fact("quilt.db.bak").await, "new");

    // Again: it is there already, and what was kept stays.
    let again = restore(&place.database(), &place.path("old.db"), LONG)
        .await
        .expect("a restore");
    assert_eq!((again.kept, again.changed), (None, false));
    assert_eq!(place.fact("quilt.db.bak").await, "new");

    // Another one: nothing that was kept is lost.
    place.write("third.db", "third").await;
    let restored = restore(&place.database(), &place.path("third.db"), LONG)
        .await
        .expect("a restore");
    assert_eq!(restored.kept, Some(place.path("quilt.db.bak.1")));
    assert_eq!(place.fact("quilt.db").await, "third");
    assert_eq!(place.fact("quilt.db.bak.1").await, "old");
    assert_eq!(place.fact("quilt.db.bak").await, "new");
}

#[tokio::test]
async fn what_is_only_in_the_log_of_a_killed_daemon_is_kept_and_never_applied_to_the_new_file() {
    let place = Place::new();
    place.write("old.db", "old").await;
    // A daemon that was killed: the files as they are while it runs, and nobody who has them open.
    let (store, desired) = place.open("living.db").await;
    desired.set_pod_cidr("logged".into()).await.expect("a fact");
    for suffix in ["", "-wal"] {
        let from = beside(&place.path("living.db"), suffix);
        fs::copy(&from, beside(&place.database(), suffix)).expect("a copy");
    }
    assert!(fs::metadata(beside(&place.database(), "-wal")).is_ok_and(|meta| meta.len() > 0));
    drop((store, desired));
    restore(&place.database(), &place.path("old.db"), LONG)
        .await
        .expect("a restore");
    assert!(!beside(&place.database(), "-wal").exists());
    assert_eq!(place.fact("quilt.db").await, "old");
    assert_eq!(place.fact("quilt.db.bak").await, "logged");
}

#[tokio::test]
async fn a_restore_that_was_broken_off_goes_on_where_it_was() {
    let place = Place::new();
    place.write("old.db", "old").await;
    place.write("quilt.db", "new").await;
    // As after a crash between the second name and the rename.
    fs::hard_link(place.database(), place.path("quilt.db.bak")).expect("a link");
    fs::write(place.path("quilt.db.restoring"), "half a copy").expect("a file");
    let restored = restore(&place.database(), &place.path("old.db"), LONG)
        .await
        .expect("a restore");
    assert_eq!(restored.kept, Some(place.path("quilt.db.bak")));
    assert_eq!(place.fact("quilt.db").await, "old");
    assert_eq!(place.fact("quilt.db.bak").await, "new");
    let restoring = place.names().into_iter().find(|n| n.contains("restoring"));
    assert_eq!(restoring, None);
}

#[tokio::test]
async fn a_damaged_database_is_kept_with_its_log() {
    let place = Place::new();
    place.write("old.db", "old").await;
    fs::write(place.database(), [7_u8; 8192]).expect("a file");
    fs::write(beside(&place.database(), "-wal"), "a log").expect("a file");
    restore(&place.database(), &place.path("old.db"), LONG)
        .await
        .expect("a restore");
    assert_eq!(place.fact("quilt.db").await, "old");
    let kept = fs::read(place.path("quilt.db.bak")).expect("a file");
    assert_eq!(kept, [7_u8; 8192]);
    let log = fs::read(place.path("quilt.db.bak-wal")).expect("a file");
    assert_eq!(log, b"a log");
}

#[tokio::test]
async fn what_is_no_sound_database_of_ours_is_not_restored() {
    let place = Place::new();
    place.write("quilt.db", "kept").await;
    let before = fs::read(place.database()).expect("a file");
    fs::write(place.path("text"), "no database").expect("a file");
    place.write("newer.db", "newer").await;
    execute(&place.path("newer.db"), NEWER).await;
    execute(&place.path("other.db"), "CREATE TABLE a (b)").await;
    place.write("broken.db", "broken").await;
    execute(
        &place.path("broken.db"),
        "PRAGMA foreign_keys = off; INSERT INTO image_references VALUES ('a', 'b', 'tag', 0)",
    )
    .await;
    place.write("damaged.db", "damaged").await;
    let mut bytes = fs::read(place.path("damaged.db")).expect("a file");
    let half = bytes.len() / 2;
    bytes[4096..half].fill(0xff);
    fs::write(place.path("damaged.db"), bytes).expect("a file");
    for (name, why) in [
        ("text", "not a database"),
        ("newer.db", "schema version is 9999"),
        ("other.db", "no database of quiltd"),
        ("broken.db", "refers to a row of images"),
        ("damaged.db", "damaged.db cannot be used"),
        ("absent", "No such file"),
        ("quilt.db", "the database itself"),
    ] {
        let refused = restore(&place.database(), &place.path(name), LONG).await;
        let text = with_causes(&refused.expect_err(name));
        assert!(text.contains(why), "{name}: {text}");
    }
    assert!(
        fs::read(place.database()).expect("a file") == before,
        "it changed"
    );
    assert!(!place.path("quilt.db.bak").exists());
}

async fn execute(path: &Path, sql: &'static str) {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true);
    let mut connection = SqliteConnection::connect_with(&options)
        .await
        .expect("a database");
    sqlx::raw_sql(sql)
        .execute(&mut connection)
        .await
        .expect("a statement");
    connection.close().await.expect("a close");
}

#[tokio::test]
async fn a_check_finds_nothing_in_a_sound_database() {
    let place = Place::new();
    let (_store, _desired) = place.open("quilt.db").await;
    let findings = check(&place.database(), LONG).await.expect("a check");
    assert_eq!(findings.problems, Vec::<String>::new());
    assert_eq!(findings.version, schema::newest_known());
}

#[tokio::test]
async fn a_newer_database_is_refused_by_every_way_in() {
    let place = Place::new();
    place.write("quilt.db", "x").await;
    execute(&place.database(), NEWER).await;
    let before = fs::read(place.database()).expect("a file");
    let serve = Store::open(&place.database()).await.map(drop);
    let read = Inspector::open(&place.database()).await.map(drop);
    let copy = backup(&place.database(), &place.path("copy"), LONG)
        .await
        .map(drop);
    for refused in [serve, read, copy] {
        let error = refused.expect_err("newer");
        assert!(
            matches!(error, StateError::Newer { found: 9999, .. }),
            "{error}"
        );
        let text = error.to_string();
        let known = format!("up to {}", schema::newest_known());
        assert!(text.contains("9999") && text.contains(&known), "{text}");
    }
    assert!(
        fs::read(place.database()).expect("a file") == before,
        "it changed"
    );
}

#[tokio::test]
async fn a_reset_removes_the_database_and_its_side_files_only() {
    let place = Place::new();
    place.write("quilt.db", "x").await;
    for name in ["quilt.db-wal", "quilt.db-shm", "quilt.db.bak", "lock"] {
        fs::write(place.path(name), "x").expect("a file");
    }
    let removed = reset(&place.database()).expect("a reset");
    assert_eq!(removed.len(), 3);
    assert_eq!(place.names(), ["lock", "quilt.db.bak"]);
    assert_eq!(
        reset(&place.database()).expect("a reset"),
        [] as [PathBuf; 0]
    );
}
