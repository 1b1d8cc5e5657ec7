//! How long a launch takes as the daemon sees it, with the mounts and cgroups it gives; how fast a
//! container may write, and what else waits for those that do.
//!
//! `cargo test --release --lib shim::server::tests::measure -- --ignored --nocapture`

use serde_json::json;

use super::*;
use crate::sys::scheduling;

const ROUNDS: usize = 300;
/// Containers that write as fast as they can.
const CHATTY: usize = 100;
/// Containers that end beside them.
const ENDS: usize = 100;

/// A cgroup of the test's own in every hierarchy.
struct Cgroups(Vec<PathBuf>);

impl Cgroups {
    fn new() -> Cgroups {
        let name = format!("qlt-shim-measure-{}", std::process::id());
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap();
        let made = hierarchies.filter_map(|entry| {
            let dir = entry.unwrap().path();
            let own = dir.join(&name);
            (dir.join("cgroup.procs").exists() && fs::create_dir(&own).is_ok()).then_some(own)
        });
        let cgroups = Cgroups(made.collect());
        for dir in &cgroups.0 {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let parent = dir.parent().unwrap();
                if let Ok(all) = fs::read_to_string(parent.join(file)) {
                    let _ = fs::write(dir.join(file), all.trim());
                }
            }
        }
        cgroups
    }

    fn entry(&self) -> CgroupEntry {
        let (v1, v2): (Vec<&PathBuf>, Vec<&PathBuf>) =
            self.0.iter().partition(|dir| dir.join("tasks").exists());
        CgroupEntry {
            oom_counter: None,
            unified_dir: v2.first().map(|dir| dir.to_path_buf()),
            v1_tasks_files: v1.iter().map(|dir| dir.join("tasks")).collect(),
        }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for dir in &self.0 {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// As the daemon makes it: the file systems, the files and namespaces of a sandbox, the defaults of
/// a client for what is hidden.
fn as_the_daemons(plan: &mut LaunchPlan, sandbox: &Path, cgroups: &Cgroups) {
    let kernel = ["nosuid", "noexec", "nodev"];
    let bind = |name: &str, to: &str| {
        json!({ "destination": to, "type": "bind", "source": sandbox.join(name),
            "options": ["rbind", "rprivate", "rw"] })
    };
    let new = |kind: &str, to: &str, options: &[&str]| {
        let source = kind;
        json!({ "destination": to, "type": kind, "source": source, "options": options })
    };
    let mounts = [
        new("proc", "/proc", &kernel),
        new(
            "tmpfs",
            "/dev",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        new(
            "devpts",
            "/dev/pts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "gid=5"],
        ),
        new("mqueue", "/dev/mqueue", &kernel),
        new("sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
        new(
            "cgroup",
            "/sys/fs/cgroup",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        bind("hosts", "/etc/hosts"),
        bind("resolv.conf", "/etc/resolv.conf"),
        bind("hostname", "/etc/hostname"),
        bind("shm", "/dev/shm"),
    ];
    let own = |kind: &str| format!("/proc/{}/ns/{kind}", std::process::id());
    let mut spec = serde_json::to_value(&plan.spec).unwrap();
    spec["mounts"] = json!(mounts);
    spec["linux"] = json!({
        "namespaces": [{ "type": "mount" }, { "type": "cgroup" }, { "type": "pid" },
            { "type": "network", "path": own("net") }, { "type": "uts", "path": own("uts") },
            { "type": "ipc", "path": own("ipc") }],
        "maskedPaths": ["/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys",
            "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
            "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    });
    plan.spec = serde_json::from_value(spec).unwrap();
    plan.cgroup = cgroups.entry();
}

#[tokio::test]
#[ignore = "a measurement"]
async fn how_long_a_launch_takes() {
    let node = Node::as_installed();
    let cgroups = Cgroups::new();
    let sandbox = node.dir.path().join("sandbox");
    fs::create_dir_all(sandbox.join("shm")).unwrap();
    for name in ["hosts", "resolv.conf", "hostname"] {
        fs::write(sandbox.join(name), "x\n").unwrap();
    }
    let (shim, mut events) = node.connect().await;
    let mut times = Vec::new();
    let mut ends = Vec::new();
    for number in 0..ROUNDS {
        let id = format!("c{number}");
        let plan = node.plan_with(&id, &["/bin/busybox", "true"], |plan| {
            as_the_daemons(plan, &sandbox, &cgroups);
        });
        let start = Instant::now();
        shim.launch(&id, &plan).await.unwrap();
        times.push(start.elapsed());
        let exit = next_exit(&mut events).await;
        ends.push(start.elapsed());
        assert_eq!(exit.code, 0);
        shim.acknowledge(exit.sequence).await.unwrap();
        shim.forget(&id).await.unwrap();
    }
    let mut pings = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        shim.ping().await.unwrap();
        pings.push(start.elapsed());
    }
    for (what, mut times) in [("launch", times), ("launch to exit", ends), ("ping", pings)] {
        times.sort();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        println!(
            "{what}: p50 {:?}, p90 {:?}, p99 {:?}",
            at(50),
            at(90),
            at(99)
        );
    }
}

/// `cargo test --release --lib how_long_an_exit -- --ignored --nocapture`
#[tokio::test]
#[ignore = "a measurement"]
async fn how_long_an_exit_takes_beside_containers_that_write() {
    // As the daemon hears.
    scheduling::set_slice(Some(scheduling::SHORTEST_SLICE)).unwrap();
    let node = Node::as_installed();
    let (shim, mut events) = node.connect().await;
    let mut quiet = Vec::new();
    for number in 0..ENDS {
        let id = format!("quiet-{number}");
        quiet.push(node.run(&shim, &id, "exec /bin/busybox sleep 1000").await);
    }
    let mut chatty = Vec::new();
    for load in [0, CHATTY] {
        for number in 0..load {
            let id = format!("chatty-{number}");
            let plan = node.plan_with(&id, &["/bin/busybox", "yes"], |plan| {
                plan.stdio.log_limits.file_bytes = 1 << 20;
                plan.stdio.log_limits.files = 2;
            });
            chatty.push(shim.launch(&id, &plan).await.unwrap());
        }
        let (mut reaped, mut heard) = (Vec::new(), Vec::new());
        for launched in quiet.split_off(quiet.len() - ENDS / 2) {
            let (begin, at) = (Instant::now(), crate::shim::log::timestamp::now_ns());
            signal(&launched, Signal::KILL);
            let exit = next_exit(&mut events).await;
            heard.push(begin.elapsed());
            reaped.push(Duration::from_nanos(
                u64::try_from(exit.at_ns - at).unwrap_or(0),
            ));
            shim.acknowledge(exit.sequence).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for (what, mut times) in [("reaped", reaped), ("heard of", heard)] {
            times.sort();
            let (middle, last) = (times[times.len() / 2], times[times.len() - 1]);
            println!(
                "{load} chatty containers: an exit is {what} after {middle:?}, at most {last:?}"
            );
        }
    }
    for launched in &chatty {
        signal(launched, Signal::KILL);
    }
    for _ in &chatty {
        let exit = next_exit(&mut events).await;
        shim.acknowledge(exit.sequence).await.unwrap();
    }
}

/// Lines of 100 bytes.
const LINES: u64 = 8_000_000;

/// Not a test: a container's process, which writes lines to its standard error.
#[test]
#[ignore = "the writer, started by a measurement"]
fn write_lines() {
    let size = std::env::var("QUILT_TEST_WRITE_BYTES").ok();
    let Some(size) = size.and_then(|size| size.parse().ok()) else {
        return;
    };
    let chunk: Vec<u8> = (0..655_300)
        .map(|at| if at % 100 == 99 { b'\n' } else { b'x' })
        .collect();
    let mut left = usize::try_from(LINES * 100).unwrap();
    while left > 0 {
        for part in chunk.chunks(size) {
            let mut part = &part[..part.len().min(left)];
            left -= part.len();
            while !part.is_empty() {
                let written = rustix::io::write(rustix::stdio::stderr(), part).unwrap();
                part = &part[written..];
            }
        }
    }
    std::process::exit(0);
}

/// Makes a container of this test binary, with the node's libraries, that runs [`write_lines`].
fn as_a_writer(plan: &mut LaunchPlan, size: usize) {
    let exe = std::env::current_exe().unwrap();
    let options = ["rbind", "ro"];
    let bind = |from: &str, to: &str| {
        let (source, destination, kind) = (from, to, "bind");
        json!({ "destination": destination, "type": kind, "source": source, "options": options })
    };
    let name = "shim::server::tests::measure::write_lines";
    let mut spec = serde_json::to_value(&plan.spec).unwrap();
    spec["process"]["args"] = json!([
        "/writer",
        "--exact",
        name,
        "--ignored",
        "--nocapture",
        "--test-threads=1"
    ]);
    spec["process"]["env"] = json!([format!("QUILT_TEST_WRITE_BYTES={size}")]);
    spec["mounts"] = json!([
        bind(exe.to_str().unwrap(), "/writer"),
        bind("/usr/lib", "/lib"),
        bind("/usr/lib", "/usr/lib"),
        bind("/usr/lib64", "/lib64"),
    ]);
    plan.spec = serde_json::from_value(spec).unwrap();
}

/// Processor time of a process: the first number of its `schedstat`, nanoseconds.
fn cpu_of(pid: i32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

#[tokio::test]
#[ignore = "a measurement"]
async fn how_many_lines_a_second() {
    let node = Node::as_installed();
    let (shim, mut events) = node.connect().await;
    let pid = fs::read_to_string(node.state().join("shim/lock")).unwrap();
    let pid = pid.trim().parse().unwrap();
    for (number, size) in [65_536, 100, 65_536, 100].into_iter().enumerate() {
        let id = format!("writer-{number}");
        let plan = node.plan_with(&id, &["/writer"], |plan| as_a_writer(plan, size));
        let (start, cpu) = (Instant::now(), cpu_of(pid));
        shim.launch(&id, &plan).await.unwrap();
        let exit = timeout(6 * BOUND, next_exit(&mut events)).await.unwrap();
        let (took, cpu) = (start.elapsed(), cpu_of(pid) - cpu);
        assert_eq!(exit.code, 0, "{}", node.content(&id));
        assert!(fs::metadata(node.log(&id)).unwrap().len() >= LINES * 140);
        shim.acknowledge(exit.sequence).await.unwrap();
        shim.forget(&id).await.unwrap();
        fs::remove_file(node.log(&id)).unwrap();
        let lines = LINES as f64;
        println!(
            "{size} B a write: {:.2} M lines/s, {:.2} ms of the shim's CPU a MB of output",
            lines / took.as_secs_f64() / 1e6,
            cpu.as_secs_f64() * 1e3 / (lines * 100.0 / 1e6),
        );
    }
}
