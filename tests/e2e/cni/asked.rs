//! What a pod asks of its plugins, and what it has from them beside its addresses.

use super::*;
use tonic::Code;

/// The witness, with an ear for this, and an address as it is asked.
fn listening(capabilities: &[&str]) -> Value {
    let mut network = witnessed();
    for capability in capabilities {
        network["plugins"][0]["capabilities"][*capability] = true.into();
    }
    network
}

/// Gives the witness' pods the address that they ask for.
const AS_ASKED: &str = r#"
wanted=$(printf '%s' "$input" | jq -r '.runtimeConfig.ips[0] // "10.77.0.250"')
echo "${wanted##*.}" >"$dir/held/$CNI_CONTAINERID"
inside ip link add eth0 type bridge && inside ip link set eth0 up
printf '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"x"}],'
printf '"ips":[{"address":"%s/24","interface":0}]}\n' "$wanted"
exit 0
"#;

fn asking(node: &Node, name: &str, asked: &[(&str, &str)]) -> PodSandboxConfig {
    let mut config = node.pod_config(name);
    let asked = asked
        .iter()
        .map(|(name, value)| (format!("network.quilt/{name}"), (*value).to_owned()));
    config.annotations.extend(asked);
    config
}

#[tokio::test]
async fn plugins_are_told_which_addresses_a_pod_asks_for() {
    let lan = Lan::new(1);
    let plugged = Plugged::start(&lan, "", &listening(&["ips", "mac"])).await;
    plugged.act("ADD", AS_ASKED);
    let asked = [("addresses", "10.77.0.9"), ("mac", "0a:58:0a:4d:00:09")];
    let pod = plugged
        .run_from(&asking(&plugged.node, "pod", &asked))
        .await;
    let told = &plugged.told("ADD")["runtimeConfig"];
    assert_eq!(told["ips"], json!(["10.77.0.9"]));
    assert_eq!(told["mac"], "0a:58:0a:4d:00:09");
    assert_eq!(plugged.addresses(&pod).await[0].to_string(), "10.77.0.9");
    plugged.go(&pod).await;
    // Another address is not what was asked for.
    plugged.act("ADD", "");
    let config = asking(&plugged.node, "other", &[("addresses", "10.77.0.99")]);
    let refused = plugged.node.cri.run_pod(&config).await;
    let refused = refused.expect_err("another address");
    assert!(refused.message().contains("10.77.0.99"), "{refused}");
    plugged.nothing_is_held().await;
}

#[tokio::test]
async fn what_no_plugin_would_hear_is_refused() {
    let lan = Lan::new(1);
    let plugged = Plugged::start(&lan, "", &listening(&["dns"])).await;
    let node = &plugged.node;
    for (name, value, why) in [
        ("addresses", "10.77.0.9", "capability ips"),
        ("mac", "0a:58:0a:4d:00:09", "capability mac"),
        ("mac", "01:00:5e:00:00:01", "address of a group"),
        ("egress", "10.0.0.0/8", "network plugins connect the pods"),
    ] {
        let config = asking(node, "pod", &[(name, value)]);
        let refused = node.cri.run_pod(&config).await.expect_err(name);
        let text = refused.message();
        assert!(text.contains(why) && text.contains(name), "{refused}");
    }
    let calls = plugged.calls();
    let added = calls.iter().find(|call| call.starts_with("ADD "));
    assert_eq!(added, None);
    // With an address of ours, the hardware address follows from it.
    let mut plugged = plugged;
    plugged.node.terminate();
    plugged.configure_mode("native", "");
    plugged.node.restart().await;
    let config = asking(&plugged.node, "own", &[("mac", "0a:58:0a:4d:00:09")]);
    let refused = plugged.node.cri.run_pod(&config).await.expect_err("a mac");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("network.quilt/mac"), "{refused}");
}

/// Name servers of a result are for pods that bring none along.
#[tokio::test]
async fn a_pod_without_name_servers_gets_its_networks() {
    let lan = Lan::new(1);
    let plugged = Plugged::start(&lan, "", &witnessed()).await;
    let names = r#"{"nameservers":["10.77.0.53"],"domain":"a.example","options":["ndots:2"]}"#;
    // As the witness has it, and then `dns` into what it answers.
    let with_names = format!(
        "take\n{}",
        AS_ASKED.replace("}]}", &format!("}}],\"dns\":{names}}}"))
    );
    plugged.act("ADD", &with_names);
    let resolv_conf = |pod: &str| {
        let state = plugged.node.names.state();
        let path = state.join("sandboxes").join(pod).join("resolv.conf");
        std::fs::read_to_string(path).expect("the pod's file")
    };
    let mut config = plugged.node.pod_config("theirs");
    config.dns_config = None;
    let theirs = plugged.run_from(&config).await;
    let text = "search a.example\nnameserver 10.77.0.53\noptions ndots:2\n";
    assert_eq!(resolv_conf(&theirs), text);
    let mut config = plugged.node.pod_config("own");
    config.dns_config = Some(DnsConfig {
        servers: vec!["192.0.2.53".into()],
        ..Default::default()
    });
    let own = plugged.run_from(&config).await;
    assert_eq!(resolv_conf(&own), "nameserver 192.0.2.53\n");
    // What somebody has taken away comes back as it was.
    let state = plugged.node.names.state();
    let path = state.join("sandboxes").join(&theirs).join("resolv.conf");
    std::fs::remove_file(path).expect("the pod's file");
    plugged.node.operate(&["check", "--repair"]);
    assert_eq!(resolv_conf(&theirs), text);
    let wrong = with_names.replace("10.77.0.53", "ns.example");
    plugged.act("ADD", &wrong);
    let mut config = plugged.node.pod_config("wrong");
    config.dns_config = None;
    let refused = plugged.node.cri.run_pod(&config).await;
    let refused = refused.expect_err("a name server that is none");
    assert!(refused.message().contains("ns.example"), "{refused}");
    for pod in [theirs, own] {
        plugged.go(&pod).await;
    }
    plugged.nothing_is_held().await;
}
