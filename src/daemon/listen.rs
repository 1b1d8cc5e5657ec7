//! Where the daemon is asked, and that there is only one.

use std::fmt;
use std::fs::{File, Permissions, TryLockError};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use tokio::net::{UnixListener, UnixStream};

/// Who may ask: root and the socket's group, as with containerd.
const MODE: u32 = 0o660;
/// Who may ask for admin commands: root.
const ADMIN_MODE: u32 = 0o600;

/// A unix socket, written `unix:///path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(PathBuf);

impl FromStr for Endpoint {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let path = text.strip_prefix("unix://").unwrap_or(text);
        if !path.starts_with('/') {
            bail!("{text:?} is not an endpoint: unix:///path/of/a/socket is wanted");
        }
        Ok(Self(path.into()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

impl Endpoint {
    /// Removes the socket file, at the daemon's end.
    pub(super) fn remove(&self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A lock on a directory, held until the process ends.
pub(crate) struct Lock(#[expect(dead_code, reason = "held, not read")] File);

impl Lock {
    pub(crate) fn take(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "another quiltd owns {} (its file \"lock\" is locked)",
                    dir.display()
                )
            }
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }
}

/// The CRI socket: systemd's when it hands one over (and then `false`: its file is systemd's too),
/// else our own.
pub(super) async fn bind(endpoint: &Endpoint) -> anyhow::Result<(UnixListener, bool)> {
    let mut handed = listenfd::ListenFd::from_env();
    if let Some(listener) = handed
        .take_unix_listener(0)
        .context("systemd handed over no socket")?
    {
        listener
            .set_nonblocking(true)
            .context("cannot use systemd's socket")?;
        let listener = UnixListener::from_std(listener);
        return Ok((listener.context("cannot use systemd's socket")?, false));
    }
    Ok((bind_path(&endpoint.0, MODE).await?, true))
}

/// The admin socket.
pub(super) async fn bind_admin(path: &Path) -> anyhow::Result<UnixListener> {
    bind_path(path, ADMIN_MODE).await
}

/// Binds a socket that nobody answers on; a dead file is replaced, a live server is not.
async fn bind_path(path: &Path, mode: u32) -> anyhow::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            bail!(
                "{} is there and is no socket; it is not replaced",
                path.display()
            );
        }
        Ok(_) => {
            if UnixStream::connect(path).await.is_ok() {
                bail!(
                    "a live server answers on {}; stop it, or listen elsewhere",
                    path.display()
                );
            }
            std::fs::remove_file(path)
                .with_context(|| format!("cannot remove the dead socket {}", path.display()))?;
        }
        Err(_) => {}
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    Ok(listener)
}
