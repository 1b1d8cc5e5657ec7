//! `[tracing]` of the configuration file.

use serde::Deserialize;

/// Where spans go.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TracingConfig {
    /// A collector that speaks OTLP over gRPC, such as `http://127.0.0.1:4317`; empty is none.
    pub endpoint: String,
    /// Of a million requests that belong to no trace yet, how many begin one. Those that belong to
    /// one are traced as their client has decided.
    pub sampling_rate_per_million: u32,
}

impl TracingConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// The key, and what is wrong with its value.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let plain = self.endpoint.strip_prefix("http://");
        let host = plain.map(|rest| rest.trim_end_matches('/'));
        if !self.endpoint.is_empty() && host.is_none_or(|host| host.is_empty()) {
            let why = format!("{:?} is not http://HOST:PORT", self.endpoint);
            return Err(("tracing.endpoint", why));
        }
        if self.sampling_rate_per_million > 1_000_000 {
            let why = "must be at most 1000000".to_owned();
            return Err(("tracing.sampling_rate_per_million", why));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_address_without_tls() {
        for (endpoint, good) in [
            ("", true),
            ("http://127.0.0.1:4317", true),
            ("http://collector:4317/", true),
            ("https://collector", false),
            ("127.0.0.1:4317", false),
            ("http://", false),
        ] {
            let config = TracingConfig {
                endpoint: endpoint.into(),
                ..TracingConfig::default()
            };
            assert_eq!(config.check().is_ok(), good, "{endpoint}");
        }
    }
}
