//! Holds the daemon at one of its fault points (`quiltd fault-points`) and lets it go on.

use std::fs;
use std::path::PathBuf;

use super::{Node, eventually};

/// The file in which the daemon looks for armed points.
pub(crate) struct Faults {
    file: PathBuf,
}

impl Faults {
    /// For a node whose daemon has not been started yet.
    pub(crate) fn of(node: &mut Node) -> Self {
        let file = node.path("faults");
        fs::write(&file, "").expect("a file of the test");
        let path = file.display().to_string();
        node.env.push(("QUILT_FAULTS_FILE".into(), path));
        Self { file }
    }

    /// Whoever comes to `point` from now on stands still until [`Faults::release`]. `times` as the
    /// daemon knows it: `*1` holds the first one only.
    pub(crate) fn hold(&self, point: &str, times: &str) {
        let _none_yet = fs::remove_file(self.fired());
        fs::write(&self.file, format!("{point}=delay:60000{times}")).expect("a file of the test");
    }

    /// The daemon dies at the passage of `point` with this number, counted from now on.
    pub(crate) fn kill(&self, point: &str, nth: usize) {
        let _none_yet = fs::remove_file(self.fired());
        fs::write(&self.file, format!("{point}=abort*1@{nth}")).expect("a file of the test");
    }

    /// Whether somebody has come to `point` since it was armed.
    pub(crate) fn has_fired(&self, point: &str) -> bool {
        let fired = fs::read_to_string(self.fired()).unwrap_or_default();
        fired.lines().any(|line| line == point)
    }

    /// Waits until somebody stands at `point`.
    pub(crate) async fn reached(&self, point: &str) {
        eventually(&format!("something comes to {point}"), || async {
            self.has_fired(point).then_some(())
        })
        .await;
    }

    /// Lets everybody go on.
    pub(crate) fn release(&self) {
        fs::write(&self.file, "").expect("a file of the test");
    }

    fn fired(&self) -> PathBuf {
        self.file.with_extension("fired")
    }
}
