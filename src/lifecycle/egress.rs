//! What a pod may send where, by annotation: everything that is not allowed is dropped.
//!
//! ```text
//! network.quilt/egress: "10.0.0.0/8 tcp/443, 192.0.2.53 udp/53, fd00:1::/64 tcp/80-81"
//! ```
//!
//! Entries are separated by commas or line ends: a network or an address, and if more is to be
//! said, a protocol (`tcp`, `udp`, `sctp`, `icmp`) with a port or a range of ports. An empty text
//! allows nothing. Replies to whoever has begun a conversation with the pod are always allowed.

use ipnet::IpNet;

use super::spec::Map;

/// The annotation.
pub const EGRESS: &str = "network.quilt/egress";
/// Entries of one policy.
const ENTRIES_MAX: usize = 256;

/// Something that a pod may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allowed {
    /// Where to.
    pub net: IpNet,
    /// By which protocol (its number in a packet); `None` is every one.
    pub protocol: Option<u8>,
    /// To which ports, first and last; `None` is every one.
    pub ports: Option<(u16, u16)>,
}

/// What the annotations of a pod allow it to send; `None` without a policy.
///
/// # Errors
/// Why the text can be no policy, in words.
pub fn of(annotations: &Map) -> Result<Option<Vec<Allowed>>, String> {
    let Some(text) = annotations.get(EGRESS) else {
        return Ok(None);
    };
    if text.trim().is_empty() {
        return Ok(Some(Vec::new()));
    }
    let mut allowed = Vec::new();
    for entry in text.trim().split([',', '\n']) {
        if allowed.len() == ENTRIES_MAX {
            return Err(format!("has more than {ENTRIES_MAX} entries"));
        }
        allowed.push(parse(entry.trim()).map_err(|why| format!("entry {entry:?}: {why}"))?);
    }
    allowed.sort();
    allowed.dedup();
    Ok(Some(allowed))
}

fn parse(entry: &str) -> Result<Allowed, String> {
    let mut words = entry.split_ascii_whitespace();
    let net = network(words.next().unwrap_or_default())?;
    let (protocol, ports) = match words.next() {
        None => (None, None),
        Some(word) => {
            let (name, ports) = match word.split_once('/') {
                Some((name, ports)) => (name, Some(range(ports)?)),
                None => (word, None),
            };
            (Some(protocol(name, net, ports.is_some())?), ports)
        }
    };
    if words.next().is_some() {
        return Err(
            "is more than a network, a protocol and ports: separate entries by commas".into(),
        );
    }
    Ok(Allowed {
        net,
        protocol,
        ports,
    })
}

fn network(word: &str) -> Result<IpNet, String> {
    if let Ok(address) = word.parse::<std::net::IpAddr>() {
        return Ok(address.into());
    }
    let net: IpNet = word
        .parse()
        .map_err(|_| format!("{word:?} is neither a network in CIDR notation nor an address"))?;
    if net.trunc() != net {
        return Err(format!(
            "{net} has bits set beyond its prefix length: {} is meant?",
            net.trunc()
        ));
    }
    Ok(net)
}

fn protocol(name: &str, net: IpNet, has_ports: bool) -> Result<u8, String> {
    match (name, net) {
        ("tcp", _) => Ok(6),
        ("udp", _) => Ok(17),
        ("sctp", _) => Ok(132),
        ("icmp", _) if has_ports => Err("icmp has no ports".into()),
        ("icmp", IpNet::V4(_)) => Ok(1),
        ("icmp", IpNet::V6(_)) => Ok(58),
        _ => Err(format!("{name:?} is not tcp, udp, sctp or icmp")),
    }
}

fn range(text: &str) -> Result<(u16, u16), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = if plain { text.parse().ok() } else { None };
        number
            .filter(|number| *number != 0)
            .ok_or_else(|| format!("{text:?} is not a port"))
    };
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(format!("{text:?}: the first port is above the last"));
    }
    Ok((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(text: &str) -> Result<Option<Vec<Allowed>>, String> {
        of(&Map::from([(EGRESS.to_owned(), text.to_owned())]))
    }

    #[test]
    fn a_policy_is_networks_with_protocols_and_ports() {
        assert_eq!(of(&Map::new()), Ok(None));
        assert_eq!(policy(""), Ok(Some(Vec::new())));
        assert_eq!(policy(" \n"), Ok(Some(Vec::new())));
        let text =
            "10.0.0.0/8 tcp/443,192.0.2.53 udp/53\nfd00:1::/64, ::/0 icmp,10.1.0.0/16 tcp/80-81";
        let allowed = policy(text).expect("a policy").expect("one");
        let show = |one: &Allowed| format!("{} {:?} {:?}", one.net, one.protocol, one.ports);
        let shown: Vec<_> = allowed.iter().map(show).collect();
        assert_eq!(
            shown,
            [
                "10.0.0.0/8 Some(6) Some((443, 443))",
                "10.1.0.0/16 Some(6) Some((80, 81))",
                "192.0.2.53/32 Some(17) Some((53, 53))",
                "::/0 Some(58) None",
                "fd00:1::/64 None None",
            ]
        );
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        for bad in [
            "x",
            ",",
            "10.0.0.0/8,",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/8 tcp/0",
            "10.0.0.0/8 tcp/65536",
            "10.0.0.0/8 tcp/80-79",
            "10.0.0.0/8 tcp/",
            "10.0.0.0/8 tcp/+80",
            "10.0.0.0/8 tcp/80-81-82",
            "10.0.0.0/8 icmp/8",
            "10.0.0.0/8 TCP",
            "10.0.0.0/8 tcp udp",
            "10.0.0.0/8 tcp/80; drop",
            "deny",
        ] {
            assert!(policy(bad).is_err(), "{bad:?}");
        }
        assert!(policy(&vec!["10.0.0.0/8"; 257].join(",")).is_err());
        assert!(policy(&vec!["10.0.0.0/8"; 256].join(",")).is_ok());
    }

    proptest! {
        #[test]
        fn no_text_does_harm(text in ".{0,80}") {
            if let Ok(Some(allowed)) = policy(&text) {
                prop_assert!(allowed.len() <= ENTRIES_MAX);
            }
        }
    }
}
