//! Which address the next pod gets: round robin through the subnet, never one twice.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// The pod network a sandbox is put into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// All addresses.
    pub subnet: Ipv4Net,
    /// The bridge's own address, never given out.
    pub gateway: Ipv4Addr,
    /// The bridge.
    pub bridge: String,
}

/// How many addresses a pool can give out: all but network, broadcast and gateway.
#[must_use]
pub fn capacity(pool: &Pool) -> usize {
    let hosts = 1_u64 << (32 - u32::from(pool.subnet.prefix_len()));
    usize::try_from(hosts.saturating_sub(3)).unwrap_or(usize::MAX)
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
