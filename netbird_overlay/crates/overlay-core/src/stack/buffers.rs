//! The sizes of a connection's buffers: small at first, larger by need, small again when idle.
//!
//! A receive buffer is the window that the other end sees, so a buffer that stays small limits the rate to its size for
//! each round trip, and one that is always large lets idle peers pin memory.

use smoltcp::socket::tcp::Socket;

use crate::stack::conn::Limits;
use crate::stack::memory::{Memory, Purpose};
use crate::time::{Micros, MILLISECOND, SECOND};
use crate::wire::prefix::PeerId;

/// Size of a new connection's buffers, in each direction: more than ten segments, with which a sender begins.
pub const FIRST: usize = 16 << 10;
/// Bytes that a connection takes beside its buffers, about.
const BESIDE: usize = 2 << 10;
/// Round-trip time assumed for windows if it is shorter, or unknown.
const SHORTEST_ROUND_TRIP: Micros = MILLISECOND / 2;
const UNKNOWN_ROUND_TRIP: Micros = 100 * MILLISECOND;
/// Time without data after which grown buffers shrink. Less than the interval of keepalives, which wake an idle
/// connection and announce the smaller window.
const IDLE: Micros = 60 * SECOND;

pub(crate) struct Buffers {
    receive_limit: usize,
    send_limit: usize,
    /// Bytes taken from the engine's memory for this connection.
    held: usize,
    last_used: Micros,
    /// The bytes read within the current round trip, and its start.
    read: usize,
    round_trip_began: Micros,
}

impl Buffers {
    pub fn new(limits: &Limits, now: Micros) -> Self {
        Buffers {
            receive_limit: limits.receive_buffer,
            send_limit: limits.send_buffer,
            held: 0,
            last_used: now,
            read: 0,
            round_trip_began: now,
        }
    }

    pub fn first_receive(&self) -> usize {
        self.receive_limit.min(FIRST)
    }

    pub fn first_send(&self) -> usize {
        self.send_limit.min(FIRST)
    }

    /// Take the memory of a new connection. False if there is none.
    pub fn take_first(&mut self, peer: PeerId, memory: &mut Memory, purpose: Purpose) -> bool {
        let bytes = self.first_receive() + self.first_send() + BESIDE;
        let taken = memory.take(peer, bytes, purpose);
        if taken {
            self.held = bytes;
        }
        taken
    }

    pub fn give_back_all(&mut self, peer: PeerId, memory: &mut Memory) {
        memory.give_back(peer, std::mem::take(&mut self.held));
    }

    /// Data was written or read.
    pub fn used(&mut self, now: Micros) {
        self.last_used = now;
    }

    /// Enlarge a full send buffer if the windows let more than half of it be in flight. True if it was enlarged.
    pub fn grow_send(&mut self, socket: &mut Socket<'static>, peer: PeerId, memory: &mut Memory) -> bool {
        let capacity = socket.send_capacity();
        let larger = (2 * capacity).min(self.send_limit);
        // Half a buffer must be free before the owner is asked for more data, and the other half keeps the path busy.
        if larger <= capacity || 2 * socket.send_window() <= capacity || !self.take(larger - capacity, peer, memory) {
            return false;
        }
        socket.grow_send_buffer(larger);
        true
    }

    /// Enlarge the receive buffer if half of it was read within one round trip: the sender may wait for the window.
    pub fn grow_receive(
        &mut self,
        socket: &mut Socket<'static>,
        read: usize,
        now: Micros,
        peer: PeerId,
        memory: &mut Memory,
    ) {
        self.used(now);
        let round_trip = socket.smoothed_rtt().map_or(UNKNOWN_ROUND_TRIP, |rtt| rtt.total_micros());
        if now - self.round_trip_began > round_trip.max(SHORTEST_ROUND_TRIP) {
            self.round_trip_began = now;
            self.read = 0;
        }
        self.read += read;
        let capacity = socket.recv_capacity();
        let larger = (2 * capacity).min(self.receive_limit);
        if larger > capacity && 2 * self.read >= capacity && self.take(larger - capacity, peer, memory) {
            socket.grow_recv_buffer(larger);
        }
    }

    fn take(&mut self, bytes: usize, peer: PeerId, memory: &mut Memory) -> bool {
        let taken = memory.take(peer, bytes, Purpose::Grow);
        if taken {
            self.held += bytes;
        }
        taken
    }

    pub fn shrink(&mut self, socket: &mut Socket<'static>, now: Micros, peer: PeerId, memory: &mut Memory) {
        if now - self.last_used < IDLE {
            return;
        }
        let (receive, send) = (socket.recv_capacity(), socket.send_capacity());
        let mut freed = 0;
        if receive > self.first_receive() && socket.shrink_recv_buffer(self.first_receive()) {
            freed += receive - self.first_receive();
        }
        if send > self.first_send() && socket.shrink_send_buffer(self.first_send()) {
            freed += send - self.first_send();
        }
        self.held -= freed;
        memory.give_back(peer, freed);
    }
}
