//! The driver on a real kernel. Each test is a node of its own: a thread with its own network and
//! mount namespaces, so that nothing is left on the machine whatever happens.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use super::link::{change, create, find, indexed, named, set_up};
use super::netlink::Socket;
use super::pod::{in_namespace, open_netns};
use super::*;

mod bridge;
mod namespace;
mod pod;
mod rules;
mod timing;

const ALIAS: &str = "quilt:test:pod";
const BRIDGE_ALIAS: &str = "quilt:test";

/// Runs a test on a node of its own, with a directory for its state on a tmpfs.
pub(super) fn on_a_node(test: impl FnOnce(&Path) + Send) {
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let node = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            mount_change(
                "/",
                MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
            )
            .unwrap();
            mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), None).unwrap();
            let mut lo = named("lo");
            set_up(&mut lo);
            Socket::open().unwrap().one(change(lo)).unwrap();
            test(dir.path());
        });
        if let Err(panic) = node.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn namespaces(dir: &Path) -> NamespaceSpec<'_> {
    NamespaceSpec {
        dir,
        net: true,
        ipc: true,
        hostname: Some("pod-a"),
        sysctls: &[],
        users: None,
    }
}

fn bridge() -> BridgeSpec<'static> {
    let gateway = Ipv4Net::new_assert(Ipv4Addr::new(10, 88, 0, 1), 16);
    BridgeSpec {
        name: "qlt-nbr",
        gateway,
        others: &[],
        mtu: 1500,
        alias: BRIDGE_ALIAS,
    }
}

fn address(last: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 88, 0, last), 16)
}

fn pod_link<'a>(netns: &'a Path, host_name: &'a str, last: u8) -> PodLinkSpec<'a> {
    PodLinkSpec {
        netns,
        host_name,
        pod_name: "eth0",
        bridge: "qlt-nbr",
        address: address(last),
        gateway: Ipv4Addr::new(10, 88, 0, 1),
        ipv6: None,
        mtu: 1500,
        alias: ALIAS,
        sysctls: &[],
    }
}

/// Pins a pod's namespaces below `dir` and returns its network namespace.
fn pin(dir: &Path, name: &str) -> PathBuf {
    let dir = dir.join(name);
    ensure_namespaces(&namespaces(&dir)).unwrap();
    dir.join("net")
}

/// Runs `work` in a pinned namespace.
fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    in_namespace(&open_netns(netns).unwrap(), || Ok(work())).unwrap()
}

/// Connects from one network namespace to an address of another, and says how many segments either
/// had to send again: a first packet that is lost costs a pod a second.
fn talk(from: &Path, to: &Path, address: IpAddr) -> u64 {
    let before = sent_again(from) + sent_again(to);
    let listener = inside(to, || {
        TcpListener::bind(SocketAddr::new(address, 0)).unwrap()
    });
    let target = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hello").unwrap();
    });
    inside(from, || {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(20)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    });
    server.join().unwrap();
    sent_again(from) + sent_again(to) - before
}

/// `RetransSegs` of RFC 4022 in a network namespace.
fn sent_again(netns: &Path) -> u64 {
    let counters = inside(netns, || {
        fs::read_to_string("/proc/thread-self/net/snmp").unwrap()
    });
    let mut tcp = counters.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (tcp.next().unwrap(), tcp.next().unwrap());
    let mut both = names.split(' ').zip(values.split(' '));
    let (_, count) = both.find(|(name, _)| *name == "RetransSegs").unwrap();
    count.parse().unwrap()
}

fn node_netns() -> PathBuf {
    // The thread's own, by a path that other threads of the process can open.
    let thread = fs::read_link("/proc/thread-self").unwrap();
    Path::new("/proc").join(thread).join("ns/net")
}

/// Makes a pair whose far end is in `netns` (or on the node), and does no more.
fn bare_pair(near: &str, far: &str, netns: Option<&Path>) {
    let netns = netns.map(|path| open_netns(path).unwrap());
    let mut peer = named(far);
    if let Some(netns) = &netns {
        use std::os::fd::AsRawFd as _;
        peer.attributes
            .push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
    }
    let mut pair = named(near);
    pair.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    Socket::open().unwrap().one(create(pair)).unwrap();
}
