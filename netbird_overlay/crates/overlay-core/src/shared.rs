//! State that all parts of the engine share: time, random numbers, the queue of datagrams, events and counters.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::chance::Entropy;
use crate::counters::Counters;
use crate::events::{Event, Key};
use crate::noise::indices::Indices;
use crate::out::Outgoing;
use crate::strays::Strays;
use crate::time::{Clock, Micros};
use crate::wire::prefix::PeerId;

pub struct Shared {
    pub clock: Clock,
    pub entropy: Entropy,
    pub indices: Indices,
    /// The peers' timers. An entry that is not the peer's `tick_at` is out of date.
    pub timers: BinaryHeap<Reverse<(Micros, PeerId)>>,
    pub outgoing: Outgoing,
    pub strays: Strays,
    pub events: Vec<Event>,
    pub counters: Counters,
    /// Peers to which a new path or new keys lead since the last `advance`.
    pub reached: Vec<Key>,
    /// Number of handshakes computed so far, of both directions. Each costs as much as the decryption of 100 packets.
    pub handshakes_computed: u64,
    /// The most bytes that a connection which sent since the start of a turn has on the way to its peer.
    pub in_flight: usize,
    /// The overlay's MTU, IP header included.
    pub mtu: usize,
    /// Buffer for inner packets before encryption.
    pub scratch: Vec<u8>,
}

impl Shared {
    pub fn now(&self) -> Micros {
        self.clock.now()
    }
}
