//! Receives datagrams, within a budget of datagrams and of handshakes.

use std::io;
use std::mem::size_of;

use libc::{c_int, c_uint, iovec, sockaddr_storage, socklen_t};
use overlay_core::engine::Engine;
use overlay_core::noise::wireguard::LONGEST;
use overlay_core::path::Path;

use crate::buffers::{Buffers, BATCH, BATCH_OF_RUNS};
use crate::control::{self, Control};
use crate::{names, Socket, HANDSHAKES_MOST};

/// The datagrams that a pump has received.
pub struct Turn {
    budget: usize,
    pub received: usize,
    pub bytes: usize,
    handshakes: u64,
}

impl Turn {
    pub fn new(budget: usize) -> Self {
        Turn { budget, received: 0, bytes: 0, handshakes: 0 }
    }

    pub fn has_budget(&self) -> bool {
        self.received < self.budget && self.handshakes < HANDSHAKES_MOST
    }

    fn process(&mut self, engine: &mut Engine, datagram: &[u8], from: Path) {
        let before = engine.shared.handshakes_computed;
        engine.receive(datagram, from);
        self.handshakes += engine.shared.handshakes_computed - before;
        self.received += 1;
        self.bytes += datagram.len();
    }
}

/// Receive one batch. True if the socket has no more. Datagrams beyond the budget are kept for the next pump.
pub fn receive(
    engine: &mut Engine,
    socket: &mut Socket,
    buffers: &mut Buffers,
    fd: c_int,
    turn: &mut Turn,
) -> io::Result<bool> {
    while turn.has_budget() {
        let Some((datagram, from)) = socket.leftover.pop_front() else { break };
        turn.process(engine, &datagram, from);
    }
    if !turn.has_budget() {
        return Ok(false);
    }
    let (each, most) = match socket.aggregating {
        true => (LONGEST, BATCH_OF_RUNS),
        false => ((engine.shared.mtu + 128).max(2048), BATCH),
    };
    // Runs are expected to be about as long as the last ones, so that little exceeds the budget and has to be copied.
    let messages = ((turn.budget - turn.received) / socket.run.max(1)).clamp(1, most);
    let got = system_call(buffers, fd, each, messages)?;
    let mut datagrams = 0usize;
    for index in 0..got {
        let header = &buffers.headers[index];
        let length = (header.msg_len as usize).min(each);
        let cut = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        // SAFETY: the header is as recvmmsg left it, and its control buffer is alive.
        let facts = unsafe { control::read(&header.msg_hdr) };
        let message = &buffers.bytes[index * each..index * each + length];
        let size = facts.run_size.unwrap_or(length).max(1);
        match names::read(&buffers.names[index]) {
            Some(remote) if !cut && length > 0 => {
                let from = Path::Udp { remote, local: facts.local };
                for datagram in message.chunks(size) {
                    datagrams += 1;
                    if turn.has_budget() {
                        turn.process(engine, datagram, from);
                    } else {
                        socket.leftover.push_back((datagram.to_vec(), from));
                    }
                }
            }
            _ => {
                engine.shared.counters.datagrams_in += 1;
                engine.shared.counters.malformed += 1;
                turn.received += 1;
                datagrams += 1;
            }
        }
    }
    socket.run = datagrams.checked_div(got).unwrap_or(socket.run);
    Ok(got < messages)
}

fn system_call(buffers: &mut Buffers, fd: c_int, each: usize, wanted: usize) -> io::Result<usize> {
    for (index, buffer) in buffers.bytes.chunks_exact_mut(each).enumerate().take(wanted) {
        buffers.slices[index] = iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let header = &mut buffers.headers[index].msg_hdr;
        header.msg_name = (&raw mut buffers.names[index]).cast();
        header.msg_namelen = size_of::<sockaddr_storage>() as socklen_t;
        header.msg_iov = &raw mut buffers.slices[index];
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut buffers.controls[index]).cast();
        header.msg_controllen = size_of::<Control>();
        header.msg_flags = 0;
    }
    // SAFETY: each header points to a name, a buffer and a control buffer of the stated sizes, which outlive the call.
    let got = unsafe {
        let headers = buffers.headers.as_mut_ptr();
        libc::recvmmsg(fd, headers, wanted as c_uint, libc::MSG_DONTWAIT, std::ptr::null_mut())
    };
    if got < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => Ok(0),
            // A pending ICMP error about an earlier datagram: not an error of this call.
            Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EMSGSIZE) => Ok(0),
            _ => Err(error),
        };
    }
    Ok((got as usize).min(wanted))
}
