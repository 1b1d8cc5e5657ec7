//! Which address a new pod gets: the next free one after the last given out.
//!
//! Pure: what is in use is the caller's to know. Going round instead of taking the lowest keeps an
//! address out of use for as long as possible after its pod has gone, so that late packets and
//! stale neighbour entries meet nobody.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// The next free address of `subnet` after `last`, round to the first. `used` must be ascending.
/// The network's own address, the broadcast address and the gateway are never given out.
///
/// `None` when every address is in use, or the subnet has no host addresses (`/31`, `/32`).
#[must_use]
pub fn next_free(
    subnet: Ipv4Net,
    gateway: Ipv4Addr,
    used: impl IntoIterator<Item = Ipv4Addr>,
    last: Option<Ipv4Addr>,
) -> Option<Ipv4Addr> {
    if subnet.prefix_len() > 30 {
        return None;
    }
    let first = u64::from(u32::from(subnet.network())) + 1;
    let end = u64::from(u32::from(subnet.broadcast()));
    let gateway = u64::from(u32::from(gateway));
    let after_last = last
        .map(|last| u64::from(u32::from(last)) + 1)
        .filter(|next| (first..end).contains(next))
        .unwrap_or(first);
    // One pass with two candidates: the first free address at all, and the first free one after
    // the last given out. Since `used` ascends, a candidate that was passed is free.
    let mut candidates = [after_last, first];
    let step = |candidate: u64| candidate + 1 + u64::from(candidate + 1 == gateway);
    for candidate in &mut candidates {
        if *candidate == gateway {
            *candidate = step(*candidate);
        }
    }
    for address in used {
        let address = u64::from(u32::from(address));
        for candidate in &mut candidates {
            if *candidate == address {
                *candidate = step(*candidate);
            }
        }
    }
    let free = candidates.into_iter().find(|candidate| *candidate < end)?;
    u32::try_from(free).ok().map(Ipv4Addr::from)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_address_comes_after_the_gateway() {
        assert_eq!(
            next_free(net("10.88.0.0/16"), ip("10.88.0.1"), [], None),
            Some(ip("10.88.0.2"))
        );
    }

    #[test]
    fn a_freed_address_waits_until_the_round_is_over() {
        let subnet = net("10.0.0.0/29");
        let used = [ip("10.0.0.2"), ip("10.0.0.4")];
        let next = |last| next_free(subnet, ip("10.0.0.1"), used, Some(ip(last)));
        assert_eq!(next("10.0.0.4"), Some(ip("10.0.0.5")));
        assert_eq!(next("10.0.0.6"), Some(ip("10.0.0.3")));
        assert_eq!(next("192.168.0.1"), Some(ip("10.0.0.3")));
    }

    #[test]
    fn a_full_subnet_gives_nothing() {
        let used: Vec<_> = (2..7).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
        assert_eq!(
            next_free(net("10.0.0.0/29"), ip("10.0.0.1"), used, None),
            None
        );
        assert_eq!(
            next_free(net("10.0.0.0/31"), ip("10.0.0.1"), [], None),
            None
        );
        assert_eq!(
            next_free(net("255.255.255.252/30"), ip("255.255.255.253"), [], None),
            Some(ip("255.255.255.254"))
        );
    }

    proptest! {
        #[test]
        fn no_address_is_given_out_twice_and_every_one_is_given_out(
            prefix in 24u8..=30,
            gateway_offset in 1u32..3,
            steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..400),
        ) {
            let subnet = Ipv4Net::new(Ipv4Addr::new(10, 7, 3, 0), prefix).unwrap();
            let gateway = Ipv4Addr::from(u32::from(subnet.network()) + gateway_offset);
            let hosts: BTreeSet<_> = subnet.hosts().filter(|host| *host != gateway).collect();
            let mut used = BTreeSet::new();
            let mut last = None;
            for (allocate, which) in steps {
                if allocate {
                    match next_free(subnet, gateway, used.iter().copied(), last) {
                        Some(address) => {
                            prop_assert!(hosts.contains(&address));
                            prop_assert!(used.insert(address), "{address} was in use");
                            last = Some(address);
                        }
                        None => prop_assert_eq!(used.len(), hosts.len()),
                    }
                } else if !used.is_empty() {
                    let address = *used.iter().nth(which.index(used.len())).unwrap();
                    used.remove(&address);
                }
            }
        }
    }
}
