//! One TCP connection: its socket, what was told about it, and how long it may stay as it is.
//!
//! The socket has no reasons and few deadlines; both are kept here. A connection is *done* when its socket will never
//! send or receive again, *ended* when its `Closed` has a reason, and *told* when that was reported. It is forgotten
//! when it is done and told.

use smoltcp::iface::{Interface, SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer, State};
use smoltcp::time::Duration;

use crate::clock::{instant, Micros, NEVER, SECOND};
use crate::events::{ConnId, Event, EventSink, Reason};
use crate::packet::Flow;
use crate::prefix::PeerId;

/// How long the other end may take to finish a handshake it started.
const HALF_OPEN: Micros = 20 * SECOND;
/// How long bytes, or our end of stream, may go unanswered.
const UNANSWERED: Micros = 120 * SECOND;
/// An idle connection is probed this often,
const KEEPALIVE: Duration = Duration::from_secs(75);
/// and given up after this long without a sign of life.
const SILENCE: Micros = 600 * SECOND;
/// How long a connection that its owner gave up may take to deliver its last bytes.
const LINGER: Micros = 60 * SECOND;

pub struct Limits {
    pub receive_buffer: usize,
    pub send_buffer: usize,
    pub max_connections: usize,
    /// Of these, room that only dials may take.
    pub reserved_for_dials: usize,
    /// A peer may have no more inbound connections than are still free for all peers.
    pub fair: bool,
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
    pub told: bool,
    pub done: bool,
    pub paused: bool,
    /// A `write` took less than it was given.
    pub short: bool,
    /// The last segment from the other end that changed anything was a valid reset.
    pub was_reset: bool,
    pub dirty: bool,
    pub ready: bool,
    /// When the connection's timer stands in the heap, and when it is really due.
    pub in_heap: Micros,
    pub wake: Micros,
    pub heard: Micros,
    /// A packet of the other end's is an answer in TIME-WAIT: the acknowledgment of its end of stream.
    pub last_packet: Vec<u8>,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    state: State,
    since: Micros,
    busy_since: Micros,
    ended_at: Micros,
    received_eof: bool,
    eof_told: bool,
    eof_sent: bool,
}

impl Conn {
    pub fn new(flow: Flow, peer: PeerId, inbound: bool, limits: &Limits, now: Micros) -> Self {
        let mut socket = Socket::new(
            SocketBuffer::new(vec![0; limits.receive_buffer]),
            SocketBuffer::new(vec![0; limits.send_buffer]),
        );
        socket.set_congestion_control(CongestionControl::Cubic);
        // Writes of one turn of the loop are put together already.
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
            told: false,
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
            sockets,
            handle,
            state: State::Closed,
            since: now,
            busy_since: now,
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

    pub fn open_to_writes(&self) -> bool {
        self.reported && self.end.is_none() && !self.eof_sent
    }

    pub fn write(&mut self, data: &[u8], now: Micros) -> usize {
        if !self.open_to_writes() {
            return 0;
        }
        let socket = self.socket();
        let was_idle = socket.send_queue() == 0;
        let taken = socket.send_slice(data).unwrap_or(0);
        if was_idle && taken > 0 {
            self.busy_since = now;
        }
        self.short |= taken < data.len();
        taken
    }

    pub fn write_eof(&mut self) {
        if self.open_to_writes() {
            self.eof_sent = true;
            self.socket().close();
        }
    }

    /// Deliver what is in the send buffer, then be done; nothing more is read.
    pub fn release(&mut self, now: Micros) {
        if self.end.is_some() {
            return self.give_up_unread();
        }
        if !self.reported {
            return self.abort(Reason::Local, now);
        }
        self.finish(Reason::Local, now);
        self.socket().close();
    }

    /// Reset; the other end is told if it can be.
    pub fn abort(&mut self, reason: Reason, now: Micros) {
        self.give_up_unread();
        if !self.done {
            self.finish(reason, now);
            self.socket().abort();
        }
    }

    /// A stream that ended well may wait for its reader; its owner has now said that nobody will read it.
    fn give_up_unread(&mut self) {
        if !self.told && self.end == Some(Reason::Finished) {
            self.end = Some(Reason::Local);
        }
    }

    /// Be gone at once, without a word.
    pub fn kill(&mut self, reason: Reason, now: Micros) {
        self.finish(reason, now);
        self.done = true;
    }

    fn finish(&mut self, reason: Reason, now: Micros) {
        if self.end.is_none() {
            self.end = Some(reason);
            self.ended_at = now;
        }
        // Nobody waits for the end of an attempt that never was reported.
        self.told |= self.inbound && !self.reported;
    }

    /// See what the last poll changed. True if an `Accepted` or `Connected` has become due.
    ///
    /// `flushed` says that the socket has nothing more to send right now.
    pub fn settle(&mut self, now: Micros, flushed: bool) -> bool {
        let (before, state) = (self.state, self.state());
        if before != state {
            self.state = state;
            self.since = now;
        }
        self.received_eof |= matches!(state, State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
        match state {
            // The segment that should have opened it did not, or was taken back.
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
                return true;
            }
            _ => {}
        }
        false
    }

    fn discard(&mut self) {
        while self.socket().recv(|bytes| (bytes.len(), bytes.len())).unwrap_or(0) > 0 {}
    }

    /// Whether a `Writable` has become due.
    pub fn take_writable(&mut self) -> bool {
        if !self.short || !self.open_to_writes() {
            return false;
        }
        let socket = self.socket();
        let due = socket.send_queue() * 2 <= socket.send_capacity();
        self.short &= !due;
        due
    }

    /// Whether `tell` would have something to say.
    pub fn has_news(&mut self) -> bool {
        if self.told || !(self.reported || self.end.is_some()) {
            return false;
        }
        self.end.is_some()
            || (!self.paused && (self.socket().recv_queue() > 0 || (self.received_eof && !self.eof_told)))
    }

    /// Report data, the end of it, and the end of the connection, as far as they are due. True if data was read.
    pub fn tell<S: EventSink>(&mut self, conn: ConnId, sink: &mut S) -> Result<bool, S::Error> {
        if self.told {
            return Ok(false);
        }
        let mut read = false;
        let readable = matches!(self.end, None | Some(Reason::Finished | Reason::Reset));
        if self.reported && readable && !self.paused {
            let length = self.socket().recv_queue();
            if length > 0 {
                let socket = self.sockets.get_mut::<Socket<'static>>(self.handle);
                sink.data(conn, length, &mut |buffer| {
                    socket.recv_slice(buffer).unwrap_or(0);
                })?;
                read = true;
            }
            if self.received_eof && !self.eof_told && self.socket().recv_queue() == 0 {
                self.eof_told = true;
                sink.event(Event::Eof { conn })?;
            }
        }
        let Some(reason) = self.end else { return Ok(read) };
        // A stream that ended well is read to its end first, however long its reader waits.
        let unread = self.reported && self.paused && (self.socket().recv_queue() > 0 || !self.eof_told);
        if reason == Reason::Finished && unread {
            return Ok(read);
        }
        self.told = true;
        if self.reported {
            // Once established, there are fewer ways to end.
            let reason = if reason == Reason::Refused { Reason::Reset } else { reason };
            sink.event(Event::Closed { conn, reason })?;
        } else if !self.inbound {
            let reason = if reason == Reason::Reset { Reason::Refused } else { reason };
            sink.event(Event::ConnectFailed { conn, reason })?;
        }
        Ok(read)
    }

    /// When patience ends; then the connection is reset.
    pub fn deadline(&mut self, limits: &Limits) -> Micros {
        if self.done {
            return NEVER;
        }
        if self.end.is_some() {
            return self.ended_at + LINGER;
        }
        let unsent = self.socket().send_queue() > 0;
        match self.state {
            State::SynSent => self.since + limits.connect_timeout,
            State::SynReceived => self.since + HALF_OPEN,
            State::FinWait1 | State::Closing | State::LastAck => self.heard.max(self.since) + UNANSWERED,
            _ if unsent => self.heard.max(self.busy_since) + UNANSWERED,
            _ => self.heard + SILENCE,
        }
    }

    /// When the socket wants to be polled again.
    pub fn poll_at(&mut self, interface: &mut Interface, now: Micros) -> Micros {
        interface
            .poll_at(instant(now), &self.sockets)
            .map_or(NEVER, |at| Micros::try_from(at.total_micros()).unwrap_or(0))
    }
}
