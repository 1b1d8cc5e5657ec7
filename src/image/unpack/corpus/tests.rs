//! Every attack of the corpus, unpacked for real beside something that must not change.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use super::super::unpack;
use super::{Attack, Fact, Outcome, attacks};
use crate::causes::with_causes;
use crate::lifecycle::digest::Algorithm;
use crate::sys::overlay::OPAQUE;
use crate::sys::xattr;

/// A directory with a layer's root in it and a stranger's secret beside it.
struct Ground {
    tmp: tempfile::TempDir,
    before: Vec<(PathBuf, String)>,
}

impl Ground {
    fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        fs::create_dir(tmp.path().join("fs")).unwrap();
        fs::create_dir(tmp.path().join("outside")).unwrap();
        fs::write(tmp.path().join("outside/secret"), "secret").unwrap();
        let before = Self::outside(tmp.path());
        Self { tmp, before }
    }

    /// What can be seen of everything that an attack aims at.
    fn outside(tmp: &Path) -> Vec<(PathBuf, String)> {
        let beside = [tmp.join("outside"), tmp.join("outside/secret")];
        let node = ["/etc/passwd", "/tmp/quilt-corpus-planted"].map(PathBuf::from);
        let names = |dir: &Path| -> Vec<PathBuf> {
            let entries = fs::read_dir(dir).unwrap();
            entries.map(|entry| entry.unwrap().path()).collect()
        };
        let mut all = names(tmp);
        all.extend(names(&tmp.join("outside")));
        all.extend(beside);
        all.extend(node);
        all.sort();
        let seen = |path: &PathBuf| match fs::symlink_metadata(path) {
            Ok(meta) if path.ends_with("fs") => format!("{}", meta.ino()),
            Ok(meta) => described(path, &meta),
            Err(error) => error.kind().to_string(),
        };
        all.iter().map(|path| (path.clone(), seen(path))).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().join("fs").join(name)
    }

    fn holds(&self, fact: &Fact) -> Option<bool> {
        let meta = |name: &str| fs::symlink_metadata(self.path(name)).ok();
        Some(match fact {
            Fact::File(name, text) => {
                meta(name)?.is_file() && fs::read(self.path(name)).ok()? == text.as_bytes()
            }
            Fact::Size(name, size) => meta(name)?.is_file() && meta(name)?.len() == *size,
            Fact::Link(name, to) => fs::read_link(self.path(name)).ok()? == Path::new(to),
            Fact::Same(one, other) => meta(one)?.ino() == meta(other)?.ino(),
            Fact::Dir(name) => meta(name)?.is_dir(),
            Fact::Deleted(name) => {
                meta(name)?.file_type().is_char_device() && meta(name)?.rdev() == 0
            }
            Fact::Opaque(name) => {
                let dir = fs::File::open(self.path(name)).ok()?;
                xattr::get(&dir, OPAQUE).unwrap().as_deref() == Some(b"y")
            }
            Fact::Mode(name, mode) => meta(name)?.mode() & 0o7777 == *mode,
            Fact::Time(name, seconds) => meta(name)?.mtime() == *seconds,
            Fact::Absent(name) => meta(name).is_none(),
            Fact::NoAttribute(name, attribute) => {
                let file = fs::File::open(self.path(name)).ok()?;
                xattr::get(&file, attribute.as_bytes()).unwrap().is_none()
            }
        })
    }
}

/// Everything that an escape might have changed.
fn described(path: &Path, meta: &Metadata) -> String {
    let text = if meta.is_file() {
        fs::read(path).unwrap()
    } else {
        Vec::new()
    };
    let names = match meta.is_dir() {
        true => fs::File::open(path).map(|dir| xattr::list(&dir).unwrap()),
        false => Ok(Vec::new()),
    };
    format!(
        "{:?} {} {} {} {} {} {:?} {text:?} {:?}",
        meta.file_type(),
        meta.ino(),
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.nlink(),
        meta.modified().unwrap(),
        names.unwrap(),
    )
}

fn problem(attack: &Attack) -> Option<String> {
    let ground = Ground::new();
    let taken = AtomicU64::new(attack.archive.len() as u64);
    let into = ground.tmp.path().join("fs");
    let archive = &attack.archive[..];
    let result = unpack(
        archive,
        &taken,
        &into,
        Algorithm::Sha256,
        &attack.limits,
        || (),
    );
    let after = Ground::outside(ground.tmp.path());
    if after != ground.before {
        return Some(format!(
            "changed outside: {:?}, now {after:?}",
            ground.before
        ));
    }
    match (&attack.outcome, result) {
        (Outcome::Refused(_), Ok(_)) => Some("was accepted".to_owned()),
        (Outcome::Refused(why), Err(error)) => {
            let text = with_causes(&error);
            (!text.contains(why)).then(|| format!("says {text:?}, not {why:?}"))
        }
        (Outcome::Confined(_), Err(error)) => Some(format!("was refused: {}", with_causes(&error))),
        (Outcome::Confined(facts), Ok(_)) => {
            let wrong = facts.iter().find(|fact| ground.holds(fact) != Some(true));
            wrong.map(|fact| format!("is not so: {fact:?}"))
        }
    }
}

#[test]
fn every_hostile_archive_is_refused_with_a_reason_or_confined() {
    let problems: Vec<String> = attacks()
        .iter()
        .filter_map(|attack| Some(format!("{}: {}", attack.name, problem(attack)?)))
        .collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn no_two_attacks_have_one_name() {
    let mut names: Vec<&str> = attacks().iter().map(|attack| attack.name).collect();
    let all = names.len();
    assert!(all > 100, "only {all} attacks");
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}
