//! Copies of rows on disk for the case that the database is lost: written beside what is made
//! anyway, and read by `rebuild` alone.
//!
//! A sandbox' and a container's lie in their directories, and go with them. Images' lie in
//! `images/` under the root; they are made to agree with the rows after each change, and once at
//! start.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use tokio::sync::watch;

use super::{Back, Paths, ReconcileError, blocking};
use crate::lifecycle::record::{
    self, ContainerRecord, ImageRecord, RECORD_MAX_BYTES, Record, SandboxRecord,
};

const NAME: &str = "record.json";

/// What lies on disk.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) sandboxes: Vec<SandboxRecord>,
    pub(super) containers: Vec<ContainerRecord>,
    pub(super) images: Vec<ImageRecord>,
    /// Records that are there and cannot be believed, and why.
    pub(super) refused: Vec<String>,
}

/// Whether anything has left a record.
#[must_use]
pub fn exist(paths: &Paths) -> bool {
    let holds = |dir: PathBuf, name: &str| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let mut paths = entries.map(|entry| entry.path());
        paths.any(|path| match name {
            "" => path
                .extension()
                .is_some_and(|extension| extension == "json"),
            name => path.join(name).exists(),
        })
    };
    holds(paths.sandboxes(), NAME)
        || holds(paths.containers(), NAME)
        || holds(images_dir(paths), "")
}

fn images_dir(paths: &Paths) -> PathBuf {
    paths.root.join("images")
}

/// Writes the record of a sandbox or a container into its directory, which is there.
pub(super) fn write<T: Record>(dir: &Path, record: &T) -> Result<(), ReconcileError> {
    put(dir, NAME, record, false)
}

/// Reads the record of a sandbox, to be changed and written again. `None` where there is none: what
/// an older version made.
pub(super) fn sandbox(dir: &Path, name: &str) -> Option<SandboxRecord> {
    read(&dir.join(NAME), name).ok().flatten()
}

/// Replaces a record as a whole: a reader finds the old one or the new one.
fn put<T: Record>(dir: &Path, name: &str, record: &T, sync: bool) -> Result<(), ReconcileError> {
    let text = record::encode(record).map_err(|error| ReconcileError::Plan(error.to_string()))?;
    let path = dir.join(name);
    let new = path.with_extension("new");
    let written = || {
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&new)?;
        file.write_all(&text)?;
        if sync {
            file.sync_data()?;
        }
        fs::rename(&new, &path)
    };
    written().map_err(ReconcileError::file("write", &path))
}

/// `None` when there is no record.
fn read<T: Record>(path: &Path, name: &str) -> Result<Option<T>, String> {
    let refused = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    // O_NONBLOCK: should it be a FIFO, opening it must not wait.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file: File = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refused(&error)),
    };
    let mut text = Vec::new();
    let fits = file
        .metadata()
        .is_ok_and(|found| found.is_file() && found.len() <= RECORD_MAX_BYTES);
    if !fits {
        return Err(refused(&"no regular file, or too long"));
    }
    file.take(RECORD_MAX_BYTES)
        .read_to_end(&mut text)
        .map_err(|error| refused(&error))?;
    let record = record::decode(name, &text).map_err(|error| refused(&error))?;
    Ok(Some(record))
}

impl Records {
    /// Reads every record there is.
    pub(super) fn read(paths: &Paths) -> Result<Self, ReconcileError> {
        let mut records = Self::default();
        for name in names(&paths.sandboxes())? {
            let path = paths.sandboxes().join(&name).join(NAME);
            keep(&mut records.sandboxes, &mut records.refused, &path, &name);
        }
        for name in names(&paths.containers())? {
            let path = paths.containers().join(&name).join(NAME);
            keep(&mut records.containers, &mut records.refused, &path, &name);
        }
        let dir = images_dir(paths);
        for name in names(&dir)? {
            if let Some(hex) = name.strip_suffix(".json") {
                keep(
                    &mut records.images,
                    &mut records.refused,
                    &dir.join(&name),
                    hex,
                );
            }
        }
        Ok(records)
    }
}

fn keep<T: Record>(records: &mut Vec<T>, refused: &mut Vec<String>, path: &Path, name: &str) {
    match read(path, name) {
        Ok(record) => records.extend(record),
        Err(why) => refused.push(why),
    }
}

/// Names in a directory; none in one that is not there.
fn names(dir: &Path) -> Result<Vec<String>, ReconcileError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(ReconcileError::file("list", dir))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(ReconcileError::file("list", dir))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

/// Makes the records of images agree with their rows whenever `Back::image_records` is told, and
/// once at start, until `stop` turns true.
pub async fn run(back: Back, mut stop: watch::Receiver<bool>) {
    loop {
        if let Err(error) = agree(&back).await {
            let error = error.full_text();
            tracing::warn!(error, "images would not outlive the loss of the database");
        }
        tokio::select! {
            () = back.image_records.notified() => {}
            _ = stop.changed() => return,
        }
    }
}

async fn agree(back: &Back) -> Result<(), ReconcileError> {
    let wanted = back.store.image_records().await?;
    let dir = images_dir(&back.paths);
    blocking(move || {
        fs::create_dir_all(&dir).map_err(ReconcileError::file("make", &dir))?;
        let mut known = HashSet::new();
        for image in &wanted {
            let hex = image.id.split_once(':').map_or("", |(_, hex)| hex);
            let name = format!("{hex}.json");
            // An unchanged one is left alone: there may be hundreds.
            if read(&dir.join(&name), hex).ok().flatten().as_ref() != Some(image) {
                put(&dir, &name, image, true)?;
            }
            known.insert(name);
        }
        for name in names(&dir)? {
            if !known.contains(&name) {
                let path = dir.join(name);
                fs::remove_file(&path).map_err(ReconcileError::file("remove", &path))?;
            }
        }
        Ok(())
    })
    .await
}
