//! One call of a plugin: a child process in a group of its own, with a minimal environment, and
//! bounds on its time and on what it writes.
//!
//! ```text
//! found in a directory ─► started ─► told on standard input ─► ended ─► standard output is read
//!                             │ out of time, or writes too much
//!                             └─► the whole group is killed
//! ```
//!
//! A daemon that dies leaves its children running: they carry its mark in their environment, by
//! which the next one finds them (`leftover.rs`).

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::error::CniError;
use super::result::{error_object, harmless};
use super::verbs::Verb;

/// Most bytes of an answer.
const ANSWER_MAX: usize = 1024 * 1024;
/// Bytes kept of what a plugin says on standard error; the rest is read and thrown away.
const SAID_MAX: usize = 8 * 1024;
/// After a plugin's end, what it wrote is there; whoever has inherited its output keeps nobody
/// waiting for longer.
const AFTER_END: Duration = Duration::from_millis(500);
/// How long a killed plugin is waited for; one in uninterruptible sleep ends when it can.
const AFTER_KILL: Duration = Duration::from_secs(1);
/// Where plugins find the programs they run themselves (`iptables`, `ip`).
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The variable by which a plugin is known as this daemon's.
pub(super) const MARK_VARIABLE: &str = "QUILT_PLUGIN_OF";

/// The node's plugins.
#[derive(Debug, Clone)]
pub struct Plugins {
    /// Where their programs are; the first one found counts.
    pub dirs: Vec<PathBuf>,
    /// Longest time one call may take.
    pub timeout: Duration,
    /// What marks the processes of this daemon.
    pub mark: String,
}

/// What a plugin is asked.
pub(super) struct Question {
    pub(super) plugin: String,
    pub(super) verb: Verb,
    /// `CNI_CONTAINERID`, `CNI_NETNS`, `CNI_IFNAME`, `CNI_ARGS`: what the verb needs of them.
    pub(super) variables: Vec<(&'static str, OsString)>,
    pub(super) input: Vec<u8>,
}

/// How it ended.
pub(super) struct Ended {
    /// Its answer, if it succeeded.
    pub(super) outcome: Result<Vec<u8>, CniError>,
    /// What it said on standard error, harmless.
    pub(super) said: String,
}

/// What was read of a plugin's output.
#[derive(Default)]
struct Output {
    answer: Vec<u8>,
    said: Vec<u8>,
}

/// A process group that is killed unless it is let go.
struct Group(Option<Pid>);

impl Group {
    fn kill(&self) {
        if let Some(group) = self.0 {
            // It may have ended by itself.
            let _gone = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Plugins {
    /// The same with a shorter time, for what pods do not wait for, or all of them.
    #[must_use]
    pub fn within(&self, timeout: Duration) -> Self {
        Self {
            timeout: self.timeout.min(timeout),
            ..self.clone()
        }
    }

    /// The directories as `CNI_PATH` has them, and as a message shows them.
    pub(super) fn path(&self) -> OsString {
        let mut path = OsString::new();
        for dir in &self.dirs {
            if !path.is_empty() {
                path.push(":");
            }
            path.push(dir);
        }
        path
    }

    /// The program of a plugin. Blocks.
    pub(super) fn find(&self, plugin: &str) -> Result<PathBuf, CniError> {
        let runs = |path: &PathBuf| {
            std::fs::metadata(path)
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        };
        let found = self.dirs.iter().map(|dir| dir.join(plugin)).find(runs);
        found.ok_or_else(|| CniError::NoPlugin {
            plugin: plugin.to_owned(),
            dirs: self.path().to_string_lossy().replace(':', ", "),
        })
    }

    /// Asks a plugin, and waits until it has ended or was ended.
    pub(super) async fn ask(&self, question: Question) -> Ended {
        let mut output = Output::default();
        let outcome = self.run(&question, &mut output).await;
        let said = harmless(&output.said);
        let outcome = outcome.and_then(|status| {
            if status.success() {
                return Ok(output.answer);
            }
            let told = error_object(&output.answer).or_else(|| error_object(&output.said));
            let (code, text) = match told {
                Some((code, text)) => (Some(code), text),
                None => (None, unformed(status, &output)),
            };
            Err(CniError::Failed {
                plugin: question.plugin,
                verb: question.verb,
                code,
                text,
            })
        });
        Ended { outcome, said }
    }

    async fn run(&self, question: &Question, output: &mut Output) -> Result<ExitStatus, CniError> {
        let mut child = self.start(question).await?;
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        let mut group = Group(id.and_then(Pid::from_raw));
        let talk = talk(&mut child, question, output);
        let ended = tokio::time::timeout(self.timeout, until_end(&mut child, talk)).await;
        if let Ok(Ok(status)) = ended {
            // Its number is free now, and may come to be another's.
            group.0 = None;
            return Ok(status);
        }
        group.kill();
        if tokio::time::timeout(AFTER_KILL, child.wait()).await.is_ok() {
            group.0 = None;
        }
        let (plugin, verb) = (question.plugin.clone(), question.verb);
        Err(match ended {
            Ok(Err(Stopped::Wait(source))) => CniError::Start { plugin, source },
            Ok(Err(Stopped::TooMuch)) => CniError::TooMuch {
                plugin,
                verb,
                bytes: ANSWER_MAX,
            },
            _ => CniError::TimedOut {
                plugin,
                verb,
                after: self.timeout,
                said: match harmless(&output.said) {
                    said if said.is_empty() => said,
                    said => format!(" (it said: {said})"),
                },
            },
        })
    }

    /// Starting a process holds its thread up for as long as the kernel takes; no call waits for
    /// one of those threads.
    async fn start(&self, question: &Question) -> Result<Child, CniError> {
        let plugins = self.clone();
        let plugin = question.plugin.clone();
        let (verb, variables) = (question.verb, question.variables.clone());
        let started = tokio::task::spawn_blocking(move || {
            let program = plugins.find(&plugin)?;
            let mut command = Command::new(program);
            command
                .env_clear()
                .env("PATH", PATH)
                .env(MARK_VARIABLE, &plugins.mark)
                .env("CNI_COMMAND", verb.as_str())
                .env("CNI_PATH", plugins.path())
                .envs(variables)
                .current_dir("/")
                .process_group(0)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            let started = command.spawn();
            started.map_err(|source| CniError::Start { plugin, source })
        });
        started.await.unwrap_or_else(|_| {
            Err(CniError::Start {
                plugin: question.plugin.clone(),
                source: std::io::Error::other("the thread that starts it died"),
            })
        })
    }
}

/// Why a plugin was not waited for to its end.
enum Stopped {
    TooMuch,
    Wait(std::io::Error),
}

/// Tells a plugin its input and reads what it writes; ends with its output.
fn talk<'o>(
    child: &mut Child,
    question: &'o Question,
    output: &'o mut Output,
) -> impl Future<Output = Result<(), Stopped>> + 'o {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let Output { answer, said } = output;
    async move {
        let tell = async {
            if let Some(mut stdin) = stdin {
                // Whoever does not read it has no need of it.
                let _unread = stdin.write_all(&question.input).await;
            }
        };
        let listen = async {
            match stdout {
                Some(stdout) => read(stdout, answer, ANSWER_MAX, Beyond::Stop).await,
                None => Ok(()),
            }
        };
        let overhear = async {
            match stderr {
                Some(stderr) => read(stderr, said, SAID_MAX, Beyond::Forget).await,
                None => Ok(()),
            }
        };
        let (listened, overheard, ()) = tokio::join!(listen, overhear, tell);
        listened.and(overheard)
    }
}

/// What becomes of bytes beyond the bound.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beyond {
    Stop,
    Forget,
}

async fn read(
    mut from: impl AsyncRead + Unpin,
    to: &mut Vec<u8>,
    bound: usize,
    beyond: Beyond,
) -> Result<(), Stopped> {
    let mut piece = [0; 8 * 1024];
    loop {
        let count = match from.read(&mut piece).await {
            Ok(0) | Err(_) => return Ok(()),
            Ok(count) => count,
        };
        let room = bound - to.len();
        if count > room && beyond == Beyond::Stop {
            return Err(Stopped::TooMuch);
        }
        to.extend_from_slice(&piece[..count.min(room)]);
    }
}

/// Waits for the end of the process, while it is spoken with.
async fn until_end(
    child: &mut Child,
    talk: impl Future<Output = Result<(), Stopped>>,
) -> Result<ExitStatus, Stopped> {
    let mut talk = std::pin::pin!(talk);
    let status = tokio::select! {
        talked = &mut talk => {
            talked?;
            return child.wait().await.map_err(Stopped::Wait);
        }
        status = child.wait() => status.map_err(Stopped::Wait)?,
    };
    match tokio::time::timeout(AFTER_END, talk).await {
        Ok(talked) => talked.map(|()| status),
        Err(_) => Ok(status),
    }
}

/// What is known of a failure without an error object.
fn unformed(status: ExitStatus, output: &Output) -> String {
    let mut text = format!("it ended with {status}");
    for (name, said) in [("said", &output.said), ("answered", &output.answer)] {
        let said = harmless(said);
        if !said.is_empty() {
            text = format!("{text} and {name}: {said}");
        }
    }
    text
}
