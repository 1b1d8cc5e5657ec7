//! Network configurations: which file of the directory counts, and what it says.
//!
//! The first file by name is the pods' network, as with containerd and CRI-O: a list (`.conflist`),
//! or a single plugin (`.conf`, `.json`), which becomes a list of one. If that file is wrong, the
//! next one is not taken in its place: pods would silently be on another network.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::result::harmless;
use super::version::SpecVersion;

/// Longest file.
const FILE_MAX: u64 = 1024 * 1024;
/// Most plugins of one network.
const PLUGINS_MAX: usize = 32;
/// Most entries of a directory that are looked at.
const ENTRIES_MAX: usize = 1000;
/// Longest name of a network or a plugin, bytes.
const NAME_MAX: usize = 255;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// A file or directory cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It is not as the specification has it.
    #[error("{}: {why}", path.display())]
    Wrong {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// One plugin of a network.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plugin {
    /// Its program's file name.
    pub(super) kind: String,
    /// What it wants to be told of a pod.
    pub(super) capabilities: BTreeSet<String>,
    /// Its configuration as it was written.
    pub(super) config: Map<String, Value>,
}

/// A network: plugins that are run one after another.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkList {
    /// Its name.
    pub name: String,
    /// The version that is spoken with its plugins.
    pub version: SpecVersion,
    /// All versions that the configuration allows and that are known here.
    pub(super) versions: BTreeSet<SpecVersion>,
    /// Whether CHECK must not be called.
    pub disable_check: bool,
    /// Whether GC must not be called.
    pub disable_gc: bool,
    pub(super) plugins: Vec<Plugin>,
}

/// The directory of configurations as it was at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    path: PathBuf,
    /// The file that counts.
    file: Option<PathBuf>,
    /// What tells whether something has changed: names, and what stat(2) says of each.
    prints: Vec<(PathBuf, Print)>,
}

/// Device, inode, size, time of the last change (seconds, nanoseconds).
type Print = (u64, u64, u64, i64, i64);

impl Directory {
    /// Looks at the directory. One that is not there holds nothing. Blocks.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn look(path: &Path) -> Result<Self, ListError> {
        let files = files(path, &["conflist", "conf", "json"])?;
        let mut prints: Vec<_> = files.into_iter().take(1).collect();
        let file = prints.first().map(|(file, _)| file.clone());
        if file.is_some() {
            // Plugins of a network may have files of their own, in a directory with its name.
            for dir in directories(path)? {
                prints.extend(files_of(&dir)?);
            }
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            prints,
        })
    }

    /// Whether it holds a configuration, right or wrong.
    #[must_use]
    pub fn holds_any(&self) -> bool {
        self.file.is_some()
    }

    /// Reads the network; `None` where there is none. Blocks.
    ///
    /// # Errors
    /// When its file cannot be read, or is wrong.
    pub fn load(&self) -> Result<Option<NetworkList>, ListError> {
        let Some(file) = &self.file else {
            return Ok(None);
        };
        let value = parse(file)?;
        let single = file.extension().is_none_or(|end| end != "conflist");
        // A list may come under the name of a single configuration, and often does.
        let (mut list, inlined_only) = if single && !value.contains_key("plugins") {
            (single_list(value).map_err(|why| wrong(file, why))?, true)
        } else {
            read_list(value).map_err(|why| wrong(file, why))?
        };
        if !inlined_only {
            for (path, _) in files_of(&self.path.join(&list.name))? {
                let config = parse(&path)?;
                let plugin = Plugin::read(config).map_err(|why| wrong(&path, why))?;
                list.plugins.push(plugin);
            }
        }
        match list.plugins.len() {
            0 => Err(wrong(file, "it has no plugins".into())),
            1..=PLUGINS_MAX => Ok(Some(list)),
            many => {
                let why = format!("it has {many} plugins, more than {PLUGINS_MAX}");
                Err(wrong(file, why))
            }
        }
    }
}

impl NetworkList {
    /// The whole network as one text, with the version that is spoken: what a pod was connected
    /// with, for when it is disconnected.
    #[must_use]
    pub fn to_text(&self) -> String {
        let plugins: Vec<_> = self.plugins.iter().map(|plugin| &plugin.config).collect();
        json!({
            "cniVersion": self.version.as_str(),
            "name": self.name,
            "disableCheck": self.disable_check,
            "disableGC": self.disable_gc,
            "loadOnlyInlinedPlugins": true,
            "plugins": plugins,
        })
        .to_string()
    }

    /// Reads what [`NetworkList::to_text`] gave.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn from_text(text: &str) -> Result<Self, String> {
        let value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        read_list(value).map(|(list, _)| list)
    }

    /// Whether some plugin wants to be told this of a pod.
    #[must_use]
    pub fn has_capability(&self, name: &str) -> bool {
        let mut plugins = self.plugins.iter();
        plugins.any(|plugin| plugin.capabilities.contains(name))
    }

    /// File names of the plugins' programs, in order.
    pub fn plugin_names(&self) -> impl Iterator<Item = &str> {
        self.plugins.iter().map(|plugin| plugin.kind.as_str())
    }
}

/// A list, and whether its plugins are all in it.
fn read_list(value: Map<String, Value>) -> Result<(NetworkList, bool), String> {
    let inlined_only = flag(&value, "loadOnlyInlinedPlugins")?;
    let plugins = match value.get("plugins") {
        None if inlined_only => {
            return Err("loadOnlyInlinedPlugins is true, and there is no \"plugins\"".into());
        }
        None => Vec::new(),
        Some(Value::Array(plugins)) if plugins.is_empty() => {
            return Err("\"plugins\" is empty".into());
        }
        Some(Value::Array(plugins)) => plugins
            .iter()
            .enumerate()
            .map(|(place, plugin)| {
                let config = plugin.as_object().cloned();
                let config = config.ok_or_else(|| "it is no object".to_owned());
                let plugin = config.and_then(Plugin::read);
                plugin.map_err(|why| format!("plugin {}: {why}", place + 1))
            })
            .collect::<Result<_, _>>()?,
        Some(_) => return Err("\"plugins\" is no list".into()),
    };
    Ok((network(&value, plugins)?, inlined_only))
}

/// A single plugin as a list of one.
fn single_list(value: Map<String, Value>) -> Result<NetworkList, String> {
    let mut list = network(&value, Vec::new())?;
    list.plugins.push(Plugin::read(value)?);
    Ok(list)
}

/// What a network says of itself, whatever form it has.
fn network(value: &Map<String, Value>, plugins: Vec<Plugin>) -> Result<NetworkList, String> {
    let versions = versions(value)?;
    Ok(NetworkList {
        name: name(value)?,
        version: newest(&versions)?,
        versions,
        disable_check: flag(value, "disableCheck")?,
        disable_gc: flag(value, "disableGC")?,
        plugins,
    })
}

impl Plugin {
    fn read(config: Map<String, Value>) -> Result<Self, String> {
        let kind = match config.get("type") {
            Some(Value::String(kind)) => kind.clone(),
            Some(_) => return Err("its \"type\" is no text".into()),
            None => return Err("it has no \"type\"".into()),
        };
        let plain = |byte: u8| byte != b'/' && byte != b'\\' && byte != 0;
        if kind.is_empty()
            || kind.len() > NAME_MAX
            || matches!(kind.as_str(), "." | "..")
            || !kind.bytes().all(plain)
        {
            return Err(format!("type {kind:?} is no file name of a program"));
        }
        let capabilities = match config.get("capabilities") {
            None | Some(Value::Null) => BTreeSet::new(),
            Some(Value::Object(all)) => all
                .iter()
                .filter(|(_, wanted)| **wanted == Value::Bool(true))
                .map(|(name, _)| name.clone())
                .collect(),
            Some(_) => return Err("its \"capabilities\" are no object".into()),
        };
        Ok(Self {
            kind,
            capabilities,
            config,
        })
    }
}

/// The name of a network: it is a directory's, a key of plugins, and part of messages.
fn name(value: &Map<String, Value>) -> Result<String, String> {
    let name = match value.get("name") {
        Some(Value::String(name)) => name.clone(),
        Some(_) => return Err("its \"name\" is no text".into()),
        None => return Err("it has no \"name\"".into()),
    };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let begins = name.bytes().next();
    if begins.is_some_and(|byte| byte.is_ascii_alphanumeric())
        && name.len() <= NAME_MAX
        && name.bytes().all(allowed)
    {
        return Ok(name);
    }
    Err(format!(
        "name {name:?}: letters, digits, \"_\", \".\" and \"-\" are allowed, a letter or a digit \
         first"
    ))
}

/// The versions that are both declared and known.
fn versions(value: &Map<String, Value>) -> Result<BTreeSet<SpecVersion>, String> {
    let mut declared = Vec::new();
    match value.get("cniVersion") {
        None => {}
        Some(Value::String(version)) => declared.push(version.as_str()),
        Some(_) => return Err("\"cniVersion\" is no text".into()),
    }
    match value.get("cniVersions") {
        None => {}
        Some(Value::Array(all)) => {
            for version in all {
                let version = version.as_str();
                declared.push(version.ok_or("\"cniVersions\" holds something that is no text")?);
            }
        }
        Some(_) => return Err("\"cniVersions\" is no list".into()),
    }
    if declared.is_empty() {
        return Err("it has no \"cniVersion\"".into());
    }
    let known = SpecVersion::ALL.into_iter();
    let known: BTreeSet<_> = known
        .filter(|version| declared.contains(&version.as_str()))
        .collect();
    if known.is_empty() {
        let known: Vec<_> = SpecVersion::ALL.iter().map(|v| v.as_str()).collect();
        return Err(format!(
            "it is written for version {} of the specification; {} are known",
            declared.join(", "),
            known.join(", "),
        ));
    }
    Ok(known)
}

fn newest(versions: &BTreeSet<SpecVersion>) -> Result<SpecVersion, String> {
    let newest = versions.last().copied();
    newest.ok_or_else(|| "it has no version that is known".into())
}

/// A truth value; some write them as text.
fn flag(value: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match value.get(key) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(format!("{key:?} is neither true nor false")),
    }
}

fn wrong(path: &Path, why: String) -> ListError {
    let path = path.to_owned();
    let why = harmless(why.as_bytes());
    ListError::Wrong { path, why }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> ListError {
    let path = path.to_owned();
    move |source| ListError::Read { path, source }
}

fn parse(path: &Path) -> Result<Map<String, Value>, ListError> {
    let file = std::fs::File::open(path).map_err(failed(path))?;
    let mut text = Vec::new();
    let mut bounded = file.take(FILE_MAX + 1);
    bounded.read_to_end(&mut text).map_err(failed(path))?;
    if text.len() as u64 > FILE_MAX {
        return Err(wrong(path, format!("it has more than {FILE_MAX} bytes")));
    }
    serde_json::from_slice(&text).map_err(|error| wrong(path, error.to_string()))
}

/// Plugins' own files in the directory of a network.
fn files_of(dir: &Path) -> Result<Vec<(PathBuf, Print)>, ListError> {
    files(dir, &["conf"])
}

/// Entries of a directory by name, with what stat(2) says; a directory that is not there has none.
fn entries(dir: &Path) -> Result<Vec<(PathBuf, std::fs::Metadata)>, ListError> {
    let listed = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(failed(dir))?,
    };
    let mut entries = Vec::new();
    for entry in listed.take(ENTRIES_MAX) {
        let path = entry.map_err(failed(dir))?.path();
        // One that goes at this moment was never there.
        if let Ok(metadata) = std::fs::metadata(&path) {
            entries.push((path, metadata));
        }
    }
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(entries)
}

fn files(dir: &Path, ends: &[&str]) -> Result<Vec<(PathBuf, Print)>, ListError> {
    let entries = entries(dir)?.into_iter();
    let files = entries.filter(|(path, metadata)| {
        let end = path.extension().and_then(|end| end.to_str());
        metadata.is_file() && end.is_some_and(|end| ends.contains(&end))
    });
    Ok(files
        .map(|(path, metadata)| (path, print(&metadata)))
        .collect())
}

fn directories(dir: &Path) -> Result<Vec<PathBuf>, ListError> {
    let entries = entries(dir)?.into_iter();
    let directories = entries.filter(|(_, metadata)| metadata.is_dir());
    Ok(directories.map(|(path, _)| path).collect())
}

fn print(metadata: &std::fs::Metadata) -> Print {
    (
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    )
}
