//! Memory limits, in the terms of either cgroup version.

use std::path::Path;

use oci_spec::runtime::LinuxMemory;

use super::error::CgroupError;
use super::file;
use super::layout::Cgroups;
use super::path::CgroupPath;
use super::resources::{UNLIMITED, invalid, require};

/// Checks what can be checked without touching a cgroup.
pub(super) fn validate(cgroups: &Cgroups, memory: &LinuxMemory) -> Result<(), CgroupError> {
    let given = [memory.limit(), memory.reservation(), memory.swap()];
    if given.into_iter().flatten().any(|value| value != 0) {
        require(cgroups, "memory", "a memory limit")?;
    }
    for (field, value) in ["memory.limit", "memory.reservation", "memory.swap"]
        .into_iter()
        .zip(given)
    {
        if let Some(value) = value.filter(|value| *value < UNLIMITED) {
            return Err(invalid(field, &value.to_string(), "neither a size nor -1"));
        }
    }
    // `swap` counts memory and swap together.
    if let (Some(limit), Some(swap)) = (memory.limit(), memory.swap())
        && swap > 0
        && (limit == UNLIMITED || swap < limit)
    {
        return Err(invalid(
            "memory.swap",
            &swap.to_string(),
            "less than the memory limit",
        ));
    }
    if memory.swappiness().is_some_and(|value| value > 100) {
        let value = memory.swappiness().unwrap_or_default().to_string();
        return Err(invalid("memory.swappiness", &value, "greater than 100"));
    }
    Ok(())
}

/// Sets what is given. The limits have been checked.
pub(super) fn apply(
    cgroups: &Cgroups,
    path: &CgroupPath,
    memory: &LinuxMemory,
) -> Result<(), CgroupError> {
    if let Some(dir) = cgroups.v1_dir("memory", path) {
        apply_v1(&dir, memory)
    } else if let Some(dir) = cgroups.v2_dir("memory", path) {
        apply_v2(&dir, memory)
    } else {
        Ok(())
    }
}

/// The kernel holds memory ≤ memory + swap at every moment. So the greater one goes first when the
/// memory limit grows beyond the present sum, and last otherwise.
fn apply_v1(dir: &Path, memory: &LinuxMemory) -> Result<(), CgroupError> {
    const LIMIT: &str = "memory.limit_in_bytes";
    const SUM: &str = "memory.memsw.limit_in_bytes";
    let limit = memory.limit().filter(|limit| *limit != 0);
    let mut sum = memory.swap().filter(|sum| *sum != 0);
    // Absent where the kernel does not count swap; then memory alone is limited.
    let present = file::read_number(dir, SUM)?;
    let grows = match (limit, present) {
        (Some(UNLIMITED), _) => true,
        (Some(limit), Some(present)) => limit.unsigned_abs() > present,
        _ => false,
    };
    if grows {
        // A greater limit with nothing said of swap: the sum follows, and no swap is gained.
        sum = sum.or(limit);
    }
    let write_sum = || match sum.filter(|_| present.is_some()) {
        Some(sum) => file::write(dir, SUM, &sum.to_string()),
        None => Ok(()),
    };
    if grows {
        write_sum()?;
    }
    if let Some(limit) = limit {
        file::write(dir, LIMIT, &limit.to_string())?;
    }
    if !grows {
        write_sum()?;
    }
    if let Some(reservation) = memory.reservation().filter(|value| *value != 0) {
        file::write(dir, "memory.soft_limit_in_bytes", &reservation.to_string())?;
    }
    if let Some(swappiness) = memory.swappiness() {
        file::write(dir, "memory.swappiness", &swappiness.to_string())?;
    }
    if memory.disable_oom_killer() == Some(true) {
        file::write(dir, "memory.oom_control", "1")?;
    }
    Ok(())
}

/// Bytes in use but for the page cache that the kernel would give back first.
fn needed_v2(dir: &Path) -> Result<u64, CgroupError> {
    let usage = file::read_number(dir, "memory.current")?.unwrap_or(0);
    let text = file::read_if_present(dir, "memory.stat")?.unwrap_or_default();
    let cache = file::keyed(&text, "inactive_file").unwrap_or(0);
    Ok(usage.saturating_sub(cache))
}

fn apply_v2(dir: &Path, memory: &LinuxMemory) -> Result<(), CgroupError> {
    let limit = memory.limit().filter(|limit| *limit != 0);
    let size = |bytes: i64| {
        if bytes < 0 {
            "max".to_owned()
        } else {
            bytes.to_string()
        }
    };
    if let Some(limit) = limit.filter(|limit| *limit > 0)
        && memory.check_before_update() == Some(true)
        && file::read_number(dir, "memory.max")? != Some(limit.unsigned_abs())
        && limit.unsigned_abs() < needed_v2(dir)?
    {
        let reason = "less than the memory in use";
        return Err(invalid("memory.limit", &limit.to_string(), reason));
    }
    // `swap` counts memory and swap together; v2 limits them apart.
    let swap = match (memory.swap().filter(|sum| *sum != 0), limit) {
        (Some(UNLIMITED), _) | (None, Some(UNLIMITED)) => Some("max".to_owned()),
        (Some(sum), Some(limit)) => Some(size((sum - limit).max(0))),
        _ => None,
    };
    if let Some(swap) = swap {
        match file::write(dir, "memory.swap.max", &swap) {
            // A kernel that does not count swap has no such file, and nothing to limit.
            Err(error) if error.is(libc::ENOENT) => {}
            other => other?,
        }
    }
    if let Some(limit) = limit {
        file::write(dir, "memory.max", &size(limit))?;
    }
    if let Some(reservation) = memory.reservation().filter(|value| *value != 0) {
        file::write(dir, "memory.low", &size(reservation))?;
    }
    Ok(())
}
