//! Addresses, prefixes, and the table from addresses to peers: WireGuard's cryptokey routing.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use foldhash::fast::RandomState;

pub type PeerId = usize;

/// Convert IPv4-mapped IPv6 to IPv4, so that an address has one form only.
pub fn canonical(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

pub fn parse_address(text: &str) -> Result<IpAddr, String> {
    text.parse::<IpAddr>().map(canonical).map_err(|_| format!("not an IP address: {text:?}"))
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// Parse `address/length`, or an address as a prefix of full length. Host bits are cleared.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("not an IP prefix: {text:?}");
        let (address, length) = match text.split_once('/') {
            None => (parse_address(text).map_err(|_| bad())?, None),
            Some((address, length)) => {
                if length.is_empty() || length.len() > 3 || !length.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(bad());
                }
                // Without canonical(): a length meant for 128 bits would be applied to 32.
                let address = address.parse::<IpAddr>().map_err(|_| bad())?;
                if address != canonical(address) {
                    return Err(bad());
                }
                (address, Some(length.parse::<u8>().map_err(|_| bad())?))
            }
        };
        let longest = bits(address);
        let length = length.unwrap_or(longest);
        if length > longest {
            return Err(bad());
        }
        Ok(Prefix { address: mask(address, length), length })
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && mask(address, self.length) == self.address
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() {
        32
    } else {
        128
    }
}

fn mask(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let keep = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & keep).into())
        }
        IpAddr::V6(v6) => {
            let keep = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & keep))
        }
    }
}

/// Longest prefix match: one hash look-up for each length in use, full addresses first, which nearly always match.
#[derive(Default)]
pub struct Routes {
    owners: HashMap<Prefix, PeerId, RandomState>,
    lists: HashMap<PeerId, Vec<Prefix>, RandomState>,
    lengths: Lengths,
}

/// The prefix lengths in use by family, longest first, each with its number of prefixes.
#[derive(Default)]
pub(crate) struct Lengths {
    v4: Vec<(u8, usize)>,
    v6: Vec<(u8, usize)>,
}

impl Lengths {
    fn of(&mut self, address: IpAddr) -> &mut Vec<(u8, usize)> {
        if address.is_ipv4() {
            &mut self.v4
        } else {
            &mut self.v6
        }
    }

    pub fn add(&mut self, prefix: Prefix) {
        let list = self.of(prefix.address);
        match list.binary_search_by(|(other, _)| prefix.length.cmp(other)) {
            Ok(at) => list[at].1 += 1,
            Err(at) => list.insert(at, (prefix.length, 1)),
        }
    }

    fn remove(&mut self, prefix: Prefix) {
        let list = self.of(prefix.address);
        if let Ok(at) = list.binary_search_by(|(other, _)| prefix.length.cmp(other)) {
            list[at].1 -= 1;
            if list[at].1 == 0 {
                list.remove(at);
            }
        }
    }

    /// The prefixes of each length in use that contain the address, longest first.
    pub fn prefixes(&self, address: IpAddr) -> impl Iterator<Item = Prefix> + '_ {
        let list = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        list.iter().map(move |&(length, _)| Prefix { address: mask(address, length), length })
    }
}

impl Routes {
    pub fn lookup(&self, address: IpAddr) -> Option<PeerId> {
        self.lengths.prefixes(address).find_map(|prefix| self.owners.get(&prefix)).copied()
    }

    /// The peer with a prefix of exactly this address.
    pub fn exact(&self, address: IpAddr) -> Option<PeerId> {
        self.owners.get(&Prefix { address, length: bits(address) }).copied()
    }

    /// Set the prefixes of `peer`, and remove them from other peers. True if anything changed.
    pub fn assign(&mut self, peer: PeerId, prefixes: &[Prefix]) -> bool {
        let mut wanted = prefixes.to_vec();
        wanted.sort_by_key(|prefix| (prefix.address, prefix.length));
        wanted.dedup();
        if wanted == self.of(peer) {
            return false;
        }
        for prefix in self.lists.remove(&peer).unwrap_or_default() {
            self.owners.remove(&prefix);
            self.lengths.remove(prefix);
        }
        for &prefix in &wanted {
            match self.owners.insert(prefix, peer) {
                None => self.lengths.add(prefix),
                Some(loser) => {
                    if let Some(list) = self.lists.get_mut(&loser) {
                        list.retain(|other| *other != prefix);
                    }
                }
            }
        }
        if !wanted.is_empty() {
            self.lists.insert(peer, wanted);
        }
        true
    }

    pub fn of(&self, peer: PeerId) -> &[Prefix] {
        self.lists.get(&peer).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(texts: &[&str]) -> Vec<Prefix> {
        texts.iter().map(|text| Prefix::parse(text).unwrap()).collect()
    }

    #[test]
    fn the_longest_prefix_owns_an_address() {
        let mut routes = Routes::default();
        routes.assign(1, &prefixes(&["10.0.0.0/8", "fd00::/16"]));
        routes.assign(2, &prefixes(&["10.1.0.0/16", "10.1.2.3"]));
        let owner = |address: &str| routes.lookup(parse_address(address).unwrap());
        assert_eq!(owner("10.2.0.1"), Some(1));
        assert_eq!(owner("10.1.9.9"), Some(2));
        assert_eq!(owner("::ffff:10.1.9.9"), Some(2));
        assert_eq!(owner("fd00::1"), Some(1));
        assert_eq!(owner("192.0.2.1"), None);
    }

    #[test]
    fn a_prefix_moves_to_the_last_peer_that_it_was_assigned_to() {
        let mut routes = Routes::default();
        routes.assign(1, &prefixes(&["10.0.0.1", "10.0.0.2"]));
        assert!(routes.assign(2, &prefixes(&["10.0.0.2"])));
        assert!(!routes.assign(2, &prefixes(&["10.0.0.2"])));
        assert_eq!(routes.of(1), prefixes(&["10.0.0.1"]));
        assert!(routes.assign(2, &[]));
        assert_eq!(routes.lookup(parse_address("10.0.0.2").unwrap()), None);
    }
}
