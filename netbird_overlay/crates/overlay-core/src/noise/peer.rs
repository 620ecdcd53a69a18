//! One peer: its path, its session, queued packets and timers.

use boringtun::noise::{Tunn, TunnResult};
use zeroize::Zeroizing;

use crate::events::Key;
use crate::path::Path;
use crate::shared::Shared;
use crate::time::{Micros, MILLISECOND, NEVER, SECOND};
use crate::wire::prefix::PeerId;

const OVERHEAD: usize = 32;
/// Maximum length of WireGuard's own messages.
const CONTROL: usize = 148;
/// Interval of timer checks: during a handshake, and during a session.
const TICK_HANDSHAKE: Micros = 100 * MILLISECOND;
const TICK_SESSION: Micros = SECOND;
/// Time until a handshake that found no room in the queue is tried again, and the random part of it.
const BUSY: Micros = 250 * MILLISECOND;
const JITTER: Micros = 333 * MILLISECOND;
/// Time without a response after which an initiation is repeated: REKEY_TIMEOUT of the protocol.
const RETRY_INTERVAL: Micros = 5 * SECOND;
/// Minimum interval of a peer's handshakes; faster ones are not answered.
const INITIATION_INTERVAL: Micros = 20 * MILLISECOND;
/// Minimum interval of handshakes that datagrams of lost sessions cause.
const ASK_INTERVAL: Micros = SECOND;
/// Time without a handshake after which no timer is left: keys are erased at 540 s.
const SESSION_REMAINS: Micros = 600 * SECOND;
/// Timers are due at multiples of this, so that many peers do not wake the process many times.
const GRID: Micros = 50 * MILLISECOND;
/// The number of sessions that boringtun keeps. A session replaces the one whose number is the same modulo this.
const SLOTS: usize = 8;

mod in_place;
mod input;
mod timers;

pub struct Peer {
    id: PeerId,
    pub key: Key,
    pub endpoint: Option<Path>,
    pub given_endpoint: Option<Path>,
    /// The endpoint was chosen by the caller and does not follow the peer.
    pub pinned: bool,
    pub keepalive: Option<u16>,
    pub preshared_key: Option<Zeroizing<Key>>,
    pub received: u64,
    pub sent: u64,
    tunn: Tunn,
    /// Our numbers of the sessions and handshakes in boringtun's slots.
    slots: [Option<u32>; SLOTS],
    /// The slots of the session in use and of the one before, which no handshake may replace.
    current: usize,
    previous: usize,
    /// The slot of the last handshake.
    last: usize,
    /// The slots of the last two handshakes that we began, whose responses may be on their way.
    begun: [usize; 2],
    /// The number of the next handshake, and the epoch in which it is recognised after a restart.
    offered: Option<(u32, u64)>,
    established: Option<Micros>,
    /// Our number of a session that we responded to and that no data has confirmed yet.
    unproved: Option<u32>,
    /// Time at which the last initiation of this peer was accepted.
    initiated: Option<Micros>,
    /// Times of the last `ask`: at the endpoint, and elsewhere. A stranger who repeats a datagram uses up the second.
    asked: [Option<Micros>; 2],
    /// Time at which our last initiation went to the endpoint, while no handshake has succeeded since.
    greeted: Option<Micros>,
    handshaking: bool,
    /// The tunnel has packets queued for a session.
    queued: bool,
    /// Time at which a handshake is tried again that found no room in the queue.
    retry_at: Micros,
    ticked: Micros,
    last_sent: Option<Micros>,
    remains: Micros,
    /// The earliest entry in `Shared::timers`.
    pub tick_at: Micros,
}

impl Peer {
    pub fn new(id: PeerId, key: Key, tunn: Tunn, preshared_key: Option<Zeroizing<Key>>, now: Micros) -> Self {
        Peer {
            id,
            key,
            endpoint: None,
            given_endpoint: None,
            pinned: false,
            keepalive: None,
            preshared_key,
            received: 0,
            sent: 0,
            tunn,
            slots: [None; SLOTS],
            current: 0,
            previous: 0,
            last: 0,
            begun: [0, 0],
            offered: None,
            established: None,
            unproved: None,
            initiated: None,
            asked: [None; 2],
            greeted: None,
            handshaking: false,
            queued: false,
            retry_at: NEVER,
            ticked: now,
            last_sent: None,
            remains: 0,
            tick_at: NEVER,
        }
    }

    /// Time since the current session was made; None without one.
    pub fn last_handshake(&self, now: Micros) -> Option<Micros> {
        self.tunn.time_since_last_handshake()?;
        self.established.map(|at| now.saturating_sub(at))
    }

    /// Replace the tunnel, and with it all sessions and handshakes.
    pub fn reset(&mut self, shared: &mut Shared, tunn: Tunn) {
        self.release_all(shared);
        self.tunn = tunn;
        (self.current, self.previous) = (0, 0);
        self.begun = [0, 0];
        self.established = None;
        self.unproved = None;
        self.initiated = None;
        self.end_handshake();
        self.queued = false;
        self.ticked = shared.now();
    }

    // The numbers of sessions.

    pub fn release_all(&mut self, shared: &mut Shared) {
        let offered = self.offered.take().map(|(index, _)| index);
        for index in self.slots.iter_mut().filter_map(Option::take).chain(offered) {
            shared.indices.release(index);
        }
    }

    /// Run `work`, in which the tunnel may begin a handshake or answer one, with a number for it.
    ///
    /// So recorded initiations, which are answered once after a restart, never displace a session in use or a handshake
    /// of our own. Slot 0 stays free, because the tunnel takes it for that of the current session before there is one.
    fn with_index<R>(&mut self, shared: &mut Shared, work: impl FnOnce(&mut Tunn) -> R) -> R {
        if let Some(index) = self.tunn.current_index() {
            let slot = index as usize % SLOTS;
            if slot != self.current {
                (self.previous, self.current) = (self.current, slot);
            }
        }
        let used = [0, self.current, self.previous, self.begun[0], self.begun[1]];
        let date = shared.clock.date().as_secs();
        let epoch = shared.indices.epoch(date);
        // In turn, so that a handshake under way is displaced as late as possible.
        let slot = (1..=SLOTS).map(|step| (self.last + step) % SLOTS).find(|slot| !used.contains(slot));
        let usable = |index: u32| Some(index as usize % SLOTS) == slot;
        if let Some((index, _)) = self.offered.take_if(|(index, then)| *then != epoch || !usable(*index)) {
            shared.indices.release(index);
        }
        if self.offered.is_none() {
            let index = shared.indices.allocate(&mut shared.entropy, self.id, &self.key, date, usable);
            self.offered = index.map(|index| (index, epoch));
        }
        self.tunn.set_date(shared.clock.stamp());
        // Without random numbers, the tunnel counts from the last one.
        let offered = self.offered.map_or(self.tunn.next_index(), |(index, _)| index);
        self.tunn.set_next_index(offered);
        let result = work(&mut self.tunn);
        if self.tunn.next_index() != offered && self.offered.take().is_some() {
            self.last = offered as usize % SLOTS;
            if let Some(replaced) = self.slots[self.last].replace(offered) {
                shared.indices.release(replaced);
            }
        }
        result
    }

    // The path.

    pub fn pin(&mut self, shared: &mut Shared, path: Path) {
        self.pinned = true;
        if !self.endpoint.is_some_and(|endpoint| endpoint.same_place_as(&path)) {
            shared.reached.push(self.key);
            self.endpoint = Some(path);
            self.try_again(shared);
        }
    }

    /// Use a new path at once for a handshake that is under way.
    fn try_again(&mut self, shared: &mut Shared) {
        if self.handshaking {
            self.retry_at = shared.now();
        }
        self.send_queued(shared);
        self.note(shared);
    }

    pub fn unpin(&mut self) {
        self.pinned = false;
        self.endpoint = None;
        self.given_endpoint = None;
    }

    /// Set the path from the peer's settings.
    pub fn set_endpoint(&mut self, shared: &mut Shared, given: Path) {
        if self.given_endpoint.is_some_and(|before| before.same_place_as(&given)) {
            return;
        }
        self.given_endpoint = Some(given);
        if !self.pinned {
            self.endpoint = Some(given);
            self.try_again(shared);
        }
    }

    // Output.

    /// Encrypt one packet for this peer, or queue it until a session exists. False if it was dropped.
    pub fn send(&mut self, shared: &mut Shared, packet: &[u8]) -> bool {
        let Some(endpoint) = self.endpoint else {
            shared.counters.no_endpoint += 1;
            return false;
        };
        self.catch_up(shared);
        if shared.outgoing.is_full(endpoint) {
            shared.counters.queue_full += 1;
            return false;
        }
        if self.tunn.current_index().is_none() {
            return self.wait(shared, packet, endpoint);
        }
        let tunn = &mut self.tunn;
        let mut length = 0;
        shared.outgoing.push(endpoint, (packet.len() + OVERHEAD).max(CONTROL), |buffer| {
            match tunn.encapsulate(packet, buffer) {
                TunnResult::WriteToNetwork(datagram) => {
                    length = datagram.len();
                    Some(length)
                }
                _ => None,
            }
        });
        if length > 0 {
            self.account_sent(shared, length, 4);
            self.note(shared);
        }
        true
    }

    /// Leave a packet to the tunnel until there is a session, and begin a handshake unless one is under way.
    fn wait(&mut self, shared: &mut Shared, packet: &[u8], endpoint: Path) -> bool {
        let mut buffer = vec![0; packet.len().max(CONTROL) + OVERHEAD];
        self.queued = true;
        let length = self.with_index(shared, |tunn| match tunn.encapsulate(packet, &mut buffer) {
            TunnResult::WriteToNetwork(datagram) => datagram.len(),
            _ => 0,
        });
        if length > 0 {
            self.push(shared, &buffer[..length], endpoint);
        }
        true
    }

    fn send_queued(&mut self, shared: &mut Shared) {
        while std::mem::take(&mut self.queued) {
            let Some(endpoint) = self.endpoint.filter(|_| self.tunn.current_index().is_some()) else {
                self.queued = true;
                return;
            };
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

    /// Send a message that WireGuard itself makes. False if the queue is full.
    fn push(&mut self, shared: &mut Shared, message: &[u8], to: Path) -> bool {
        let kind = message.first().copied().unwrap_or(0);
        if kind == 1 {
            // Also if there is no room: the tunnel repeats it.
            shared.handshakes_computed += 1;
            self.handshaking = true;
            self.begun = [self.last, self.begun[0]];
            self.remains = shared.now() + SESSION_REMAINS;
            if self.endpoint.is_some_and(|endpoint| endpoint.same_place_as(&to)) {
                self.greeted = Some(shared.now());
                self.retry_at = NEVER;
            }
        }
        let taken = shared.outgoing.push(to, message.len(), |buffer| {
            buffer.copy_from_slice(message);
            Some(message.len())
        });
        if taken {
            self.account_sent(shared, message.len(), kind);
        } else {
            shared.counters.queue_full += 1;
        }
        self.note(shared);
        taken
    }

    fn account_sent(&mut self, shared: &mut Shared, length: usize, kind: u8) {
        self.sent += length as u64;
        self.last_sent = Some(shared.now());
        shared.counters.datagrams_out += 1;
        shared.counters.bytes_out += length as u64;
        if kind != 4 {
            self.note(shared);
        }
    }

    // Handshakes that we begin.

    /// Start a handshake, even during another. False if it did not go out; if there was no room, it is tried again.
    pub fn handshake(&mut self, shared: &mut Shared) -> bool {
        let Some(endpoint) = self.endpoint else { return false };
        self.retry_at = NEVER;
        if shared.outgoing.is_full(endpoint) {
            shared.counters.queue_full += 1;
            self.retry_at = shared.now() + BUSY + shared.entropy.draw().unwrap_or(0) % JITTER;
            self.note(shared);
            return false;
        }
        self.catch_up(shared);
        self.initiate(shared, endpoint)
    }

    /// Answer a datagram of a session that we lost, as after a restart: the peer would continue it for 15 s.
    ///
    /// The datagram may be a replay from any address. So answers are rare and have no other effect: only the peer's own
    /// answer sets its endpoint.
    pub fn ask(&mut self, shared: &mut Shared, from: Path) {
        let now = shared.now();
        let elsewhere = !self.endpoint.is_some_and(|endpoint| endpoint.same_place_as(&from));
        let slot = usize::from(elsewhere);
        let recent = self.asked[slot].is_some_and(|at| now - at < ASK_INTERVAL);
        if recent || self.last_handshake(now).is_some() || shared.outgoing.is_full(from) {
            return;
        }
        // A stranger may know the endpoint, and send in its name.
        if !elsewhere && self.greeted.is_some_and(|at| now - at < ASK_INTERVAL) {
            return;
        }
        self.asked[slot] = Some(now);
        self.catch_up(shared);
        self.initiate(shared, from);
        if elsewhere && self.endpoint.is_some() {
            // The tunnel repeats its last initiation only, and datagrams of a stranger must not put off the one to the
            // endpoint.
            let jitter = shared.entropy.draw().unwrap_or(0) % JITTER;
            self.retry_at = self.retry_at.min(self.greeted.unwrap_or(now) + RETRY_INTERVAL + jitter);
            self.note(shared);
        }
    }

    fn initiate(&mut self, shared: &mut Shared, to: Path) -> bool {
        let mut buffer = [0u8; CONTROL];
        let made = self.with_index(shared, |tunn| {
            matches!(tunn.format_handshake_initiation(&mut buffer, true), TunnResult::WriteToNetwork(_))
        });
        made && self.push(shared, &buffer, to)
    }
}
