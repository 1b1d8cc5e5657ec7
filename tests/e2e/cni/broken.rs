//! Plugins that fail in every way, and what their callers are told.

use super::*;
use crate::support::operator::column;
use tonic::Code;

impl Plugged {
    /// A pod that does not come up: what the caller is told.
    async fn refused(&self, name: &str) -> String {
        let config = self.node.pod_config(name);
        let refused = self.node.cri.run_pod(&config).await;
        let status = refused.expect_err("no pod can be connected");
        assert_eq!(status.code(), Code::Unknown, "{status}");
        status.message().to_owned()
    }
}

/// What an ADD does, and what is said of it.
const FAILURES: &[(&str, &[&str])] = &[
    (
        "fail 100 'no address is left' 'ask for more'",
        &[
            "\"witness\"",
            "ADD",
            "code 100: no address is left: ask for more",
        ],
    ),
    ("echo rubbish; exit 0", &["no usable answer"]),
    ("echo '[1]'; exit 0", &["no usable answer"]),
    (
        "echo '{}'; exit 0",
        &["no address of the pod's interface eth0"],
    ),
    (
        "echo '{\"ips\":[{\"address\":\"10.77.0.300/24\"}]}'; exit 0",
        &["no usable answer"],
    ),
    (
        "echo '{\"ips\":[{\"address\":\"10.77.0.3/24\",\"interface\":7}]}'; exit 0",
        &["names an interface that is not there"],
    ),
    ("head -c 100000000 /dev/zero", &["more than 1048576 bytes"]),
    (
        "echo 'first words' >&2; exit 7",
        &["exit status: 7", "first words"],
    ),
    ("kill -SEGV $$", &["signal: 11"]),
    // Its children go with it, and whoever holds its output keeps nobody waiting.
    (
        "sleep 1000 & echo $! >\"$dir/child\"; echo 'still at it' >&2; sleep 1000",
        &["did not end within 1 s", "was killed", "still at it"],
    ),
];

#[tokio::test]
async fn a_plugin_that_fails_is_told_of_and_leaves_nothing() {
    let lan = Lan::new(1);
    let plugged = Plugged::start(&lan, "cni_timeout_s = 1", &witnessed()).await;
    for (index, (script, words)) in FAILURES.iter().enumerate() {
        // It has done its work, and fails then.
        plugged.act("ADD", &format!("take; {script}"));
        let said = plugged.refused(&format!("pod-{index}")).await;
        for word in *words {
            assert!(said.contains(word), "{script}: {word:?} is not in {said:?}");
        }
        plugged.nothing_is_held().await;
        let calls = plugged.calls();
        let own = |call: &&String| call.starts_with("ADD ") || call.starts_with("DEL ");
        let mut calls = calls.iter().filter(own);
        let last = calls.next_back().expect("a call");
        assert!(last.starts_with("DEL "), "{script}: {last}");
    }
    let child = std::fs::read_to_string(plugged.book("child")).expect("a child");
    let child: i32 = child.trim().parse().expect("a pid");
    assert!(!process::is_running(child), "the plugin's child lives on");
    plugged.act("ADD", "");
    let pod = plugged.run("pod").await;
    plugged.go(&pod).await;
}

#[tokio::test]
async fn the_second_plugins_failure_undoes_the_first_ones_work() {
    let lan = Lan::new(1);
    let mut network = witnessed();
    network["plugins"] = json!([{ "type": "witness" }, { "type": "second" }]);
    let plugged = Plugged::start(&lan, "", &network).await;
    // Without its program the network is not ready.
    plugged.is_not_ready("there is no plugin \"second\"").await;
    let fails =
        "#!/bin/sh\n[ $CNI_COMMAND != ADD ] || { echo '{\"code\":9,\"msg\":\"no\"}'; exit 1; }";
    plugged.program("second", fails);
    plugged.becomes_ready().await;
    let said = plugged.refused("pod").await;
    assert!(
        said.contains("\"second\" failed (ADD): code 9: no"),
        "{said}"
    );
    plugged.nothing_is_held().await;
    // In the middle of a chain the next one is told what the one before has answered.
    let passes = format!(
        "#!/bin/sh\ncat >{0}; [ $CNI_COMMAND != ADD ] || jq -c .prevResult {0}",
        plugged.book("second").display()
    );
    plugged.program("second", &passes);
    let pod = plugged.run("pod").await;
    let address = plugged.addresses(&pod).await[0].to_string();
    assert!(address.starts_with("10.77.0."), "{address}");
    plugged.go(&pod).await;
    let told = plugged.told("DEL");
    let given = told["prevResult"]["ips"][0]["address"].as_str();
    assert_eq!(given, Some(format!("{address}/24").as_str()));
}

/// Code 11 of the specification.
#[tokio::test]
async fn a_plugin_that_asks_to_be_called_again_is_called_again() {
    let lan = Lan::new(1);
    let plugged = Plugged::start(&lan, "", &witnessed()).await;
    let later = "[ -e \"$dir/now\" ] || fail 11 'try again later' ''";
    plugged.act("ADD", later);
    let config = plugged.node.pod_config("patient");
    let cri = plugged.node.cri.clone();
    let run = tokio::spawn(async move { cri.run_pod(&config).await });
    eventually("it is called several times", || async {
        let calls = plugged.calls();
        (calls.iter().filter(|call| call.starts_with("ADD ")).count() > 2).then_some(())
    })
    .await;
    std::fs::write(plugged.book("now"), "").expect("a file of the test");
    let pod = run.await.expect("a task").expect("RunPodSandbox");
    // Each ADD that had failed was undone before the next.
    let verbs: Vec<_> = plugged.calls();
    let verbs = verbs.iter().filter(|call| call.contains(&pod));
    let verbs: Vec<_> = verbs
        .map(|call| call.split(' ').next().unwrap_or(""))
        .collect();
    for pair in verbs.windows(2) {
        assert_ne!(pair[0], pair[1], "{verbs:?}");
    }
    assert_eq!((verbs[0], verbs[verbs.len() - 1]), ("ADD", "ADD"));
    plugged.go(&pod).await;
}

/// The pod's own end waits for one try. DEL is repeated with what ADD was called with, whatever the
/// directory says by now, and without a namespace once that is gone.
#[tokio::test]
async fn a_del_that_fails_is_repeated_until_it_succeeds() {
    let lan = Lan::new(1);
    let plugged = Plugged::start(&lan, "", &witnessed()).await;
    let pod = plugged.run("pod").await;
    plugged.act("DEL", "fail 5 'the store is away' ''");
    let mut network = witnessed();
    network["name"] = "another".into();
    plugged.network(&network);
    plugged.go(&pod).await;
    eventually("DEL is called without a namespace", || async {
        let calls = plugged.calls();
        calls.contains(&format!("DEL {pod} none")).then_some(())
    })
    .await;
    assert_eq!(plugged.held(), std::slice::from_ref(&pod));
    assert_eq!(plugged.told("DEL")["name"], "witnessed");
    let sql = "SELECT state, error, deletes FROM v_attachments";
    let rows = plugged.node.ask(&["db", "query", sql]);
    assert_eq!(column(&rows, "state"), ["leaving"]);
    assert!(
        column(&rows, "error")[0].contains("the store is away"),
        "{rows}"
    );
    let events = plugged.node.ask(&["explain", &pod]);
    let kinds = column(&events["events"], "kind");
    for kind in ["attached", "detachment_failed"] {
        assert!(kinds.iter().any(|found| found == kind), "{kind}: {kinds:?}");
    }
    plugged.act("DEL", "");
    plugged.nothing_is_held().await;
    let first = plugged
        .calls()
        .into_iter()
        .find(|call| call.starts_with("DEL "));
    assert!(
        !first.expect("a DEL").ends_with(" none"),
        "the namespace was there at first"
    );
}

/// A plugin that hangs holds up its own pod alone.
#[tokio::test]
async fn a_plugin_that_hangs_keeps_no_other_pod_waiting() {
    let lan = Lan::new(1);
    let plugged = Plugged::start(&lan, "cni_timeout_s = 600", &witnessed()).await;
    plugged.act(
        "ADD",
        "case $CNI_ARGS in *slow*) while [ -e \"$dir/act.ADD\" ]; do sleep 0.05; done;; esac",
    );
    let slow: Vec<_> = (0..15)
        .map(|number| {
            let config = plugged.node.pod_config(&format!("slow-{number}"));
            let cri = plugged.node.cri.clone();
            tokio::spawn(async move { cri.run_pod(&config).await })
        })
        .collect();
    eventually("all of them hang", || async {
        let calls = plugged.calls();
        (calls.iter().filter(|call| call.starts_with("ADD ")).count() == 15).then_some(())
    })
    .await;
    let pod = plugged.run("quick").await;
    plugged.go(&pod).await;
    // One that is given up before it is connected is disconnected once its ADD has ended.
    plugged.act("ADD", "");
    for run in slow {
        let pod = run.await.expect("a task").expect("RunPodSandbox");
        plugged.go(&pod).await;
    }
    plugged.nothing_is_held().await;
}

/// A pod that asks for all that plugins may be told of.
fn demanding(mut config: PodSandboxConfig) -> PodSandboxConfig {
    config.port_mappings = vec![PortMapping {
        protocol: Protocol::Udp as i32,
        container_port: 53,
        host_port: 5353,
        host_ip: "192.0.2.1".into(),
    }];
    config.dns_config = Some(DnsConfig {
        servers: vec!["192.0.2.53".into()],
        searches: vec!["cluster.local".into()],
        options: vec!["ndots:5".into()],
    });
    for (name, value) in [("ingress", "1M"), ("egress", "2Mi")] {
        let name = format!("kubernetes.io/{name}-bandwidth");
        config.annotations.insert(name, value.into());
    }
    config
}

/// Plugins see what they need to see, and nothing of the daemon's.
#[tokio::test]
async fn a_plugin_is_told_of_its_pod_and_of_nothing_else() {
    let lan = Lan::new(1);
    let mut network = witnessed();
    network["plugins"][0] = json!({ "type": "witness", "own": { "key": 1 }, "capabilities": {
        "portMappings": true, "bandwidth": true, "dns": true, "ipRanges": true, "aliases": true,
        "cgroupPath": false, "io.kubernetes.cri.pod-annotations": true,
    } });
    let plugged = Plugged::start(&lan, "", &network).await;
    let cri = &plugged.node.cri;
    let told = cri.update_runtime_config("10.1.0.0/24,fd00:1::/64").await;
    told.expect("UpdateRuntimeConfig");
    let config = demanding(plugged.node.pod_config("pod"));
    let pod = cri.run_pod(&config).await.expect("RunPodSandbox");
    let told = plugged.told("ADD");
    assert_eq!(
        (&told["name"], &told["own"]["key"]),
        (&json!("witnessed"), &json!(1))
    );
    assert!(told.get("capabilities").is_none(), "{told}");
    let burst = u32::MAX;
    let expected = json!({
        "portMappings": [
            { "hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1" }
        ],
        "ipRanges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd00:1::/64" }]],
        "dns": {
            "servers": ["192.0.2.53"], "searches": ["cluster.local"], "options": ["ndots:5"],
        },
        "aliases": ["pod"],
        "bandwidth": {
            "ingressRate": 1_000_000, "ingressBurst": burst,
            "egressRate": 2 * 1024 * 1024, "egressBurst": burst,
        },
        "io.kubernetes.cri.pod-annotations": config.annotations,
    });
    assert_eq!(told["runtimeConfig"], expected);
    let environment = std::fs::read_to_string(plugged.book("environment.ADD")).expect("a call");
    let arguments = format!(
        "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=e2e;K8S_POD_NAME=pod;\
         K8S_POD_INFRA_CONTAINER_ID={pod};K8S_POD_UID={}",
        config.metadata.expect("metadata").uid
    );
    assert!(environment.contains(&arguments), "{environment}");
    // PWD, SHLVL and _ are the shell's own.
    let known = ["CNI_", "PATH=", "QUILT_PLUGIN_OF=", "PWD=", "SHLVL=", "_="];
    for line in environment.lines() {
        assert!(known.iter().any(|begin| line.starts_with(begin)), "{line}");
    }
    plugged.go(&pod).await;
    // The same is told when it is disconnected.
    assert_eq!(plugged.told("DEL")["runtimeConfig"], told["runtimeConfig"]);
}

/// A name that would read as another argument never gets to a plugin.
#[tokio::test]
async fn a_pod_cannot_tell_plugins_that_it_is_another() {
    let lan = Lan::new(1);
    let plugged = Plugged::start(&lan, "", &witnessed()).await;
    let mut config = plugged.node.pod_config("pod");
    config.metadata.as_mut().expect("metadata").name = "a;K8S_POD_NAMESPACE=kube-system".into();
    let refused = plugged
        .node
        .cri
        .run_pod(&config)
        .await
        .expect_err("a bad name");
    assert!(
        refused.message().contains("cannot be told to plugins"),
        "{refused}"
    );
    let called = plugged
        .calls()
        .into_iter()
        .find(|call| call.starts_with("ADD"));
    assert_eq!(called, None);
    plugged.nothing_is_held().await;
}
