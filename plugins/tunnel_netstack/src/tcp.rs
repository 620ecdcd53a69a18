//! All connections: who may open one, which is polled when, and what is told of them.
//!
//! Each connection has a socket set of its own, so that the work for a packet does not grow with their number; the
//! stack's interface is shared. Packets that belong to none go to an empty set, which answers echoes and resets.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::IpAddr;
use std::panic::{catch_unwind, AssertUnwindSafe};

use foldhash::fast::RandomState;
use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::socket::tcp::State;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpListenEndpoint};

use crate::clock::{instant, Micros, MILLISECOND, NEVER, SECOND};
use crate::conn::{Conn, Limits};
use crate::events::{ConnId, Event, EventSink, Reason};
use crate::filter::{Filter, ICMP, TCP};
use crate::link::{Link, Nowhere};
use crate::packet::{Content, Flow, Header, ACK, FIN, RST, SYN};
use crate::prefix::{PeerId, Routes};
use crate::shared::Shared;
use crate::wireguard::{Peer, WireGuard};

/// Packets that one connection may send before the next has its turn.
const SHARE: usize = 32;
/// Ports of connections that we open.
const EPHEMERAL: std::ops::Range<u16> = 32768..61000;
/// How long the end of a finished connection is remembered, to acknowledge a repeated end of stream,
const TIME_WAIT: Micros = 10 * SECOND;
/// and how many of them.
const TIME_WAIT_MOST: usize = 16_384;

struct Listener {
    backlog: usize,
    pending: usize,
}

/// What is left of a finished connection.
struct Remembered {
    until: Micros,
    peer: PeerId,
    acknowledgment: Vec<u8>,
}

pub enum ConnectError {
    NoRoute,
    NoEndpoint,
    Limit,
}

pub struct Tcp {
    pub limits: Limits,
    pub filter: Filter,
    addresses: Vec<IpAddr>,
    interface: Interface,
    nobody: SocketSet<'static>,
    conns: HashMap<ConnId, Box<Conn>, RandomState>,
    flows: HashMap<Flow, ConnId, RandomState>,
    finished: HashMap<Flow, Remembered, RandomState>,
    finished_order: VecDeque<(Micros, Flow)>,
    listeners: HashMap<u16, Listener, RandomState>,
    dirty: VecDeque<ConnId>,
    ready: VecDeque<ConnId>,
    timers: BinaryHeap<Reverse<(Micros, ConnId)>>,
    last_id: ConnId,
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
        }
    }

    // Who we are, who may come in.

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

    /// End the connections whose remote address is not, or no longer, the peer's that they were made with.
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

    // Connections, as their owners see them.

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
        if !self.has_capacity() {
            shared.counters.limit_reached += 1;
            return Err(ConnectError::Limit);
        }
        let flow = self.free_flow(shared, local, address, port).ok_or(ConnectError::Limit)?;
        let seed = shared.entropy.next().ok_or(ConnectError::Limit)?;
        let now = shared.now();
        let mut conn = Conn::new(flow, peer_id, false, &self.limits, now);
        // The interface is where the initial sequence number comes from: one with a seed of its own, used this once.
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

    fn has_capacity(&self) -> bool {
        let each = self.limits.receive_buffer + self.limits.send_buffer;
        self.conns.len() < self.limits.max_connections && (self.conns.len() + 1) * each <= self.limits.max_buffer_bytes
    }

    fn insert(&mut self, conn: Conn) -> ConnId {
        self.last_id += 1;
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

    // Packets in.

    /// Take a packet that `peer` sent, and whose source address is that peer's.
    pub fn receive(&mut self, shared: &mut Shared, peer: (PeerId, &mut Peer), packet: &[u8], header: &Header) {
        let (peer_id, peer) = peer;
        let Content::Tcp { source_port, destination_port, flags } = header.content else {
            return self.receive_other(shared, peer_id, peer, packet, header);
        };
        let flow = Flow {
            local: header.destination,
            remote: header.source,
            local_port: destination_port,
            remote_port: source_port,
        };
        if let Some(&id) = self.flows.get(&flow) {
            return self.receive_for(shared, peer, id, packet, flags);
        }
        let opens = flags & (SYN | ACK | RST | FIN) == SYN;
        if let Some(end) = self.finished.get(&flow) {
            if opens {
                self.finished.remove(&flow);
            } else if flags & FIN != 0 && !end.acknowledgment.is_empty() {
                peer.send(shared, &end.acknowledgment);
                return;
            } else if flags & FIN == 0 {
                return;
            }
        }
        if opens {
            self.open(shared, (peer_id, peer), flow, packet);
        } else {
            shared.counters.unmatched += 1;
            // A reset for what could have been ours; for anything else, silence.
            if EPHEMERAL.contains(&flow.local_port) || self.filter.allows(flow.remote, TCP, flow.local_port) {
                self.answer_unclaimed(shared, peer, packet);
            }
        }
    }

    fn open(&mut self, shared: &mut Shared, peer: (PeerId, &mut Peer), flow: Flow, packet: &[u8]) {
        let (peer_id, peer) = peer;
        if !self.filter.allows(flow.remote, TCP, flow.local_port) {
            shared.counters.denied_inbound += 1;
            return;
        }
        let capacity = self.has_capacity();
        let Some(listener) = self.listeners.get_mut(&flow.local_port) else {
            shared.counters.not_listening += 1;
            return self.answer_unclaimed(shared, peer, packet);
        };
        if listener.pending >= listener.backlog {
            shared.counters.backlog_full += 1;
            return;
        }
        let seed = if capacity { shared.entropy.next() } else { None };
        let Some(seed) = seed else {
            shared.counters.limit_reached += 1;
            return;
        };
        let now = shared.now();
        let mut conn = Conn::new(flow, peer_id, true, &self.limits, now);
        let endpoint = IpListenEndpoint { addr: Some(flow.local.into()), port: flow.local_port };
        if conn.socket().listen(endpoint).is_err() {
            return;
        }
        let mut interface = interface(&self.addresses, shared.mtu, seed);
        let mut link = Link::new(peer, shared, Some(packet), 1);
        interface.poll_ingress_single(instant(now), &mut link, conn.sockets());
        // A segment that the stack did not like (its checksum, say) leaves it where it was.
        if conn.state() == State::SynReceived {
            listener.pending += 1;
            let id = self.insert(conn);
            self.mark_dirty(id);
        } else {
            shared.counters.bad_packet += 1;
        }
    }

    fn receive_for(&mut self, shared: &mut Shared, peer: &mut Peer, id: ConnId, packet: &[u8], flags: u8) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let now = shared.now();
        conn.heard = now;
        let interface = &mut self.interface;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let mut link = Link::new(peer, shared, Some(packet), 1);
            interface.poll_ingress_single(instant(now), &mut link, conn.sockets());
            flags & RST != 0 && conn.state() == State::Closed
        }));
        match outcome {
            Ok(was_reset) => {
                conn.was_reset |= was_reset;
                self.mark_dirty(id);
            }
            // A defect in the stack costs the connection that found it, not the tunnel.
            Err(_) => {
                shared.counters.internal_error += 1;
                let half_open = conn.inbound && !conn.reported && !conn.done;
                conn.kill(Reason::Reset, now);
                self.after_end(id, half_open);
            }
        }
    }

    fn receive_other(&mut self, shared: &mut Shared, id: PeerId, peer: &mut Peer, packet: &[u8], header: &Header) {
        match header.content {
            Content::EchoRequest if self.filter.allows(header.source, ICMP, 0) => {
                self.answer_unclaimed(shared, peer, packet);
            }
            Content::EchoRequest => shared.counters.denied_inbound += 1,
            Content::Unreachable(flow) => {
                let Some(conn_id) = self.flows.get(&flow).copied() else { return };
                let Some(conn) = self.conns.get_mut(&conn_id) else { return };
                // Only of use while there is no connection yet; later it may be a passing trouble, or a lie.
                if conn.peer == id && conn.state() == State::SynSent {
                    conn.kill(Reason::Unreachable, shared.now());
                    self.after_end(conn_id, false);
                }
            }
            _ => shared.counters.unsupported += 1,
        }
    }

    fn answer_unclaimed(&mut self, shared: &mut Shared, peer: &mut Peer, packet: &[u8]) {
        let now = instant(shared.now());
        let mut link = Link::new(peer, shared, Some(packet), 1);
        self.interface.poll_ingress_single(now, &mut link, &mut self.nobody);
    }

    // Time, and packets out.

    pub fn pending(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub fn next_timer(&self) -> Micros {
        self.timers.peek().map_or(NEVER, |Reverse((at, _))| *at)
    }

    /// Find the connections whose time has come.
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

    /// Let the connections that have something to send send it, in turns, while the queue has room.
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
            // A second time: even the reset found no way out.
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
                // The stack says "now" and yet sends nothing: ask again, but do not spin.
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

    /// The socket is done: free the 4-tuple, remember a good end for a while, and forget what was told already.
    fn after_end(&mut self, id: ConnId, half_open: bool) {
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
        if conn.done && conn.told {
            self.conns.remove(&id);
        } else {
            self.mark_ready(id);
        }
    }

    fn mark_dirty(&mut self, id: ConnId) {
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

    /// Put the connection's time into the heap, unless an earlier time of it is there already.
    fn schedule(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if conn.wake < conn.in_heap {
            conn.in_heap = conn.wake;
            self.timers.push(Reverse((conn.wake, id)));
        }
    }

    // What there is to tell.

    pub fn tell<S: EventSink>(&mut self, sink: &mut S) -> Result<(), S::Error> {
        while let Some(id) = self.ready.pop_front() {
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            conn.ready = false;
            let read = conn.tell(id, sink)?;
            if conn.done && conn.told {
                self.conns.remove(&id);
            } else if read {
                // The window has opened; without a poll the other end would learn of it late.
                self.mark_dirty(id);
            }
        }
        Ok(())
    }
}

fn interface(addresses: &[IpAddr], mtu: usize, seed: u64) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut interface = Interface::new(config, &mut Nowhere { mtu }, instant(0));
    interface.update_ip_addrs(|list| {
        for address in addresses {
            // `set_addresses` takes no more than there is room for.
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
