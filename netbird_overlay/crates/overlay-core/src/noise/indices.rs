//! The numbers by which the other end names our sessions and handshakes.
//!
//! A number is random to everybody else. For us, half of it names the peer, hidden by the other half and a key: so a
//! datagram of a session from before our restart still tells whose it is. The key changes every ten minutes, so that no
//! number comes again; sessions do not last longer than three.

use std::collections::hash_map::Entry;
use std::collections::HashMap;

use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::Blake2sMac;
use foldhash::fast::RandomState;
use zeroize::Zeroizing;

use crate::chance::Entropy;
use crate::events::Key;
use crate::wire::prefix::PeerId;

/// Seconds of wall time in which the numbers are hidden by one key.
const EPOCH: u64 = 600;

pub struct Indices {
    key: Zeroizing<Key>,
    peers: HashMap<u32, PeerId, RandomState>,
    tags: HashMap<u16, Vec<PeerId>, RandomState>,
}

impl Indices {
    /// `key` must be the same after a restart.
    pub fn new(key: Zeroizing<Key>) -> Self {
        Indices { key, peers: HashMap::default(), tags: HashMap::default() }
    }

    fn tag(&self, peer: &Key) -> u16 {
        self.hash(&[b"peer", peer])
    }

    fn mask(&self, epoch: u64, random: u16) -> u16 {
        self.hash(&[b"mask", &epoch.to_le_bytes(), &random.to_le_bytes()])
    }

    fn hash(&self, parts: &[&[u8]]) -> u16 {
        let mut state = <Blake2sMac<blake2::digest::consts::U16> as KeyInit>::new((&*self.key).into());
        for part in parts {
            state.update(part);
        }
        let hash = state.finalize_fixed();
        u16::from_le_bytes([hash[0], hash[1]])
    }

    /// The period of wall time in which a number was taken.
    pub fn epoch(&self, wall_seconds: u64) -> u64 {
        wall_seconds / EPOCH
    }

    pub fn add_peer(&mut self, id: PeerId, key: &Key) {
        self.tags.entry(self.tag(key)).or_default().push(id);
    }

    pub fn remove_peer(&mut self, id: PeerId, key: &Key) {
        let tag = self.tag(key);
        if let Some(peers) = self.tags.get_mut(&tag) {
            peers.retain(|other| *other != id);
            if peers.is_empty() {
                self.tags.remove(&tag);
            }
        }
    }

    /// Take a free number for a peer that is `usable`. None without random numbers.
    pub fn allocate(
        &mut self,
        entropy: &mut Entropy,
        id: PeerId,
        key: &Key,
        wall_seconds: u64,
        usable: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        let tag = self.tag(key);
        for _ in 0..1000 {
            let random = entropy.draw()? as u16;
            let hidden = tag ^ self.mask(wall_seconds / EPOCH, random);
            let index = u32::from(random) << 16 | u32::from(hidden);
            if !usable(index) {
                continue;
            }
            if let Entry::Vacant(free) = self.peers.entry(index) {
                free.insert(id);
                return Some(index);
            }
        }
        None
    }

    pub fn release(&mut self, index: u32) {
        self.peers.remove(&index);
    }

    pub fn owner(&self, index: u32) -> Option<PeerId> {
        self.peers.get(&index).copied()
    }

    /// The peers that a number of an earlier process may be of; hardly ever more than one.
    pub fn hint(&self, index: u32, wall_seconds: u64) -> impl Iterator<Item = PeerId> + '_ {
        let (random, hidden) = ((index >> 16) as u16, index as u16);
        let epoch = wall_seconds / EPOCH;
        // The next one too: the wall clock may have been set back.
        [epoch, epoch.saturating_sub(1), epoch + 1]
            .into_iter()
            .filter_map(move |epoch| self.tags.get(&(hidden ^ self.mask(epoch, random))))
            .flatten()
            .copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn indices() -> Indices {
        let mut indices = Indices::new(zeroize::Zeroizing::new([3; 32]));
        for id in 0..50 {
            indices.add_peer(id, &[id as u8; 32]);
        }
        indices
    }

    #[test]
    fn a_number_names_its_peer_after_a_restart_and_for_a_short_time() {
        let mut entropy = Entropy::new(Some(b"indices"));
        let (mut before, after) = (indices(), indices());
        for id in 0..50 {
            let index = before.allocate(&mut entropy, id, &[id as u8; 32], 10_000, |_| true).unwrap();
            assert_eq!(before.owner(index), Some(id));
            assert!(after.hint(index, 10_180).any(|hinted| hinted == id));
            before.release(index);
            assert_eq!(before.owner(index), None);
        }
        let index = before.allocate(&mut entropy, 7, &[7; 32], 10_000, |_| true).unwrap();
        assert!(!after.hint(index, 12_000).any(|hinted| hinted == 7));
        let mut without = indices();
        without.remove_peer(7, &[7; 32]);
        assert!(!without.hint(index, 10_000).any(|hinted| hinted == 7));
    }

    #[test]
    fn no_bits_of_a_peers_numbers_stay() {
        let mut entropy = Entropy::new(Some(b"bits"));
        let mut indices = indices();
        let (mut ones, mut zeros) = (0, 0);
        for step in 0..64 {
            let index = indices.allocate(&mut entropy, 7, &[7; 32], step * 120, |_| true).unwrap();
            ones |= index;
            zeros |= !index;
        }
        assert_eq!((ones, zeros), (u32::MAX, u32::MAX));
    }
}
