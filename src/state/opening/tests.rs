//! What is found out about real files, and the decision for every combination.

use super::*;

fn facts(found: Found) -> Facts {
    Facts {
        found,
        mark: None,
        side_files: false,
        leftovers: false,
    }
}

#[test]
fn every_combination_is_decided_and_nothing_that_exists_is_dropped() {
    let all = [
        Found::Absent,
        Found::Empty,
        Found::Sound,
        Found::Damaged("bad".into()),
        Found::Unusable("no".into()),
    ];
    for found in all {
        for bits in 0..8_u8 {
            let facts = Facts {
                found: found.clone(),
                mark: (bits & 1 != 0).then(|| "marked".to_owned()),
                side_files: bits & 2 != 0,
                leftovers: bits & 4 != 0,
            };
            match decide(facts.clone()) {
                Opening::Refuse(_) => assert!(matches!(found, Found::Unusable(_)), "{facts:?}"),
                Opening::Open => {
                    assert!(facts.mark.is_none(), "{facts:?}");
                    let first = !facts.leftovers && !facts.side_files;
                    assert!(found == Found::Sound || first, "{facts:?}");
                }
                Opening::Rebuild { set_aside, .. } => {
                    let sound = found == Found::Sound && facts.mark.is_none();
                    assert!(!sound, "{facts:?}");
                    let exists = found != Found::Absent || facts.side_files;
                    assert_eq!(set_aside, exists, "{facts:?}");
                }
            }
        }
    }
    let why = |facts| match decide(facts) {
        Opening::Rebuild { why, .. } => why,
        other => panic!("{other:?}"),
    };
    let missing = Facts {
        leftovers: true,
        ..facts(Found::Absent)
    };
    assert_eq!(why(missing), "it is missing");
    assert_eq!(why(facts(Found::Damaged("bad page".into()))), "bad page");
}

async fn database(dir: &Path) -> PathBuf {
    let path = dir.join("quilt.db");
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true)
        .journal_mode(sqlx::sqlite::SqliteJournalMode::Wal);
    let connected = sqlx::ConnectOptions::connect(&options).await;
    let mut connection = connected.expect("a connection");
    let migrated = crate::state::schema::MIGRATOR.run(&mut connection).await;
    migrated.expect("a schema");
    connection.close().await.expect("closed");
    assert!(!side_file(&path, "-wal").exists());
    path
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::OpenOptions::new().write(true).open(path);
    file.and_then(|file| file.write_all_at(bytes, at))
        .expect("the file is there");
}

#[tokio::test]
async fn a_sound_file_is_told_from_every_kind_of_damage() {
    let dir = tempfile::tempdir().expect("a directory");
    let sound = database(dir.path()).await;
    assert_eq!(examine(&sound, true).await.found, Found::Sound);
    let bytes = std::fs::read(&sound).expect("a file");
    let copy = dir.path().join("copy.db");
    type Spoil = (&'static str, fn(&Path, u64));
    let spoils: [Spoil; 5] = [
        ("the head is overwritten", |path, _| {
            overwrite(path, 0, &[0xff; 100])
        }),
        ("half is cut off", |path, size| {
            let file = std::fs::OpenOptions::new().write(true).open(path);
            file.and_then(|file| file.set_len(size / 2)).expect("cut");
        }),
        ("it is a text", |path, _| {
            std::fs::write(path, "what was here?\n".repeat(1000)).expect("written");
        }),
        ("the schema's page is overwritten", |path, _| {
            overwrite(path, 100, &[0x5a; 2000]);
        }),
        ("all pages but the first are overwritten", |path, size| {
            let rest = usize::try_from(size).expect("a size") - 4096;
            overwrite(path, 4096, &vec![0x5a; rest]);
        }),
    ];
    for (what, spoil) in spoils {
        std::fs::write(&copy, &bytes).expect("a copy");
        spoil(&copy, bytes.len() as u64);
        let found = examine(&copy, true).await.found;
        assert!(matches!(found, Found::Damaged(_)), "{what}: {found:?}");
    }
}

#[tokio::test]
async fn a_database_that_does_not_know_its_schema_is_damaged_and_a_newer_one_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = database(dir.path()).await;
    let mut connection = connect(&path, false).await.expect("a connection");
    sqlx::query("INSERT INTO _sqlx_migrations VALUES (9999, 'later', 0, 1, x'00', 1)")
        .execute(&mut connection)
        .await
        .expect("a row");
    assert_eq!(examine(&path, true).await.found, Found::Sound);
    sqlx::query("DROP TABLE _sqlx_migrations")
        .execute(&mut connection)
        .await
        .expect("dropped");
    let found = examine(&path, true).await.found;
    assert!(matches!(found, Found::Damaged(_)), "{found:?}");
}

#[tokio::test]
async fn what_is_no_file_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("quilt.db");
    assert_eq!(examine(&path, false).await.found, Found::Absent);
    std::fs::write(&path, "").expect("a file");
    assert_eq!(examine(&path, false).await.found, Found::Empty);
    std::fs::remove_file(&path).expect("removed");
    std::fs::create_dir(&path).expect("a directory");
    let found = examine(&path, true).await.found;
    assert!(matches!(found, Found::Unusable(_)), "{found:?}");
}

#[tokio::test]
async fn what_is_set_aside_is_never_overwritten() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("quilt.db");
    let mut names = Vec::new();
    for content in ["one", "two", "three"] {
        std::fs::write(&path, content).expect("a file");
        std::fs::write(side_file(&path, "-wal"), content).expect("a file");
        names.push((set_aside(&path).await.expect("renamed"), content));
        assert!(!path.exists() && !side_file(&path, "-wal").exists());
    }
    for (name, content) in &names {
        assert_eq!(std::fs::read_to_string(name).expect("kept"), *content);
        let log = side_file(name, "-wal");
        assert_eq!(std::fs::read_to_string(log).expect("kept"), *content);
    }
    let mark = Mark::of(&path);
    mark.leave("because");
    mark.leave("not this one");
    assert_eq!(mark.read().as_deref(), Some("because"));
    mark.remove().expect("removed");
    assert_eq!(mark.read(), None);
}
