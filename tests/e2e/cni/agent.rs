//! A plugin that can do nothing without its agent, as those of many clusters: it asks the agent and
//! waits for an answer. The test plays the agent, over named pipes in the witness' directory.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::*;

/// What a call does before all else: while nobody reads the pipe it hangs, as on a dead socket.
const ASK: &str = r#"
echo "$CNI_COMMAND $CNI_CONTAINERID $$" >"$dir/agent"
until [ -e "$dir/answer.$$" ]; do sleep 0.01; done
rm "$dir/answer.$$"
"#;

/// An agent that answers as long as it lives.
struct Agent {
    dir: PathBuf,
    thread: JoinHandle<Vec<String>>,
}

impl Agent {
    fn start(dir: &Path) -> Self {
        let dir_too = dir.to_owned();
        let thread = thread::spawn(move || {
            let mut asked = Vec::new();
            loop {
                // Opened anew when all who wrote have gone.
                let pipe = File::open(dir_too.join("agent")).expect("a pipe");
                for line in BufReader::new(pipe).lines() {
                    let line = line.expect("text");
                    if line == "end" {
                        return asked;
                    }
                    let caller = line.rsplit(' ').next().expect("who asks");
                    fs::write(dir_too.join(format!("answer.{caller}")), "").expect("an answer");
                    asked.push(line);
                }
            }
        });
        let dir = dir.to_owned();
        Self { dir, thread }
    }

    /// What it was asked for so far, as `VERB id pid`.
    fn end(self) -> Vec<String> {
        fs::write(self.dir.join("agent"), "end\n").expect("a pipe");
        self.thread.join().expect("the agent panicked")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_whose_agent_is_away_is_waited_for_and_used_when_it_is_back() {
    let lan = Lan::new(1);
    let mut plugged = Plugged::prepare(&lan, "cni", "cni_timeout_s = 1");
    plugged.network(&witnessed());
    let dir = plugged.node.path("book");
    mkfifo(&dir.join("agent"), Mode::S_IRWXU).expect("a pipe");
    for verb in ["ADD", "DEL", "CHECK", "GC"] {
        plugged.act(verb, ASK);
    }
    fs::write(plugged.book("not-ready"), "no agent").expect("a file of the test");
    plugged.node.restart().await;
    plugged.is_not_ready("the agent is away: no agent").await;
    // kubelet would not ask now; whoever does is told what the matter is, and nothing stays.
    let config = plugged.node.pod_config("early");
    let refused = plugged.node.cri.run_pod(&config).await;
    let refused = refused.expect_err("there is no agent");
    let text = refused.message();
    assert!(text.contains("did not end within 1 s (ADD)"), "{text}");
    // Its DEL needs the agent as well, and is repeated until it is back.
    let sql = "SELECT state FROM v_attachments";
    assert_eq!(plugged.node.column(sql, "state"), ["leaving"]);
    let agent = Agent::start(&dir);
    fs::remove_file(plugged.book("not-ready")).expect("a file of the test");
    plugged.becomes_ready().await;
    plugged.nothing_is_held().await;
    let pod = plugged.run("pod").await;
    assert!(plugged.node.operate(&["check"]).status.success());
    // It goes away under a pod that runs: the pod ends without it, and is let go of later.
    let asked = agent.end();
    for verb in ["ADD", "CHECK"] {
        let call = format!("{verb} {pod} ");
        assert!(
            asked.iter().any(|line| line.starts_with(&call)),
            "{asked:?}"
        );
    }
    fs::write(plugged.book("not-ready"), "no agent").expect("a file of the test");
    plugged.is_not_ready("the agent is away: no agent").await;
    plugged.go(&pod).await;
    assert_eq!(plugged.held(), std::slice::from_ref(&pod));
    let agent = Agent::start(&dir);
    fs::remove_file(plugged.book("not-ready")).expect("a file of the test");
    plugged.nothing_is_held().await;
    plugged.becomes_ready().await;
    agent.end();
}
