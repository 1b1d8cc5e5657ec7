//! The process that is in a scope until the container's own is: systemd makes no scope without one,
//! and takes an empty one away.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::cgroup::error::CgroupError;

/// How long it stays when the daemon has died: longer than the launch may take that is under way.
const LINGER: Duration = Duration::from_secs(35);

/// Such a process. It ends when this is dropped, and some time after the daemon.
#[derive(Debug)]
pub struct Holder(Child);

impl Holder {
    /// Starts `quiltd hold`.
    pub(super) fn spawn(executable: &Path) -> Result<Self, CgroupError> {
        let mut command = Command::new(executable);
        command.arg("hold").stdin(Stdio::piped());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.env_clear().current_dir("/").spawn();
        child
            .map(Self)
            .map_err(CgroupError::file("run", executable))
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Gone already, if somebody has killed all that is in the cgroup.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What that process does: nothing, until it is killed, or until its standard input has ended and a
/// launch would be over.
pub fn hold() {
    let mut nothing = Vec::new();
    let _ = std::io::stdin().take(1 << 10).read_to_end(&mut nothing);
    std::thread::sleep(LINGER);
}
