//! Container logs, to the byte what kubelet reads.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;

use crate::support::log::contents;
use crate::support::operator::said;
use crate::support::pod::{exited, shell};
use crate::support::{Node, eventually, in_time, is_soak, process};

#[tokio::test]
async fn every_line_has_its_time_its_stream_and_its_tag() {
    let node = Node::start().await;
    let pod = node.pod("lines").await;
    let config = shell("main", "echo one; echo two >&2; echo; printf 'no end'");
    pod.run_to_end(&config).await;
    let lines = pod.log(&config);
    assert_eq!(contents(&lines, "stderr"), ["two"]);
    let out: Vec<_> = lines
        .iter()
        .filter(|line| line.stream == "stdout")
        .collect();
    let text = |index: usize| String::from_utf8_lossy(&out[index].content).into_owned();
    assert_eq!(
        (text(0), text(1), text(2)),
        ("one".into(), "".into(), "no end".into())
    );
    assert!(!out[0].partial && !out[1].partial);
    assert_eq!(
        out.len(),
        3,
        "what has no line end is written when the stream ends"
    );
    let mut times: Vec<_> = lines.iter().map(|line| line.time.clone()).collect();
    let written = times.clone();
    times.sort();
    assert_eq!(times, written, "times never go back");
}

#[tokio::test]
async fn bytes_that_are_no_text_arrive_as_they_are() {
    let node = Node::start().await;
    let pod = node.pod("bytes").await;
    let config = shell("main", "printf 'a\\000b\\377\\r\\tz\\n'");
    pod.run_to_end(&config).await;
    let lines = pod.log(&config);
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0].content, b"a\0b\xff\r\tz");
}

#[tokio::test]
async fn a_long_line_is_cut_into_partial_ones_and_nothing_is_lost() {
    let node = Node::start().await;
    let pod = node.pod("long").await;
    // 100 000 digits that tell where they are, then a short line.
    let config = shell(
        "main",
        "seq 100000 118000 | tr -d '\\n' | head -c 100000; echo; echo end",
    );
    pod.run_to_end(&config).await;
    let lines = pod.log(&config);
    let expected: String = (100_000..=118_000).map(|n| n.to_string()).collect();
    assert_eq!(contents(&lines, "stdout"), [&expected[..100_000], "end"]);
    let (last, partial) = lines[..lines.len() - 1].split_last().expect("many lines");
    assert!(!last.partial, "the last piece of a line is full");
    assert!(partial.len() >= 5, "{} pieces", partial.len());
    for line in partial {
        assert!(line.partial, "a piece in the middle is partial");
        assert!(
            line.content.len() <= 16 << 10,
            "a piece of {} bytes",
            line.content.len()
        );
    }
}

#[tokio::test]
async fn a_flood_of_lines_arrives_whole_and_in_order() {
    let node = Node::start().await;
    let pod = node.pod("flood").await;
    let config = shell("main", "seq 1 50000; seq 1 50000 >&2");
    pod.run_to_end(&config).await;
    let lines = pod.log(&config);
    let expected: Vec<_> = (1..=50_000).map(|n| n.to_string()).collect();
    assert_eq!(contents(&lines, "stdout"), expected);
    assert_eq!(contents(&lines, "stderr"), expected);
}

#[tokio::test]
async fn a_rotated_log_goes_on_in_a_new_file_without_a_gap() {
    let node = Node::start().await;
    let pod = node.pod("rotate").await;
    let script = "n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); echo $n; usleep 200; done";
    let config = shell("main", script);
    let id = pod.run(&config).await;
    let path = pod.log_path(&config);
    let mut rotated = Vec::new();
    for round in 0..5 {
        eventually("the log has lines", || async {
            (pod.log_len(&config) > 1000).then_some(())
        })
        .await;
        // As kubelet rotates: rename, then ask for the file to be opened anew.
        let old = path.with_extension(format!("log.{round}"));
        fs::rename(&path, &old).expect("a log to rename");
        node.cri.reopen_log(&id).await.expect("ReopenContainerLog");
        assert!(
            path.exists(),
            "after ReopenContainerLog the new file is there"
        );
        rotated.push(old);
    }
    node.cri.end_by_file(&id, "/tmp/stop").await;
    exited(&node.cri, &id).await;
    rotated.push(path);
    let mut all = Vec::new();
    for file in rotated {
        all.extend(contents(&crate::support::log::read(&file), "stdout"));
    }
    let expected: Vec<_> = (1..=all.len()).map(|n| n.to_string()).collect();
    assert_eq!(all, expected, "neither a gap nor a line twice");
}

#[tokio::test]
async fn the_log_of_a_container_that_does_not_run_is_not_opened_anew() {
    let node = Node::start().await;
    let pod = node.pod("ended").await;
    let config = shell("main", "echo once");
    let id = pod.run(&config).await;
    exited(&node.cri, &id).await;
    let path = pod.log_path(&config);
    fs::rename(&path, path.with_extension("old")).expect("a log to rename");
    if let Err(error) = node.cri.reopen_log(&id).await {
        assert!(
            error.message().contains(&id),
            "the error names the container: {error}"
        );
        assert!(!path.exists(), "an error, and still a new file");
    }
}

#[tokio::test]
async fn a_log_directory_that_others_made_is_used_and_parents_are_made() {
    let node = Node::start().await;
    let pod = node.pod("deep").await;
    let mut config = shell("main", "echo deep");
    config.log_path = "a/b/c/0.log".into();
    pod.run_to_end(&config).await;
    assert_eq!(contents(&pod.log(&config), "stdout"), ["deep"]);
    let mut config = shell("second", "echo again");
    config.log_path = "a/b/c/1.log".into();
    pod.run_to_end(&config).await;
    assert_eq!(contents(&pod.log(&config), "stdout"), ["again"]);
}

#[tokio::test]
async fn what_a_terminal_shows_is_logged_as_it_is() {
    let node = Node::start().await;
    let pod = node.pod("terminal").await;
    let mut config = shell(
        "main",
        "echo shown; echo error >&2; printf '\\033[1mbold\\0'",
    );
    config.tty = true;
    pod.run_to_end(&config).await;
    let lines = pod.log(&config);
    assert!(lines.iter().all(|line| line.stream == "stdout"));
    let shown: Vec<_> = lines.iter().map(|line| line.content.as_slice()).collect();
    assert_eq!(shown, [&b"shown\r"[..], b"error\r", b"\x1b[1mbold\0"]);
}

#[tokio::test]
async fn a_log_is_reopened_while_its_container_stops() {
    let node = Node::start().await;
    let pod = node.pod("stopping").await;
    // It goes on writing as fast as it can until it is killed.
    let script = "trap '' TERM; n=0; while :; do n=$((n+1)); echo $n; done";
    let config = shell("main", script);
    let id = pod.run(&config).await;
    let path = pod.log_path(&config);
    let (cri, stopped) = (node.cri.clone(), id.clone());
    let stop = tokio::spawn(async move { cri.stop(&stopped, 1).await });
    let mut rotated = Vec::new();
    while !stop.is_finished() {
        let old = path.with_extension(format!("log.{:04}", rotated.len()));
        fs::rename(&path, &old).expect("a log to rename");
        rotated.push(old);
        let reopened = in_time("ReopenContainerLog answers", node.cri.reopen_log(&id)).await;
        if let Err(error) = reopened {
            assert!(error.message().contains(&id), "{error}");
            break;
        }
    }
    stop.await.expect("no panic").expect("StopContainer");
    rotated.push(path);
    assert!(rotated.len() > 2, "{} files", rotated.len());
    let mut all = Vec::new();
    for file in rotated {
        all.extend(contents(&crate::support::log::read(&file), "stdout"));
    }
    let expected: Vec<_> = (1..all.len()).map(|n| n.to_string()).collect();
    // The last line may have been cut by the kill.
    assert_eq!(
        all[..expected.len()],
        expected,
        "neither a gap nor a line twice"
    );
}

#[tokio::test]
async fn a_full_disk_costs_lines_that_are_counted_and_said_once() {
    let mut node = Node::prepare("");
    let disk = Disk::at(node.path("logs"), "size=262144");
    node.spawn();
    node.answers().await;
    let pod = node.pod("full").await;
    let script = "n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); echo $n; usleep 300; done; exit 7";
    let config = shell("main", script);
    let id = pod.run(&config).await;
    let filler = disk.0.join("filler");
    let mut file = fs::File::create(&filler).expect("a file");
    while file.write_all(&[b'x'; 4096]).is_ok() {}
    drop(file);
    let lost = |node: &Node| {
        let row = node.ask(&["explain", &id])["row"].clone();
        let column = |name: &str| row[name].as_i64().expect("a number");
        (column("lost_log_lines"), column("lost_log_bytes"))
    };
    eventually("a loss is known", || async {
        (lost(&node).0 > 0).then_some(())
    })
    .await;
    let told = said(&node.operate(&["explain", &id]));
    assert!(told.contains("lines of its log"), "{told}");
    // There is room again: what comes is logged, whole lines all of it.
    fs::remove_file(&filler).expect("a file to remove");
    let before = pod.log(&config).len();
    eventually("the log goes on", || async {
        (pod.log_len(&config) > 50 * (before as u64 + 50)).then_some(())
    })
    .await;
    let numbers = |node: &Node| -> Vec<i64> {
        let shown = said(&node.operate(&["logs", &id]));
        let number = |line: &str| line.parse().expect("a number");
        shown.lines().map(number).collect()
    };
    // Exactly what is missing is counted.
    let known = eventually("the loss is known", || async {
        let numbers = numbers(&node);
        assert!(numbers.is_sorted(), "{numbers:?}");
        let written = *numbers.last().expect("a line");
        let missing = written - i64::try_from(numbers.len()).expect("few");
        let known = lost(&node);
        (known.0 == missing).then_some(known)
    })
    .await;
    assert!(known.1 > 40 * known.0, "{known:?}");
    // Neither a new daemon nor a new shim forgets it.
    node.kill();
    let [shim] = node.shims()[..] else {
        panic!("one shim");
    };
    process::signal(shim, Signal::SIGKILL);
    node.restart().await;
    assert_eq!(lost(&node), known);
    node.cri.end_by_file(&id, "/tmp/stop").await;
    let status = exited(&node.cri, &id).await;
    assert_eq!(status.exit_code, 7, "it went on");
    assert_eq!(lost(&node), known);
    assert!(numbers(&node).is_sorted());
    assert!(pod.log(&config).len() > 50, "whole entries all of it");
    let said_so = node.ask(&["events", "--object", &id, "--limit", "1000"]);
    let events = said_so.as_array().expect("a list").iter();
    let events: Vec<_> = events.filter(|event| event["kind"] == "log_lost").collect();
    assert_eq!(events.len(), 1, "{events:?}");
    let message = events[0]["message"].as_str().expect("a text");
    assert!(message.contains("No space left on device"), "{message}");
    drop(disk);
}

/// A disk of the test's own, until it is dropped.
struct Disk(PathBuf);

impl Disk {
    fn at(path: PathBuf, options: &str) -> Self {
        let (kind, flags) = (Some("tmpfs"), MsFlags::empty());
        mount(kind, &path, kind, flags, Some(options)).expect("root may mount");
        Self(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _gone = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn limits_of_logs_are_those_of_the_configuration() {
    let mut node = Node::prepare("[logs]\nmax_bytes = 65536\nfiles = 3\nbytes_per_s = 4000000\n");
    node.spawn();
    node.answers().await;
    let pod = node.pod("limits").await;
    let config = shell("main", "seq 1 20000");
    let id = pod.run(&config).await;
    exited(&node.cri, &id).await;
    let path = pod.log_path(&config);
    let files = fs::read_dir(path.parent().expect("a directory")).expect("a directory");
    let mut files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    files.sort();
    files.rotate_left(1);
    assert_eq!(files.len(), 3, "{files:?}");
    assert_eq!(files.last(), Some(&path));
    let mut all = Vec::new();
    for file in files {
        assert!(fs::metadata(&file).expect("a file").len() <= 65_536);
        all.extend(contents(&crate::support::log::read(&file), "stdout"));
    }
    let expected: Vec<_> = (20_001 - all.len()..=20_000)
        .map(|n| n.to_string())
        .collect();
    assert_eq!(all, expected, "the newest lines, without a gap");
    let tail = said(&node.operate(&["logs", "--tail", "2000", &id]));
    let expected: String = (18_001..=20_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(tail, expected);
    let plan = node
        .names
        .state()
        .join("containers")
        .join(&id)
        .join("plan.json");
    let plan = fs::read_to_string(plan).expect("a launch plan");
    assert!(plan.contains("\"bytes_per_s\":4000000"), "{plan}");
}

/// Containers that write as fast as they can keep nobody waiting for the end of another, nor for
/// their own (100 of them with `QUILT_SOAK=1`).
#[tokio::test]
async fn chatty_containers_hold_up_no_exit() {
    let mut node = Node::prepare("[logs]\nmax_bytes = 1048576\nfiles = 2\n");
    node.restart().await;
    let pod = node.pod("chatty").await;
    let mut chatty = Vec::new();
    for number in 0..if is_soak() { 100 } else { 6 } {
        let config = shell(&format!("chatty-{number}"), "exec yes");
        chatty.push((pod.run(&config).await, config));
    }
    for number in 0..5 {
        let brief = shell(&format!("brief-{number}"), &format!("exit {number}"));
        assert_eq!(pod.run_to_end(&brief).await.exit_code, number);
    }
    for (id, config) in chatty {
        // A file that has just been rotated is empty.
        eventually("each is heard", || async {
            (pod.log_len(&config) > 0).then_some(())
        })
        .await;
        node.cri.stop(&id, 0).await.expect("StopContainer");
        assert_eq!(exited(&node.cri, &id).await.exit_code, 137);
    }
}
