//! Ports of SCTP. This kernel may have no such sockets, but it follows such packets: the test
//! speaks as far as the greeting itself, over raw sockets (RFC 9260, sections 3.1 to 3.3.3).

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recvfrom, sendto, socket,
};

use super::*;
use crate::support::host::ipv4;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const TAG: u32 = 0x5157_4c54;

/// CRC-32C, bit by bit (RFC 9260, appendix A).
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 * (crc & 1))
        })
    })
}

/// A packet with one chunk, the first or the second of a greeting.
fn packet(from: u16, to: u16, tag: u32, chunk: u8) -> Vec<u8> {
    let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
    bytes.extend(tag.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend([chunk, 0, 0, 20]);
    for word in [TAG, 65_536, 0x0001_0001, 1] {
        bytes.extend(word.to_be_bytes());
    }
    let sum = checksum(&bytes).to_le_bytes();
    bytes[8..12].copy_from_slice(&sum);
    bytes
}

fn raw(host: &Host) -> OwnedFd {
    host.run(|| {
        let protocol = Some(ipproto::SCTP);
        let raw = socket(AddressFamily::INET, SocketType::RAW, protocol).expect("root may");
        let patience = Some(std::time::Duration::from_secs(5));
        set_socket_timeout(&raw, Timeout::Recv, patience).expect("a socket");
        raw
    })
}

fn send(socket: &OwnedFd, to: Ipv4Addr, packet: &[u8]) {
    let to = SocketAddrV4::new(to, 0);
    sendto(socket, packet, SendFlags::empty(), &to).expect("a route");
}

/// The next packet: who sent it, both its ports, and what kind its chunk is.
fn receive(socket: &OwnedFd) -> (Ipv4Addr, [u16; 2], u8) {
    let mut buffer = [0; 256];
    let (length, _, _) = recvfrom(socket, &mut buffer, RecvFlags::empty()).expect("a packet");
    // A raw socket has the header of IP as well (raw(7)).
    let (head, rest) = buffer[..length].split_at(20);
    let from = Ipv4Addr::new(head[12], head[13], head[14], head[15]);
    let port = |at| u16::from_be_bytes([rest[at], rest[at + 1]]);
    let mut unsigned = rest.to_vec();
    unsigned[8..12].fill(0);
    assert_eq!(
        rest[8..12],
        checksum(&unsigned).to_le_bytes(),
        "its checksum"
    );
    (from, [port(0), port(2)], rest[12])
}

#[test]
fn the_checksum_is_that_of_the_standard() {
    assert_eq!(checksum(b"123456789"), 0xe306_9283);
}

#[tokio::test]
async fn a_port_of_sctp_leads_to_the_pod_and_back() {
    let lan = Lan::new(2);
    let outside = &lan.hosts[1];
    let node = start(&lan).await;
    let pod = Guest::run(&node, "sctp", vec![port(Protocol::Sctp, "", 8080, 80)]).await;
    let (IpAddr::V4(at_node), IpAddr::V4(client)) = (ipv4(1), ipv4(2)) else {
        unreachable!("IPv4 addresses");
    };
    let (theirs, ours) = (raw(outside), raw(&pod.net));
    send(&theirs, at_node, &packet(5000, 8080, 0, INIT));
    assert_eq!(receive(&ours), (client, [5000, 80], INIT));
    send(&ours, client, &packet(80, 5000, TAG, INIT_ACK));
    assert_eq!(receive(&theirs), (at_node, [8080, 5000], INIT_ACK));
    drop((theirs, ours));
    pod.go(&node).await;
}
