//! `[logs]`: what the logs of containers may take. Kubelet rotates them itself, so all is off.

use serde::Deserialize;

use crate::runtime::plan::LogLimits;

/// Below this, more would be rotated than written.
const FILE_BYTES_MIN: u64 = 64 * 1024;
/// Files of one container; they are listed at each rotation.
const FILES_MAX: u32 = 1000;

/// `[logs]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogsConfig {
    /// Bytes of one file, which is never exceeded; 0 is any number.
    pub max_bytes: u64,
    /// Files that stay of one container, with the one that is written.
    pub files: u32,
    /// Bytes that one container may write in a second; 0 is any number.
    pub bytes_per_s: u64,
}

impl Default for LogsConfig {
    fn default() -> Self {
        Self {
            max_bytes: 0,
            files: 5,
            bytes_per_s: 0,
        }
    }
}

impl LogsConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// The key and what is wrong with its value.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        if (1..FILE_BYTES_MIN).contains(&self.max_bytes) {
            let why = format!("must be 0 (no limit) or at least {FILE_BYTES_MIN}");
            return Err(("logs.max_bytes", why));
        }
        if !(2..=FILES_MAX).contains(&self.files) {
            return Err(("logs.files", format!("must be from 2 to {FILES_MAX}")));
        }
        Ok(())
    }

    /// The same for a launch plan.
    #[must_use]
    pub fn limits(&self) -> LogLimits {
        LogLimits {
            file_bytes: self.max_bytes,
            files: self.files,
            bytes_per_s: self.bytes_per_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_values_are_named() {
        let key = |change: fn(&mut LogsConfig)| {
            let mut config = LogsConfig::default();
            change(&mut config);
            config.validate().err().map(|(key, _)| key)
        };
        assert_eq!(key(|_| {}), None);
        assert_eq!(key(|c| c.max_bytes = FILE_BYTES_MIN), None);
        assert_eq!(key(|c| c.max_bytes = 1), Some("logs.max_bytes"));
        assert_eq!(key(|c| c.files = 1), Some("logs.files"));
        assert_eq!(key(|c| c.files = FILES_MAX + 1), Some("logs.files"));
    }
}
