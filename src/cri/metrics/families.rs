//! The metrics by name: what each is read from. Times are whole seconds, as the interface has whole
//! numbers only.

use super::{Family, Interface, OfContainer, PodSample, Values, counter, gauge};
use crate::lifecycle::usage::{DeviceUsage, Pressure, Throttling};

const NS_PER_S: u64 = 1_000_000_000;
const US_PER_S: u64 = 1_000_000;
/// What the kernel gives a cgroup that asks for no other share and period.
const DEFAULT_SHARES: u64 = 1024;
const DEFAULT_PERIOD_US: u64 = 100_000;

const DEVICE: &[&str] = &["device"];
const INTERFACE: &[&str] = &["interface"];
const NONE: &[&str] = &[];

/// A limit as it was asked for; what is not set has `default`.
fn limit(value: i64, default: u64) -> Option<u64> {
    Some(
        u64::try_from(value)
            .ok()
            .filter(|v| *v > 0)
            .unwrap_or(default),
    )
}

fn throttling(of: &OfContainer, pick: fn(Throttling) -> u64) -> Option<u64> {
    of.sample.usage.throttling.map(pick)
}

fn seconds(ns: Option<u64>) -> Option<u64> {
    ns.map(|ns| ns / NS_PER_S)
}

fn total_cpu(ns: Option<u64>, values: &mut Values) {
    if let Some(seconds) = seconds(ns) {
        values.put(&["total"], seconds);
    }
}

fn waiting(pressure: Option<Pressure>) -> Option<u64> {
    pressure.map(|pressure| pressure.some.total_us / US_PER_S)
}

fn stalled(pressure: Option<Pressure>) -> Option<u64> {
    pressure.map(|pressure| pressure.full.total_us / US_PER_S)
}

fn devices(of: &OfContainer, values: &mut Values, pick: fn(&DeviceUsage) -> u64) {
    for device in &of.sample.usage.devices {
        values.put(&[&device.name], pick(device));
    }
}

fn interfaces(of: &PodSample, values: &mut Values, pick: fn(&Interface) -> u64) {
    for interface in &of.interfaces {
        values.put(&[&interface.name], pick(interface));
    }
}

fn blkio(of: &OfContainer, values: &mut Values) {
    for device in &of.sample.usage.devices {
        let (major, minor) = (device.major.to_string(), device.minor.to_string());
        for (operation, bytes) in [("Read", device.read_bytes), ("Write", device.written_bytes)] {
            values.put(&[&device.name, &major, &minor, operation], bytes);
        }
    }
}

fn failures(of: &OfContainer, values: &mut Values) {
    let usage = &of.sample.usage;
    let faults = [
        ("pgfault", usage.page_faults),
        ("pgmajfault", usage.major_page_faults),
    ];
    for (kind, count) in faults {
        // A container's cgroup has none below it that is not the container's.
        for scope in ["container", "hierarchy"] {
            if let Some(count) = count {
                values.put(&[kind, scope], count);
            }
        }
    }
}

fn huge_pages(of: &OfContainer, values: &mut Values) {
    for pages in &of.sample.usage.huge_pages {
        values.put(&[&pages.size], pages.usage_bytes);
    }
}

fn huge_pages_peak(of: &OfContainer, values: &mut Values) {
    for pages in &of.sample.usage.huge_pages {
        if let Some(peak) = pages.peak_bytes {
            values.put(&[&pages.size], peak);
        }
    }
}

fn open_files_limit(of: &OfContainer, values: &mut Values) {
    if let Some(limit) = of.sample.processes.descriptors_limit {
        values.put(&["max_open_files"], limit);
    }
}

/// `memory.low` and what v1 calls a soft limit; 0 is none.
fn reservation(of: &OfContainer) -> Option<u64> {
    let low = of.spec.resources.unified.get("memory.low");
    Some(low.and_then(|bytes| bytes.parse().ok()).unwrap_or(0))
}

/// What is told of a container.
pub(super) const OF_CONTAINERS: &[Family<OfContainer>] = &[
    counter(
        "container_blkio_device_usage_total",
        "Bytes read from and written to each block device",
        &["device", "major", "minor", "operation"],
        blkio,
    ),
    counter(
        "container_cpu_cfs_periods_total",
        "Periods of the CPU quota in which it ran",
        NONE,
        |of, v| v.one(throttling(of, |t| t.periods)),
    ),
    counter(
        "container_cpu_cfs_throttled_periods_total",
        "Periods of the CPU quota in which it had to wait",
        NONE,
        |of, v| v.one(throttling(of, |t| t.throttled_periods)),
    ),
    counter(
        "container_cpu_cfs_throttled_seconds_total",
        "Time it waited for want of CPU quota",
        NONE,
        |of, v| v.one(throttling(of, |t| t.throttled_ns / NS_PER_S)),
    ),
    counter(
        "container_cpu_system_seconds_total",
        "CPU time spent in the kernel",
        NONE,
        |of, v| v.one(seconds(of.sample.usage.cpu_system_ns)),
    ),
    counter(
        "container_cpu_usage_seconds_total",
        "CPU time used",
        &["cpu"],
        |of, v| total_cpu(of.sample.usage.cpu_usage_ns, v),
    ),
    counter(
        "container_cpu_user_seconds_total",
        "CPU time spent in programs",
        NONE,
        |of, v| v.one(seconds(of.sample.usage.cpu_user_ns)),
    ),
    gauge(
        "container_file_descriptors",
        "Open file descriptors",
        NONE,
        |of, v| v.one(Some(of.sample.processes.descriptors)),
    ),
    gauge(
        "container_fs_inodes_free",
        "Free inodes of the file system that its writable layer is on",
        NONE,
        |of, v| v.one(Some(of.file_system.free_inodes)),
    ),
    gauge(
        "container_fs_inodes_total",
        "Inodes of the file system that its writable layer is on",
        NONE,
        |of, v| v.one(Some(of.file_system.inodes)),
    ),
    gauge(
        "container_fs_limit_bytes",
        "Size of the file system that its writable layer is on",
        NONE,
        |of, v| v.one(Some(of.file_system.bytes)),
    ),
    counter(
        "container_fs_reads_bytes_total",
        "Bytes read",
        DEVICE,
        |of, v| devices(of, v, |d| d.read_bytes),
    ),
    counter(
        "container_fs_reads_total",
        "Reads completed",
        DEVICE,
        |of, v| devices(of, v, |d| d.reads),
    ),
    gauge(
        "container_fs_usage_bytes",
        "Bytes that its writable layer takes; 0 until it is first measured",
        NONE,
        |of, v| v.one(Some(of.layer.map_or(0, |layer| layer.bytes))),
    ),
    counter(
        "container_fs_writes_bytes_total",
        "Bytes written",
        DEVICE,
        |of, v| devices(of, v, |d| d.written_bytes),
    ),
    counter(
        "container_fs_writes_total",
        "Writes completed",
        DEVICE,
        |of, v| devices(of, v, |d| d.writes),
    ),
    gauge(
        "container_hugetlb_max_usage_bytes",
        "Most memory in huge pages that it ever used",
        &["pagesize"],
        huge_pages_peak,
    ),
    gauge(
        "container_hugetlb_usage_bytes",
        "Memory in huge pages",
        &["pagesize"],
        huge_pages,
    ),
    gauge(
        "container_last_seen",
        "When it was last measured, seconds since 1970",
        NONE,
        |of, v| v.one(seconds(u64::try_from(of.sample.at).ok())),
    ),
    gauge(
        "container_memory_cache",
        "Page cache, bytes",
        NONE,
        |of, v| v.one(of.sample.usage.memory_cache_bytes),
    ),
    counter(
        "container_memory_failcnt",
        "Times that it came to its memory limit",
        NONE,
        |of, v| v.one(Some(of.sample.usage.memory_limit_hits.unwrap_or(0))),
    ),
    counter(
        "container_memory_failures_total",
        "Page faults",
        &["failure_type", "scope"],
        failures,
    ),
    gauge(
        "container_memory_kernel_usage",
        "Memory of the kernel for it, bytes",
        NONE,
        |of, v| v.one(Some(of.sample.usage.memory_kernel_bytes.unwrap_or(0))),
    ),
    gauge(
        "container_memory_mapped_file",
        "Files mapped into memory, bytes",
        NONE,
        |of, v| v.one(of.sample.usage.memory_mapped_bytes),
    ),
    gauge(
        "container_memory_max_usage_bytes",
        "Most memory that it ever used",
        NONE,
        |of, v| v.one(Some(of.sample.usage.memory_peak_bytes.unwrap_or(0))),
    ),
    gauge(
        "container_memory_rss",
        "Anonymous memory, bytes",
        NONE,
        |of, v| v.one(of.sample.usage.memory_rss_bytes),
    ),
    gauge(
        "container_memory_swap",
        "Swap in use, bytes; 0 also where the kernel does not count it",
        NONE,
        |of, v| v.one(Some(of.sample.usage.swap_usage_bytes.unwrap_or(0))),
    ),
    gauge(
        "container_memory_usage_bytes",
        "Memory in use, with the page cache",
        NONE,
        |of, v| v.one(of.sample.usage.memory_usage_bytes),
    ),
    gauge(
        "container_memory_working_set_bytes",
        "Memory in use less what can be dropped easily",
        NONE,
        |of, v| v.one(of.sample.usage.memory_working_set_bytes),
    ),
    counter(
        "container_oom_events_total",
        "Processes killed for want of memory",
        NONE,
        |of, v| v.one(Some(of.sample.usage.oom_kills.unwrap_or(0))),
    ),
    counter(
        "container_pressure_cpu_stalled_seconds_total",
        "Time in which all of its processes waited for CPU",
        NONE,
        |of, v| v.one(stalled(of.sample.usage.cpu_pressure)),
    ),
    counter(
        "container_pressure_cpu_waiting_seconds_total",
        "Time in which some of its processes waited for CPU",
        NONE,
        |of, v| v.one(waiting(of.sample.usage.cpu_pressure)),
    ),
    counter(
        "container_pressure_io_stalled_seconds_total",
        "Time in which all of its processes waited for devices",
        NONE,
        |of, v| v.one(stalled(of.sample.usage.io_pressure)),
    ),
    counter(
        "container_pressure_io_waiting_seconds_total",
        "Time in which some of its processes waited for devices",
        NONE,
        |of, v| v.one(waiting(of.sample.usage.io_pressure)),
    ),
    counter(
        "container_pressure_memory_stalled_seconds_total",
        "Time in which all of its processes waited for memory",
        NONE,
        |of, v| v.one(stalled(of.sample.usage.memory_pressure)),
    ),
    counter(
        "container_pressure_memory_waiting_seconds_total",
        "Time in which some of its processes waited for memory",
        NONE,
        |of, v| v.one(waiting(of.sample.usage.memory_pressure)),
    ),
    gauge("container_processes", "Processes", NONE, |of, v| {
        v.one(Some(of.sample.processes.count))
    }),
    gauge("container_sockets", "Open sockets", NONE, |of, v| {
        v.one(Some(of.sample.processes.sockets))
    }),
    gauge(
        "container_spec_cpu_period",
        "Period of its CPU quota, µs",
        NONE,
        |of, v| v.one(limit(of.spec.resources.cpu_period_us, DEFAULT_PERIOD_US)),
    ),
    gauge(
        "container_spec_cpu_quota",
        "Its CPU quota in each period, µs",
        NONE,
        |of, v| v.one(limit(of.spec.resources.cpu_quota_us, 0).filter(|us| *us > 0)),
    ),
    gauge(
        "container_spec_cpu_shares",
        "Its share of the CPU",
        NONE,
        |of, v| v.one(limit(of.spec.resources.cpu_shares, DEFAULT_SHARES)),
    ),
    gauge(
        "container_spec_memory_limit_bytes",
        "Its memory limit; 0 is none",
        NONE,
        |of, v| v.one(limit(of.spec.resources.memory_limit_bytes, 0)),
    ),
    gauge(
        "container_spec_memory_reservation_limit_bytes",
        "Its memory reservation; the interface has none but in cgroup v2 terms",
        NONE,
        |of, v| v.one(reservation(of)),
    ),
    gauge(
        "container_spec_memory_swap_limit_bytes",
        "Its limit of memory and swap together; 0 is none",
        NONE,
        |of, v| v.one(limit(of.spec.resources.memory_swap_limit_bytes, 0)),
    ),
    gauge(
        "container_start_time_seconds",
        "When it was started, seconds since 1970",
        NONE,
        |of, v| v.one(seconds(of.started_at.and_then(|at| u64::try_from(at).ok()))),
    ),
    gauge("container_threads", "Threads", NONE, |of, v| {
        v.one(of.sample.usage.threads)
    }),
    gauge(
        "container_threads_max",
        "How many threads it may have; 0 is no limit",
        NONE,
        |of, v| v.one(Some(of.sample.usage.threads_limit.unwrap_or(0))),
    ),
    gauge(
        "container_ulimits_soft",
        "Soft limits of its first process",
        &["ulimit"],
        open_files_limit,
    ),
];

/// What is told of a pod.
pub(super) const OF_PODS: &[Family<PodSample>] = &[
    counter(
        "container_network_receive_bytes_total",
        "Bytes received",
        INTERFACE,
        |of, v| interfaces(of, v, |i| i.received.bytes),
    ),
    counter(
        "container_network_receive_errors_total",
        "Packets with errors received",
        INTERFACE,
        |of, v| interfaces(of, v, |i| i.received.errors),
    ),
    counter(
        "container_network_receive_packets_dropped_total",
        "Packets dropped received",
        INTERFACE,
        |of, v| interfaces(of, v, |i| i.received.dropped),
    ),
    counter(
        "container_network_receive_packets_total",
        "Packets received",
        INTERFACE,
        |of, v| interfaces(of, v, |i| i.received.packets),
    ),
    counter(
        "container_network_transmit_bytes_total",
        "Bytes sent",
        INTERFACE,
        |of, v| interfaces(of, v, |i| i.sent.bytes),
    ),
    counter(
        "container_network_transmit_errors_total",
        "Packets with errors sent",
        INTERFACE,
        |of, v| interfaces(of, v, |i| i.sent.errors),
    ),
    counter(
        "container_network_transmit_packets_dropped_total",
        "Packets dropped sent",
        INTERFACE,
        |of, v| interfaces(of, v, |i| i.sent.dropped),
    ),
    counter(
        "container_network_transmit_packets_total",
        "Packets sent",
        INTERFACE,
        |of, v| interfaces(of, v, |i| i.sent.packets),
    ),
];
