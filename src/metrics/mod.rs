//! What the daemon counts about itself, in memory: atomics on the hot path, read when somebody
//! asks. What can be counted in the database is not counted here.
//!
//! `instrument.rs` has the counters, gauges and histograms; `exposition.rs` writes them as
//! Prometheus reads them. `docs/metrics.md` says what each one means.

mod exposition;
mod instrument;

use std::time::Duration;

pub use exposition::{Exposition, Kind};
pub use instrument::{Counter, Family, Gauge, Histogram, Reading};

/// Everything that is counted in memory. One for the daemon, in the store that all parts share.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Reads and writes of the database by operation and outcome; a write counts from the moment it
    /// is asked for until it is committed.
    pub database: Family<2, Histogram>,
    /// Tries that were repeated because somebody else held a lock, by operation.
    pub database_retries: Family<1, Counter>,
    /// Operations that were given up because a wait was over, by operation.
    pub database_timeouts: Family<1, Counter>,
    /// Reads of the database under way.
    pub readers: Gauge,
    /// Calls by endpoint and gRPC code.
    pub api: Family<2, Histogram>,
    /// Pulls by what came of them: `pulled`, `present`, or why not.
    pub pulls: Family<1, Counter>,
    /// Calls of network plugins by verb and outcome.
    pub plugins: Family<2, Histogram>,
    /// Bytes of layers that came over the network.
    pub pulled_bytes: Counter,
    /// Requests to registries that were made again.
    pub registry_retries: Counter,
    /// Networks that pods were given, by where they came from: `prepared` or `made`.
    pub pod_networks: Family<1, Counter>,
    /// Sessions that are open, by kind.
    pub sessions: Family<1, Gauge>,
    /// How long those were open that have ended, by kind.
    pub session_durations: Family<1, Histogram>,
    /// Bytes of sessions by kind and direction: `received` from the client, or `sent`.
    pub session_bytes: Family<2, Counter>,
    /// Requests that did not become sessions, by why.
    pub sessions_refused: Family<1, Counter>,
    /// From the end of a container's process until that is committed.
    pub exit_lag: Histogram,
    /// Whether a shim is connected.
    pub shim_connected: Gauge,
    /// Spans of calls by what became of them: `sent`, `failed` or `lost`.
    pub trace_spans: Family<1, Counter>,
    /// When the last sweep ended, ns since 1970; 0 before the first one.
    pub last_sweep_ns: Gauge,
}

impl Metrics {
    /// Writes everything that is counted here.
    pub fn write(&self, to: &mut Exposition) {
        let labels = ["operation", "outcome"];
        let help = "Time of a database operation, with its wait for the writer.";
        to.describe("database_operation_duration_seconds", help, Kind::Histogram);
        self.database.each(|values, histogram| {
            to.histogram(
                "database_operation_duration_seconds",
                &pairs(labels, values),
                histogram,
            );
        });
        let help = "Tries repeated because somebody else held a lock of the database.";
        to.describe("database_retry_count", help, Kind::Counter);
        self.database_retries.each(|values, counter| {
            to.sample(
                "database_retry_count",
                &pairs(["operation"], values),
                counter.get(),
            );
        });
        let help =
            "Database operations given up because a wait for a lock or a connection was over.";
        to.describe("database_timeout_count", help, Kind::Counter);
        self.database_timeouts.each(|values, counter| {
            to.sample(
                "database_timeout_count",
                &pairs(["operation"], values),
                counter.get(),
            );
        });
        to.describe(
            "concurrent_readers_gauge",
            "Database reads under way.",
            Kind::Gauge,
        );
        to.sample("concurrent_readers_gauge", &[], self.readers.get());
        let help = "Time of a CRI call by endpoint and gRPC code.";
        to.describe("api_request_duration_seconds", help, Kind::Histogram);
        self.api.each(|values, histogram| {
            let labels = pairs(["endpoint", "code"], values);
            to.histogram("api_request_duration_seconds", &labels, histogram);
        });
        let help = "Time of a call of a network plugin (CNI) by verb and outcome.";
        to.describe("quilt_cni_call_duration_seconds", help, Kind::Histogram);
        self.plugins.each(|values, histogram| {
            let labels = pairs(["verb", "outcome"], values);
            to.histogram("quilt_cni_call_duration_seconds", &labels, histogram);
        });
        self.write_pulls(to);
        self.write_networks(to);
        self.write_sessions(to);
        let help = "From the end of a container's process until its exit is in the database.";
        to.describe("quilt_exit_lag_seconds", help, Kind::Histogram);
        to.histogram("quilt_exit_lag_seconds", &[], &self.exit_lag);
        to.describe(
            "quilt_shim_connected",
            "Whether the shim is connected.",
            Kind::Gauge,
        );
        to.sample("quilt_shim_connected", &[], self.shim_connected.get());
        let help = "Spans of calls by what became of them.";
        to.describe("quilt_trace_spans_total", help, Kind::Counter);
        self.trace_spans.each(|values, counter| {
            let labels = pairs(["outcome"], values);
            to.sample("quilt_trace_spans_total", &labels, counter.get());
        });
        let help = "When the last sweep ended, seconds since 1970; 0 before the first.";
        to.describe("quilt_last_sweep_timestamp_seconds", help, Kind::Gauge);
        let at = u64::try_from(self.last_sweep_ns.get()).unwrap_or(0);
        let at = Duration::from_nanos(at).as_secs_f64();
        to.sample("quilt_last_sweep_timestamp_seconds", &[], at);
    }
}

impl Metrics {
    fn write_sessions(&self, to: &mut Exposition) {
        let help = "Sessions that are open.";
        to.describe("quilt_sessions", help, Kind::Gauge);
        self.sessions.each(|values, gauge| {
            to.sample("quilt_sessions", &pairs(["kind"], values), gauge.get());
        });
        let help = "How long sessions were open that have ended.";
        to.describe("quilt_session_duration_seconds", help, Kind::Histogram);
        self.session_durations.each(|values, histogram| {
            let labels = pairs(["kind"], values);
            to.histogram("quilt_session_duration_seconds", &labels, histogram);
        });
        let help = "Bytes that sessions have received from their clients or sent to them.";
        to.describe("quilt_session_bytes_total", help, Kind::Counter);
        self.session_bytes.each(|values, counter| {
            let labels = pairs(["kind", "direction"], values);
            to.sample("quilt_session_bytes_total", &labels, counter.get());
        });
        let help = "Requests that did not become sessions.";
        to.describe("quilt_sessions_refused_total", help, Kind::Counter);
        self.sessions_refused.each(|values, counter| {
            let labels = pairs(["reason"], values);
            to.sample("quilt_sessions_refused_total", &labels, counter.get());
        });
    }

    fn write_networks(&self, to: &mut Exposition) {
        let help = "Networks that pods were given, by where they came from.";
        to.describe("quilt_pod_networks_total", help, Kind::Counter);
        self.pod_networks.each(|values, counter| {
            let labels = pairs(["source"], values);
            to.sample("quilt_pod_networks_total", &labels, counter.get());
        });
    }

    fn write_pulls(&self, to: &mut Exposition) {
        let help = "Pulls by what came of them.";
        to.describe("quilt_pulls_total", help, Kind::Counter);
        self.pulls.each(|values, counter| {
            let labels = pairs(["outcome"], values);
            to.sample("quilt_pulls_total", &labels, counter.get());
        });
        let help = "Bytes of layers, compressed, that came over the network.";
        to.describe("quilt_pulled_bytes_total", help, Kind::Counter);
        to.sample("quilt_pulled_bytes_total", &[], self.pulled_bytes.get());
        let help = "Requests to registries that were made again.";
        to.describe("quilt_registry_retries_total", help, Kind::Counter);
        to.sample(
            "quilt_registry_retries_total",
            &[],
            self.registry_retries.get(),
        );
    }
}

fn pairs<const N: usize>(
    names: [&'static str; N],
    values: [&'static str; N],
) -> [(&'static str, &'static str); N] {
    std::array::from_fn(|place| (names[place], values[place]))
}
