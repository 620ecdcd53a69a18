//! The network device of the TCP stack: one packet in, packets for one peer out.

use std::net::IpAddr;

use smoltcp::iface::{Config, Interface};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};

use crate::noise::peer::Peer;
use crate::shared::Shared;
use crate::stack::guard::entered;
use crate::time::instant;

/// Packets up to this length keep a copy in `Shared::scratch`, which TIME-WAIT may need; a longer one has data.
const SHORT: usize = 128;

pub struct Link<'a> {
    pub peer: &'a mut Peer,
    pub shared: &'a mut Shared,
    pub packet: Option<&'a [u8]>,
    /// Number of packets that may still be sent.
    pub budget: usize,
    /// Length of the last packet sent, with its padding, which is still in `shared.scratch`; 0 for one with data.
    pub last: usize,
}

impl<'a> Link<'a> {
    pub fn new(peer: &'a mut Peer, shared: &'a mut Shared, packet: Option<&'a [u8]>, budget: usize) -> Self {
        Link { peer, shared, packet, budget, last: 0 }
    }

    fn sent(&mut self, last: usize) {
        self.budget = self.budget.saturating_sub(1);
        self.last = last;
    }

    pub fn exhausted(&self) -> bool {
        self.budget == 0 || !self.shared.outgoing.has_room()
    }
}

pub struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub struct Sending<'b, 'a>(&'b mut Link<'a>);

impl TxToken for Sending<'_, '_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let link = self.0;
        // Padded as WireGuard requires, to hide a packet's exact length.
        let padded = length.next_multiple_of(16).min(link.shared.mtu);
        if length > SHORT && length <= link.shared.mtu {
            if let Some(place) = link.peer.place(link.shared, padded) {
                let result = f(&mut place[..length]);
                place[length..].fill(0);
                link.peer.seal(link.shared, padded);
                link.sent(0);
                return result;
            }
        }
        let mut scratch = std::mem::take(&mut link.shared.scratch);
        if scratch.len() < length + 16 {
            scratch.resize(length + 16, 0);
        }
        let result = f(&mut scratch[..length]);
        // Only the echo of a packet above our own MTU can be too long here.
        if length <= link.shared.mtu {
            scratch[length..padded].fill(0);
            link.peer.send(link.shared, &scratch[..padded]);
            link.sent(padded);
        }
        link.shared.scratch = scratch;
        result
    }
}

impl<'a> Device for Link<'a> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Sending<'b, 'a>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sending<'_, 'a>)> {
        let packet = self.packet.take()?;
        entered();
        Some((Received(packet), Sending(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_, 'a>> {
        entered();
        if self.exhausted() {
            None
        } else {
            Some(Sending(self))
        }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.shared.mtu)
    }
}

fn capabilities(mtu: usize) -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = mtu;
    // WireGuard authenticated every byte of a received packet, so its checksums could reveal an error of the sender only.
    capabilities.checksum.ipv4 = Checksum::Tx;
    capabilities.checksum.tcp = Checksum::Tx;
    capabilities
}

/// A device without a network, which the interface's constructor requires.
pub struct Nowhere {
    pub mtu: usize,
}

pub enum Never {}

impl RxToken for Never {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, _: F) -> R {
        match self {}
    }
}

impl TxToken for Never {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, _: usize, _: F) -> R {
        match self {}
    }
}

impl Device for Nowhere {
    type RxToken<'b> = Never;
    type TxToken<'b> = Never;

    fn receive(&mut self, _: Instant) -> Option<(Never, Never)> {
        None
    }

    fn transmit(&mut self, _: Instant) -> Option<Never> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.mtu)
    }
}

/// Create the stack's interface. Its initial sequence numbers derive from a seed, which each connection must renew.
pub fn interface(addresses: &[IpAddr], mtu: usize, seed: u64) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut interface = Interface::new(config, &mut Nowhere { mtu }, instant(0));
    interface.update_ip_addrs(|list| {
        for address in addresses {
            // `set_addresses` limits their number.
            let _ = list.push(IpCidr::new((*address).into(), if address.is_ipv4() { 32 } else { 128 }));
        }
    });
    for address in addresses {
        let _ = match address {
            IpAddr::V4(v4) => interface.routes_mut().add_default_ipv4_route(*v4).map(|_| ()),
            IpAddr::V6(v6) => interface.routes_mut().add_default_ipv6_route(*v6).map(|_| ()),
        };
    }
    interface
}
