//! What every part of the engine writes to: time, chance, the queue of datagrams, events and counts.

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
    /// Of the overlay, IP header included.
    pub mtu: usize,
    /// Where inner packets are made before they are encrypted.
    pub scratch: Vec<u8>,
}

impl Shared {
    pub fn now(&self) -> Micros {
        self.clock.now()
    }
}
