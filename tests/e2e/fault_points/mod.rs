//! Every point that `quiltd fault-points` lists, walked: the daemon dies there, or the step fails,
//! for the moment or for good, or waits, in the middle of a pod's whole life. What shows afterwards
//! is whole or not there, the call that was cut off succeeds when it is made again, and everything
//! can be removed.
//!
//! One life walks many points. Deaths come one after another: each restart arms the next point.
//! Failures are armed together, each to happen once. A point that a shared life did not come to
//! gets one of its own, in which it must be reached: a point that nothing reaches proves nothing.

mod apart;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nix::sys::signal::Signal;
use tonic::{Code, Status};

use crate::support::cri::*;
use crate::support::node::quiltd;
use crate::support::pod::{container, namespaces, shell};
use crate::support::wait::{BOUND, appears};
use crate::support::{Cri, Node, registry};

/// The variable that names the file with the armed points.
const FILE_VARIABLE: &str = "QUILT_FAULTS_FILE";
/// Lives among which the points are dealt out, so that those of one life lie apart.
const LIVES: usize = 8;
/// Tests that share the lives, so that they run side by side.
const SHARES: usize = 2;
/// Tries of a call whose step may fail several times.
const TRIES: u32 = 60;

/// Walked elsewhere: by the tests of the sweep, of the image store, of the network and of plugins'
/// networks, and by the last test here.
const ELSEWHERE: &[&str] = &[
    "attachment.adding",
    "attachment.called",
    "attachment.failed",
    "attachment.undone",
    "attachment.added",
    "attachment.released",
    "attachment.leaving",
    "attachment.detached",
    "attachment.deleted",
    "image.blob_kept",
    "image.layer_beside",
    "image.layer_exchanged",
    "image.layer_replaced",
    "shim.adopted",
    "shim.exit_lost",
    "sandbox.lacking",
    "sandbox.pinned",
    "sandbox.given_back",
    "sandbox.mended",
    "sandbox.init_ended",
    "sweep.mended",
    "snapshot.copied",
    "container.runtime_deleted",
    "sandbox.policy",
    "netlink.sent",
    "prepared.dropped",
];

/// What has to go wrong first for a point to be reached.
const BEFORE: &[(&str, &str)] = &[
    ("sandbox.failed", "sandbox.files=fail*1"),
    ("container.error", "container.directory=fail*1"),
    ("container.emptied", "container.starting=error*1"),
    ("container.resumed", "container.launched=error*1"),
];

/// Every point, in the daemon's own order.
fn points() -> Vec<String> {
    let output = Command::new(quiltd())
        .arg("fault-points")
        .output()
        .expect("quiltd runs");
    assert!(
        output.status.success(),
        "{} has no fault points: build it with --features fault-points, as `make e2e` does: {}",
        quiltd().display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("names");
    let names = text
        .split_whitespace()
        .filter(|name| !ELSEWHERE.contains(name));
    names.map(str::to_owned).collect()
}

/// Points that only a daemon's start comes by.
fn is_start(point: &str) -> bool {
    let later = ["sweep.mended", "shim.adopted", "shim.exit_lost"];
    ["recovery.", "network.", "sweep.", "shim."]
        .iter()
        .any(|kind| point.starts_with(kind))
        && !later.contains(&point)
}

/// What a point does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Abort,
    Error,
    Fail,
    Delay,
}

impl Action {
    fn arm(self, point: &str) -> String {
        let own = match self {
            Self::Abort => format!("{point}=abort*1"),
            Self::Error => format!("{point}=error*1"),
            Self::Fail => format!("{point}=fail*1"),
            Self::Delay => format!("{point}=delay:30"),
        };
        let before = BEFORE.iter().find(|(of, _)| *of == point);
        before.map_or(own.clone(), |(_, before)| format!("{before};{own}"))
    }

    /// Whether a call may fail without the daemon dying.
    fn fails_calls(self, points: &[String]) -> bool {
        let goes_wrong_first = |point: &String| BEFORE.iter().any(|(of, _)| of == point);
        matches!(self, Self::Error | Self::Fail) || points.iter().any(goes_wrong_first)
    }
}

/// A node on which one life after another is lived.
struct Walk {
    node: Node,
    file: PathBuf,
    action: Action,
    /// Armed one after another, last first; with failures, all at once.
    left: Vec<String>,
    armed: String,
    forgiving: bool,
    lives: u32,
}

impl Walk {
    async fn begin(action: Action) -> Self {
        Self::begin_with(action, "").await
    }

    /// With more of a configuration.
    async fn begin_with(action: Action, extra: &str) -> Self {
        let mut node = Node::prepare(extra);
        node.prepare_networks(2);
        let file = node.path("faults");
        std::fs::write(&file, "").expect("a file of the test");
        node.env = vec![(FILE_VARIABLE.into(), file.display().to_string())];
        node.restart().await;
        Self {
            node,
            file,
            action,
            left: Vec::new(),
            armed: String::new(),
            forgiving: false,
            lives: 0,
        }
    }

    fn arm(&mut self, text: String) {
        let new = self.file.with_extension("new");
        std::fs::write(&new, &text).expect("a file of the test");
        std::fs::rename(&new, &self.file).expect("a file of the test");
        self.armed = text;
    }

    fn disarm(&mut self) {
        self.arm(String::new());
    }

    /// Deaths are armed one by one, everything else together.
    fn arm_next(&mut self) {
        let text = if self.action == Action::Abort {
            let next = self.left.pop();
            next.map_or(String::new(), |point| self.action.arm(&point))
        } else {
            let all = std::mem::take(&mut self.left);
            let all: Vec<_> = all.iter().map(|point| self.action.arm(point)).collect();
            all.join(";")
        };
        self.arm(text);
    }

    /// The points that have fired, ever.
    fn fired(&self) -> BTreeSet<String> {
        let mut path = self.file.clone().into_os_string();
        path.push(".fired");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Makes a call until it succeeds: again after each death of the daemon, and after failures if
    /// such are armed.
    async fn call<T>(&mut self, what: &str, call: impl AsyncFn(Cri) -> Result<T, Status>) -> T {
        for _ in 0..TRIES {
            let error = match call(self.node.cri.clone()).await {
                Ok(done) => return done,
                Err(error) => error,
            };
            // A failed call may be answered a moment before the process is gone.
            let patience = if self.forgiving { 200 } else { 2000 };
            if self.died(Duration::from_millis(patience)).await {
                self.come_back(what).await;
            } else {
                assert!(self.forgiving, "{}: {what}: {error}", self.armed);
            }
        }
        panic!("{}: {what} never succeeds", self.armed);
    }

    /// Whether the daemon has ended at its point.
    async fn died(&mut self, patience: Duration) -> bool {
        let node = &mut self.node;
        let ended = appears(patience, || {
            let ended = node.ended();
            async move { ended }
        });
        match ended.await {
            Some(status) => {
                self.check_death(status);
                true
            }
            None => false,
        }
    }

    /// A death must be that of the armed point; a start that fails says so and ends.
    fn check_death(&self, status: ExitStatus) {
        let at_its_point = match self.action {
            Action::Abort => {
                let own = self.armed.rsplit(';').next().unwrap_or_default();
                let point = own.split('=').next().unwrap_or_default();
                status.signal() == Some(Signal::SIGABRT as i32) && self.fired().contains(point)
            }
            _ => status.code() == Some(1) && self.armed.contains("recovery."),
        };
        let tail = self.node.log_tail();
        assert!(at_its_point, "{}: ended with {status}:\n{tail}", self.armed);
    }

    /// Restarts without a point, checks that what shows is whole, and arms the next one.
    async fn come_back(&mut self, what: &str) {
        let armed = self.armed.clone();
        self.disarm();
        self.node.restart().await;
        check_whole(&self.node.cri, &format!("{armed}: {what}")).await;
        self.arm_next();
    }

    /// Restarts the daemon as an upgrade does, once for each point of a start.
    async fn upgrade(&mut self, starts: &[String]) {
        for point in starts {
            let rest = std::mem::take(&mut self.armed);
            let status = self.node.terminate();
            assert!(status.success(), "{point}: ended with {status}");
            let text = self.action.arm(point);
            self.arm(text);
            self.node.spawn();
            if let Some(status) = self.node.answers_or_ends().await {
                self.check_death(status);
                self.disarm();
                self.node.restart().await;
            }
            check_whole(&self.node.cri, point).await;
            self.arm(rest);
        }
    }

    /// The daemon's end: networks that wait for a pod go with it.
    fn end(mut self) {
        assert!(self.node.terminate().success());
    }

    /// A whole life that meets these points.
    async fn live(&mut self, points: &[String]) {
        self.lives += 1;
        self.forgiving = self.action.fails_calls(points);
        let (starts, others): (Vec<_>, Vec<_>) = points.iter().cloned().partition(|p| is_start(p));
        // Nothing of an earlier life is left, so that images are pulled anew.
        let mut pod = self.node.pod_config("fault");
        if points.iter().any(|point| point.starts_with("sandbox.init")) {
            namespaces(&mut pod).pid = NamespaceMode::Pod as i32;
        }
        self.left = others.into_iter().rev().collect();
        self.arm_next();
        self.come_up(&pod, &starts).await;
        self.nothing_is_left().await;
        // Whoever restarts has them swept all the same; these come by at any time.
        let ended = self.node.ended();
        assert!(ended.is_none(), "{}: {ended:?}", self.armed);
        self.disarm();
    }

    /// Pull, run, create, start, exec, end, stop, remove: everything a pod goes through.
    async fn come_up(&mut self, pod: &PodSandboxConfig, starts: &[String]) {
        let image = registry().image("busybox:latest");
        let name = image.as_str();
        let missing = registry().image("not-there:latest");
        self.call("PullImage of nothing", async |cri| {
            match cri.pull(&missing).await {
                Err(error) if error.code() == Code::NotFound => Ok(()),
                Err(error) => Err(error),
                Ok(id) => panic!("{missing} is {id}"),
            }
        })
        .await;
        self.call("PullImage", async |cri| cri.pull(name).await)
            .await;
        self.call("PullImage again", async |cri| cri.pull(name).await)
            .await;
        let id = self
            .call("RunPodSandbox", async |cri| cri.run_pod(pod).await)
            .await;
        let waiting = shell(
            "waiting",
            "trap 'exit 5' TERM; while :; do sleep 0.02; done",
        );
        let waits = self.run(&id, &waiting, pod).await;
        let stubborn = self.run(&id, &shell("stubborn", "sleep 1000"), pod).await;
        let ends = self.run(&id, &shell("ending", "exit 7"), pod).await;
        let code = self
            .call("the end of a container", async |cri| {
                ended(&cri, &ends).await
            })
            .await;
        assert_eq!(code, 7, "{}: the exact code, whatever happened", self.armed);
        let broken = container("broken", &["/not/there"]);
        self.call("StartContainer of nothing", async |cri| {
            let id = cri.create(&id, &broken, pod).await?;
            let started = cri.start(&id).await;
            let status = cri.status(&id).await?;
            match (started, status.state()) {
                (Err(_), ContainerState::ContainerExited) => Ok(()),
                (Err(error), _) => Err(error),
                (Ok(()), state) => panic!("/not/there is {state:?}"),
            }
        })
        .await;
        self.upgrade(starts).await;
        self.call("ExecSync", async |cri| {
            cri.exec(&waits, &["true"], 10).await.map(drop)
        })
        .await;
        self.call("ReopenContainerLog", async |cri| {
            cri.reopen_log(&waits).await
        })
        .await;
        let limits = LinuxContainerResources {
            cpu_shares: 300,
            ..Default::default()
        };
        self.call("UpdateContainerResources", async |cri| {
            cri.update(&waits, limits.clone()).await
        })
        .await;
        self.call("UpdatePodSandboxResources", async |cri| {
            limit_pod(&cri, &id).await
        })
        .await;
        self.go_down(&id, &waits, &stubborn, name).await;
    }

    async fn go_down(&mut self, pod: &str, waits: &str, stubborn: &str, image: &str) {
        self.call("RemoveContainer", async |cri| cri.remove(stubborn).await)
            .await;
        self.call("StopContainer", async |cri| cri.stop(waits, 10).await)
            .await;
        self.call("RemoveContainer", async |cri| cri.remove(waits).await)
            .await;
        self.call("StopPodSandbox", async |cri| cri.stop_pod(pod).await)
            .await;
        self.call("RemovePodSandbox", async |cri| cri.remove_pod(pod).await)
            .await;
        self.call("RemoveImage", async |cri| cri.remove_image(image).await)
            .await;
    }

    /// A container that has been started. One whose start failed for good is removed and made anew,
    /// as kubelet does.
    async fn run(&mut self, pod: &str, config: &ContainerConfig, of: &PodSandboxConfig) -> String {
        self.call("a container", async |cri| {
            let id = cri.create(pod, config, of).await?;
            let Err(error) = cri.start(&id).await else {
                return Ok(id);
            };
            let status = cri.status(&id).await?;
            match status.state() {
                ContainerState::ContainerExited if status.exit_code == 128 => {
                    cri.remove(&id).await?;
                    Err(error)
                }
                // The first call had done it.
                ContainerState::ContainerRunning | ContainerState::ContainerExited => Ok(id),
                _ => Err(error),
            }
        })
        .await
    }

    /// The last removals go on behind their answers, and so may the daemon die behind them.
    async fn nothing_is_left(&mut self) {
        let mut rows = String::new();
        for _ in 0..TRIES {
            let node = &self.node;
            let gone = appears(Duration::from_millis(500), || {
                let output = node.operate(&["inventory"]);
                rows = String::from_utf8_lossy(&output.stdout).into_owned();
                let living = ["sandboxes", "containers", "snapshots", "layers", "jobs"];
                let zero = |table: &&str| rows.lines().any(|line| line == format!("{table} 0"));
                let gone = output.status.success() && living.iter().all(zero);
                async move { gone.then_some(()) }
            });
            let gone = gone.await.is_some();
            if self.died(Duration::ZERO).await {
                self.come_back("afterwards").await;
            } else if gone {
                return;
            }
        }
        panic!("{}: left behind:\n{rows}", self.armed);
    }

    /// Lives until all these points have been met.
    async fn meet(&mut self, points: &[String]) {
        self.live(points).await;
        let fired = self.fired();
        for point in points.iter().filter(|point| !fired.contains(*point)) {
            self.live(std::slice::from_ref(point)).await;
            let reached = self.fired().contains(point);
            assert!(reached, "{point} is never reached: it proves nothing");
        }
    }
}

/// What shows is whole: a ready pod has its address, a running container its process, an image its
/// layers. It may be on its way down, and then gone the next moment; never half there.
async fn check_whole(cri: &Cri, when: &str) {
    for pod in cri.list_pods(None).await.expect("ListPodSandbox") {
        let status = match cri.pod_status(&pod.id).await {
            Err(gone) if gone.code() == Code::NotFound => continue,
            found => found.expect("PodSandboxStatus"),
        };
        let further = status.state() == PodSandboxState::SandboxNotready;
        assert!(status.state == pod.state || further, "{when}");
        if status.state() == PodSandboxState::SandboxReady {
            let ip = status.network.map(|network| network.ip).unwrap_or_default();
            assert!(!ip.is_empty(), "{when}: ready without an address");
        }
    }
    for container in cri.list(None).await.expect("ListContainers") {
        let running = match cri.status(&container.id).await {
            Err(gone) if gone.code() == Code::NotFound => continue,
            found => found.expect("ContainerStatus").state() == ContainerState::ContainerRunning,
        };
        if running && let Err(error) = cri.exec(&container.id, &["true"], 10).await {
            // It may end while we look, and then it is exited in a moment, not half there.
            let gone = appears(BOUND, || async {
                match cri.status(&container.id).await {
                    Ok(now) => now.state() == ContainerState::ContainerExited,
                    Err(error) => error.code() == Code::NotFound,
                }
                .then_some(())
            });
            let gone = gone.await.is_some();
            assert!(gone, "{when}: running and not there: {error}");
        }
    }
    for image in cri.list_images().await.expect("ListImages") {
        assert!(image.size > 0 && !image.id.is_empty(), "{when}: {image:?}");
    }
}

/// The exit code of a container that ends by itself.
/// Other limits for a pod, in terms of the newest API.
async fn limit_pod(cri: &Cri, id: &str) -> Result<(), Status> {
    let message = quilt::proto::cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: id.into(),
        resources: Some(quilt::proto::cri::LinuxContainerResources {
            cpu_shares: 300,
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut runtime =
        quilt::proto::cri::runtime_service_client::RuntimeServiceClient::new(cri.channel());
    let updated = runtime.update_pod_sandbox_resources(cri.wrap(message));
    updated.await.map(drop)
}

async fn ended(cri: &Cri, id: &str) -> Result<i32, Status> {
    let end = appears(BOUND, || async {
        match cri.status(id).await {
            Ok(status) if status.state() == ContainerState::ContainerExited => {
                Some(Ok(status.exit_code))
            }
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        }
    });
    end.await
        .unwrap_or_else(|| Err(Status::deadline_exceeded("the container does not end")))
}

/// Every `LIVES`th point, of each life of one share.
async fn walk(action: Action, share: usize) {
    let points = points();
    assert!(points.len() > 50, "a pod's life has more steps: {points:?}");
    let mut walk = Walk::begin(action).await;
    for life in (share..LIVES).step_by(SHARES) {
        let dealt: Vec<_> = points.iter().skip(life).step_by(LIVES).cloned().collect();
        walk.meet(&dealt).await;
    }
    println!("{} lives", walk.lives);
    walk.end();
}

#[tokio::test]
async fn a_daemon_that_dies_at_any_point_leaves_the_whole_or_nothing_first_share() {
    walk(Action::Abort, 0).await;
}

#[tokio::test]
async fn a_daemon_that_dies_at_any_point_leaves_the_whole_or_nothing_second_share() {
    walk(Action::Abort, 1).await;
}

#[tokio::test]
async fn a_step_that_fails_at_any_point_is_tried_again_first_share() {
    walk(Action::Error, 0).await;
}

#[tokio::test]
async fn a_step_that_fails_at_any_point_is_tried_again_second_share() {
    walk(Action::Error, 1).await;
}

/// The long form: failures for good, and delays.
#[tokio::test]
async fn a_step_that_fails_for_good_or_waits_at_any_point_leaves_the_whole_or_nothing() {
    if std::env::var_os("QUILT_SOAK").is_none() {
        return;
    }
    for action in [Action::Fail, Action::Delay] {
        for share in 0..SHARES {
            walk(action, share).await;
        }
    }
}

#[tokio::test]
async fn a_step_that_panics_is_tried_again_and_the_daemon_goes_on() {
    let mut walk = Walk::begin(Action::Error).await;
    walk.arm("job.claimed=panic*1;sandbox.directory=panic*1".into());
    let image = registry().image("busybox:latest");
    walk.node.cri.pull(&image).await.expect("PullImage");
    let pod = walk.node.pod_config("panic");
    let id = walk.node.cri.run_pod(&pod).await.expect("RunPodSandbox");
    let fired: Vec<_> = walk.fired().into_iter().collect();
    assert_eq!(fired, ["job.claimed", "sandbox.directory"]);
    assert!(walk.node.ended().is_none(), "the daemon goes on");
    walk.node
        .cri
        .remove_pod(&id)
        .await
        .expect("RemovePodSandbox");
    // Outside of a step a panic is the end: what goes on would be half a daemon.
    walk.arm("writer.begin=panic*1".into());
    let _cut_off = walk.node.cri.run_pod(&pod).await;
    let status = appears(BOUND, || {
        let ended = walk.node.ended();
        async move { ended }
    });
    let status = status.await.expect("the daemon ends");
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32));
    walk.disarm();
    walk.node.restart().await;
    let pods = walk.node.cri.list_pods(None).await.expect("ListPodSandbox");
    for pod in pods {
        let removed = walk.node.cri.remove_pod(&pod.id).await;
        removed.expect("RemovePodSandbox");
    }
    let removed = walk.node.cri.remove_image(&image).await;
    removed.expect("RemoveImage");
    walk.nothing_is_left().await;
    walk.end();
}

#[tokio::test]
async fn a_point_that_does_not_exist_is_refused() {
    let mut node = Node::prepare("");
    node.env = vec![("QUILT_FAULTS".into(), "no.such.point=abort".into())];
    let said = node.refused(&mut node.serve());
    assert!(said.contains("no.such.point"), "{said}");
}
