//! The whole shim: real processes, real sockets, real deaths.
//!
//! The shim of these tests is this test binary, run again through a two-line script: a process of
//! its own that forks, leaves and serves as the installed one does.

mod connections;
mod deaths;
mod launches;
mod logs;
mod measure;
mod processes;
mod streams;

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use crate::runtime::launch::LAUNCH_TIMEOUT;
use crate::runtime::plan::{CgroupEntry, ExecPlan, LaunchPlan, LogLimits, PlanUser, Rootfs, Stdio};
use crate::shim::client::{Launched, Orphan, ShimClient, ShimClientError, ShimEvent};
use crate::shim::protocol::{ExitRecord, LOST_EXIT_CODE, ProcessKind, Refusal, SOCKET_NAME};

const BOUND: Duration = Duration::from_secs(20);

/// Not a test: what the script of [`Node::new`] runs.
#[test]
#[ignore = "the shim's own process, started by the other tests"]
fn become_the_shim() {
    if let Some(state) = std::env::var_os("QUILT_TEST_SHIM_STATE") {
        let bound = std::env::var("QUILT_TEST_LAUNCH_MS").ok();
        let bound = bound.and_then(|bound| bound.parse().ok());
        let bound = bound.map_or(LAUNCH_TIMEOUT, Duration::from_millis);
        let ended = super::run_with(Path::new(&state), bound);
        // Not through the harness, which would report on streams that are gone.
        std::process::exit(i32::from(ended.is_err()));
    }
}

/// A state directory and the means to start its shim.
struct Node {
    dir: tempfile::TempDir,
    exe: PathBuf,
    /// Where the state is, unless it is beside all else.
    state: Option<tempfile::TempDir>,
}

impl Node {
    fn new() -> Node {
        Node::with("")
    }

    /// One whose shim has `environment` as well, as the shell writes it.
    fn with(environment: &str) -> Node {
        let dir = tempfile::Builder::new()
            .prefix("qlt-shim-")
            .tempdir()
            .unwrap();
        let exe = dir.path().join("exe");
        let test = std::env::current_exe().unwrap();
        let name = "shim::server::tests::become_the_shim";
        let script = format!(
            "#!/bin/sh\nexport QUILT_TEST_SHIM_STATE=\"$3\" {environment}\n\
             exec {} --exact {name} --ignored --nocapture --test-threads=1\n",
            test.display()
        );
        fs::write(&exe, script).unwrap();
        fs::set_permissions(&exe, fs::Permissions::from_mode(0o755)).unwrap();
        let state = None;
        Node { dir, exe, state }
    }

    /// One whose state lies on a tmpfs, as below `/run`.
    fn as_installed() -> Node {
        let mut state = tempfile::Builder::new();
        let state = state.prefix("qlt-shim-").tempdir_in("/dev/shm").unwrap();
        let mut node = Node::new();
        node.state = Some(state);
        node
    }

    fn state(&self) -> PathBuf {
        let beside = self.state.as_ref().unwrap_or(&self.dir);
        beside.path().join("state")
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
        // Never written again: another container may be running from it.
        let busybox = lower.join("bin/busybox");
        if !busybox.exists() {
            fs::copy("/bin/busybox", busybox).unwrap();
        }
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
            image_volumes: Vec::new(),
            user: PlanUser::default(),
            environment_bytes: Vec::new(),
            cgroup: CgroupEntry::default(),
            stdio: Stdio {
                fifo_dir: containers.clone(),
                log_limits: LogLimits::default(),
                log_path: Some(self.log(id)),
                terminal: false,
                stdin: false,
                stdin_once: false,
            },
            seccomp: None,
            external: None,
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
        until("the shim has ended", || !is_alive(pid)).await;
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
    loop {
        match timeout(BOUND, events.recv()).await.unwrap().unwrap() {
            ShimEvent::Exited(record) => return record,
            ShimEvent::LogLoss => {}
            ShimEvent::Disconnected => panic!("disconnected"),
        }
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

fn is_alive(number: i32) -> bool {
    Path::new(&format!("/proc/{number}")).exists()
}

/// A container, as the daemon that had it launched hands it to the next shim.
fn orphan<'a>(id: &'a str, plan: &'a Path, launched: &Launched) -> Orphan<'a> {
    Orphan {
        id,
        kind: ProcessKind::Container,
        plan_path: Some(plan),
        pid: launched.pid,
        start_time: launched.start_time,
        pidfd: Some(launched.pidfd.try_clone().unwrap()),
        terminal: None,
        lost_log: (0, 0),
    }
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
        environment_bytes: Vec::new(),
        cwd: "/".to_owned(),
        user: PlanUser::default(),
        capabilities: Vec::new(),
        no_new_privileges: false,
        cgroup: CgroupEntry::default(),
        apparmor_profile: None,
        seccomp: None,
        users: None,
        external: None,
    }
}
