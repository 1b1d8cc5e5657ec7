//! Which addresses the next pod gets: IPv4 round robin through the subnet, never one twice, and the
//! IPv6 one that belongs to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::spec::Map;

/// The pod network a sandbox is put into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// All addresses.
    pub subnet: Ipv4Net,
    /// The bridge's own address, never given out.
    pub gateway: Ipv4Addr,
    /// The bridge.
    pub bridge: String,
    /// All IPv6 addresses, if pods get one; the first is the bridge's own.
    pub subnet6: Option<Ipv6Net>,
    /// How long an address that has come back is not given out again, ns.
    pub quarantine_ns: i64,
    /// Largest packet in bytes on the pods' interfaces.
    pub mtu: u32,
    /// How many networks wait for a pod; 0 is none, and no pod gets one.
    pub prepared: u32,
}

impl Pool {
    /// The bridge's IPv6 address, if pods get one.
    #[must_use]
    pub fn gateway6(&self) -> Option<Ipv6Addr> {
        self.subnet6.map(first6)
    }

    /// The pool with what a range of kubelet's replaces of it.
    #[must_use]
    pub fn within(mut self, range: &[IpNet]) -> Self {
        for net in range {
            match net {
                IpNet::V4(subnet) => {
                    self.subnet = *subnet;
                    self.gateway = first4(*subnet);
                }
                IpNet::V6(subnet) => self.subnet6 = Some(*subnet),
            }
        }
        self
    }
}

/// The annotation by which a pod asks for its addresses: one of each family at most, with a comma.
pub const REQUESTED: &str = "network.quilt/addresses";

/// Addresses that a pod asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requested {
    /// The IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// The IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
}

impl Requested {
    /// What the annotations of a pod ask for.
    ///
    /// # Errors
    /// Why the text cannot be that, in words.
    pub fn of(annotations: &Map) -> Result<Self, String> {
        let mut requested = Self::default();
        let Some(text) = annotations.get(REQUESTED) else {
            return Ok(requested);
        };
        for part in text.split(',').map(str::trim) {
            let address: IpAddr = part
                .parse()
                .map_err(|_| format!("{part:?} is not an IP address"))?;
            let former = match address {
                IpAddr::V4(address) => requested.ipv4.replace(address).is_some(),
                IpAddr::V6(address) => requested.ipv6.replace(address).is_some(),
            };
            if former {
                return Err(format!("{text:?} has two addresses of one family"));
            }
        }
        Ok(requested)
    }

    /// All that are asked for, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let ipv4 = self.ipv4.map(IpAddr::V4);
        ipv4.into_iter().chain(self.ipv6.map(IpAddr::V6))
    }

    /// Whether anything is asked for.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.ipv4.is_some() || self.ipv6.is_some()
    }

    /// Whether these addresses are what is asked for.
    #[must_use]
    pub fn is_met_by(&self, ipv4: Ipv4Addr, ipv6: Option<Ipv6Addr>) -> bool {
        self.ipv4.is_none_or(|wanted| wanted == ipv4)
            && self.ipv6.is_none_or(|wanted| Some(wanted) == ipv6)
    }

    /// Whether pods can have these addresses at all.
    ///
    /// # Errors
    /// Why they cannot, in words.
    pub fn check(&self, pool: &Pool) -> Result<(), String> {
        if let Some(address) = self.ipv4 {
            let subnet = pool.subnet;
            if !subnet.contains(&address) {
                return Err(format!("{address} is not in the pod range {subnet}"));
            }
            if [subnet.network(), subnet.broadcast(), pool.gateway].contains(&address) {
                return Err(format!("{address} is reserved in the pod range {subnet}"));
            }
        }
        let Some(address) = self.ipv6 else {
            return Ok(());
        };
        let Some(subnet) = pool.subnet6 else {
            return Err(format!("{address}: pods of this node get no IPv6 address"));
        };
        if !subnet.contains(&address) {
            return Err(format!("{address} is not in the pod range {subnet}"));
        }
        if [subnet.network(), first6(subnet)].contains(&address) {
            return Err(format!("{address} is reserved in the pod range {subnet}"));
        }
        Ok(())
    }
}

/// The first address of a subnet, which is the bridge's.
#[must_use]
pub fn first4(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()).saturating_add(1))
}

/// The same for IPv6.
#[must_use]
pub fn first6(subnet: Ipv6Net) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(subnet.network()).saturating_add(1))
}

/// Reads a pod range as kubelet tells it: one network, or one of each family with a comma.
///
/// # Errors
/// Why it can be none, in words.
pub fn parse_range(text: &str) -> Result<Vec<IpNet>, String> {
    let mut nets: Vec<IpNet> = Vec::new();
    for part in text.split(',').map(str::trim) {
        let net: IpNet = part
            .parse()
            .map_err(|_| format!("{part:?} is not a network in CIDR notation"))?;
        if let Some(why) = unfit(net) {
            return Err(format!("{part:?}: {why}"));
        }
        if nets.iter().any(|other| {
            matches!(
                (other, net),
                (IpNet::V4(_), IpNet::V4(_)) | (IpNet::V6(_), IpNet::V6(_))
            )
        }) {
            return Err(format!("{text:?} has two networks of one family"));
        }
        nets.push(net.trunc());
    }
    Ok(nets)
}

/// Why a network can be no pod network, if it cannot.
#[must_use]
pub fn unfit(net: IpNet) -> Option<&'static str> {
    let address = net.network();
    let unfit_prefix = match net {
        IpNet::V4(net) if !(8..=29).contains(&net.prefix_len()) => {
            Some("the prefix length must be between 8 and 29")
        }
        IpNet::V6(net) if !(32..=120).contains(&net.prefix_len()) => {
            Some("the prefix length must be between 32 and 120")
        }
        _ => None,
    };
    let reserved = match address {
        IpAddr::V4(address) => address.octets()[0] == 0,
        IpAddr::V6(address) => {
            address.is_unspecified() || address.is_unicast_link_local() || address.octets()[0] == 0
        }
    };
    unfit_prefix.or_else(|| {
        (address.is_loopback() || address.is_multicast() || reserved)
            .then_some("pods cannot have such addresses")
    })
}

/// The IPv6 address that belongs to an IPv4 one: its last bits are the same, all 32 where there is
/// room. One that is taken, because ranges have changed, leaves it the next free one.
#[must_use]
pub fn beside(subnet: Ipv6Net, address: Ipv4Addr, used: &[Ipv6Addr]) -> Option<Ipv6Addr> {
    let hosts = u128::MAX
        .checked_shr(u32::from(subnet.prefix_len()))
        .unwrap_or(0);
    let network = u128::from(subnet.network());
    let wanted = u128::from(u32::from(address)) & hosts;
    // With each address in use at most one candidate falls out, and two are never given.
    let tries = u128::try_from(used.len())
        .unwrap_or(hosts)
        .saturating_add(3)
        .min(hosts.saturating_add(1));
    (0..tries)
        .map(|step| wanted.wrapping_add(step) & hosts)
        .filter(|host| *host > 1)
        .map(|host| Ipv6Addr::from(network | host))
        .find(|candidate| !used.contains(candidate))
}

/// How many addresses a pool can give out: all but network, broadcast and gateway.
#[must_use]
pub fn capacity(pool: &Pool) -> usize {
    let hosts = 1_u64 << (32 - u32::from(pool.subnet.prefix_len()));
    usize::try_from(hosts.saturating_sub(3)).unwrap_or(usize::MAX)
}

/// How many networks may wait for a pod: as many as are wanted, and never more than an eighth of
/// the addresses that are free or wait already, so that pods are not refused for them.
#[must_use]
pub fn prepared_at_most(wanted: u32, capacity: usize, taken_by_others: usize) -> usize {
    let left = capacity.saturating_sub(taken_by_others);
    usize::try_from(wanted).unwrap_or(usize::MAX).min(left / 8)
}

/// The first free address after `last`, wrapping round once. `used` is sorted.
#[must_use]
pub fn next_free(pool: &Pool, used: &[u32], last: Option<u32>) -> Option<Ipv4Addr> {
    let first = u32::from(pool.subnet.network()).checked_add(1)?;
    let end = u32::from(pool.subnet.broadcast());
    let start = last
        .and_then(|last| last.checked_add(1))
        .filter(|n| (first..end).contains(n));
    let start = start.unwrap_or(first);
    let gateway = u32::from(pool.gateway);
    (start..end)
        .chain(first..start)
        .find(|candidate| *candidate != gateway && used.binary_search(candidate).is_err())
        .map(Ipv4Addr::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool(prefix: u8) -> Pool {
        let subnet = Ipv4Net::new(Ipv4Addr::new(10, 9, 8, 0), prefix).expect("a prefix length");
        let subnet = subnet.trunc();
        let gateway = Ipv4Addr::from(u32::from(subnet.network()) + 1);
        Pool {
            subnet,
            gateway,
            bridge: "b".into(),
            subnet6: None,
            quarantine_ns: 0,
            mtu: 1500,
            prepared: 0,
        }
    }

    #[test]
    fn a_pool_gives_each_address_once_and_then_says_no() {
        let pool = pool(28);
        let mut used = Vec::new();
        let mut last = None;
        for _ in 0..capacity(&pool) {
            let address = next_free(&pool, &used, last).expect("an address");
            assert!(pool.subnet.contains(&address) && address != pool.gateway);
            let number = u32::from(address);
            let place = used.binary_search(&number).expect_err("given out twice");
            used.insert(place, number);
            last = Some(number);
        }
        assert_eq!(next_free(&pool, &used, last), None);
    }

    #[test]
    fn the_ipv6_address_ends_like_the_ipv4_one_unless_it_is_taken() {
        let wide: Ipv6Net = "fd00:1::/64".parse().expect("a network");
        let address = Ipv4Addr::new(10, 9, 8, 7);
        let given = beside(wide, address, &[]).expect("an address");
        assert_eq!(
            given,
            "fd00:1::a09:807".parse::<Ipv6Addr>().expect("an address")
        );
        let next = beside(wide, address, &[given]).expect("an address");
        assert_eq!(
            next,
            "fd00:1::a09:808".parse::<Ipv6Addr>().expect("an address")
        );
        let narrow: Ipv6Net = "fd00:1::/120".parse().expect("a network");
        let mut used = Vec::new();
        while let Some(given) = beside(narrow, address, &used) {
            assert!(narrow.contains(&given) && !used.contains(&given));
            assert!(given != first6(narrow) && given != narrow.network());
            used.push(given);
        }
        assert_eq!(used.len(), 254);
    }

    #[test]
    fn a_range_is_one_network_or_one_of_each_family() {
        let range = parse_range("10.5.0.0/24, fd00:5::/64").expect("a range");
        let wider = pool(28).within(&range);
        assert_eq!(wider.gateway, Ipv4Addr::new(10, 5, 0, 1));
        assert_eq!(
            wider.subnet6.map(|net| net.to_string()),
            Some("fd00:5::/64".into())
        );
        for bad in [
            "",
            "10.5.0.0",
            "10.5.0.0/30",
            "127.0.0.0/8",
            "fe80::/64",
            "::/64",
            "fd00::/121",
            "10.5.0.0/24,10.6.0.0/24",
            "10.5.0.0/24,",
            "224.0.0.0/24",
            "ff02::/64",
        ] {
            assert!(parse_range(bad).is_err(), "{bad:?}");
        }
    }

    fn asked(text: &str) -> Result<Requested, String> {
        Requested::of(&Map::from([(REQUESTED.to_owned(), text.to_owned())]))
    }

    #[test]
    fn addresses_are_asked_for_one_of_each_family_and_within_the_range() {
        assert_eq!(Requested::of(&Map::new()), Ok(Requested::default()));
        let both = asked(" 10.9.8.5 , fd00::7").expect("two addresses");
        assert!(both.is_met_by("10.9.8.5".parse().expect("one"), "fd00::7".parse().ok()));
        assert!(!both.is_met_by("10.9.8.5".parse().expect("one"), None));
        for bad in [
            "",
            "x",
            "10.9.8.5/24",
            "10.9.8.5,10.9.8.6",
            "10.9.8.5,",
            "fd00::1 fd00::2",
        ] {
            assert!(asked(bad).is_err(), "{bad:?}");
        }
        let mut pool = pool(28);
        assert!(asked("10.9.8.5").expect("one").check(&pool).is_ok());
        assert!(both.check(&pool).is_err(), "no IPv6 range");
        pool.subnet6 = "fd00::/64".parse().ok();
        assert!(both.check(&pool).is_ok());
        let unfit = [
            "10.9.8.0",
            "10.9.8.1",
            "10.9.8.15",
            "10.9.9.1",
            "fd00::",
            "fd00::1",
            "::1",
        ];
        for bad in unfit {
            assert!(asked(bad).expect(bad).check(&pool).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_given_is_free_and_inside(
            prefix in 24_u8..=30,
            taken in prop::collection::btree_set(0_u32..256, 0..200),
            last: u32,
        ) {
            let pool = pool(prefix);
            let base = u32::from(pool.subnet.network());
            let used: Vec<u32> = taken.into_iter().map(|n| base + n).collect();
            if let Some(address) = next_free(&pool, &used, Some(last)) {
                let number = u32::from(address);
                prop_assert!(used.binary_search(&number).is_err());
                prop_assert!(number > base && number < u32::from(pool.subnet.broadcast()));
                prop_assert_ne!(address, pool.gateway);
            } else {
                let free = (base + 1..u32::from(pool.subnet.broadcast()))
                    .any(|n| Ipv4Addr::from(n) != pool.gateway && used.binary_search(&n).is_err());
                prop_assert!(!free);
            }
        }
    }
}
