//! What somebody's hand does to packet rules: nf_tables messages as bytes, so that the tests need
//! no `nft` (`linux/netfilter/nf_tables.h`, `linux/netfilter/nfnetlink.h`).

use super::host::Host;

/// `NFT_MSG_DELTABLE`, `_DELRULE`, `_DELSETELEM`.
const DELETE_TABLE: u8 = 2;
const DELETE_RULES: u8 = 8;
const DELETE_ELEMENTS: u8 = 14;
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u8 = 10;
/// `NFPROTO_INET`, `NFPROTO_BRIDGE`.
const INET: u8 = 1;
const BRIDGE: u8 = 7;

fn attribute(kind: u16, text: &str) -> Vec<u8> {
    let mut bytes = (5 + text.len() as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn message(kind: [u8; 2], flags: u16, header: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = (20 + body.len() as u32).to_ne_bytes().to_vec();
    bytes.extend(u16::from_be_bytes(kind).to_ne_bytes());
    // NLM_F_REQUEST
    bytes.extend((flags | 1).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(header);
    bytes.extend(body);
    bytes
}

/// Sends one message in a transaction of its own; the error number is the kernel's, 0 is success.
fn commit(host: &Host, family: u8, what: u8, body: Vec<u8>) -> i32 {
    host.run(move || {
        let socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_NETFILTER);
        let socket = socket.expect("a netlink socket");
        let mut bytes = message([0, 0x10], 0, [0, 0, 0, SUBSYSTEM], &[]);
        // NLM_F_ACK
        bytes.extend(message([SUBSYSTEM, what], 4, [family, 0, 0, 0], &body));
        bytes.extend(message([0, 0x11], 0, [0, 0, 0, SUBSYSTEM], &[]));
        let kernel = netlink_sys::SocketAddr::new(0, 0);
        socket
            .send_to(&bytes, &kernel, 0)
            .expect("a netlink socket");
        let (answer, _) = socket.recv_from_full().expect("an answer");
        i32::from_ne_bytes(answer[16..20].try_into().expect("an error number"))
    })
}

/// Removes a table with everything in it.
pub(crate) fn delete_table(host: &Host, table: &str) -> i32 {
    commit(host, INET, DELETE_TABLE, attribute(1, table))
}

/// The same for the table of what pods may send.
pub(crate) fn delete_policies(host: &Host, table: &str) -> i32 {
    commit(host, BRIDGE, DELETE_TABLE, attribute(1, table))
}

/// Removes all rules of one of its chains.
pub(crate) fn flush_policy(host: &Host, table: &str, chain: &str) -> i32 {
    let mut body = attribute(1, table);
    body.extend(attribute(2, chain));
    commit(host, BRIDGE, DELETE_RULES, body)
}

/// Removes all rules of a table, or of one of its chains.
pub(crate) fn flush(host: &Host, table: &str, chain: Option<&str>) -> i32 {
    let mut body = attribute(1, table);
    body.extend(chain.iter().flat_map(|chain| attribute(2, chain)));
    commit(host, INET, DELETE_RULES, body)
}

/// Removes all elements of a map.
pub(crate) fn empty_map(host: &Host, table: &str, map: &str) -> i32 {
    let mut body = attribute(1, table);
    body.extend(attribute(2, map));
    commit(host, INET, DELETE_ELEMENTS, body)
}
