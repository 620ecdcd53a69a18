//! Inbound connections by peer, and how many more a peer may open.

use std::collections::hash_map::Entry;
use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::conn::Limits;
use crate::prefix::PeerId;

/// The answer to a peer that opens another connection.
pub(crate) enum Room {
    Yes,
    Full,
    /// Connections are free, but this peer has its share of them.
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

    /// `most` connections may exist and `open` do. With fair limits a peer may have as many as are still free, so that
    /// any number of peers that take all they can leave room for the next.
    pub fn room(&self, peer: PeerId, limits: &Limits, most: usize, open: usize) -> Room {
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
