//! The rate of handshakes: above a total, senders prove their address; then each address has a rate of its own.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::path::Path;
use crate::time::{Micros, MILLISECOND, SECOND};

/// The rate of one address (an IPv4 address, or the first 64 bits of an IPv6 address), and how many may come at once.
const INTERVAL: Micros = 50 * MILLISECOND;
const BURST: u64 = 5;
/// Maximum number of addresses that are remembered.
const MOST: usize = 4096;
/// Minimum time between two searches for addresses that can be forgotten.
const SWEEP_INTERVAL: Micros = 100 * MILLISECOND;

pub struct Admission {
    per_second: u64,
    count: u64,
    second: Micros,
    /// For each address the time at which it has used up nothing.
    clear_at: HashMap<(u8, u64), Micros, RandomState>,
    swept: Micros,
}

impl Admission {
    pub fn new(per_second: u64) -> Self {
        Admission { per_second, count: 0, second: 0, clear_at: HashMap::default(), swept: 0 }
    }

    /// Count a handshake message. True if its sender must prove its address.
    pub fn is_under_load(&mut self, now: Micros) -> bool {
        if now - self.second >= SECOND {
            (self.second, self.count) = (now, 0);
        }
        self.count += 1;
        self.count > self.per_second
    }

    /// True if another handshake of this proved address may be processed.
    pub fn admits(&mut self, from: Path, now: Micros) -> bool {
        let address = from.network();
        if !self.clear_at.contains_key(&address) && self.clear_at.len() >= MOST {
            if now - self.swept < SWEEP_INTERVAL {
                return false;
            }
            self.swept = now;
            self.clear_at.retain(|_, clear_at| *clear_at > now);
            if self.clear_at.len() >= MOST {
                return false;
            }
        }
        let clear_at = self.clear_at.entry(address).or_insert(now);
        *clear_at = (*clear_at).max(now);
        if *clear_at + INTERVAL > now + BURST * INTERVAL {
            return false;
        }
        *clear_at += INTERVAL;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> Path {
        Path::udp(address.parse().unwrap())
    }

    #[test]
    fn an_address_has_a_burst_and_then_a_rate() {
        let mut admission = Admission::new(0);
        let admitted =
            |admission: &mut Admission, from: &str, now| (0..100).filter(|_| admission.admits(at(from), now)).count();
        assert_eq!(admitted(&mut admission, "192.0.2.1:1", SECOND), 5);
        assert_eq!(admitted(&mut admission, "192.0.2.1:2", SECOND), 0);
        assert_eq!(admitted(&mut admission, "192.0.2.2:1", SECOND), 5);
        assert_eq!(admitted(&mut admission, "192.0.2.1:1", SECOND + 2 * INTERVAL), 2);
        assert_eq!(admitted(&mut admission, "192.0.2.1:1", 9 * SECOND), 5);
        assert_eq!(admitted(&mut admission, "[2001:db8::1]:1", SECOND), 5);
        assert_eq!(admitted(&mut admission, "[2001:db8::ffff]:1", SECOND), 0);
        assert_eq!(admitted(&mut admission, "[2001:db8:0:1::1]:1", SECOND), 5);
    }

    #[test]
    fn the_table_is_bounded_and_forgets() {
        let mut admission = Admission::new(0);
        let address = |number: u32| at(&format!("{}:1", std::net::Ipv4Addr::from(number)));
        for number in 0..10_000 {
            admission.admits(address(number), SECOND);
        }
        assert_eq!(admission.clear_at.len(), MOST);
        assert!(admission.admits(address(20_000), 2 * SECOND));
        assert_eq!(admission.clear_at.len(), 1);
    }

    #[test]
    fn load_is_counted_by_the_second() {
        let mut admission = Admission::new(2);
        let loads: Vec<bool> = (0..4).map(|_| admission.is_under_load(SECOND)).collect();
        assert_eq!(loads, [false, false, true, true]);
        assert!(!admission.is_under_load(2 * SECOND));
    }
}
