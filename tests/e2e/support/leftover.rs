//! What a daemon has made on this machine, found by its names: after everything was removed there
//! must be nothing.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use super::names::Names;
use super::node::quiltd;
use super::wait::poll;
use super::{cgroup, process};

/// One thing that outlived its owner.
pub(crate) enum Leftover {
    Mount(PathBuf),
    Link(String),
    Cgroup(PathBuf),
    Process(i32, String),
    NftTable(String),
    Entry(PathBuf),
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount(path) => write!(f, "mount {}", path.display()),
            Self::Link(name) => write!(f, "network link {name}"),
            Self::Cgroup(path) => write!(f, "cgroup {}", path.display()),
            Self::Process(pid, what) => write!(f, "process {pid} ({what})"),
            Self::NftTable(table) => write!(f, "nftables {table}"),
            Self::Entry(path) => write!(f, "entry {}", path.display()),
        }
    }
}

/// Everything left that belongs to a pod, a container or a pull. Processes in `expected` (the
/// daemon, its shim) are not counted.
pub(crate) fn find(names: &Names, expected: &[i32]) -> Vec<Leftover> {
    let mut found = Vec::new();
    found.extend(
        mounts(names)
            .into_iter()
            .filter(|m| !is_base(names, m))
            .map(Leftover::Mount),
    );
    found.extend(
        links(names)
            .into_iter()
            .filter(|l| *l != names.bridge)
            .map(Leftover::Link),
    );
    let cgroups = cgroup::roots(names)
        .iter()
        .flat_map(|root| cgroup::tree(root))
        .collect::<Vec<_>>();
    found.extend(
        cgroups
            .into_iter()
            .filter(|path| is_for_an_object(path))
            .map(Leftover::Cgroup),
    );
    found.extend(processes(names, expected));
    found.extend(nft_tables(names).into_iter().map(Leftover::NftTable));
    for dir in [
        names.root().join("snapshots"),
        names.root().join("staging"),
        names.state().join("containers"),
        names.state().join("sandboxes"),
    ] {
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        found.extend(entries.map(|entry| Leftover::Entry(entry.path())));
    }
    found
}

/// Takes away all that carries these names, expected or not, so that a failed test does not harm
/// the next.
pub(crate) fn remove_all(names: &Names) {
    for leftover in processes(names, &[]) {
        if let Leftover::Process(pid, _) = leftover {
            process::signal(pid, Signal::SIGKILL);
        }
    }
    let mut mounts = mounts(names);
    mounts.reverse();
    for mount in mounts {
        // Already gone when it was below another.
        let _gone = umount2(&mount, MntFlags::MNT_DETACH);
    }
    delete_links(links(names));
    if names.is_in_slices() {
        // Also of what it has no directory for.
        let slice = names.cgroup_root.trim_start_matches('/');
        let stopped = Command::new("systemctl").args(["stop", slice]).status();
        stopped.expect("systemctl runs");
    }
    for root in cgroup::roots(names) {
        let removed = poll(Duration::from_secs(5), || {
            cgroup::tree(&root)
                .iter()
                .all(|dir| fs::remove_dir(dir).is_ok())
                .then_some(())
        });
        if removed.is_none() && root.exists() {
            eprintln!("cgroup {} cannot be removed", root.display());
        }
    }
}

/// Mount points at and below the daemon's directory, in mount order.
fn mounts(names: &Names) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let points = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from));
    points
        .filter(|point| point.starts_with(&names.dir))
        .collect()
}

/// Mounts that stay as long as a node lives: the state directory made private, and a root directory
/// that a test has put on a disk of its own.
fn is_base(names: &Names, mount: &Path) -> bool {
    mount == names.root() || mount == names.state() || mount == names.state().join("sandboxes")
}

/// The bridge, its ports, and links whose alias names the daemon.
fn links(names: &Names) -> Vec<String> {
    let root = names.root().to_string_lossy().into_owned();
    let entries = fs::read_dir("/sys/class/net")
        .expect("sysfs is mounted")
        .flatten();
    let ours = entries.filter(|entry| {
        let path = entry.path();
        let master = fs::read_link(path.join("master")).unwrap_or_default();
        let alias = fs::read_to_string(path.join("ifalias")).unwrap_or_default();
        entry.file_name().to_string_lossy() == names.bridge
            || master
                .file_name()
                .is_some_and(|name| name.to_string_lossy() == names.bridge)
            || alias.contains(&root)
            || alias.contains(&names.bridge)
    });
    ours.map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Cgroups of pods and containers are named by their 64 hexadecimal digits.
fn is_for_an_object(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let by_id = |part: &[u8]| part.iter().all(u8::is_ascii_hexdigit);
    name.as_bytes().windows(64).any(by_id) || name.contains("-quilt_")
}

/// Processes that the daemon started: roles of the daemon with its directory among their arguments,
/// and whatever is in its cgroups or in a mount namespace of its own on the daemon's layers.
///
/// What is found here is killed in the end, so each test is one that no stranger passes. A process
/// that shares this one's mount namespace sees every mount of the node, and says nothing by it.
fn processes(names: &Names, expected: &[i32]) -> Vec<Leftover> {
    let all = process::all()
        .into_iter()
        .filter(|pid| *pid > 1 && !expected.contains(pid));
    let ours = all.filter(|pid| {
        process::is_running(*pid)
            && (is_role(names, *pid) || is_in_cgroup(names, *pid) || is_on_layers(names, *pid))
    });
    ours.map(|pid| Leftover::Process(pid, process::arguments(pid).join(" ")))
        .collect()
}

/// `quiltd ROLE … DIR/…`
fn is_role(names: &Names, pid: i32) -> bool {
    let arguments = process::arguments(pid);
    let is_daemon = arguments
        .first()
        .is_some_and(|program| Path::new(program) == quiltd());
    let is_ours = |argument: &String| Path::new(argument).starts_with(&names.dir);
    is_daemon && arguments.iter().any(is_ours)
}

/// The path of each line of cgroups(7), `/proc/PID/cgroup`: `N:CONTROLLERS:PATH`.
pub(super) fn is_in_cgroup(names: &Names, pid: i32) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mut paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.any(|path| Path::new(path).starts_with(&names.cgroup_root))
}

/// In a mount namespace that is not this process', with an overlay of the daemon's.
fn is_on_layers(names: &Names, pid: i32) -> bool {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let (own, other) = (namespace("self"), namespace(&pid.to_string()));
    if own.is_none() || other.is_none() || own == other {
        return false;
    }
    let root = names.root().to_string_lossy().into_owned();
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    mounts
        .lines()
        .any(|line| line.contains(" - overlay ") && line.contains(&root))
}

/// Tables named after the bridge, where the machine has `nft` to ask.
fn nft_tables(names: &Names) -> Vec<String> {
    let Ok(output) = Command::new("nft").args(["list", "tables"]).output() else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .filter(|line| line.contains(&names.bridge))
        .map(str::to_owned)
        .collect()
}

/// Deletes links by index, over netlink.
fn delete_links(links: Vec<String>) {
    let delete = async move {
        let (connection, handle, _) = rtnetlink::new_connection().expect("a netlink socket");
        tokio::spawn(connection);
        for link in links {
            let file = format!("/sys/class/net/{link}/ifindex");
            let Ok(index) = fs::read_to_string(file).unwrap_or_default().trim().parse() else {
                continue;
            };
            if let Err(error) = handle.link().del(index).execute().await {
                eprintln!("link {link} cannot be removed: {error}");
            }
        }
    };
    run_apart(delete);
}

/// Runs a future to its end on a thread of its own, from places that cannot await.
pub(crate) fn run_apart<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let worker = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(future)
    });
    worker.join().expect("the work apart panicked, see above")
}

/// A mount that everybody on the node sees makes nobody a leftover. Only found, not removed: if
/// this were wrong, removing would end every process of the machine.
#[test]
fn strangers_are_never_taken_for_leftovers() {
    let dir = tempfile::tempdir().expect("a directory");
    let names = Names::unused(dir.path());
    let root = names.root();
    for sub in ["lower", "upper", "work", "at"] {
        fs::create_dir_all(root.join(sub)).expect("a directory of the test");
    }
    let shown = root.display();
    let options = format!("lowerdir={shown}/lower,upperdir={shown}/upper,workdir={shown}/work");
    let at = root.join("at");
    let (kind, flags) = (Some("overlay"), nix::mount::MsFlags::empty());
    nix::mount::mount(kind, &at, kind, flags, Some(options.as_str())).expect("root may mount");
    let mut stranger = Command::new("sh");
    stranger
        .args(["-c", "read -r _", &shown.to_string()])
        .stdin(std::process::Stdio::piped());
    let mut stranger = stranger.spawn().expect("sh runs");

    let found: Vec<_> = find(&names, &[]).iter().map(Leftover::to_string).collect();
    umount2(&at, MntFlags::MNT_DETACH).expect("mounted above");
    drop(stranger.stdin.take());
    stranger.wait().expect("a child of this process");
    assert_eq!(found, [format!("mount {}", at.display())]);
}
