//! The configuration file: TOML, one section a module, every key optional. An unknown key or an
//! impossible value is an error that says where.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::cgroup::CgroupConfig;
use crate::image::{ImageConfig, Limits, Policy, Proxies};
use crate::lifecycle::handler::Handlers;
use crate::lifecycle::hook::HooksConfig;
use crate::lifecycle::image::Pins;
use crate::lifecycle::ulimit::ContainerConfig;
use crate::network::NetworkConfig;
use crate::reconcile::ImageRules;
use crate::reconcile::worker::JobRules;
use crate::shim::log::LogsConfig;
use crate::streaming::StreamingConfig;
use crate::telemetry::LogConfig;
use crate::traces::TracingConfig;

/// Where the file is when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/quilt/config.toml";

/// Everything that can be configured.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Devices that vendors describe.
    pub cdi: CdiConfig,
    /// Where containers go among the cgroups.
    pub cgroup: CgroupConfig,
    /// What every container gets.
    pub container: ContainerConfig,
    /// What has no row, and what is missing.
    pub cleanup: CleanupConfig,
    /// Calls.
    pub cri: CriConfig,
    /// Hooks that operators drop into directories.
    pub hooks: HooksConfig,
    /// Registries and layers.
    pub image: ImageSection,
    /// The queue of jobs.
    pub jobs: JobsConfig,
    /// What is logged, and how.
    pub log: LogConfig,
    /// The logs of containers.
    pub logs: LogsConfig,
    /// What Prometheus may read.
    pub metrics: MetricsConfig,
    /// The pod network.
    pub network: NetworkConfig,
    /// OCI runtimes beside our own, by RuntimeClass handler.
    pub runtimes: Handlers,
    /// Writable layers.
    pub snapshot: SnapshotConfig,
    /// How much history is kept.
    pub state: StateConfig,
    /// What containers and pods use.
    pub stats: StatsConfig,
    /// Exec, attach and port-forward.
    pub streaming: StreamingConfig,
    /// Where spans of calls go.
    pub tracing: TracingConfig,
}

/// `[stats]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StatsConfig {
    /// Time between two looks at what containers and pods use, in seconds.
    pub interval_s: NonZeroU64,
}

impl Default for StatsConfig {
    fn default() -> Self {
        const DEFAULT_S: NonZeroU64 = NonZeroU64::new(10).expect("it is not zero");
        Self {
            interval_s: DEFAULT_S,
        }
    }
}

/// `[snapshot]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotConfig {
    /// How writable layers are made.
    pub driver: SnapshotDriver,
}

/// How writable layers are made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotDriver {
    /// As recorded; at the first start as overlays, if the file system takes them, else as copies.
    #[default]
    Auto,
    /// As overlays, or the daemon does not start.
    Overlay,
    /// As copies.
    Native,
}

/// `[metrics]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Address and port of the HTTP endpoint; empty is none.
    pub listen: String,
}

impl MetricsConfig {
    /// Where to listen, if anywhere.
    ///
    /// # Errors
    /// Why the text is no address.
    pub fn address(&self) -> Result<Option<SocketAddr>, String> {
        if self.listen.is_empty() {
            return Ok(None);
        }
        let parsed = self.listen.parse();
        parsed.map(Some).map_err(|_| {
            let listen = &self.listen;
            format!("{listen:?} is not an IP address and a port, such as 127.0.0.1:9471")
        })
    }
}

/// `[cdi]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CdiConfig {
    /// Where specifications lie; a device in a later one takes the place of one in an earlier.
    pub directories: Vec<PathBuf>,
}

impl Default for CdiConfig {
    fn default() -> Self {
        // As the specification has it, from what is installed to what is generated.
        Self {
            directories: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
        }
    }
}

/// `[cleanup]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CleanupConfig {
    /// Time between two sweeps, in seconds; 0 is none but at start and when asked.
    pub interval_s: u64,
}

impl Default for CleanupConfig {
    fn default() -> Self {
        Self { interval_s: 300 }
    }
}

/// `[cri]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CriConfig {
    /// Longest wait, in seconds, of a call whose client names no deadline.
    pub default_deadline_s: u64,
    /// Seconds after which a pod is withdrawn whose caller never came back; 0 is never.
    pub abandoned_after_s: u64,
}

impl Default for CriConfig {
    fn default() -> Self {
        // Kubelet names a deadline everywhere but with PullImage and ExecSync hooks.
        Self {
            default_deadline_s: 3600,
            abandoned_after_s: 600,
        }
    }
}

/// `[state]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StateConfig {
    /// Newest events that are kept.
    pub events_kept: u32,
    /// Age in seconds beyond which an event is not kept; 0 is any age.
    pub events_kept_s: u64,
    /// Newest operations that are kept.
    pub operations_kept: u32,
}

impl Default for StateConfig {
    fn default() -> Self {
        Self {
            events_kept: 100_000,
            events_kept_s: 7 * 24 * 3600,
            operations_kept: 20_000,
        }
    }
}

/// `[image]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageSection {
    /// Directory with `<host>/hosts.toml`, as containerd's operators have it.
    pub certs_d: PathBuf,
    /// A file of credentials as `docker login` writes it, for pulls that bring none.
    pub credentials_file: Option<PathBuf>,
    /// Layers downloaded and unpacked at once, over all pulls.
    pub parallel_layers: usize,
    /// Transfers of blobs at once, over all pulls; a large blob takes several.
    pub parallel_connections: usize,
    /// Blobs from this many bytes on are kept on disk while they come, so that a download goes on
    /// where it was after a restart.
    pub keep_from_bytes: u64,
    /// Whether compressed blobs stay on disk beside the layers made of them.
    pub keep_blobs: bool,
    /// Longest time, in seconds, to make a connection to a registry.
    pub connect_timeout_s: u64,
    /// Longest silence, in seconds, of a registry in the middle of a download.
    pub stall_timeout_s: u64,
    /// Bytes one layer may have unpacked.
    pub layer_bytes_max: u64,
    /// How many times its compressed size that may be, when it is large.
    pub layer_ratio_max: u64,
    /// Files, directories and links one layer may have.
    pub layer_entries_max: u64,
    /// Which device nodes of a layer are made.
    pub device_nodes: DeviceNodes,
    /// Images that kubelet is advised to keep: names, `start*`, `*part*`.
    pub pinned: Vec<String>,
    /// Which images may be pulled (`[[image.policy]]`).
    pub policy: Policy,
    /// Seconds for which the layers that a failed pull has got wait for a retry.
    pub failed_pull_kept_s: u64,
}

/// Which device nodes of a layer are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceNodes {
    /// Those that every container has in `/dev`.
    Harmless,
    /// All.
    All,
}

impl Default for ImageSection {
    fn default() -> Self {
        let driver = ImageConfig::default();
        Self {
            certs_d: driver.certs_d,
            credentials_file: driver.credentials_file,
            parallel_layers: driver.parallel_layers,
            parallel_connections: driver.parallel_connections,
            keep_from_bytes: driver.keep_from_bytes,
            keep_blobs: driver.keep_blobs,
            connect_timeout_s: driver.connect_timeout.as_secs(),
            stall_timeout_s: driver.stall_timeout.as_secs(),
            layer_bytes_max: driver.limits.unpacked_bytes,
            layer_ratio_max: driver.limits.ratio,
            layer_entries_max: driver.limits.entries,
            device_nodes: DeviceNodes::Harmless,
            pinned: Vec::new(),
            policy: driver.policy,
            failed_pull_kept_s: 600,
        }
    }
}

impl ImageSection {
    /// Which images and layers are kept.
    ///
    /// # Errors
    /// A pattern of `pinned` that is none, and why.
    pub fn rules(&self) -> Result<ImageRules, String> {
        let kept = Duration::from_secs(self.failed_pull_kept_s).as_nanos();
        Ok(ImageRules {
            pins: Pins::parse(&self.pinned)?,
            failed_pull_kept_ns: i64::try_from(kept).unwrap_or(i64::MAX),
        })
    }

    /// The driver's configuration.
    #[must_use]
    pub fn driver(&self) -> ImageConfig {
        ImageConfig {
            certs_d: self.certs_d.clone(),
            credentials_file: self.credentials_file.clone(),
            parallel_layers: self.parallel_layers,
            parallel_connections: self.parallel_connections,
            keep_from_bytes: self.keep_from_bytes,
            keep_blobs: self.keep_blobs,
            proxies: Proxies::from_environment(),
            connect_timeout: Duration::from_secs(self.connect_timeout_s),
            stall_timeout: Duration::from_secs(self.stall_timeout_s),
            policy: self.policy.clone(),
            limits: Limits {
                unpacked_bytes: self.layer_bytes_max,
                ratio: self.layer_ratio_max,
                entries: self.layer_entries_max,
                all_devices: self.device_nodes == DeviceNodes::All,
                ..Limits::default()
            },
            ..ImageConfig::default()
        }
    }
}

impl CriConfig {
    /// The same as a duration.
    #[must_use]
    pub fn default_deadline(&self) -> Duration {
        Duration::from_secs(self.default_deadline_s)
    }

    /// The same as a duration; `None` is never.
    #[must_use]
    pub fn abandoned_after(&self) -> Option<Duration> {
        (self.abandoned_after_s > 0).then(|| Duration::from_secs(self.abandoned_after_s))
    }
}

/// `[jobs]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobsConfig {
    /// How long, in seconds, finished jobs and failed looks are kept to be looked at.
    pub history_s: u64,
    /// How many of them at most.
    pub history_rows: u32,
    /// After how long, in seconds, a job that still runs is reported.
    pub long_running_s: u64,
}

impl Default for JobsConfig {
    fn default() -> Self {
        Self {
            history_s: 86_400,
            history_rows: 50_000,
            long_running_s: 600,
        }
    }
}

impl JobsConfig {
    /// The worker's rules.
    #[must_use]
    pub fn rules(&self) -> JobRules {
        JobRules {
            history: Duration::from_secs(self.history_s),
            history_rows: self.history_rows,
            long_running: Duration::from_secs(self.long_running_s),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// It is not TOML, or holds an unknown key or a value of another kind; the text has the line.
    #[error("configuration {}: {text}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong.
        text: String,
    },
    /// A value that cannot be.
    #[error("configuration {}: {key}: {why}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What is wrong with its value.
        why: String,
    },
}

impl Config {
    /// Reads and checks the file. One at the default place may be missing.
    ///
    /// # Errors
    /// When it cannot be read, parsed or used.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound
                    && path == Path::new(DEFAULT_PATH) =>
            {
                String::new()
            }
            Err(source) => {
                return Err(ConfigError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        Self::parse(path, &text)
    }

    /// Checks the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// When it cannot be parsed or used.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let path = path.to_owned();
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.clone(),
            text: error.to_string().trim_end().to_owned(),
        })?;
        let value = |key, why: String| ConfigError::Value {
            path: path.clone(),
            key,
            why,
        };
        if let Err(error) = config.network.validate() {
            return Err(value("network", error.to_string()));
        }
        if let Err(error) = config.cgroup.root() {
            return Err(value("cgroup.root", error.to_string()));
        }
        if config.cri.default_deadline_s == 0 {
            return Err(value("cri.default_deadline_s", "must not be 0".into()));
        }
        if config.state.events_kept == 0 || config.state.operations_kept == 0 {
            return Err(value("state", "what is kept must not be 0".into()));
        }
        if config.image.stall_timeout_s == 0 || config.image.connect_timeout_s == 0 {
            return Err(value("image", "a timeout must not be 0".into()));
        }
        if config.image.parallel_connections == 0 {
            return Err(value("image.parallel_connections", "must not be 0".into()));
        }
        if config.image.parallel_layers == 0 {
            return Err(value("image.parallel_layers", "must not be 0".into()));
        }
        let image = &config.image;
        let smallest = [image.layer_bytes_max, image.layer_ratio_max];
        if smallest.contains(&0) || image.layer_entries_max == 0 {
            return Err(value("image", "a limit of layers must not be 0".into()));
        }
        if let Err(why) = config.image.rules() {
            return Err(value("image.pinned", why));
        }
        if let Err(why) = config.image.policy.check_keys() {
            return Err(value("image.policy", why));
        }
        if let Err(why) = config.container.limits() {
            return Err(value("container.ulimits", why));
        }
        if let Err(why) = config.metrics.address() {
            return Err(value("metrics.listen", why));
        }
        if config.jobs.long_running_s == 0 {
            return Err(value("jobs.long_running_s", "must not be 0".into()));
        }
        if let Err((key, why)) = config.streaming.validate() {
            return Err(value(key, why));
        }
        if let Err((key, why)) = config.tracing.check() {
            return Err(value(key, why));
        }
        if let Err((key, why)) = config.logs.validate() {
            return Err(value(key, why));
        }
        if let Err((key, why)) = config.check_programs() {
            return Err(value(key, why));
        }
        config.log.filter().map_err(|why| value("log.level", why))?;
        Ok(config)
    }

    /// Programs of others that are run.
    fn check_programs(&self) -> Result<(), (&'static str, String)> {
        self.hooks.check().map_err(|why| ("hooks", why))?;
        let mut runtimes = self.runtimes.iter();
        let checked = runtimes.try_for_each(|(name, handler)| handler.check(name));
        checked.map_err(|why| ("runtimes", why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Config::parse(Path::new("c.toml"), text)
            .expect_err(text)
            .to_string()
    }

    #[test]
    fn nothing_at_all_is_a_configuration() {
        assert_eq!(
            Config::parse(Path::new("c"), "")
                .expect("defaults")
                .cgroup
                .root()
                .expect("a path")
                .to_string(),
            "/quilt"
        );
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let text = error("[network]\nbrigde = \"b\"\n");
        assert!(text.contains("brigde") && text.contains("line 2"), "{text}");
    }

    #[test]
    fn an_impossible_value_is_named_with_its_key() {
        assert!(error("[cgroup]\nroot = \"../up\"\n").contains("cgroup.root"));
        assert!(error("[cgroup]\nroot = \"/\"\n").contains("cgroup.root"));
        assert!(error("[cgroup]\ndriver = \"cgroups\"\n").contains("driver"));
        let slice = error("[cgroup]\ndriver = \"systemd\"\nroot = \"/quilt\"\n");
        assert!(slice.contains("cgroup.root"), "{slice}");
        assert!(error("[log]\nlevel = \"loud,,=\"\n").contains("log.level"));
        assert!(error("[network]\nmtu = 1\n").contains("mtu"));
        assert!(error("[metrics]\nlisten = \"localhost\"\n").contains("metrics.listen"));
        assert!(error("[state]\nevents_kept = 0\n").contains("state: "));
        assert!(error("[image]\nlayer_ratio_max = 0\n").contains("limit of layers"));
        assert!(error("[image]\ndevice_nodes = \"some\"\n").contains("device_nodes"));
        assert!(error("[image]\npinned = [\"*\"]\n").contains("image.pinned"));
        assert!(error("[runtimes.a]\npath = \"runc\"\n").contains("runtimes: a.path"));
        assert!(error("[jobs]\nlong_running_s = 0\n").contains("jobs.long_running_s"));
    }
}
