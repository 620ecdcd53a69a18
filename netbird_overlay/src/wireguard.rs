//! The peers and their Noise sessions: assigns datagrams to peers, and runs the timers of sessions.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use blake2::{Blake2s256, Digest};
use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use foldhash::fast::RandomState;

use crate::clock::{Micros, MILLISECOND, NEVER, SECOND};
use crate::events::Key;
use crate::peer::{Peer, SESSION_REMAINS, TICK_HANDSHAKE};
use crate::prefix::PeerId;
use crate::shared::Shared;

/// Maximum length of a datagram; also the minimum size of the buffer for decryption.
pub const LONGEST: usize = 65_535;
/// Minimum interval of a peer's handshakes; faster ones are not answered.
const INITIATION_INTERVAL: Micros = 20 * MILLISECOND;
/// Domain separation for the digests that identify peers.
const INDEX_LABEL: &[u8] = b"netbird_tunnel_netstack peer index v1";

pub struct WireGuard {
    secret: StaticSecret,
    public: PublicKey,
    peers: Vec<Option<Peer>>,
    by_key: HashMap<Key, PeerId, RandomState>,
    by_index: HashMap<u32, PeerId, RandomState>,
    /// Checked once for each handshake message, before any expensive operation.
    limiter: RateLimiter,
    limiter_reset: Micros,
    /// Passed to the tunnels, which would otherwise count every handshake a second time.
    unlimited: Arc<RateLimiter>,
    next_tick: Micros,
}

/// The settings of a peer; see `set_peer` in engine.pyi.
pub struct PeerConfig {
    pub key: Key,
    pub endpoint: Option<SocketAddr>,
    pub keepalive: Option<u16>,
    pub preshared_key: Option<[u8; 32]>,
}

impl WireGuard {
    pub fn new(private_key: [u8; 32], handshakes_per_second: u64) -> Self {
        let secret = StaticSecret::from(private_key);
        let public = PublicKey::from(&secret);
        WireGuard {
            limiter: RateLimiter::new(&public, handshakes_per_second),
            unlimited: Arc::new(RateLimiter::new(&public, u64::MAX)),
            secret,
            public,
            peers: Vec::new(),
            by_key: HashMap::default(),
            by_index: HashMap::default(),
            limiter_reset: 0,
            next_tick: NEVER,
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

    pub fn next_tick(&self) -> Micros {
        self.next_tick
    }

    /// None without random numbers, or if no index is left for another peer.
    pub fn set_peer(&mut self, shared: &mut Shared, config: &PeerConfig) -> Option<PeerId> {
        let id = match self.find(&config.key) {
            Some(id) => id,
            None => self.add(shared, config)?,
        };
        let now = shared.now();
        let changed_secret = self.peer(id).is_some_and(|peer| peer.preshared_key != config.preshared_key);
        if changed_secret {
            // boringtun accepts a preshared key only when it creates a tunnel.
            let tunn = self.tunnel(config, self.peer(id)?.index);
            let peer = self.peers.get_mut(id)?.as_mut()?;
            peer.tunn = tunn;
            peer.preshared_key = config.preshared_key;
            peer.established = None;
            peer.unproved = None;
            peer.handshaking = false;
            peer.queued = false;
            peer.ticked = now;
        }
        let peer = self.peers.get_mut(id)?.as_mut()?;
        peer.keepalive = config.keepalive.filter(|seconds| *seconds > 0);
        if config.endpoint.is_some() && config.endpoint != peer.given_endpoint {
            peer.endpoint = config.endpoint;
            peer.given_endpoint = config.endpoint;
        }
        let tick = peer.next_tick(now);
        self.next_tick = self.next_tick.min(tick);
        Some(id)
    }

    fn add(&mut self, shared: &mut Shared, config: &PeerConfig) -> Option<PeerId> {
        let index = self.free_index(shared, &config.key)?;
        let peer = Peer {
            key: config.key,
            endpoint: None,
            keepalive: None,
            received: 0,
            sent: 0,
            tunn: self.tunnel(config, index),
            index,
            given_endpoint: None,
            preshared_key: config.preshared_key,
            established: None,
            unproved: None,
            initiated: None,
            summoned: None,
            handshaking: false,
            queued: false,
            ticked: shared.now(),
            last_sent: None,
            remains: 0,
        };
        let id = match self.peers.iter().position(Option::is_none) {
            Some(free) => {
                self.peers[free] = Some(peer);
                free
            }
            None => {
                self.peers.push(Some(peer));
                self.peers.len() - 1
            }
        };
        self.by_key.insert(config.key, id);
        self.by_index.insert(index, id);
        Some(id)
    }

    fn tunnel(&self, config: &PeerConfig, index: u32) -> Tunn {
        let theirs = PublicKey::from(config.key);
        Tunn::new(self.secret.clone(), theirs, config.preshared_key, None, index, Some(self.unlimited.clone()))
    }

    /// 24 bits that identify a peer in the datagrams that it sends to us.
    ///
    /// They stay the same after a restart, so that a datagram of a lost session still identifies its peer.
    /// They depend on our private key, so that third parties cannot map them to peers.
    fn free_index(&self, shared: &mut Shared, key: &Key) -> Option<u32> {
        let digest = Blake2s256::new().chain_update(INDEX_LABEL).chain_update(self.secret.as_bytes()).chain_update(key);
        let digest: [u8; 32] = digest.finalize().into();
        let index = u32::from_le_bytes([digest[0], digest[1], digest[2], 0]);
        if !self.by_index.contains_key(&index) {
            return Some(index);
        }
        for _ in 0..1000 {
            let index = (shared.entropy.next()? >> 40) as u32;
            if !self.by_index.contains_key(&index) {
                return Some(index);
            }
        }
        None
    }

    pub fn remove_peer(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.get_mut(id).and_then(Option::take) {
            self.by_key.remove(&peer.key);
            self.by_index.remove(&peer.index);
        }
    }

    /// Run the timers that are due.
    pub fn advance(&mut self, shared: &mut Shared) {
        let now = shared.now();
        if now < self.next_tick {
            return;
        }
        self.next_tick = NEVER;
        for peer in self.peers.iter_mut().flatten() {
            if peer.next_tick(now) <= now {
                peer.tick(shared);
            }
            self.next_tick = self.next_tick.min(peer.next_tick(now));
        }
        // Ticks are grouped, so that many peers do not wake the process many times.
        if self.next_tick != NEVER {
            self.next_tick = self.next_tick.max(now + TICK_HANDSHAKE);
        }
    }

    /// Schedule the timers of a peer that may have a new one.
    pub fn reschedule(&mut self, id: PeerId, now: Micros) {
        if let Some(peer) = self.peer(id) {
            let tick = peer.next_tick(now);
            self.next_tick = self.next_tick.min(tick);
        }
    }

    /// Process a datagram from outside. Returns the peer and the length of the inner packet, which is at the start of
    /// `plain`.
    pub fn receive(
        &mut self,
        shared: &mut Shared,
        datagram: &[u8],
        from: SocketAddr,
        plain: &mut [u8],
    ) -> Option<(PeerId, usize)> {
        shared.counters.datagrams_in += 1;
        shared.counters.bytes_in += datagram.len() as u64;
        if datagram.len() > LONGEST || from.port() == 0 {
            shared.counters.malformed += 1;
            return None;
        }
        let packet = self.verify(shared, datagram, from)?;
        let id = self.owner(shared, &packet)?;
        let now = shared.now();
        let peer = self.peers.get_mut(id)?.as_mut()?;
        if matches!(packet, Packet::HandshakeInit(_)) && peer.initiated.is_some_and(|at| now - at < INITIATION_INTERVAL)
        {
            shared.counters.rate_limited += 1;
            return None;
        }
        peer.catch_up(shared);
        let inner = match (peer.tunn.decapsulate(Some(from.ip()), datagram, plain), packet) {
            (TunnResult::Err(error), packet) => {
                count(shared, &error);
                let forgotten = matches!(error, WireGuardError::NoCurrentSession | WireGuardError::WrongIndex);
                if forgotten && matches!(packet, Packet::PacketData(_)) && peer.last_handshake(now).is_none() {
                    peer.summon(shared, from);
                }
                None
            }
            (TunnResult::WriteToNetwork(answer), Packet::HandshakeInit(_)) => {
                // The initiation may be an old one, recorded before our start: it is answered,
                // but only data in the new session changes the endpoint.
                peer.initiated = Some(now);
                peer.remains = now + SESSION_REMAINS;
                peer.unproved = answer.get(4..8).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
                peer.push_control(shared, answer, Some(from));
                None
            }
            (TunnResult::WriteToNetwork(keepalive), _) => {
                peer.authenticated(shared, from);
                peer.push_control(shared, keepalive, Some(from));
                peer.established(shared);
                None
            }
            (result, Packet::PacketData(data)) => {
                peer.authenticated(shared, from);
                if peer.unproved == Some(data.receiver_idx) {
                    peer.established(shared);
                }
                match result {
                    TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                        Some((id, packet.len()))
                    }
                    _ => None,
                }
            }
            _ => None,
        };
        peer.received += datagram.len() as u64;
        let tick = peer.next_tick(now);
        self.next_tick = self.next_tick.min(tick);
        inner
    }

    fn verify<'a>(&mut self, shared: &mut Shared, datagram: &'a [u8], from: SocketAddr) -> Option<Packet<'a>> {
        if shared.now() - self.limiter_reset >= SECOND {
            self.limiter_reset = shared.now();
            self.limiter.reset_count();
        }
        let mut cookie = [0u8; 64];
        match self.limiter.verify_packet(Some(from.ip()), datagram, &mut cookie) {
            Ok(packet) => Some(packet),
            Err(TunnResult::WriteToNetwork(reply)) => {
                shared.counters.rate_limited += 1;
                shared.outgoing.push(from, reply.len(), |buffer| {
                    buffer.copy_from_slice(reply);
                    Some(reply.len())
                });
                None
            }
            Err(TunnResult::Err(WireGuardError::InvalidMac)) => {
                shared.counters.bad_mac += 1;
                None
            }
            Err(_) => {
                shared.counters.malformed += 1;
                None
            }
        }
    }

    fn owner(&self, shared: &mut Shared, packet: &Packet) -> Option<PeerId> {
        let index = match packet {
            Packet::HandshakeInit(initiation) => {
                let Ok(half) = parse_handshake_anon(&self.secret, &self.public, initiation) else {
                    shared.counters.decrypt_failed += 1;
                    return None;
                };
                let found = self.find(&half.peer_static_public);
                shared.counters.unknown_key += u64::from(found.is_none());
                return found;
            }
            Packet::HandshakeResponse(response) => response.receiver_idx,
            Packet::PacketCookieReply(reply) => reply.receiver_idx,
            Packet::PacketData(data) => data.receiver_idx,
        };
        let found = self.by_index.get(&(index >> 8)).copied();
        shared.counters.unknown_session += u64::from(found.is_none());
        found
    }
}

fn count(shared: &mut Shared, error: &WireGuardError) {
    let counters = &mut shared.counters;
    let counter = match error {
        WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => &mut counters.replayed,
        WireGuardError::WrongTai64nTimestamp => &mut counters.replayed_handshake,
        WireGuardError::NoCurrentSession | WireGuardError::WrongIndex | WireGuardError::UnexpectedPacket => {
            &mut counters.unknown_session
        }
        WireGuardError::WrongKey => &mut counters.unknown_key,
        // The datagram was valid, but its content is not an IP packet.
        WireGuardError::InvalidPacket => &mut counters.bad_packet,
        _ => &mut counters.decrypt_failed,
    };
    *counter += 1;
}
