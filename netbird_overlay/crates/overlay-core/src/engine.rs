//! One overlay node. It alone connects the parts: input, timers and output.

use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::sync::Arc;

use blake2::{Blake2s256, Digest};
use boringtun::x25519::StaticSecret;
use zeroize::Zeroizing;

use crate::chance::Entropy;
use crate::counters::Counters;
use crate::events::{ConnId, EventSink, Key};
use crate::noise::indices::Indices;
use crate::noise::peer::Peer;
use crate::noise::wireguard::{PeerConfig, WireGuard, LONGEST};
use crate::out::Outgoing;
use crate::path::Path;
use crate::shared::Shared;
use crate::stack::conn::Limits;
use crate::stack::filter::{Filter, UDP};
use crate::stack::memory::Budget;
use crate::stack::tcp::{ConnectError, Tcp};
use crate::stack::udp::{SendError, Udp, UdpId};
use crate::strays::{is_stun, Strays};
use crate::time::{Clock, Micros, NEVER};
use crate::wire::packet::{self, Content};
use crate::wire::prefix::{PeerId, Prefix, Routes};

/// Domain separation for the key that hides peers in the numbers of their sessions.
const INDEX_LABEL: &[u8] = b"netbird_overlay session indices v1";

pub struct Options {
    pub private_key: Zeroizing<Key>,
    pub mtu: usize,
    pub limits: Limits,
    /// The bytes of buffers that this engine shares with others.
    pub budget: Arc<Budget>,
    pub handshakes_per_second: u64,
    pub entropy: Entropy,
    /// Seconds since 1970 at the first `now`.
    pub date: Option<f64>,
}

pub struct Engine {
    pub shared: Shared,
    pub wg: WireGuard,
    pub routes: Routes,
    pub tcp: Tcp,
    pub udp: Udp,
    /// Buffer for decrypted packets.
    plain: Vec<u8>,
}

impl Engine {
    pub fn new(options: Options) -> Self {
        let clock = Clock::new(options.date);
        clock.enter();
        let secret = StaticSecret::from(*options.private_key);
        let index_key = Zeroizing::new(
            Blake2s256::new().chain_update(INDEX_LABEL).chain_update(secret.as_bytes()).finalize().into(),
        );
        Engine {
            wg: WireGuard::new(secret, options.handshakes_per_second),
            tcp: Tcp::new(options.limits, options.budget, options.mtu),
            udp: Udp::default(),
            routes: Routes::default(),
            plain: vec![0; LONGEST + 64],
            shared: Shared {
                clock,
                indices: Indices::new(index_key),
                timers: BinaryHeap::new(),
                handshakes_computed: 0,
                entropy: options.entropy,
                outgoing: Outgoing::default(),
                strays: Strays::default(),
                events: Vec::new(),
                counters: Counters::default(),
                reached: Vec::new(),
                in_flight: 0,
                mtu: options.mtu,
                scratch: vec![0; options.mtu + 16],
            },
        }
    }

    fn now(&self) -> Micros {
        self.shared.now()
    }

    pub fn set_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.tcp.set_addresses(&self.shared, addresses);
        self.udp.recheck(&mut self.shared, self.tcp.addresses(), &self.routes);
    }

    /// End what belongs to addresses that moved from one peer to another.
    fn recheck_peers(&mut self) {
        self.tcp.recheck_peers(self.shared.now(), &self.routes);
        self.udp.recheck(&mut self.shared, self.tcp.addresses(), &self.routes);
    }

    pub fn set_peer(&mut self, config: PeerConfig, prefixes: &[Prefix]) -> bool {
        let Some(id) = self.wg.set_peer(&mut self.shared, config) else { return false };
        if self.routes.assign(id, prefixes) {
            self.recheck_peers();
        }
        true
    }

    pub fn remove_peer(&mut self, key: &Key) -> bool {
        let Some(id) = self.wg.find(key) else { return false };
        self.routes.assign(id, &[]);
        self.wg.remove_peer(&mut self.shared, id);
        // Must happen before the id is reused for another peer.
        self.recheck_peers();
        self.udp.forget_peer(id);
        true
    }

    pub fn whois(&self, address: IpAddr) -> Option<Key> {
        self.wg.peer(self.routes.exact(address)?).map(|peer| peer.key)
    }

    pub fn handshake(&mut self, key: &Key) -> bool {
        let Some(id) = self.wg.find(key) else { return false };
        self.wg.peer_mut(id).is_some_and(|peer| peer.handshake(&mut self.shared))
    }

    /// Send all datagrams to this peer along `path`, wherever its own come from. False for an unknown peer.
    pub fn pin(&mut self, key: &Key, path: Path) -> bool {
        self.with_peer(key, |peer, shared| peer.pin(shared, path))
    }

    /// Forget the peer's path, and follow its datagrams again. False for an unknown peer.
    pub fn unpin(&mut self, key: &Key) -> bool {
        self.with_peer(key, |peer, _| peer.unpin())
    }

    /// Drop the peer's sessions and handshakes; its settings and its path stay. False for an unknown peer.
    pub fn reset_session(&mut self, key: &Key) -> bool {
        let Some(id) = self.wg.find(key) else { return false };
        self.wg.reset_session(&mut self.shared, id);
        true
    }

    fn with_peer(&mut self, key: &Key, work: impl FnOnce(&mut Peer, &mut Shared)) -> bool {
        let Some(id) = self.wg.find(key) else { return false };
        let Some(peer) = self.wg.peer_mut(id) else { return false };
        work(peer, &mut self.shared);
        true
    }

    pub fn set_filter(&mut self, filter: Filter) {
        self.tcp.set_filter(self.shared.now(), filter);
    }

    pub fn connect(&mut self, address: IpAddr, port: u16) -> Result<ConnId, ConnectError> {
        self.tcp.connect(&mut self.shared, &self.wg, &self.routes, address, port)
    }

    pub fn udp_connect(&mut self, address: IpAddr, port: u16) -> Result<UdpId, ConnectError> {
        let ways = (self.tcp.addresses(), &self.wg, &self.routes);
        self.udp.connect(&mut self.shared, ways, address, port)
    }

    pub fn udp_send(&mut self, id: UdpId, remote: Option<(IpAddr, u16)>, data: &[u8]) -> Result<bool, SendError> {
        let ways = (self.tcp.addresses(), &self.wg, &self.routes);
        self.udp.send(&mut self.shared, ways, id, remote, data)
    }

    /// Process one datagram. The next `advance` sends the answers.
    pub fn receive(&mut self, datagram: &[u8], from: Path) {
        if let (Path::Udp { remote, .. }, true) = (from, is_stun(datagram)) {
            self.shared.counters.datagrams_in += 1;
            self.shared.counters.bytes_in += datagram.len() as u64;
            if !self.shared.strays.push(datagram, remote) {
                self.shared.counters.strays_dropped += 1;
            }
            return;
        }
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
            match &header.content {
                Content::Udp { .. } => {
                    self.udp.receive(&mut self.shared, (id, peer), inner, &header, &self.tcp.filter);
                }
                Content::Unreachable(UDP, flow) => self.udp.unreachable(id, flow),
                _ => self.tcp.receive(&mut self.shared, (id, peer), inner, &header),
            }
        }
    }

    /// Perform due work while the queue of datagrams has room.
    pub fn advance(&mut self) {
        self.wg.advance(&mut self.shared);
        for key in std::mem::take(&mut self.shared.reached) {
            if let Some(id) = self.wg.find(&key) {
                self.tcp.path_changed(id);
            }
        }
        self.tcp.advance(self.shared.now());
        self.flush();
        self.wg.advance(&mut self.shared);
    }

    /// Let datagrams and then connections send, while the queue has room.
    fn flush(&mut self) {
        self.udp.flush(&mut self.shared, &mut self.wg);
        self.tcp.flush(&mut self.shared, &mut self.wg);
    }

    pub fn pending(&self) -> bool {
        !self.shared.outgoing.is_empty() || self.has_work()
    }

    fn has_work(&self) -> bool {
        self.tcp.pending() || self.udp.pending()
    }

    pub fn deadline(&self) -> Micros {
        // A full queue needs no deadline: it waits for its reader.
        if self.has_work() && self.shared.outgoing.has_room() {
            return self.now();
        }
        let next = self.wg.next_tick(&self.shared).min(self.tcp.next_timer());
        if next == NEVER {
            NEVER
        } else {
            next.max(self.now())
        }
    }

    pub fn events<S: EventSink>(&mut self, sink: &mut S) -> Result<(), S::Error> {
        if self.has_work() {
            self.flush();
        }
        for event in std::mem::take(&mut self.shared.events).into_iter().chain(self.udp.events()) {
            sink.event(event)?;
        }
        self.tcp.report(self.shared.now(), sink)
    }
}
