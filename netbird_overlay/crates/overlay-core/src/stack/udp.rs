//! Datagrams inside the overlay: listening ports and connected sockets, and bounded queues in both directions.
//!
//! A datagram is a packet of its own, so this needs no stack: headers are built and read in wire/datagram.rs. Fragments
//! are neither sent nor put together: a datagram that does not fit into a packet is refused.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use foldhash::fast::RandomState;

use crate::events::{Event, Reason};
use crate::noise::peer::Peer;
use crate::noise::wireguard::WireGuard;
use crate::shared::Shared;
use crate::stack::asked::Asked;
use crate::stack::datagrams::{Datagrams, QueueLimits};
use crate::stack::filter::{Filter, UDP};
use crate::stack::tcp::{route, ConnectError, EPHEMERAL};
use crate::time::{Micros, SECOND};
use crate::wire::datagram::{build, is_intact, overhead, port_unreachable};
use crate::wire::packet::{Content, Flow, Header, UDP_HEADER};
use crate::wire::prefix::{PeerId, Routes};

/// A listening port, or the number of a connected socket, which is above all ports.
pub type UdpId = u64;

const FIRST_CONNECTED: UdpId = 1 << 16;
/// Maximum number of listening ports and connected sockets.
const SOCKETS: usize = 1024;
/// Datagrams that wait for the owner.
const RECEIVED: QueueLimits = QueueLimits { count: 1024, bytes: 2 << 20 };
/// Datagrams that wait to be sent.
const SENDING: QueueLimits = QueueLimits { count: 1024, bytes: 2 << 20 };
/// Maximum number of datagrams sent before TCP's turn.
const SHARE: usize = 64;
/// Maximum number of ICMP errors that are sent in a second (RFC 4443 section 2.4 f).
const ERRORS_PER_SECOND: u32 = 100;

/// A datagram for the owner.
#[derive(Debug)]
pub struct Received {
    pub id: UdpId,
    pub data: Vec<u8>,
    pub remote: (IpAddr, u16),
    pub peer: [u8; 32],
}

struct Connected {
    flow: Flow,
    peer: PeerId,
    /// An "unreachable" was reported, and the owner has not heard of it yet.
    refused: bool,
}

#[derive(Debug)]
pub enum SendError {
    NoRoute,
    NoEndpoint,
    TooLong,
}

pub struct Udp {
    listening: HashSet<u16, RandomState>,
    connected: HashMap<UdpId, Connected, RandomState>,
    flows: HashMap<Flow, UdpId, RandomState>,
    received: Datagrams<Received>,
    sending: Datagrams<Vec<u8>>,
    asked: Asked,
    last_id: UdpId,
    errors: u32,
    errors_since: Micros,
}

impl Default for Udp {
    fn default() -> Self {
        Udp {
            listening: HashSet::default(),
            connected: HashMap::default(),
            flows: HashMap::default(),
            received: Datagrams::new(RECEIVED),
            sending: Datagrams::new(SENDING),
            asked: Asked::default(),
            last_id: FIRST_CONNECTED,
            errors: 0,
            errors_since: 0,
        }
    }
}

impl Udp {
    // The owner's operations.

    /// Receive datagrams to a port. False if there are too many sockets.
    pub fn listen(&mut self, port: u16) -> bool {
        if !self.listening.contains(&port) && self.sockets() >= SOCKETS {
            return false;
        }
        self.listening.insert(port);
        true
    }

    pub fn connect(
        &mut self,
        shared: &mut Shared,
        ways: (&[IpAddr], &WireGuard, &Routes),
        address: IpAddr,
        port: u16,
    ) -> Result<UdpId, ConnectError> {
        let (own, wg, routes) = ways;
        let (peer, local) = route(own, wg, routes, address)?;
        if self.sockets() >= SOCKETS {
            shared.counters.limit_reached += 1;
            return Err(ConnectError::Limit);
        }
        let flow = self.free_flow(shared, local, address, port).ok_or(ConnectError::Limit)?;
        self.last_id += 1;
        self.flows.insert(flow, self.last_id);
        self.connected.insert(self.last_id, Connected { flow, peer, refused: false });
        Ok(self.last_id)
    }

    fn free_flow(&self, shared: &mut Shared, local: IpAddr, remote: IpAddr, remote_port: u16) -> Option<Flow> {
        for _ in 0..64 {
            let local_port = EPHEMERAL.start + (shared.entropy.draw()? % EPHEMERAL.len() as u64) as u16;
            let flow = Flow { local, remote, local_port, remote_port };
            if !self.flows.contains_key(&flow) && !self.listening.contains(&local_port) {
                return Some(flow);
            }
        }
        None
    }

    /// The addresses of a connected socket.
    pub fn flow(&self, id: UdpId) -> Option<Flow> {
        self.connected.get(&id).map(|connected| connected.flow)
    }

    pub fn close(&mut self, id: UdpId) -> bool {
        let closed = match u16::try_from(id) {
            Ok(port) => {
                self.asked.close(port);
                self.listening.remove(&port)
            }
            Err(_) => self.connected.remove(&id).is_some_and(|gone| self.flows.remove(&gone.flow).is_some()),
        };
        if closed {
            self.received.retain(|datagram| datagram.id != id);
        }
        closed
    }

    /// Queue a datagram. False if it was dropped because the queue is full, or the socket is closed.
    pub fn send(
        &mut self,
        shared: &mut Shared,
        ways: (&[IpAddr], &WireGuard, &Routes),
        id: UdpId,
        remote: Option<(IpAddr, u16)>,
        data: &[u8],
    ) -> Result<bool, SendError> {
        let (own, wg, routes) = ways;
        let (flow, peer) = match (u16::try_from(id), remote) {
            (Ok(port), Some((address, remote_port))) if self.listening.contains(&port) => {
                let (peer, local) = route(own, wg, routes, address).map_err(|error| match error {
                    ConnectError::NoEndpoint => SendError::NoEndpoint,
                    _ => SendError::NoRoute,
                })?;
                let local = self.asked.local(&(port, address, remote_port)).unwrap_or(local);
                (Flow { local, remote: address, local_port: port, remote_port }, peer)
            }
            (Err(_), None) => match self.connected.get(&id) {
                Some(connected) => (connected.flow, connected.peer),
                None => return Ok(false),
            },
            _ => return Ok(false),
        };
        if overhead(flow.local) + data.len() > shared.mtu {
            return Err(SendError::TooLong);
        }
        let mut packet = build(&flow, data);
        // Padded as WireGuard requires, to hide a packet's exact length.
        packet.resize(packet.len().next_multiple_of(16).min(shared.mtu), 0);
        let size = packet.len();
        let queued = self.sending.push(peer, packet, size);
        shared.counters.udp_dropped += u64::from(!queued);
        Ok(queued)
    }

    pub fn sockets(&self) -> usize {
        self.listening.len() + self.connected.len()
    }

    /// Number of clients that asked at another address than our first one.
    pub fn asked(&self) -> usize {
        self.asked.len()
    }

    // Packets.

    /// Process a datagram from `peer`, whose source address was checked to belong to that peer.
    pub(crate) fn receive(
        &mut self,
        shared: &mut Shared,
        peer: (PeerId, &mut Peer),
        packet: &[u8],
        header: &Header,
        filter: &Filter,
    ) {
        let Content::Udp { source_port: remote_port, destination_port: local_port, range } = &header.content else {
            return;
        };
        let (remote_port, local_port, datagram) = (*remote_port, *local_port, &packet[range.clone()]);
        let (peer_id, peer) = peer;
        if !is_intact(header.source, header.destination, datagram) {
            shared.counters.bad_packet += 1;
            return;
        }
        let flow = Flow { local: header.destination, remote: header.source, local_port, remote_port };
        // The answer to a datagram of ours needs no rule.
        let connected = self.flows.get(&flow).copied();
        let id = match connected {
            Some(id) => id,
            None if !filter.allows(header.source, UDP, local_port) => {
                shared.counters.denied_inbound += 1;
                return;
            }
            None if self.listening.contains(&local_port) => {
                self.asked.note((local_port, header.source, remote_port), header.destination);
                UdpId::from(local_port)
            }
            None => {
                shared.counters.not_listening += 1;
                if self.may_report_error(shared.now()) {
                    let error = port_unreachable(header.destination, header.source, packet, shared.mtu);
                    peer.send(shared, &error);
                }
                return;
            }
        };
        let data = datagram[UDP_HEADER..].to_vec();
        let size = datagram.len();
        let received = Received { id, data, remote: (header.source, remote_port), peer: peer.key };
        if !self.received.push(peer_id, received, size) {
            shared.counters.udp_dropped += 1;
        }
    }

    /// Note that a peer reported one of our datagrams as unreachable.
    pub(crate) fn unreachable(&mut self, peer: PeerId, flow: &Flow) {
        if let Some(connected) = self.flows.get(flow).and_then(|id| self.connected.get_mut(id)) {
            connected.refused |= connected.peer == peer;
        }
    }

    fn may_report_error(&mut self, now: Micros) -> bool {
        if now - self.errors_since >= SECOND {
            self.errors_since = now;
            self.errors = 0;
        }
        self.errors += 1;
        self.errors <= ERRORS_PER_SECOND
    }

    pub fn pending(&self) -> bool {
        !self.sending.is_empty()
    }

    /// Send what waits, peers in turn, while the queue of outer datagrams has room.
    pub fn flush(&mut self, shared: &mut Shared, wg: &mut WireGuard) {
        for _ in 0..SHARE {
            if !shared.outgoing.has_room() {
                break;
            }
            let Some((id, packet)) = self.sending.pop() else { break };
            if let Some(peer) = wg.peer_mut(id) {
                peer.send(shared, &packet);
            }
        }
    }

    // Ends and events.

    /// End the sockets that are connected to an address that no longer belongs to their peer, or from one that is not
    /// ours any more. What waits for a peer that is gone is dropped.
    pub fn recheck(&mut self, shared: &mut Shared, own: &[IpAddr], routes: &Routes) {
        self.asked.set_own(own);
        let mut ended = Vec::new();
        for (&id, connected) in &self.connected {
            if !own.contains(&connected.flow.local) {
                ended.push((id, Reason::AddressRemoved));
            } else if routes.lookup(connected.flow.remote) != Some(connected.peer) {
                ended.push((id, Reason::PeerRemoved));
            }
        }
        for (id, reason) in ended {
            self.close(id);
            shared.events.push(Event::UdpFailed { conn: id, reason });
        }
    }

    /// Drop what waits for or from a peer, before its number is used for another.
    pub fn forget_peer(&mut self, peer: PeerId) {
        self.sending.forget(peer);
        self.received.forget(peer);
    }

    /// Take the events.
    pub fn events(&mut self) -> impl Iterator<Item = Event> + '_ {
        let refused = self.connected.iter_mut();
        let refused: Vec<UdpId> =
            refused.filter_map(|(&id, connected)| std::mem::take(&mut connected.refused).then_some(id)).collect();
        let received = std::iter::from_fn(|| self.received.pop());
        received
            .map(|(_, received)| Event::UdpReceived(received))
            .chain(refused.into_iter().map(|conn| Event::UdpFailed { conn, reason: Reason::Unreachable }))
    }
}
