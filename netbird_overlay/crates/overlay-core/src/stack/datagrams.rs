//! A queue of datagrams, bounded by count and bytes, fair by peer, and emptied in turns.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::stack::turns::Turns;
use crate::wire::prefix::PeerId;

pub(crate) struct QueueLimits {
    pub count: usize,
    pub bytes: usize,
}

#[derive(Default, Clone, Copy)]
struct Held {
    count: usize,
    bytes: usize,
}

pub(crate) struct Datagrams<T> {
    limits: QueueLimits,
    all: Held,
    by_peer: HashMap<PeerId, Held, RandomState>,
    turns: Turns<(PeerId, T, usize)>,
}

impl<T> Datagrams<T> {
    pub fn new(limits: QueueLimits) -> Self {
        Datagrams { limits, all: Held::default(), by_peer: HashMap::default(), turns: Turns::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.all.count == 0
    }

    /// Add a datagram, while those of its peer are at most as many, and as large, as what is still free for all. So a
    /// peer that floods takes half, and leaves room. False if it was dropped.
    pub fn push(&mut self, peer: PeerId, item: T, size: usize) -> bool {
        let held = self.by_peer.get(&peer).copied().unwrap_or_default();
        let (count, bytes) = (self.limits.count - self.all.count, self.limits.bytes - self.all.bytes);
        if held.count + 1 > count || held.bytes + size > bytes {
            return false;
        }
        self.by_peer.insert(peer, Held { count: held.count + 1, bytes: held.bytes + size });
        self.all.count += 1;
        self.all.bytes += size;
        self.turns.push(peer, (peer, item, size));
        true
    }

    /// Take the first datagram of the peer whose turn it is.
    pub fn pop(&mut self) -> Option<(PeerId, T)> {
        let (peer, item, size) = self.turns.pop()?;
        self.remove(peer, size);
        Some((peer, item))
    }

    pub fn forget(&mut self, peer: PeerId) {
        for (_, _, size) in self.turns.remove(peer) {
            self.remove(peer, size);
        }
    }

    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        let mut gone = Vec::new();
        self.turns.retain(|(peer, item, size)| {
            let kept = keep(item);
            if !kept {
                gone.push((*peer, *size));
            }
            kept
        });
        for (peer, size) in gone {
            self.remove(peer, size);
        }
    }

    fn remove(&mut self, peer: PeerId, size: usize) {
        self.all.count -= 1;
        self.all.bytes -= size;
        if let Some(held) = self.by_peer.get_mut(&peer) {
            held.count -= 1;
            held.bytes -= size;
            if held.count == 0 {
                self.by_peer.remove(&peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_peer_leaves_room_in_count_and_bytes() {
        let mut queue = Datagrams::new(QueueLimits { count: 100, bytes: 1000 });
        assert_eq!((0..100).filter(|n| queue.push(1, *n, 1)).count(), 50);
        assert_eq!((0..100).filter(|n| queue.push(2, *n, 1)).count(), 25);
        assert!(!queue.push(3, 0, 1000));
        assert!(queue.push(3, 0, 900));
        assert_eq!(queue.pop().map(|(peer, _)| peer), Some(1));
        assert_eq!(queue.pop().map(|(peer, _)| peer), Some(2));
        assert_eq!(queue.pop().map(|(peer, _)| peer), Some(3));
        queue.forget(1);
        queue.retain(|n| *n % 2 == 0);
        let rest: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert!(rest.iter().all(|(peer, n)| *peer == 2 && n % 2 == 0));
        assert!(queue.is_empty());
        assert_eq!((queue.all.bytes, queue.by_peer.len()), (0, 0));
    }
}
