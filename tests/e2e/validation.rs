//! Requests that are refused before anything is touched, each with the field at fault in its error.

use tonic::{Code, Status};

use crate::support::client::request;
use crate::support::cri::*;
use crate::support::pod::shell;
use crate::support::{Node, registry};

/// The error names the field, and says whose fault it is.
fn assert_refused<T>(what: &str, outcome: Result<T, Status>, field: &str) {
    let Err(error) = outcome else {
        panic!("{what} was accepted")
    };
    assert_eq!(error.code(), Code::InvalidArgument, "{what}: {error}");
    assert!(
        error.message().contains(field),
        "{what}: `{field}` is not named: {error}"
    );
}

#[tokio::test]
async fn a_pod_that_cannot_be_is_refused_by_its_field() {
    let node = Node::start().await;
    type Change = fn(&mut PodSandboxConfig);
    fn metadata(config: &mut PodSandboxConfig) -> &mut PodSandboxMetadata {
        config.metadata.get_or_insert_default()
    }
    fn linux(config: &mut PodSandboxConfig) -> &mut LinuxPodSandboxConfig {
        config.linux.get_or_insert_default()
    }
    let cases: [(&str, &str, Change); 13] = [
        ("no metadata", "metadata", |c| c.metadata = None),
        ("no name", "name", |c| metadata(c).name.clear()),
        ("no namespace", "namespace", |c| {
            metadata(c).namespace.clear()
        }),
        ("no uid", "uid", |c| metadata(c).uid.clear()),
        ("a huge name", "name", |c| {
            metadata(c).name = "n".repeat(100_000)
        }),
        ("a huge hostname", "hostname", |c| {
            c.hostname = "h".repeat(300)
        }),
        ("a hostname of two lines", "hostname", |c| {
            c.hostname = "a\nb".into()
        }),
        ("a relative log directory", "log_directory", |c| {
            c.log_directory = "var/log".into()
        }),
        ("a NUL", "log_directory", |c| {
            c.log_directory = "/var/\0/log".into()
        }),
        ("a way out of the cgroup", "cgroup_parent", |c| {
            linux(c).cgroup_parent = "/pods/../../..".into();
        }),
        ("a huge label", "labels", |c| {
            c.labels.insert("k".into(), "v".repeat(4 << 20));
        }),
        ("a bad sysctl", "sysctl", |c| {
            linux(c)
                .sysctls
                .insert("../../kernel/core_pattern".into(), "|/bin/sh".into());
        }),
        ("a nameserver of two lines", "dns_config", |c| {
            let dns = c.dns_config.get_or_insert_default();
            dns.servers.push("1.1.1.1\noptions debug".into());
        }),
    ];
    for (what, field, change) in cases {
        let mut config = node.pod_config("refused");
        change(&mut config);
        assert_refused(what, node.cri.run_pod(&config).await, field);
    }
    let empty = node
        .cri
        .runtime()
        .run_pod_sandbox(request(RunPodSandboxRequest::default()))
        .await;
    assert_refused("no config", empty, "config");
    let message = RunPodSandboxRequest {
        config: Some(node.pod_config("handler")),
        runtime_handler: "no-such-handler".into(),
    };
    let unknown = node.cri.runtime().run_pod_sandbox(request(message)).await;
    assert_refused("an unknown handler", unknown, "no-such-handler");
    assert!(
        node.cri
            .list_pods(None)
            .await
            .expect("ListPodSandbox")
            .is_empty()
    );
}

/// What is wrong, the field that says so, and how to make it wrong.
type Case = (&'static str, &'static str, fn(&mut ContainerConfig));

fn container_cases() -> Vec<Case> {
    fn mount(config: &mut ContainerConfig, container_path: &str, host_path: &str) {
        config.mounts = vec![Mount {
            container_path: container_path.into(),
            host_path: host_path.into(),
            ..Default::default()
        }];
    }
    fn env(config: &mut ContainerConfig, key: &str, value: &str) {
        config.envs = vec![KeyValue {
            key: key.into(),
            value: value.into(),
        }];
    }
    vec![
        ("no metadata", "metadata", |c| c.metadata = None),
        ("no name", "name", |c| {
            c.metadata = Some(ContainerMetadata::default())
        }),
        ("no image", "image", |c| c.image = None),
        ("an empty image", "image", |c| {
            c.image = Some(ImageSpec::default())
        }),
        ("an absolute log path", "log_path", |c| {
            c.log_path = "/etc/cron.d/x".into()
        }),
        ("a log path that leaves", "log_path", |c| {
            c.log_path = "../../x".into()
        }),
        ("a relative directory", "working_dir", |c| {
            c.working_dir = "tmp".into()
        }),
        ("a relative target", "container_path", |c| {
            mount(c, "data", "/tmp")
        }),
        ("no target", "container_path", |c| mount(c, "", "/tmp")),
        ("a relative source", "host_path", |c| {
            mount(c, "/data", "tmp")
        }),
        ("no source", "host_path", |c| mount(c, "/data", "")),
        ("a nameless variable", "env", |c| env(c, "", "x")),
        ("a variable with =", "env", |c| env(c, "A=B", "x")),
        ("a NUL in an argument", "arg", |c| {
            c.args = vec!["a\0b".into()]
        }),
        ("a huge name", "name", |c| {
            c.metadata.get_or_insert_default().name = "n".repeat(100_000);
        }),
    ]
}

#[tokio::test]
async fn a_container_that_cannot_be_is_refused_by_its_field() {
    let node = Node::start().await;
    let pod = node.pod("host").await;
    for (what, field, change) in container_cases() {
        let mut config = shell("refused", "true");
        change(&mut config);
        let outcome = node.cri.create(&pod.id, &config, &pod.config).await;
        assert_refused(what, outcome, field);
    }
    let outcome = node.cri.create("", &shell("x", "true"), &pod.config).await;
    assert_refused("no pod", outcome, "pod_sandbox_id");
    assert!(
        node.cri
            .list(None)
            .await
            .expect("ListContainers")
            .is_empty()
    );

    let mut config = shell("absent", "true");
    let absent = registry().image("not-pulled:latest");
    config.image = Some(ImageSpec {
        image: absent.clone(),
        ..Default::default()
    });
    let error = node
        .cri
        .create(&pod.id, &config, &pod.config)
        .await
        .expect_err("no image");
    assert_eq!(error.code(), Code::NotFound, "{error}");
    assert!(error.message().contains(&absent), "{error}");
}

#[tokio::test]
async fn ids_that_are_none_are_refused_and_unknown_ones_are_not_found() {
    let node = Node::start().await;
    let cri = &node.cri;
    let pod = node.pod_config("x");
    let unknown = "0123456789abcdef".repeat(4);
    for (id, code) in [
        ("", Code::InvalidArgument),
        ("../../../etc/passwd", Code::InvalidArgument),
        (&"a".repeat(5000), Code::InvalidArgument),
        (&unknown, Code::NotFound),
        (&unknown[..12], Code::NotFound),
    ] {
        let outcomes = [
            ("PodSandboxStatus", cri.pod_status(id).await.map(drop)),
            ("ContainerStatus", cri.status(id).await.map(drop)),
            ("StartContainer", cri.start(id).await),
            ("ExecSync", cri.exec(id, &["true"], 5).await.map(drop)),
            ("ReopenContainerLog", cri.reopen_log(id).await),
            (
                "CreateContainer",
                cri.create(id, &shell("x", "true"), &pod).await.map(drop),
            ),
        ];
        for (call, outcome) in outcomes {
            let error = outcome.expect_err("there is no such object");
            let shown = &id[..id.len().min(80)];
            assert_eq!(error.code(), code, "{call} of `{shown}`: {error}");
            assert!(error.message().len() < 2000, "the error repeats a huge id");
        }
    }
}

#[tokio::test]
async fn sessions_and_pulls_without_their_parts_are_refused() {
    let node = Node::start().await;
    let pod = node.pod("parts").await;
    let id = pod.idle("main").await;
    assert_refused("no command", node.cri.exec(&id, &[], 5).await, "cmd");
    assert_refused(
        "a negative time",
        node.cri.exec(&id, &["true"], -1).await,
        "timeout",
    );
    let mut image = node.cri.image();
    let outcome = image.pull_image(request(PullImageRequest::default())).await;
    assert_refused("no image to pull", outcome, "image");
    let outcome = image
        .image_status(request(ImageStatusRequest::default()))
        .await;
    assert_refused("no image to ask for", outcome, "image");
    let outcome = image
        .remove_image(request(RemoveImageRequest::default()))
        .await;
    assert_refused("no image to remove", outcome, "image");
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_and_the_daemon_lives() {
    let node = Node::start().await;
    let mut config = node.pod_config("flood");
    // Over 16 MiB, the limit of kubelet's own client.
    for n in 0..40 {
        config
            .annotations
            .insert(format!("a{n}"), "x".repeat(1 << 19));
    }
    let error = node.cri.run_pod(&config).await.expect_err("too large");
    let expected = [
        Code::OutOfRange,
        Code::ResourceExhausted,
        Code::InvalidArgument,
    ];
    assert!(expected.contains(&error.code()), "{error}");
    node.cri
        .version()
        .await
        .expect("the daemon answers as before");
}
