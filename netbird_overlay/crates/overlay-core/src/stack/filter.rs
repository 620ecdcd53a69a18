//! The rules for flows that peers open. Without rules, nothing is allowed.

use std::collections::HashMap;
use std::net::IpAddr;

use foldhash::fast::RandomState;

use crate::wire::prefix::{Lengths, Prefix};

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

#[derive(Clone, Copy)]
pub struct Rule {
    pub source: Prefix,
    pub protocol: u8,
    pub ports: (u16, u16),
}

impl Rule {
    /// Build a rule from a prefix, a protocol (6 TCP, 17 UDP, 1 echo requests of both families) and the first and last
    /// port.
    pub fn parse(source: &str, protocol: i64, first: i64, last: i64) -> Result<Self, String> {
        let source = Prefix::parse(source)?;
        let protocol = match protocol {
            1 => ICMP,
            6 => TCP,
            17 => UDP,
            other => return Err(format!("not a protocol that rules can speak of: {other}")),
        };
        match (u16::try_from(first), u16::try_from(last)) {
            (Ok(first), Ok(last)) if first <= last => Ok(Rule { source, protocol, ports: (first, last) }),
            _ => Err(format!("not a range of ports: {first}..{last}")),
        }
    }

    fn admits(&self, protocol: u8, port: u16) -> bool {
        self.protocol == protocol && (protocol == ICMP || (self.ports.0 <= port && port <= self.ports.1))
    }
}

/// Rules by source: one hash look-up for each prefix length in use, since nearly all rules name single addresses.
#[derive(Default)]
struct Rules {
    by_source: HashMap<Prefix, Vec<Rule>, RandomState>,
    lengths: Lengths,
}

impl Rules {
    fn new(rules: &[Rule]) -> Self {
        let mut made = Rules::default();
        for rule in rules {
            let same = made.by_source.entry(rule.source).or_default();
            if same.is_empty() {
                made.lengths.add(rule.source);
            }
            same.push(*rule);
        }
        made
    }

    fn admit(&self, source: IpAddr, protocol: u8, port: u16) -> bool {
        self.lengths
            .prefixes(source)
            .filter_map(|prefix| self.by_source.get(&prefix))
            .any(|rules| rules.iter().any(|rule| rule.admits(protocol, port)))
    }
}

#[derive(Default)]
pub struct Filter {
    allowed: Rules,
    denied: Rules,
}

impl Filter {
    pub fn new(allowed: &[Rule], denied: &[Rule]) -> Self {
        Filter { allowed: Rules::new(allowed), denied: Rules::new(denied) }
    }

    /// Checked for each new flow, and for each datagram that belongs to none. `port` is ignored for ICMP.
    pub fn allows(&self, source: IpAddr, protocol: u8, port: u16) -> bool {
        !self.denied.admit(source, protocol, port) && self.allowed.admit(source, protocol, port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::prefix::parse_address;

    fn rules(texts: &[(&str, i64, i64, i64)]) -> Vec<Rule> {
        texts
            .iter()
            .map(|&(source, protocol, first, last)| Rule::parse(source, protocol, first, last).unwrap())
            .collect()
    }

    #[test]
    fn any_length_of_prefix_admits_and_denials_go_first() {
        let filter = Filter::new(
            &rules(&[("100.64.0.1", 6, 80, 80), ("100.64.0.0/24", 17, 53, 53), ("::/0", 6, 443, 443)]),
            &rules(&[("100.64.0.7", 17, 1, 100)]),
        );
        let allows = |source: &str, protocol, port| filter.allows(parse_address(source).unwrap(), protocol, port);
        assert!(allows("100.64.0.1", TCP, 80));
        assert!(allows("100.64.0.1", UDP, 53));
        assert!(!allows("100.64.0.1", UDP, 80));
        assert!(!allows("100.64.0.2", TCP, 80));
        assert!(!allows("100.64.0.7", UDP, 53));
        assert!(allows("fd00::9", TCP, 443));
        assert!(!allows("100.64.0.9", TCP, 443));
    }
}
