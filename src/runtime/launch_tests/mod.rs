//! Launches of real containers, made from Debian's static busybox. They need root.
//!
//! A launch copies its process as it stands, which is sound only while no other thread can hold a
//! lock of the allocator. So each test runs the test binary again for itself alone: one thread runs
//! the test, the other waits for it.
mod containers;
mod files;
mod image_volumes;
mod measure;
mod pods;
mod user_namespaces;
mod volumes;

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::launch::{LaunchError, ProcessStreams, Started, Target, exec, launch};
use super::plan::{CgroupEntry, ExecPlan, LaunchPlan, LogLimits, PlanUser, Rootfs, Stdio};

const ALONE: &str = "QUILT_LAUNCH_TEST_ALONE";
/// No test takes a tenth of it.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs `body` in a process of its own, in which nothing else goes on.
pub(super) fn alone(body: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let name = std::thread::current()
        .name()
        .expect("libtest names its threads")
        .to_owned();
    let mut child = Program::new(std::env::current_exe().expect("own path"))
        .args([
            "--exact",
            &name,
            "--nocapture",
            "--test-threads=1",
            "--include-ignored",
        ])
        .env(ALONE, "1")
        .spawn()
        .expect("run the test binary again");
    let pid = Pid::from_child(&child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("pidfd_open");
    if !ready(pidfd.as_fd(), TEST_TIMEOUT) {
        child.kill().expect("kill");
        panic!("{name} did not end");
    }
    assert!(
        child.wait().expect("wait").success(),
        "{name} failed in its own process"
    );
}

fn ready(fd: std::os::fd::BorrowedFd<'_>, timeout: Duration) -> bool {
    let timeout = Timespec::try_from(timeout).expect("fits");
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).expect("poll") == 1
}

/// An image with a shell, and the directories of containers made from it.
struct Image {
    directory: TempDir,
}

/// How a process ended and what it wrote.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Image {
    fn new() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("qlt-runtime-")
            .tempdir()
            .expect("tempdir");
        let image = Self { directory };
        for name in ["bin", "etc", "tmp", "secret", "var/lib/data"] {
            fs::create_dir_all(image.layer(name)).expect("mkdir");
        }
        for name in ["upper", "work", "mount"] {
            fs::create_dir(image.path(name)).expect("mkdir");
        }
        fs::copy("/bin/busybox", image.layer("bin/busybox")).expect("busybox-static is installed");
        for applet in [
            "sh", "cat", "id", "true", "stat", "ls", "sleep", "pwd", "hostname", "ps",
        ] {
            symlink("busybox", image.layer("bin").join(applet)).expect("symlink");
        }
        let passwd = "root:x:0:0::/root:/bin/sh\nweb:x:33:44::/srv/web:/bin/sh\n";
        fs::write(image.layer("etc/passwd"), passwd).expect("write");
        fs::write(image.layer("etc/group"), "web:x:44:\nlogs:x:50:web\n").expect("write");
        image
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn layer(&self, name: &str) -> PathBuf {
        self.path("layer").join(name)
    }

    fn rootfs(&self) -> Rootfs {
        Rootfs {
            lower: vec![self.path("layer")],
            upper: self.path("upper"),
            work: self.path("work"),
            mount_point: self.path("mount"),
        }
    }

    /// A plan as the daemon would write it for an ordinary container.
    fn plan(&self, args: &[&str]) -> LaunchPlan {
        LaunchPlan {
            spec: serde_json::from_value(spec(args)).expect("a runtime spec"),
            rootfs: self.rootfs(),
            image_volumes: Vec::new(),
            user: PlanUser::default(),
            environment_bytes: Vec::new(),
            cgroup: CgroupEntry::default(),
            stdio: Stdio {
                fifo_dir: self.path("fifos"),
                log_path: None,
                log_limits: LogLimits::default(),
                terminal: false,
                stdin: false,
                stdin_once: false,
            },
            seccomp: None,
            external: None,
        }
    }

    /// Runs a shell script in a container.
    fn sh(&self, script: &str) -> Outcome {
        run(&self.plan(&["sh", "-c", script]))
    }
}

/// The parts of a plan's spec that tests change are changed by path: `edit(&mut plan, …)`.
fn edit(plan: &mut LaunchPlan, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::to_value(&plan.spec).expect("serializes");
    change(&mut value);
    plan.spec = serde_json::from_value(value).expect("still a runtime spec");
}

fn add_mount(plan: &mut LaunchPlan, mount: Value) {
    edit(plan, |spec| {
        spec["mounts"].as_array_mut().expect("a list").push(mount)
    });
}

fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

fn spec(args: &[&str]) -> Value {
    let capabilities = [
        "CAP_CHOWN",
        "CAP_KILL",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_SYS_RESOURCE",
    ];
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "qlt-test",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin:/usr/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
                "inheritable": [], "ambient": [],
            },
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "network"}, {"type": "cgroup"},
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi",
                            "/sys/firmware", "/secret", "/does/not/exist"],
            "readonlyPaths": ["/proc/sys", "/proc/bus", "/proc/irq", "/proc/sysrq-trigger"],
        },
    })
}

/// Streams of a process and the ends a test keeps.
fn streams() -> (ProcessStreams, OwnedFd, OwnedFd) {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe");
    let ((stdout_read, stdout), (stderr_read, stderr)) = (pipe(), pipe());
    let stdin = fs::File::open("/dev/null").expect("null").into();
    (
        ProcessStreams {
            stdin,
            stdout,
            stderr,
        },
        stdout_read,
        stderr_read,
    )
}

fn read_all(fd: OwnedFd) -> String {
    let mut bytes = Vec::new();
    let _ = fs::File::from(fd).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Types a line at its terminal, and returns all that it shows until it ends.
fn type_input(started: &Started) -> String {
    let terminal = started.terminal.as_ref().expect("a terminal");
    let master = terminal.try_clone().expect("dup");
    rustix::io::write(&master, b"input\n").expect("write");
    read_all(master)
}

/// The exit code of a child, or 128 and the signal that ended it.
fn wait(started: &Started) -> i32 {
    let id = WaitId::PidFd(started.pidfd.as_fd());
    let status = waitid(id, WaitIdOptions::EXITED)
        .expect("waitid")
        .expect("a status");
    status
        .exit_status()
        .unwrap_or_else(|| 128 + status.terminating_signal().expect("killed"))
}

fn run(plan: &LaunchPlan) -> Outcome {
    try_run(plan).expect("starts")
}

fn try_run(plan: &LaunchPlan) -> Result<Outcome, LaunchError> {
    let (streams, stdout, stderr) = streams();
    let started = launch(plan, Some(streams))?;
    Ok(finish(&started, stdout, stderr))
}

fn finish(started: &Started, stdout: OwnedFd, stderr: OwnedFd) -> Outcome {
    let (stdout, stderr) = (read_all(stdout), read_all(stderr));
    Outcome {
        code: wait(started),
        stdout,
        stderr,
    }
}

/// The message of a launch that has to fail.
fn refusal(plan: &LaunchPlan) -> LaunchError {
    try_run(plan).expect_err("must not start")
}

/// A container that stays until it is killed, and what an exec into it needs.
struct Running {
    started: Started,
    target: Target,
}

fn start(plan: &LaunchPlan) -> Running {
    let (streams, _, _) = streams();
    let started = launch(plan, Some(streams)).expect("starts");
    let pidfd = started.pidfd.try_clone().expect("dup");
    let target = Target {
        pid: started.pid,
        pidfd,
    };
    Running { started, target }
}

impl Running {
    fn exec(&self, plan: &ExecPlan) -> Result<Outcome, LaunchError> {
        let (streams, stdout, stderr) = streams();
        let started = exec(&self.target, plan, Some(streams), false)?;
        Ok(finish(&started, stdout, stderr))
    }

    fn stop(self) -> i32 {
        let kill = rustix::process::Signal::KILL;
        rustix::process::pidfd_send_signal(&self.started.pidfd, kill).expect("kill");
        wait(&self.started)
    }
}

fn exec_plan(args: &[&str]) -> ExecPlan {
    ExecPlan {
        args: args.iter().map(ToString::to_string).collect(),
        env: vec!["PATH=/bin".to_owned()],
        environment_bytes: Vec::new(),
        cwd: "/".to_owned(),
        user: PlanUser::default(),
        capabilities: vec!["CAP_CHOWN".to_owned()],
        no_new_privileges: true,
        cgroup: CgroupEntry::default(),
        apparmor_profile: None,
        seccomp: None,
        users: None,
        external: None,
    }
}
