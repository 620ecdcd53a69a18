//! The paths of datagrams to and from peers.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU64;

/// The caller's number for a path that is not UDP, such as a relay to one peer.
pub type Carrier = NonZeroU64;

#[derive(Clone, Copy, Debug)]
pub enum Path {
    Udp {
        remote: SocketAddr,
        /// Our own address at which the other end reached us, where the socket reports it. Answers leave from it.
        local: Option<IpAddr>,
    },
    Carrier(Carrier),
}

impl Path {
    pub fn udp(remote: SocketAddr) -> Self {
        Path::Udp { remote, local: None }
    }

    pub fn remote(&self) -> Option<SocketAddr> {
        match self {
            Path::Udp { remote, .. } => Some(*remote),
            Path::Carrier(_) => None,
        }
    }

    /// True if both lead to the same place, from whichever of our addresses.
    pub fn same_place_as(&self, other: &Path) -> bool {
        match (self, other) {
            (Path::Udp { remote, .. }, Path::Udp { remote: other, .. }) => remote == other,
            (Path::Carrier(carrier), Path::Carrier(other)) => carrier == other,
            _ => false,
        }
    }

    /// The address that a sender of handshakes has to prove. A carrier gets one of the block for discarded packets.
    pub fn proved_address(&self) -> IpAddr {
        match self {
            Path::Udp { remote, .. } => remote.ip(),
            Path::Carrier(carrier) => IpAddr::V6(Ipv6Addr::from((0x0100_u128 << 112) | u128::from(carrier.get()))),
        }
    }

    /// The network that a rate applies to: an IPv4 address, the first 64 bits of an IPv6 address, or a carrier.
    pub fn network(&self) -> (u8, u64) {
        match self {
            Path::Udp { remote, .. } => match remote.ip() {
                IpAddr::V4(v4) => (4, u64::from(u32::from(v4))),
                IpAddr::V6(v6) => (6, (u128::from(v6) >> 64) as u64),
            },
            Path::Carrier(carrier) => (0, carrier.get()),
        }
    }
}
