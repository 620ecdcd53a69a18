//! The bytes of connections' buffers: what an engine, its peers and several engines of a process may take.
//!
//! The rule of fairness is the same for the engines of a process and for the peers of an engine: a holder may take more
//! while what it holds, with the new bytes, is at most what is still free. So one gets half, the next a quarter, and any
//! number of greedy ones leaves room. Buffers may grow up to half of what is still free only, so that large transfers
//! leave their own peer room to connect.

use std::collections::hash_map::Entry;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::wire::prefix::PeerId;

/// Bytes that the engines of a process share.
pub struct Budget {
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    pub fn new(limit: usize) -> Self {
        Budget { limit, used: AtomicUsize::new(0) }
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn free(&self) -> usize {
        self.limit.saturating_sub(self.used())
    }
}

/// The reason to take bytes, which decides on how many may be taken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Our own connection: everything that is free, because no peer causes it.
    Dial,
    /// A connection that a peer opens.
    Accept,
    /// A larger buffer.
    Grow,
}

/// The buffers of one engine, by peer. What it holds is given back when it is dropped.
pub(crate) struct Memory {
    shared: Arc<Budget>,
    limit: usize,
    used: usize,
    by_peer: HashMap<PeerId, usize, RandomState>,
}

impl Memory {
    pub fn new(shared: Arc<Budget>, limit: usize) -> Self {
        Memory { shared, limit, used: 0, by_peer: HashMap::default() }
    }

    pub fn used(&self) -> usize {
        self.used
    }

    /// The bytes that this engine may still take for its peers. Each byte taken counts twice in comparison with what
    /// the process has free: it is held, and it is no longer free.
    fn room(&self) -> usize {
        self.limit.saturating_sub(self.used).min(self.shared.free().saturating_sub(self.used) / 2)
    }

    /// Take bytes for a connection with `peer`. False, and nothing was taken, if they are not free or not for this holder.
    pub fn take(&mut self, peer: PeerId, bytes: usize, purpose: Purpose) -> bool {
        let held = self.by_peer.get(&peer).copied().unwrap_or(0) + bytes;
        let permitted = match purpose {
            Purpose::Dial => bytes <= self.limit.saturating_sub(self.used).min(self.shared.free()),
            Purpose::Accept => held <= self.room(),
            Purpose::Grow => held <= self.room() / 2,
        };
        if !permitted {
            return false;
        }
        self.used += bytes;
        *self.by_peer.entry(peer).or_default() += bytes;
        self.shared.used.fetch_add(bytes, Ordering::Relaxed);
        true
    }

    pub fn give_back(&mut self, peer: PeerId, bytes: usize) {
        self.used -= bytes;
        self.shared.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Entry::Occupied(mut held) = self.by_peer.entry(peer) {
            *held.get_mut() -= bytes;
            if *held.get() == 0 {
                held.remove();
            }
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.shared.used.fetch_sub(self.used, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_peers_leave_room() {
        let mut memory = Memory::new(Arc::new(Budget::new(usize::MAX)), 1 << 20);
        for (peer, share) in [(1, 512), (2, 256), (3, 128)] {
            let mut taken = 0;
            while memory.take(peer, 1024, Purpose::Accept) {
                taken += 1;
            }
            assert_eq!(taken, share);
        }
        assert!(memory.take(4, 64 << 10, Purpose::Accept));
    }

    #[test]
    fn greedy_engines_leave_room_and_give_back() {
        let shared = Arc::new(Budget::new(1 << 20));
        let mut first = Memory::new(shared.clone(), 1 << 30);
        for peer in 0..2000 {
            first.take(peer, 1024, Purpose::Accept);
        }
        assert_eq!(first.used(), 512 << 10);
        let mut second = Memory::new(shared.clone(), 1 << 30);
        assert!(second.take(1, 128 << 10, Purpose::Accept));
        drop(first);
        assert_eq!(shared.used(), 128 << 10);
        second.give_back(1, 128 << 10);
        assert_eq!(shared.used(), 0);
    }

    #[test]
    fn growth_leaves_its_peer_room_to_connect() {
        let mut memory = Memory::new(Arc::new(Budget::new(usize::MAX)), 900);
        while memory.take(1, 10, Purpose::Grow) {}
        assert_eq!(memory.used(), 300);
        assert!(memory.take(1, 150, Purpose::Accept));
    }

    #[test]
    fn a_dial_takes_what_is_free_and_no_more() {
        let mut memory = Memory::new(Arc::new(Budget::new(100)), 1000);
        assert!(memory.take(1, 99, Purpose::Dial));
        assert!(!memory.take(1, 2, Purpose::Dial));
        assert!(memory.take(2, 1, Purpose::Dial));
    }
}
