//! The driver on the machine's own hierarchies, in cgroups that each test makes for itself and
//! removes again.

mod devices;

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemoryBuilder, LinuxPidsBuilder,
    LinuxResources, LinuxResourcesBuilder,
};

use super::*;
use crate::lifecycle::usage::Usage;

const BOUND: Duration = Duration::from_secs(20);

/// A cgroup of its own for each test, gone at its end.
struct Scratch {
    cgroups: Cgroups,
    path: CgroupPath,
}

impl Scratch {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("/qlt-net-test-{}-{number}", std::process::id());
        let cgroups = Cgroups::probe(Path::new("/sys/fs/cgroup")).unwrap();
        Self {
            cgroups,
            path: CgroupPath::parse(&name).unwrap(),
        }
    }

    fn child(&self, name: &str) -> CgroupPath {
        self.path.join(name).unwrap()
    }

    /// Whether limits of v1 can be looked at here.
    fn v1(&self, controller: &str, path: &CgroupPath) -> Option<PathBuf> {
        self.cgroups.v1_dir(controller, path)
    }

    fn read(&self, controller: &str, path: &CgroupPath, name: &str) -> String {
        file::read(&self.v1(controller, path).unwrap(), name).unwrap()
    }

    /// Starts a shell in the cgroup. It waits for a line before it runs the command.
    fn start(&self, path: &CgroupPath, command: &str) -> Child {
        start(&self.cgroups, path, command)
    }
}

/// [`Scratch::start`] for hierarchies seen otherwise.
fn start(cgroups: &Cgroups, path: &CgroupPath, command: &str) -> Child {
    let mut child = Command::new("/bin/sh")
        .args(["-c", &format!("read line; {command}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (unified, tasks) = cgroups.entry(path);
    let unified = unified.map(|dir| dir.join("cgroup.procs"));
    for file in tasks.into_iter().chain(unified) {
        std::fs::write(&file, child.id().to_string()).unwrap();
    }
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    child
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.cgroups.kill(&self.path);
        let _ = self.cgroups.wait_until_empty(&self.path, BOUND);
        let _ = self.cgroups.remove(&self.path);
    }
}

/// Removes as a job would: again, while the kernel is still letting go of the last process.
fn remove_within_bound(cgroups: &Cgroups, path: &CgroupPath) {
    let deadline = Instant::now() + BOUND;
    loop {
        match cgroups.remove(path) {
            Err(CgroupError::StillPopulated(_)) if Instant::now() < deadline => {
                std::thread::yield_now();
            }
            other => return other.unwrap(),
        }
    }
}

fn limits(memory: i64, pids: i64) -> LinuxResources {
    let memory = LinuxMemoryBuilder::default()
        .limit(memory)
        .swap(memory)
        .build()
        .unwrap();
    LinuxResourcesBuilder::default()
        .cpu(
            LinuxCpuBuilder::default()
                .shares(512u64)
                .quota(50_000i64)
                .build()
                .unwrap(),
        )
        .memory(memory)
        .pids(LinuxPidsBuilder::default().limit(pids).build().unwrap())
        .build()
        .unwrap()
}

#[test]
fn a_cgroup_is_made_in_every_hierarchy_and_removed_again() {
    let scratch = Scratch::new();
    let leaf = scratch.child("pod").join("container").unwrap();
    let cgroups = &scratch.cgroups;
    assert!(!cgroups.exists(&leaf));
    cgroups.ensure(&leaf, Some(&limits(64 << 20, 50))).unwrap();
    cgroups.ensure(&leaf, Some(&limits(64 << 20, 50))).unwrap();
    assert!(cgroups.all_dirs(&leaf).iter().all(|dir| dir.is_dir()));
    assert_eq!(cgroups.list_children(&scratch.path).unwrap(), ["pod"]);
    if scratch.v1("memory", &leaf).is_some() {
        assert_eq!(
            scratch.read("memory", &leaf, "memory.limit_in_bytes"),
            "67108864"
        );
        assert_eq!(scratch.read("cpu", &leaf, "cpu.shares"), "512");
        assert_eq!(scratch.read("cpu", &leaf, "cpu.cfs_quota_us"), "50000");
        assert_eq!(scratch.read("pids", &leaf, "pids.max"), "50");
        assert!(!scratch.read("cpuset", &leaf, "cpuset.cpus").is_empty());
        assert!(!scratch.read("cpuset", &leaf, "cpuset.mems").is_empty());
    }
    assert!(!cgroups.is_populated(&leaf).unwrap());
    cgroups.remove(&scratch.path).unwrap();
    cgroups.remove(&scratch.path).unwrap();
    assert!(!cgroups.exists(&scratch.path));
    assert!(cgroups.list_children(&scratch.path).unwrap().is_empty());
}

#[test]
fn what_a_crash_left_in_some_hierarchies_is_completed() {
    let scratch = Scratch::new();
    let leaf = scratch.child("container");
    for (number, dir) in scratch.cgroups.all_dirs(&leaf).iter().enumerate() {
        if number % 2 == 0 {
            // Made by hand, as after a crash: no CPUs inherited, no limits.
            std::fs::create_dir_all(dir).unwrap();
        }
    }
    scratch
        .cgroups
        .ensure(&leaf, Some(&limits(64 << 20, 50)))
        .unwrap();
    assert!(
        scratch
            .cgroups
            .all_dirs(&leaf)
            .iter()
            .all(|dir| dir.is_dir())
    );
    let mut child = scratch.start(&leaf, "exit 3");
    assert_eq!(child.wait().unwrap().code(), Some(3), "a process can join");
}

#[test]
fn memory_limits_grow_and_shrink() {
    let scratch = Scratch::new();
    let leaf = scratch.child("container");
    for megabytes in [64i64, 256, 16, 512] {
        scratch
            .cgroups
            .ensure(&leaf, Some(&limits(megabytes << 20, 50)))
            .unwrap();
        if scratch.v1("memory", &leaf).is_some() {
            let found = scratch.read("memory", &leaf, "memory.limit_in_bytes");
            assert_eq!(found, (megabytes << 20).to_string());
        }
    }
    // More memory, and not a word of swap.
    let memory = LinuxMemoryBuilder::default()
        .limit(1i64 << 30)
        .build()
        .unwrap();
    let more = LinuxResourcesBuilder::default()
        .memory(memory)
        .build()
        .unwrap();
    scratch.cgroups.update(&leaf, &more).unwrap();
    let before = scratch.cgroups.update(&leaf, &limits(-1, -1)).unwrap();
    before.put_back();
    let limit = |scratch: &Scratch| scratch.cgroups.stats(&leaf).unwrap().memory_limit_bytes;
    assert_eq!(limit(&scratch), Some(1 << 30));
    scratch.cgroups.update(&leaf, &limits(-1, -1)).unwrap();
    let stats = scratch.cgroups.stats(&leaf).unwrap();
    assert_eq!(
        (stats.memory_limit_bytes, stats.memory_available_bytes),
        (None, None)
    );
}

#[test]
fn a_cpu_quota_moves_within_its_parent_s_in_either_direction() {
    let scratch = Scratch::new();
    let leaf = scratch.child("container");
    let cpu = |quota: i64, period: u64| {
        let cpu = LinuxCpuBuilder::default()
            .quota(quota)
            .period(period)
            .build()
            .unwrap();
        LinuxResourcesBuilder::default().cpu(cpu).build().unwrap()
    };
    scratch
        .cgroups
        .ensure(&scratch.path, Some(&cpu(50_000, 100_000)))
        .unwrap();
    // Each of these is refused by the kernel when its two writes come in one fixed order.
    for (quota, period) in [(50_000, 100_000), (10_000, 20_000), (200_000, 400_000)] {
        scratch
            .cgroups
            .ensure(&leaf, Some(&cpu(quota, period)))
            .unwrap();
    }
    let error = scratch.cgroups.ensure(&leaf, Some(&cpu(90_000, 100_000)));
    if scratch.v1("cpu", &leaf).is_some() {
        let error = error.unwrap_err().to_string();
        let named = error.contains("100000") && error.contains("cpu.cfs_period_us");
        assert!(named, "the error tells the value and the file: {error}");
    }
}

#[test]
fn the_whole_subtree_is_killed_and_then_removed() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.child("a"), scratch.child("b"));
    let mut children = Vec::new();
    for path in [&a, &b] {
        scratch.cgroups.ensure(path, None).unwrap();
        children.push(scratch.start(path, "sleep 600 & sleep 600"));
    }
    let cgroups = &scratch.cgroups;
    assert!(cgroups.is_populated(&scratch.path).unwrap());
    assert!(
        !cgroups
            .wait_until_empty(&scratch.path, Duration::from_millis(5))
            .unwrap()
    );
    let error = cgroups.remove(&scratch.path).unwrap_err();
    assert!(matches!(error, CgroupError::StillPopulated(_)), "{error}");
    assert!(
        cgroups.exists(&a),
        "a refused removal leaves what is populated"
    );
    cgroups.kill(&scratch.path).unwrap();
    for child in &mut children {
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
    assert!(cgroups.wait_until_empty(&scratch.path, BOUND).unwrap());
    remove_within_bound(cgroups, &scratch.path);
    assert!(
        cgroups.wait_until_empty(&scratch.path, BOUND).unwrap(),
        "gone is empty"
    );
    cgroups.kill(&scratch.path).unwrap();
}

#[test]
fn without_a_kernel_that_kills_cgroups_each_process_is_found() {
    let scratch = Scratch::new();
    if scratch.cgroups.v1.is_empty() {
        return;
    }
    // The same machine, seen without its v2 hierarchy.
    let legacy = Cgroups {
        unified: None,
        ..scratch.cgroups.clone()
    };
    let a = scratch.child("a");
    scratch.cgroups.ensure(&a, None).unwrap();
    let command = "for i in 1 2 3 4; do (while :; do sleep 600; done) & done; sleep 600";
    let mut child = scratch.start(&a, command);
    assert!(legacy.is_populated(&scratch.path).unwrap());
    legacy.kill(&scratch.path).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert!(legacy.wait_until_empty(&scratch.path, BOUND).unwrap());
    assert!(
        !scratch.cgroups.is_populated(&scratch.path).unwrap_or(false) || {
            scratch
                .cgroups
                .wait_until_empty(&scratch.path, BOUND)
                .unwrap()
        }
    );
}

#[test]
fn an_oom_kill_is_counted_and_told_after_the_process_is_gone() {
    let scratch = Scratch::new();
    let leaf = scratch.child("container");
    scratch
        .cgroups
        .ensure(&leaf, Some(&limits(8 << 20, 50)))
        .unwrap();
    let Some(counter) = scratch.cgroups.open_oom_counter(&leaf).unwrap() else {
        return;
    };
    assert_eq!(counter.read().unwrap(), 0);
    let mut child = scratch.start(&leaf, "exec tail /dev/zero");
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert_eq!(counter.read().unwrap(), 1);
    assert_eq!(scratch.cgroups.oom_kills(&leaf).unwrap(), 1);
    remove_within_bound(&scratch.cgroups, &leaf);
    assert_eq!(
        counter.read().unwrap(),
        0,
        "a cgroup that is gone tells nothing"
    );
    assert_eq!(scratch.cgroups.oom_kills(&leaf).unwrap(), 0);
}

#[test]
fn what_a_cgroup_uses_is_told_in_full() {
    let scratch = Scratch::new();
    let leaf = scratch.child("container");
    scratch
        .cgroups
        .ensure(&leaf, Some(&limits(64 << 20, 50)))
        .unwrap();
    let mut child = scratch.start(
        &leaf,
        "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 600",
    );
    let deadline = Instant::now() + BOUND;
    let stats = loop {
        let stats = scratch.cgroups.stats(&leaf).unwrap();
        if stats.cpu_usage_ns > Some(1_000_000) || Instant::now() > deadline {
            break stats;
        }
        std::thread::yield_now();
    };
    assert!(stats.cpu_usage_ns > Some(1_000_000), "{stats:?}");
    if scratch.cgroups.has_controller("memory") {
        assert!(stats.memory_usage_bytes > Some(0), "{stats:?}");
        assert!(stats.memory_working_set_bytes <= stats.memory_usage_bytes);
        assert_eq!(stats.memory_limit_bytes, Some(64 << 20));
        assert!(stats.memory_available_bytes < Some(64 << 20));
        assert!(
            stats.page_faults.is_some() && stats.threads >= Some(1),
            "{stats:?}"
        );
    }
    scratch.cgroups.kill(&leaf).unwrap();
    child.wait().unwrap();
    remove_within_bound(&scratch.cgroups, &leaf);
    assert_eq!(scratch.cgroups.stats(&leaf).unwrap(), Usage::default());
}

#[test]
fn empty_parents_go_up_to_the_one_that_stays() {
    let scratch = Scratch::new();
    let leaf = scratch.child("a").join("b").unwrap().join("c").unwrap();
    let sibling = scratch.child("a").join("other").unwrap();
    let cgroups = &scratch.cgroups;
    cgroups.ensure(&leaf, None).unwrap();
    cgroups.ensure(&sibling, None).unwrap();
    cgroups.remove(&leaf).unwrap();
    cgroups.remove_empty_parents(&leaf, &scratch.path).unwrap();
    assert_eq!(
        cgroups.list_children(&scratch.child("a")).unwrap(),
        ["other"]
    );
    cgroups.remove(&sibling).unwrap();
    cgroups
        .remove_empty_parents(&sibling, &scratch.path)
        .unwrap();
    assert!(cgroups.exists(&scratch.path) && !cgroups.exists(&scratch.child("a")));
    assert!(cgroups.remove_empty_parents(&leaf, &sibling).is_err());
}

#[test]
fn the_root_is_never_touched() {
    let scratch = Scratch::new();
    let root = CgroupPath::parse("/").unwrap();
    assert!(matches!(
        scratch.cgroups.ensure(&root, None),
        Err(CgroupError::InvalidPath { .. })
    ));
    assert!(matches!(
        scratch.cgroups.kill(&root),
        Err(CgroupError::InvalidPath { .. })
    ));
    assert!(matches!(
        scratch.cgroups.remove(&root),
        Err(CgroupError::InvalidPath { .. })
    ));
}

#[test]
fn a_limit_without_its_controller_is_refused_before_anything_is_made() {
    let scratch = Scratch::new();
    let v1 = scratch
        .cgroups
        .v1
        .iter()
        .filter(|v1| v1.controllers != ["memory"])
        .cloned();
    let without = Cgroups {
        v1: v1.collect(),
        unified_controllers: vec![],
        unified: scratch.cgroups.unified.clone(),
        systemd: None,
    };
    let error = without
        .ensure(&scratch.path, Some(&limits(1 << 20, 5)))
        .unwrap_err();
    assert!(
        matches!(error, CgroupError::ControllerMissing { .. }),
        "{error}"
    );
    assert!(!without.exists(&scratch.path));
}

/// Prints the median of each step.
#[test]
#[ignore = "a measurement, not a check"]
fn how_long_each_step_takes() {
    let scratch = Scratch::new();
    let cgroups = &scratch.cgroups;
    cgroups.ensure(&scratch.path, None).unwrap();
    let mut times: [Vec<Duration>; 5] = Default::default();
    let mut rules = vec![LinuxDeviceCgroup::default()];
    for minor in [3, 5, 7, 8, 9] {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true)
            .set_typ(Some(LinuxDeviceType::C))
            .set_major(Some(1));
        rule.set_minor(Some(minor))
            .set_access(Some("rwm".to_owned()));
        rules.push(rule);
    }
    let mut resources = limits(64 << 20, 100);
    resources.set_devices(Some(rules));
    for round in 0..100 {
        let leaf = scratch.child(&format!("c{round}"));
        let mut timed = |slot: usize, work: &dyn Fn()| {
            let start = Instant::now();
            work();
            times[slot].push(start.elapsed());
        };
        timed(0, &|| cgroups.ensure(&leaf, None).unwrap());
        timed(1, &|| cgroups.ensure(&leaf, Some(&resources)).unwrap());
        timed(2, &|| {
            assert!(cgroups.stats(&leaf).unwrap().threads.is_some())
        });
        timed(3, &|| drop(cgroups.open_oom_counter(&leaf).unwrap()));
        timed(4, &|| cgroups.remove(&leaf).unwrap());
    }
    let names = [
        "ensure",
        "ensure again with limits",
        "stats",
        "open_oom_counter",
        "remove",
    ];
    for (name, times) in names.iter().zip(&mut times) {
        times.sort();
        println!("{name}: p50 {:?}, p95 {:?}", times[50], times[95]);
    }
}
