//! Timers, turns of sending, ends and events of connections.

use std::cmp::Reverse;

use smoltcp::iface::PollResult;
use smoltcp::socket::tcp::State;

use crate::events::{ConnId, Event, EventSink, Reason};
use crate::noise::peer::Peer;
use crate::noise::wireguard::WireGuard;
use crate::shared::Shared;
use crate::stack::guard::guarded;
use crate::stack::link::Link;
use crate::stack::tcp::{Remembered, Tcp};
use crate::time::{instant, Micros, MILLISECOND, NEVER, SECOND};

/// Maximum number of packets that a connection sends before the next one's turn.
pub(crate) const SHARE: usize = 32;
/// Time for which a finished connection is remembered, to acknowledge a repeated end of stream,
const TIME_WAIT: Micros = 10 * SECOND;
/// and the maximum number of such connections.
const TIME_WAIT_MOST: usize = 16_384;

/// The result of a connection's turn.
struct Turn {
    opened: bool,
    exhausted: bool,
    poll_at: Micros,
}

impl Tcp {
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
            let Some(id) = self.dirty.pop() else { break };
            self.flush_one(shared, wg, id);
        }
        shared.counters.internal_error += std::mem::take(&mut self.defects);
    }

    fn flush_one(&mut self, shared: &mut Shared, wg: &mut WireGuard, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.dirty = false;
        if conn.done {
            return self.after_end(id);
        }
        let now = shared.now();
        let Some(peer) = wg.peer_mut(conn.peer) else {
            return self.kill(id, Reason::PeerRemoved, now);
        };
        let Some(turn) = guarded(|| self.take_turn(shared, peer, id)) else {
            return self.end_defective(id, now);
        };
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if turn.opened {
            let (local, remote) = ((conn.flow.local, conn.flow.local_port), (conn.flow.remote, conn.flow.remote_port));
            if conn.inbound {
                shared.counters.accepted += 1;
                shared.events.push(Event::Accepted { conn: id, local, remote, peer: peer.key });
                self.half_open.remove(id);
            } else {
                shared.counters.connected += 1;
                shared.events.push(Event::Connected { conn: id, local });
            }
        }
        if conn.take_writable() {
            shared.events.push(Event::Writable { conn: id });
        }
        if conn.done {
            return self.after_end(id);
        }
        conn.wake = turn.poll_at.min(conn.deadline(&self.limits));
        if conn.wake <= now {
            if turn.exhausted {
                conn.wake = NEVER;
                self.mark_dirty(id);
            } else {
                // The stack reports "now" but sends nothing: poll again later instead of spinning.
                conn.wake = now + MILLISECOND;
            }
        }
        self.schedule(id);
        self.mark_ready(id);
    }

    /// Enforce the deadline, send, and evaluate the changes. Runs under the guard.
    fn take_turn(&mut self, shared: &mut Shared, peer: &mut Peer, id: ConnId) -> Turn {
        let now = shared.now();
        let mut turn = Turn { opened: false, exhausted: false, poll_at: NEVER };
        let Some(conn) = self.conns.get_mut(&id) else { return turn };
        if conn.deadline(&self.limits) <= now {
            // The second failure: even the reset could not be sent.
            if conn.end.is_some() && conn.state() == State::Closed {
                conn.kill(Reason::Timeout, now);
                return turn;
            }
            conn.abort(Reason::Timeout, now);
        }
        conn.shrink(now, &mut self.memory);
        let mut link = Link::new(peer, shared, None, SHARE);
        while self.interface.poll_egress(instant(now), &mut link, conn.sockets()) != PollResult::None {
            if link.exhausted() {
                break;
            }
        }
        let last = link.last;
        turn.exhausted = link.exhausted();
        turn.poll_at = conn.poll_at(&mut self.interface, now);
        if last > 0 && conn.state() == State::TimeWait {
            conn.last_packet = shared.scratch[..last].to_vec();
        }
        shared.in_flight = shared.in_flight.max(conn.in_flight());
        turn.opened = conn.settle(now, turn.poll_at > now);
        turn
    }

    /// The socket is done: free the 4-tuple, remember an orderly end for a while, and remove the connection once
    /// its end is reported.
    pub(crate) fn after_end(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let flow = conn.flow;
        if self.flows.get(&flow) == Some(&id) {
            self.flows.remove(&flow);
            if conn.state() == State::TimeWait {
                let until = conn.heard + TIME_WAIT;
                let acknowledgment = std::mem::take(&mut conn.last_packet);
                let next = conn.socket().next_remote_seq().0 as u32;
                self.finished.insert(flow, Remembered { until, peer: conn.peer, acknowledgment, next });
                self.finished_order.push_back((until, flow));
            }
        }
        self.half_open.remove(id);
        if conn.done && conn.end_reported {
            self.forget(id);
        } else {
            self.mark_ready(id);
        }
    }

    fn forget(&mut self, id: ConnId) {
        let Some(mut conn) = self.conns.remove(&id) else { return };
        conn.buffers.give_back_all(conn.peer, &mut self.memory);
        if conn.inbound {
            self.inbound.remove(conn.peer);
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

    pub fn report<S: EventSink>(&mut self, now: Micros, sink: &mut S) -> Result<(), S::Error> {
        while let Some(id) = self.ready.pop_front() {
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            conn.ready = false;
            let memory = &mut self.memory;
            let Some(read) = guarded(|| conn.report(id, sink, now, memory)) else {
                self.end_defective(id, now);
                continue;
            };
            let read = read?;
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
