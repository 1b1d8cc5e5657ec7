//! CDI devices: what a vendor's file says of a device is what a container has that asks for it.

use std::fs;

use serde_json::json;
use tonic::Code;

use crate::support::Node;
use crate::support::cri::*;
use crate::support::log::contents;
use crate::support::pod::{security, shell};

/// A node with two directories of specifications.
async fn start() -> Node {
    let mut node = Node::prepare("");
    let dirs = ["cdi-etc", "cdi-run"].map(|name| node.path(name));
    node.configure(&format!("[cdi]\ndirectories = {dirs:?}\n"));
    for dir in &dirs {
        fs::create_dir(dir).expect("a directory of the test");
    }
    node.restart().await;
    node
}

fn write(node: &Node, file: &str, device: &serde_json::Value) {
    let spec = json!({
        "cdiVersion": "0.7.0",
        "kind": "quilt.test/thing",
        "containerEdits": {"env": ["FROM_KIND=all"], "additionalGids": [4242]},
        "devices": [{"name": "one", "containerEdits": device}],
    });
    fs::write(node.path(file), spec.to_string()).expect("a file of the test");
}

fn asking(mut config: ContainerConfig) -> ContainerConfig {
    config.cdi_devices = vec![CdiDevice {
        name: "quilt.test/thing=one".into(),
    }];
    config
}

#[tokio::test]
async fn a_container_has_what_the_file_says_now_by_field_and_by_annotation() {
    let node = start().await;
    let pod = node.pod("cdi").await;
    let library = node.path("volumes/library");
    fs::write(&library, "library").expect("a file of the test");
    write(
        &node,
        "cdi-etc/thing.json",
        &json!({
            "env": ["THING=1", "PATH=/bin:/thing"],
            "deviceNodes": [
                {"path": "/dev/thing/null", "hostPath": "/dev/null", "permissions": "rw"},
                {"path": "/dev/thing/made", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640,
                 "uid": 1000, "gid": 55},
            ],
            "mounts": [{"hostPath": library, "containerPath": "/thing/library",
                        "options": ["ro", "nosuid", "nodev", "bind"]}],
        }),
    );
    let script = "echo $THING $FROM_KIND $PATH; id -G; echo x > /dev/thing/null && echo wrote; \
        stat -c '%a %u %g' /dev/thing/made; head -c 3 /dev/thing/made | wc -c; \
        cat /thing/library; echo; \
        (: > /thing/library) 2>/dev/null && echo changed; true";
    let expected = [
        "1 all /bin:/thing",
        "0 4242",
        "wrote",
        "640 1000 55",
        "3",
        "library",
    ];
    let by_field = asking(shell("field", script));
    let mut by_annotation = shell("annotation", script);
    let key = "cdi.k8s.io/quilt_plugin".to_owned();
    by_annotation
        .annotations
        .insert(key, "quilt.test/thing=one".into());
    for config in [by_field, by_annotation] {
        let ended = pod.run_to_end(&config).await;
        let lines = pod.log(&config);
        assert_eq!(contents(&lines, "stdout"), expected, "{ended:?} {lines:?}");
    }

    // A later directory counts more, and a change counts at the next start.
    write(&node, "cdi-run/thing.json", &json!({"env": ["THING=2"]}));
    let config = asking(shell("changed", "echo $THING"));
    let id = pod.create(&config).await;
    write(&node, "cdi-run/thing.json", &json!({"env": ["THING=3"]}));
    node.cri.start(&id).await.expect("StartContainer");
    crate::support::pod::exited(&node.cri, &id).await;
    assert_eq!(contents(&pod.log(&config), "stdout"), ["3"]);
}

#[tokio::test]
async fn a_device_that_cannot_be_had_is_named_with_its_file() {
    let node = start().await;
    let pod = node.pod("missing").await;
    let refused = async |config: ContainerConfig, code| {
        let error = node.cri.create(&pod.id, &config, &pod.config).await;
        let error = error.expect_err("refused");
        assert_eq!(error.code(), code, "{error}");
        error.message().to_owned()
    };
    let config = asking(shell("main", "true"));
    fs::write(node.path("cdi-etc/broken.json"), "{\n\"kind\": }").expect("a file of the test");
    let error = refused(config.clone(), Code::FailedPrecondition).await;
    for word in ["quilt.test/thing=one", "cdi-etc/broken.json", "line 2"] {
        assert!(error.contains(word), "{error}");
    }
    write(&node, "cdi-etc/thing.json", &json!({"intelRdt": {}}));
    let error = refused(config.clone(), Code::FailedPrecondition).await;
    assert!(
        error.contains("thing.json") && error.contains("intelRdt"),
        "{error}"
    );
    // Hooks run as root: only root may say which.
    let hook = json!({"hooks": [{"hookName": "createRuntime", "path": "/bin/true"}]});
    write(&node, "cdi-etc/thing.json", &hook);
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    let file = node.path("cdi-etc/thing.json");
    fs::set_permissions(&file, mode(0o664)).expect("its own file");
    let error = refused(config.clone(), Code::FailedPrecondition).await;
    assert!(error.contains("only root can"), "{error}");
    fs::set_permissions(&file, mode(0o644)).expect("its own file");
    let mut nonsense = config.clone();
    nonsense.cdi_devices[0].name = "thing".into();
    let error = refused(nonsense, Code::InvalidArgument).await;
    assert!(error.starts_with("config.CDI_devices[0].name"), "{error}");

    // Described, but not there: it is found out at the start.
    let absent = json!({"deviceNodes": [{"path": "/dev/no-such-thing"}]});
    write(&node, "cdi-etc/thing.json", &absent);
    let id = pod.create(&config).await;
    let error = node.cri.start(&id).await.expect_err("absent");
    assert!(error.message().contains("/dev/no-such-thing"), "{error}");
}

#[tokio::test]
async fn a_device_of_a_pod_with_a_user_namespace_belongs_to_who_the_file_says() {
    let node = start().await;
    let pod = crate::user_namespace::pod(&node, "mapped").await;
    let nodes = json!({"deviceNodes": [
        {"path": "/dev/own", "hostPath": "/dev/zero", "fileMode": 0o600, "uid": 1000, "gid": 0},
        {"path": "/dev/nodes", "hostPath": "/dev/zero", "fileMode": 0o600},
    ]});
    write(&node, "cdi-etc/thing.json", &nodes);
    let script = "stat -c '%a %u' /dev/own /dev/nodes; head -c 1 /dev/own | wc -c; \
                  head -c 1 /dev/nodes 2>/dev/null | wc -c";
    let mut config = crate::user_namespace::inside(asking(shell("main", script)));
    security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
    let ended = pod.run_to_end(&config).await;
    let lines = pod.log(&config);
    // Whoever is not named is the container's user, as the specification has it.
    let expected = ["600 1000", "600 1000", "1", "1"];
    assert_eq!(contents(&lines, "stdout"), expected, "{ended:?} {lines:?}");
}

/// Finds the container's root in the bundle, as vendors' hooks do, and works on what is in it.
const HOOK: &str = r#"read -r state
bundle=${state#*'"bundle":"'}; bundle=${bundle%%'"'*}
root=$(sed -n 's/.*"root":{"path":"\([^"]*\)".*/\1/p' $bundle/config.json)
echo "$WORD $(cat $root/thing/library)" > $root/by-hook"#;

#[tokio::test]
async fn a_hook_of_a_device_sees_the_container_with_its_mounts_before_the_command() {
    let node = start().await;
    let library = node.path("volumes/library");
    fs::write(&library, "library").expect("a file of the test");
    let ran = node.path("ran");
    write(
        &node,
        "cdi-etc/thing.json",
        &json!({
            "mounts": [{"hostPath": library, "containerPath": "/thing/library",
                        "options": ["ro", "bind"]}],
            "hooks": [
                {"hookName": "createContainer", "path": "/bin/sh", "args": ["sh", "-c", HOOK],
                 "env": ["PATH=/usr/bin:/bin", "WORD=hooked"]},
                {"hookName": "poststop", "path": "/bin/sh", "timeout": 2,
                 "args": ["sh", "-c", format!("echo stopped >> {}", ran.display())]},
            ],
        }),
    );
    let config = asking(shell("main", "cat /by-hook"));
    let users = crate::user_namespace::pod(&node, "mapped").await;
    for (pod, config) in [
        (node.pod("plain").await, config.clone()),
        (users, crate::user_namespace::inside(config.clone())),
    ] {
        let ended = pod.run_to_end(&config).await;
        let lines = pod.log(&config);
        let said = contents(&lines, "stdout");
        assert_eq!(said, ["hooked library"], "{ended:?} {lines:?}");
        crate::support::eventually("the last hook has run", || async {
            fs::remove_file(&ran).is_ok().then_some(())
        })
        .await;
    }
}
