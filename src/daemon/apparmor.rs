//! The AppArmor profile `quilt-default`, loaded when the daemon starts on a node that has AppArmor
//! and not yet this profile. One that the administrator has loaded is not touched.
//!
//! Only AppArmor's own compiler makes what its module takes, so that is run, with a bound. A node
//! without it goes on: containers that ask for `RuntimeDefault` are refused, the others have none.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::confinement::lsm;

/// Longest time the compiler may take; it needs a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where it is looked for, whatever `PATH` the daemon has.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bytes kept of what it says.
const SAID_MAX: usize = 1024;

/// Loads the profile, if that is to be done. What fails is told in the log.
pub(super) async fn ensure_loaded() {
    if !lsm::has_apparmor() || lsm::apparmor_profile_is_loaded(lsm::APPARMOR_DEFAULT) {
        return;
    }
    let loaded = tokio::time::timeout(PATIENCE, load()).await;
    let loaded = loaded.unwrap_or_else(|_| Err(anyhow::anyhow!("it took too long")));
    match loaded {
        Ok(()) => tracing::info!(profile = lsm::APPARMOR_DEFAULT, "loaded into AppArmor"),
        Err(error) => tracing::warn!(
            error = format!("{error:#}"),
            profile = lsm::APPARMOR_DEFAULT,
            "not loaded into AppArmor: containers have no profile by default, and those that ask \
             for RuntimeDefault are refused; install apparmor_parser, or load the profile yourself"
        ),
    }
}

async fn load() -> anyhow::Result<()> {
    let mut child = Command::new("apparmor_parser")
        // Replaces what another daemon has loaded meanwhile; no cache, which would be a file of
        // ours.
        .args(["--replace", "--skip-cache"])
        .env_clear()
        .env("PATH", PATH)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start apparmor_parser")?;
    let mut input = child.stdin.take().context("no standard input")?;
    match input.write_all(lsm::APPARMOR_PROFILE.as_bytes()).await {
        // It has ended before, and says why.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written.context("cannot tell apparmor_parser the profile")?,
    }
    drop(input);
    let ended = child.wait_with_output().await?;
    if ended.status.success() {
        return Ok(());
    }
    let said = &ended.stderr[..ended.stderr.len().min(SAID_MAX)];
    let said = String::from_utf8_lossy(said);
    anyhow::bail!("apparmor_parser: {}: {}", ended.status, said.trim())
}
