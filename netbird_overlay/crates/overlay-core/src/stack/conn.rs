//! One TCP connection: its socket, the events reported about it, and its timeouts. buffers.rs sizes its buffers.
//!
//! smoltcp's socket reports no reasons and few deadlines, so both are kept here. A connection is *done* when its socket
//! will never send or receive again, *ended* when its `Closed` has a reason, and *end_reported* when that was
//! reported. It is removed when it is done and its end is reported.

use smoltcp::iface::{Interface, SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer, State};
use smoltcp::time::Duration;

use crate::events::{ConnId, Event, EventSink, Reason};
use crate::stack::buffers::Buffers;
use crate::stack::guard::entered;
use crate::stack::memory::Memory;
use crate::time::{instant, Micros, NEVER, SECOND};
use crate::wire::packet::Flow;
use crate::wire::prefix::PeerId;

/// Maximum time for the other end to complete a TCP handshake that it started.
const HALF_OPEN: Micros = 20 * SECOND;
/// Maximum time without any answer to sent data or to our end of stream.
const UNANSWERED: Micros = 120 * SECOND;
/// Maximum time without an acknowledgment of data, although the other end answers: a reader that keeps its window shut.
const STALLED: Micros = 900 * SECOND;
/// Interval of the probes of an idle connection,
const KEEPALIVE: Duration = Duration::from_secs(75);
/// and the time without an answer after which it is reset.
const SILENCE: Micros = 600 * SECOND;
/// Maximum time for a closed connection to deliver its last bytes.
const LINGER: Micros = 60 * SECOND;

pub struct Limits {
    /// Sizes up to which a connection's buffers grow.
    pub receive_buffer: usize,
    pub send_buffer: usize,
    pub max_connections: usize,
    /// Number of connections reserved for dials.
    pub reserved_for_dials: usize,
    /// Limits a peer to as many inbound connections as are still free for all peers.
    pub fair: bool,
    /// Maximum size of all buffers of this engine together.
    pub max_buffer_bytes: usize,
    pub connect_timeout: Micros,
}

pub struct Conn {
    pub flow: Flow,
    pub peer: PeerId,
    pub inbound: bool,
    /// `Accepted` or `Connected` was reported.
    pub reported: bool,
    pub end: Option<Reason>,
    pub end_reported: bool,
    pub done: bool,
    pub paused: bool,
    /// A `write` took only part of its data.
    pub short: bool,
    /// The last effective segment from the other end was a valid reset.
    pub was_reset: bool,
    pub dirty: bool,
    pub ready: bool,
    /// Time of the connection's entry in the timer heap, and its actual deadline.
    pub in_heap: Micros,
    pub wake: Micros,
    pub heard: Micros,
    /// The packet that answers the other end in TIME-WAIT: the acknowledgment of its end of stream.
    pub last_packet: Vec<u8>,
    pub(crate) buffers: Buffers,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    state: State,
    since: Micros,
    /// Totals of bytes, and the time since which no byte was acknowledged although some wait for that.
    written: u64,
    acknowledged: u64,
    stalled_since: Micros,
    ended_at: Micros,
    received_eof: bool,
    eof_told: bool,
    eof_sent: bool,
}

impl Conn {
    pub(crate) fn new(flow: Flow, peer: PeerId, inbound: bool, limits: &Limits, now: Micros) -> Self {
        let buffers = Buffers::new(limits, now);
        // Before the connection is established, nothing can be written.
        let mut socket = Socket::new(SocketBuffer::new(vec![0; buffers.first_receive()]), SocketBuffer::new(vec![]));
        socket.set_recv_capacity_limit(limits.receive_buffer);
        socket.set_congestion_control(CongestionControl::Cubic);
        // Nagle's algorithm is off: the writes of one turn are combined already.
        socket.set_nagle_enabled(false);
        socket.set_keep_alive(Some(KEEPALIVE));
        let mut sockets = SocketSet::new(vec![SocketStorage::EMPTY]);
        let handle = sockets.add(socket);
        Conn {
            flow,
            peer,
            inbound,
            reported: false,
            end: None,
            end_reported: false,
            done: false,
            paused: false,
            short: false,
            was_reset: false,
            dirty: false,
            ready: false,
            in_heap: NEVER,
            wake: NEVER,
            heard: now,
            last_packet: Vec::new(),
            buffers,
            sockets,
            handle,
            state: State::Closed,
            since: now,
            written: 0,
            acknowledged: 0,
            stalled_since: now,
            ended_at: now,
            received_eof: false,
            eof_told: false,
            eof_sent: false,
        }
    }

    pub fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut::<Socket<'static>>(self.handle)
    }

    pub fn sockets(&mut self) -> &mut SocketSet<'static> {
        &mut self.sockets
    }

    pub fn state(&mut self) -> State {
        self.socket().state()
    }

    /// The bytes that may be on the way to the other end: the send buffer, as far as the windows permit.
    pub fn in_flight(&mut self) -> usize {
        let socket = self.socket();
        socket.send_queue().min(socket.send_window())
    }

    pub fn open_to_writes(&self) -> bool {
        self.reported && self.end.is_none() && !self.eof_sent
    }

    pub(crate) fn write(&mut self, data: &[u8], now: Micros, memory: &mut Memory) -> usize {
        if !self.open_to_writes() {
            return 0;
        }
        entered();
        let mut taken = 0;
        let socket = self.sockets.get_mut::<Socket<'static>>(self.handle);
        loop {
            taken += socket.send_slice(&data[taken..]).unwrap_or(0);
            if taken == data.len() || !self.buffers.grow_send(socket, self.peer, memory) {
                break;
            }
        }
        if taken > 0 {
            if self.written == self.acknowledged {
                self.stalled_since = now;
            }
            self.written += taken as u64;
            self.buffers.used(now);
        }
        self.short |= taken < data.len();
        taken
    }

    pub fn write_eof(&mut self) {
        if self.open_to_writes() {
            self.eof_sent = true;
            entered();
            self.socket().close();
        }
    }

    /// Deliver the send buffer, then end; no more data is read.
    pub fn release(&mut self, now: Micros) {
        if self.end.is_some() {
            return self.give_up_unread();
        }
        if !self.reported {
            return self.abort(Reason::Local, now);
        }
        self.finish(Reason::Local, now);
        entered();
        self.socket().close();
    }

    /// Reset the connection, and notify the other end if possible.
    pub fn abort(&mut self, reason: Reason, now: Micros) {
        self.give_up_unread();
        if !self.done {
            self.finish(reason, now);
            entered();
            self.socket().abort();
        }
    }

    /// The owner closed a stream that had ended in order and waited for its reader.
    fn give_up_unread(&mut self) {
        if !self.end_reported && self.end == Some(Reason::Finished) {
            self.end = Some(Reason::Local);
        }
    }

    /// End at once, without sending anything.
    pub fn kill(&mut self, reason: Reason, now: Micros) {
        self.finish(reason, now);
        self.done = true;
    }

    fn finish(&mut self, reason: Reason, now: Micros) {
        if self.end.is_none() {
            self.end = Some(reason);
            self.ended_at = now;
        }
        // An inbound attempt that was never reported needs no end.
        self.end_reported |= self.inbound && !self.reported;
    }

    /// Evaluate the changes of the last poll. True if an `Accepted` or `Connected` is due.
    ///
    /// `flushed`: the socket has nothing more to send now.
    pub fn settle(&mut self, now: Micros, flushed: bool) -> bool {
        let (before, state) = (self.state, self.state());
        if before != state {
            self.state = state;
            self.since = now;
        }
        self.look(now);
        self.received_eof |= matches!(state, State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
        match state {
            // The segment did not open the connection, or its opening was undone.
            State::Listen => self.kill(Reason::Reset, now),
            State::Closed if self.socket().local_endpoint().is_none() => {
                self.done = true;
                let reason = match before {
                    State::LastAck if !self.was_reset => Reason::Finished,
                    State::SynSent => Reason::Refused,
                    _ => Reason::Reset,
                };
                self.finish(reason, now);
            }
            State::TimeWait if flushed => {
                self.done = true;
                self.finish(Reason::Finished, now);
            }
            State::Closed | State::TimeWait | State::SynSent | State::SynReceived => {}
            _ if self.end.is_some() => self.discard(),
            _ if !self.reported => {
                self.reported = true;
                let first = self.buffers.first_send();
                self.socket().grow_send_buffer(first);
                return true;
            }
            _ => {}
        }
        false
    }

    /// Note that the other end was heard, by a segment that the stack accepted, and that it took data.
    fn look(&mut self, now: Micros) {
        let socket = self.socket();
        let (heard, waiting) = (socket.last_received_at(), socket.send_queue() as u64);
        if let Some(at) = heard {
            self.heard = self.heard.max(Micros::try_from(at.total_micros()).unwrap_or(0));
        }
        let acknowledged = self.written.saturating_sub(waiting);
        if acknowledged > self.acknowledged {
            self.acknowledged = acknowledged;
            self.stalled_since = now;
        }
    }

    fn discard(&mut self) {
        while self.socket().recv(|bytes| (bytes.len(), bytes.len())).unwrap_or(0) > 0 {}
    }

    /// True if a `Writable` is due.
    pub fn take_writable(&mut self) -> bool {
        if !self.short || !self.open_to_writes() {
            return false;
        }
        let socket = self.socket();
        let due = socket.send_queue() * 2 <= socket.send_capacity();
        self.short &= !due;
        due
    }

    /// True if `report` would report an event.
    pub fn has_news(&mut self) -> bool {
        if self.end_reported || !(self.reported || self.end.is_some()) {
            return false;
        }
        self.end.is_some()
            || (!self.paused && (self.socket().recv_queue() > 0 || (self.received_eof && !self.eof_told)))
    }

    /// Report data, its end and the connection's end, as far as they are due. True if data was read.
    pub(crate) fn report<S: EventSink>(
        &mut self,
        conn: ConnId,
        sink: &mut S,
        now: Micros,
        memory: &mut Memory,
    ) -> Result<bool, S::Error> {
        if self.end_reported {
            return Ok(false);
        }
        let mut read = false;
        let readable = matches!(self.end, None | Some(Reason::Finished | Reason::Reset));
        if self.reported && readable && !self.paused {
            let length = self.socket().recv_queue();
            if length > 0 {
                entered();
                let socket = self.sockets.get_mut::<Socket<'static>>(self.handle);
                sink.data(conn, length, &mut |buffer| {
                    socket.recv_slice(buffer).unwrap_or(0);
                })?;
                read = true;
                self.buffers.grow_receive(socket, length, now, self.peer, memory);
            }
            if self.received_eof && !self.eof_told && self.socket().recv_queue() == 0 {
                self.eof_told = true;
                sink.event(Event::Eof { conn })?;
            }
        }
        let Some(reason) = self.end else { return Ok(read) };
        // A stream that ended in order is first read to its end, however long its reader pauses.
        let unread = self.reported && self.paused && (self.socket().recv_queue() > 0 || !self.eof_told);
        if reason == Reason::Finished && unread {
            return Ok(read);
        }
        self.end_reported = true;
        if self.reported {
            // An established connection ends for fewer reasons than a dial.
            let reason = if reason == Reason::Refused { Reason::Reset } else { reason };
            sink.event(Event::Closed { conn, reason })?;
        } else if !self.inbound {
            let reason = if reason == Reason::Reset { Reason::Refused } else { reason };
            sink.event(Event::ConnectFailed { conn, reason })?;
        }
        Ok(read)
    }

    /// Give back buffers that an idle connection does not need.
    pub(crate) fn shrink(&mut self, now: Micros, memory: &mut Memory) {
        let socket = self.sockets.get_mut::<Socket<'static>>(self.handle);
        self.buffers.shrink(socket, now, self.peer, memory);
    }

    /// The deadline after which the connection is reset.
    pub fn deadline(&mut self, limits: &Limits) -> Micros {
        if self.done {
            return NEVER;
        }
        if self.end.is_some() {
            return self.ended_at + LINGER;
        }
        let stalled = self.stalled_since.max(self.since) + STALLED;
        match self.state {
            State::SynSent => self.since + limits.connect_timeout,
            State::SynReceived => self.since + HALF_OPEN,
            State::FinWait1 | State::Closing | State::LastAck => (self.heard.max(self.since) + UNANSWERED).min(stalled),
            _ if self.acknowledged < self.written => (self.heard.max(self.stalled_since) + UNANSWERED).min(stalled),
            _ => self.heard + SILENCE,
        }
    }

    /// The time of the socket's next poll.
    pub fn poll_at(&mut self, interface: &mut Interface, now: Micros) -> Micros {
        entered();
        interface
            .poll_at(instant(now), &self.sockets)
            .map_or(NEVER, |at| Micros::try_from(at.total_micros()).unwrap_or(0))
    }
}
