//! The names one test's daemon owns: no two daemons on a machine share one.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// Everything a daemon makes outside its directory carries one of these.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    /// Holds the root, the state, the socket, the logs.
    pub(crate) dir: PathBuf,
    /// At most 15 bytes, as the kernel wants.
    pub(crate) bridge: String,
    /// The first three bytes of a /24.
    pub(crate) subnet: [u8; 3],
    /// Below the root of every cgroup hierarchy.
    pub(crate) cgroup_root: String,
}

impl Names {
    /// Names that nobody uses now.
    pub(crate) fn unused(dir: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let pid = process::id();
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            // Neighbouring pids land far apart, so that test processes side by side do not meet.
            let hash = pid
                .wrapping_mul(0x9E37_79B1)
                .wrapping_add(count.wrapping_mul(0x85EB_CA77));
            let place = (hash >> 8) % (120 * 256);
            let subnet = [10, 100 + (place / 256) as u8, (place % 256) as u8];
            let bridge = format!("qlt{hash:08x}");
            if is_routed(subnet) || Path::new("/sys/class/net").join(&bridge).exists() {
                continue;
            }
            let cgroup_root = match by_systemd() {
                true => format!("/qlte2e{pid}n{count}.slice"),
                false => format!("/qlt-e2e-{pid}-{count}"),
            };
            return Self {
                dir: dir.to_owned(),
                bridge,
                subnet,
                cgroup_root,
            };
        }
    }

    /// The same daemon's, with systemd to make its cgroups.
    pub(crate) fn in_slices(mut self) -> Self {
        let name = self.cgroup_root.trim_end_matches(".slice").replace('-', "");
        self.cgroup_root = format!("{name}.slice");
        self
    }

    /// Whether systemd makes its cgroups.
    pub(crate) fn is_in_slices(&self) -> bool {
        self.cgroup_root.ends_with(".slice")
    }

    /// What kubelet would name as the parent of a pod, if this daemon's root were its own.
    pub(crate) fn pod_parent(&self, uid: &str) -> String {
        let root = &self.cgroup_root;
        match root.strip_suffix(".slice") {
            Some(stem) => {
                let stem = stem.trim_start_matches('/');
                format!("{root}/{stem}-pod{}.slice", uid.replace('-', "_"))
            }
            None => format!("{root}/pod{uid}"),
        }
    }

    /// A parent that kubelet has sent to a runtime with the cgroupfs driver, below this daemon's
    /// root; under the systemd driver in the words that it has then.
    pub(crate) fn recorded_parent(&self, path: &str) -> String {
        let root = &self.cgroup_root;
        let Some(stem) = root.strip_suffix(".slice") else {
            return format!("{root}{path}");
        };
        let parts = path.split('/').filter(|part| !part.is_empty());
        let mut name = stem.trim_start_matches('/').to_owned();
        let mut expanded = root.clone();
        for part in parts {
            name = format!("{name}-{}", part.replace('-', "_"));
            expanded = format!("{expanded}/{name}.slice");
        }
        expanded
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("cri.sock")
    }

    /// As `--listen` and crictl want it.
    pub(crate) fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// In CIDR form.
    pub(crate) fn subnet(&self) -> String {
        let [a, b, c] = self.subnet;
        format!("{a}.{b}.{c}.0/24")
    }

    /// Whether an address belongs to this daemon's pods.
    pub(crate) fn contains(&self, address: Ipv4Addr) -> bool {
        address.octets()[..3] == self.subnet
    }
}

/// Whether all tests are to be run with systemd to make the cgroups (`hack/vm.sh systemd`).
fn by_systemd() -> bool {
    std::env::var_os("QUILT_CGROUPS").is_some_and(|driver| driver == "systemd")
}

/// Whether a route to this /24, or through it, exists (proc(5), `/proc/net/route`: the destination
/// is the address as a native integer in hexadecimal).
fn is_routed(subnet: [u8; 3]) -> bool {
    let [a, b, c] = subnet;
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    routes.lines().skip(1).any(|line| {
        let field = |index| {
            let text = line.split_whitespace().nth(index).unwrap_or_default();
            u32::from_str_radix(text, 16).unwrap_or_default()
        };
        let (destination, mask) = (field(1), field(7));
        mask != 0 && u32::from_ne_bytes([a, b, c, 0]) & mask == destination
    })
}
