//! The peers, and the way of a datagram to one of them.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{HandshakeInit, Packet, Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use foldhash::fast::RandomState;
use zeroize::Zeroizing;

use crate::events::Key;
use crate::noise::admission::Admission;
use crate::noise::peer::Peer;
use crate::path::Path;
use crate::shared::Shared;
use crate::time::{Micros, NEVER};
use crate::wire::prefix::PeerId;

/// Maximum length of a datagram.
pub const LONGEST: usize = 65_535;
/// Maximum number of handshakes that timers begin in one `advance`; the rest follows in the next.
const BEGUN_MOST: u64 = 16;
/// Maximum number of peers that a datagram of an unknown session is taken for.
const HINTED_MOST: usize = 4;

pub struct WireGuard {
    peers: Vec<Option<Peer>>,
    by_key: HashMap<Key, PeerId, RandomState>,
    secret: StaticSecret,
    public: PublicKey,
    /// Checks that the sender of a handshake knows our key. Also passed to the tunnels, which check it again.
    codes: Arc<RateLimiter>,
    /// Checks also that the sender has our cookie for its address.
    cookies: RateLimiter,
    admission: Admission,
}

/// The settings of a peer; see `set_peer` in engine.pyi.
pub struct PeerConfig {
    pub key: Key,
    pub endpoint: Option<Path>,
    pub keepalive: Option<u16>,
    pub preshared_key: Option<Zeroizing<Key>>,
}

impl WireGuard {
    pub fn new(secret: StaticSecret, handshakes_per_second: u64) -> Self {
        let public = PublicKey::from(&secret);
        WireGuard {
            secret,
            public,
            codes: Arc::new(RateLimiter::new(&public, u64::MAX)),
            cookies: RateLimiter::new(&public, 0),
            peers: Vec::new(),
            by_key: HashMap::default(),
            admission: Admission::new(handshakes_per_second),
        }
    }

    pub fn public_key(&self) -> Key {
        *self.public.as_bytes()
    }

    pub fn find(&self, key: &Key) -> Option<PeerId> {
        self.by_key.get(key).copied()
    }

    pub fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(id)?.as_ref()
    }

    pub fn peer_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.peers.get_mut(id)?.as_mut()
    }

    pub fn peers(&self) -> impl Iterator<Item = (PeerId, &Peer)> {
        self.peers.iter().enumerate().filter_map(|(id, peer)| Some((id, peer.as_ref()?)))
    }

    pub fn set_peer(&mut self, shared: &mut Shared, config: PeerConfig) -> Option<PeerId> {
        let id = self.find(&config.key).unwrap_or_else(|| self.add(shared, &config));
        if self.peer(id)?.preshared_key != config.preshared_key {
            // boringtun accepts a preshared key only when it creates a tunnel.
            self.peer_mut(id)?.preshared_key = config.preshared_key;
            self.reset_session(shared, id);
        }
        let peer = self.peer_mut(id)?;
        peer.keepalive = config.keepalive.filter(|seconds| *seconds > 0);
        if let Some(given) = config.endpoint {
            peer.set_endpoint(shared, given);
        }
        peer.note(shared);
        Some(id)
    }

    fn add(&mut self, shared: &mut Shared, config: &PeerConfig) -> PeerId {
        let id = self.peers.iter().position(Option::is_none).unwrap_or(self.peers.len());
        let tunn = self.tunnel(config.key, config.preshared_key.as_ref());
        let peer = Some(Peer::new(id, config.key, tunn, config.preshared_key.clone(), shared.now()));
        match self.peers.get_mut(id) {
            Some(free) => *free = peer,
            None => self.peers.push(peer),
        }
        self.by_key.insert(config.key, id);
        shared.indices.add_peer(id, &config.key);
        id
    }

    fn tunnel(&self, key: Key, preshared_key: Option<&Zeroizing<Key>>) -> Tunn {
        let preshared_key = preshared_key.map(|key| **key);
        Tunn::new(self.secret.clone(), PublicKey::from(key), preshared_key, None, 0, Some(self.codes.clone()))
    }

    /// Drop a peer's sessions and handshakes.
    pub fn reset_session(&mut self, shared: &mut Shared, id: PeerId) {
        let Some(peer) = self.peer(id) else { return };
        let tunn = self.tunnel(peer.key, peer.preshared_key.as_ref());
        if let Some(peer) = self.peer_mut(id) {
            peer.reset(shared, tunn);
        }
    }

    pub fn remove_peer(&mut self, shared: &mut Shared, id: PeerId) {
        if let Some(mut peer) = self.peers.get_mut(id).and_then(Option::take) {
            peer.release_all(shared);
            shared.indices.remove_peer(id, &peer.key);
            self.by_key.remove(&peer.key);
        }
    }

    /// The time of the next timer.
    pub fn next_tick(&self, shared: &Shared) -> Micros {
        shared.timers.peek().map_or(NEVER, |Reverse((at, _))| *at)
    }

    /// Run the timers that are due.
    pub fn advance(&mut self, shared: &mut Shared) {
        let begun = shared.handshakes_computed;
        while let Some(&Reverse((at, id))) = shared.timers.peek() {
            if at > shared.now() || shared.handshakes_computed - begun >= BEGUN_MOST {
                break;
            }
            shared.timers.pop();
            if let Some(peer) = self.peer_mut(id).filter(|peer| peer.tick_at == at) {
                peer.tick(shared);
            }
        }
    }

    /// Process a datagram from outside. Returns the peer and the length of the inner packet, which is at the start of
    /// `plain`.
    pub fn receive(
        &mut self,
        shared: &mut Shared,
        datagram: &[u8],
        from: Path,
        plain: &mut [u8],
    ) -> Option<(PeerId, usize)> {
        shared.counters.datagrams_in += 1;
        shared.counters.bytes_in += datagram.len() as u64;
        if datagram.len() > LONGEST || from.remote().is_some_and(|remote| remote.port() == 0) {
            shared.counters.malformed += 1;
            return None;
        }
        let receiver = match self.verify(shared, datagram, from)? {
            Packet::HandshakeInit(initiation) => {
                self.receive_initiation(shared, initiation, datagram.len(), from);
                return None;
            }
            Packet::HandshakeResponse(response) => {
                shared.handshakes_computed += 1;
                response.receiver_idx
            }
            Packet::PacketCookieReply(reply) => reply.receiver_idx,
            Packet::PacketData(data) => data.receiver_idx,
        };
        let Some(id) = shared.indices.owner(receiver) else {
            shared.counters.unknown_session += 1;
            if datagram.first() == Some(&4) {
                self.ask(shared, receiver, from);
            }
            return None;
        };
        self.peer_mut(id)?.receive(shared, receiver, datagram, from, plain).map(|length| (id, length))
    }

    fn receive_initiation(&mut self, shared: &mut Shared, initiation: HandshakeInit, length: usize, from: Path) {
        shared.handshakes_computed += 1;
        let Ok(half) = parse_handshake_anon(&self.secret, &self.public, &initiation) else {
            shared.counters.decrypt_failed += 1;
            return;
        };
        let Some(peer) = self.find(&half.peer_static_public).and_then(|id| self.peer_mut(id)) else {
            shared.counters.unknown_key += 1;
            return;
        };
        if !peer.may_initiate(shared.now()) {
            shared.counters.rate_limited += 1;
            return;
        }
        peer.receive_initiation(shared, (initiation, half), length, from);
    }

    /// Check the codes of a handshake message before any expensive operation. Under load, its sender must also prove its
    /// address, and then has a limited rate.
    fn verify<'a>(&mut self, shared: &mut Shared, datagram: &'a [u8], from: Path) -> Option<Packet<'a>> {
        let address = Some(from.proved_address());
        let mut buffer = [0u8; 64];
        let packet = match self.codes.verify_packet(address, datagram, &mut buffer) {
            Ok(packet) => packet,
            Err(TunnResult::Err(WireGuardError::InvalidMac)) => {
                shared.counters.bad_mac += 1;
                return None;
            }
            Err(_) => {
                shared.counters.malformed += 1;
                return None;
            }
        };
        let handshake = matches!(packet, Packet::HandshakeInit(_) | Packet::HandshakeResponse(_));
        let now = shared.now();
        if !handshake || !self.admission.is_under_load(now) {
            return Some(packet);
        }
        match self.cookies.verify_packet(address, datagram, &mut buffer) {
            Ok(packet) if self.admission.admits(from, now) => return Some(packet),
            Err(TunnResult::WriteToNetwork(reply)) => {
                shared.outgoing.push(from, reply.len(), |buffer| {
                    buffer.copy_from_slice(reply);
                    Some(reply.len())
                });
            }
            _ => {}
        }
        shared.counters.rate_limited += 1;
        None
    }

    /// A datagram of a session that we do not have: if it may be of one from before our start, shake hands again.
    fn ask(&mut self, shared: &mut Shared, receiver: u32, from: Path) {
        let hinted: Vec<PeerId> =
            shared.indices.hint(receiver, shared.clock.date().as_secs()).take(HINTED_MOST).collect();
        for id in hinted {
            if let Some(peer) = self.peer_mut(id) {
                peer.ask(shared, from);
            }
        }
    }
}
