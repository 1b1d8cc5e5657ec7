//! The database is lost: missing, cut, overwritten. The old file is kept, nothing that runs is
//! touched, and kubelet finds its pods, containers, images and addresses as they were.

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::support::cri::*;
use crate::support::pod::{exited, shell};
use crate::support::{Node, eventually, process};

/// What must be the same after the loss, of pods and of containers.
async fn seen(node: &Node) -> (Vec<PodSandboxStatus>, Vec<ContainerStatus>, Vec<String>) {
    let mut pods = Vec::new();
    for pod in node.cri.list_pods(None).await.expect("ListPodSandbox") {
        let status = node.cri.pod_status(&pod.id).await;
        pods.push(status.expect("PodSandboxStatus"));
    }
    let mut containers = Vec::new();
    for container in node.cri.list(None).await.expect("ListContainers") {
        let mut status = node
            .cri
            .status(&container.id)
            .await
            .expect("ContainerStatus");
        if status.state() == ContainerState::ContainerExited {
            // Of who has ended nobody but the database knows when it began and who it ran as.
            status.started_at = 0;
            status.user = None;
        }
        containers.push(status);
    }
    pods.sort_by(|a, b| a.id.cmp(&b.id));
    containers.sort_by(|a, b| a.id.cmp(&b.id));
    let images = node.cri.list_images().await.expect("ListImages");
    let images = images.iter().map(|image| format!("{image:?}")).collect();
    (pods, containers, images)
}

fn database(node: &Node) -> PathBuf {
    node.names.root().join("quilt.db")
}

/// The files that were set aside, side files not counted.
fn set_aside(node: &Node) -> Vec<PathBuf> {
    let entries = fs::read_dir(node.names.root()).expect("the root").flatten();
    let names = entries.map(|entry| entry.path());
    names
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("quilt.db.damaged-")
                && name.ends_with(|last: char| last != 'l' && last != 'm')
        })
        .collect()
}

fn overwrite(path: &Path, from: u64, length: usize) {
    let file = OpenOptions::new().write(true).open(path).expect("the file");
    file.write_all_at(&vec![0x5a; length], from)
        .expect("written");
}

fn remove_with_side_files(path: &Path) {
    for side in ["", "-wal", "-shm"] {
        let file = PathBuf::from(format!("{}{side}", path.display()));
        match fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
    }
}

/// A way to lose the database, and whether there is something to set aside.
type Loss = (&'static str, fn(&Path), bool);

const LOSSES: [Loss; 6] = [
    ("it is missing", remove_with_side_files, false),
    (
        "it is missing and its log is there",
        |path| fs::remove_file(path).expect("removed"),
        true,
    ),
    (
        "it is empty",
        |path| {
            remove_with_side_files(path);
            fs::write(path, "").expect("written");
        },
        true,
    ),
    (
        "it is cut in half",
        |path| {
            let file = OpenOptions::new().write(true).open(path).expect("the file");
            let size = file.metadata().expect("metadata").len();
            // Without the log, which might hold the whole.
            let _gone = fs::remove_file(format!("{}-wal", path.display()));
            file.set_len(size / 2).expect("cut");
        },
        true,
    ),
    (
        "its head is overwritten",
        |path| overwrite(path, 0, 100),
        true,
    ),
    (
        "most of its pages are overwritten",
        |path| {
            let size = fs::metadata(path).expect("metadata").len();
            let _gone = fs::remove_file(format!("{}-wal", path.display()));
            overwrite(path, 4096, usize::try_from(size).expect("a size") - 4096);
        },
        true,
    ),
];

/// Waits until every image has its record: it is written when the pull has been answered.
async fn images_are_recorded(node: &Node, count: usize) {
    let dir = node.names.root().join("images");
    eventually("the images are recorded", || async {
        let entries = fs::read_dir(&dir).ok()?.flatten();
        let records = entries.filter(|e| e.path().extension().is_some_and(|e| e == "json"));
        (records.count() == count).then_some(())
    })
    .await;
}

/// Sequence of the newest event.
fn newest_event(node: &Node) -> i64 {
    let events = node.ask(&["events", "--limit", "1"]);
    events[0]["sequence"].as_i64().expect("a number")
}

#[tokio::test]
async fn whatever_happens_to_the_database_pods_containers_images_and_addresses_come_back() {
    let mut node = Node::start().await;
    let one = node.pod("one").await;
    let two = node.pod("two").await;
    let running = one.idle("running").await;
    let ended = one.run_to_end(&shell("ended", "exit 9")).await;
    one.create(&shell("created", "true")).await;
    images_are_recorded(&node, 1).await;
    let before = seen(&node).await;
    let addresses = [one.ip().await, two.ip().await];
    let first = process::in_cgroup_of(&node.names, &running);

    let mut kept = 0;
    let mut told = newest_event(&node);
    for (what, lose, leaves_a_file) in LOSSES {
        node.kill();
        lose(&database(&node));
        node.restart().await;
        let now = newest_event(&node);
        assert!(now > told, "{what}: a sequence is given out twice: {now}");
        told = now;
        assert_eq!(seen(&node).await, before, "after the loss: {what}");
        kept += usize::from(leaves_a_file);
        let aside = set_aside(&node);
        // Where the file itself is gone only its side files are kept.
        let files = aside.len() + usize::from(kept >= 1);
        assert_eq!(files, kept, "{what}: {aside:?}");
    }
    let info = node.operate(&["info"]);
    let info = String::from_utf8_lossy(&info.stdout);
    assert!(
        info.contains("2 pods, 3 containers (1 running, 1 exited), 1 images"),
        "{info}"
    );
    assert_eq!(process::in_cgroup_of(&node.names, &running), first);
    assert_eq!(node.shims().len(), 1, "one shim, the same");
    assert_eq!(node.cri.output(&running, "echo works").await, "works");
    assert_eq!(
        node.cri.status(&ended.id).await.expect("status").exit_code,
        9
    );
    let third = node.pod("three").await;
    assert!(
        !addresses.contains(&third.ip().await),
        "an address is given out twice"
    );
    third.run_to_end(&shell("new", "true")).await;
}

#[tokio::test]
async fn without_database_and_shim_the_kernel_still_tells_who_runs() {
    let mut node = Node::start().await;
    let pod = node.pod("one").await;
    let running = pod.idle("running").await;
    let ended = pod.run_to_end(&shell("ended", "exit 9")).await.id;
    images_are_recorded(&node, 1).await;
    let first = process::in_cgroup_of(&node.names, &running);
    let journal = node.names.state().join("shim/exits");
    eventually("the shim has forgotten the exit", || async {
        (!fs::read_to_string(&journal).ok()?.contains(&ended)).then_some(())
    })
    .await;
    node.kill();
    for shim in node.shims() {
        process::signal(shim, Signal::SIGKILL);
    }
    remove_with_side_files(&database(&node));
    node.restart().await;

    let status = node.cri.status(&running).await.expect("ContainerStatus");
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    assert_eq!(process::in_cgroup_of(&node.names, &running), first);
    assert_eq!(node.cri.output(&running, "echo works").await, "works");
    let status = node.cri.status(&ended).await.expect("ContainerStatus");
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    assert!(
        status.message.contains("lost database"),
        "{}",
        status.message
    );
    node.cri.stop(&running, 5).await.expect("StopContainer");
    exited(&node.cri, &running).await;
}

#[tokio::test]
async fn what_a_damaged_file_still_tells_is_used() {
    let mut node = Node::start().await;
    let pod = node.pod("one").await;
    let ended = pod.run_to_end(&shell("ended", "exit 7")).await;
    let before = node.cri.status(&ended.id).await.expect("ContainerStatus");
    images_are_recorded(&node, 1).await;
    node.terminate();
    // The shim has nothing that runs and has ended with the daemon: only the file knows the code.
    let mark = node.names.root().join("quilt.db.rebuild");
    fs::write(&mark, "a test says so").expect("written");
    node.restart().await;
    assert_eq!(
        node.cri
            .status(&ended.id)
            .await
            .expect("ContainerStatus")
            .exit_code,
        7
    );
    let after = node.cri.status(&ended.id).await.expect("ContainerStatus");
    assert_eq!(
        (after.started_at, after.finished_at),
        (before.started_at, before.finished_at)
    );
    assert_eq!(after.reason, before.reason);
    assert!(!mark.exists(), "the rebuild is done");
    assert_eq!(set_aside(&node).len(), 1);
}

#[tokio::test]
async fn records_that_cannot_be_believed_bring_nothing_back() {
    let mut node = Node::start().await;
    let good = node.pod("good").await;
    let bad = node.pod("bad").await;
    images_are_recorded(&node, 1).await;
    node.kill();
    let record = node
        .names
        .state()
        .join("sandboxes")
        .join(&bad.id)
        .join("record.json");
    let text = fs::read_to_string(&record).expect("a record");
    fs::write(
        &record,
        text.replace("\"prefix_length\":24", "\"prefix_length\":99"),
    )
    .expect("written");
    remove_with_side_files(&database(&node));
    node.restart().await;
    let pods = node.cri.list_pods(None).await.expect("ListPodSandbox");
    let ids: HashSet<_> = pods.iter().map(|pod| pod.id.clone()).collect();
    assert_eq!(ids, HashSet::from([good.id.clone()]));
    let info = node.operate(&["info"]);
    let info = String::from_utf8_lossy(&info.stdout);
    assert!(
        info.contains("cannot be believed") && info.contains(&bad.id),
        "{info}"
    );
}

#[tokio::test]
async fn a_database_that_cannot_be_opened_is_no_damage() {
    let node = Node::prepare("");
    let database = database(&node);
    fs::create_dir_all(&database).expect("a directory in its place");
    let text = node.refused(&mut node.serve());
    assert!(
        text.contains("quilt.db") && text.contains("left as it is"),
        "{text}"
    );
    assert!(database.is_dir(), "it is where it was");
    assert_eq!(set_aside(&node), Vec::<PathBuf>::new());
}
