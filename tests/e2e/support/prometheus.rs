//! Prometheus' text format 0.0.4, read strictly: what a lenient reader passes over is a failure.

use std::collections::BTreeMap;

/// A page: what each metric is, and every value by name and labels.
#[derive(Debug)]
pub(crate) struct Page {
    /// Kind by name.
    pub(crate) kinds: BTreeMap<String, String>,
    samples: BTreeMap<(String, BTreeMap<String, String>), f64>,
}

impl Page {
    /// Reads a page; it must be right in every line.
    pub(crate) fn read(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line has no end");
        let mut page = Self {
            kinds: BTreeMap::new(),
            samples: BTreeMap::new(),
        };
        let mut current = String::new();
        let mut described = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a name and a help");
                assert!(!help.is_empty(), "{line}");
                described = Some(name.to_owned());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a name and a kind");
                assert_eq!(
                    described.take().as_deref(),
                    Some(name),
                    "HELP comes before TYPE"
                );
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                let twice = page.kinds.insert(name.to_owned(), kind.to_owned());
                assert!(twice.is_none(), "{name} is described twice");
                name.clone_into(&mut current);
            } else {
                page.sample(line, &current);
            }
        }
        page.check_histograms();
        page
    }

    fn sample(&mut self, line: &str, current: &str) {
        let (series, value) = line.rsplit_once(' ').expect("a series and a value");
        let value: f64 = value
            .parse()
            .unwrap_or_else(|_| panic!("no number: {line}"));
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').expect("a closing brace")),
            None => (series, ""),
        };
        let suffix = name
            .strip_prefix(current)
            .unwrap_or_else(|| panic!("{name} stands among the samples of {current}"));
        let allowed: &[&str] = match self.kinds.get(current).map(String::as_str) {
            Some("histogram") => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        assert!(allowed.contains(&suffix), "{line}");
        let twice = self
            .samples
            .insert((name.to_owned(), parse_labels(labels)), value);
        assert!(twice.is_none(), "twice: {line}");
    }

    /// Buckets grow, and the last one holds all.
    fn check_histograms(&self) {
        let mut by_series: BTreeMap<_, Vec<(f64, f64)>> = BTreeMap::new();
        for ((name, labels), value) in &self.samples {
            let Some(base) = name.strip_suffix("_bucket") else {
                continue;
            };
            let mut labels = labels.clone();
            let end = labels.remove("le").expect("a bucket has an end");
            let end = match end.as_str() {
                "+Inf" => f64::INFINITY,
                end => end.parse().expect("a number"),
            };
            by_series
                .entry((base.to_owned(), labels))
                .or_default()
                .push((end, *value));
        }
        for ((base, labels), mut buckets) in by_series {
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(
                buckets.is_sorted_by(|a, b| a.1 <= b.1),
                "{base} {labels:?}: {buckets:?}"
            );
            let (end, all) = *buckets.last().expect("a bucket");
            assert_eq!(end, f64::INFINITY, "{base} {labels:?}");
            let count = self.samples[&(format!("{base}_count"), labels.clone())];
            assert_eq!(all, count, "{base} {labels:?}");
            assert!(self.samples.contains_key(&(format!("{base}_sum"), labels)));
        }
    }

    /// The value with exactly these labels.
    pub(crate) fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        self.samples
            .get(&(name.to_owned(), labels.collect()))
            .copied()
    }
}

/// `name="value",…` with `\\`, `\"` and `\n` in values.
fn parse_labels(text: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").expect("a name and a quoted value");
        let mut value = String::new();
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next().expect("a closing quote") {
                (at, '"') => break at,
                (_, '\\') => match characters.next().expect("an escaped character").1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        let twice = labels.insert(name.to_owned(), value);
        assert!(twice.is_none(), "a label twice: {text}");
        rest = &after[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    labels
}
