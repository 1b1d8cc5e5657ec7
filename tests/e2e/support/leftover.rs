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

/// Mounts a daemon may keep as long as its node lives: the state directory made private.
fn is_base(names: &Names, mount: &Path) -> bool {
    mount == names.state() || mount == names.state().join("sandboxes")
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
    name.as_bytes()
        .windows(64)
        .any(|part| part.iter().all(u8::is_ascii_hexdigit))
}

/// Processes that name the daemon's directory, are in its cgroups, or run on its layers.
fn processes(names: &Names, expected: &[i32]) -> Vec<Leftover> {
    let dir = names.dir.to_string_lossy().into_owned();
    let root = names.root().to_string_lossy().into_owned();
    let own = std::process::id() as i32;
    let all = process::all()
        .into_iter()
        .filter(|pid| *pid != own && !expected.contains(pid));
    all.filter_map(|pid| {
        let arguments = process::arguments(pid).join(" ");
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let in_cgroup = cgroup.lines().any(|line| {
            let path = line.splitn(3, ':').nth(2).unwrap_or_default();
            path.strip_prefix(&names.cgroup_root)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        let on_layers = || {
            let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
            mounts
                .lines()
                .any(|l| l.contains(" overlay ") && l.contains(&root))
        };
        let ours =
            process::is_running(pid) && (arguments.contains(&dir) || in_cgroup || on_layers());
        ours.then_some(Leftover::Process(pid, arguments))
    })
    .collect()
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
