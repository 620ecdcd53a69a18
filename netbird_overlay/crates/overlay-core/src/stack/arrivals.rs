//! Inbound packets: each is matched to its connection, or may open one.
//!
//! A packet without a connection goes to an empty socket set, which answers echo requests and sends resets.

use smoltcp::socket::tcp::State;
use smoltcp::wire::IpListenEndpoint;

use crate::events::{ConnId, Reason};
use crate::noise::peer::Peer;
use crate::shared::Shared;
use crate::stack::conn::Conn;
use crate::stack::filter::{ICMP, TCP};
use crate::stack::guard::guarded;
use crate::stack::inbound::Room;
use crate::stack::link::Link;
use crate::stack::memory::Purpose;
use crate::stack::tcp::{Tcp, EPHEMERAL};
use crate::time::instant;
use crate::wire::packet::{Content, Flow, Header, ACK, FIN, RST, SYN};
use crate::wire::prefix::PeerId;

impl Tcp {
    /// Process a packet from `peer`, whose source address was checked to belong to that peer.
    pub fn receive(&mut self, shared: &mut Shared, peer: (PeerId, &mut Peer), packet: &[u8], header: &Header) {
        let (peer_id, peer) = peer;
        let Content::Tcp { source_port, destination_port, flags, sequence } = header.content else {
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
        if self.finished.contains_key(&flow) && !self.reopens(shared, peer, flow, flags, sequence) {
            return;
        }
        if opens {
            self.open(shared, (peer_id, peer), flow, packet);
        } else {
            shared.counters.unmatched += 1;
            // Reset segments that could have been for this node; ignore all others.
            if EPHEMERAL.contains(&flow.local_port) || self.filter.allows(flow.remote, TCP, flow.local_port) {
                self.answer_unclaimed(shared, peer, packet);
            }
        }
    }

    /// Judge a segment of a flow in TIME-WAIT. True if it may open the flow again.
    fn reopens(&mut self, shared: &mut Shared, peer: &mut Peer, flow: Flow, flags: u8, sequence: u32) -> bool {
        let Some(end) = self.finished.get(&flow) else { return true };
        let newer = sequence.wrapping_sub(end.next) as i32 >= 0;
        if flags & (SYN | ACK | RST | FIN) == SYN && newer {
            // RFC 9293 section 3.6.1: a SYN with a sequence number above the last one; an older one is a late duplicate.
            self.finished.remove(&flow);
            return true;
        }
        if flags & RST != 0 {
            // The other end knows no such connection: its answer to our acknowledgment of an old SYN.
            if sequence == end.next {
                self.finished.remove(&flow);
            }
        } else if flags & (SYN | FIN) != 0 && !end.acknowledgment.is_empty() {
            peer.send(shared, &end.acknowledgment);
        }
        false
    }

    fn open(&mut self, shared: &mut Shared, peer: (PeerId, &mut Peer), flow: Flow, packet: &[u8]) {
        let (peer_id, peer) = peer;
        if !self.filter.allows(flow.remote, TCP, flow.local_port) {
            shared.counters.denied_inbound += 1;
            return;
        }
        let Some(backlog) = self.listeners.get(&flow.local_port).map(|listener| listener.backlog) else {
            shared.counters.not_listening += 1;
            return self.answer_unclaimed(shared, peer, packet);
        };
        let port = flow.local_port;
        if self.half_open.on_port(port) >= backlog && !self.evict(shared, peer_id, Some(port)) {
            shared.counters.backlog_full += 1;
            return;
        }
        match self.room_for(peer_id) {
            Room::Yes => {}
            Room::Full if self.evict(shared, peer_id, None) => {}
            Room::Full => {
                shared.counters.limit_reached += 1;
                return;
            }
            Room::ShareTaken => {
                shared.counters.share_reached += 1;
                return;
            }
        }
        let Some(seed) = shared.entropy.draw() else {
            shared.counters.limit_reached += 1;
            return;
        };
        let now = shared.now();
        let mut conn = Conn::new(flow, peer_id, true, &self.limits, now);
        if !conn.buffers.take_first(peer_id, &mut self.memory, Purpose::Accept) {
            shared.counters.limit_reached += 1;
            return;
        }
        self.interface.set_random_seed(seed);
        let interface = &mut self.interface;
        let opened = guarded(|| {
            let endpoint = IpListenEndpoint { addr: Some(flow.local.into()), port };
            if conn.socket().listen(endpoint).is_err() {
                return false;
            }
            let mut link = Link::new(peer, shared, Some(packet), 1);
            interface.poll_ingress_single(instant(now), &mut link, conn.sockets());
            // A segment that the stack rejects leaves the socket unchanged.
            conn.state() == State::SynReceived
        });
        if opened == Some(true) {
            let id = self.insert(conn);
            self.mark_dirty(id);
            return;
        }
        conn.buffers.give_back_all(peer_id, &mut self.memory);
        match opened {
            None => self.note_defect(),
            _ => shared.counters.bad_packet += 1,
        }
    }

    /// End the oldest half-open connection of the peer that holds most, so that this peer can connect. False if no peer
    /// holds more than this one.
    fn evict(&mut self, shared: &mut Shared, peer: PeerId, port: Option<u16>) -> bool {
        let Some(id) = self.half_open.victim(peer, port) else { return false };
        shared.counters.half_open_evicted += 1;
        self.kill(id, Reason::Timeout, shared.now());
        true
    }

    fn receive_for(&mut self, shared: &mut Shared, peer: &mut Peer, id: ConnId, packet: &[u8], flags: u8) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let now = shared.now();
        let interface = &mut self.interface;
        let outcome = guarded(|| {
            let mut link = Link::new(peer, shared, Some(packet), 1);
            interface.poll_ingress_single(instant(now), &mut link, conn.sockets());
            flags & RST != 0 && conn.state() == State::Closed
        });
        match outcome {
            Some(was_reset) => {
                conn.was_reset |= was_reset;
                self.mark_dirty(id);
            }
            None => self.end_defective(id, now),
        }
    }

    fn receive_other(&mut self, shared: &mut Shared, id: PeerId, peer: &mut Peer, packet: &[u8], header: &Header) {
        match header.content {
            Content::EchoRequest if self.filter.allows(header.source, ICMP, 0) => {
                self.answer_unclaimed(shared, peer, packet);
            }
            Content::EchoRequest => shared.counters.denied_inbound += 1,
            Content::Unreachable(_, flow) => {
                let Some(conn_id) = self.flows.get(&flow).copied() else { return };
                let Some(conn) = self.conns.get_mut(&conn_id) else { return };
                // Honored only while connecting: later the error may be transient, or forged.
                if conn.peer == id && conn.state() == State::SynSent {
                    self.kill(conn_id, Reason::Unreachable, shared.now());
                }
            }
            _ => shared.counters.unsupported += 1,
        }
    }

    fn answer_unclaimed(&mut self, shared: &mut Shared, peer: &mut Peer, packet: &[u8]) {
        let now = instant(shared.now());
        let answered = guarded(|| {
            let mut link = Link::new(peer, shared, Some(packet), 1);
            self.interface.poll_ingress_single(now, &mut link, &mut self.nobody);
        });
        if answered.is_none() {
            self.note_defect();
        }
    }
}
