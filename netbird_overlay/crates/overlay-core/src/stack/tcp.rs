//! All connections: own addresses, rules, admission, and the owner's operations.
//!
//! Each connection has a socket set of its own, so that the cost of a packet does not grow with their number. They
//! share the stack's interface. arrivals.rs processes inbound packets, flush.rs sends and reports.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use smoltcp::iface::{Interface, SocketSet};
use smoltcp::wire::{IpAddress, IpListenEndpoint};

use crate::events::{ConnId, Reason};
use crate::noise::wireguard::WireGuard;
use crate::shared::Shared;
use crate::stack::conn::{Conn, Limits};
use crate::stack::filter::{Filter, TCP};
use crate::stack::guard::{entered, guarded};
use crate::stack::half_open::HalfOpen;
use crate::stack::inbound::{Inbound, Room};
use crate::stack::link::interface;
use crate::stack::memory::{Budget, Memory, Purpose};
use crate::stack::turns::Turns;
use crate::time::Micros;
use crate::wire::packet::Flow;
use crate::wire::prefix::{PeerId, Routes};

/// Local ports for dials.
pub const EPHEMERAL: std::ops::Range<u16> = 32768..61000;

pub(crate) struct Listener {
    pub backlog: usize,
}

/// The record of a finished connection.
pub(crate) struct Remembered {
    pub until: Micros,
    pub peer: PeerId,
    pub acknowledgment: Vec<u8>,
    /// The sequence number after the last one of the other end.
    pub next: u32,
}

#[derive(Debug)]
pub enum ConnectError {
    NoRoute,
    NoEndpoint,
    Limit,
}

pub struct Tcp {
    pub limits: Limits,
    pub filter: Filter,
    /// Panics of the stack, not yet moved to the counters.
    pub(crate) defects: u64,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) mtu: usize,
    pub(crate) interface: Interface,
    pub(crate) nobody: SocketSet<'static>,
    pub(crate) memory: Memory,
    pub(crate) conns: HashMap<ConnId, Box<Conn>, RandomState>,
    pub(crate) flows: HashMap<Flow, ConnId, RandomState>,
    pub(crate) finished: HashMap<Flow, Remembered, RandomState>,
    pub(crate) finished_order: VecDeque<(Micros, Flow)>,
    pub(crate) listeners: HashMap<u16, Listener, RandomState>,
    pub(crate) half_open: HalfOpen,
    pub(crate) dirty: Turns<ConnId>,
    pub(crate) ready: VecDeque<ConnId>,
    pub(crate) timers: BinaryHeap<Reverse<(Micros, ConnId)>>,
    last_id: ConnId,
    pub(crate) inbound: Inbound,
}

impl Tcp {
    pub fn new(limits: Limits, budget: Arc<Budget>, mtu: usize) -> Self {
        Tcp {
            memory: Memory::new(budget, limits.max_buffer_bytes),
            limits,
            filter: Filter::default(),
            defects: 0,
            addresses: Vec::new(),
            mtu,
            interface: interface(&[], mtu, 0),
            nobody: SocketSet::new(Vec::new()),
            conns: HashMap::default(),
            flows: HashMap::default(),
            finished: HashMap::default(),
            finished_order: VecDeque::new(),
            listeners: HashMap::default(),
            half_open: HalfOpen::default(),
            dirty: Turns::default(),
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
        self.addresses = addresses;
        self.renew_interface();
        let addresses = &self.addresses;
        self.finished.retain(|flow, _| addresses.contains(&flow.local));
        self.kill_where(shared.now(), Reason::AddressRemoved, |conn, own| !own.contains(&conn.flow.local));
    }

    /// Replace the interface, after a change of addresses or a panic of the stack.
    pub(crate) fn renew_interface(&mut self) {
        self.interface = interface(&self.addresses, self.mtu, 0);
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
            self.kill(id, reason, now);
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
        self.listeners.insert(port, Listener { backlog });
    }

    pub fn unlisten(&mut self, port: u16) -> bool {
        self.listeners.remove(&port).is_some()
    }

    // The owner's operations on connections.

    pub fn connect(
        &mut self,
        shared: &mut Shared,
        wg: &WireGuard,
        routes: &Routes,
        address: IpAddr,
        port: u16,
    ) -> Result<ConnId, ConnectError> {
        let (peer, local) = route(&self.addresses, wg, routes, address)?;
        if self.conns.len() >= self.limits.max_connections {
            shared.counters.limit_reached += 1;
            return Err(ConnectError::Limit);
        }
        let flow = self.free_flow(shared, local, address, port).ok_or(ConnectError::Limit)?;
        let seed = shared.entropy.draw().ok_or(ConnectError::Limit)?;
        let mut conn = Conn::new(flow, peer, false, &self.limits, shared.now());
        let remote = (IpAddress::from(address), port);
        let from = IpListenEndpoint { addr: Some(local.into()), port: flow.local_port };
        // The interface chooses the initial sequence number, so each connection gets a seed of its own.
        self.interface.set_random_seed(seed);
        let interface = &mut self.interface;
        let connected = guarded(|| {
            entered();
            conn.socket().connect(interface.context(), remote, from).is_ok()
        });
        match connected {
            Some(true) => {}
            Some(false) => return Err(ConnectError::NoRoute),
            None => {
                self.note_defect();
                return Err(ConnectError::Limit);
            }
        }
        if !conn.buffers.take_first(peer, &mut self.memory, Purpose::Dial) {
            shared.counters.limit_reached += 1;
            return Err(ConnectError::Limit);
        }
        let id = self.insert(conn);
        self.mark_dirty(id);
        Ok(id)
    }

    fn free_flow(&self, shared: &mut Shared, local: IpAddr, remote: IpAddr, remote_port: u16) -> Option<Flow> {
        for _ in 0..64 {
            let local_port = EPHEMERAL.start + (shared.entropy.draw()? % EPHEMERAL.len() as u64) as u16;
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

    pub(crate) fn room_for(&self, peer: PeerId) -> Room {
        self.inbound.room(peer, &self.limits, self.conns.len())
    }

    /// Add a connection whose memory was taken.
    pub(crate) fn insert(&mut self, conn: Conn) -> ConnId {
        self.last_id += 1;
        if conn.inbound {
            self.inbound.add(conn.peer);
            self.half_open.add(self.last_id, conn.peer, conn.flow.local_port);
        }
        self.flows.insert(conn.flow, self.last_id);
        self.conns.insert(self.last_id, Box::new(conn));
        self.last_id
    }

    /// Run `work` on a connection, and let it send and report. A panic in the stack ends this connection only.
    fn on<R: Default>(&mut self, id: ConnId, now: Micros, work: impl FnOnce(&mut Conn, &mut Memory) -> R) -> R {
        let Some(conn) = self.conns.get_mut(&id) else { return R::default() };
        let memory = &mut self.memory;
        match guarded(|| work(conn, memory)) {
            Some(result) => {
                self.mark_dirty(id);
                self.mark_ready(id);
                result
            }
            None => {
                self.end_defective(id, now);
                R::default()
            }
        }
    }

    /// The stack panicked during work for this connection.
    pub(crate) fn end_defective(&mut self, id: ConnId, now: Micros) {
        self.note_defect();
        self.kill(id, Reason::Reset, now);
    }

    pub(crate) fn note_defect(&mut self) {
        self.defects += 1;
        self.renew_interface();
    }

    pub(crate) fn kill(&mut self, id: ConnId, reason: Reason, now: Micros) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.kill(reason, now);
            self.after_end(id);
        }
    }

    pub fn write(&mut self, id: ConnId, data: &[u8], now: Micros) -> usize {
        self.on(id, now, |conn, memory| conn.write(data, now, memory))
    }

    pub fn write_eof(&mut self, id: ConnId, now: Micros) {
        self.on(id, now, |conn, _| conn.write_eof());
    }

    pub fn close(&mut self, id: ConnId, now: Micros) {
        self.on(id, now, |conn, _| conn.release(now));
    }

    pub fn abort(&mut self, id: ConnId, now: Micros) {
        self.abort_because(id, Reason::Local, now);
    }

    fn abort_because(&mut self, id: ConnId, reason: Reason, now: Micros) {
        self.on(id, now, |conn, _| conn.abort(reason, now));
    }

    /// Send again at once what waits for a peer's acknowledgment in vain: there is a new way to the peer.
    pub fn path_changed(&mut self, peer: PeerId) {
        let conns = self.conns.iter_mut().filter(|(_, conn)| conn.peer == peer && !conn.done);
        let waiting: Vec<ConnId> = conns.filter_map(|(id, conn)| conn.socket().path_changed().then_some(*id)).collect();
        for id in waiting {
            self.mark_dirty(id);
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

    // Current values.

    pub fn count(&self) -> usize {
        self.conns.len()
    }

    pub fn half_open(&self) -> usize {
        self.half_open.len()
    }

    pub fn buffer_bytes(&self) -> usize {
        self.memory.used()
    }

    pub(crate) fn mark_dirty(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id) {
            if !conn.dirty {
                conn.dirty = true;
                self.dirty.push(conn.peer, id);
            }
        }
    }

    pub(crate) fn mark_ready(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id) {
            if !conn.ready && conn.has_news() {
                conn.ready = true;
                self.ready.push_back(id);
            }
        }
    }
}

/// Find the peer of an overlay address, and our own address to reach it from.
pub(crate) fn route(
    own: &[IpAddr],
    wg: &WireGuard,
    routes: &Routes,
    address: IpAddr,
) -> Result<(PeerId, IpAddr), ConnectError> {
    let id = routes.lookup(address).ok_or(ConnectError::NoRoute)?;
    let peer = wg.peer(id).ok_or(ConnectError::NoRoute)?;
    let local = own
        .iter()
        .find(|own| own.is_ipv4() == address.is_ipv4())
        .filter(|own| **own != address)
        .ok_or(ConnectError::NoRoute)?;
    if peer.endpoint.is_none() {
        return Err(ConnectError::NoEndpoint);
    }
    Ok((id, *local))
}
