//! Hooks that operators drop into directories (`[hooks]`): which of them a container has, what they
//! had to say, and those that run when nothing is left of it.
//!
//! Directories are read at every start of a container, so that a hook counts from the next one on.
//! A file that is no hook fails the start: who was promised a hook must not run without it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use oci_spec::OciSpecError;
use oci_spec::runtime::{HookBuilder, Hooks, HooksBuilder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::{Back, ReconcileError, external};
use crate::id::ContainerId;
use crate::lifecycle::handler::passes;
use crate::lifecycle::hook::{Hook, HookCommand, Stage, Subject};
use crate::lifecycle::spec::Map;
use crate::runtime::hooks::{RECORD, Ran, State};
use crate::state::container::Container;
use crate::state::sandbox::Sandbox;
use crate::sys::ownership::only_root_writes;

/// Files of one directory, and the bytes of one.
const FILES_MAX: usize = 1000;
const FILE_MAX: u64 = 1024 * 1024;
/// What is read of what hooks have said.
const RECORD_MAX: u64 = 256 * 1024;
/// What is kept of what one says at the end.
const SAID_MAX: u64 = 4096;

/// All hooks that are there, in the order of their files' names. Reads files.
pub(super) fn load(directories: &[PathBuf]) -> Result<Vec<Hook>, ReconcileError> {
    let mut files: BTreeMap<std::ffi::OsString, PathBuf> = BTreeMap::new();
    for directory in directories {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries.map_err(ReconcileError::file("read", directory))?,
        };
        for entry in entries.take(FILES_MAX) {
            let entry = entry.map_err(ReconcileError::file("read", directory))?;
            let path = entry.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                files.insert(entry.file_name(), path);
            }
        }
    }
    files.into_values().map(|path| parse(&path)).collect()
}

fn parse(path: &Path) -> Result<Hook, ReconcileError> {
    let mut text = Vec::new();
    let file = fs::File::open(path).map_err(ReconcileError::file("open", path))?;
    let found = file
        .metadata()
        .map_err(ReconcileError::file("look at", path))?;
    if !only_root_writes(&found) {
        let why = "hooks run as root: it has to be root's, and nobody else may write it";
        return Err(ReconcileError::Plan(format!("{}: {why}", path.display())));
    }
    let read = file.take(FILE_MAX).read_to_end(&mut text);
    read.map_err(ReconcileError::file("read", path))?;
    Hook::parse(&text)
        .map_err(|why| ReconcileError::Plan(format!("{} is no hook: {why}", path.display())))
}

/// The hooks of a container, as its spec has them; `None` if there is none for it.
pub(super) fn of(
    back: &Back,
    container: &Container,
    sandbox: &Sandbox,
    all: &[Hook],
) -> Result<Option<Hooks>, OciSpecError> {
    let annotations = annotations(container, sandbox);
    let spec = &container.spec;
    let subject = Subject {
        annotations: &annotations,
        command: spec.process.args.first().map_or("", String::as_str),
        has_bind_mounts: spec.mounts.iter().any(|mount| mount.image.is_none()),
    };
    let own: Vec<&Hook> = all.iter().filter(|hook| hook.is_for(&subject)).collect();
    if own.is_empty() {
        return Ok(None);
    }
    let at = |stage: Stage| -> Result<Vec<_>, OciSpecError> {
        let hooks = own.iter().filter(|hook| hook.stages.contains(&stage));
        hooks
            .map(|hook| build(&hook.command, back.hooks.timeout_s))
            .collect()
    };
    let hooks = HooksBuilder::default()
        .prestart(at(Stage::Prestart)?)
        .create_runtime(at(Stage::CreateRuntime)?)
        .create_container(at(Stage::CreateContainer)?)
        .start_container(at(Stage::StartContainer)?)
        .poststart(at(Stage::Poststart)?)
        .poststop(at(Stage::Poststop)?);
    hooks.build().map(Some)
}

/// A hook as a spec has it.
pub(super) fn build(
    command: &HookCommand,
    timeout_s: u64,
) -> Result<oci_spec::runtime::Hook, OciSpecError> {
    let timeout = command.timeout.unwrap_or(timeout_s);
    HookBuilder::default()
        .path(&command.path)
        .args(command.args.clone())
        .env(command.env.clone())
        .timeout(i64::try_from(timeout).unwrap_or(i64::MAX))
        .build()
}

/// Annotations of a container, and of its pod where it has none of that name.
pub(super) fn annotations(container: &Container, sandbox: &Sandbox) -> Map {
    let mut all = sandbox.spec.annotations.clone();
    let own = container.spec.annotations.iter();
    all.extend(own.map(|(name, value)| (name.clone(), value.clone())));
    all
}

/// Those of them that hooks get to see.
pub(super) fn visible(back: &Back, annotations: &Map) -> Map {
    let patterns = &back.hooks.annotations;
    let visible = annotations
        .iter()
        .filter(|(name, _)| passes(patterns, name));
    visible
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Makes events of what the hooks of a start had to say.
pub(super) async fn record(back: &Back, id: &ContainerId) -> Result<(), ReconcileError> {
    let path = back.paths.container(id).join(RECORD);
    let Ok(file) = tokio::fs::File::open(&path).await else {
        return Ok(());
    };
    let mut text = Vec::new();
    let read = file.take(RECORD_MAX).read_to_end(&mut text).await;
    read.map_err(ReconcileError::file("read", &path))?;
    let text = String::from_utf8_lossy(&text);
    for ran in text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
    {
        told(back, id, &ran).await?;
    }
    match tokio::fs::remove_file(&path).await {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(ReconcileError::file("remove", &path)(error))
        }
        _ => Ok(()),
    }
}

async fn told(back: &Back, id: &ContainerId, ran: &Ran) -> Result<(), ReconcileError> {
    let Ran {
        stage,
        path,
        said,
        error,
    } = ran;
    let mut message = format!("{stage} {path}");
    if let Some(error) = error {
        message = format!("{message} {error}");
    }
    if !said.is_empty() {
        message = format!("{message}: {said}");
    }
    back.observed.container_hook(id.clone(), message).await?;
    Ok(())
}

/// Runs the hooks of a container of which nothing is left. What fails is told, and holds nothing
/// up for longer than its time. Another runtime has run its own.
pub(super) async fn poststop(back: &Back, id: &ContainerId) -> Result<(), ReconcileError> {
    let Some(plan) = external::plan_with_bundle(back, id).await else {
        return Ok(());
    };
    let hooks = plan.spec.hooks().as_ref();
    let hooks = hooks.and_then(|hooks| hooks.poststop().clone());
    let Some(hooks) = hooks.filter(|_| plan.external.is_none()) else {
        return Ok(());
    };
    let state = State::of(&plan, "stopped", None).to_json();
    for hook in hooks {
        let (said, error) = run(&hook, &state).await;
        let ran = Ran {
            stage: "poststop".into(),
            path: hook.path().display().to_string(),
            said,
            error,
        };
        told(back, id, &ran).await?;
    }
    Ok(())
}

async fn run(hook: &oci_spec::runtime::Hook, state: &[u8]) -> (String, Option<String>) {
    let mut words = hook.args().iter().flatten();
    let mut command = Command::new(hook.path());
    if let Some(name) = words.next() {
        command.arg0(name);
    }
    let environment = hook.env().iter().flatten();
    let environment = environment.filter_map(|entry| entry.split_once('='));
    command
        .args(words)
        .env_clear()
        .envs(environment)
        .current_dir("/");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let started = command.process_group(0).kill_on_drop(true).spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => return (String::new(), Some(format!("cannot be started: {error}"))),
    };
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    let ending = async {
        let tell = async {
            if let Some(mut stdin) = stdin {
                // Whoever does not read it has no need of it.
                let _unread = stdin.write_all(state).await;
            }
        };
        let listen = async {
            if let Some(stdout) = stdout {
                let _partly = stdout.take(SAID_MAX).read_to_end(&mut said).await;
            }
        };
        let overhear = async {
            if let Some(stderr) = stderr {
                let _partly = stderr.take(SAID_MAX).read_to_end(&mut complained).await;
            }
        };
        tokio::join!(tell, listen, overhear, child.wait()).3
    };
    let seconds = hook
        .timeout()
        .and_then(|seconds| u64::try_from(seconds).ok());
    let seconds = seconds.unwrap_or(1);
    let ended = tokio::time::timeout(Duration::from_secs(seconds), ending).await;
    said.extend(complained);
    let said = String::from_utf8_lossy(&said).trim_end().to_owned();
    let error = match ended {
        Ok(Ok(status)) if status.success() => None,
        Ok(Ok(status)) => Some(format!("ended with {status}")),
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("did not end in {seconds} s and was killed")),
    };
    (said, error)
}
