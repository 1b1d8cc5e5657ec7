//! The whole shim: real processes, real sockets, real deaths.
//!
//! The shim of these tests is this test binary, run again through a two-line script: a process of
//! its own that forks, leaves and serves as the installed one does.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use crate::runtime::plan::{CgroupEntry, ExecPlan, LaunchPlan, PlanUser, Rootfs, Stdio};
use crate::shim::client::{Launched, Orphan, ShimClient, ShimClientError, ShimEvent};
use crate::shim::protocol::{ExitRecord, LOST_EXIT_CODE, ProcessKind, Refusal, SOCKET_NAME};

const BOUND: Duration = Duration::from_secs(20);

/// Not a test: what the script of [`Node::new`] runs.
#[test]
#[ignore = "the shim's own process, started by the other tests"]
fn become_the_shim() {
    if let Some(state) = std::env::var_os("QUILT_TEST_SHIM_STATE") {
        let ended = super::run(Path::new(&state));
        // Not through the harness, which would report on streams that are gone.
        std::process::exit(i32::from(ended.is_err()));
    }
}

/// A state directory and the means to start its shim.
struct Node {
    dir: tempfile::TempDir,
    exe: PathBuf,
}

impl Node {
    fn new() -> Node {
        let dir = tempfile::Builder::new()
            .prefix("qlt-shim-")
            .tempdir()
            .unwrap();
        let exe = dir.path().join("exe");
        let test = std::env::current_exe().unwrap();
        let name = "shim::server::tests::become_the_shim";
        let script = format!(
            "#!/bin/sh\nexport QUILT_TEST_SHIM_STATE=\"$3\"\n\
             exec {} --exact {name} --ignored --nocapture --test-threads=1\n",
            test.display()
        );
        fs::write(&exe, script).unwrap();
        fs::set_permissions(&exe, fs::Permissions::from_mode(0o755)).unwrap();
        Node { dir, exe }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    async fn connect(&self) -> (ShimClient, Receiver<ShimEvent>) {
        ShimClient::connect_or_start(&self.state(), &self.exe)
            .await
            .unwrap()
    }

    fn log(&self, id: &str) -> PathBuf {
        self.dir.path().join(format!("logs/{id}/0.log"))
    }

    /// The content of the log's entries, as the kubelet would put them together.
    fn content(&self, id: &str) -> String {
        content(&self.log(id))
    }

    /// Writes the plan of a container that runs `script` in a shell.
    fn plan(&self, id: &str, script: &str) -> PathBuf {
        self.plan_with(id, &["/bin/busybox", "sh", "-c", script], |_| ())
    }

    fn plan_with(&self, id: &str, args: &[&str], change: impl Fn(&mut LaunchPlan)) -> PathBuf {
        let lower = self.dir.path().join("lower");
        for path in ["bin", "proc", "dev", "tmp"] {
            fs::create_dir_all(lower.join(path)).unwrap();
        }
        fs::copy("/bin/busybox", lower.join("bin/busybox")).unwrap();
        let snapshot = self.dir.path().join("snapshots").join(id);
        let containers = self.state().join("containers").join(id);
        let mount_point = self.state().join("rootfs");
        for path in [
            &snapshot.join("upper"),
            &snapshot.join("work"),
            &containers,
            &mount_point,
        ] {
            fs::create_dir_all(path).unwrap();
        }
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let spec = serde_json::json!({
            "ociVersion": "1.2.0",
            "root": { "path": "rootfs" },
            "process": { "user": { "uid": 0, "gid": 0 }, "args": args, "cwd": "/",
                "env": ["PATH=/bin:/usr/bin"] },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }] },
        });
        let mut plan = LaunchPlan {
            spec: serde_json::from_value(spec).unwrap(),
            rootfs: Rootfs {
                lower: vec![lower],
                upper: snapshot.join("upper"),
                work: snapshot.join("work"),
                mount_point,
            },
            user: PlanUser::default(),
            cgroup: CgroupEntry::default(),
            stdio: Stdio {
                fifo_dir: containers.clone(),
                log_path: Some(self.log(id)),
                terminal: false,
                stdin: false,
                stdin_once: false,
            },
        };
        change(&mut plan);
        let path = containers.join("plan.json");
        fs::write(&path, serde_json::to_vec(&plan).unwrap()).unwrap();
        path
    }

    async fn run(&self, shim: &ShimClient, id: &str, script: &str) -> Launched {
        let plan = self.plan(id, script);
        shim.launch(id, &plan).await.unwrap()
    }

    /// Waits until the shim is gone, as it is to be when it has nothing to do.
    async fn shim_ends(&self, pid: i32) {
        until("the shim has ended", || {
            !Path::new(&format!("/proc/{pid}")).exists()
        })
        .await;
        assert!(!self.state().join(SOCKET_NAME).exists());
    }
}

/// Whatever a failed test leaves is ended with it.
impl Drop for Node {
    fn drop(&mut self) {
        let lock = fs::read_to_string(self.state().join("shim/lock")).unwrap_or_default();
        let Some(pid) = lock.trim().parse().ok().and_then(Pid::from_raw) else {
            return;
        };
        let state = self.state();
        let environment = fs::read(format!("/proc/{pid}/environ", pid = pid.as_raw_nonzero()));
        let state = state.as_os_str().as_encoded_bytes();
        if environment.is_ok_and(|text| memchr::memmem::find(&text, state).is_some()) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + BOUND;
    while !holds() {
        assert!(Instant::now() < end, "not within {BOUND:?}: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn next_exit(events: &mut Receiver<ShimEvent>) -> ExitRecord {
    match timeout(BOUND, events.recv()).await.unwrap().unwrap() {
        ShimEvent::Exited(record) => record,
        ShimEvent::Disconnected => panic!("disconnected"),
    }
}

fn content(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let entry = |line: &str| {
        let mut fields = line.splitn(4, ' ').skip(1);
        let (stream, tag) = (fields.next().unwrap(), fields.next().unwrap());
        assert!(matches!(stream, "stdout" | "stderr"), "{line}");
        let end = if tag == "F" { "\n" } else { "" };
        fields.next().unwrap().to_owned() + end
    };
    text.lines().map(entry).collect()
}

fn signal(launched: &Launched, signal: Signal) {
    pidfd_send_signal(&launched.pidfd, signal).unwrap();
}

fn pid(number: i32) -> Pid {
    Pid::from_raw(number).unwrap()
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

fn exec_plan(script: &str) -> ExecPlan {
    ExecPlan {
        args: ["/bin/busybox", "sh", "-c", script]
            .map(String::from)
            .to_vec(),
        env: Vec::new(),
        cwd: "/".to_owned(),
        user: PlanUser::default(),
        capabilities: Vec::new(),
        no_new_privileges: false,
        cgroup: CgroupEntry::default(),
    }
}

#[tokio::test]
async fn exits_arrive_with_codes_and_signals_after_their_last_line() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    for (id, script, code, killed) in [
        ("a0", "echo out; echo err >&2; exit 0", 0, None),
        ("a7", "exit 7", 7, None),
        ("a9", "exec /bin/busybox sleep 100", 137, Some(9)),
    ] {
        let launched = node.run(&shim, id, script).await;
        if killed.is_some() {
            signal(&launched, Signal::KILL);
        }
        let exit = next_exit(&mut events).await;
        assert_eq!((exit.id.as_str(), exit.kind), (id, ProcessKind::Container));
        assert_eq!((exit.code, exit.signal, exit.lost), (code, killed, false));
        if id == "a0" {
            let content = node.content(id);
            assert!(
                content == "out\nerr\n" || content == "err\nout\n",
                "{content}"
            );
        }
        shim.acknowledge(exit.sequence).await.unwrap();
        shim.forget(id).await.unwrap();
    }
    assert!(shim.list().await.unwrap().is_empty());
    let pid = shim.shim_pid();
    drop((shim, events));
    node.shim_ends(pid).await;
}

#[tokio::test]
async fn a_launch_asked_twice_is_one_launch_and_a_finished_one_is_not_repeated() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    let first = node
        .run(&shim, "twice", "exec /bin/busybox sleep 100")
        .await;
    let again = shim
        .launch("twice", &node.plan("twice", "true"))
        .await
        .unwrap();
    assert_eq!(shim.handles("twice").await.unwrap().outputs.len(), 2);
    assert_eq!((first.pid, first.start_time), (again.pid, again.start_time));
    assert!(matches!(
        shim.forget("twice").await,
        Err(ShimClientError::Refused(Refusal::Running(_)))
    ));
    signal(&again, Signal::KILL);
    let exit = next_exit(&mut events).await;
    let refused = shim.launch("twice", &node.plan("twice", "true")).await;
    assert!(matches!(
        refused,
        Err(ShimClientError::Refused(Refusal::Exited(_)))
    ));
    let held = shim.list().await.unwrap();
    assert_eq!(held[0].exit.as_ref(), Some(&exit));
    shim.forget("twice").await.unwrap();
    shim.forget("twice").await.unwrap();
    shim.acknowledge(exit.sequence).await.unwrap();
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_a_launch_error_and_leaves_nothing() {
    let node = Node::new();
    let (shim, events) = node.connect().await;
    let plan = node.plan_with("none", &["/bin/no-such-command"], |_| ());
    match shim.launch("none", &plan).await {
        Err(ShimClientError::Launch(error)) => {
            assert!(error.message.contains("no-such-command"), "{error:?}");
        }
        other => panic!("{other:?}"),
    }
    let missing = shim.launch("none", Path::new("/no/plan.json")).await;
    assert!(matches!(
        missing,
        Err(ShimClientError::Refused(Refusal::Prepare(_)))
    ));
    assert!(shim.list().await.unwrap().is_empty());
    let held = fs::read_dir(format!("/proc/{}/fd", shim.shim_pid()))
        .unwrap()
        .count();
    assert!(held <= 12, "{held} descriptors");
    let pid = shim.shim_pid();
    drop((shim, events));
    node.shim_ends(pid).await;
}

#[tokio::test]
async fn an_exit_that_nobody_heard_is_told_to_the_next_daemon_until_acknowledged() {
    let node = Node::new();
    let (shim, events) = node.connect().await;
    let launched = node
        .run(&shim, "orphan", "exec /bin/busybox sleep 100")
        .await;
    let shim_pid = shim.shim_pid();
    drop((shim, events));
    signal(&launched, Signal::KILL);
    let journal = node.state().join("shim/exits");
    until("the exit is written down", || {
        fs::read_to_string(&journal).is_ok_and(|text| text.contains("orphan"))
    })
    .await;
    for _ in 0..2 {
        let (shim, mut events) = node.connect().await;
        assert_eq!(
            shim.shim_pid(),
            shim_pid,
            "it holds an exit and must not end"
        );
        assert_eq!(next_exit(&mut events).await.code, 137);
    }
    let (shim, mut events) = node.connect().await;
    let sequence = next_exit(&mut events).await.sequence;
    shim.acknowledge(sequence).await.unwrap();
    drop((shim, events));
    node.shim_ends(shim_pid).await;
    assert!(!fs::read_to_string(&journal).unwrap().contains("orphan"));
}

#[tokio::test]
async fn a_new_daemon_replaces_the_old_one_and_waiting_requests_fail_at_once() {
    let node = Node::new();
    let (old, mut old_events) = node.connect().await;
    let (new, _events) = node.connect().await;
    assert_eq!(
        timeout(BOUND, old_events.recv()).await.unwrap(),
        Some(ShimEvent::Disconnected)
    );
    assert!(matches!(
        old.ping().await,
        Err(ShimClientError::Disconnected)
    ));
    new.ping().await.unwrap();

    // A stopped shim answers nobody; a killed one ends every wait.
    kill_process(pid(new.shim_pid()), Signal::STOP).unwrap();
    let hasty = new.with_timeout(Duration::from_millis(50));
    assert!(matches!(
        hasty.ping().await,
        Err(ShimClientError::Timeout { .. })
    ));
    let waiting = tokio::spawn({
        let new = new.clone();
        async move { new.ping().await }
    });
    tokio::task::yield_now().await;
    kill_process(pid(new.shim_pid()), Signal::KILL).unwrap();
    let ended = timeout(BOUND, waiting).await.unwrap().unwrap();
    assert!(matches!(ended, Err(ShimClientError::Disconnected)));
}

#[tokio::test]
async fn nonsense_closes_its_own_connection_and_nothing_else() {
    use crate::sys::seqpacket;
    let node = Node::new();
    let (shim, _events) = node.connect().await;
    let path = node.state().join(SOCKET_NAME);
    for nonsense in [
        b"{".as_slice(),
        br#"{"hello":{"version":999}}"#,
        br#"{"request":{"number":1,"request":"ping"}}"#,
        &[0xff; 60_000],
    ] {
        let socket = seqpacket::connect(&path).unwrap();
        let (stdin, stdout) = pipe();
        seqpacket::send(socket.as_fd(), nonsense, &[stdin, stdout]).unwrap();
        let mut buffer = [0; 1000];
        let mut answer = Vec::new();
        until("the connection is closed", || {
            match seqpacket::receive(socket.as_fd(), &mut buffer) {
                Ok(received) => {
                    answer.extend_from_slice(&buffer[..received.len]);
                    received.len == 0
                }
                Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
            }
        })
        .await;
        let incompatible = memchr::memmem::find(&answer, b"incompatible").is_some();
        assert_eq!(incompatible, nonsense.starts_with(b"{\"hello"));
    }
    shim.ping().await.unwrap();
}

#[tokio::test]
async fn an_exec_has_the_daemons_pipes_and_its_own_exit() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    let container = node.run(&shim, "host", "exec /bin/busybox sleep 100").await;
    // Too long to go inside a message.
    let padding = "x".repeat(100_000);
    for (id, script) in [
        ("e1", "/bin/busybox cat; exit 3".to_owned()),
        ("e2", format!(": {padding}; /bin/busybox cat; exit 3")),
    ] {
        let (input_reader, input) = pipe();
        let (output, output_writer) = pipe();
        let streams = [
            input_reader,
            output_writer.try_clone().unwrap(),
            output_writer,
        ];
        shim.exec(id, "host", &exec_plan(&script), Some(streams))
            .await
            .unwrap();
        rustix::io::write(&input, b"through").unwrap();
        drop(input);
        let exit = next_exit(&mut events).await;
        assert_eq!(
            (exit.id.as_str(), exit.kind, exit.code),
            (id, ProcessKind::Exec, 3)
        );
        let mut buffer = [0; 16];
        assert_eq!(rustix::io::read(&output, &mut buffer).unwrap(), 7);
        assert_eq!(shim.list().await.unwrap().len(), 2);
        shim.acknowledge(exit.sequence).await.unwrap();
        assert_eq!(
            shim.list().await.unwrap().len(),
            1,
            "an exec goes with its acknowledgement"
        );
    }
    let nobody = shim.exec("e3", "nobody", &exec_plan("true"), None).await;
    assert!(matches!(
        nobody,
        Err(ShimClientError::Refused(Refusal::NotFound(_)))
    ));
    signal(&container, Signal::KILL);
    let exit = next_exit(&mut events).await;
    let dead = shim.exec("e4", "host", &exec_plan("true"), None).await;
    assert!(matches!(
        dead,
        Err(ShimClientError::Refused(Refusal::Exited(_)))
    ));
    shim.acknowledge(exit.sequence).await.unwrap();
}

#[tokio::test]
async fn an_unterminated_last_line_is_in_the_log_when_the_exit_arrives() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    node.run(&shim, "tail", "printf 'one\\ntwo'; printf three >&2")
        .await;
    let exit = next_exit(&mut events).await;
    let log = fs::read_to_string(node.log("tail")).unwrap();
    assert!(log.contains(" stdout F one\n"), "{log}");
    assert!(
        log.contains(" stdout P two\n") && log.contains(" stderr P three\n"),
        "{log}"
    );
    shim.acknowledge(exit.sequence).await.unwrap();
}

#[tokio::test]
async fn rotation_under_load_loses_and_repeats_no_line() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    const LINES: usize = 200_000;
    let plan = node.plan_with(
        "busy",
        &["/bin/busybox", "seq", "1", &LINES.to_string()],
        |_| (),
    );
    shim.launch("busy", &plan).await.unwrap();
    let log = node.log("busy");
    let mut rotated = Vec::new();
    let exit = loop {
        if let Ok(event) = events.try_recv() {
            match event {
                ShimEvent::Exited(exit) => break exit,
                ShimEvent::Disconnected => panic!("disconnected"),
            }
        }
        let name = log.with_extension(format!("{}", rotated.len()));
        fs::rename(&log, &name).unwrap();
        rotated.push(name);
        shim.reopen_log("busy").await.unwrap();
    };
    rotated.push(log);
    let all: String = rotated.iter().map(|path| content(path)).collect();
    let expected: String = (1..=LINES).map(|number| format!("{number}\n")).collect();
    assert!(all == expected, "{} of {} bytes", all.len(), expected.len());
    assert!(rotated.len() > 3, "{} files", rotated.len());
    // It has exited and may still be reopened; what is not there cannot.
    shim.reopen_log("busy").await.unwrap();
    let missing = shim.reopen_log("nobody").await;
    assert!(matches!(
        missing,
        Err(ShimClientError::Refused(Refusal::NotFound(_)))
    ));
    shim.acknowledge(exit.sequence).await.unwrap();
}

#[tokio::test]
async fn a_noisy_container_delays_neither_requests_nor_exits() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    let discard = |plan: &mut LaunchPlan| plan.stdio.log_path = None;
    let noisy = node.plan_with("noisy", &["/bin/busybox", "yes"], discard);
    let noisy = shim.launch("noisy", &noisy).await.unwrap();
    for number in 0..20 {
        let id = format!("quiet-{number}");
        let start = Instant::now();
        node.run(&shim, &id, "exit 5").await;
        let exit = next_exit(&mut events).await;
        assert_eq!((exit.id.as_str(), exit.code), (id.as_str(), 5));
        assert!(start.elapsed() < Duration::from_secs(5));
        shim.acknowledge(exit.sequence).await.unwrap();
    }
    signal(&noisy, Signal::KILL);
    let exit = next_exit(&mut events).await;
    shim.acknowledge(exit.sequence).await.unwrap();
}

#[tokio::test]
async fn a_container_outlives_its_shim_and_the_next_one_logs_on_and_learns_its_code() {
    for lines in [1000, 100_000] {
        outlive(lines).await;
    }
}

async fn outlive(lines: usize) {
    let node = Node::new();
    let (shim, events) = node.connect().await;
    let script = format!("echo before; read gate; echo alone; /bin/busybox seq {lines}; exit 9");
    let args = ["/bin/busybox", "sh", "-c", &script];
    let plan = node.plan_with("c", &args, |plan| plan.stdio.stdin = true);
    let launched = shim.launch("c", &plan).await.unwrap();
    until("the first line is logged", || {
        node.content("c") == "before\n"
    })
    .await;
    let dead = shim.shim_pid();
    kill_process(pid(dead), Signal::KILL).unwrap();
    drop((shim, events));
    // It writes with nobody to read, and may be done before anybody does: nothing of it is lost.
    let stdin = plan.with_file_name("stdin");
    fs::OpenOptions::new()
        .write(true)
        .open(stdin)
        .unwrap()
        .write_all(b"go\n")
        .unwrap();

    let (shim, mut events) = node.connect().await;
    assert_ne!(shim.shim_pid(), dead);
    assert!(shim.list().await.unwrap().is_empty());
    let orphan = || Orphan {
        id: "c",
        kind: ProcessKind::Container,
        plan_path: Some(&plan),
        pid: launched.pid,
        start_time: launched.start_time,
        pidfd: Some(launched.pidfd.try_clone().unwrap()),
        terminal: None,
    };
    assert!(shim.adopt(orphan()).await.unwrap());
    assert!(
        shim.adopt(orphan()).await.is_ok(),
        "asked again, it is the same"
    );
    let exit = next_exit(&mut events).await;
    if exit.lost {
        assert_eq!(exit.code, LOST_EXIT_CODE, "a kernel before 6.15");
    } else {
        assert_eq!((exit.code, exit.signal), (9, None));
    }
    let numbers: String = (1..=lines).map(|number| format!("{number}\n")).collect();
    let content = node.content("c");
    assert!(
        content == format!("before\nalone\n{numbers}"),
        "{} bytes",
        content.len()
    );
    shim.acknowledge(exit.sequence).await.unwrap();
}

#[tokio::test]
async fn a_container_that_ended_while_no_shim_lived_is_told_by_its_pidfd_or_lost() {
    let node = Node::new();
    let (shim, events) = node.connect().await;
    let known = node
        .run(&shim, "known", "exec /bin/busybox sleep 100")
        .await;
    let unknown = node
        .run(&shim, "unknown", "exec /bin/busybox sleep 100")
        .await;
    let imposter = node
        .run(&shim, "imposter", "exec /bin/busybox sleep 100")
        .await;
    kill_process(pid(shim.shim_pid()), Signal::KILL).unwrap();
    drop((shim, events));
    signal(&known, Signal::TERM);
    signal(&known, Signal::KILL);
    signal(&unknown, Signal::KILL);
    let gone = |pid: i32| !Path::new(&format!("/proc/{pid}")).exists();
    until("both are reaped by init", || {
        gone(known.pid) && gone(unknown.pid)
    })
    .await;

    let (shim, mut events) = node.connect().await;
    let orphan = |id, launched: &Launched, pidfd: bool, start_time| Orphan {
        id,
        kind: ProcessKind::Container,
        plan_path: None,
        pid: launched.pid,
        start_time,
        pidfd: pidfd.then(|| launched.pidfd.try_clone().unwrap()),
        terminal: None,
    };
    shim.adopt(orphan("known", &known, true, known.start_time))
        .await
        .unwrap();
    let exit = next_exit(&mut events).await;
    assert!(exit.lost || exit.signal.is_some(), "{exit:?}");
    shim.acknowledge(exit.sequence).await.unwrap();

    let there = shim
        .adopt(orphan("unknown", &unknown, false, unknown.start_time))
        .await
        .unwrap();
    assert!(!there);
    let exit = next_exit(&mut events).await;
    assert_eq!((exit.code, exit.lost), (LOST_EXIT_CODE, true));
    shim.acknowledge(exit.sequence).await.unwrap();

    // Another process has the number by now: its start time says so, and it is not touched.
    let wrong = orphan("imposter", &imposter, false, imposter.start_time + 1);
    assert!(!shim.adopt(wrong).await.unwrap());
    assert!(next_exit(&mut events).await.lost);
    assert!(pidfd_open(pid(imposter.pid), PidfdFlags::empty()).is_ok());
    signal(&imposter, Signal::KILL);
}

#[tokio::test]
async fn sequence_numbers_go_on_after_the_shim_has_died() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    node.run(&shim, "one", "exit 1").await;
    let first = next_exit(&mut events).await;
    kill_process(pid(shim.shim_pid()), Signal::KILL).unwrap();
    drop((shim, events));
    let (shim, mut events) = node.connect().await;
    assert_eq!(
        next_exit(&mut events).await,
        first,
        "written down before it was told"
    );
    shim.acknowledge(first.sequence).await.unwrap();
    node.run(&shim, "two", "exit 2").await;
    let second = next_exit(&mut events).await;
    assert_eq!(second.sequence, first.sequence + 1);
    shim.acknowledge(second.sequence).await.unwrap();
}

#[tokio::test]
async fn many_starters_start_one_shim() {
    let node = Node::new();
    let starters = (0..8).map(|_| node.connect());
    let clients = futures_util::future::join_all(starters).await;
    let pids: Vec<i32> = clients.iter().map(|(shim, _)| shim.shim_pid()).collect();
    assert!(pids.windows(2).all(|pair| pair[0] == pair[1]), "{pids:?}");
    drop(clients);
    node.shim_ends(pids[0]).await;
    let nothing = ShimClient::connect_or_start(&node.state(), Path::new("/bin/false")).await;
    assert!(matches!(nothing, Err(ShimClientError::Start { .. })));
}

#[tokio::test]
async fn more_exits_than_the_window_all_arrive() {
    use crate::shim::protocol::EVENT_WINDOW;
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    let count = EVENT_WINDOW + 40;
    for number in 0..count {
        let discard = |plan: &mut LaunchPlan| plan.stdio.log_path = None;
        let id = format!("many-{number}");
        let plan = node.plan_with(&id, &["/bin/busybox", "true"], discard);
        shim.launch(&id, &plan).await.unwrap();
    }
    assert_eq!(shim.list().await.unwrap().len(), count);
    for _ in 0..count {
        let exit = next_exit(&mut events).await;
        shim.acknowledge(exit.sequence).await.unwrap();
    }
}

#[tokio::test]
async fn an_input_once_ends_when_it_is_closed() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    let once = |plan: &mut LaunchPlan| (plan.stdio.stdin, plan.stdio.stdin_once) = (true, true);
    let plan = node.plan_with("cat", &["/bin/busybox", "cat"], once);
    shim.launch("cat", &plan).await.unwrap();
    let input = fs::OpenOptions::new()
        .write(true)
        .open(plan.with_file_name("stdin"))
        .unwrap();
    rustix::io::write(&input, b"said\n").unwrap();
    until("the line is logged", || node.content("cat") == "said\n").await;
    drop(input);
    shim.close_stdin("cat").await.unwrap();
    let exit = next_exit(&mut events).await;
    assert_eq!(exit.code, 0);
    shim.acknowledge(exit.sequence).await.unwrap();
}

#[tokio::test]
async fn a_stream_that_everybody_has_closed_is_closed_here_too() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    let script = "printf unfinished; exec >&- 2>&-; exec /bin/busybox sleep 100";
    let launched = node.run(&shim, "closed", script).await;
    until("the rest is logged", || {
        node.content("closed") == "unfinished"
    })
    .await;
    let end = Instant::now() + BOUND;
    while !shim.handles("closed").await.unwrap().outputs.is_empty() {
        assert!(Instant::now() < end, "a FIFO without writers is still open");
    }
    signal(&launched, Signal::KILL);
    let exit = next_exit(&mut events).await;
    shim.acknowledge(exit.sequence).await.unwrap();
}

#[tokio::test]
async fn a_grandchild_that_goes_on_holds_back_no_exit_and_is_still_logged() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    let script = "exec 3<&0; (read gate <&3; echo late) & printf early; exit 4";
    let args = ["/bin/busybox", "sh", "-c", script];
    // In the host's PID namespace nothing ends it with its parent.
    let plan = node.plan_with("family", &args, |plan| {
        plan.stdio.stdin = true;
        let linux = serde_json::from_value(serde_json::json!({
            "namespaces": [{ "type": "mount" }]
        }));
        plan.spec.set_linux(Some(linux.unwrap()));
    });
    shim.launch("family", &plan).await.unwrap();
    let exit = next_exit(&mut events).await;
    assert_eq!(exit.code, 4);
    assert_eq!(node.content("family"), "early");
    let stdin = plan.with_file_name("stdin");
    fs::OpenOptions::new()
        .write(true)
        .open(stdin)
        .unwrap()
        .write_all(b"go\n")
        .unwrap();
    until("the grandchild is logged", || {
        node.content("family") == "earlylate\n"
    })
    .await;
    shim.acknowledge(exit.sequence).await.unwrap();
}

#[tokio::test]
async fn asked_to_end_it_does_so_only_when_nothing_runs() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    let launched = node
        .run(&shim, "alive", "exec /bin/busybox sleep 100")
        .await;
    let shim_pid = shim.shim_pid();
    for refused in [
        Signal::TERM,
        Signal::INT,
        Signal::HUP,
        Signal::PIPE,
        Signal::USR1,
    ] {
        kill_process(pid(shim_pid), refused).unwrap();
        shim.ping().await.unwrap();
    }
    signal(&launched, Signal::KILL);
    next_exit(&mut events).await;
    kill_process(pid(shim_pid), Signal::TERM).unwrap();
    node.shim_ends(shim_pid).await;
    // The exit was not acknowledged: it is in the journal, for the next.
    let (shim, mut events) = node.connect().await;
    let exit = next_exit(&mut events).await;
    assert_eq!(exit.signal, Some(9));
    shim.acknowledge(exit.sequence).await.unwrap();
}

#[tokio::test]
async fn a_shim_gives_nothing_away() {
    let node = Node::new();
    let (shim, _events) = node.connect().await;
    let proc = PathBuf::from(format!("/proc/{}", shim.shim_pid()));
    let stat = fs::read_to_string(proc.join("stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let threads = fields[17];
    assert_eq!(
        (threads, fields[3]),
        ("1", fields[2]),
        "one thread; its session is its group's"
    );
    assert_ne!(fields[1], std::process::id().to_string(), "not our child");
    assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), Path::new("/"));
    for (fd, target) in [("0", "/dev/null"), ("1", "/dev/null")] {
        assert_eq!(
            fs::read_link(proc.join("fd").join(fd)).unwrap(),
            Path::new(target)
        );
    }
    let socket = node.state().join(SOCKET_NAME);
    assert_eq!(
        fs::metadata(socket).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let own = node.state().join("shim");
    assert_eq!(
        fs::metadata(own).unwrap().permissions().mode() & 0o777,
        0o700
    );
}
