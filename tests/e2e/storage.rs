//! The disk of the root directory is full, or read-only: callers hear what is wrong, reads go on,
//! containers go on, their exits wait, and room is all it takes to go on.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use tonic::Code;

use crate::support::cri::*;
use crate::support::pod::{exited, shell};
use crate::support::{Node, eventually, process};

/// A node whose root directory is a disk of its own, of `bytes`.
async fn on_a_disk(bytes: u64) -> Node {
    let mut node = Node::prepare("");
    let root = node.names.root();
    fs::create_dir(&root).expect("a directory");
    let options = format!("size={bytes},mode=711");
    let (kind, flags) = (Some("tmpfs"), MsFlags::empty());
    mount(kind, &root, kind, flags, Some(options.as_str())).expect("root may mount");
    node.restart().await;
    node
}

/// Takes all the room there is, to the last byte.
fn fill(node: &Node) -> PathBuf {
    let path = node.names.root().join("filler");
    let mut file = File::create(&path).expect("a file");
    for size in [1 << 20, 4096, 1] {
        let piece = vec![b'x'; size];
        while file.write_all(&piece).is_ok() {}
    }
    path
}

async fn condition(node: &Node, kind: &str) -> (bool, String) {
    let request = StatusRequest { verbose: false };
    let mut client = node.cri.runtime();
    let response = client.status(crate::support::client::request(request));
    let status = response.await.expect("Status answers").into_inner().status;
    let conditions = status.expect("a status").conditions;
    let found = conditions.into_iter().find(|c| c.r#type == kind);
    let found = found.expect("the condition");
    (found.status, found.message)
}

/// Ends with this code when it is told to, and needs no disk for it.
fn ends_with(name: &str, code: i32) -> ContainerConfig {
    shell(
        name,
        &format!("trap 'exit {code}' TERM; while :; do sleep 0.05; done"),
    )
}

#[tokio::test]
async fn a_full_disk_loses_no_exit_and_is_over_when_there_is_room() {
    let node = on_a_disk(64 << 20).await;
    let pod = node.pod("before").await;
    let mut containers = Vec::new();
    for code in [0, 7, 42] {
        let id = pod.run(&ends_with(&format!("code-{code}"), code)).await;
        let pid = process::in_cgroup_of(&node.names, &id);
        process::catches_sigterm(pid).await;
        containers.push((id, pid, code));
    }
    let filler = fill(&node);
    let refused = node
        .cri
        .run_pod(&node.pod_config("during"))
        .await
        .expect_err("no room");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let text = refused.message();
    assert!(
        text.contains("quilt.db") && text.contains("free some space"),
        "{text}"
    );
    let (ready, message) = condition(&node, "RuntimeReady").await;
    assert!(!ready && message.contains("the disk is full"), "{message}");

    for (_, pid, _) in &containers {
        process::signal(*pid, Signal::SIGTERM);
    }
    eventually("all have ended", || async {
        let mut all = containers.iter();
        all.all(|(_, pid, _)| !process::is_running(*pid))
            .then_some(())
    })
    .await;
    // What is asked for meanwhile is answered, from what is known.
    assert_eq!(
        node.cri
            .list_pods(None)
            .await
            .expect("ListPodSandbox")
            .len(),
        1
    );
    assert_eq!(node.cri.list(None).await.expect("ListContainers").len(), 3);
    assert!(node.cri.run_pod(&node.pod_config("during")).await.is_err());

    fs::remove_file(&filler).expect("the filler");
    for (id, _, code) in &containers {
        let ended = exited(&node.cri, id).await;
        assert_eq!(ended.exit_code, *code);
        assert!(ended.finished_at >= ended.started_at, "{ended:?}");
    }
    eventually("the node is ready again", || async {
        condition(&node, "RuntimeReady").await.0.then_some(())
    })
    .await;
    let after = node.pod("after").await;
    after.run_to_end(&shell("works", "true")).await;
}

#[tokio::test]
async fn a_read_only_disk_refuses_the_start_and_is_taken_for_no_damage() {
    let mut node = on_a_disk(64 << 20).await;
    let pod = node.pod("before").await;
    let id = pod.idle("main").await;
    let first = process::in_cgroup_of(&node.names, &id);
    node.kill();
    let root = node.names.root();
    let remount = |flags: MsFlags| {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags;
        mount(None::<&str>, &root, None::<&str>, flags, None::<&str>).expect("remounted");
    };
    remount(MsFlags::MS_RDONLY);
    let text = node.refused(&mut node.serve());
    assert!(text.contains("Read-only file system"), "{text}");
    assert!(text.contains(&root.display().to_string()), "{text}");
    assert!(process::is_running(first), "the container goes on");
    remount(MsFlags::empty());
    node.restart().await;
    let aside = fs::read_dir(&root).expect("the root").flatten();
    let aside = aside.filter(|e| e.file_name().to_string_lossy().contains("damaged"));
    assert_eq!(aside.count(), 0);
    assert_eq!(process::in_cgroup_of(&node.names, &id), first);
    assert_eq!(node.cri.output(&id, "echo works").await, "works");
}
