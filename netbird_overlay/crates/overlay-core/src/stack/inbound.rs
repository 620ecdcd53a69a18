//! Counts of inbound connections by peer, and the decision on another one.

use std::collections::hash_map::Entry;
use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::stack::conn::Limits;
use crate::wire::prefix::PeerId;

/// The decision on another connection of a peer.
pub(crate) enum Room {
    Yes,
    Full,
    /// Connections are free, but this peer has used its share.
    ShareTaken,
}

/// Counts inbound connections, half-open ones included. A peer without connections has no entry.
#[derive(Default)]
pub(crate) struct Inbound {
    by_peer: HashMap<PeerId, usize, RandomState>,
    count: usize,
}

impl Inbound {
    pub fn add(&mut self, peer: PeerId) {
        self.count += 1;
        *self.by_peer.entry(peer).or_default() += 1;
    }

    pub fn remove(&mut self, peer: PeerId) {
        self.count -= 1;
        if let Entry::Occupied(mut connections) = self.by_peer.entry(peer) {
            *connections.get_mut() -= 1;
            if *connections.get() == 0 {
                connections.remove();
            }
        }
    }

    /// `open` is the current number of connections. With fair limits a peer may have as many as are still free, so that
    /// any number of greedy peers leaves room for others.
    pub fn room(&self, peer: PeerId, limits: &Limits, open: usize) -> Room {
        let most = limits.max_connections;
        let free =
            most.saturating_sub(limits.reserved_for_dials).saturating_sub(self.count).min(most.saturating_sub(open));
        if free == 0 {
            Room::Full
        } else if limits.fair && self.by_peer.get(&peer).is_some_and(|connections| *connections >= free) {
            Room::ShareTaken
        } else {
            Room::Yes
        }
    }
}
