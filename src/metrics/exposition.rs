//! The text that Prometheus reads (exposition format 0.0.4).

use std::fmt::{Display, Write as _};

use super::instrument::{BUCKETS_NS, Histogram};

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How long things took.
    Histogram,
}

/// A text under way.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// The content type of the text.
    pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

    /// Begins a metric: its samples follow at once.
    pub fn describe(&mut self, name: &str, help: &str, kind: Kind) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    /// One value.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        self.labels(labels, None);
        self.line(format_args!(" {value}"));
    }

    /// All lines of a histogram, in seconds.
    pub fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let (counts, sum_ns) = histogram.read();
        let mut so_far = 0;
        for (place, count) in counts.into_iter().enumerate() {
            so_far += count;
            let end = BUCKETS_NS.get(place).copied();
            let end = end.map_or_else(|| "+Inf".to_owned(), |ns| seconds(ns).to_string());
            self.text.push_str(name);
            self.text.push_str("_bucket");
            self.labels(labels, Some(&end));
            self.line(format_args!(" {so_far}"));
        }
        self.text.push_str(name);
        self.text.push_str("_sum");
        self.labels(labels, None);
        self.line(format_args!(" {}", seconds(sum_ns)));
        self.text.push_str(name);
        self.text.push_str("_count");
        self.labels(labels, None);
        self.line(format_args!(" {so_far}"));
    }

    /// The whole text.
    #[must_use]
    pub fn finish(self) -> String {
        self.text
    }

    fn line(&mut self, end: std::fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ = self.text.write_fmt(end);
        self.text.push('\n');
    }

    fn labels(&mut self, labels: &[(&str, &str)], bucket: Option<&str>) {
        let all = labels.iter().copied().chain(bucket.map(|end| ("le", end)));
        let mut separator = '{';
        for (name, value) in all {
            self.text.push(separator);
            separator = ',';
            self.text.push_str(name);
            self.text.push_str("=\"");
            for character in value.chars() {
                match character {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    other => self.text.push(other),
                }
            }
            self.text.push('"');
        }
        if separator == ',' {
            self.text.push('}');
        }
    }
}

fn seconds(ns: u64) -> f64 {
    std::time::Duration::from_nanos(ns).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut text = Exposition::default();
        text.describe("m", "back\\slash\nline", Kind::Gauge);
        text.sample("m", &[("a", "q\"uo\\te\n"), ("b", "")], 1.5);
        let expected = "# HELP m back\\\\slash\\nline\n# TYPE m gauge\n\
                        m{a=\"q\\\"uo\\\\te\\n\",b=\"\"} 1.5\n";
        assert_eq!(text.finish(), expected);
    }

    #[test]
    fn buckets_are_cumulative_and_end_with_all() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_micros(60));
        histogram.observe(Duration::from_millis(3));
        let mut text = Exposition::default();
        text.histogram("h", &[("a", "b")], &histogram);
        let text = text.finish();
        assert!(
            text.contains("h_bucket{a=\"b\",le=\"0.00005\"} 0\n"),
            "{text}"
        );
        assert!(
            text.contains("h_bucket{a=\"b\",le=\"0.0001\"} 1\n"),
            "{text}"
        );
        assert!(
            text.contains("h_bucket{a=\"b\",le=\"0.005\"} 2\n"),
            "{text}"
        );
        assert!(text.contains("h_bucket{a=\"b\",le=\"+Inf\"} 2\n"), "{text}");
        assert!(text.contains("h_sum{a=\"b\"} 0.00306\n"), "{text}");
        assert!(text.ends_with("h_count{a=\"b\"} 2\n"), "{text}");
    }
}
