//! The engine's events, before their conversion to Python objects.

use std::net::{IpAddr, SocketAddr};

use crate::stack::udp::{Received, UdpId};

pub type ConnId = u64;
pub type Key = [u8; 32];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    Finished,
    Local,
    Reset,
    Refused,
    Unreachable,
    Timeout,
    PeerRemoved,
    AddressRemoved,
    Denied,
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Reason::Finished => "finished",
            Reason::Local => "local",
            Reason::Reset => "reset",
            Reason::Refused => "refused",
            Reason::Unreachable => "unreachable",
            Reason::Timeout => "timeout",
            Reason::PeerRemoved => "peer_removed",
            Reason::AddressRemoved => "address_removed",
            Reason::Denied => "denied",
        }
    }
}

#[derive(Debug)]
pub enum Event {
    Accepted { conn: ConnId, local: (IpAddr, u16), remote: (IpAddr, u16), peer: Key },
    Connected { conn: ConnId, local: (IpAddr, u16) },
    ConnectFailed { conn: ConnId, reason: Reason },
    Eof { conn: ConnId },
    Writable { conn: ConnId },
    Closed { conn: ConnId, reason: Reason },
    UdpReceived(Received),
    UdpFailed { conn: UdpId, reason: Reason },
    Handshake { peer: Key },
    EndpointChanged { peer: Key, endpoint: SocketAddr },
}

impl Event {
    /// The peer that an event about a peer itself is of.
    pub fn peer(&self) -> Option<Key> {
        match self {
            Event::Handshake { peer } | Event::EndpointChanged { peer, .. } => Some(*peer),
            _ => None,
        }
    }
}

/// The receiver of events. Data is written directly into memory that the receiver allocates, so it is copied once.
pub trait EventSink {
    type Error;
    fn event(&mut self, event: Event) -> Result<(), Self::Error>;
    fn data(&mut self, conn: ConnId, length: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<(), Self::Error>;
}
