//! The process between the shim and a runtime: it calls with a bound, and cleans up after what has
//! failed.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags, openat, stat};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, chdir, getpid, kill_process,
    pidfd_open, set_child_subreaper, set_parent_process_death_signal, setsid, umask, wait, waitid,
};
use rustix::thread::ThreadNameSpaceType;
use serde::Deserialize;

use super::super::error::{At, LaunchError, stage};
use super::super::plan::{CgroupEntry, ExternalRuntime};
use super::super::spawn::wait_readable;
use crate::sys::clone;
use crate::sys::process::{close_on_exec_from, reset_signals};

/// Where a runtime looks for programs of its own; it gets no other environment.
const ENVIRONMENT: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// All calls of one launch, which the shim gives up a little later.
const LAUNCH: Duration = Duration::from_secs(25);
/// What is read of a runtime's log, and repeated of it.
const LOG_MAX: u64 = 64 * 1024;
const MESSAGE_MAX: usize = 2048;
/// Exit status of a child that could not become the runtime.
const NOT_EXECUTED: i32 = 127;
/// Looks at children that were killed, and the pause between two.
const REAPS: u32 = 100;
const REAP_PAUSE: Duration = Duration::from_millis(10);

/// The calling process as a driver. Its working directory is the bundle.
pub(super) struct Driver<'a> {
    pub(super) runtime: &'a ExternalRuntime,
    until: Instant,
}

impl<'a> Driver<'a> {
    /// Makes the calling process one: it ends with the shim, and has what its children orphan.
    pub(super) fn begin(runtime: &'a ExternalRuntime) -> Result<Self, LaunchError> {
        let what = || "become the driver of a runtime";
        let at = stage::RUNTIME;
        set_parent_process_death_signal(Some(Signal::KILL)).at(at, what)?;
        set_child_subreaper(Some(getpid())).at(at, what)?;
        setsid().at(at, what)?;
        umask(Mode::from_raw_mode(0o022));
        let program = &runtime.path;
        let look = || format!("find the program {program:?} of runtime {:?}", runtime.name);
        let found = stat(program).at(at, look)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(LaunchError::refused(at, look(), Errno::ACCESS));
        }
        for directory in [&runtime.root, &runtime.bundle] {
            fs::create_dir_all(directory)
                .map_err(as_errno)
                .at(at, || format!("make {directory:?}"))?;
        }
        let bundle = &runtime.bundle;
        chdir(bundle).at(at, || format!("enter {bundle:?}"))?;
        Ok(Self {
            runtime,
            until: Instant::now() + LAUNCH,
        })
    }

    /// Refuses an environment that the runtime could not be told.
    pub(super) fn refuse_bytes(&self, environment: &[String]) -> Result<(), LaunchError> {
        if environment.is_empty() {
            return Ok(());
        }
        let name = &self.runtime.name;
        let message = format!(
            "the environment has values that are no UTF-8, which runtime {name:?} cannot be told: \
             its specification is JSON"
        );
        Err(LaunchError::invalid(stage::PLAN, message))
    }

    /// Until when the next call may take.
    pub(super) fn until(&self) -> Instant {
        let one = Duration::from_secs(self.runtime.timeout_s);
        self.until.min(Instant::now() + one)
    }

    /// Calls the runtime. It gets our standard streams if they are the container's, else none.
    pub(super) fn call(
        &self,
        verb: &str,
        arguments: &[&OsStr],
        with_streams: bool,
    ) -> Result<(), LaunchError> {
        let what = || format!("runtime {:?}: {verb}", self.runtime.name);
        let log = self.runtime.bundle.join("runtime.log");
        let _ = fs::remove_file(&log);
        let words = self.words(&log, verb, arguments)?;
        let null = openat(
            CWD,
            "/dev/null",
            OFlags::RDWR | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .at(stage::RUNTIME, || "open /dev/null")?;
        let streams = (!with_streams).then_some(null.as_fd());
        let child = clone::spawn(ThreadNameSpaceType::empty(), None, |_| {
            become_runtime(&words, streams);
            NOT_EXECUTED
        });
        let child = child.at(stage::RUNTIME, what)?;
        let seconds = self.runtime.timeout_s;
        if !wait_readable(child.pidfd.as_fd(), self.until()) {
            let message = format!("{} did not end in {seconds} s and was killed", what());
            return Err(LaunchError::invalid(stage::TIMEOUT, message));
        }
        let ended = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
        let ended = ended.at(stage::RUNTIME, what)?;
        let status = ended.and_then(|ended| ended.exit_status());
        match status {
            Some(0) => Ok(()),
            _ => {
                let why = last_error(&log).unwrap_or_else(|| match status {
                    Some(code) => format!("exit status {code}"),
                    None => "it was killed by a signal".to_owned(),
                });
                let message = format!("{}: {why}", what());
                Err(LaunchError::invalid(stage::RUNTIME, message))
            }
        }
    }

    fn words(
        &self,
        log: &Path,
        verb: &str,
        arguments: &[&OsStr],
    ) -> Result<Vec<CString>, LaunchError> {
        let runtime = self.runtime;
        let own = runtime.options.iter().map(OsStr::new);
        let common: [&OsStr; 6] = [
            "--root".as_ref(),
            runtime.root.as_ref(),
            "--log".as_ref(),
            log.as_ref(),
            "--log-format".as_ref(),
            "json".as_ref(),
        ];
        let all = std::iter::once(runtime.path.as_os_str())
            .chain(own)
            .chain(common)
            .chain([OsStr::new(verb)])
            .chain(arguments.iter().copied());
        all.map(|word| CString::new(OsString::from(word).into_vec()))
            .collect::<Result<_, _>>()
            .map_err(|_| LaunchError::invalid(stage::PLAN, "an option of the runtime holds a NUL"))
    }

    /// The process that the runtime has made, as it has written down, and a hold on it. It is our
    /// child, dead or alive, because whoever made it has ended.
    pub(super) fn process(&self, pid_file: &str) -> Result<(Pid, OwnedFd), LaunchError> {
        let what = || {
            format!(
                "read the process id that runtime {:?} wrote",
                self.runtime.name
            )
        };
        let text = read_bounded(Path::new(pid_file)).map_err(as_errno);
        let text = text.at(stage::RUNTIME, what)?;
        let text = String::from_utf8_lossy(&text);
        let number = text.trim().parse().ok().filter(|pid: &i32| *pid > 1);
        let pid = number.and_then(Pid::from_raw).ok_or(Errno::INVAL);
        let pid = pid.at(stage::RUNTIME, what)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).at(stage::RUNTIME, what)?;
        if parent_of(pid) != Some(getpid()) {
            let name = &self.runtime.name;
            let message = format!("process {pid} that runtime {name:?} names is not its own");
            return Err(LaunchError::invalid(stage::RUNTIME, message));
        }
        Ok((pid, pidfd))
    }

    /// Ends everything that this launch has begun, and has the runtime forget it.
    pub(super) fn abandon(&mut self) {
        end_children();
        self.until = Instant::now() + Duration::from_secs(self.runtime.timeout_s.min(2));
        // What it never knew of it cannot forget.
        let _ = self.delete();
        end_children();
    }

    /// Has the runtime forget the container, whatever is left of it.
    pub(super) fn delete(&self) -> Result<(), LaunchError> {
        let id = OsStr::new(&self.runtime.id);
        self.call("delete", &["--force".as_ref(), id], false)
    }
}

/// Puts a process into the cgroups of a plan, where the runtime has not.
pub(super) fn enter_cgroups(pid: Pid, entry: &CgroupEntry) -> Result<(), LaunchError> {
    let unified = entry.unified_dir.iter().cloned();
    let v1 = entry.v1_tasks_files.iter();
    // As a whole: a runtime's process has threads.
    let v1 = v1.filter_map(|file| file.parent().map(Path::to_owned));
    for directory in unified.chain(v1) {
        let file = directory.join("cgroup.procs");
        fs::write(&file, pid.as_raw_nonzero().to_string())
            .map_err(as_errno)
            .at(stage::CGROUP, || format!("join cgroup {directory:?}"))?;
    }
    Ok(())
}

pub(super) fn as_errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// Executes the runtime; returns when that cannot be.
fn become_runtime(words: &[CString], streams: Option<BorrowedFd<'_>>) {
    let Ok(environment) = CString::new(ENVIRONMENT) else {
        return;
    };
    if let Some(null) = streams {
        let installed = rustix::stdio::dup2_stdin(null)
            .and_then(|()| rustix::stdio::dup2_stdout(null))
            .and_then(|()| rustix::stdio::dup2_stderr(null));
        if installed.is_err() {
            return;
        }
    }
    let ready =
        set_parent_process_death_signal(Some(Signal::KILL)).and_then(|()| close_on_exec_from(3));
    if ready.is_ok() {
        reset_signals();
        let _ = nix::unistd::execve(&words[0], words, &[environment]);
    }
}

/// The last error in a runtime's log: a line of JSON, as `--log-format json` has it.
fn last_error(log: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(default)]
        level: String,
        #[serde(default)]
        msg: String,
    }
    let text = read_bounded(log).ok()?;
    let text = String::from_utf8_lossy(&text);
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    let mut errors = lines.filter(|line: &Line| matches!(line.level.as_str(), "error" | "fatal"));
    let mut message = errors.next_back()?.msg;
    message.truncate(message.floor_char_boundary(MESSAGE_MAX));
    Some(message)
}

fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(LOG_MAX).read_to_end(&mut text)?;
    Ok(text)
}

/// The parent of a process, which may be dead and unreaped (proc_pid_status(5)).
fn parent_of(pid: Pid) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    Pid::from_raw(parent.trim().parse().ok()?)
}

/// Kills what is ours, and what becomes ours by that, until nothing is left or that takes too long.
pub(in super::super) fn end_children() {
    let own = getpid();
    let list = format!("/proc/{own}/task/{own}/children");
    for _ in 0..REAPS {
        let children = fs::read_to_string(&list).unwrap_or_default();
        let pids = children.split_ascii_whitespace();
        for pid in pids.filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
            // One that has ended meanwhile is reaped below.
            let _ = kill_process(pid, Signal::KILL);
        }
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
        std::thread::sleep(REAP_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_runtime_is_told() {
        let log = tempfile::NamedTempFile::new().expect("a file");
        assert_eq!(last_error(log.path()), None);
        let text = "{\"level\":\"warning\",\"msg\":\"w\"}\n\
            {\"level\":\"error\",\"msg\":\"first\"}\n\
            no JSON\n{\"msg\":\"the last\",\"level\":\"error\",\"time\":\"t\"}\n\
            {\"level\":\"debug\",\"msg\":\"d\"}\n";
        fs::write(log.path(), text).expect("written");
        assert_eq!(last_error(log.path()).as_deref(), Some("the last"));
    }

    #[test]
    fn a_process_knows_its_parent() {
        let own = getpid();
        assert_eq!(parent_of(own), rustix::process::getppid());
    }
}
