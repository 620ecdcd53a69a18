//! Turns of sending: peers in turn, and the connections of a peer in turn, so that a peer with a thousand busy
//! connections has one share and not a thousand.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::RandomState;

use crate::wire::prefix::PeerId;

/// Work that waits for its turn, by peer. Every item waits at most once; its owner sees to that.
pub(crate) struct Turns<T> {
    peers: VecDeque<PeerId>,
    queues: HashMap<PeerId, VecDeque<T>, RandomState>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Turns { peers: VecDeque::new(), queues: HashMap::default() }
    }
}

impl<T> Turns<T> {
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    pub fn push(&mut self, peer: PeerId, item: T) {
        let queue = self.queues.entry(peer).or_default();
        if queue.is_empty() {
            self.peers.push_back(peer);
        }
        queue.push_back(item);
    }

    /// Take all items of a peer.
    pub fn remove(&mut self, peer: PeerId) -> VecDeque<T> {
        self.peers.retain(|other| *other != peer);
        self.queues.remove(&peer).unwrap_or_default()
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        for queue in self.queues.values_mut() {
            queue.retain(|item| keep(item));
        }
        self.queues.retain(|_, queue| !queue.is_empty());
        let queues = &self.queues;
        self.peers.retain(|peer| queues.contains_key(peer));
    }

    /// Take the next item: the first one of the peer whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let peer = self.peers.pop_front()?;
        let queue = self.queues.get_mut(&peer)?;
        let item = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&peer);
        } else {
            self.peers.push_back(peer);
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_take_turns_and_so_do_the_items_of_each() {
        let mut turns = Turns::default();
        for item in ["a1", "a2", "a3"] {
            turns.push(1, item);
        }
        turns.push(2, "b1");
        let order: Vec<_> = std::iter::from_fn(|| turns.pop()).collect();
        assert_eq!(order, ["a1", "b1", "a2", "a3"]);
        assert!(turns.is_empty());
    }
}
