//! `quiltd doctor`: what this node offers, found out by doing it, what is missing, what that costs
//! and how it is mended. It needs no daemon, changes nothing that stays, and does everything that
//! others could see in namespaces of its own.

mod cgroups;
mod configuration;
mod kernel;
mod network;
mod probe;
mod storage;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::output::{Format, stdout};
use super::table::harmless;
use crate::config::{Config, DEFAULT_PATH};
use probe::{Need, Node, Probe};

/// All that is looked at, in the order in which it is told.
const PROBES: [&[Probe]; 5] = [
    configuration::PROBES,
    kernel::PROBES,
    cgroups::PROBES,
    storage::PROBES,
    network::PROBES,
];

/// The arguments are those of `serve`: it is that daemon's node which is looked at.
#[derive(clap::Args)]
pub(super) struct Doctor {
    /// Configuration file (TOML). At the default place it may be missing.
    #[arg(long, default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Root directory of the daemon; it need not be there yet.
    #[arg(long, default_value = super::place::DEFAULT_ROOT)]
    root: PathBuf,
    /// State directory of the daemon; it need not be there yet.
    #[arg(long, default_value = super::DEFAULT_STATE)]
    state: PathBuf,
    /// Where CRI is answered.
    #[arg(long, default_value = super::place::DEFAULT_LISTEN)]
    listen: String,
    /// Form of the answer.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// A probe, and what it has found: in what form it is there, or why it is not.
struct Finding {
    probe: &'static Probe,
    seen: Result<String, String>,
}

impl Finding {
    fn is_missing(&self, need: Need) -> bool {
        self.seen.is_err() && self.probe.need == need
    }
}

/// The answer is in the exit status as well: 0 everything is there, 1 something is missing that
/// costs a feature, 2 something without which no pod runs.
pub(super) fn run(doctor: &Doctor) -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        eprintln!("quiltd: doctor tries what the daemon does, and so must be run as root");
        return ExitCode::from(2);
    }
    let loaded = Config::load(&doctor.config);
    let node = Node {
        problem: loaded.as_ref().err().map(ToString::to_string),
        config: loaded.unwrap_or_default(),
        root: doctor.root.clone(),
        state: doctor.state.clone(),
        listen: doctor.listen.clone(),
    };
    let probes = PROBES.into_iter().flatten();
    let findings: Vec<Finding> = probes
        .filter(|probe| (probe.applies)(&node))
        .map(|probe| Finding {
            probe,
            seen: (probe.look)(&node),
        })
        .collect();
    let mut to = stdout();
    let told = match doctor.output {
        Format::Table => tell(&findings, &mut to),
        Format::Json => writeln!(to, "{:#}", as_json(&findings)),
    };
    // Whoever read the answer has read enough.
    let _ = told.and_then(|()| to.flush());
    let missing = |need| findings.iter().any(|finding| finding.is_missing(need));
    match (missing(Need::Required), missing(Need::Wanted)) {
        (true, _) => ExitCode::from(2),
        (false, true) => ExitCode::from(1),
        (false, false) => ExitCode::SUCCESS,
    }
}

fn tell(findings: &[Finding], to: &mut impl Write) -> io::Result<()> {
    for Finding { probe, seen } in findings {
        let (word, detail) = match (seen, probe.need) {
            (Ok(detail), _) => ("ok", detail),
            (Err(why), Need::Wanted) => ("missing", why),
            (Err(why), Need::Required) => ("NEEDED", why),
        };
        let detail = match detail.is_empty() {
            true => String::new(),
            false => format!(": {}", harmless(detail)),
        };
        writeln!(to, "{word:<8} {:<24} {}{detail}", probe.name, probe.what)?;
        if seen.is_err() {
            writeln!(to, "         costs  {}", probe.costs)?;
            writeln!(to, "         mend   {}", probe.mend)?;
        }
    }
    let count = |need| findings.iter().filter(|one| one.is_missing(need)).count();
    match (count(Need::Required), count(Need::Wanted)) {
        (0, 0) => writeln!(to, "nothing is missing"),
        (0, wanted) => writeln!(to, "pods run; {wanted} missing"),
        (required, wanted) => {
            let all = required + wanted;
            writeln!(
                to,
                "no pod runs as it should; {all} missing, {required} of them needed"
            )
        }
    }
}

fn as_json(findings: &[Finding]) -> serde_json::Value {
    let all = findings.iter().map(|finding| {
        let Finding { probe, seen } = finding;
        json!({
            "name": probe.name,
            "what": probe.what,
            "needed": probe.need == Need::Required,
            "found": seen.is_ok(),
            "detail": match seen { Ok(text) | Err(text) => text },
            "costs": probe.costs,
            "mend": probe.mend,
        })
    });
    json!({ "findings": all.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_probe_has_a_name_of_its_own_and_says_what_to_do() {
        let mut names = BTreeSet::new();
        for probe in PROBES.into_iter().flatten() {
            assert!(names.insert(probe.name), "{} twice", probe.name);
            for text in [probe.what, probe.costs, probe.mend] {
                assert!(!text.is_empty(), "{}", probe.name);
            }
        }
    }

    #[test]
    fn what_is_missing_is_told_with_its_price_and_its_remedy() {
        static PROBE: Probe = Probe {
            name: "a.b",
            what: "something",
            need: Need::Wanted,
            costs: "a feature",
            mend: "install it",
            applies: probe::always,
            look: |_| Ok(String::new()),
        };
        let findings = [
            Finding {
                probe: &PROBE,
                seen: Err("not\x1b there".into()),
            },
            Finding {
                probe: &PROBE,
                seen: Ok("in full".into()),
            },
        ];
        let mut text = Vec::new();
        tell(&findings, &mut text).expect("memory takes it");
        let text = String::from_utf8(text).expect("text");
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("missing  a.b"), "{text}");
        assert!(lines[1].ends_with("a feature") && lines[2].ends_with("install it"));
        assert!(lines[3].starts_with("ok") && lines[3].ends_with("something: in full"));
        assert_eq!(lines[4], "pods run; 1 missing");
        assert!(!text.contains('\x1b'), "{text:?}");
        let json = as_json(&findings);
        assert_eq!(json["findings"][0]["found"], false);
        assert_eq!(json["findings"][1]["detail"], "in full");
    }
}
