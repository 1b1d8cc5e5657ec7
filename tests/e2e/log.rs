//! Container logs, to the byte what kubelet reads.

use std::fs;

use crate::support::log::contents;
use crate::support::pod::{exited, shell};
use crate::support::{Node, eventually};

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
