//! Launches that hang, and what goes on meanwhile.

use super::*;
use crate::shim::client::Seen;

/// A frozen cgroup of the test's own: a child that joins it stops there, and cannot be killed.
struct Frozen(PathBuf);

impl Frozen {
    fn new(name: &str) -> Frozen {
        let name = format!("qlt-shim-{name}-{}", std::process::id());
        let path = Path::new("/sys/fs/cgroup/freezer").join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("freezer.state"), "FROZEN").unwrap();
        Frozen(path)
    }

    fn entry(&self) -> CgroupEntry {
        CgroupEntry {
            oom_counter: None,
            unified_dir: None,
            v1_tasks_files: vec![self.0.join("tasks")],
        }
    }

    fn tasks(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.0.join("tasks")).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    async fn holds_a_process(&self) {
        until("the child is frozen", || !self.tasks().is_empty()).await;
    }

    fn thaw(&self) {
        let _ = fs::write(self.0.join("freezer.state"), "THAWED");
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw();
        let end = Instant::now() + BOUND;
        while fs::remove_dir(&self.0).is_err() && Instant::now() < end {
            for task in self.tasks() {
                let _ = kill_process(pid(task), Signal::KILL);
            }
            std::thread::yield_now();
        }
    }
}

fn frozen_plan(node: &Node, id: &str, script: &str, frozen: &Frozen) -> PathBuf {
    let args = ["/bin/busybox", "sh", "-c", script];
    node.plan_with(id, &args, |plan| plan.cgroup = frozen.entry())
}

fn launching(
    shim: &ShimClient,
    id: &'static str,
    plan: &Path,
) -> tokio::task::JoinHandle<Result<Launched, ShimClientError>> {
    let (shim, plan) = (shim.clone(), plan.to_owned());
    tokio::spawn(async move { shim.launch(id, &plan).await })
}

#[tokio::test]
async fn a_launch_that_hangs_holds_up_nothing_and_whoever_asks_again_joins_it() {
    let node = Node::new();
    let frozen = Frozen::new("hang");
    let (shim, mut events) = node.connect().await;
    let plan = frozen_plan(&node, "hung", "exit 6", &frozen);
    let first = launching(&shim, "hung", &plan);
    frozen.holds_a_process().await;
    let second = launching(&shim, "hung", &plan);

    let start = Instant::now();
    node.run(&shim, "lively", "echo said; exit 5").await;
    let exit = next_exit(&mut events).await;
    assert_eq!((exit.id.as_str(), exit.code), ("lively", 5));
    assert_eq!(node.content("lively"), "said\n");
    shim.acknowledge(exit.sequence).await.unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    assert!(matches!(
        shim.forget("hung").await,
        Err(ShimClientError::Refused(Refusal::Running(_)))
    ));
    assert!(matches!(
        shim.pod_init("hung", Default::default()).await,
        Err(ShimClientError::Refused(Refusal::InUse(_)))
    ));
    assert!(!first.is_finished() && !second.is_finished());
    assert_eq!(frozen.tasks().len(), 1, "it was begun once");

    frozen.thaw();
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(
        (first.pid, first.start_time),
        (second.pid, second.start_time)
    );
    assert_eq!(next_exit(&mut events).await.code, 6);
}

#[tokio::test]
async fn a_launch_outlives_the_connection_that_asked_for_it() {
    let node = Node::new();
    let frozen = Frozen::new("orphan");
    let (shim, events) = node.connect().await;
    let plan = frozen_plan(&node, "c", "exec /bin/busybox sleep 100", &frozen);
    let asked = launching(&shim, "c", &plan);
    frozen.holds_a_process().await;
    let child = frozen.tasks()[0];
    let (next, mut next_events) = node.connect().await;
    let gone = timeout(BOUND, asked).await.unwrap().unwrap();
    assert!(matches!(gone, Err(ShimClientError::Disconnected)));
    drop((shim, events));
    assert_eq!(next.look("c").await.unwrap(), Seen::UnderWay);
    assert_eq!(next.look("d").await.unwrap(), Seen::Nothing);
    let joined = launching(&next, "c", &plan);
    next.ping().await.unwrap();
    frozen.thaw();
    let launched = joined.await.unwrap().unwrap();
    assert_eq!(launched.pid, child);
    let Seen::Held(held, started_at_ns) = next.look("c").await.unwrap() else {
        panic!("it is held");
    };
    assert_eq!((held.pid, started_at_ns), (child, launched.started_at_ns));
    signal(&launched, Signal::KILL);
    assert_eq!(next_exit(&mut next_events).await.signal, Some(9));
}

#[tokio::test]
async fn an_exec_whose_requester_is_gone_is_ended() {
    let node = Node::new();
    let frozen = Frozen::new("exec");
    let (shim, events) = node.connect().await;
    let container = node.run(&shim, "host", "exec /bin/busybox sleep 100").await;
    let mut plan = exec_plan("exec /bin/busybox sleep 100");
    plan.cgroup = frozen.entry();
    let asked = tokio::spawn({
        let shim = shim.clone();
        async move { shim.exec("e", "host", &plan, None).await.map(drop) }
    });
    frozen.holds_a_process().await;
    let (next, mut next_events) = node.connect().await;
    assert!(timeout(BOUND, asked).await.unwrap().unwrap().is_err());
    drop((shim, events));
    frozen.thaw();
    until("it is ended", || frozen.tasks().is_empty()).await;
    assert_eq!(next.list().await.unwrap().len(), 1);
    signal(&container, Signal::KILL);
    assert_eq!(next_exit(&mut next_events).await.id.as_str(), "host");
}

#[tokio::test]
async fn a_launch_that_takes_too_long_fails_with_the_stage_it_hung_at() {
    let node = Node::with("QUILT_TEST_LAUNCH_MS=200");
    let frozen = Frozen::new("late");
    let (shim, mut events) = node.connect().await;
    let plan = frozen_plan(&node, "late", "true", &frozen);
    let error = shim.launch("late", &plan).await;
    let Err(ShimClientError::Launch(error)) = error else {
        panic!("{error:?}");
    };
    assert_eq!(error.stage, "timeout");
    assert!(error.message.ends_with("it reached: cgroup"), "{error}");
    // Told although it cannot be killed yet. Its name is free, and nothing of it is held.
    assert_eq!(frozen.tasks().len(), 1);
    assert!(shim.list().await.unwrap().is_empty());
    frozen.thaw();
    until("it is killed", || frozen.tasks().is_empty()).await;
    node.run(&shim, "late", "exit 3").await;
    assert_eq!(next_exit(&mut events).await.code, 3);
}

#[tokio::test]
async fn a_child_killed_before_its_command_is_a_launch_that_failed() {
    let node = Node::new();
    let frozen = Frozen::new("killed");
    let (shim, _events) = node.connect().await;
    let plan = frozen_plan(&node, "c", "true", &frozen);
    let asked = launching(&shim, "c", &plan);
    frozen.holds_a_process().await;
    let child = frozen.tasks()[0];
    kill_process(pid(child), Signal::KILL).unwrap();
    frozen.thaw();
    let error = asked.await.unwrap();
    let Err(ShimClientError::Launch(error)) = error else {
        panic!("{error:?}");
    };
    assert!(error.message.contains("killed before"), "{error}");
    assert!(shim.list().await.unwrap().is_empty());
    let proc = PathBuf::from(format!("/proc/{child}"));
    assert!(!proc.exists(), "it was reaped before the answer");
}

#[tokio::test]
async fn a_child_at_work_holds_no_descriptor_of_its_shim() {
    let node = Node::new();
    let frozen = Frozen::new("fds");
    let (shim, _events) = node.connect().await;
    let plan = frozen_plan(&node, "c", "true", &frozen);
    let asked = launching(&shim, "c", &plan);
    frozen.holds_a_process().await;
    let held = fs::read_dir(format!("/proc/{}/fd", frozen.tasks()[0])).unwrap();
    let held: Vec<_> = held
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap_or_default())
        .collect();
    // Three streams each of the shim's and its own, the channel, and the file it wrote to.
    assert!(held.len() <= 8, "{held:?}");
    frozen.thaw();
    asked.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_launch_tells_who_the_process_runs_as() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    let as_user = |plan: &mut LaunchPlan| {
        plan.user.user = "33:44".to_owned();
        plan.user.additional_gids = vec![50];
    };
    let plan = node.plan_with("c", &["/bin/busybox", "sleep", "100"], as_user);
    let launched = shim.launch("c", &plan).await.unwrap();
    let identity = launched.identity.clone().unwrap();
    assert_eq!((identity.uid, identity.gid), (33, 44));
    assert_eq!(identity.groups, [44, 50]);
    assert_eq!(shim.handles("c").await.unwrap().identity, Some(identity));
    signal(&launched, Signal::KILL);
    let exit = next_exit(&mut events).await;
    assert!(launched.started_at_ns > 0 && launched.started_at_ns <= exit.at_ns);
}
