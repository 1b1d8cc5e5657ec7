//! AppArmor, on a node that has it: the machine of `make test-vm`. Elsewhere these tests look and
//! pass; what a node without it refuses is in `confinement.rs`.

use std::fs;
use std::process::{Command, Stdio};

use crate::support::cri::*;
use crate::support::log::contents;
use crate::support::pod::{namespaces, security, shell};
use crate::support::{Node, Pod};

/// The profile of whoever asks.
const CURRENT: &str = "cat /proc/self/attr/current";

/// Whether this node has AppArmor. In the machine of `make test-vm` it must.
fn is_there() -> bool {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    let enabled = enabled.is_ok_and(|text| text.trim() == "Y");
    let must = std::env::var_os("QUILT_VM").is_some();
    assert!(enabled || !must, "this machine is to have AppArmor");
    enabled
}

fn profile(kind: security_profile::ProfileType, reference: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile {
        profile_type: kind as i32,
        localhost_ref: reference.into(),
    })
}

fn unconfined() -> Option<SecurityProfile> {
    profile(security_profile::ProfileType::Unconfined, "")
}

/// A pod in which containers may be privileged.
async fn pod(node: &Node) -> Pod {
    let mut config = node.pod_config("apparmor");
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    namespaces(&mut config).pid = NamespaceMode::Container as i32;
    node.pod_from(config).await
}

/// All that a container prints, in one line.
async fn printed(pod: &Pod, config: &ContainerConfig) -> String {
    let ended = pod.run_to_end(config).await;
    let lines = pod.log(config);
    assert_eq!(ended.exit_code, 0, "{ended:?} {lines:?}");
    contents(&lines, "stdout").join(" ")
}

#[tokio::test]
async fn the_daemon_brings_the_default_profile_and_whoever_asks_for_nothing_has_it() {
    if !is_there() {
        return;
    }
    let node = Node::start().await;
    let pod = pod(&node).await;
    let own = "quilt-default (enforce)";
    for (name, wanted) in [
        ("silent", None),
        ("default", Some(SecurityProfile::default())),
    ] {
        let mut config = shell(name, &format!("{CURRENT}; exec sleep 12345"));
        security(&mut config).apparmor = wanted;
        let id = pod.run(&config).await;
        assert_eq!(node.cri.output(&id, CURRENT).await.trim(), own);
        let first = node.cri.output(&id, "cat /proc/1/attr/current").await;
        assert_eq!(first.trim(), own);
    }
    let mut config = shell("unconfined", CURRENT);
    security(&mut config).apparmor = unconfined();
    assert_eq!(printed(&pod, &config).await, "unconfined");
    let mut config = shell("privileged", CURRENT);
    security(&mut config).privileged = true;
    assert_eq!(printed(&pod, &config).await, "unconfined");
}

#[tokio::test]
async fn the_default_profile_forbids_what_capabilities_would_allow() {
    if !is_there() {
        return;
    }
    let node = Node::start().await;
    let pod = pod(&node).await;
    // Nothing else is in the way: neither a filter nor a lacking capability.
    let script = "mount -t tmpfs none /tmp 2>/dev/null && echo mounted || echo refused";
    for (name, apparmor, said) in [
        ("confined", None, "refused"),
        ("unconfined", unconfined(), "mounted"),
    ] {
        let mut config = shell(name, script);
        let wanted = security(&mut config);
        wanted.seccomp = unconfined();
        wanted.apparmor = apparmor;
        let capabilities = wanted.capabilities.get_or_insert_default();
        capabilities.add_capabilities = vec!["SYS_ADMIN".into()];
        assert_eq!(printed(&pod, &config).await, said, "{name}");
    }
}

/// A profile that is loaded as long as this lives.
struct Loaded(String);

impl Loaded {
    fn new(name: &str, rules: &str) -> Self {
        let loaded = Self(format!("profile {name} {{ {rules} }}\n"));
        loaded.parser("--replace");
        loaded
    }

    fn parser(&self, what: &str) {
        let mut command = Command::new("apparmor_parser");
        command.args([what, "--skip-cache"]).stdin(Stdio::piped());
        let mut child = command.spawn().expect("AppArmor's compiler");
        let mut input = child.stdin.take().expect("a pipe");
        std::io::Write::write_all(&mut input, self.0.as_bytes()).expect("it reads");
        drop(input);
        assert!(child.wait().expect("a child").success(), "{}", self.0);
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.parser("--remove");
    }
}

#[tokio::test]
async fn a_profile_of_the_node_is_what_the_container_and_its_commands_have() {
    if !is_there() {
        return;
    }
    let name = format!("qlt-e2e-{}", std::process::id());
    let node = Node::start().await;
    let pod = pod(&node).await;
    let _loaded = Loaded::new(&name, "file, signal, network, deny /tmp/secret r,");
    let script = "echo x >/tmp/secret; cat /tmp/secret 2>/dev/null || echo hidden";
    let mut config = shell("local", &format!("{script}; {CURRENT}; exec sleep 12345"));
    let local = security_profile::ProfileType::Localhost;
    security(&mut config).apparmor = profile(local, &name);
    let id = pod.run(&config).await;
    let seen = node.cri.output(&id, &format!("{script}; {CURRENT}")).await;
    let lines: Vec<_> = seen.lines().collect();
    assert_eq!(lines, ["hidden", &format!("{name} (enforce)")]);
    node.cri.stop(&id, 0).await.expect("it ends");
}
