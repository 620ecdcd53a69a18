//! Sends the engine's datagrams, those of one destination and one size as runs.

use std::io;

use libc::{c_int, c_uint, iovec};
use overlay_core::engine::Engine;

use crate::buffers::{Buffers, BATCH};
use crate::{control, names, Pumped, Socket};

/// The kernel's limits for a run: datagrams, and bytes minus some room for headers.
const RUN_MOST: usize = 64;
const RUN_BYTES: usize = 65_000;

pub fn send(
    engine: &mut Engine,
    socket: &mut Socket,
    buffers: &mut Buffers,
    fd: c_int,
    pumped: &mut Pumped,
) -> io::Result<()> {
    let now = engine.shared.now();
    let mut counts = [0usize; BATCH];
    while !engine.shared.outgoing.is_empty() {
        let outgoing = &engine.shared.outgoing;
        let (mut next, mut messages) = (0, 0);
        // The first message's destination and own address, which an error is about.
        let mut first = None;
        while messages < BATCH {
            let Some((_, to)) = outgoing.get(next) else { break };
            let most = if socket.refusals.allows_runs(to.ip(), now) { RUN_MOST } else { 1 };
            let Some(run) = outgoing.run(next, most, RUN_BYTES) else { break };
            let local = socket.refusals.usable_local(run.from, now);
            first.get_or_insert((to, local));
            // The kernel only reads the memory; the C structure cannot express that.
            buffers.slices[messages] =
                iovec { iov_base: run.bytes.as_ptr().cast_mut().cast(), iov_len: run.bytes.len() };
            let header = &mut buffers.headers[messages].msg_hdr;
            header.msg_namelen = names::write(&mut buffers.names[messages], run.to, socket.v6);
            header.msg_name = (&raw mut buffers.names[messages]).cast();
            header.msg_iov = &raw mut buffers.slices[messages];
            header.msg_iovlen = 1;
            header.msg_flags = 0;
            let run_size = (run.count > 1).then_some(run.each);
            control::write(header, &mut buffers.controls[messages], run_size, local, socket.v6);
            counts[messages] = run.count;
            next += run.count;
            messages += 1;
        }
        // SAFETY: each header points to a name, bytes and a control buffer of the stated sizes; the queue is not touched
        // meanwhile.
        let sent = unsafe { libc::sendmmsg(fd, buffers.headers.as_mut_ptr(), messages as c_uint, libc::MSG_DONTWAIT) };
        if sent > 0 {
            let datagrams: usize = counts[..sent as usize].iter().sum();
            pumped.sent += datagrams;
            engine.shared.outgoing.sent(datagrams);
            continue;
        }
        let error = io::Error::last_os_error();
        match (error.raw_os_error(), first) {
            (Some(libc::EAGAIN), _) => {
                pumped.blocked = true;
                return Ok(());
            }
            (Some(libc::EINTR), _) => {}
            (Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT), _) => return Err(error),
            // Another route, or one of our addresses was removed.
            (
                Some(libc::EINVAL | libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EADDRNOTAVAIL | libc::ENODEV),
                Some((_, Some(local))),
            ) => socket.refusals.refuse_local(local, now),
            // Runs are not supported here,
            (Some(libc::EIO | libc::EOPNOTSUPP | libc::ENOPROTOOPT), _) if counts[0] > 1 => {
                socket.refusals.refuse_all_runs(now);
            }
            // or not on this path: a smaller MTU, a device without checksums.
            (Some(libc::EINVAL | libc::EMSGSIZE), Some((to, _))) if counts[0] > 1 => {
                socket.refusals.refuse_runs(to.ip(), now);
            }
            // The first message cannot be sent to its destination; the others may be.
            _ => {
                engine.shared.counters.send_failed += counts[0] as u64;
                engine.shared.outgoing.sent(counts[0]);
            }
        }
    }
    Ok(())
}
