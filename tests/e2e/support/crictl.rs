//! The real `crictl`, run against one daemon.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::Node;

/// `$CRICTL`, or the one that `make deps` builds, or the one in `$PATH`.
fn program() -> PathBuf {
    if let Some(path) = env::var_os("CRICTL") {
        return path.into();
    }
    let built = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("hack/critest/bin/crictl");
    if built.is_file() {
        built
    } else {
        "crictl".into()
    }
}

impl Node {
    /// crictl for this daemon.
    pub(crate) fn crictl_command(&self, arguments: &[&str]) -> Command {
        let endpoint = self.names.endpoint();
        let mut command = Command::new(program());
        command
            .args(["--config", "/dev/null", "--timeout", "30s"])
            .args(["--runtime-endpoint", &endpoint])
            .args(["--image-endpoint", &endpoint])
            .args(arguments);
        command
    }

    /// Runs crictl; returns whether it succeeded, and what it printed on both streams.
    pub(crate) fn try_crictl(&self, arguments: &[&str]) -> (bool, String) {
        let output = self
            .crictl_command(arguments)
            .output()
            .unwrap_or_else(|e| panic!("crictl ({:?}: run `make deps`): {e}", program()));
        let out = String::from_utf8_lossy(&output.stdout);
        let err = String::from_utf8_lossy(&output.stderr);
        (
            output.status.success(),
            format!("{out}{err}").trim_end().to_owned(),
        )
    }

    /// Runs crictl, which must succeed.
    pub(crate) fn crictl(&self, arguments: &[&str]) -> String {
        let (success, text) = self.try_crictl(arguments);
        assert!(success, "crictl {arguments:?}: {text}");
        text
    }

    /// Runs crictl and reads what it printed as JSON.
    pub(crate) fn crictl_json(&self, arguments: &[&str]) -> Value {
        let text = self.crictl(arguments);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("crictl {arguments:?}: {e}: {text}"))
    }

    /// Writes a configuration for crictl and returns its path.
    pub(crate) fn crictl_file(&self, name: &str, config: &Value) -> String {
        let path = self.path(name);
        fs::write(&path, config.to_string()).expect("a file of the test");
        path.display().to_string()
    }

    /// A pod as crictl's JSON.
    pub(crate) fn crictl_pod(&self, name: &str) -> Value {
        json!({
            "metadata": {"name": name, "namespace": "crictl", "uid": format!("{name}-uid")},
            "hostname": name,
            "log_directory": self.path("logs/crictl").display().to_string(),
            "linux": {
                "cgroup_parent": self.names.pod_parent("crictl"),
                "security_context": {"namespace_options": {"pid": 1}},
            },
        })
    }
}
