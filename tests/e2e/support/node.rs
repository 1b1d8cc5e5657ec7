//! One daemon with names of its own: started, killed, restarted, and asked whether it answers.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::host::Host;
use super::names::Names;
use super::wait::{BOUND, eventually, poll};
use super::{Cri, process};

/// The daemon under test: `$QUILTD` (a release build, say), or the one Cargo has just built.
pub(crate) fn quiltd() -> PathBuf {
    let built = || env!("CARGO_BIN_EXE_quiltd").into();
    std::env::var_os("QUILTD").map_or_else(built, PathBuf::from)
}

/// A daemon, and everything it may leave behind. Dropping it stops all pods, then the daemon, and
/// fails the test when something is left (see `teardown`).
pub(crate) struct Node {
    pub(crate) cri: Cri,
    pub(crate) names: Names,
    /// Set for the next start.
    pub(crate) env: Vec<(String, String)>,
    /// Where the daemon runs, when that is not the machine's own network.
    pub(crate) host: Option<Arc<Host>>,
    pub(super) child: Option<Child>,
    /// Kept to its end, for it is removed when dropped.
    _dir: TempDir,
}

impl Node {
    /// A daemon that answers.
    pub(crate) async fn start() -> Self {
        let mut node = Self::prepare("");
        node.spawn();
        node.answers().await;
        node
    }

    /// Directories and a configuration with `extra` lines, and no daemon yet.
    pub(crate) fn prepare(extra: &str) -> Self {
        Self::prepare_in(None, extra)
    }

    /// [`Self::prepare`] for a host of its own, whose packet rules the daemon may make.
    pub(crate) fn prepare_on(host: &Arc<Host>, extra: &str) -> Self {
        Self::prepare_in(Some(Arc::clone(host)), extra)
    }

    /// [`Self::prepare`] with systemd to make the cgroups.
    pub(crate) fn prepare_in_slices() -> Self {
        let mut node = Self::prepare("");
        node.names = node.names.clone().in_slices();
        node.configure("");
        node
    }

    fn prepare_in(host: Option<Arc<Host>>, extra: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("qlt-e2e-")
            .tempdir()
            .expect("a directory");
        let names = Names::unused(dir.path());
        for sub in ["logs", "volumes"] {
            fs::create_dir(dir.path().join(sub)).expect("a directory of the test");
        }
        let node = Self {
            cri: Cri::new(&names.socket()),
            names,
            env: vec![],
            host,
            child: None,
            _dir: dir,
        };
        node.configure(extra);
        node
    }

    /// Writes the configuration: what keeps this daemon apart from others, then `extra`.
    pub(crate) fn configure(&self, extra: &str) {
        let Names {
            bridge,
            cgroup_root,
            ..
        } = &self.names;
        let subnet = self.names.subnet();
        // The machine's own packet rules are not a test's to make.
        let rules = self.host.is_some();
        let driver = match self.names.is_in_slices() {
            true => "systemd",
            false => "cgroupfs",
        };
        let text = format!(
            "[cgroup]\nroot = \"{cgroup_root}\"\ndriver = \"{driver}\"\n\n\
             [network]\nbridge = \"{bridge}\"\nsubnet = \"{subnet}\"\naddress_rest_s = 0\n\
             prepared = 0\nmasquerade = {rules}\nhost_ports = {rules}\n\n\
             [log]\nlevel = \"debug\"\n\n{extra}"
        );
        fs::write(self.path("config.toml"), text).expect("a configuration");
    }

    /// A path in the test's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.names.dir.join(name)
    }

    /// `quiltd serve` with this node's paths.
    pub(crate) fn serve(&self) -> Command {
        self.serve_at(&self.names.root(), &self.names.endpoint())
    }

    /// [`Self::serve`] with a root or an endpoint that may be another's.
    pub(crate) fn serve_at(&self, root: &Path, endpoint: &str) -> Command {
        let mut command = Command::new(quiltd());
        command
            .arg("serve")
            .arg("--config")
            .arg(self.path("config.toml"));
        command
            .arg("--root")
            .arg(root)
            .arg("--state")
            .arg(self.names.state());
        command.arg("--listen").arg(endpoint);
        command.envs(self.env.iter().cloned()).stdin(Stdio::null());
        command
    }

    /// Starts the daemon and does not wait for it.
    pub(crate) fn spawn(&mut self) {
        assert!(self.child.is_none(), "the daemon runs already");
        let log = self.log_file();
        let errors = log.try_clone().expect("a second handle");
        let mut command = self.serve();
        command.stdout(log).stderr(errors);
        let child = match &self.host {
            Some(host) => host.run(|| command.spawn()),
            None => command.spawn(),
        };
        self.child = Some(child.expect("quiltd starts"));
        self.cri = Cri::new(&self.names.socket());
    }

    /// Waits until the daemon answers; it must not end.
    pub(crate) async fn answers(&mut self) {
        if let Some(status) = self.answers_or_ends().await {
            panic!(
                "quiltd ended with {status} instead of answering:\n{}",
                self.log_tail()
            );
        }
    }

    /// Waits until the daemon answers (`None`) or ends.
    pub(crate) async fn answers_or_ends(&mut self) -> Option<ExitStatus> {
        let cri = self.cri.clone();
        let child = self.child.as_mut().expect("the daemon was started");
        let mut ended = None;
        eventually("quiltd answers", || {
            ended = child.try_wait().expect("a child of this process");
            let cri = cri.clone();
            let done = ended.is_some();
            async move { (done || cri.version().await.is_ok()).then_some(()) }
        })
        .await;
        if ended.is_some() {
            self.child = None;
        }
        ended
    }

    /// The daemon's pid; it must run.
    pub(crate) fn pid(&self) -> i32 {
        self.child.as_ref().expect("the daemon runs").id() as i32
    }

    /// How the daemon ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let status = self
            .child
            .as_mut()?
            .try_wait()
            .expect("a child of this process")?;
        self.child = None;
        Some(status)
    }

    /// SIGKILL, as a power cut or the kernel's OOM killer would.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("the daemon runs");
        child.kill().expect("a child of this process");
        let status = child.wait().expect("a child of this process");
        assert_eq!(
            status.signal(),
            Some(Signal::SIGKILL as i32),
            "quiltd ended by itself before"
        );
    }

    /// SIGTERM; returns how the daemon ended, which it must.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        process::signal(self.pid(), Signal::SIGTERM);
        let bound = Duration::from_secs(10);
        poll(bound, || self.ended())
            .unwrap_or_else(|| panic!("SIGTERM did not end quiltd:\n{}", self.log_tail()))
    }

    /// Starts the daemon again and waits until it answers.
    pub(crate) async fn restart(&mut self) {
        self.spawn();
        self.answers().await;
    }

    /// `quiltd ARGS --state DIR`, an operator's command.
    pub(crate) fn operate(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(quiltd());
        command
            .args(arguments)
            .arg("--state")
            .arg(self.names.state());
        command.output().expect("quiltd runs")
    }

    /// Runs `quiltd serve` with changes, expecting that it refuses: returns what it said.
    pub(crate) fn refused(&self, command: &mut Command) -> String {
        let log = self.path("refused.log");
        let file = File::create(&log).expect("a log file");
        let copy = file.try_clone().expect("a second handle");
        let mut child = command
            .stdout(file)
            .stderr(copy)
            .spawn()
            .expect("quiltd starts");
        let status = poll(BOUND, || child.try_wait().expect("a child of this process"));
        let Some(status) = status else {
            child.kill().expect("a child of this process");
            child.wait().expect("a child of this process");
            panic!("quiltd runs although it should refuse: {command:?}");
        };
        let text = fs::read_to_string(&log).expect("a log file");
        assert!(!status.success(), "a refusal exits with an error: {text}");
        text
    }

    /// The shim of this node, if it runs.
    pub(crate) fn shims(&self) -> Vec<i32> {
        let state = self.names.state();
        let mut pids = process::with_argument(&state.to_string_lossy());
        pids.retain(|pid| {
            process::arguments(*pid)
                .get(1)
                .is_some_and(|role| role == "shim")
        });
        pids
    }

    /// The end of the daemon's log.
    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.path("daemon.log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(80)..].join("\n")
    }

    fn log_file(&self) -> File {
        let path = self.path("daemon.log");
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .expect("a log file")
    }
}
