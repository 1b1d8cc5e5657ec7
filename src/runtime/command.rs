//! The last steps of a child: its working directory, its streams, and exec.
//!
//! What execvpe(3) does is done by hand here, because the search happens in the container's
//! environment and its errors have to be told apart: a command that is absent, one that may not be
//! run, and one that is no program.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, fchown, fstat, openat2};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{chdir, fchdir, getcwd};

use super::confine::Confinement;
use super::error::{At, LaunchError, stage};
use super::launch::ProcessStreams;
use super::root::{Missing, Root};
use crate::sys::process::{close_on_exec_from, reset_signals};

/// Where commands are looked for if the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Arguments and environment, ready for the kernel.
#[derive(Debug)]
pub(super) struct Command {
    arguments: Vec<CString>,
    environment: Vec<CString>,
    path: Vec<u8>,
}

impl Command {
    /// Checks and converts. `arguments` must not be empty; `bytes` is more of the environment, in
    /// base64.
    pub(super) fn new(
        arguments: &[String],
        environment: &[String],
        bytes: &[String],
    ) -> Result<Self, LaunchError> {
        if arguments.is_empty() {
            return Err(LaunchError::invalid(stage::PLAN, "no command is given"));
        }
        let convert = |what: &'static str, texts: &[String]| -> Result<Vec<CString>, LaunchError> {
            let invalid = |_| LaunchError::invalid(stage::PLAN, format!("{what} holds a NUL"));
            texts
                .iter()
                .map(|text| CString::new(text.as_str()).map_err(invalid))
                .collect()
        };
        let mut all = convert("the environment", environment)?;
        for entry in bytes {
            let decoded = STANDARD.decode(entry).ok();
            let entry = decoded.and_then(|entry| CString::new(entry).ok());
            let wrong = || LaunchError::invalid(stage::PLAN, "a variable is no base64");
            all.push(entry.ok_or_else(wrong)?);
        }
        let path = all
            .iter()
            .rev()
            .find_map(|entry| entry.as_bytes().strip_prefix(b"PATH="));
        Ok(Self {
            arguments: convert("an argument", arguments)?,
            path: path.unwrap_or(DEFAULT_PATH.as_bytes()).to_owned(),
            environment: all,
        })
    }

    /// Adds `HOME` if the plan did not set it.
    pub(super) fn set_missing_home(&mut self, home: &[u8]) {
        let set = self
            .environment
            .iter()
            .any(|entry| entry.as_bytes().starts_with(b"HOME="));
        if !set && let Ok(entry) = CString::new([b"HOME=", home].concat()) {
            self.environment.push(entry);
        }
    }

    /// Becomes the command. Signals are reset and every descriptor but the streams closes.
    ///
    /// All that has to be found out is found out before the confinement is put on, which may forbid
    /// anything but execve.
    pub(super) fn exec(&self, confinement: &Confinement) -> Result<Infallible, LaunchError> {
        let name = &self.arguments[0];
        let what = || format!("exec {:?}", name.to_string_lossy());
        close_on_exec_from(3).at(stage::EXEC, what)?;
        reset_signals();
        // As execvpe(3): the search goes on past what is absent, remembers what was forbidden, and
        // ends at anything else.
        let mut refusal = Refusal {
            errno: Errno::NOENT,
            interpreter: false,
        };
        let mut programs = Vec::new();
        for candidate in self.candidates() {
            match look_at(&candidate) {
                Ok(()) => programs.push(candidate),
                Err(Errno::NOENT | Errno::NOTDIR) if self.is_searched() => {}
                Err(errno @ Errno::ACCESS) if self.is_searched() => refusal.errno = errno,
                Err(errno) => {
                    refusal.errno = errno;
                    // What comes before it in the search may still be run.
                    if programs.is_empty() {
                        return Err(refusal.into_error(what()));
                    }
                    break;
                }
            }
        }
        if programs.is_empty() {
            let what = match refusal.errno {
                Errno::NOENT if self.is_searched() => {
                    let path = String::from_utf8_lossy(&self.path);
                    format!("{} (searched in {path:?})", what())
                }
                _ => what(),
            };
            return Err(refusal.into_error(what));
        }
        confinement.put_on()?;
        for program in &programs {
            let refused = self.become_program(program);
            if refused != Errno::ACCESS {
                refusal = Refusal {
                    errno: refused,
                    interpreter: refused == Errno::NOENT,
                };
                break;
            }
            refusal.errno = refused;
        }
        let what = match refusal.errno {
            Errno::TOOBIG => format!("{}: {}", what(), self.size()),
            _ => what(),
        };
        Err(refusal.into_error(what))
    }

    /// What the kernel finds too much (execve(2), "Limits on size of arguments and environment").
    fn size(&self) -> String {
        let words = self.arguments.iter().chain(&self.environment);
        let (size, longest) = words.fold((0, 0), |(size, longest), word| {
            let own = word.as_bytes_with_nul().len();
            (size + own, longest.max(own))
        });
        format!(
            "arguments and environment have {size} bytes, the longest {longest}; a quarter of the \
             limit of the stack is what all may have, and 131072 what one may"
        )
    }

    /// Whether the command is a name to be looked for, and no path.
    fn is_searched(&self) -> bool {
        let name = self.arguments[0].as_bytes();
        !name.is_empty() && !name.contains(&b'/')
    }

    /// The files that the command may mean, in the order in which they are tried.
    fn candidates(&self) -> Vec<CString> {
        let name = &self.arguments[0];
        if !self.is_searched() {
            return vec![name.clone()];
        }
        let in_directory = |directory: &[u8]| {
            let directory = if directory.is_empty() {
                b"."
            } else {
                directory
            };
            CString::new([directory, b"/", name.as_bytes()].concat()).ok()
        };
        let directories = self.path.split(|byte| *byte == b':');
        directories.filter_map(in_directory).collect()
    }

    /// Returns only if the file could not be executed.
    fn become_program(&self, file: &CString) -> Errno {
        match nix::unistd::execve(file, &self.arguments, &self.environment) {
            Ok(never) => match never {},
            Err(errno) => Errno::from_raw_os_error(errno as i32),
        }
    }
}

/// Says whether a file can be tried. A magic link (`/proc/self/exe` above all, which is this
/// program) is no command. Opening it here also tells a missing file from a missing interpreter.
fn look_at(file: &CString) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = openat2(CWD, file, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
    match FileType::from_raw_mode(fstat(found)?.st_mode) {
        FileType::Directory => Err(Errno::ACCESS),
        _ => Ok(()),
    }
}

/// Why a file could not be executed.
#[derive(Debug, Clone, Copy)]
struct Refusal {
    errno: Errno,
    /// The file is there; what it is to be run by is not.
    interpreter: bool,
}

impl Refusal {
    fn into_error(self, what: String) -> LaunchError {
        let what = match self.interpreter {
            true => format!("{what}: its interpreter or loader"),
            false => what,
        };
        LaunchError::refused(stage::EXEC, what, self.errno)
    }
}

/// Enters the working directory, making it if it is missing, as images expect since Docker.
///
/// It is entered through a descriptor that was resolved inside the root, and what the kernel then
/// calls it is checked: a directory outside of the root would have no name.
pub(super) fn enter_directory(root: &Root, path: &str) -> Result<(), LaunchError> {
    let what = || format!("enter working directory {path:?}");
    if !path.starts_with('/') {
        return Err(LaunchError::refused(stage::CWD, what(), Errno::INVAL));
    }
    let directory = root.ensure(path, Missing::Directory).at(stage::CWD, what)?;
    fchdir(&directory).at(stage::CWD, what)?;
    let inside = getcwd(Vec::new()).is_ok_and(|name| name.as_bytes().starts_with(b"/"));
    if inside {
        return Ok(());
    }
    let _ = chdir("/");
    Err(LaunchError::invalid(
        stage::CWD,
        format!("{}: it is outside of the root", what()),
    ))
}

/// Gives the streams to the root of a user namespace, who can pass them on there.
pub(super) fn give_streams(
    streams: &ProcessStreams,
    (uid, gid): (u32, u32),
) -> Result<(), LaunchError> {
    change_owner(streams, uid, Some(gid))
}

/// Gives the streams to the user, so that programs can open `/dev/stdout`.
pub(super) fn own_streams(streams: &ProcessStreams, uid: u32) -> Result<(), LaunchError> {
    change_owner(streams, uid, None)
}

/// Only pipes and terminals: other files (`/dev/null`) are not the container's.
fn change_owner(streams: &ProcessStreams, uid: u32, gid: Option<u32>) -> Result<(), LaunchError> {
    for (name, fd) in [
        ("stdin", &streams.stdin),
        ("stdout", &streams.stdout),
        ("stderr", &streams.stderr),
    ] {
        let what = || format!("give {name} to user {uid}");
        let stat = fstat(fd).at(stage::STDIO, what)?;
        let theirs = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Fifo => true,
            FileType::CharacterDevice => rustix::termios::isatty(fd),
            _ => false,
        };
        let differs = stat.st_uid != uid || gid.is_some_and(|gid| stat.st_gid != gid);
        if theirs && differs {
            let gid = gid.map(Gid::from_raw);
            fchown(fd, Some(Uid::from_raw(uid)), gid).at(stage::STDIO, what)?;
        }
    }
    Ok(())
}

/// Makes the streams descriptors 0, 1 and 2.
pub(super) fn install_streams(streams: ProcessStreams) -> Result<(), LaunchError> {
    let what = || "install the standard streams";
    // Out of the way first: one of them may be 0, 1 or 2 itself, in the wrong place.
    let streams = [streams.stdin, streams.stdout, streams.stderr]
        .into_iter()
        .map(|fd| {
            if fd.as_raw_fd() > 2 {
                Ok(fd)
            } else {
                fcntl_dupfd_cloexec(&fd, 3)
            }
        })
        .collect::<Result<Vec<OwnedFd>, Errno>>()
        .at(stage::STDIO, what)?;
    let [stdin, stdout, stderr] = &streams[..] else {
        return Err(LaunchError::invalid(
            stage::STDIO,
            "three streams are needed",
        ));
    };
    rustix::stdio::dup2_stdin(stdin).at(stage::STDIO, what)?;
    rustix::stdio::dup2_stdout(stdout).at(stage::STDIO, what)?;
    rustix::stdio::dup2_stderr(stderr).at(stage::STDIO, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_command_needs_arguments_without_nul() {
        assert!(Command::new(&[], &[], &[]).is_err());
        assert!(Command::new(&strings(&["a\0b"]), &[], &[]).is_err());
        assert!(Command::new(&strings(&["a"]), &strings(&["X=\0"]), &[]).is_err());
        for bytes in ["!", &STANDARD.encode(b"X=\0")] {
            assert!(Command::new(&strings(&["a"]), &[], &strings(&[bytes])).is_err());
        }
    }

    #[test]
    fn home_is_added_only_when_missing() {
        let mut command =
            Command::new(&strings(&["a"]), &strings(&["HOME=/x"]), &[]).expect("valid");
        command.set_missing_home(b"/root");
        assert_eq!(command.environment.len(), 1);
        let mut command =
            Command::new(&strings(&["a"]), &strings(&["PATH=/p"]), &[]).expect("valid");
        command.set_missing_home(b"/root");
        assert_eq!(command.environment[1].as_bytes(), b"HOME=/root");
        assert_eq!(command.path, b"/p");
    }
}
