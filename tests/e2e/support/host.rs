//! Hosts of a test's own little network: a network namespace each, joined by a switch. What a host
//! does, a thread does that has entered its namespace; the machine's own network is never touched.
//! A namespace ends when nobody holds it, and everything in it ends with it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::leftover::run_apart;

/// Longest wait of a client for an answer that should come at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// After so long, nobody answers: beside it, an answer comes at once.
const SILENCE: Duration = Duration::from_millis(700);
/// Between two looks of a server at whether it should end.
const LOOK: Duration = Duration::from_millis(50);

/// A network namespace.
#[derive(Debug)]
pub(crate) struct Host {
    namespace: File,
}

impl Host {
    /// A host with nothing but its loopback interface.
    pub(crate) fn new() -> Arc<Self> {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may");
            File::open("/proc/thread-self/ns/net").expect("/proc is mounted")
        });
        let host = Self {
            namespace: made.join().expect("a namespace"),
        };
        host.ask(|handle| async move {
            let up = LinkUnspec::new_with_name("lo").up().build();
            handle.link().set(up).execute().await
        });
        Arc::new(host)
    }

    /// The namespace that a file is.
    pub(crate) fn at(path: &Path) -> Arc<Self> {
        let namespace = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Arc::new(Self { namespace })
    }

    /// Does something in the namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.namespace, CloneFlags::CLONE_NEWNET).expect("a network namespace");
                work()
            });
            inside.join().expect("what was done there panicked")
        })
    }

    /// Asks the host's kernel for something over rtnetlink.
    pub(crate) fn ask<F>(&self, work: impl FnOnce(Handle) -> F + Send + 'static)
    where
        F: Future<Output = Result<(), rtnetlink::Error>> + Send,
    {
        self.run(|| {
            run_apart(async move {
                let (connection, handle, _) = rtnetlink::new_connection().expect("a socket");
                tokio::spawn(connection);
                work(handle).await.expect("rtnetlink");
            });
        });
    }

    /// Names of its interfaces.
    pub(crate) fn links(&self) -> Vec<String> {
        // `/proc/net` is the main thread's.
        let text = self.run(|| fs::read_to_string("/proc/thread-self/net/dev"));
        let text = text.expect("/proc is mounted");
        text.lines()
            .skip(2)
            .filter_map(|line| line.split(':').next())
            .map(|name| name.trim().to_owned())
            .collect()
    }

    /// The namespace' descriptor, for links that move in; good as long as the host is held.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.namespace.as_raw_fd()
    }

    /// The number of an interface.
    pub(crate) fn index(&self, name: &str) -> u32 {
        self.run(|| nix::net::if_::if_nametoindex(name))
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Writes a sysctl of the host's network.
    pub(crate) fn sysctl(&self, name: &str, value: &str) {
        let path = Path::new("/proc/sys/net").join(name);
        let written = self.run(|| fs::write(&path, value));
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Removes an interface.
    pub(crate) fn remove_link(&self, name: &str) {
        let index = self.index(name);
        self.ask(move |handle| async move { handle.link().del(index).execute().await });
    }

    /// Takes an address from an interface.
    pub(crate) fn remove_address(&self, interface: &str, address: IpAddr, prefix: u8) {
        let index = self.index(interface);
        self.ask(move |handle| async move {
            let message = handle
                .address()
                .add(index, address, prefix)
                .message_mut()
                .clone();
            handle.address().del(message).execute().await
        });
    }

    /// Sends what is for a network by way of a gateway.
    pub(crate) fn route(&self, net: (Ipv4Addr, u8), gateway: Ipv4Addr) {
        self.ask(move |handle| async move {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(net.0, net.1)
                .gateway(gateway);
            handle.route().add(route.build()).execute().await
        });
    }

    /// What a TCP server says.
    pub(crate) fn ask_tcp(&self, to: SocketAddr) -> io::Result<String> {
        self.ask_tcp_within(PATIENCE, to)
    }

    /// [`Self::ask_tcp`] where silence is expected: it gives up early.
    pub(crate) fn ask_tcp_in_vain(&self, to: SocketAddr) -> io::Result<String> {
        self.ask_tcp_within(SILENCE, to)
    }

    fn ask_tcp_within(&self, patience: Duration, to: SocketAddr) -> io::Result<String> {
        self.run(|| {
            let mut stream = TcpStream::connect_timeout(&to, patience)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
    }

    /// A UDP socket that speaks to one address.
    pub(crate) fn udp_to(&self, to: SocketAddr) -> UdpSocket {
        self.run(|| {
            let any: IpAddr = match to {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, 0)).expect("a free port");
            socket.connect(to).expect("a route");
            socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
            socket
        })
    }

    /// What a UDP server says.
    pub(crate) fn ask_udp(&self, to: SocketAddr) -> io::Result<String> {
        ask(&self.udp_to(to))
    }

    /// Serves `text`, a space and the client's address to everybody, over TCP and UDP at one port
    /// of all addresses of both families, until it is dropped.
    pub(crate) fn serve(&self, port: u16, text: &str) -> Server {
        let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        self.serve_at(at, text)
    }

    /// [`Self::serve`] at one address.
    pub(crate) fn serve_at(&self, at: SocketAddr, text: &str) -> Server {
        let (tcp, udp) = self.run(|| {
            let tcp = TcpListener::bind(at).expect("a free port");
            let udp = UdpSocket::bind(at).expect("a free port");
            let look = TimeVal::milliseconds(LOOK.as_millis() as i64);
            setsockopt(&tcp, sockopt::ReceiveTimeout, &look).expect("a socket");
            udp.set_read_timeout(Some(LOOK)).expect("a socket");
            (tcp, udp)
        });
        let ends = Arc::new(AtomicBool::new(false));
        let (text, ends_too) = (text.to_owned(), Arc::clone(&ends));
        let says = move |peer: SocketAddr| format!("{text} {}", peer.ip().to_canonical());
        let says_too = says.clone();
        let over_tcp = thread::spawn(move || {
            while !ends_too.load(Ordering::Relaxed) {
                if let Ok((mut stream, peer)) = tcp.accept() {
                    // A client that is gone needs no answer.
                    let _gone = stream.write_all(says(peer).as_bytes());
                }
            }
        });
        let ends_too = Arc::clone(&ends);
        let over_udp = thread::spawn(move || {
            let mut buffer = [0; 64];
            while !ends_too.load(Ordering::Relaxed) {
                if let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    let _gone = udp.send_to(says_too(peer).as_bytes(), peer);
                }
            }
        });
        Server {
            ends,
            threads: vec![over_tcp, over_udp],
        }
    }
}

/// One question over a connected UDP socket. A refusal that an earlier question met is passed over.
pub(crate) fn ask(socket: &UdpSocket) -> io::Result<String> {
    let mut buffer = [0; 256];
    if socket.send(b"?").is_err() {
        socket.send(b"?")?;
    }
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// A server, until it is dropped.
pub(crate) struct Server {
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for one in self.threads.drain(..) {
            one.join().expect("a server panicked");
        }
    }
}

/// Hosts joined by a switch: host `n` has 192.0.2.n/24 and 2001:db8::n/64 on `eth0`.
pub(crate) struct Lan {
    /// In order; the first one is number 1.
    pub(crate) hosts: Vec<Arc<Host>>,
    _switch: Arc<Host>,
}

impl Lan {
    /// So many hosts.
    pub(crate) fn new(count: u8) -> Self {
        let switch = Host::new();
        switch.ask(|handle| async move {
            let bridge = LinkBridge::new("switch").up().build();
            handle.link().add(bridge).execute().await
        });
        let bridge = switch.index("switch");
        let hosts = (1..=count).map(|number| {
            let host = Host::new();
            let (port, descriptor) = (format!("port{number}"), host.descriptor());
            switch.ask(move |handle| async move {
                let pair = LinkVeth::new(&port, "eth0").build();
                handle.link().add(pair).execute().await?;
                let away = LinkUnspec::new_with_name("eth0").setns_by_fd(descriptor);
                handle.link().set(away.build()).execute().await?;
                let port = LinkUnspec::new_with_name(&port).controller(bridge).up();
                handle.link().set(port.build()).execute().await
            });
            host.sysctl("ipv6/conf/eth0/accept_dad", "0");
            let index = host.index("eth0");
            host.ask(move |handle| async move {
                let up = LinkUnspec::new_with_index(index).up().build();
                handle.link().set(up).execute().await?;
                for (address, prefix) in [(ipv4(number), 24), (ipv6(number), 64)] {
                    let mut add = handle.address().add(index, address, prefix);
                    let flags = AddressAttribute::Flags(AddressFlags::Nodad);
                    add.message_mut().attributes.push(flags);
                    add.execute().await?;
                }
                Ok(())
            });
            host
        });
        Self {
            hosts: hosts.collect(),
            _switch: switch,
        }
    }
}

/// A host's IPv4 address (RFC 5737).
pub(crate) fn ipv4(number: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, number).into()
}

/// A host's IPv6 address (RFC 3849).
pub(crate) fn ipv6(number: u8) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()).into()
}
