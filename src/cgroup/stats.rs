//! What a cgroup uses, in the terms of CRI and cAdvisor.

use std::path::Path;

use super::error::CgroupError;
use super::file::{keyed, read_if_present, read_number};
use super::layout::Cgroups;
use super::path::CgroupPath;
use crate::lifecycle::usage::{DeviceUsage, HugePages, Pressure, Throttling, Usage};

/// At or beyond this a v1 limit is none: the kernel rounds "unlimited" down to whole pages.
const NO_LIMIT_BYTES: u64 = i64::MAX as u64 - 0xffff;

/// Where each number is, in one cgroup version: files first, then keys of `memory.stat`.
struct MemoryFiles {
    usage: &'static str,
    limit: &'static str,
    peak: &'static str,
    rss: &'static str,
    cache: &'static str,
    mapped: &'static str,
    inactive_file: &'static str,
    page_faults: &'static str,
    major_page_faults: &'static str,
}

/// v1 counts each level for itself; the `total_` keys are with all below.
const V1: MemoryFiles = MemoryFiles {
    usage: "memory.usage_in_bytes",
    limit: "memory.limit_in_bytes",
    peak: "memory.max_usage_in_bytes",
    rss: "total_rss",
    cache: "total_cache",
    mapped: "total_mapped_file",
    inactive_file: "total_inactive_file",
    page_faults: "total_pgfault",
    major_page_faults: "total_pgmajfault",
};

const V2: MemoryFiles = MemoryFiles {
    usage: "memory.current",
    limit: "memory.max",
    peak: "memory.peak",
    rss: "anon",
    cache: "file",
    mapped: "file_mapped",
    inactive_file: "inactive_file",
    page_faults: "pgfault",
    major_page_faults: "pgmajfault",
};

impl Cgroups {
    /// Reads what a cgroup uses now. A cgroup that is gone uses nothing that could be told: every
    /// field is `None`.
    ///
    /// # Errors
    ///
    /// When a file exists and cannot be read.
    pub fn stats(&self, path: &CgroupPath) -> Result<Usage, CgroupError> {
        let mut usage = Usage::default();
        match self.fill(path, &mut usage) {
            // It was removed while it was being read.
            Err(error) if error.is(libc::ENODEV) => Ok(Usage::default()),
            other => other.map(|()| usage),
        }
    }

    fn fill(&self, path: &CgroupPath, usage: &mut Usage) -> Result<(), CgroupError> {
        self.fill_cpu(path, usage)?;
        if let Some(dir) = self.v1_dir("memory", path) {
            fill_memory_v1(&dir, usage)?;
        } else if let Some(dir) = self.v2_dir("memory", path) {
            fill_memory_v2(&dir, usage)?;
        }
        let pids = self
            .v1_dir("pids", path)
            .or_else(|| self.v2_dir("pids", path));
        if let Some(dir) = pids {
            usage.threads = read_number(&dir, "pids.current")?;
            usage.threads_limit =
                read_number(&dir, "pids.max")?.filter(|limit| *limit < NO_LIMIT_BYTES);
        }
        if let Some(dir) = self.v1_dir("blkio", path) {
            usage.devices = devices_v1(&dir)?;
        } else if let Some(dir) = self.v2_dir("io", path) {
            let text = read_if_present(&dir, "io.stat")?.unwrap_or_default();
            usage.devices = devices_v2(&text);
        }
        if let Some(dir) = self.v1_dir("hugetlb", path) {
            usage.huge_pages = huge_pages(&dir, "usage_in_bytes", Some("max_usage_in_bytes"))?;
        } else if let Some(dir) = self.v2_dir("hugetlb", path) {
            usage.huge_pages = huge_pages(&dir, "current", None)?;
        }
        // Every v2 cgroup has these, also without a controller.
        if let Some(dir) = self.unified_dir(path) {
            let pressure = |name: &str| -> Result<Option<Pressure>, CgroupError> {
                match read_if_present(&dir, name) {
                    Ok(text) => Ok(text.as_deref().and_then(Pressure::parse)),
                    // The kernel has them and they are switched off (`psi=0`).
                    Err(error) if error.is(libc::EOPNOTSUPP) => Ok(None),
                    Err(error) => Err(error),
                }
            };
            usage.cpu_pressure = pressure("cpu.pressure")?;
            usage.memory_pressure = pressure("memory.pressure")?;
            usage.io_pressure = pressure("io.pressure")?;
        }
        Ok(())
    }

    fn fill_cpu(&self, path: &CgroupPath, usage: &mut Usage) -> Result<(), CgroupError> {
        let (times, limits) = (self.v1_dir("cpuacct", path), self.v1_dir("cpu", path));
        let unified = match self.unified_dir(path) {
            Some(dir) if times.is_none() || limits.is_none() => {
                read_if_present(&dir, "cpu.stat")?.unwrap_or_default()
            }
            _ => String::new(),
        };
        let ns = |key: &str| keyed(&unified, key).map(|us| us.saturating_mul(1000));
        if let Some(dir) = times {
            usage.cpu_usage_ns = read_number(&dir, "cpuacct.usage")?;
            usage.cpu_user_ns = read_number(&dir, "cpuacct.usage_user")?;
            usage.cpu_system_ns = read_number(&dir, "cpuacct.usage_sys")?;
        } else {
            // Every v2 cgroup counts CPU time, also without the controller.
            usage.cpu_usage_ns = ns("usage_usec");
            usage.cpu_user_ns = ns("user_usec");
            usage.cpu_system_ns = ns("system_usec");
        }
        if let Some(dir) = limits {
            let text = read_if_present(&dir, "cpu.stat")?.unwrap_or_default();
            usage.throttling = throttling(&text, keyed(&text, "throttled_time"));
        } else {
            usage.throttling = throttling(&unified, ns("throttled_usec"));
        }
        Ok(())
    }
}

fn throttling(text: &str, throttled_ns: Option<u64>) -> Option<Throttling> {
    Some(Throttling {
        periods: keyed(text, "nr_periods")?,
        throttled_periods: keyed(text, "nr_throttled")?,
        throttled_ns: throttled_ns?,
    })
}

fn fill_memory_v1(dir: &Path, usage: &mut Usage) -> Result<(), CgroupError> {
    let text = fill_memory(dir, &V1, usage)?;
    usage.swap_usage_bytes = keyed(&text, "total_swap");
    usage.memory_kernel_bytes = read_number(dir, "memory.kmem.usage_in_bytes")?;
    usage.memory_limit_hits = read_number(dir, "memory.failcnt")?;
    let control = read_if_present(dir, "memory.oom_control")?.unwrap_or_default();
    usage.oom_kills = keyed(&control, "oom_kill");
    Ok(())
}

fn fill_memory_v2(dir: &Path, usage: &mut Usage) -> Result<(), CgroupError> {
    let text = fill_memory(dir, &V2, usage)?;
    usage.swap_usage_bytes = read_number(dir, "memory.swap.current")?;
    usage.memory_kernel_bytes = keyed(&text, "kernel");
    let events = read_if_present(dir, "memory.events")?.unwrap_or_default();
    usage.memory_limit_hits = keyed(&events, "max");
    usage.oom_kills = keyed(&events, "oom_kill");
    Ok(())
}

/// Returns the text of `memory.stat`.
fn fill_memory(dir: &Path, files: &MemoryFiles, usage: &mut Usage) -> Result<String, CgroupError> {
    let now = read_number(dir, files.usage)?;
    let text = read_if_present(dir, "memory.stat")?.unwrap_or_default();
    let inactive = keyed(&text, files.inactive_file).unwrap_or_default();
    usage.memory_usage_bytes = now;
    usage.memory_working_set_bytes = now.map(|now| now.saturating_sub(inactive));
    usage.memory_rss_bytes = keyed(&text, files.rss);
    usage.memory_cache_bytes = keyed(&text, files.cache);
    usage.memory_mapped_bytes = keyed(&text, files.mapped);
    usage.memory_peak_bytes = read_number(dir, files.peak)?;
    usage.page_faults = keyed(&text, files.page_faults);
    usage.major_page_faults = keyed(&text, files.major_page_faults);
    usage.memory_limit_bytes =
        read_number(dir, files.limit)?.filter(|limit| *limit < NO_LIMIT_BYTES);
    usage.memory_available_bytes = usage
        .memory_limit_bytes
        .zip(usage.memory_working_set_bytes)
        .map(|(limit, used)| limit.saturating_sub(used));
    Ok(text)
}

/// The figures of one device among those seen so far.
fn device<'a>(devices: &'a mut Vec<DeviceUsage>, numbers: &str) -> Option<&'a mut DeviceUsage> {
    let (major, minor) = numbers.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    let same = |device: &DeviceUsage| (device.major, device.minor) == (major, minor);
    let at = match devices.iter().position(same) {
        Some(at) => at,
        None => {
            devices.push(DeviceUsage {
                major,
                minor,
                name: device_name(numbers),
                ..DeviceUsage::default()
            });
            devices.len() - 1
        }
    };
    devices.get_mut(at)
}

/// sysfs links the numbers of a block device to its directory, which is named after it.
fn device_name(numbers: &str) -> String {
    let link = std::fs::read_link(Path::new("/sys/dev/block").join(numbers));
    let name = link.ok().and_then(|target| {
        let name = target.file_name()?.to_str()?;
        Some(format!("/dev/{name}"))
    });
    name.unwrap_or_default()
}

/// Lines of `MAJOR:MINOR OPERATION NUMBER`, in one file for bytes and one for operations. The
/// recursive files came with Linux 3.17 and are not in every build.
fn devices_v1(dir: &Path) -> Result<Vec<DeviceUsage>, CgroupError> {
    let mut devices = Vec::new();
    let mut read = |name: &str, add: fn(&mut DeviceUsage, bool, u64)| {
        let text = match read_if_present(dir, &format!("{name}_recursive"))? {
            Some(text) => text,
            None => read_if_present(dir, name)?.unwrap_or_default(),
        };
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(numbers), Some(operation), Some(value)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let is_read = operation == "Read";
            if let Ok(value) = value.parse()
                && (is_read || operation == "Write")
                && let Some(device) = device(&mut devices, numbers)
            {
                add(device, is_read, value);
            }
        }
        Ok::<_, CgroupError>(())
    };
    read(
        "blkio.throttle.io_service_bytes",
        |device, is_read, value| match is_read {
            true => device.read_bytes = value,
            false => device.written_bytes = value,
        },
    )?;
    read(
        "blkio.throttle.io_serviced",
        |device, is_read, value| match is_read {
            true => device.reads = value,
            false => device.writes = value,
        },
    )?;
    Ok(devices)
}

/// Lines of `MAJOR:MINOR rbytes=… wbytes=… rios=… wios=…`.
fn devices_v2(text: &str) -> Vec<DeviceUsage> {
    let mut devices = Vec::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let Some(device) = words
            .next()
            .and_then(|numbers| device(&mut devices, numbers))
        else {
            continue;
        };
        for (key, value) in words.filter_map(|pair| pair.split_once('=')) {
            let value = value.parse().unwrap_or_default();
            match key {
                "rbytes" => device.read_bytes = value,
                "wbytes" => device.written_bytes = value,
                "rios" => device.reads = value,
                "wios" => device.writes = value,
                _ => {}
            }
        }
    }
    devices
}

/// Files `hugetlb.SIZE.KIND`, one for each size that the kernel has.
fn huge_pages(dir: &Path, usage: &str, peak: Option<&str>) -> Result<Vec<HugePages>, CgroupError> {
    let mut sizes = Vec::new();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        // The cgroup is gone.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(sizes),
        Err(error) => return Err(CgroupError::file("list", dir)(error)),
    };
    for name in entries.flatten().map(|entry| entry.file_name()) {
        let name = name.to_string_lossy();
        let size = name
            .strip_prefix("hugetlb.")
            .and_then(|rest| rest.strip_suffix(usage)?.strip_suffix('.'))
            .filter(|size| !size.contains('.'));
        let Some(size) = size else { continue };
        let peak = match peak {
            Some(peak) => read_number(dir, &format!("hugetlb.{size}.{peak}"))?,
            None => None,
        };
        sizes.push(HugePages {
            size: size.to_owned(),
            usage_bytes: read_number(dir, &name)?.unwrap_or_default(),
            peak_bytes: peak,
        });
    }
    sizes.sort_by(|a, b| a.size.cmp(&b.size));
    Ok(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_v2_are_read_as_the_kernel_writes_them() {
        let devices = devices_v2(
            "999:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n998:16 \nodd\n",
        );
        let figures: Vec<_> = devices
            .iter()
            .map(|d| {
                (
                    d.major,
                    d.minor,
                    d.read_bytes,
                    d.written_bytes,
                    d.reads,
                    d.writes,
                )
            })
            .collect();
        assert_eq!(figures, [(999, 0, 4096, 8192, 1, 2), (998, 16, 0, 0, 0, 0)]);
    }

    #[test]
    fn devices_of_v1_come_from_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            "blkio.throttle.io_service_bytes",
            "999:0 Read 10\n999:0 Write 20\n999:0 Sync 30\n999:0 Total 30\nTotal 30\n",
        );
        write(
            "blkio.throttle.io_serviced_recursive",
            "999:0 Read 1\n999:0 Write 2\nTotal 3\n",
        );
        let devices = devices_v1(dir.path()).unwrap();
        let [device] = devices.as_slice() else {
            panic!("{devices:?}");
        };
        assert_eq!(
            (
                device.read_bytes,
                device.written_bytes,
                device.reads,
                device.writes
            ),
            (10, 20, 1, 2)
        );
    }

    #[test]
    fn huge_pages_are_told_by_size() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("hugetlb.2MB.current", "4194304"),
            ("hugetlb.2MB.rsvd.current", "7"),
            ("hugetlb.1GB.current", "0"),
            ("memory.current", "9"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let pages = huge_pages(dir.path(), "current", None).unwrap();
        let pages: Vec<_> = pages
            .iter()
            .map(|p| (p.size.as_str(), p.usage_bytes))
            .collect();
        assert_eq!(pages, [("1GB", 0), ("2MB", 4 << 20)]);
    }
}
