//! Connections that peers began to open: their number by port, and which of them gives way when there are too many.

use std::collections::{BTreeMap, HashMap};

use foldhash::fast::RandomState;

use crate::events::ConnId;
use crate::wire::prefix::PeerId;

/// Half-open connections in the order in which they began, which is the order of their numbers.
#[derive(Default)]
pub(crate) struct HalfOpen {
    entries: BTreeMap<ConnId, (PeerId, u16)>,
    by_port: HashMap<u16, usize, RandomState>,
}

impl HalfOpen {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn on_port(&self, port: u16) -> usize {
        self.by_port.get(&port).copied().unwrap_or(0)
    }

    pub fn add(&mut self, id: ConnId, peer: PeerId, port: u16) {
        if self.entries.insert(id, (peer, port)).is_none() {
            *self.by_port.entry(port).or_default() += 1;
        }
    }

    /// Forget a connection that was established or ended. Without effect if it is not half-open.
    pub fn remove(&mut self, id: ConnId) {
        let Some((_, port)) = self.entries.remove(&id) else { return };
        if let Some(count) = self.by_port.get_mut(&port) {
            *count -= 1;
            if *count == 0 {
                self.by_port.remove(&port);
            }
        }
    }

    /// Return the connection that gives way to another one of `peer`, on this port or on any: the oldest of the peer that
    /// holds most. None if no peer holds more than `peer`: its own are not ended, since they may be about to complete.
    pub fn victim(&self, peer: PeerId, port: Option<u16>) -> Option<ConnId> {
        let mut held: HashMap<PeerId, (usize, ConnId), RandomState> = HashMap::default();
        for (&id, &(holder, on)) in &self.entries {
            if port.is_none_or(|port| port == on) {
                held.entry(holder).or_insert((0, id)).0 += 1;
            }
        }
        let own = held.get(&peer).map_or(0, |(count, _)| *count);
        let most = held.into_values().max_by_key(|&(count, oldest)| (count, std::cmp::Reverse(oldest)));
        most.filter(|(count, _)| *count > own).map(|(_, oldest)| oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_the_peer_that_holds_most_gives_way() {
        let mut half_open = HalfOpen::default();
        half_open.add(1, 7, 80);
        for id in 2..5 {
            half_open.add(id, 8, 80);
        }
        for id in 5..10 {
            half_open.add(id, 9, 443);
        }
        assert_eq!(half_open.victim(7, Some(80)), Some(2));
        assert_eq!(half_open.victim(8, Some(80)), None);
        assert_eq!(half_open.victim(8, None), Some(5));
        assert_eq!(half_open.victim(9, None), None);
        assert_eq!(half_open.victim(7, Some(22)), None);
        for id in 2..10 {
            half_open.remove(id);
        }
        assert_eq!((half_open.len(), half_open.on_port(80), half_open.on_port(443)), (1, 1, 0));
        assert_eq!(half_open.victim(9, Some(80)), Some(1));
    }
}
