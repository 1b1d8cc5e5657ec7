//! How a process becomes the shim, step by step, and how its starter learns that it has.
//!
//! The starter gives it three pipes or files as standard streams. The first process forks and is
//! gone at once, so that the shim is nobody's child to reap; the shim writes [`READY`] to standard
//! output when its socket listens, and only then lets go of all three. What goes wrong before that
//! is on standard error.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::process::{Resource, Rlimit};

use super::ShimError;
use crate::runtime::protect::protect_self;
use crate::shim::journal::Journal;
use crate::shim::protocol::SOCKET_NAME;
use crate::sys::{scheduling, seqpacket};

/// What the shim writes to standard output once it answers.
pub const READY: &[u8] = b"ready\n";

/// How long a former shim has to finish ending.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(5);
/// Descriptors of the shim itself, and those that come and go with a request.
const OWN_FILES: usize = 48;
/// A pidfd, two FIFOs, the log, and the keeper of an input.
const FILES_PER_PROCESS: usize = 5;
/// The shim's nice value; its children's is 0.
const NICE: i32 = -10;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// What a shim has when it is one.
#[derive(Debug)]
pub(super) struct Ready {
    /// Held until the process ends.
    pub(super) lock: File,
    pub(super) listener: OwnedFd,
    pub(super) socket_path: PathBuf,
    pub(super) signals: SignalFd,
    pub(super) journal: Journal,
    /// Processes it may hold at once.
    pub(super) capacity: usize,
}

/// Takes all the steps; returns in the shim, not in the process that was started.
pub(super) fn become_shim(state_dir: &Path) -> Result<Ready, ShimError> {
    let call = |doing, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| ShimError::Call {
            doing,
            path,
            source,
        }
    };
    let state_dir =
        std::path::absolute(state_dir).map_err(call("resolve state directory", state_dir))?;
    let own_dir = state_dir.join("shim");
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&own_dir)
        .map_err(call("make directory", &own_dir))?;

    // 1. Leave the starter: fork, new session, working directory `/`. Before everything that
    //    belongs to a process (record locks, signal descriptors), and while there is nothing to
    //    share.
    nix::unistd::daemon(false, true).map_err(|errno| call("fork in", &own_dir)(errno.into()))?;

    // 2. Be the only one. A record lock, for a child that does not exec does not inherit it.
    let lock_path = own_dir.join("lock");
    let lock = lock(&lock_path).map_err(call("lock", &lock_path))?;

    // 3. Nobody inside a container may look into this process (CVE-2019-5736 and its kin), and the
    //    kernel should look for memory elsewhere first.
    protect_self().map_err(|errno| call("make undumpable", &own_dir)(errno.into()))?;
    // Refused where CAP_SYS_RESOURCE is missing, as in nested containers; then it stays as it is.
    let _ = fs::write("/proc/self/oom_score_adj", "-999");
    // The daemon's slice is not for containers, which inherit ours.
    let _ = scheduling::set_slice(None);
    // Processes that write as fast as they can are many, and end or need a launch beside each
    // other; this is one. Refused without CAP_SYS_NICE; then it is one of them.
    let _ = scheduling::go_before_others(NICE);

    // Executed by descriptor, a process may be named after its number.
    let _ = rustix::thread::set_name(c"quilt-shim");

    // 4. Orphans of processes without a PID namespace of their own come to us.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|errno| call("become subreaper of", &own_dir)(errno.into()))?;
    let capacity = raise_open_files();
    // What the modes of new files below mean does not depend on who started us.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));

    // 5. Signals become events. Blocked ones reach nobody else in this single thread.
    let signals =
        block_signals().map_err(|errno| call("block signals in", &own_dir)(errno.into()))?;

    // 6. Exits that a former shim wrote down, then the door.
    let journal = Journal::load(&own_dir.join("exits"))?;
    let socket_path = state_dir.join(SOCKET_NAME);
    match fs::remove_file(&socket_path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(call("remove stale socket", &socket_path)(error));
        }
        _ => {}
    }
    let listener = seqpacket::listen(&socket_path, BACKLOG);
    let listener = listener.map_err(call("listen at", &socket_path))?;

    // 7. Say so, and let go of what the starter gave.
    let log_path = own_dir.join("shim.log");
    leave_streams(&log_path).map_err(call("open", &log_path))?;
    Ok(Ready {
        lock,
        listener,
        socket_path,
        signals,
        journal,
        capacity,
    })
}

fn lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    let end = Instant::now() + LOCK_WAIT;
    loop {
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(errno) if Instant::now() > end => return Err(errno.into()),
            Err(_) => std::thread::sleep(LOCK_RETRY),
        }
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// Raises the limit of open files and says how many processes fit under it. Only the soft limit:
/// the hard one is inherited by containers whose plan sets none.
fn raise_open_files() -> usize {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let raised = rustix::process::setrlimit(Resource::Nofile, raised).is_ok();
    let files = if raised { limit.maximum } else { limit.current };
    let files = files
        .and_then(|files| usize::try_from(files).ok())
        .unwrap_or(usize::MAX);
    files.saturating_sub(OWN_FILES) / FILES_PER_PROCESS
}

fn block_signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGHUP,
        Signal::SIGPIPE,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ] {
        set.add(signal);
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

fn leave_streams(log_path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW);
    let log = options.open(log_path)?;
    log.set_len(0)?;
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    let mut stdout = io::stdout();
    // A starter that is gone does not need to know.
    let _ = stdout.write_all(READY).and_then(|()| stdout.flush());
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&log)?;
    Ok(())
}
