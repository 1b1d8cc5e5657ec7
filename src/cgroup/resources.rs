//! Limits, from the OCI runtime spec to the files of either cgroup version.
//!
//! Sets CPU, cpuset, memory, pids, huge page, device and unified (v2) limits. Block I/O,
//! network and RDMA limits have no field in CRI and are not read.

use std::path::Path;

use oci_spec::runtime::{LinuxCpu, LinuxResources};

use super::devices;
use super::error::CgroupError;
use super::file;
use super::layout::Cgroups;
use super::memory;
use super::path::CgroupPath;

/// What the OCI spec and v1 take for "no limit".
pub(super) const UNLIMITED: i64 = -1;

/// Least CPU period and quota in microseconds that the kernel takes.
const MIN_CPU_US: u64 = 1_000;
/// Greatest CPU period in microseconds.
const MAX_CPU_PERIOD_US: u64 = 1_000_000;

/// Checks everything that can be checked without touching a cgroup.
pub(super) fn validate(cgroups: &Cgroups, resources: &LinuxResources) -> Result<(), CgroupError> {
    if let Some(cpu) = resources.cpu() {
        validate_cpu(cgroups, cpu)?;
    }
    if let Some(limits) = resources.memory() {
        memory::validate(cgroups, limits)?;
    }
    if resources.pids().is_some() {
        require(cgroups, "pids", "a limit on processes")?;
    }
    if let Some(rules) = resources.devices() {
        devices::validate(rules)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = limit.page_size();
        if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(invalid("hugepageLimits.pageSize", size, "not a page size"));
        }
    }
    for (name, value) in resources.unified().iter().flatten() {
        validate_unified(cgroups, name, value)?;
    }
    Ok(())
}

/// Sets what is given. The cgroup exists, and the limits have been checked.
pub(super) fn apply(
    cgroups: &Cgroups,
    path: &CgroupPath,
    resources: &LinuxResources,
) -> Result<(), CgroupError> {
    if let Some(cpu) = resources.cpu() {
        apply_cpu(cgroups, path, cpu)?;
        apply_cpuset(cgroups, path, cpu)?;
    }
    if let Some(limits) = resources.memory() {
        memory::apply(cgroups, path, limits)?;
    }
    if let (Some(pids), Some(dir)) = (resources.pids(), either(cgroups, "pids", path)) {
        let limit = pids.limit();
        let value = if limit > 0 {
            limit.to_string()
        } else {
            "max".to_owned()
        };
        file::write(&dir, "pids.max", &value)?;
    }
    apply_hugetlb(cgroups, path, resources)?;
    if let Some(rules) = resources.devices() {
        devices::apply(cgroups, path, rules)?;
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (name, value) in unified {
        let Some(dir) = cgroups.unified_dir(path) else {
            continue;
        };
        // Files with a line for each device or node take one line at a time.
        value
            .lines()
            .try_for_each(|line| file::write(&dir, name, line))?;
    }
    Ok(())
}

fn either(cgroups: &Cgroups, name: &str, path: &CgroupPath) -> Option<std::path::PathBuf> {
    cgroups
        .v1_dir(name, path)
        .or_else(|| cgroups.v2_dir(name, path))
}

pub(super) fn require(
    cgroups: &Cgroups,
    controller: &str,
    wanted: &str,
) -> Result<(), CgroupError> {
    if cgroups.has_controller(controller) {
        return Ok(());
    }
    Err(CgroupError::ControllerMissing {
        controller: controller.to_owned(),
        wanted: wanted.to_owned(),
    })
}

pub(super) fn invalid(field: &'static str, value: &str, reason: &'static str) -> CgroupError {
    CgroupError::InvalidValue {
        field,
        value: file::cut(value),
        reason,
    }
}

fn validate_cpu(cgroups: &Cgroups, cpu: &LinuxCpu) -> Result<(), CgroupError> {
    if cpu.shares().is_some() || cpu.quota().is_some() || cpu.period().is_some() {
        require(cgroups, "cpu", "a CPU limit")?;
    }
    if let Some(period) = cpu.period()
        && period != 0
        && !(MIN_CPU_US..=MAX_CPU_PERIOD_US).contains(&period)
    {
        let reason = "a period is 1000 to 1000000 microseconds";
        return Err(invalid("cpu.period", &period.to_string(), reason));
    }
    if let Some(quota) = cpu.quota()
        && quota > 0
        && quota.unsigned_abs() < MIN_CPU_US
    {
        return Err(invalid(
            "cpu.quota",
            &quota.to_string(),
            "at least 1000 microseconds",
        ));
    }
    for (field, list) in [("cpu.cpus", cpu.cpus()), ("cpu.mems", cpu.mems())] {
        let Some(list) = list.as_deref().filter(|list| !list.is_empty()) else {
            continue;
        };
        require(cgroups, "cpuset", "a set of CPUs or memory nodes")?;
        if !list
            .bytes()
            .all(|byte| byte.is_ascii_digit() || b",-".contains(&byte))
        {
            return Err(invalid(field, list, "a list like 0-2,7"));
        }
    }
    Ok(())
}

fn validate_unified(cgroups: &Cgroups, name: &str, value: &str) -> Result<(), CgroupError> {
    let sound = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._".contains(&b));
    let Some((controller, rest)) = name.split_once('.').filter(|_| sound) else {
        return Err(invalid("unified", name, "not the name of a cgroup v2 file"));
    };
    // The files of the cgroup core move processes and kill them; none of them is a limit.
    if controller == "cgroup" || rest.is_empty() || rest.starts_with('.') {
        return Err(invalid("unified", name, "not a limit"));
    }
    if value.len() > 4096 {
        return Err(invalid("unified", value, "longer than 4096 bytes"));
    }
    if cgroups.unified_has(controller) {
        return Ok(());
    }
    let controller = controller.to_owned();
    Err(CgroupError::ControllerMissing {
        controller,
        wanted: format!("the cgroup v2 setting {name}"),
    })
}

fn apply_cpu(cgroups: &Cgroups, path: &CgroupPath, cpu: &LinuxCpu) -> Result<(), CgroupError> {
    let shares = cpu.shares().filter(|shares| *shares != 0);
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    if let Some(dir) = cgroups.v1_dir("cpu", path) {
        if let Some(shares) = shares {
            file::write(&dir, "cpu.shares", &shares.to_string())?;
        }
        apply_quota_v1(&dir, quota.map(|quota| quota.max(UNLIMITED)), period)?;
        if let Some(burst) = cpu.burst() {
            file::write(&dir, "cpu.cfs_burst_us", &burst.to_string())?;
        }
        if let Some(idle) = cpu.idle() {
            file::write(&dir, "cpu.idle", &idle.to_string())?;
        }
    } else if let Some(dir) = cgroups.v2_dir("cpu", path) {
        if let Some(idle) = cpu.idle() {
            file::write(&dir, "cpu.idle", &idle.to_string())?;
        }
        // An idle cgroup has no weight to set.
        if let Some(shares) = shares.filter(|_| cpu.idle() != Some(1)) {
            file::write(&dir, "cpu.weight", &weight_from_shares(shares).to_string())?;
        }
        if quota.is_some() || period.is_some() {
            let value = cpu_max(&file::read(&dir, "cpu.max")?, quota, period);
            file::write(&dir, "cpu.max", &value)?;
        }
        if let Some(burst) = cpu.burst() {
            file::write(&dir, "cpu.max.burst", &burst.to_string())?;
        }
    }
    Ok(())
}

/// The kernel checks quota / period against the parent's at each write, so the one that makes the
/// ratio smaller has to come first. Which one that is, the first refusal tells.
fn apply_quota_v1(dir: &Path, quota: Option<i64>, period: Option<u64>) -> Result<(), CgroupError> {
    let write_quota = || match quota {
        Some(quota) => file::write(dir, "cpu.cfs_quota_us", &quota.to_string()),
        None => Ok(()),
    };
    let Some(period) = period else {
        return write_quota();
    };
    let write_period = || file::write(dir, "cpu.cfs_period_us", &period.to_string());
    match write_period() {
        Err(error) if error.is(libc::EINVAL) && quota.is_some() => {
            write_quota()?;
            write_period()
        }
        Err(error) => Err(error),
        Ok(()) => write_quota(),
    }
}

/// The contents of `cpu.max`, in which one of the two numbers may stay as it is.
fn cpu_max(current: &str, quota: Option<i64>, period: Option<u64>) -> String {
    let (current_quota, current_period) = current.split_once(' ').unwrap_or(("max", "100000"));
    let quota = match quota {
        Some(quota) if quota > 0 => quota.to_string(),
        Some(_) => "max".to_owned(),
        None => current_quota.to_owned(),
    };
    let period = period.map_or_else(|| current_period.to_owned(), |period| period.to_string());
    format!("{quota} {period}")
}

/// v1 shares (2 to 262144, 1024 normal) as a v2 weight (1 to 10000, 100 normal), by the formula
/// that runc since 1.3.2 and crun since 1.23 use: 10^((l² + 125 l) / 612 − 7 / 34) with l = log2 of
/// the shares, rounded up. Unlike the straight line before it, it takes the normal value to the
/// normal one.
#[must_use]
pub fn weight_from_shares(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let l = (shares as f64).log2();
    let weight = 10f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0);
    // A hair above a whole number is rounding, not a greater weight.
    let whole = (weight - 1e-9).ceil() as u64;
    whole.clamp(1, 10_000)
}

fn apply_cpuset(cgroups: &Cgroups, path: &CgroupPath, cpu: &LinuxCpu) -> Result<(), CgroupError> {
    let Some(dir) = either(cgroups, "cpuset", path) else {
        return Ok(());
    };
    for (name, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
            file::write(&dir, name, list)?;
        }
    }
    Ok(())
}

fn apply_hugetlb(
    cgroups: &Cgroups,
    path: &CgroupPath,
    resources: &LinuxResources,
) -> Result<(), CgroupError> {
    for limit in resources.hugepage_limits().iter().flatten() {
        let (size, bytes) = (limit.page_size(), limit.limit());
        if let Some(dir) = cgroups.v1_dir("hugetlb", path) {
            file::write(
                &dir,
                &format!("hugetlb.{size}.limit_in_bytes"),
                &bytes.to_string(),
            )?;
        } else if let Some(dir) = cgroups.v2_dir("hugetlb", path) {
            let value = if bytes < 0 {
                "max".to_owned()
            } else {
                bytes.to_string()
            };
            file::write(&dir, &format!("hugetlb.{size}.max"), &value)?;
        }
        // Kubelet names every page size whether or not the controller is there; then there are no
        // huge pages to be had, and no limit is needed.
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxResourcesBuilder};

    use super::*;

    #[test]
    fn shares_become_weights_and_normal_stays_normal() {
        let cases = [
            (0, 1),
            (2, 1),
            (3, 2),
            (100, 17),
            (256, 35),
            (512, 59),
            (1024, 100),
            (2048, 174),
        ];
        for (shares, weight) in cases {
            assert_eq!(weight_from_shares(shares), weight, "{shares}");
        }
        assert_eq!(weight_from_shares(262_144), 10_000);
        assert_eq!(weight_from_shares(u64::MAX), 10_000);
        let weights: Vec<u64> = (2..=262_144).step_by(37).map(weight_from_shares).collect();
        assert!(weights.is_sorted());
    }

    #[test]
    fn half_of_cpu_max_can_stay_as_it_is() {
        assert_eq!(cpu_max("max 100000", Some(5000), None), "5000 100000");
        assert_eq!(cpu_max("5000 100000", None, Some(50_000)), "5000 50000");
        assert_eq!(cpu_max("5000 50000", Some(-1), None), "max 50000");
    }

    /// A directory with the files of a v2 cgroup shows what is written; the kernel's part is proven
    /// where v2 is mounted.
    fn v2() -> (tempfile::TempDir, Cgroups, CgroupPath) {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("c");
        std::fs::create_dir(&dir).unwrap();
        for (name, text) in [
            ("cpu.weight", ""),
            ("cpu.max", "max 100000"),
            ("cpuset.cpus", ""),
            ("memory.max", "max"),
            ("memory.low", ""),
            ("memory.current", "5000"),
            ("memory.swap.max", ""),
            ("memory.high", ""),
            ("pids.max", ""),
        ] {
            std::fs::write(dir.join(name), text).unwrap();
        }
        let names = ["cpuset", "cpu", "memory", "pids"].map(str::to_owned);
        let unified = Some(root.path().to_owned());
        let cgroups = Cgroups {
            unified,
            unified_controllers: names.into(),
            v1: vec![],
            systemd: None,
        };
        (root, cgroups, CgroupPath::parse("/c").unwrap())
    }

    #[test]
    fn limits_are_written_in_v2_terms() {
        let (root, cgroups, path) = v2();
        let cpu = LinuxCpuBuilder::default()
            .shares(512u64)
            .quota(50_000i64)
            .cpus("0-1");
        let memory = LinuxMemoryBuilder::default()
            .limit(4 << 20)
            .swap(6 << 20)
            .reservation(1 << 20);
        let unified: std::collections::HashMap<_, _> =
            [("memory.high".to_owned(), "3145728".to_owned())].into();
        let resources = LinuxResourcesBuilder::default()
            .cpu(cpu.build().unwrap())
            .memory(memory.build().unwrap())
            .pids(
                oci_spec::runtime::LinuxPidsBuilder::default()
                    .limit(7i64)
                    .build()
                    .unwrap(),
            )
            .unified(unified)
            .build()
            .unwrap();
        validate(&cgroups, &resources).unwrap();
        apply(&cgroups, &path, &resources).unwrap();
        let read = |name| file::read(&root.path().join("c"), name).unwrap();
        assert_eq!(read("cpu.weight"), "59");
        assert_eq!(read("cpu.max"), "50000 100000");
        assert_eq!(read("cpuset.cpus"), "0-1");
        assert_eq!(read("memory.max"), "4194304");
        assert_eq!(read("memory.swap.max"), "2097152");
        assert_eq!(read("memory.low"), "1048576");
        assert_eq!(read("memory.high"), "3145728");
        assert_eq!(read("pids.max"), "7");
    }

    #[test]
    fn limits_that_cannot_be_right_are_refused_before_anything_is_touched() {
        let (_root, cgroups, _) = v2();
        let refused = |resources: LinuxResourcesBuilder| {
            assert!(validate(&cgroups, &resources.build().unwrap()).is_err());
        };
        let of = LinuxResourcesBuilder::default;
        let cpu = LinuxCpuBuilder::default;
        refused(of().cpu(cpu().period(5u64).build().unwrap()));
        refused(of().cpu(cpu().quota(5i64).build().unwrap()));
        refused(of().cpu(cpu().cpus("0;1").build().unwrap()));
        let memory = LinuxMemoryBuilder::default;
        refused(of().memory(memory().limit(-5i64).build().unwrap()));
        refused(of().memory(memory().limit(10i64).swap(5i64).build().unwrap()));
        refused(of().memory(memory().swappiness(101u64).build().unwrap()));
        for name in [
            "cgroup.kill",
            "io.max",
            "memory",
            "memory.",
            "../memory.max",
            "Memory.max",
        ] {
            refused(of().unified([(name.to_owned(), "1".to_owned())]));
        }
    }

    #[test]
    fn a_limit_below_what_is_used_is_refused_when_asked_to_check() {
        let (root, cgroups, path) = v2();
        let memory = LinuxMemoryBuilder::default()
            .limit(4096i64)
            .check_before_update(true);
        let resources = LinuxResourcesBuilder::default()
            .memory(memory.build().unwrap())
            .build()
            .unwrap();
        let error = apply(&cgroups, &path, &resources).unwrap_err();
        assert!(matches!(error, CgroupError::InvalidValue { .. }), "{error}");
        // What the kernel has of it is a limit that is in force, or cache that it gives back.
        let dir = root.path().join("c");
        std::fs::write(dir.join("memory.max"), "4096").unwrap();
        apply(&cgroups, &path, &resources).unwrap();
        std::fs::write(dir.join("memory.max"), "8192").unwrap();
        std::fs::write(dir.join("memory.stat"), "anon 4000\ninactive_file 1000\n").unwrap();
        apply(&cgroups, &path, &resources).unwrap();
    }
}
