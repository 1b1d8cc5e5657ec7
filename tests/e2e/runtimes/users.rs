//! Pods with a user namespace under other runtimes: what is mapped is mapped by us, so that it does
//! not matter what the runtime knows of idmapped mounts.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use tonic::Code;

use super::{RUNTIMES, printed, start};
use crate::support::cri::*;
use crate::support::log::contents;
use crate::support::pod::{exited, security, shell};
use crate::support::{Node, registry, streaming};
use crate::user_namespace::{FIRST, LENGTH, inside, mount, pod_config};

#[tokio::test]
async fn a_pod_of_another_runtime_has_a_user_namespace_as_ours_do() {
    let node = start().await;
    // Our own is the measure.
    let all = RUNTIMES.into_iter().chain([""]);
    let lives = all.map(|handler| lives(&node, handler));
    futures_util::future::join_all(lives).await;
}

async fn lives(node: &Node, handler: &str) {
    let pod = node
        .pod_of(handler, pod_config(node, &named(handler)))
        .await;
    sees_what_is_mapped(node, &pod, handler).await;
    joins(node, &pod, handler).await;

    // Who is not among the ids cannot be run as.
    let mut config = inside(shell("beyond", "true"));
    security(&mut config).run_as_user = Some(Int64Value { value: 65_536 });
    let id = pod.create(&config).await;
    let error = node.cri.start(&id).await.expect_err("nobody");
    let why = "user 65536 is not among the ids";
    assert!(error.message().contains(why), "{handler}: {error}");
}

/// A host name, also for our own runtime.
fn named(handler: &str) -> String {
    format!("{handler}-pod").trim_start_matches('-').to_owned()
}

/// Files of the image, of volumes and of an image volume, and what is made of them on the disk.
async fn sees_what_is_mapped(node: &Node, pod: &crate::support::Pod, handler: &str) {
    let volume = node.path(&format!("volumes/{}", named(handler)));
    fs::create_dir(&volume).expect("a directory of the test");
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o700)).expect("chmod");
    fs::write(volume.join("token"), "token").expect("a file of the test");
    fs::set_permissions(volume.join("token"), fs::Permissions::from_mode(0o600)).expect("chmod");
    let script = "for f in uid_map gid_map; do echo $(cat /proc/self/$f); done; \
        stat -c '%u:%g' / /etc/passwd /etc/hosts /dev/shm /volume /volume/token /image /proc/1; \
        cat /volume/token; echo; (: > /image/file) 2>/dev/null && echo wrote image; \
        echo made > /volume/made; echo d > /data; hostname; \
        echo x > /dev/null && echo null; echo o > /dev/stdout";
    let mut config = inside(shell("main", script));
    config.mounts = vec![
        mount(&volume, "/volume"),
        Mount {
            container_path: "/image".into(),
            readonly: true,
            image: Some(ImageSpec {
                image: registry().image("busybox:latest"),
                ..Default::default()
            }),
            ..mount("".as_ref(), "/image")
        },
    ];
    let lines = printed(pod, &config).await;
    let map = format!("0 {FIRST} {LENGTH}");
    let mut expected = vec![map.as_str(), &map];
    expected.extend(["0:0"; 8]);
    let name = named(handler);
    expected.extend(["token", &name, "null", "o"]);
    assert_eq!(lines, expected, "{handler}");
    let made = fs::metadata(volume.join("made")).expect("it was made");
    assert_eq!((made.uid(), made.gid()), (0, 0), "{handler}");
    assert_eq!(
        fs::metadata(volume.join("token")).expect("there").uid(),
        0,
        "{handler}"
    );

    // A user of the image, with streams that are its own.
    let mut config = inside(shell(
        "user",
        "id -u; echo o >/dev/stdout; echo e >/dev/stderr",
    ));
    security(&mut config).run_as_username = "tester".into();
    let ended = pod.run_to_end(&config).await;
    let lines = pod.log(&config);
    assert_eq!(contents(&lines, "stdout"), ["1000", "o"], "{handler}");
    assert_eq!(contents(&lines, "stderr"), ["e"], "{handler}");
    let user = ended.user.and_then(|user| user.linux).expect("a user");
    assert_eq!((user.uid, user.gid), (1000, 1000), "{handler}");
}

/// Commands, with streams and with a terminal, and the end by a signal.
async fn joins(node: &Node, pod: &crate::support::Pod, handler: &str) {
    let script = "trap 'exit 7' TERM; while :; do sleep 0.05; done";
    let id = pod.run(&inside(shell("idle", script))).await;
    let map = format!("0 {FIRST} {LENGTH}");
    let own = "echo $(cat /proc/self/uid_map); id -u; echo out > /dev/stdout";
    assert_eq!(
        node.cri.output(&id, own).await,
        format!("{map}\n0\nout"),
        "{handler}"
    );
    let url = node
        .exec_url(&id, &["sh", "-c", "read x; echo got $x"], false)
        .await;
    let ran = streaming::run(&url, b"this\n").await;
    assert_eq!(ran.stdout, b"got this\n", "{handler}: {:?}", ran.status);
    let mut config = inside(shell("tty", "[ -t 0 ] && stat -c %u /dev/console && tty"));
    config.tty = true;
    let ended = pod.run_to_end(&config).await;
    let said = contents(&pod.log(&config), "stdout");
    assert_eq!(ended.exit_code, 0, "{handler}: {said:?}");
    node.cri.stop(&id, 20).await.expect("StopContainer");
    assert_eq!(exited(&node.cri, &id).await.exit_code, 7, "{handler}");
}

#[tokio::test]
async fn a_runtime_that_does_not_say_that_it_has_them_is_refused_with_its_version() {
    let node = start().await;
    let message = RunPodSandboxRequest {
        config: Some(pod_config(&node, "refused")),
        runtime_handler: "silent".into(),
    };
    let mut client = node.cri.runtime();
    let refused = client.run_pod_sandbox(node.cri.wrap(message)).await;
    let refused = refused.expect_err("it does not say so");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    for word in ["\"silent\"", "crun version", "user_namespaces"] {
        assert!(refused.message().contains(word), "{refused}");
    }
}
