//! One overlay node. It alone connects the parts: input, timers and output.

use std::net::{IpAddr, SocketAddr};

use crate::clock::{Clock, Micros, NEVER};
use crate::conn::Limits;
use crate::counters::Counters;
use crate::entropy::Entropy;
use crate::events::{ConnId, EventSink, Key};
use crate::filter::Filter;
use crate::outgoing::Outgoing;
use crate::packet;
use crate::prefix::{PeerId, Prefix, Routes};
use crate::shared::Shared;
use crate::tcp::{ConnectError, Tcp};
use crate::wireguard::{PeerConfig, WireGuard, LONGEST};

pub struct Options {
    pub private_key: Key,
    pub mtu: usize,
    pub limits: Limits,
    pub handshakes_per_second: u64,
    pub entropy: Entropy,
}

pub struct Engine {
    pub shared: Shared,
    pub wg: WireGuard,
    pub routes: Routes,
    pub tcp: Tcp,
    /// Buffer for decrypted packets.
    plain: Vec<u8>,
}

impl Engine {
    pub fn new(options: Options) -> Self {
        let mut clock = Clock::new();
        clock.enter();
        Engine {
            wg: WireGuard::new(options.private_key, options.handshakes_per_second),
            tcp: Tcp::new(options.limits, options.mtu),
            routes: Routes::default(),
            plain: vec![0; LONGEST + 64],
            shared: Shared {
                clock,
                entropy: options.entropy,
                outgoing: Outgoing::default(),
                events: Vec::new(),
                counters: Counters::default(),
                mtu: options.mtu,
                scratch: vec![0; options.mtu + 16],
            },
        }
    }

    fn now(&self) -> Micros {
        self.shared.now()
    }

    pub fn set_peer(&mut self, config: &PeerConfig, prefixes: &[Prefix]) -> bool {
        let Some(id) = self.wg.set_peer(&mut self.shared, config) else { return false };
        if self.routes.assign(id, prefixes) {
            self.tcp.recheck_peers(self.shared.now(), &self.routes);
        }
        true
    }

    pub fn remove_peer(&mut self, key: &Key) -> bool {
        let Some(id) = self.wg.find(key) else { return false };
        self.routes.assign(id, &[]);
        self.wg.remove_peer(id);
        // Must happen before the id is reused for another peer.
        self.tcp.recheck_peers(self.shared.now(), &self.routes);
        true
    }

    pub fn whois(&self, address: IpAddr) -> Option<Key> {
        self.wg.peer(self.routes.exact(address)?).map(|peer| peer.key)
    }

    pub fn handshake(&mut self, key: &Key) -> bool {
        let Some(id) = self.wg.find(key) else { return false };
        let Some(peer) = self.wg.peer_mut(id) else { return false };
        let started = peer.handshake(&mut self.shared);
        self.wg.reschedule(id, self.shared.now());
        started
    }

    pub fn set_filter(&mut self, filter: Filter) {
        self.tcp.set_filter(self.shared.now(), filter);
    }

    pub fn connect(&mut self, address: IpAddr, port: u16) -> Result<ConnId, ConnectError> {
        self.tcp.connect(&mut self.shared, &self.wg, &self.routes, address, port)
    }

    /// Process one datagram. The next `advance` sends the answers.
    pub fn receive(&mut self, datagram: &[u8], from: SocketAddr) {
        let mut plain = std::mem::take(&mut self.plain);
        if let Some((peer, length)) = self.wg.receive(&mut self.shared, datagram, from, &mut plain) {
            self.receive_packet(peer, &plain[..length]);
        }
        self.plain = plain;
    }

    fn receive_packet(&mut self, id: PeerId, inner: &[u8]) {
        let counters = &mut self.shared.counters;
        let Some(header) = packet::parse(inner) else {
            counters.bad_packet += 1;
            return;
        };
        // Cryptokey routing: the source address must be the peer's, and never one of this node's own.
        if self.routes.lookup(header.source) != Some(id) || self.tcp.addresses().contains(&header.source) {
            counters.bad_source += 1;
            return;
        }
        if !self.tcp.addresses().contains(&header.destination) {
            counters.bad_destination += 1;
            return;
        }
        if let Some(peer) = self.wg.peer_mut(id) {
            self.tcp.receive(&mut self.shared, (id, peer), inner, &header);
            self.wg.reschedule(id, self.shared.now());
        }
    }

    /// Perform due work while the queue of datagrams has room.
    pub fn advance(&mut self) {
        self.wg.advance(&mut self.shared);
        self.tcp.advance(self.shared.now());
        self.tcp.flush(&mut self.shared, &mut self.wg);
        self.wg.advance(&mut self.shared);
    }

    pub fn pending(&self) -> bool {
        !self.shared.outgoing.is_empty() || self.tcp.pending()
    }

    pub fn deadline(&self) -> Micros {
        // A full queue needs no deadline: it waits for its reader.
        if self.tcp.pending() && self.shared.outgoing.has_room() {
            return self.now();
        }
        let next = self.wg.next_tick().min(self.tcp.next_timer());
        if next == NEVER {
            NEVER
        } else {
            next.max(self.now())
        }
    }

    pub fn events<S: EventSink>(&mut self, sink: &mut S) -> Result<(), S::Error> {
        if self.tcp.pending() {
            self.tcp.flush(&mut self.shared, &mut self.wg);
        }
        for event in std::mem::take(&mut self.shared.events) {
            sink.event(event)?;
        }
        self.tcp.report(sink)
    }
}
