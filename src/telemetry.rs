//! Logs through `tracing`, as text or JSON, to standard error; systemd puts them into the journal.

use serde::Deserialize;
use tracing_subscriber::EnvFilter;

/// `[log]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// A level (`info`), or directives as `tracing-subscriber` reads them
    /// (`info,quilt::reconcile=debug`).
    pub level: String,
    /// Form of a line.
    pub format: LogFormat,
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: LogFormat::Text,
        }
    }
}

impl LogConfig {
    /// The filter that `level` means.
    ///
    /// # Errors
    /// When it means nothing.
    pub fn filter(&self) -> Result<EnvFilter, String> {
        EnvFilter::try_new(&self.level).map_err(|error| format!("{:?}: {error}", self.level))
    }

    /// Starts to log.
    ///
    /// # Errors
    /// When the level means nothing, or logging has been started already.
    pub fn start(&self) -> Result<(), String> {
        let lines = tracing_subscriber::fmt()
            .with_env_filter(self.filter()?)
            .with_writer(std::io::stderr)
            .with_target(false);
        match self.format {
            LogFormat::Text => lines.with_ansi(false).try_init(),
            LogFormat::Json => lines.json().flatten_event(true).try_init(),
        }
        .map_err(|error| error.to_string())
    }
}
