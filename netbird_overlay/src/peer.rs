//! One peer: its session, endpoint, queued packets and timers.

use std::net::SocketAddr;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::{Tunn, TunnResult};

use crate::clock::{Micros, MILLISECOND, NEVER, SECOND};
use crate::events::{Event, Key};
use crate::shared::Shared;

const OVERHEAD: usize = 32;
/// Maximum length of WireGuard's own messages.
const CONTROL: usize = 148;
/// Interval of timer checks: during a handshake, and during a session.
pub const TICK_HANDSHAKE: Micros = 250 * MILLISECOND;
const TICK_SESSION: Micros = SECOND;
const SUMMON_INTERVAL: Micros = SECOND;
/// Time without a handshake after which no timer is left: keys are erased at 540 s.
pub const SESSION_REMAINS: Micros = 600 * SECOND;

pub struct Peer {
    pub key: Key,
    pub endpoint: Option<SocketAddr>,
    pub keepalive: Option<u16>,
    pub received: u64,
    pub sent: u64,
    pub tunn: Tunn,
    pub index: u32,
    pub given_endpoint: Option<SocketAddr>,
    pub preshared_key: Option<[u8; 32]>,
    pub established: Option<Micros>,
    /// Our index of a session that we responded to and that no data has confirmed yet.
    pub unproved: Option<u32>,
    /// Time at which the last initiation of this peer was accepted.
    pub initiated: Option<Micros>,
    /// Time at which the peer last used a session that we do not have, and we sent it a handshake.
    pub summoned: Option<Micros>,
    pub handshaking: bool,
    /// The tunnel has packets queued for a session.
    pub queued: bool,
    pub ticked: Micros,
    pub last_sent: Option<Micros>,
    pub remains: Micros,
}

impl Peer {
    /// Encrypt one packet for this peer, or queue it until a session exists. False without an endpoint.
    pub fn send(&mut self, shared: &mut Shared, packet: &[u8]) -> bool {
        let Some(endpoint) = self.endpoint else {
            shared.counters.no_endpoint += 1;
            return false;
        };
        self.catch_up(shared);
        let mut queued = false;
        let tunn = &mut self.tunn;
        let mut length = 0;
        let mut kind = 0;
        let taken = shared.outgoing.push(endpoint, (packet.len() + OVERHEAD).max(CONTROL), |buffer| {
            match tunn.encapsulate(packet, buffer) {
                TunnResult::WriteToNetwork(datagram) => {
                    (length, kind) = (datagram.len(), datagram[0]);
                    queued = kind == 1;
                    Some(length)
                }
                TunnResult::Done => {
                    queued = true;
                    None
                }
                _ => None,
            }
        });
        if !taken {
            shared.counters.queue_full += 1;
            return false;
        }
        self.queued |= queued;
        if length > 0 {
            self.account_sent(shared, length, kind);
        }
        true
    }

    /// Start a handshake, even during another.
    pub fn handshake(&mut self, shared: &mut Shared) -> bool {
        if self.endpoint.is_none() {
            return false;
        }
        self.catch_up(shared);
        let mut buffer = [0u8; CONTROL];
        if let TunnResult::WriteToNetwork(datagram) = self.tunn.format_handshake_initiation(&mut buffer, true) {
            self.push_control(shared, datagram, self.endpoint);
        }
        true
    }

    /// Answer a datagram of a session that we lost, as after a restart: the peer would continue it for 15 s.
    ///
    /// The datagram may be a replay from any address. So answers are rare and have no other effect: only the peer's own
    /// answer sets its endpoint.
    pub fn summon(&mut self, shared: &mut Shared, from: SocketAddr) {
        let now = shared.now();
        if self.summoned.is_some_and(|at| now - at < SUMMON_INTERVAL) {
            return;
        }
        self.summoned = Some(now);
        let mut buffer = [0u8; CONTROL];
        if let TunnResult::WriteToNetwork(datagram) = self.tunn.format_handshake_initiation(&mut buffer, true) {
            self.push_control(shared, datagram, Some(from));
        }
    }

    /// Seconds since the current session was made.
    pub fn last_handshake(&self, now: Micros) -> Option<Micros> {
        self.tunn.time_since_last_handshake()?;
        self.established.map(|at| now.saturating_sub(at))
    }

    pub fn push_control(&mut self, shared: &mut Shared, datagram: &[u8], to: Option<SocketAddr>) {
        let Some(to) = to else {
            shared.counters.no_endpoint += 1;
            return;
        };
        let copied = shared.outgoing.push(to, datagram.len(), |buffer| {
            buffer.copy_from_slice(datagram);
            Some(datagram.len())
        });
        if copied {
            self.account_sent(shared, datagram.len(), datagram.first().copied().unwrap_or(0));
        } else {
            shared.counters.queue_full += 1;
        }
    }

    fn account_sent(&mut self, shared: &mut Shared, length: usize, kind: u8) {
        self.sent += length as u64;
        self.last_sent = Some(shared.now());
        shared.counters.datagrams_out += 1;
        shared.counters.bytes_out += length as u64;
        if kind == 1 {
            self.handshaking = true;
            self.remains = shared.now() + SESSION_REMAINS;
        }
    }

    /// boringtun's time advances only in its timer check, so check before any operation that records the time.
    pub fn catch_up(&mut self, shared: &mut Shared) {
        if shared.now() - self.ticked > SECOND {
            self.tick(shared);
        }
    }

    pub fn tick(&mut self, shared: &mut Shared) {
        self.ticked = shared.now();
        let mut buffer = [0u8; CONTROL];
        match self.tunn.update_timers(&mut buffer) {
            TunnResult::WriteToNetwork(datagram) => self.push_control(shared, datagram, self.endpoint),
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                self.handshaking = false;
                self.queued = false;
            }
            _ => {}
        }
        // Our own keepalive and not boringtun's, which cannot be changed without ending the session.
        let due = self
            .keepalive
            .is_some_and(|s| self.last_sent.is_none_or(|sent| shared.now() - sent >= Micros::from(s) * SECOND));
        if due && self.endpoint.is_some() {
            self.send(shared, &[]);
        }
    }

    pub fn next_tick(&self, now: Micros) -> Micros {
        let kept_alive = self.keepalive.is_some() && self.endpoint.is_some();
        if kept_alive && self.last_sent.is_none() {
            now
        } else if self.handshaking {
            self.ticked + TICK_HANDSHAKE
        } else if now < self.remains || kept_alive {
            self.ticked + TICK_SESSION
        } else {
            NEVER
        }
    }

    /// The other end proved its keys in a packet from this address.
    pub fn authenticated(&mut self, shared: &mut Shared, from: SocketAddr) {
        if self.endpoint != Some(from) {
            self.endpoint = Some(from);
            shared.events.push(Event::EndpointChanged { peer: self.key, endpoint: from });
        }
    }

    pub fn established(&mut self, shared: &mut Shared) {
        self.established = Some(shared.now());
        self.unproved = None;
        self.handshaking = false;
        self.remains = shared.now() + SESSION_REMAINS;
        shared.counters.handshakes += 1;
        shared.events.push(Event::Handshake { peer: self.key });
        self.send_queued(shared);
    }

    fn send_queued(&mut self, shared: &mut Shared) {
        while std::mem::take(&mut self.queued) {
            let Some(endpoint) = self.endpoint else { return };
            let tunn = &mut self.tunn;
            let mut length = 0;
            let size = (shared.mtu + 16 + OVERHEAD).max(CONTROL);
            let taken = shared.outgoing.push(endpoint, size, |buffer| match tunn.decapsulate(None, &[], buffer) {
                TunnResult::WriteToNetwork(datagram) => {
                    length = datagram.len();
                    Some(length)
                }
                _ => None,
            });
            if !taken {
                self.queued = true;
                return;
            }
            if length > 0 {
                self.queued = true;
                self.account_sent(shared, length, 4);
            }
        }
    }
}
