//! Packets that are made where they are sent from, and encrypted there: without a copy between stack and queue.

use super::{Peer, OVERHEAD};
use crate::path::Path;
use crate::shared::Shared;

/// The part of a datagram that precedes the packet.
const HEADER: usize = 16;

impl Peer {
    /// The place of a packet of `length` bytes in the queue, where `seal` encrypts it without a copy. None if it must be
    /// passed to `send`: without a session or room, and for a carrier.
    pub fn place<'a>(&mut self, shared: &'a mut Shared, length: usize) -> Option<&'a mut [u8]> {
        let endpoint = self.endpoint.filter(|endpoint| endpoint.remote().is_some())?;
        self.catch_up(shared);
        if shared.outgoing.is_full(endpoint) || self.tunn.current_index().is_none() {
            return None;
        }
        Some(&mut shared.outgoing.place(length + OVERHEAD)[HEADER..HEADER + length])
    }

    /// Encrypt and queue the packet that was written to the place of `length` bytes.
    pub fn seal(&mut self, shared: &mut Shared, length: usize) {
        let Some(endpoint) = self.endpoint else { return };
        let Path::Udp { remote, local } = endpoint else { return };
        let place = shared.outgoing.place(length + OVERHEAD);
        if let Some(size) = self.tunn.encapsulate_in_place(place, length) {
            shared.outgoing.commit(remote, local, size);
            self.account_sent(shared, size, 4);
            self.note(shared);
        } else {
            // The session's messages are used up.
            let packet = place[HEADER..HEADER + length].to_vec();
            self.wait(shared, &packet, endpoint);
        }
    }
}
