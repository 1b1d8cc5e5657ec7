//! Every recorded pod runs, side by side with the others, and behaves as Kubernetes documents it.

use std::collections::BTreeSet;
use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;

use futures_util::FutureExt;
use serde_json::Value;
use tonic::Code;

use super::{CONTAINERS, PODS, Replay, recorded, special};
use crate::support::cri::{ContainerState, ContainerStatus, PodSandboxState};
use crate::support::log::contents;
use crate::support::pod::exited;
use crate::support::{eventually, log};

/// How a recorded container lives.
#[derive(Debug, Clone, Copy)]
pub(super) enum Life {
    /// It runs until kubelet stops it: seconds of grace, and how it then ends.
    Stopped(i64, i32),
    /// It ends by itself, with this code and reason, and has printed this.
    Ends(i32, &'static str, &'static str),
    /// There is no such command.
    NoCommand,
}

use Life::{Ends, NoCommand, Stopped};

/// It has a handler for the stop signal.
const TRAPS: Life = Stopped(30, 0);
/// It has none, and is the first process of its PID namespace.
const KILLED: Life = Stopped(1, 137);
const OOM: Life = Ends(137, "OOMKilled", "");

/// A container: its recorded request, its life, and what commands in it print.
type Row = (&'static str, Life, &'static [(&'static str, &'static str)]);

/// Each recorded pod with its containers, in kubelet's order. Some have none: kubelet found their
/// image missing, or not allowed to run as root, and went no further.
pub(super) const TABLE: &[(&str, &[Row])] = &[
    ("always-node", &[("always-node-main", TRAPS, &[])]),
    ("badname-node", &[]),
    (
        "burstable-node",
        &[
            ("burstable-node-main", TRAPS, &[]),
            ("burstable-node-second", TRAPS, &[]),
        ],
    ),
    (
        "cfg",
        &[(
            "cfg-main",
            KILLED,
            &[
                ("echo $k $P", "v s3"),
                ("touch /cm/x || touch /sec/x || echo read-only", "read-only"),
            ],
        )],
    ),
    (
        "crash-node",
        &[
            ("crash-node-main", Ends(1, "Error", "dying"), &[]),
            ("crash-node-main-restart", Ends(1, "Error", "dying"), &[]),
        ],
    ),
    ("digest-node", &[("digest-node-main", TRAPS, &[])]),
    (
        "dns-node",
        &[(
            "dns-node-main",
            TRAPS,
            &[(
                "cat /etc/resolv.conf",
                "search a.example b.example\nnameserver 192.0.2.1\noptions ndots:2 edns0",
            )],
        )],
    ),
    ("guaranteed-node", &[("guaranteed-node-main", TRAPS, &[])]),
    ("hostns-node", &[("hostns-node-main", TRAPS, &[])]),
    (
        "hostport-node",
        &[(
            "hostport-node-web",
            Stopped(20, 137),
            &[("wget -qO- http://127.0.0.1/group | head -n 1", "root:x:0:")],
        )],
    ),
    ("ignoreterm-node", &[("ignoreterm-node-main", KILLED, &[])]),
    (
        "imagevol-node",
        &[(
            "imagevol-node-main",
            TRAPS,
            &[
                ("cat /iv/etc/mark", "schema2"),
                ("touch /iv/x || echo read-only", "read-only"),
            ],
        )],
    ),
    ("it", &[("it-it", KILLED, &[])]),
    (
        "job-82t6h",
        &[("job-82t6h-main", Ends(0, "Completed", "done"), &[])],
    ),
    (
        "job0-node",
        &[("job0-node-main", Ends(0, "Completed", "done"), &[])],
    ),
    (
        "job3-node",
        &[("job3-node-main", Ends(3, "Error", "failed"), &[])],
    ),
    ("lifecycle-node", &[("lifecycle-node-main", TRAPS, &[])]),
    (
        "multi-node",
        &[
            ("multi-node-init", Ends(0, "Completed", "init"), &[]),
            ("multi-node-sidecar", TRAPS, &[]),
            ("multi-node-one", TRAPS, &[]),
            ("multi-node-two", TRAPS, &[]),
        ],
    ),
    ("nevercreate-node", &[]),
    (
        "nocommand-node",
        &[
            ("nocommand-node-main", NoCommand, &[]),
            ("nocommand-node-main-restart", NoCommand, &[]),
        ],
    ),
    ("noimage-node", &[]),
    ("nonroot-node", &[]),
    ("noregistry-node", &[]),
    (
        "onfailure-node",
        &[
            ("onfailure-node-main", Ends(7, "Error", ""), &[]),
            ("onfailure-node-main-restart", Ends(7, "Error", ""), &[]),
        ],
    ),
    (
        "oom-node",
        &[
            ("oom-node-main", OOM, &[]),
            ("oom-node-main-restart", OOM, &[]),
        ],
    ),
    ("plain-node-attempt1", &[]),
    (
        "plain-node",
        &[(
            "plain-node-main",
            TRAPS,
            &[
                ("env | grep -c '^EMPTY=$'", "1"),
                (
                    "echo $EXPANDED $CPU $NODE $(pwd)",
                    "hello world! 2 node /tmp",
                ),
            ],
        )],
    ),
    ("podlevel-node", &[("podlevel-node-main", TRAPS, &[])]),
    (
        "poststartfail-node",
        &[
            ("poststartfail-node-main", TRAPS, &[]),
            ("poststartfail-node-main-restart", TRAPS, &[]),
        ],
    ),
    (
        "privileged-node",
        &[("privileged-node-main-Unknown", TRAPS, &[])],
    ),
    ("privileged2-node", &[("privileged2-node-main", TRAPS, &[])]),
    (
        "probefail-node",
        &[
            ("probefail-node-exec", TRAPS, &[]),
            ("probefail-node-exec-restart", TRAPS, &[]),
        ],
    ),
    (
        "probes-node",
        &[
            ("probes-node-exec", TRAPS, &[]),
            ("probes-node-web", Stopped(20, 137), &[]),
        ],
    ),
    (
        "probetimeout-node",
        &[("probetimeout-node-exec", TRAPS, &[])],
    ),
    (
        "secure-node",
        &[
            ("secure-node-local", TRAPS, SYSCTLS),
            (
                "secure-node-main",
                TRAPS,
                &[
                    // CAP_NET_ADMIN, and what a user who is not root has of it.
                    ("grep CapBnd /proc/self/status", "CapBnd:\t0000000000001000"),
                    ("grep CapEff /proc/self/status", "CapEff:\t0000000000000000"),
                    ("grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1"),
                    ("touch /x || echo read-only", "read-only"),
                    ("id -g; id -G", "3000\n3000 2000 5000 6000"),
                ],
            ),
            (
                "secure-node-unconf",
                TRAPS,
                &[("id -g; id -G", "0\n0 2000 5000 6000")],
            ),
        ],
    ),
    (
        "sharepid-node",
        &[
            ("sharepid-node-one", TRAPS, &[]),
            ("sharepid-node-two", TRAPS, &[]),
        ],
    ),
    ("stopsignal-node", &[("stopsignal-node-main", KILLED, &[])]),
    (
        "strictgroups-node",
        &[(
            "strictgroups-node-main",
            TRAPS,
            &[("id -g; id -G", "1000\n1000 7000")],
        )],
    ),
    (
        "tty-node",
        &[(
            "tty-node-main",
            KILLED,
            &[("readlink /proc/1/fd/0", "/dev/pts/0")],
        )],
    ),
    ("usernonum-node", &[]),
    (
        "userns-node",
        &[(
            "userns-node-main",
            TRAPS,
            &[
                (
                    "tr -s ' ' </proc/self/uid_map; tr -s ' ' </proc/self/gid_map",
                    " 0 3563520000 65536\n 0 3563520000 65536",
                ),
                ("stat -c %u:%g /etc/hosts /bin/sh", "0:0\n0:0"),
            ],
        )],
    ),
    ("volumes-node", &[]),
    ("volumes2-node", &[("volumes2-node-main", TRAPS, VOLUMES)]),
    (
        "web",
        &[
            ("web-web", Stopped(20, 137), &[]),
            ("web-debugger-8rrmr", Stopped(1, 143), &[]),
        ],
    ),
];

const SYSCTLS: &[(&str, &str)] = &[
    ("cat /proc/sys/net/core/somaxconn", "512"),
    ("cat /proc/sys/net/ipv4/ip_local_port_range", "1024\t65000"),
];

const VOLUMES: &[(&str, &str)] = &[
    ("echo $PN", "volumes2-node"),
    (
        "echo a >/empty/a && echo b >/mem/b && cat /empty/a /mem/b",
        "a\nb",
    ),
    (
        "touch /host/x || touch /etc/podinfo/x || echo read-only",
        "read-only",
    ),
    ("echo c >/prop/c && cat /host/c", "c"),
    ("cat /etc/thefile", "# file"),
    ("echo d >/sub/d && ls /sub /expr", "/expr:\n\n/sub:\nd"),
];

/// A container of a pod that runs.
pub(super) struct Running {
    pub(super) name: &'static str,
    pub(super) id: String,
    grace_s: i64,
    code: i32,
}

#[tokio::test]
async fn every_recorded_pod_runs_and_behaves_as_documented() {
    let replay = Replay::start().await;
    let names = |text| recorded(text).keys().cloned().collect::<BTreeSet<_>>();
    let pods: BTreeSet<_> = TABLE.iter().map(|(pod, _)| (*pod).to_owned()).collect();
    assert_eq!(pods, names(PODS), "each recorded pod is in the table");
    let rows = TABLE.iter().flat_map(|(_, rows)| rows.iter());
    let containers: BTreeSet<_> = rows.map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(containers, names(CONTAINERS), "and each container");
    // All of them, whatever becomes of one: what is wrong is told of each.
    let lives = TABLE.iter().map(|(pod, rows)| async {
        let life = AssertUnwindSafe(replay.live(pod, rows))
            .catch_unwind()
            .await;
        life.err().map(|_| *pod)
    });
    let failed = futures_util::future::join_all(lives).await;
    let failed: Vec<_> = failed.into_iter().flatten().collect();
    assert!(
        failed.is_empty(),
        "pods that failed, as told above: {failed:?}"
    );
}

impl Replay {
    /// One pod from its first request to its last.
    async fn live(&self, name: &'static str, rows: &'static [Row]) {
        let cri = &self.node.cri;
        let request = recorded(PODS)[name].clone();
        let pod = self.run_pod(&request).await;
        let pod = pod.unwrap_or_else(|error| panic!("pod {name}: {error}"));
        let status = cri.pod_status(&pod).await.expect("PodSandboxStatus");
        assert_eq!(status.state(), PodSandboxState::SandboxReady, "{name}");
        let namespaces = &request["config"]["linux"]["security_context"]["namespace_options"];
        let address = status.network.map(|network| network.ip).unwrap_or_default();
        let on_node = namespaces["network"] == "NODE";
        assert_eq!(
            address.is_empty(),
            on_node,
            "address of {name}: {address:?}"
        );

        let mut all = Vec::new();
        let mut running: Vec<Running> = Vec::new();
        for (container, life, seen) in rows {
            if container.ends_with("-restart") {
                // What failed its probe or its hook is stopped before it is made anew.
                self.stop(std::mem::take(&mut running)).await;
            }
            let request = self.request_for(container, &running);
            let id = self.create(&request, &pod).await;
            let id = id.unwrap_or_else(|error| panic!("CreateContainer {container}: {error}"));
            all.push(id.clone());
            if special::cannot_run(self, container, &id).await {
                continue;
            }
            match life {
                Ends(..) | NoCommand => self.ends(container, &id, *life).await,
                Stopped(grace_s, code) => {
                    cri.start(&id)
                        .await
                        .unwrap_or_else(|e| panic!("{container}: {e}"));
                    special::check_settings(self, container, &request, &id).await;
                    for (script, expected) in *seen {
                        let said = cri.output(&id, script).await;
                        assert_eq!(said, *expected, "{container}: {script}");
                    }
                    running.push(Running {
                        name: container,
                        id,
                        grace_s: *grace_s,
                        code: *code,
                    });
                }
            }
            special::check_container(self, container, &running).await;
        }
        self.stop(running).await;
        self.remove(name, &pod, &all).await;
    }

    /// The recorded request, for the containers that run here.
    fn request_for(&self, container: &str, running: &[Running]) -> Value {
        let mut request = recorded(CONTAINERS)[container].clone();
        let options = &mut request["config"]["linux"]["security_context"]["namespace_options"];
        if options["pid"] == "TARGET" {
            options["target_id"] = running[0].id.clone().into();
        }
        request
    }

    /// What ends by itself, or never begins.
    async fn ends(&self, name: &str, id: &str, life: Life) {
        let cri = &self.node.cri;
        let started = cri.start(id).await;
        let status: ContainerStatus = match life {
            NoCommand => {
                let error = started.expect_err("no such command");
                assert!(error.message().contains("/no/such/command"), "{error}");
                let status = cri.status(id).await.expect("ContainerStatus");
                assert_eq!(status.started_at, 0, "{name} never ran");
                status
            }
            _ => {
                started.unwrap_or_else(|error| panic!("{name}: {error}"));
                exited(cri, id).await
            }
        };
        let (code, reason, printed) = match life {
            Ends(code, reason, printed) => (code, reason, printed),
            _ => (128, "StartError", ""),
        };
        let found = (status.state(), status.exit_code, status.reason.as_str());
        let expected = (ContainerState::ContainerExited, code, reason);
        assert_eq!(found, expected, "{name}: {}", status.message);
        assert!(status.finished_at >= status.started_at, "{name}");
        let lines = contents(&log::read(&PathBuf::from(&status.log_path)), "stdout");
        assert_eq!(lines.join("\n"), printed, "log of {name}");
    }

    /// All at once, as kubelet does.
    async fn stop(&self, running: Vec<Running>) {
        // Whose PID namespace another one is the first process of would be killed with that.
        let guest = |container: &Running| container.name.starts_with("web-debugger");
        let (guests, others): (Vec<_>, Vec<_>) = running.into_iter().partition(guest);
        self.stop_all(guests).await;
        self.stop_all(others).await;
    }

    async fn stop_all(&self, running: Vec<Running>) {
        let stops = running.iter().map(|container| async {
            let cri = &self.node.cri;
            cri.stop(&container.id, container.grace_s)
                .await
                .expect("StopContainer");
            let status = cri.status(&container.id).await.expect("ContainerStatus");
            assert_eq!(status.exit_code, container.code, "{}", container.name);
            let reason = if container.code == 0 {
                "Completed"
            } else {
                "Error"
            };
            assert_eq!(status.reason, reason, "{}", container.name);
        });
        futures_util::future::join_all(stops).await;
    }

    /// The order in which kubelet takes a pod away.
    async fn remove(&self, name: &str, pod: &str, containers: &[String]) {
        let cri = &self.node.cri;
        cri.stop_pod(pod).await.expect("StopPodSandbox");
        for id in containers {
            cri.remove(id).await.expect("RemoveContainer");
            let gone = cri.status(id).await.expect_err("a removed container");
            assert_eq!(gone.code(), Code::NotFound, "{name}");
        }
        let status = cri.pod_status(pod).await.expect("PodSandboxStatus");
        assert_eq!(status.state(), PodSandboxState::SandboxNotready, "{name}");
        cri.stop_pod(pod).await.expect("StopPodSandbox again");
        cri.remove_pod(pod).await.expect("RemovePodSandbox");
    }

    /// The file on the node that a container has at `path`.
    pub(super) fn host_file(&self, container: &str, path: &str) -> String {
        let request = &recorded(CONTAINERS)[container];
        let mounts = request["config"]["mounts"].as_array().expect("mounts");
        let mount = mounts.iter().find(|mount| mount["container_path"] == path);
        let host = mount.expect("a mount")["host_path"]
            .as_str()
            .expect("a path")
            .to_owned();
        let host = self.node.path("volumes").join(host.trim_start_matches('/'));
        fs::read_to_string(&host).unwrap_or_else(|e| panic!("{}: {e}", host.display()))
    }
}

/// Runs a command as a probe or a hook does, and returns its exit code.
pub(super) async fn probe(replay: &Replay, id: &str, command: &[&str], timeout_s: i64) -> i32 {
    let response = replay.node.cri.exec(id, command, timeout_s).await;
    response.expect("ExecSync").exit_code
}

/// Waits until a server in the container answers.
pub(super) async fn serves(replay: &Replay, id: &str) -> String {
    eventually("the server answers", || async {
        let command = ["wget", "-qO-", "http://127.0.0.1/group"];
        let response = replay
            .node
            .cri
            .exec(id, &command, 20)
            .await
            .expect("ExecSync");
        let text = String::from_utf8_lossy(&response.stdout).into_owned();
        (response.exit_code == 0).then_some(text)
    })
    .await
}
