//! Inbound packets: each is matched to its connection, or may open one.
//!
//! A packet without a connection goes to an empty socket set, which answers echo requests and sends resets.

use std::panic::{catch_unwind, AssertUnwindSafe};

use smoltcp::socket::tcp::State;
use smoltcp::wire::IpListenEndpoint;

use crate::clock::instant;
use crate::conn::Conn;
use crate::events::{ConnId, Reason};
use crate::filter::{ICMP, TCP};
use crate::inbound::Room;
use crate::link::{interface, Link};
use crate::packet::{Content, Flow, Header, ACK, FIN, RST, SYN};
use crate::peer::Peer;
use crate::prefix::PeerId;
use crate::shared::Shared;
use crate::tcp::{Tcp, EPHEMERAL};

impl Tcp {
    /// Process a packet from `peer`, whose source address was checked to belong to that peer.
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
            // Reset segments that could have been for this node; ignore all others.
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
        let room = self.room_for(peer_id);
        let Some(listener) = self.listeners.get_mut(&flow.local_port) else {
            shared.counters.not_listening += 1;
            return self.answer_unclaimed(shared, peer, packet);
        };
        if listener.pending >= listener.backlog {
            shared.counters.backlog_full += 1;
            return;
        }
        match room {
            Room::Yes => {}
            Room::Full => {
                shared.counters.limit_reached += 1;
                return;
            }
            Room::ShareTaken => {
                shared.counters.share_reached += 1;
                return;
            }
        }
        let Some(seed) = shared.entropy.next() else {
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
        // A segment that the stack rejects, for its checksum for example, leaves the socket unchanged.
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
            // A defect in the stack ends the connection that triggered it, not the tunnel.
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
                // Honored only while connecting: later the error may be transient, or forged.
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
}
