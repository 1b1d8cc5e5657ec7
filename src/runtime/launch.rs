//! Stand-in.
#![expect(missing_docs, reason = "replaced at merge")]
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::plan::{CgroupEntry, ExecPlan, LaunchPlan};

#[derive(Debug)]
pub struct Started {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub terminal: Option<OwnedFd>,
}

#[derive(Debug)]
pub struct ProcessStreams {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

#[derive(Debug)]
pub struct Target {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodInitPlan {
    pub namespaces: Vec<(String, PathBuf)>,
    pub cgroup: CgroupEntry,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct LaunchError {
    pub stage: String,
    pub errno: Option<i32>,
    pub message: String,
}

impl LaunchError {
    pub fn is_command_error(&self) -> bool {
        self.stage == "exec"
    }
}

fn spawn(args: &[String], streams: Option<ProcessStreams>) -> Result<Started, LaunchError> {
    let mut command = Command::new(&args[0]);
    command.args(&args[1..]);
    if let Some(streams) = streams {
        command.stdin(Stdio::from(streams.stdin));
        command.stdout(Stdio::from(streams.stdout));
        command.stderr(Stdio::from(streams.stderr));
    }
    let child = command.spawn().map_err(|error| LaunchError {
        stage: "exec".to_owned(),
        errno: error.raw_os_error(),
        message: format!("exec {:?}: {error}", args[0]),
    })?;
    let pid = rustix::process::Pid::from_child(&child);
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    Ok(Started {
        pid: pid.as_raw_nonzero().get(),
        pidfd,
        terminal: None,
    })
}

pub fn launch(plan: &LaunchPlan, streams: Option<ProcessStreams>) -> Result<Started, LaunchError> {
    let args = plan
        .spec
        .process()
        .as_ref()
        .unwrap()
        .args()
        .as_ref()
        .unwrap();
    spawn(args, streams)
}

pub fn exec(
    target: &Target,
    plan: &ExecPlan,
    streams: Option<ProcessStreams>,
    _terminal: bool,
) -> Result<Started, LaunchError> {
    let _ = target.pidfd.as_fd();
    spawn(&plan.args, streams)
}

pub fn pod_init(_plan: &PodInitPlan) -> Result<Started, LaunchError> {
    spawn(
        &["/bin/busybox".into(), "sleep".into(), "1000".into()],
        None,
    )
}
