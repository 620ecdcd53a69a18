//! State that all parts of the engine share: time, random numbers, the queue of datagrams, events and counters.

use crate::clock::{Clock, Micros};
use crate::counters::Counters;
use crate::entropy::Entropy;
use crate::events::Event;
use crate::outgoing::Outgoing;

pub struct Shared {
    pub clock: Clock,
    pub entropy: Entropy,
    pub outgoing: Outgoing,
    pub events: Vec<Event>,
    pub counters: Counters,
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
