//! Networks that a cluster brings along: Debian's plugins, and one of the test's own that can
//! misbehave. The daemon and its plugins run on a host of the test's own little network; the
//! machine's bridges and packet rules are never touched.

mod agent;
mod asked;
mod broken;
mod debian;
mod interrupted;
mod reload;
mod verified;

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::support::cri::*;
use crate::support::host::{Host, Lan};
use crate::support::{Node, eventually, process};

/// Where Debian has its plugins.
const DEBIAN: &str = "/usr/lib/cni";

/// A node whose pods plugins connect.
struct Plugged {
    node: Node,
}

impl Plugged {
    /// The daemon is not started yet. `lines` go into `[network]`.
    fn prepare(lan: &Lan, mode: &str, lines: &str) -> Self {
        let node = Node::prepare_on(&lan.hosts[0], "");
        let plugged = Self { node };
        for dir in ["net.d", "bin", "book", "book/held", "book/numbers"] {
            std::fs::create_dir(plugged.node.path(dir)).expect("a directory of the test");
        }
        let script = include_str!("witness.sh");
        let book = plugged.node.path("book").display().to_string();
        plugged.program("witness", &script.replacen("@DIR@", &book, 1));
        plugged.configure_mode(mode, lines);
        plugged
    }

    /// A daemon that answers, with one network.
    async fn start(lan: &Lan, lines: &str, network: &Value) -> Self {
        let mut plugged = Self::prepare(lan, "cni", lines);
        plugged.network(network);
        plugged.node.restart().await;
        plugged
    }

    /// Writes the configuration of the daemon anew.
    fn configure_mode(&self, mode: &str, lines: &str) {
        self.node.configure("");
        let path = self.node.path("config.toml");
        let text = std::fs::read_to_string(&path).expect("a configuration");
        let (conf, bin) = (self.node.path("net.d"), self.node.path("bin"));
        let own = format!(
            "[network]\nmode = \"{mode}\"\ncni_conf_dir = \"{}\"\n\
             cni_bin_dirs = [\"{}\", \"{DEBIAN}\"]\n{lines}\n",
            conf.display(),
            bin.display(),
        );
        std::fs::write(path, text.replacen("[network]\n", &own, 1)).expect("a configuration");
    }

    /// Puts a program among the plugins.
    fn program(&self, name: &str, text: &str) {
        let path = self.node.path("bin").join(name);
        std::fs::write(&path, text).expect("a program of the test");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(path, mode).expect("a program of the test");
    }

    /// Makes this the only network.
    fn network(&self, network: &Value) {
        self.file("10-pods.conflist", &network.to_string());
    }

    /// Puts a file among the configurations, as a whole.
    fn file(&self, name: &str, text: &str) {
        let new = self.node.path("net.d").join("new");
        std::fs::write(&new, text).expect("a file of the test");
        std::fs::rename(&new, self.node.path("net.d").join(name)).expect("a file of the test");
    }

    fn book(&self, name: &str) -> PathBuf {
        self.node.path("book").join(name)
    }

    /// What the witness was called for so far, as `VERB id netns`.
    fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.book("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Calls of one verb for one pod.
    fn calls_of(&self, verb: &str, id: &str) -> usize {
        let begin = format!("{verb} {id} ");
        let calls = self.calls();
        calls.iter().filter(|call| call.starts_with(&begin)).count()
    }

    /// What the witness was told when it was last called so.
    fn told(&self, verb: &str) -> Value {
        let text = std::fs::read_to_string(self.book(&format!("told.{verb}"))).expect("a call");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Makes the witness misbehave; an empty script makes it behave again.
    fn act(&self, verb: &str, script: &str) {
        let path = self.book(&format!("act.{verb}"));
        if script.is_empty() {
            std::fs::remove_file(path).expect("a file of the test");
            return;
        }
        let new = self.book("new");
        std::fs::write(&new, script).expect("a file of the test");
        std::fs::rename(new, path).expect("a file of the test");
    }

    /// Pods that have an address in the witness' book.
    fn held(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.book("held")).expect("a directory of the test");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        names
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    }

    /// Waits until the witness has nothing of any pod, and no row is left either.
    async fn nothing_is_held(&self) {
        eventually("plugins have nothing of any pod", || async {
            let rows = self.node.ask(&["inventory"]);
            let rows = rows["network_attachments"].as_i64();
            (self.held().is_empty() && rows == Some(0)).then_some(())
        })
        .await;
    }

    async fn run(&self, name: &str) -> String {
        self.run_from(&self.node.pod_config(name)).await
    }

    /// Runs a pod that may have been asked for before.
    async fn run_from(&self, config: &PodSandboxConfig) -> String {
        self.node.cri.run_pod(config).await.expect("RunPodSandbox")
    }

    async fn go(&self, id: &str) {
        self.node.cri.stop_pod(id).await.expect("StopPodSandbox");
        self.node
            .cri
            .remove_pod(id)
            .await
            .expect("RemovePodSandbox");
    }

    /// The condition NetworkReady: reason and message, empty when it is ready.
    async fn network_problem(&self) -> Option<(String, String)> {
        let request = StatusRequest { verbose: false };
        let mut runtime = self.node.cri.runtime();
        let status = runtime.status(self.node.cri.wrap(request)).await;
        let status = status.expect("Status").into_inner();
        let conditions = status.status.expect("a status").conditions;
        let ready = conditions.into_iter().find(|c| c.r#type == "NetworkReady");
        let ready = ready.expect("the condition");
        (!ready.status).then_some((ready.reason, ready.message))
    }

    /// Waits until the condition NetworkReady is as wanted.
    async fn becomes_ready(&self) {
        eventually("the network is ready", || async {
            self.network_problem().await.is_none().then_some(())
        })
        .await;
    }

    /// Waits until the network is not ready, and its message has these words.
    async fn is_not_ready(&self, words: &str) {
        eventually(&format!("the network is not ready: {words}"), || async {
            let (reason, message) = self.network_problem().await?;
            assert_eq!(reason, "NetworkPluginNotReady");
            message.contains(words).then_some(())
        })
        .await;
    }

    async fn addresses(&self, id: &str) -> Vec<IpAddr> {
        let status = self
            .node
            .cri
            .pod_status(id)
            .await
            .expect("PodSandboxStatus");
        let network = status.network.expect("a network status");
        let more = network.additional_ips.into_iter().map(|ip| ip.ip);
        let all = [network.ip].into_iter().chain(more);
        all.filter(|ip| !ip.is_empty())
            .map(|ip| ip.parse().expect("an address"))
            .collect()
    }

    /// The pod's network, for the test to serve and ask in.
    fn inside(&self, id: &str) -> Arc<Host> {
        let state = self.node.names.state();
        Host::at(&state.join("sandboxes").join(id).join("ns/net"))
    }
}

/// A network of the witness alone.
fn witnessed() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "witnessed",
        "plugins": [{ "type": "witness" }],
    })
}
