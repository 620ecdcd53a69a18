//! An engine on a borrowed UDP socket of Linux, IPv4 and IPv6, with many datagrams for each system call.
//!
//! The only crate of the engine with unsafe code. The kernel's structures that point into buffers are filled in for each
//! call; the buffers belong to the thread, and no engine keeps anything in them between calls.

mod buffers;
mod control;
mod names;
mod pace;
mod receive;
mod refusals;
mod send;

use std::collections::VecDeque;
use std::io;
use std::mem::size_of;

use libc::{c_int, socklen_t};
use overlay_core::engine::Engine;
use overlay_core::path::Path;

use crate::buffers::{with_buffers, Buffers};
use crate::pace::Pace;
use crate::refusals::Refusals;

/// Maximum number of datagrams that one pump sends, so that a tunnel cannot monopolize the loop.
const SEND_MOST: usize = 512;
/// Maximum number of handshakes that one pump computes for datagrams: about two milliseconds.
const HANDSHAKES_MOST: u64 = 8;

pub struct Pumped {
    pub received: usize,
    pub sent: usize,
    pub more: bool,
    pub blocked: bool,
    /// The next datagrams may collect for a millisecond: pace.rs gives the reason.
    pub may_collect: bool,
}

/// The facts about an engine's socket.
#[derive(Default)]
pub struct Socket {
    fd: Option<c_int>,
    v6: bool,
    /// The kernel delivers datagrams of one sender in runs, which need larger buffers.
    aggregating: bool,
    /// Datagrams for each message in the last batch.
    run: usize,
    /// Datagrams that were received beyond the budget.
    leftover: VecDeque<(Vec<u8>, Path)>,
    refusals: Refusals,
    pace: Pace,
}

impl Socket {
    /// Ask the kernel to deliver datagrams of one sender in runs. False if it does not support that.
    pub fn aggregate(&mut self, fd: c_int) -> bool {
        let possible = set_option(fd, libc::SOL_UDP, libc::UDP_GRO);
        self.aggregating |= possible;
        possible
    }

    /// Ask for the facts that do not change, and for the address that each datagram was sent to.
    fn prepare(&mut self, fd: c_int) -> io::Result<()> {
        if self.fd == Some(fd) {
            return Ok(());
        }
        self.v6 = domain(fd)? == libc::AF_INET6;
        // Answers then leave from the same address. A failure only costs that.
        if self.v6 {
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO);
        } else {
            set_option(fd, libc::IPPROTO_IP, libc::IP_PKTINFO);
        }
        self.fd = Some(fd);
        Ok(())
    }
}

/// Receive up to `budget` datagrams, perform due work, and send ready datagrams.
pub fn pump(engine: &mut Engine, socket: &mut Socket, fd: c_int, budget: usize) -> io::Result<Pumped> {
    socket.prepare(fd)?;
    with_buffers(|buffers| pump_with(engine, socket, buffers, fd, budget))
}

fn pump_with(
    engine: &mut Engine,
    socket: &mut Socket,
    buffers: &mut Buffers,
    fd: c_int,
    budget: usize,
) -> io::Result<Pumped> {
    let mut pumped = Pumped { received: 0, sent: 0, more: false, blocked: false, may_collect: false };
    engine.shared.in_flight = 0;
    let mut turn = receive::Turn::new(budget);
    while turn.has_budget() {
        let empty = receive::receive(engine, socket, buffers, fd, &mut turn)?;
        // Acknowledgments are sent while the next batch arrives, which frees room for its effects.
        engine.advance();
        send::send(engine, socket, buffers, fd, &mut pumped)?;
        if empty {
            break;
        }
        pumped.more = !turn.has_budget();
    }
    pumped.received = turn.received;
    pumped.more |= !socket.leftover.is_empty();
    engine.advance();
    send::send(engine, socket, buffers, fd, &mut pumped)?;
    while !pumped.blocked && engine.pending() {
        if pumped.sent >= SEND_MOST {
            pumped.more = true;
            break;
        }
        engine.advance();
        let before = pumped.sent;
        send::send(engine, socket, buffers, fd, &mut pumped)?;
        if pumped.sent == before {
            break;
        }
    }
    if !pumped.more {
        let (now, in_flight) = (engine.shared.now(), engine.shared.in_flight);
        pumped.may_collect = socket.pace.may_collect(now, turn.received, turn.bytes, in_flight);
    }
    Ok(pumped)
}

/// Switch an option of a socket on. False if the kernel refuses.
fn set_option(fd: c_int, level: c_int, name: c_int) -> bool {
    let on: c_int = 1;
    // SAFETY: the option is an int, and an int is passed.
    let result = unsafe { libc::setsockopt(fd, level, name, (&raw const on).cast(), size_of::<c_int>() as socklen_t) };
    result == 0
}

fn domain(fd: c_int) -> io::Result<c_int> {
    let mut domain: c_int = 0;
    let mut length = size_of::<c_int>() as socklen_t;
    // SAFETY: the option is an int, and the buffer has room for it.
    let result =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_DOMAIN, (&raw mut domain).cast(), &raw mut length) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(domain)
}
