//! The points of a build that has them: what is armed, and what a passage does.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::points::POINTS;

/// Points armed for the daemon's whole life.
const VARIABLE: &str = "QUILT_FAULTS";
/// File with points that may change while the daemon runs.
const FILE_VARIABLE: &str = "QUILT_FAULTS_FILE";
/// Between two looks of a delayed step at whether the points have been armed anew.
const SLICE: Duration = Duration::from_millis(5);

/// What an armed point answers instead of letting a step go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("injected at {point}")]
pub struct Fault {
    point: &'static str,
    passing: bool,
}

impl Fault {
    /// Whether trying again may go better.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        self.passing
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Error,
    Fail,
    Delay(Duration),
    Panic,
    Abort,
}

/// One armed point.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Arm {
    action: Action,
    /// First passage that counts.
    from: u64,
    /// How often it fires.
    times: u64,
    /// Passages so far.
    passed: u64,
}

impl Arm {
    /// Counts a passage; what it does to it.
    fn pass(&mut self) -> Option<Action> {
        self.passed += 1;
        let due = self.passed >= self.from && self.passed - self.from < self.times;
        due.then_some(self.action)
    }
}

type Arms = HashMap<&'static str, Arm>;

/// Everything that is armed, and from which text.
struct Armed {
    file: Option<PathBuf>,
    text: String,
    arms: Arms,
    /// Counts armings: a delay of an earlier one is over.
    arming: u64,
}

impl Armed {
    fn from_environment() -> Result<Self, String> {
        let file = std::env::var_os(FILE_VARIABLE).map(PathBuf::from);
        let text = match &file {
            Some(_) if std::env::var_os(VARIABLE).is_some() => {
                return Err(format!(
                    "{VARIABLE} and {FILE_VARIABLE}: only one may be set"
                ));
            }
            Some(path) => std::fs::read_to_string(path).unwrap_or_default(),
            None => std::env::var(VARIABLE).unwrap_or_default(),
        };
        let arms = parse(&text)?;
        Ok(Self {
            file,
            text,
            arms,
            arming: 0,
        })
    }

    /// Reads the file again, if there is one. A file that cannot be read arms nothing.
    fn refresh(&mut self) {
        let Some(path) = &self.file else { return };
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if text == self.text {
            return;
        }
        match parse(&text) {
            Ok(arms) => self.arms = arms,
            Err(error) => {
                // A test that would not do what it says must not pass.
                eprintln!("quiltd: {}: {error}", path.display());
                std::process::abort();
            }
        }
        self.text = text;
        self.arming += 1;
    }

    /// Tells the test that a point has fired.
    fn tell(&self, name: &str) {
        let Some(path) = &self.file else { return };
        let mut fired = path.clone().into_os_string();
        fired.push(".fired");
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(fired);
        let told = file.and_then(|mut file| file.write_all(format!("{name}\n").as_bytes()));
        if let Err(error) = told {
            eprintln!("quiltd: cannot tell of {name}: {error}");
            std::process::abort();
        }
    }
}

/// What is armed; read from the environment at the first look. Held for a look, never across an
/// await.
fn armed() -> Result<&'static Mutex<Armed>, String> {
    static ARMED: OnceLock<Result<Mutex<Armed>, String>> = OnceLock::new();
    ARMED
        .get_or_init(|| Armed::from_environment().map(Mutex::new))
        .as_ref()
        .map_err(Clone::clone)
}

/// Whether what the environment arms exists.
///
/// # Errors
/// When it names a point or an action that does not: a test that would not do what it says.
pub fn check() -> Result<(), String> {
    armed().map(drop)
}

/// Counts a passage; the action that is due, and in which arming.
fn passed(name: &'static str) -> Option<(Action, u64)> {
    debug_assert!(POINTS.contains(&name), "{name} is not listed");
    let mut armed = armed().ok()?.lock().unwrap_or_else(PoisonError::into_inner);
    armed.refresh();
    let action = armed.arms.get_mut(name)?.pass()?;
    armed.tell(name);
    Some((action, armed.arming))
}

fn is_arming(arming: u64) -> bool {
    let Ok(armed) = armed() else { return false };
    let mut armed = armed.lock().unwrap_or_else(PoisonError::into_inner);
    armed.refresh();
    armed.arming == arming
}

/// What is left of an action once a delay is done: `Ok` lets the step go on.
fn answer(point: &'static str, action: Action) -> Result<(), Fault> {
    match action {
        Action::Abort => std::process::abort(),
        Action::Panic => panic!("injected at {point}"),
        Action::Delay(_) => Ok(()),
        Action::Error | Action::Fail => Err(Fault {
            point,
            passing: action == Action::Error,
        }),
    }
}

/// A point between two steps of a task.
///
/// # Errors
/// When the point is armed with `error` or `fail`.
pub async fn point(name: &'static str) -> Result<(), Fault> {
    let Some((action, arming)) = passed(name) else {
        return Ok(());
    };
    if let Action::Delay(delay) = action {
        let end = Instant::now() + delay;
        while Instant::now() < end && is_arming(arming) {
            tokio::time::sleep(SLICE.min(delay)).await;
        }
    }
    answer(name, action)
}

/// A point between two steps on a thread that may block.
///
/// # Errors
/// When the point is armed with `error` or `fail`.
pub fn blocking_point(name: &'static str) -> Result<(), Fault> {
    let Some((action, arming)) = passed(name) else {
        return Ok(());
    };
    if let Action::Delay(delay) = action {
        let end = Instant::now() + delay;
        while Instant::now() < end && is_arming(arming) {
            std::thread::sleep(SLICE.min(delay));
        }
    }
    answer(name, action)
}

fn parse(text: &str) -> Result<Arms, String> {
    let parts = text.split([';', '\n']).map(str::trim);
    parts
        .filter(|part| !part.is_empty())
        .map(parse_one)
        .collect()
}

fn parse_one(part: &str) -> Result<(&'static str, Arm), String> {
    let (name, rest) = part
        .split_once('=')
        .ok_or_else(|| format!("{part}: name=action is expected"))?;
    let name = POINTS
        .iter()
        .find(|point| **point == name.trim())
        .ok_or_else(|| format!("{name}: there is no such point (quiltd fault-points)"))?;
    let number = |text: &str| {
        let number = text.parse::<u64>().ok().filter(|number| *number > 0);
        number.ok_or_else(|| format!("{part}: {text:?} is no number from 1 on"))
    };
    let (rest, from) = match rest.split_once('@') {
        Some((rest, nth)) => (rest, number(nth)?),
        None => (rest, 1),
    };
    let (rest, times) = match rest.split_once('*') {
        Some((rest, times)) => (rest, number(times)?),
        None => (rest, u64::MAX),
    };
    let action = match rest.split_once(':') {
        Some(("delay", ms)) => Action::Delay(Duration::from_millis(number(ms)?)),
        None if rest == "error" => Action::Error,
        None if rest == "fail" => Action::Fail,
        None if rest == "panic" => Action::Panic,
        None if rest == "abort" => Action::Abort,
        _ => {
            return Err(format!(
                "{part}: error, fail, delay:MS, panic or abort is expected"
            ));
        }
    };
    let arm = Arm {
        action,
        from,
        times,
        passed: 0,
    };
    Ok((name, arm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_understood() {
        let arms = parse(
            "sandbox.network = error*2; container.launched=delay:500\ncontainer.exited=abort@3;;",
        );
        let arms = arms.expect_err("a space before an action is no action");
        assert!(arms.contains("error, fail"), "{arms}");
        let arms = parse(
            "sandbox.network=error*2; container.launched=delay:500\ncontainer.exited=abort@3;;",
        )
        .expect("three points");
        let half_a_second = Action::Delay(Duration::from_millis(500));
        assert_eq!(arms.len(), 3);
        assert_eq!(arms["sandbox.network"].times, 2);
        assert_eq!(arms["container.launched"].action, half_a_second);
        assert_eq!(arms["container.exited"].from, 3);
    }

    #[test]
    fn what_would_not_do_what_it_says_is_refused() {
        for text in [
            "no.such.point=error",
            "sandbox.network",
            "sandbox.network=explode",
            "sandbox.network=delay",
            "sandbox.network=delay:soon",
            "sandbox.network=error*0",
            "sandbox.network=error@x",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_point_fires_from_its_passage_on_and_so_often() {
        let (_, mut arm) = parse_one("sandbox.network=fail*2@3").expect("a point");
        let fired: Vec<bool> = (0..6).map(|_| arm.pass().is_some()).collect();
        assert_eq!(fired, [false, false, true, true, false, false]);
    }

    #[test]
    fn names_are_listed_once() {
        let mut names = POINTS.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), POINTS.len());
    }

    /// Every name is passed somewhere, and no name is passed that is not listed.
    #[test]
    fn the_list_is_what_the_sources_pass() {
        let mut used = Vec::new();
        let mut said = Vec::new();
        let mut dirs = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).expect("a source directory") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    dirs.push(path);
                } else if path.extension().is_some_and(|end| end == "rs") {
                    let text = std::fs::read_to_string(&path).expect("a source");
                    for call in text.split("point(\"").skip(1) {
                        used.push(call.split('"').next().unwrap_or_default().to_owned());
                    }
                    let quoted = POINTS.iter().map(|name| (name, format!("\"{name}\"")));
                    let elsewhere = quoted.filter(|(_, quoted)| {
                        text.matches(quoted).count()
                            > text.matches(&format!("point({quoted}")).count()
                    });
                    if !path.parent().is_some_and(|dir| dir.ends_with("fault")) {
                        said.extend(elsewhere.map(|(name, _)| *name));
                    }
                }
            }
        }
        used.retain(|name| !name.is_empty());
        let missing: Vec<_> = POINTS
            .iter()
            .filter(|p| !used.iter().any(|u| u == *p))
            .collect();
        let unlisted: Vec<_> = used
            .iter()
            .filter(|u| !POINTS.contains(&u.as_str()))
            .collect();
        assert!(missing.is_empty(), "listed and nowhere passed: {missing:?}");
        assert!(unlisted.is_empty(), "passed and not listed: {unlisted:?}");
        // `hack/no-fault-points.sh` would find it in a release.
        assert!(said.is_empty(), "the text of something else, too: {said:?}");
    }
}
