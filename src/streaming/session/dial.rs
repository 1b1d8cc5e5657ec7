//! A connection to a port of a pod: to its 127.0.0.1, then to its ::1.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpSocket, TcpStream};

use super::PodNetwork;

/// Longest wait for a connection inside a pod.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects. A socket belongs to the network in which it was made, for good: only making it needs a
/// thread that goes there, and ends.
pub(super) async fn connect(network: &PodNetwork, port: u16) -> Result<TcpStream, String> {
    let mut reasons = Vec::new();
    let addresses = [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    ];
    for ip in addresses {
        let address = SocketAddr::new(ip, port);
        match dial(network, address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => reasons.push(format!("{address}: {error}")),
        }
    }
    Err(format!(
        "cannot connect to port {port} of the pod: {}",
        reasons.join("; ")
    ))
}

async fn dial(network: &PodNetwork, address: SocketAddr) -> io::Result<TcpStream> {
    let network = network.clone();
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let (answer, made) = tokio::sync::oneshot::channel();
    // A thread of its own: one of a pool would stay in the pod.
    std::thread::Builder::new()
        .name("pod-socket".into())
        .spawn(move || {
            // Whoever asked may have gone; then the socket goes as well.
            let _ = answer.send(socket_in(&network, family));
        })?;
    let socket = made
        .await
        .map_err(|_| io::Error::other("the thread ended"))??;
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
    let connected = tokio::time::timeout(PATIENCE, socket.connect(address)).await;
    connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

fn socket_in(network: &PodNetwork, family: AddressFamily) -> io::Result<OwnedFd> {
    if let PodNetwork::Own(pin) = network {
        let namespace = std::fs::File::open(pin)?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(family, SocketType::STREAM, flags, None)?)
}
