//! `quiltd db …`: the database as a file, beside a living daemon and after its end.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use crate::support::cri::*;
use crate::support::operator::{column, complained, said};
use crate::support::pod::{exited, shell};
use crate::support::{Node, registry};

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Where a node's database is.
fn database(node: &Node) -> PathBuf {
    node.names.root().join("quilt.db")
}

/// Writes to a database that no daemon has open.
async fn write(path: &Path, sql: &'static str) {
    let options = SqliteConnectOptions::new().filename(path);
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
async fn queries_read_and_nothing_that_is_asked_hurts_the_daemon() {
    let node = Node::start().await;
    let pod = node.pod("asked").await;
    let found = node.ask(&["db", "query", "SELECT id, state, attempt FROM v_pods"]);
    let wanted = serde_json::json!([{"id": pod.id, "state": "ready", "attempt": 0}]);
    assert_eq!(found, wanted);
    let table = said(&node.operate(&["db", "query", "SELECT 1 AS a, 'x' AS b, NULL AS c"]));
    assert_eq!(table, "a  b  c\n1  x\n");

    let endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)";
    for (sql, why) in [
        ("DELETE FROM sandboxes", "DELETE is not allowed"),
        ("SELECT 1; DELETE FROM sandboxes", "one statement at a time"),
        ("PRAGMA query_only = 0", "PRAGMA is not allowed"),
        ("ATTACH '/etc/passwd' AS x", "ATTACH is not allowed"),
        ("WITH a AS (SELECT 1) DELETE FROM sandboxes", "readonly"),
        ("SELECT * FROM no_such_table", "no such table"),
        ("SELECT load_extension('/no/such')", "not authorized"),
        ("SELECT length(randomblob(900000000))", "out of memory"),
        (
            &format!("{endless} SELECT max(x) FROM c"),
            "stopped after 1s",
        ),
        (
            &format!("{endless} SELECT x FROM c"),
            "cut after 100000 rows",
        ),
    ] {
        let output = node.operate(&["db", "query", sql, "--timeout", "1"]);
        let complaint = complained(&output);
        assert!(complaint.contains(why), "{sql}: {complaint}");
        node.cri.version().await.expect("the daemon answers");
    }
    // What runs until memory or time is out ends as well, whichever comes first.
    let greedy = format!("{endless} SELECT x FROM c ORDER BY hex(randomblob(1000))");
    complained(&node.operate(&["db", "query", &greedy, "--timeout", "2"]));
    let status = node
        .cri
        .pod_status(&pod.id)
        .await
        .expect("PodSandboxStatus");
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
}

#[tokio::test]
async fn a_dump_has_every_row_and_no_secret() {
    let mut node = Node::start().await;
    let secret = "correct-horse-battery-staple";
    let auth = AuthConfig {
        username: "operator".into(),
        password: secret.into(),
        identity_token: format!("{secret}-identity"),
        registry_token: format!("{secret}-registry"),
        ..Default::default()
    };
    let good = registry().image("busybox:latest");
    let bad = registry().image("no-such-image:latest");
    for (name, works) in [(&good, true), (&bad, false)] {
        let message = PullImageRequest {
            image: Some(ImageSpec {
                image: name.clone(),
                ..Default::default()
            }),
            auth: Some(auth.clone()),
            ..Default::default()
        };
        let pulled = node.cri.image().pull_image(message).await;
        assert_eq!(pulled.is_ok(), works, "{pulled:?}");
    }
    let pod = node.pod("dumped").await;
    let dump = node.ask(&["db", "dump"]);
    assert_eq!(column(&dump["sandboxes"], "id"), [pod.id.as_str()]);
    let counts = node.ask(&["inventory"]);
    for (table, count) in counts.as_object().expect("counts") {
        // History goes on meanwhile.
        if ["sandboxes", "images", "layers", "image_references"].contains(&table.as_str()) {
            let rows = dump[table].as_array().map(Vec::len);
            assert_eq!(rows, count.as_u64().map(|n| n as usize), "{table}");
        }
        assert!(dump[table].is_array(), "{table} is in the dump");
    }
    let one = node.ask(&["db", "dump", "--table", "images"]);
    assert_eq!(one.as_object().map(serde_json::Map::len), Some(1));
    let complaint = complained(&node.operate(&["db", "dump", "--table", "x\"; --"]));
    assert!(complaint.contains("there is no table"), "{complaint}");

    assert!(!dump.to_string().contains(secret));
    // Nor in pages that no row uses any more, nor in the log.
    node.kill();
    for file in ["quilt.db", "quilt.db-wal"] {
        let bytes = fs::read(node.names.root().join(file)).expect("a file of the daemon");
        let found = bytes
            .windows(secret.len())
            .any(|bytes| bytes == secret.as_bytes());
        assert!(!found, "a secret is in {file}");
    }
    node.restart().await;
}

#[tokio::test]
async fn backups_while_pods_come_and_go_are_each_sound_and_the_daemon_goes_on() {
    let node = Node::start().await;
    let first = node.pod("churn").await;
    let churn = async {
        for _ in 0..6 {
            let pod = node.pod("churn").await;
            let id = pod.run(&shell("main", "exit 0")).await;
            exited(&node.cri, &id).await;
            node.cri
                .remove_pod(&pod.id)
                .await
                .expect("RemovePodSandbox");
        }
    };
    let state = node.names.state();
    let copies: Vec<_> = (0..6).map(|n| node.path(&format!("copy-{n}"))).collect();
    let backups = async {
        for copy in &copies {
            fs::create_dir(copy).expect("a directory of the test");
            let file = copy.join("quilt.db");
            let mut command = tokio::process::Command::new(crate::support::node::quiltd());
            command.args(["db", "backup"]).arg(&file);
            let output = command.arg("--state").arg(&state).output();
            said(&output.await.expect("quiltd runs"));
        }
    };
    tokio::join!(churn, backups);
    for copy in &copies {
        let check = node.ask(&["db", "check", "--root", &text(copy)]);
        assert_eq!(check["problems"], serde_json::json!([]));
        let pods = node.ask(&["pods", "--root", &text(copy)]);
        assert!(column(&pods, "id").contains(&first.id));
        let file = copy.join("quilt.db");
        let mode = fs::metadata(&file).expect("a copy").mode();
        assert_eq!(mode & 0o777, 0o600);
        let complaint = complained(&node.operate(&["db", "backup", &text(&file)]));
        assert!(complaint.contains("is there already"), "{complaint}");
    }
    assert_eq!(
        node.ask(&["db", "check"])["problems"],
        serde_json::json!([])
    );
}

#[tokio::test]
async fn a_backup_that_is_put_back_finds_the_pods_it_knew_still_running() {
    let mut node = Node::start().await;
    let pod = node.pod("kept").await;
    let id = pod.idle("main").await;
    let file = node.path("backup.db");
    said(&node.operate(&["db", "backup", &text(&file)]));

    let complaint = complained(&node.operate(&["db", "restore", &text(&file)]));
    assert!(complaint.contains("end the daemon first"), "{complaint}");
    node.kill();
    write(&database(&node), "DELETE FROM events").await;
    let restored = node.ask(&["db", "restore", &text(&file)]);
    assert_eq!(restored["changed"], true);
    let kept = node.names.root().join("quilt.db.bak");
    assert_eq!(restored["kept"], text(&kept));
    assert!(kept.exists() && !node.names.root().join("quilt.db-wal").exists());
    let again = node.ask(&["db", "restore", &text(&file)]);
    assert_eq!(again["changed"], false);

    node.restart().await;
    let status = node.cri.status(&id).await.expect("ContainerStatus");
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    assert_eq!(node.cri.output(&id, "echo alive").await, "alive");
    let events = node.ask(&["events", "--object", &pod.id]);
    assert!(column(&events, "kind").contains(&"ready".into()));
}

#[tokio::test]
async fn what_is_no_backup_is_refused_and_the_database_stays() {
    let mut node = Node::start().await;
    let pod = node.pod("kept").await;
    let file = node.path("backup.db");
    said(&node.operate(&["db", "backup", &text(&file)]));
    node.terminate();
    let noise = node.path("noise.db");
    fs::write(&noise, "this is no database").expect("a file of the test");
    let torn = node.path("torn.db");
    let bytes = fs::read(&file).expect("a copy");
    fs::write(&torn, &bytes[..bytes.len() / 2]).expect("a file of the test");
    for bad in [noise, torn, node.path("absent.db")] {
        let complaint = complained(&node.operate(&["db", "restore", &text(&bad)]));
        assert!(complaint.contains("cannot be used"), "{complaint}");
    }
    assert!(!node.names.root().join("quilt.db.bak").exists());
    node.restart().await;
    node.cri
        .pod_status(&pod.id)
        .await
        .expect("PodSandboxStatus");
}

#[tokio::test]
async fn a_newer_database_is_refused_with_both_versions_until_a_backup_is_put_back() {
    let mut node = Node::start().await;
    let file = node.path("backup.db");
    said(&node.operate(&["db", "backup", &text(&file)]));
    let ours = node.ask(&["db", "check"])["newest_known_version"].to_string();
    node.terminate();
    write(
        &database(&node),
        "INSERT INTO _sqlx_migrations SELECT 9999, 'later', installed_on, 1, x'00', 0
         FROM _sqlx_migrations LIMIT 1",
    )
    .await;
    let refusal = node.refused(&mut node.serve());
    let mut complaints = vec![refusal];
    for command in [&["ps"][..], &["db", "query", "SELECT 1"], &["db", "dump"]] {
        complaints.push(complained(&node.operate(command)));
    }
    for complaint in complaints {
        assert!(complaint.contains("schema version 9999"), "{complaint}");
        assert!(complaint.contains(&format!("up to {ours}")), "{complaint}");
        assert!(complaint.contains("db restore"), "{complaint}");
    }
    let output = node.operate(&["db", "check"]);
    let found = String::from_utf8_lossy(&output.stdout).into_owned();
    complained(&output);
    assert!(found.contains("schema version is 9999"), "{found}");
    said(&node.operate(&["db", "restore", &text(&file)]));
    node.restart().await;
}

#[tokio::test]
async fn a_reset_wants_the_daemon_ended_and_to_be_meant() {
    let mut node = Node::start().await;
    let image = registry().image("busybox:latest");
    node.cri.pull(&image).await.expect("PullImage");
    let complaint = complained(&node.operate(&["db", "reset", "--force"]));
    assert!(complaint.contains("end the daemon first"), "{complaint}");
    node.terminate();
    let mut command = std::process::Command::new(crate::support::node::quiltd());
    command
        .args(["db", "reset", "--state"])
        .arg(node.names.state());
    let output = command.stdin(std::process::Stdio::null()).output();
    let complaint = complained(&output.expect("quiltd runs"));
    assert!(complaint.contains("--force"), "{complaint}");
    assert!(database(&node).exists());
    let removed = node.ask(&["db", "reset", "--force"]);
    assert_eq!(removed["removed"][0], text(&database(&node)));
    let left = fs::read_dir(node.names.root()).expect("the root");
    let left = left.map(|entry| entry.expect("an entry").file_name());
    let left: Vec<_> = left
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    assert!(
        !left.iter().any(|name| name.starts_with("quilt.db")),
        "{left:?}"
    );
    node.restart().await;
    // What is on the disk is known again; what had happened is not.
    let images = node.ask(&["images"]);
    assert_eq!(images.as_array().map(Vec::len), Some(1), "{images}");
    let events = node.ask(&["events"]);
    let kinds: Vec<_> = events.as_array().expect("rows").iter().collect();
    assert!(
        kinds.iter().all(|event| event["kind"] != "pulled"),
        "{events}"
    );
}

#[tokio::test]
async fn a_check_says_what_is_wrong_and_fails() {
    let mut node = Node::start().await;
    said(&node.operate(&["db", "check"]));
    node.terminate();
    let copy = node.path("broken");
    fs::create_dir(&copy).expect("a directory of the test");
    let broken = copy.join("quilt.db");
    said(&node.operate(&["db", "backup", &text(&broken)]));
    write(
        &broken,
        "PRAGMA foreign_keys = off; INSERT INTO image_references VALUES ('a', 'b', 'tag', 0)",
    )
    .await;
    let output = node.operate(&["db", "check", "--root", &text(&copy)]);
    let found = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        found.contains("image_references refers to a row of images"),
        "{found}"
    );
    node.restart().await;
}
