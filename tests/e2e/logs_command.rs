//! `quiltd logs`: what a container has written, with a daemon and without one, over rotated files.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::support::node::quiltd;
use crate::support::operator::{complained, said};
use crate::support::pod::{exited, shell};
use crate::support::{Node, container, eventually};

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Compresses a rotated log, as kubelet does.
fn compress(path: &Path) {
    let bytes = fs::read(path).expect("a rotated log");
    let mut gz = path.as_os_str().to_owned();
    gz.push(".gz");
    let mut encoder = GzEncoder::new(File::create(&gz).expect("a file"), Compression::fast());
    std::io::Write::write_all(&mut encoder, &bytes).expect("a file to write");
    encoder.finish().expect("a whole file");
    fs::remove_file(path).expect("a rotated log");
}

#[tokio::test]
async fn it_shows_what_was_written_with_a_daemon_and_without() {
    let mut node = Node::start().await;
    let pod = node.pod("shown").await;
    let script = "echo one; seq 1 9000 | tr -d '\\n'; echo; printf 'no end'";
    let config = shell("main", script);
    let id = pod.run(&config).await;
    exited(&node.cri, &id).await;
    let long: String = (1..=9000).map(|n| n.to_string()).collect();
    let whole = format!("one\n{long}\nno end");
    for alive in [true, false] {
        let output = node.operate(&["logs", &id]);
        assert_eq!(said(&output), whole, "alive: {alive}");
        assert_eq!(errors(&output), "");
        let named = node.operate(&["logs", "--tail", "1", "e2e/shown/main"]);
        assert_eq!(said(&named), "no end");
        let two = said(&node.operate(&["logs", "--tail=2", &id[..12]]));
        assert_eq!(two, format!("{long}\nno end"));
        // The pod has only one container, and that has ended.
        let pods = said(&node.operate(&["logs", "-f", "--tail=0", &pod.id]));
        assert_eq!(pods, "");
        if alive {
            node.kill();
        }
    }
    node.restart().await;
}

#[tokio::test]
async fn it_knows_times() {
    let node = Node::start().await;
    let pod = node.pod("times").await;
    let config = shell("main", "echo early; sleep 0.01; echo late");
    let id = pod.run(&config).await;
    exited(&node.cri, &id).await;
    let lines = pod.log(&config);
    let both = pod.run(&shell("both", "echo out; echo warning >&2")).await;
    exited(&node.cri, &both).await;
    let output = node.operate(&["logs", "e2e/times/both"]);
    assert_eq!(
        (said(&output), errors(&output)),
        ("out\n".into(), "warning\n".into())
    );
    let late = &lines[1].time;
    let shown = said(&node.operate(&["logs", "-t", "--since", late, &id]));
    assert_eq!(shown, format!("{late} late\n"));
    assert_eq!(
        said(&node.operate(&["logs", "--since=1h", &id])),
        "early\nlate\n"
    );
    assert_eq!(said(&node.operate(&["logs", "--since=0", &id])), "");
    let bad = complained(&node.operate(&["logs", "--since=yesterday", &id]));
    assert!(bad.contains("1h30m"), "{bad}");
}

#[tokio::test]
async fn it_says_why_there_is_nothing_to_show() {
    let node = Node::start().await;
    let pod = node.pod("nothing").await;
    let nobody = complained(&node.operate(&["logs", "nobody"]));
    assert!(
        nobody.contains("no container is called \"nobody\""),
        "{nobody}"
    );
    let none = complained(&node.operate(&["logs", &pod.id]));
    assert!(none.contains("has no containers"), "{none}");
    let config = shell("main", "echo once");
    let id = pod.create(&config).await;
    let created = complained(&node.operate(&["logs", &id]));
    assert!(
        created.contains("has no log") && created.contains("main/0.log"),
        "{created}"
    );
    let mut silent = shell("silent", "echo nobody hears this");
    silent.log_path = String::new();
    let silent = pod.run(&silent).await;
    let discarded = complained(&node.operate(&["logs", &silent]));
    assert!(discarded.contains("its output is not kept"), "{discarded}");
    let several = complained(&node.operate(&["logs", "nothing"]));
    assert!(
        several.contains("several containers") && several.contains(&id),
        "{several}"
    );
    node.cri.remove(&id).await.expect("RemoveContainer");
    let gone = complained(&node.operate(&["logs", &id]));
    assert!(gone.contains("is gone"), "{gone}");
}

/// A `quiltd logs -f` whose output goes to a file; ended with the test.
struct Following {
    child: Child,
    out: PathBuf,
}

impl Following {
    fn start(node: &Node, id: &str, name: &str) -> Self {
        let out = node.path(name);
        let child = Command::new(quiltd())
            .args(["logs", "-f", id, "--state"])
            .arg(node.names.state())
            .stdin(Stdio::null())
            .stdout(File::create(&out).expect("a file"))
            .spawn()
            .expect("quiltd starts");
        Self { child, out }
    }

    fn shown(&self) -> String {
        fs::read_to_string(&self.out).expect("its output")
    }

    async fn ended(&mut self) -> bool {
        let child = &mut self.child;
        eventually("it ends with the container", || {
            let ended = child.try_wait().expect("a child of this process");
            async move { ended.map(|status| status.success()) }
        })
        .await
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn numbers(upto: usize) -> String {
    (1..=upto).map(|number| format!("{number}\n")).collect()
}

#[tokio::test]
async fn following_goes_over_rotations_and_ends_with_the_container() {
    let node = Node::start().await;
    let pod = node.pod("followed").await;
    let script = "n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); echo $n; usleep 300; done";
    let config = shell("main", script);
    let id = pod.run(&config).await;
    let path = pod.log_path(&config);
    let mut following = Following::start(&node, &id, "followed");
    let mut before: Option<PathBuf> = None;
    for round in 0..6 {
        eventually("the log has lines", || async {
            (pod.log_len(&config) > 1000).then_some(())
        })
        .await;
        // As kubelet rotates: what was rotated before is compressed, then the log renamed.
        if let Some(old) = before.take() {
            compress(&old);
        }
        let rotated = path.with_extension(format!("log.20260101-00000{round}"));
        fs::rename(&path, &rotated).expect("a log to rename");
        node.cri.reopen_log(&id).await.expect("ReopenContainerLog");
        before = Some(rotated);
    }
    let mut late = Following::start(&node, &id, "followed late");
    node.cri.end_by_file(&id, "/tmp/stop").await;
    assert!(following.ended().await && late.ended().await);
    let all = following.shown();
    let count = all.lines().count();
    assert!(
        all == numbers(count),
        "neither a gap nor a line twice: {all}"
    );
    assert!(
        late.shown() == all,
        "{} of {count} lines",
        late.shown().lines().count()
    );
    let again = said(&node.operate(&["logs", &id]));
    assert!(again == all, "{} of {count} lines", again.lines().count());
    let tail = said(&node.operate(&["logs", "--tail", "50", &id]));
    let expected: String = ((count - 49)..=count).map(|n| format!("{n}\n")).collect();
    assert_eq!(tail, expected);
}

#[tokio::test]
async fn following_waits_for_a_container_that_has_not_started() {
    let node = Node::start().await;
    let pod = node.pod("waiting").await;
    let config = container("main", &["echo", "at last"]);
    let id = pod.create(&config).await;
    let mut following = Following::start(&node, &id, "followed");
    node.cri.start(&id).await.expect("StartContainer");
    assert!(following.ended().await);
    assert_eq!(following.shown(), "at last\n");
}
