//! All connections: admission, polling and events.
//!
//! Each connection has a socket set of its own, so that the cost of a packet does not grow with their number. They
//! share the stack's interface. arrivals.rs processes inbound packets.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::IpAddr;

use foldhash::fast::RandomState;
use smoltcp::iface::{Interface, PollResult, SocketSet};
use smoltcp::socket::tcp::State;
use smoltcp::wire::{IpAddress, IpListenEndpoint};

use crate::clock::{instant, Micros, MILLISECOND, NEVER, SECOND};
use crate::conn::{Conn, Limits};
use crate::events::{ConnId, Event, EventSink, Reason};
use crate::filter::{Filter, TCP};
use crate::inbound::{Inbound, Room};
use crate::link::{interface, Link};
use crate::packet::Flow;
use crate::prefix::{PeerId, Routes};
use crate::shared::Shared;
use crate::wireguard::WireGuard;

/// Maximum number of packets that a connection sends before the next one's turn.
const SHARE: usize = 32;
/// Local ports for dials.
pub const EPHEMERAL: std::ops::Range<u16> = 32768..61000;
/// How long a finished connection is remembered, to acknowledge a repeated end of stream,
const TIME_WAIT: Micros = 10 * SECOND;
/// and the maximum number of such connections.
const TIME_WAIT_MOST: usize = 16_384;

pub(crate) struct Listener {
    pub backlog: usize,
    pub pending: usize,
}

/// The record of a finished connection.
pub(crate) struct Remembered {
    pub until: Micros,
    pub peer: PeerId,
    pub acknowledgment: Vec<u8>,
}

pub enum ConnectError {
    NoRoute,
    NoEndpoint,
    Limit,
}

pub struct Tcp {
    pub limits: Limits,
    pub filter: Filter,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) interface: Interface,
    pub(crate) nobody: SocketSet<'static>,
    pub(crate) conns: HashMap<ConnId, Box<Conn>, RandomState>,
    pub(crate) flows: HashMap<Flow, ConnId, RandomState>,
    pub(crate) finished: HashMap<Flow, Remembered, RandomState>,
    pub(crate) finished_order: VecDeque<(Micros, Flow)>,
    pub(crate) listeners: HashMap<u16, Listener, RandomState>,
    pub(crate) dirty: VecDeque<ConnId>,
    pub(crate) ready: VecDeque<ConnId>,
    pub(crate) timers: BinaryHeap<Reverse<(Micros, ConnId)>>,
    pub(crate) last_id: ConnId,
    inbound: Inbound,
}

impl Tcp {
    pub fn new(limits: Limits, mtu: usize) -> Self {
        Tcp {
            limits,
            filter: Filter::default(),
            addresses: Vec::new(),
            interface: interface(&[], mtu, 0),
            nobody: SocketSet::new(Vec::new()),
            conns: HashMap::default(),
            flows: HashMap::default(),
            finished: HashMap::default(),
            finished_order: VecDeque::new(),
            listeners: HashMap::default(),
            dirty: VecDeque::new(),
            ready: VecDeque::new(),
            timers: BinaryHeap::new(),
            last_id: 0,
            inbound: Inbound::default(),
        }
    }

    // Own addresses and inbound rules.

    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    pub fn set_addresses(&mut self, shared: &Shared, addresses: Vec<IpAddr>) {
        self.interface = interface(&addresses, shared.mtu, 0);
        self.addresses = addresses;
        let addresses = &self.addresses;
        self.finished.retain(|flow, _| addresses.contains(&flow.local));
        self.kill_where(shared.now(), Reason::AddressRemoved, |conn, own| !own.contains(&conn.flow.local));
    }

    /// End the connections whose remote address no longer belongs to their peer.
    pub fn recheck_peers(&mut self, now: Micros, routes: &Routes) {
        self.finished.retain(|flow, end| routes.lookup(flow.remote) == Some(end.peer));
        self.kill_where(now, Reason::PeerRemoved, |conn, _| routes.lookup(conn.flow.remote) != Some(conn.peer));
    }

    fn kill_where(&mut self, now: Micros, reason: Reason, condition: impl Fn(&Conn, &[IpAddr]) -> bool) {
        let addresses = &self.addresses;
        let hit: Vec<ConnId> =
            self.conns.iter().filter(|(_, conn)| condition(conn, addresses)).map(|(id, _)| *id).collect();
        for id in hit {
            if let Some(conn) = self.conns.get_mut(&id) {
                let half_open = conn.inbound && !conn.reported && !conn.done;
                conn.kill(reason, now);
                self.after_end(id, half_open);
            }
        }
    }

    pub fn set_filter(&mut self, now: Micros, filter: Filter) {
        self.filter = filter;
        let filter = &self.filter;
        let hit: Vec<ConnId> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.inbound && !conn.done)
            .filter(|(_, conn)| !filter.allows(conn.flow.remote, TCP, conn.flow.local_port))
            .map(|(id, _)| *id)
            .collect();
        for id in hit {
            self.abort_because(id, Reason::Denied, now);
        }
    }

    pub fn listen(&mut self, port: u16, backlog: usize) {
        self.listeners.entry(port).or_insert(Listener { backlog, pending: 0 }).backlog = backlog;
    }

    pub fn unlisten(&mut self, port: u16) -> bool {
        self.listeners.remove(&port).is_some()
    }

    // The caller's operations on connections.

    pub fn connect(
        &mut self,
        shared: &mut Shared,
        wg: &WireGuard,
        routes: &Routes,
        address: IpAddr,
        port: u16,
    ) -> Result<ConnId, ConnectError> {
        let peer_id = routes.lookup(address).ok_or(ConnectError::NoRoute)?;
        let peer = wg.peer(peer_id).ok_or(ConnectError::NoRoute)?;
        let local = *self
            .addresses
            .iter()
            .find(|own| own.is_ipv4() == address.is_ipv4())
            .filter(|own| **own != address)
            .ok_or(ConnectError::NoRoute)?;
        if peer.endpoint.is_none() {
            return Err(ConnectError::NoEndpoint);
        }
        if self.conns.len() >= self.most() {
            shared.counters.limit_reached += 1;
            return Err(ConnectError::Limit);
        }
        let flow = self.free_flow(shared, local, address, port).ok_or(ConnectError::Limit)?;
        let seed = shared.entropy.next().ok_or(ConnectError::Limit)?;
        let now = shared.now();
        let mut conn = Conn::new(flow, peer_id, false, &self.limits, now);
        // The interface chooses the initial sequence number, so each dial gets one with a seed of its own.
        let mut interface = interface(&self.addresses, shared.mtu, seed);
        let remote = (IpAddress::from(address), port);
        let from = IpListenEndpoint { addr: Some(local.into()), port: flow.local_port };
        if conn.socket().connect(interface.context(), remote, from).is_err() {
            return Err(ConnectError::NoRoute);
        }
        let id = self.insert(conn);
        self.mark_dirty(id);
        Ok(id)
    }

    fn free_flow(&self, shared: &mut Shared, local: IpAddr, remote: IpAddr, remote_port: u16) -> Option<Flow> {
        for _ in 0..64 {
            let local_port = EPHEMERAL.start + (shared.entropy.next()? % EPHEMERAL.len() as u64) as u16;
            let flow = Flow { local, remote, local_port, remote_port };
            if !self.flows.contains_key(&flow)
                && !self.finished.contains_key(&flow)
                && !self.listeners.contains_key(&local_port)
            {
                return Some(flow);
            }
        }
        None
    }

    /// Limit the number of connections, and the bytes of their buffers.
    fn most(&self) -> usize {
        let each = self.limits.receive_buffer + self.limits.send_buffer;
        self.limits.max_connections.min(self.limits.max_buffer_bytes / each)
    }

    pub(crate) fn room_for(&self, peer: PeerId) -> Room {
        self.inbound.room(peer, &self.limits, self.most(), self.conns.len())
    }

    pub(crate) fn insert(&mut self, conn: Conn) -> ConnId {
        self.last_id += 1;
        if conn.inbound {
            self.inbound.add(conn.peer);
        }
        self.flows.insert(conn.flow, self.last_id);
        self.conns.insert(self.last_id, Box::new(conn));
        self.last_id
    }

    pub fn write(&mut self, id: ConnId, data: &[u8], now: Micros) -> usize {
        let Some(conn) = self.conns.get_mut(&id) else { return 0 };
        let taken = conn.write(data, now);
        if taken > 0 {
            self.mark_dirty(id);
        }
        taken
    }

    pub fn write_eof(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.write_eof();
            self.mark_dirty(id);
        }
    }

    pub fn close(&mut self, id: ConnId, now: Micros) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.release(now);
            self.mark_dirty(id);
            self.mark_ready(id);
        }
    }

    pub fn abort(&mut self, id: ConnId, now: Micros) {
        self.abort_because(id, Reason::Local, now);
    }

    fn abort_because(&mut self, id: ConnId, reason: Reason, now: Micros) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.abort(reason, now);
            self.mark_dirty(id);
            self.mark_ready(id);
        }
    }

    pub fn pause(&mut self, id: ConnId, paused: bool) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.paused = paused;
            if !paused {
                self.mark_ready(id);
            }
        }
    }

    pub fn unsent(&mut self, id: ConnId) -> usize {
        self.conns.get_mut(&id).map_or(0, |conn| conn.socket().send_queue())
    }

    pub fn count(&self) -> usize {
        self.conns.len()
    }

    pub fn half_open(&self) -> usize {
        self.listeners.values().map(|listener| listener.pending).sum()
    }

    // Timers and outbound packets.

    pub fn pending(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub fn next_timer(&self) -> Micros {
        self.timers.peek().map_or(NEVER, |Reverse((at, _))| *at)
    }

    /// Collect the connections whose timer is due.
    pub fn advance(&mut self, now: Micros) {
        while let Some(&Reverse((at, id))) = self.timers.peek() {
            if at > now {
                break;
            }
            self.timers.pop();
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            if conn.in_heap != at {
                continue;
            }
            conn.in_heap = NEVER;
            if conn.wake > now {
                self.schedule(id);
            } else {
                self.mark_dirty(id);
            }
        }
        while self.finished_order.front().is_some_and(|(until, _)| *until <= now)
            || self.finished_order.len() > TIME_WAIT_MOST
        {
            let Some((until, flow)) = self.finished_order.pop_front() else { break };
            if self.finished.get(&flow).is_some_and(|end| end.until == until) {
                self.finished.remove(&flow);
            }
        }
    }

    /// Let connections send in turns, while the queue has room.
    pub fn flush(&mut self, shared: &mut Shared, wg: &mut WireGuard) {
        while shared.outgoing.has_room() {
            let Some(id) = self.dirty.pop_front() else { break };
            self.flush_one(shared, wg, id);
        }
    }

    fn flush_one(&mut self, shared: &mut Shared, wg: &mut WireGuard, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.dirty = false;
        let now = shared.now();
        let half_open = conn.inbound && !conn.reported && !conn.done;
        if conn.done {
            return self.after_end(id, half_open);
        }
        if conn.deadline(&self.limits) <= now {
            // The second failure: even the reset could not be sent.
            if conn.end.is_some() && conn.state() == State::Closed {
                conn.kill(Reason::Timeout, now);
                return self.after_end(id, half_open);
            }
            conn.abort(Reason::Timeout, now);
        }
        let Some(peer) = wg.peer_mut(conn.peer) else {
            conn.kill(Reason::PeerRemoved, now);
            return self.after_end(id, half_open);
        };
        let peer_key = peer.key;
        let mut link = Link::new(peer, shared, None, SHARE);
        while self.interface.poll_egress(instant(now), &mut link, conn.sockets()) != PollResult::None {
            if link.exhausted() {
                break;
            }
        }
        let (exhausted, last) = (link.exhausted(), link.last);
        let poll_at = conn.poll_at(&mut self.interface, now);
        if last > 0 && conn.state() == State::TimeWait {
            conn.last_packet = shared.scratch[..last].to_vec();
        }
        if conn.settle(now, poll_at > now) {
            let (local, remote) = ((conn.flow.local, conn.flow.local_port), (conn.flow.remote, conn.flow.remote_port));
            if conn.inbound {
                shared.counters.accepted += 1;
                shared.events.push(Event::Accepted { conn: id, local, remote, peer: peer_key });
                self.leave_backlog(local.1);
            } else {
                shared.counters.connected += 1;
                shared.events.push(Event::Connected { conn: id, local });
            }
        }
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if conn.take_writable() {
            shared.events.push(Event::Writable { conn: id });
        }
        if conn.done {
            let over = half_open && !conn.reported;
            return self.after_end(id, over);
        }
        conn.wake = poll_at.min(conn.deadline(&self.limits));
        if conn.wake <= now {
            if exhausted {
                conn.wake = NEVER;
                self.mark_dirty(id);
            } else if let Some(conn) = self.conns.get_mut(&id) {
                // The stack reports "now" but sends nothing: poll again later instead of spinning.
                conn.wake = now + MILLISECOND;
            }
        }
        self.schedule(id);
        self.mark_ready(id);
    }

    fn leave_backlog(&mut self, port: u16) {
        if let Some(listener) = self.listeners.get_mut(&port) {
            listener.pending = listener.pending.saturating_sub(1);
        }
    }

    /// The socket is done: free the 4-tuple, remember an orderly end for a while, and remove the connection once
    /// its end is reported.
    pub(crate) fn after_end(&mut self, id: ConnId, half_open: bool) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let flow = conn.flow;
        if self.flows.get(&flow) == Some(&id) {
            self.flows.remove(&flow);
            if conn.state() == State::TimeWait {
                let until = conn.heard + TIME_WAIT;
                let acknowledgment = std::mem::take(&mut conn.last_packet);
                self.finished.insert(flow, Remembered { until, peer: conn.peer, acknowledgment });
                self.finished_order.push_back((until, flow));
            }
        }
        if half_open {
            self.leave_backlog(flow.local_port);
        }
        self.forget_or_tell(id);
    }

    fn forget_or_tell(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(&id) else { return };
        if conn.done && conn.end_reported {
            self.forget(id);
        } else {
            self.mark_ready(id);
        }
    }

    fn forget(&mut self, id: ConnId) {
        let Some(conn) = self.conns.remove(&id) else { return };
        if conn.inbound {
            self.inbound.remove(conn.peer);
        }
    }

    pub(crate) fn mark_dirty(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id) {
            if !conn.dirty {
                conn.dirty = true;
                self.dirty.push_back(id);
            }
        }
    }

    fn mark_ready(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id) {
            if !conn.ready && conn.has_news() {
                conn.ready = true;
                self.ready.push_back(id);
            }
        }
    }

    /// Push the connection's deadline to the heap, unless it contains an earlier one.
    fn schedule(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if conn.wake < conn.in_heap {
            conn.in_heap = conn.wake;
            self.timers.push(Reverse((conn.wake, id)));
        }
    }

    // Events.

    pub fn report<S: EventSink>(&mut self, sink: &mut S) -> Result<(), S::Error> {
        while let Some(id) = self.ready.pop_front() {
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            conn.ready = false;
            let read = conn.report(id, sink)?;
            if conn.done && conn.end_reported {
                self.forget(id);
            } else if read {
                // The receive window opened; only a poll announces that to the other end in time.
                self.mark_dirty(id);
            }
        }
        Ok(())
    }
}
