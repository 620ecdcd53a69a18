//! Datagrams of a peer: the answers to them, and the proofs in them.

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::HalfHandshake;
use boringtun::noise::{HandshakeInit, TunnResult};

use super::{Peer, CONTROL, INITIATION_INTERVAL, SESSION_REMAINS};
use crate::events::Event;
use crate::path::Path;
use crate::shared::Shared;
use crate::time::{Micros, NEVER};

impl Peer {
    /// The other end proved its keys in a packet from this address.
    fn authenticated(&mut self, shared: &mut Shared, length: usize, from: Path) {
        self.received += length as u64;
        if self.endpoint.is_some_and(|endpoint| endpoint.same_place_as(&from)) {
            self.endpoint = Some(from);
        } else if !self.pinned {
            self.endpoint = Some(from);
            shared.reached.push(self.key);
            if let Path::Udp { remote, .. } = from {
                let event = Event::EndpointChanged { peer: self.key, endpoint: remote };
                // A peer that moves with each datagram makes one event.
                match shared.events.last_mut() {
                    Some(last @ Event::EndpointChanged { .. }) if last.peer() == Some(self.key) => *last = event,
                    _ => shared.events.push(event),
                }
            }
        }
    }

    /// True if an initiation of this peer may be processed now.
    pub fn may_initiate(&self, now: Micros) -> bool {
        self.initiated.is_none_or(|at| now - at >= INITIATION_INTERVAL)
    }

    /// Answer an initiation of this many bytes, whose sender's key was decrypted.
    ///
    /// It may be an old one, recorded before our start. So the session begins, and the endpoint changes, only when data
    /// arrives in it; and handshakes of our own, and the timers of the session in use, go on as they were.
    pub fn receive_initiation(
        &mut self,
        shared: &mut Shared,
        initiation: (HandshakeInit, HalfHandshake),
        length: usize,
        from: Path,
    ) {
        if shared.outgoing.is_full(from) {
            shared.counters.queue_full += 1;
            return;
        }
        self.catch_up(shared);
        let mut buffer = [0u8; CONTROL];
        let (initiation, half) = initiation;
        let answer = self.with_index(shared, |tunn| match tunn.answer_initiation(half, initiation, &mut buffer)? {
            TunnResult::WriteToNetwork(answer) => Ok(answer.len()),
            _ => Ok(0),
        });
        match answer {
            Ok(answered) => {
                let now = shared.now();
                self.received += length as u64;
                self.initiated = Some(now);
                self.remains = now + SESSION_REMAINS;
                self.unproved = buffer.get(4..8).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
                self.push(shared, &buffer[..answered], from);
            }
            Err(error) => count(shared, &error),
        }
        self.note(shared);
    }

    /// Process any other message. Returns the length of the inner packet, which is at the start of `plain`.
    pub fn receive(
        &mut self,
        shared: &mut Shared,
        receiver: u32,
        datagram: &[u8],
        from: Path,
        plain: &mut [u8],
    ) -> Option<usize> {
        self.catch_up(shared);
        let inner = match self.tunn.decapsulate(Some(from.proved_address()), datagram, plain) {
            TunnResult::Err(error) => {
                count(shared, &error);
                None
            }
            // The answer to a response.
            TunnResult::WriteToNetwork(keepalive) => {
                self.authenticated(shared, datagram.len(), from);
                let to = self.endpoint.unwrap_or(from);
                self.push(shared, keepalive, to);
                self.established(shared);
                None
            }
            result if datagram.first() == Some(&4) => {
                self.authenticated(shared, datagram.len(), from);
                if self.unproved == Some(receiver) {
                    self.established(shared);
                }
                match result {
                    TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                        Some(packet.len())
                    }
                    _ => None,
                }
            }
            _ => None,
        };
        self.note(shared);
        inner
    }

    pub(super) fn end_handshake(&mut self) {
        self.handshaking = false;
        self.greeted = None;
        self.retry_at = NEVER;
    }

    fn established(&mut self, shared: &mut Shared) {
        self.established = Some(shared.now());
        self.unproved = None;
        self.end_handshake();
        self.remains = shared.now() + SESSION_REMAINS;
        shared.counters.handshakes += 1;
        shared.events.push(Event::Handshake { peer: self.key });
        shared.reached.push(self.key);
        self.send_queued(shared);
    }
}

fn count(shared: &mut Shared, error: &WireGuardError) {
    let counters = &mut shared.counters;
    let counter = match error {
        WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => &mut counters.replayed,
        WireGuardError::WrongTai64nTimestamp => &mut counters.replayed_handshake,
        WireGuardError::NoCurrentSession | WireGuardError::WrongIndex | WireGuardError::UnexpectedPacket => {
            &mut counters.unknown_session
        }
        WireGuardError::WrongKey => &mut counters.unknown_key,
        // The datagram was valid, but its content is not an IP packet.
        WireGuardError::InvalidPacket => &mut counters.bad_packet,
        _ => &mut counters.decrypt_failed,
    };
    *counter += 1;
}
