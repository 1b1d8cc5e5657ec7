//! The directories in which specifications lie, and the device that is looked for in them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::name;
use super::spec::{Edits, RawEdits, Spec};
use crate::sys::ownership::only_root_writes;

/// Entries of a directory that are looked at.
const ENTRIES_MAX: usize = 1024;
/// Longest file, in bytes.
const FILE_MAX: u64 = 4 << 20;
/// Faulty files that an error names.
const FAULTS_TOLD: usize = 5;

/// Why a container does not get its devices.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CdiError {
    /// No file has it.
    #[error("CDI device {device:?} is in no file of {directories}{faults}")]
    Unknown {
        /// As it was asked for.
        device: String,
        /// Where it was looked for.
        directories: String,
        /// Files that could not be read, and why.
        faults: String,
    },
    /// Two files of one directory have it, and neither counts more.
    #[error("CDI device {device:?} is in two files, {first:?} and {second:?}: remove one")]
    Twice {
        /// As it was asked for.
        device: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// It wants something that is not done.
    #[error("CDI device {device:?} of {file:?} wants {what}, which this runtime does not do")]
    Unsupported {
        /// As it was asked for.
        device: String,
        /// Where it is described.
        file: PathBuf,
        /// The key of the edit.
        what: &'static str,
    },
    /// It has programs run, and somebody else than root says which.
    #[error(
        "CDI device {device:?} has hooks, which run as the node's root, but not only root can \
         write {file:?} and its directory"
    )]
    NotRoots {
        /// As it was asked for.
        device: String,
        /// Where it is described.
        file: PathBuf,
    },
}

/// A specification, and where it is from.
struct Found {
    file: PathBuf,
    /// The place of its directory; later ones count more.
    rank: usize,
    /// Whether nobody but root can write it.
    is_roots: bool,
    spec: Spec,
}

/// Finds all of `wanted` in `directories`, of which later ones count more. Reads files: not for a
/// thread that others wait for.
///
/// # Errors
/// [`CdiError`], which names the device, and the file if there is one.
pub fn find(directories: &[PathBuf], wanted: &[String]) -> Result<Edits, CdiError> {
    let mut edits = Edits::default();
    if wanted.is_empty() {
        return Ok(edits);
    }
    let (found, faults) = read_all(directories);
    let mut used = BTreeSet::new();
    for device in wanted {
        let (index, own) = look_up(&found, device, || unknown(device, directories, &faults))?;
        let spec = &found[index];
        let parts: [Option<&RawEdits>; 2] = [
            used.insert(index).then_some(&spec.spec.container_edits),
            Some(own),
        ];
        for part in parts.into_iter().flatten() {
            if let Some(what) = part.unsupported() {
                return Err(CdiError::Unsupported {
                    device: device.clone(),
                    file: spec.file.clone(),
                    what,
                });
            }
            if part.has_hooks() && !spec.is_roots {
                return Err(CdiError::NotRoots {
                    device: device.clone(),
                    file: spec.file.clone(),
                });
            }
            part.add_to(&mut edits);
        }
    }
    Ok(edits)
}

fn look_up<'a>(
    found: &'a [Found],
    device: &str,
    unknown: impl Fn() -> CdiError,
) -> Result<(usize, &'a RawEdits), CdiError> {
    let (vendor, class, name) = name::split(device).map_err(|_| unknown())?;
    let kind = format!("{vendor}/{class}");
    let mut best: Option<(usize, &RawEdits)> = None;
    for (index, one) in found
        .iter()
        .enumerate()
        .filter(|(_, one)| one.spec.kind == kind)
    {
        let Some(described) = one.spec.devices.iter().find(|device| device.name == name) else {
            continue;
        };
        match best {
            Some((other, _)) if found[other].rank == one.rank => {
                return Err(CdiError::Twice {
                    device: device.to_owned(),
                    first: found[other].file.clone(),
                    second: one.file.clone(),
                });
            }
            Some((other, _)) if found[other].rank > one.rank => {}
            _ => best = Some((index, &described.container_edits)),
        }
    }
    best.ok_or_else(unknown)
}

fn unknown(device: &str, directories: &[PathBuf], faults: &[String]) -> CdiError {
    let names: Vec<String> = directories
        .iter()
        .map(|dir| dir.display().to_string())
        .collect();
    let told: String = faults
        .iter()
        .take(FAULTS_TOLD)
        .map(|fault| format!("; {fault}"))
        .collect();
    CdiError::Unknown {
        device: device.to_owned(),
        directories: names.join(", "),
        faults: told,
    }
}

/// All specifications, and what is wrong with files that are none. The highest rank comes last.
fn read_all(directories: &[PathBuf]) -> (Vec<Found>, Vec<String>) {
    let (mut found, mut faults) = (Vec::new(), Vec::new());
    for (rank, directory) in directories.iter().enumerate() {
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                faults.push(format!("{}: {error}", directory.display()));
                continue;
            }
        };
        let mut files: Vec<PathBuf> = entries
            .take(ENTRIES_MAX)
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| form(path).is_some())
            .collect();
        files.sort();
        let directory_is_roots = std::fs::metadata(directory).is_ok_and(|it| only_root_writes(&it));
        for file in files {
            match read(&file) {
                Ok((spec, is_roots)) => found.push(Found {
                    file,
                    rank,
                    is_roots: is_roots && directory_is_roots,
                    spec,
                }),
                Err(why) => faults.push(format!("{}: {why}", file.display())),
            }
        }
    }
    (found, faults)
}

/// How a file is written, by its name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    Yaml,
}

fn form(path: &Path) -> Option<Form> {
    match path.extension()?.to_str()? {
        "json" => Some(Form::Json),
        "yaml" | "yml" => Some(Form::Yaml),
        _ => None,
    }
}

/// A specification, and whether nobody but root can write it.
fn read(path: &Path) -> Result<(Spec, bool), String> {
    // What is no file is not waited for.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .map_err(|error| error.to_string())?;
    let found = file.metadata().map_err(|error| error.to_string())?;
    if !found.is_file() {
        return Err("it is no file".into());
    }
    let mut text = String::new();
    let length = file
        .take(FILE_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| error.to_string())?;
    if length as u64 > FILE_MAX {
        return Err(format!("it has more than {FILE_MAX} bytes"));
    }
    // Both say line and column of what they do not understand.
    let spec: Spec = match form(path) {
        Some(Form::Yaml) => serde_saphyr::from_str(&text).map_err(|error| error.to_string())?,
        _ => serde_json::from_str(&text).map_err(|error| error.to_string())?,
    };
    spec.check()?;
    Ok((spec, only_root_writes(&found)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(directory: &Path, name: &str, text: &str) {
        std::fs::write(directory.join(name), text).expect("a file of the test");
    }

    fn wanted(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    const GPU: &str = r#"{"cdiVersion": "0.7.0", "kind": "v.com/gpu",
        "containerEdits": {"env": ["ALL=1"], "additionalGids": [0, 44]},
        "devices": [
          {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/gpu0"}]}},
          {"name": "1", "annotations": {"a": "b"}, "containerEdits": {
            "env": ["ONE=1"],
            "mounts": [{"hostPath": "/lib/x", "containerPath": "/x", "options": ["ro"]}]}}]}"#;

    #[test]
    fn edits_of_a_file_are_made_once_and_those_of_each_device_after_them() {
        let tmp = tempfile::tempdir().expect("a directory");
        let dirs = [tmp.path().to_owned(), tmp.path().join("absent")];
        written(tmp.path(), "gpu.json", GPU);
        written(tmp.path(), "notes.txt", "no specification");
        let edits = find(&dirs, &wanted(&["v.com/gpu=1", "v.com/gpu=0"])).expect("found");
        assert_eq!(edits.env, ["ALL=1", "ONE=1"]);
        assert_eq!(edits.additional_gids, [44]);
        assert_eq!(edits.device_nodes[0].source(), "/dev/gpu0");
        assert_eq!(edits.mounts[0].container_path, "/x");
        assert_eq!(find(&dirs, &[]).expect("nothing"), Edits::default());
    }

    #[test]
    fn yaml_says_the_same() {
        let tmp = tempfile::tempdir().expect("a directory");
        let text = "cdiVersion: 0.5.0\nkind: v.com/net\ndevices:\n- name: eth\n  \
                    containerEdits:\n    \
                    deviceNodes:\n    - path: /dev/net/tun\n      permissions: rw\n      \
                    fileMode: 438\n";
        written(tmp.path(), "net.yaml", text);
        let edits = find(&[tmp.path().to_owned()], &wanted(&["v.com/net=eth"])).expect("found");
        assert_eq!(edits.device_nodes[0].file_mode, Some(0o666));
        assert_eq!(edits.device_nodes[0].permissions, "rw");
    }

    #[test]
    fn a_later_directory_counts_more_and_two_files_of_one_do_not_count() {
        let tmp = tempfile::tempdir().expect("a directory");
        let dirs = ["etc", "run"].map(|name| tmp.path().join(name));
        for dir in &dirs {
            std::fs::create_dir(dir).expect("mkdir");
        }
        written(&dirs[0], "gpu.json", GPU);
        written(&dirs[1], "gpu.json", &GPU.replace("ALL=1", "ALL=2"));
        let device = wanted(&["v.com/gpu=0"]);
        assert_eq!(find(&dirs, &device).expect("found").env, ["ALL=2"]);
        written(&dirs[1], "again.json", GPU);
        let error = find(&dirs, &device).expect_err("twice");
        assert!(matches!(error, CdiError::Twice { .. }), "{error}");
    }

    #[test]
    fn faults_are_told_by_file_and_place_and_spoil_nothing_else() {
        let tmp = tempfile::tempdir().expect("a directory");
        let dirs = [tmp.path().to_owned()];
        let device = wanted(&["v.com/gpu=0"]);
        let edit = |from: &str, to: &str| GPU.replace(from, to);
        for (text, told) in [
            ("{\n\"cdiVersion\": ]".to_owned(), "line 2"),
            (edit("0.7.0", "9.0.0"), "cdiVersion"),
            (edit("v.com/gpu", "gpu"), "kind \"gpu\""),
            (
                edit("\"name\": \"1\"", "\"name\": \"0\""),
                "devices[1].name",
            ),
            (
                edit("/dev/gpu0", "../dev/gpu0"),
                "devices[0].containerEdits.deviceNodes[0].path",
            ),
            (edit("ALL=1", "ALL"), "containerEdits.env[0]"),
            (
                edit("\"env\": [\"ONE", "\"envs\": [\"ONE"),
                "unknown field `envs`",
            ),
            (edit("\"b\"", &"[".repeat(100_000)), "recursion limit"),
            (
                format!("{GPU}{}", " ".repeat(4 << 20)),
                "more than 4194304 bytes",
            ),
        ] {
            written(tmp.path(), "gpu.json", &text);
            let error = find(&dirs, &device).expect_err(told).to_string();
            assert!(
                error.contains("gpu.json: ") && error.contains(told),
                "{told}: {error}"
            );
        }
        written(tmp.path(), "good.json", GPU);
        assert!(find(&dirs, &device).is_ok());
        let error = find(&dirs, &wanted(&["v.com/gpu=7"]))
            .expect_err("absent")
            .to_string();
        assert!(
            error.starts_with("CDI device \"v.com/gpu=7\" is in no file of "),
            "{error}"
        );
    }

    #[test]
    fn a_bomb_of_aliases_is_refused() {
        let tmp = tempfile::tempdir().expect("a directory");
        let mut text = String::from("a: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let below = vec![format!("*a{}", level - 1); 10].join(", ");
            text.push_str(&format!("b{level}: &a{level} [{below}]\n"));
        }
        written(tmp.path(), "bomb.yaml", &text);
        let error = find(&[tmp.path().to_owned()], &wanted(&["v.com/gpu=0"]));
        let error = error.expect_err("nothing in it").to_string();
        assert!(error.contains("bomb.yaml: "), "{error}");
    }

    const HOOKED: &str = r#"{"cdiVersion": "0.7.0", "kind": "v.com/gpu", "devices": [
        {"name": "0", "containerEdits": {"hooks": [{"hookName": "createContainer",
            "path": "/bin/true", "args": ["true", "-x"], "env": ["A=b"], "timeout": 3}]}},
        {"name": "1"}]}"#;

    #[test]
    fn hooks_are_taken_from_what_only_root_writes() {
        use std::os::unix::fs::{PermissionsExt, chown};
        let tmp = tempfile::tempdir().expect("a directory");
        let dirs = [tmp.path().to_owned()];
        let device = wanted(&["v.com/gpu=0"]);
        written(tmp.path(), "gpu.json", HOOKED);
        let file = tmp.path().join("gpu.json");
        let edits = find(&dirs, &device).expect("root's");
        assert_eq!(edits.hooks[0].args, ["true", "-x"]);
        let mode = |path: &Path, mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(path, mode).expect("chmod");
        };
        let refused = || {
            let error = find(&dirs, &device).expect_err("somebody else's");
            assert!(matches!(error, CdiError::NotRoots { .. }), "{error}");
            assert!(find(&dirs, &wanted(&["v.com/gpu=1"])).is_ok(), "no hooks");
        };
        mode(&file, 0o664);
        refused();
        mode(&file, 0o644);
        mode(tmp.path(), 0o777);
        refused();
        mode(tmp.path(), 0o755);
        chown(&file, Some(1000), None).expect("chown");
        refused();
    }

    #[test]
    fn what_is_no_hook_is_a_fault_of_its_file() {
        let tmp = tempfile::tempdir().expect("a directory");
        let dirs = [tmp.path().to_owned()];
        for (from, to, told) in [
            ("createContainer", "later", "hooks[0].hookName"),
            ("/bin/true", "true", "hooks[0].path"),
            ("A=b", "A", "hooks[0].env[0]"),
            ("-x", "\\u0000", "hooks[0].args"),
        ] {
            written(tmp.path(), "gpu.json", &HOOKED.replace(from, to));
            let error = find(&dirs, &wanted(&["v.com/gpu=0"])).expect_err(told);
            assert!(error.to_string().contains(told), "{told}: {error}");
        }
    }

    #[test]
    fn what_is_not_done_is_refused_with_its_name() {
        let tmp = tempfile::tempdir().expect("a directory");
        let dirs = [tmp.path().to_owned()];
        for (key, value) in [
            ("intelRdt", "{}"),
            (
                "netDevices",
                "[{\"hostInterfaceName\": \"eth1\", \"name\": \"net1\"}]",
            ),
        ] {
            let text = GPU.replace("\"env\": [\"ONE=1\"]", &format!("\"{key}\": {value}"));
            written(tmp.path(), "gpu.json", &text);
            let error = find(&dirs, &wanted(&["v.com/gpu=1"])).expect_err(key);
            let CdiError::Unsupported { what, .. } = &error else {
                panic!("{error}");
            };
            assert_eq!(*what, key);
            assert!(
                find(&dirs, &wanted(&["v.com/gpu=0"])).is_ok(),
                "another device"
            );
        }
    }
}
