//! The rules for flows that peers open. Without rules, nothing is allowed.

use std::net::IpAddr;

use crate::prefix::Prefix;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;

pub struct Rule {
    pub source: Prefix,
    pub protocol: u8,
    pub ports: (u16, u16),
}

impl Rule {
    /// Build a rule from a prefix, a protocol (6 TCP, 1 echo requests of both families) and the first and last port.
    pub fn parse(source: &str, protocol: i64, first: i64, last: i64) -> Result<Self, String> {
        let source = Prefix::parse(source)?;
        let protocol = match protocol {
            1 => ICMP,
            6 => TCP,
            other => return Err(format!("not a protocol that rules can speak of: {other}")),
        };
        match (u16::try_from(first), u16::try_from(last)) {
            (Ok(first), Ok(last)) if first <= last => Ok(Rule { source, protocol, ports: (first, last) }),
            _ => Err(format!("not a range of ports: {first}..{last}")),
        }
    }

    fn matches(&self, source: IpAddr, protocol: u8, port: u16) -> bool {
        self.protocol == protocol
            && (protocol != TCP || (self.ports.0 <= port && port <= self.ports.1))
            && self.source.contains(source)
    }
}

#[derive(Default)]
pub struct Filter {
    pub allowed: Vec<Rule>,
    pub denied: Vec<Rule>,
}

impl Filter {
    /// Checked once for each new flow, not for each packet. `port` is ignored for ICMP.
    pub fn allows(&self, source: IpAddr, protocol: u8, port: u16) -> bool {
        let hit = |rules: &[Rule]| rules.iter().any(|rule| rule.matches(source, protocol, port));
        !hit(&self.denied) && hit(&self.allowed)
    }
}
