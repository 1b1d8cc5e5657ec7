//! What containers and pods use of their node, in the terms of CRI and cAdvisor.

/// Use of resources by a cgroup and all below it. What the kernel does not count is `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// CPU time, ns.
    pub cpu_usage_ns: Option<u64>,
    /// CPU time spent in programs, ns.
    pub cpu_user_ns: Option<u64>,
    /// CPU time spent in the kernel, ns.
    pub cpu_system_ns: Option<u64>,
    /// How often and how long a CPU quota has held it up.
    pub throttling: Option<Throttling>,
    /// Memory in use, with the page cache, bytes.
    pub memory_usage_bytes: Option<u64>,
    /// Memory in use less the inactive page cache, which is what kubelet evicts by, bytes.
    pub memory_working_set_bytes: Option<u64>,
    /// Anonymous memory, bytes.
    pub memory_rss_bytes: Option<u64>,
    /// Page cache, bytes.
    pub memory_cache_bytes: Option<u64>,
    /// Files mapped into memory, bytes.
    pub memory_mapped_bytes: Option<u64>,
    /// Memory of the kernel for it, bytes.
    pub memory_kernel_bytes: Option<u64>,
    /// The most memory it has ever used, bytes.
    pub memory_peak_bytes: Option<u64>,
    /// How often it has come to its memory limit.
    pub memory_limit_hits: Option<u64>,
    /// Limit less working set; `None` when there is no limit, bytes.
    pub memory_available_bytes: Option<u64>,
    /// Memory limit; `None` when there is none, bytes.
    pub memory_limit_bytes: Option<u64>,
    /// Page faults, minor and major.
    pub page_faults: Option<u64>,
    /// Page faults that waited for a device.
    pub major_page_faults: Option<u64>,
    /// Processes that the kernel killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Swap in use, bytes.
    pub swap_usage_bytes: Option<u64>,
    /// Processes and threads.
    pub threads: Option<u64>,
    /// How many of them it may have; `None` when there is no limit.
    pub threads_limit: Option<u64>,
    /// Huge pages, by size.
    pub huge_pages: Vec<HugePages>,
    /// Input and output, by block device.
    pub devices: Vec<DeviceUsage>,
    /// Time lost for want of CPU.
    pub cpu_pressure: Option<Pressure>,
    /// Time lost for want of memory.
    pub memory_pressure: Option<Pressure>,
    /// Time lost waiting for devices.
    pub io_pressure: Option<Pressure>,
}

/// What a CPU quota did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttling {
    /// Periods in which it ran.
    pub periods: u64,
    /// Those in which it had to wait for the next.
    pub throttled_periods: u64,
    /// How long it waited, ns.
    pub throttled_ns: u64,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HugePages {
    /// As the kernel writes it: `2MB`.
    pub size: String,
    /// In use, bytes.
    pub usage_bytes: u64,
    /// The most that ever was, bytes.
    pub peak_bytes: Option<u64>,
}

/// Input and output at one block device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceUsage {
    /// Its numbers.
    pub major: u32,
    /// The second one.
    pub minor: u32,
    /// `/dev/vda`; empty when the kernel has no name for it.
    pub name: String,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// Pressure stall information (Linux, `Documentation/accounting/psi.rst`).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Some of its processes waited.
    pub some: Stall,
    /// All of them did at once.
    pub full: Stall,
}

/// One line of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Time lost, µs.
    pub total_us: u64,
    /// Share of the last 10 s, per cent.
    pub avg10: f64,
    /// Share of the last minute.
    pub avg60: f64,
    /// Share of the last five minutes.
    pub avg300: f64,
}

impl Pressure {
    /// Reads a `*.pressure` file: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and `full`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let line = |name: &str| {
            let line = text
                .lines()
                .find(|line| line.split(' ').next() == Some(name))?;
            let mut stall = Stall::default();
            for pair in line.split(' ').skip(1) {
                let (key, value) = pair.split_once('=')?;
                match key {
                    "total" => stall.total_us = value.parse().ok()?,
                    "avg10" => stall.avg10 = value.parse().ok()?,
                    "avg60" => stall.avg60 = value.parse().ok()?,
                    "avg300" => stall.avg300 = value.parse().ok()?,
                    _ => {}
                }
            }
            Some(stall)
        };
        // Kernels before 5.13 have no `full` for the CPU.
        line("some").map(|some| Self {
            some,
            full: line("full").unwrap_or_default(),
        })
    }
}

/// Traffic of one network interface, counted from the pod's side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// `eth0`.
    pub name: String,
    /// What came in.
    pub received: Traffic,
    /// What went out.
    pub sent: Traffic,
}

/// One direction of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets with errors.
    pub errors: u64,
    /// Packets dropped.
    pub dropped: u64,
}

/// The interface that a pod has its addresses on, whatever others the kernel or a plugin adds.
pub const POD_INTERFACE: &str = "eth0";

impl Interface {
    /// Reads `/proc/PID/net/dev` (proc_pid_net(5)); the loopback interface is left out, as in
    /// cAdvisor.
    #[must_use]
    pub fn parse_all(text: &str) -> Vec<Self> {
        let parse = |line: &str| {
            let (name, figures) = line.split_once(':')?;
            let name = name.trim();
            let figures: Vec<u64> = figures
                .split_ascii_whitespace()
                .map(|figure| figure.parse().ok())
                .collect::<Option<_>>()?;
            let side = |at: usize| {
                Some(Traffic {
                    bytes: *figures.get(at)?,
                    packets: *figures.get(at + 1)?,
                    errors: *figures.get(at + 2)?,
                    dropped: *figures.get(at + 3)?,
                })
            };
            (name != "lo").then_some(())?;
            Some(Self {
                name: name.to_owned(),
                received: side(0)?,
                sent: side(8)?,
            })
        };
        text.lines().skip(2).filter_map(parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_as_the_kernel_writes_it() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.05 total=123456\n\
                    full avg10=0.50 avg60=0.00 avg300=0.00 total=99\n";
        let pressure = Pressure::parse(text).unwrap();
        assert_eq!(
            (pressure.some.total_us, pressure.full.total_us),
            (123_456, 99)
        );
        assert_eq!((pressure.some.avg10, pressure.some.avg300), (1.5, 0.05));
        let old = "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        assert_eq!(Pressure::parse(old).unwrap().full, Stall::default());
        for bad in ["", "some total=x\n", "none\n"] {
            assert_eq!(Pressure::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn interfaces_are_read_as_the_kernel_writes_them() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs \
            drop fifo colls carrier compressed\n    \
            lo:       1       1    0    0    0     0          0         0        1       1    0    \
            0    0     0       0          0\n  \
            eth0:  1296    16    1    2    0     0          0         0     796      10    3    \
            4    0     0       0          0\n odd\n";
        let interfaces = Interface::parse_all(text);
        let [eth0] = interfaces.as_slice() else {
            panic!("{interfaces:?}");
        };
        assert_eq!(eth0.name, "eth0");
        let traffic = |bytes, packets, errors, dropped| Traffic {
            bytes,
            packets,
            errors,
            dropped,
        };
        assert_eq!(eth0.received, traffic(1296, 16, 1, 2));
        assert_eq!(eth0.sent, traffic(796, 10, 3, 4));
    }
}
