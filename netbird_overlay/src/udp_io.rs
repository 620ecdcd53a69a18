//! I/O on a borrowed UDP socket, IPv4 and IPv6, with many datagrams for each system call.
//!
//! The only unsafe code of the engine. The buffers are in one allocation that never moves; the kernel's structures that
//! point into it are built for each call.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use libc::{c_int, c_uint, iovec, mmsghdr, msghdr, sockaddr_in, sockaddr_in6, sockaddr_storage, socklen_t};

use crate::engine::Engine;
use crate::prefix::canonical;
use crate::wireguard::LONGEST;

/// Messages for each system call: a message is a datagram, or a run of datagrams that the kernel splits or joins.
const BATCH: usize = 64;
/// The same for a socket on which every message may be a run, with the largest possible buffer.
const BATCH_OF_RUNS: usize = 16;
/// Maximum number of datagrams that one pump sends, so that a tunnel cannot monopolize the loop.
const SEND_MOST: usize = 2048;
/// The kernel's limits for a run: datagrams, and bytes minus some room for headers.
const RUN_MOST: usize = 64;
const RUN_BYTES: usize = 65_000;

/// Size of a control message with the size of a run's datagrams.
type Control = [u64; 4];

pub struct Pumped {
    pub received: usize,
    pub sent: usize,
    pub more: bool,
    pub blocked: bool,
}

/// Buffers for one batch of messages, and the socket's features.
pub struct Batch {
    bytes: Vec<u8>,
    each: usize,
    /// False once the kernel refused to send a run of datagrams.
    runs: bool,
}

impl Batch {
    /// Allocate buffers for WireGuard datagrams with `mtu` bytes; longer ones are not valid.
    pub fn new(mtu: usize) -> Self {
        let each = (mtu + 128).max(2048);
        Batch { bytes: vec![0; each * BATCH], each, runs: true }
    }

    /// Allocate buffers for runs of datagrams, for a socket on which `aggregate` succeeded.
    pub fn of_runs() -> Self {
        Batch { bytes: vec![0; LONGEST * BATCH_OF_RUNS], each: LONGEST, runs: true }
    }
}

/// Ask the kernel to deliver datagrams of one sender in runs. False if it does not support that.
pub fn aggregate(fd: c_int) -> bool {
    let on: c_int = 1;
    // SAFETY: the option is an int, and an int is passed.
    let result = unsafe {
        libc::setsockopt(fd, libc::SOL_UDP, libc::UDP_GRO, (&raw const on).cast(), size_of::<c_int>() as socklen_t)
    };
    result == 0
}

pub fn pump(engine: &mut Engine, batch: &mut Batch, fd: c_int, budget: usize) -> io::Result<Pumped> {
    let mut pumped = Pumped { received: 0, sent: 0, more: false, blocked: false };
    while pumped.received < budget {
        let wanted = (batch.bytes.len() / batch.each).min(budget - pumped.received);
        let (messages, datagrams) = receive(engine, batch, fd, wanted)?;
        pumped.received += datagrams;
        // Acknowledgments are sent while the next batch arrives, which frees room for its effects.
        engine.advance();
        send(engine, batch, fd, &mut pumped)?;
        if messages < wanted {
            break;
        }
        pumped.more = pumped.received >= budget;
    }
    engine.advance();
    send(engine, batch, fd, &mut pumped)?;
    while !pumped.blocked && engine.pending() {
        if pumped.sent >= SEND_MOST {
            pumped.more = true;
            break;
        }
        engine.advance();
        let before = pumped.sent;
        send(engine, batch, fd, &mut pumped)?;
        if pumped.sent == before {
            break;
        }
    }
    Ok(pumped)
}

/// The number of messages received, and of datagrams in them.
fn receive(engine: &mut Engine, batch: &mut Batch, fd: c_int, wanted: usize) -> io::Result<(usize, usize)> {
    // SAFETY: all-zero is a valid value of these C structures.
    let mut names: [sockaddr_storage; BATCH] = unsafe { zeroed() };
    let mut slices: [iovec; BATCH] = unsafe { zeroed() };
    let mut headers: [mmsghdr; BATCH] = unsafe { zeroed() };
    let mut controls: [Control; BATCH] = [[0; 4]; BATCH];
    for (index, buffer) in batch.bytes.chunks_exact_mut(batch.each).enumerate().take(wanted) {
        slices[index] = iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let header = &mut headers[index].msg_hdr;
        header.msg_name = (&raw mut names[index]).cast();
        header.msg_namelen = size_of::<sockaddr_storage>() as socklen_t;
        header.msg_iov = &raw mut slices[index];
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut controls[index]).cast();
        header.msg_controllen = size_of::<Control>();
    }
    // SAFETY: each header points to a name, a buffer and a control buffer of the stated sizes, which outlive the call.
    let got =
        unsafe { libc::recvmmsg(fd, headers.as_mut_ptr(), wanted as c_uint, libc::MSG_DONTWAIT, std::ptr::null_mut()) };
    if got < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => Ok((0, 0)),
            // A pending ICMP error about an earlier datagram: not an error of this call.
            Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EMSGSIZE) => Ok((0, 0)),
            _ => Err(error),
        };
    }
    let mut datagrams = 0;
    for index in 0..(got as usize).min(wanted) {
        let header = &headers[index];
        let start = index * batch.each;
        let length = (header.msg_len as usize).min(batch.each);
        let from = address(&names[index]);
        let cut = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        let message = &batch.bytes[start..start + length];
        let size = run_size(&header.msg_hdr).unwrap_or(length).max(1);
        match from {
            Some(from) if !cut && length > 0 => {
                for datagram in message.chunks(size) {
                    engine.receive(datagram, from);
                    datagrams += 1;
                }
            }
            _ => {
                engine.shared.counters.datagrams_in += 1;
                engine.shared.counters.malformed += 1;
                datagrams += 1;
            }
        }
    }
    Ok((got as usize, datagrams))
}

/// The size of the datagrams in a run, from the kernel's control message.
fn run_size(header: &msghdr) -> Option<usize> {
    // SAFETY: the header is as recvmmsg left it, and its control buffer is alive; the macros keep to its length.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while let Some(message) = control.as_ref() {
            if message.cmsg_level == libc::SOL_UDP && message.cmsg_type == libc::UDP_GRO {
                let size = libc::CMSG_DATA(control).cast::<c_int>().read_unaligned();
                return usize::try_from(size).ok();
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    None
}

fn send(engine: &mut Engine, batch: &mut Batch, fd: c_int, pumped: &mut Pumped) -> io::Result<()> {
    if engine.shared.outgoing.is_empty() {
        return Ok(());
    }
    let v6 = is_v6(fd)?;
    // SAFETY: all-zero is a valid value of these C structures.
    let mut names: [sockaddr_storage; BATCH] = unsafe { zeroed() };
    let mut slices: [iovec; BATCH] = unsafe { zeroed() };
    let mut headers: [mmsghdr; BATCH] = unsafe { zeroed() };
    let mut controls: [Control; BATCH] = [[0; 4]; BATCH];
    let mut counts = [0usize; BATCH];
    while !engine.shared.outgoing.is_empty() {
        let outgoing = &engine.shared.outgoing;
        let (mut next, mut messages) = (0, 0);
        while messages < BATCH {
            let most = if batch.runs { RUN_MOST } else { 1 };
            let Some(run) = outgoing.run(next, most, RUN_BYTES) else { break };
            // The kernel only reads the memory; the C structure cannot express that.
            slices[messages] = iovec { iov_base: run.bytes.as_ptr().cast_mut().cast(), iov_len: run.bytes.len() };
            let header = &mut headers[messages].msg_hdr;
            header.msg_namelen = write_address(&mut names[messages], run.to, v6);
            header.msg_name = (&raw mut names[messages]).cast();
            header.msg_iov = &raw mut slices[messages];
            header.msg_iovlen = 1;
            if run.count > 1 {
                write_run_size(header, &mut controls[messages], run.each);
            } else {
                header.msg_control = std::ptr::null_mut();
                header.msg_controllen = 0;
            }
            counts[messages] = run.count;
            next += run.count;
            messages += 1;
        }
        // SAFETY: each header points to a name and bytes of the stated sizes; the queue is not touched meanwhile.
        let sent = unsafe { libc::sendmmsg(fd, headers.as_mut_ptr(), messages as c_uint, libc::MSG_DONTWAIT) };
        if sent > 0 {
            let datagrams: usize = counts[..sent as usize].iter().sum();
            pumped.sent += datagrams;
            engine.shared.outgoing.sent(datagrams);
            continue;
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN) => {
                pumped.blocked = true;
                return Ok(());
            }
            Some(libc::EINTR) => {}
            Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT) => return Err(error),
            // Runs are not supported here, or not on this path (a smaller MTU, a device without checksums): send single
            // datagrams.
            Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::ENOPROTOOPT) if counts[0] > 1 => batch.runs = false,
            // The first message cannot be sent to its destination; the others may be.
            _ => {
                engine.shared.counters.send_failed += counts[0] as u64;
                engine.shared.outgoing.sent(counts[0]);
            }
        }
    }
    Ok(())
}

fn write_run_size(header: &mut msghdr, control: &mut Control, size: usize) {
    header.msg_control = (&raw mut *control).cast();
    // SAFETY: the buffer has room for a control message of two bytes, and is aligned for its head.
    unsafe {
        header.msg_controllen = libc::CMSG_SPACE(size_of::<u16>() as c_uint) as usize;
        let message = libc::CMSG_FIRSTHDR(header);
        if let Some(head) = message.as_mut() {
            head.cmsg_level = libc::SOL_UDP;
            head.cmsg_type = libc::UDP_SEGMENT;
            head.cmsg_len = libc::CMSG_LEN(size_of::<u16>() as c_uint) as usize;
            libc::CMSG_DATA(message).cast::<u16>().write_unaligned(size as u16);
        }
    }
}

fn is_v6(fd: c_int) -> io::Result<bool> {
    let mut domain: c_int = 0;
    let mut length = size_of::<c_int>() as socklen_t;
    // SAFETY: the option is an int, and the buffer has room for it.
    let result =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_DOMAIN, (&raw mut domain).cast(), &raw mut length) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(domain == libc::AF_INET6)
}

fn address(name: &sockaddr_storage) -> Option<SocketAddr> {
    match c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which structure it is, and the storage is large and aligned enough for each.
            let v4 = unsafe { &*(&raw const *name).cast::<sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddr::new(IpAddr::V4(ip), u16::from_be(v4.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*(&raw const *name).cast::<sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            Some(match canonical(IpAddr::V6(ip)) {
                IpAddr::V4(v4) => SocketAddr::new(IpAddr::V4(v4), port),
                IpAddr::V6(_) => SocketAddr::V6(SocketAddrV6::new(ip, port, 0, v6.sin6_scope_id)),
            })
        }
        _ => None,
    }
}

fn write_address(name: &mut sockaddr_storage, to: SocketAddr, v6: bool) -> socklen_t {
    let (ip, scope) = match to {
        SocketAddr::V4(v4) if !v6 => {
            // SAFETY: the storage is large and aligned enough for each kind of address; all-zero is valid.
            let out = unsafe { &mut *(&raw mut *name).cast::<sockaddr_in>() };
            *out = unsafe { zeroed() };
            out.sin_family = libc::AF_INET as libc::sa_family_t;
            out.sin_port = v4.port().to_be();
            out.sin_addr.s_addr = u32::from(*v4.ip()).to_be();
            return size_of::<sockaddr_in>() as socklen_t;
        }
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
        SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
    };
    // SAFETY: as above.
    let out = unsafe { &mut *(&raw mut *name).cast::<sockaddr_in6>() };
    *out = unsafe { zeroed() };
    out.sin6_family = libc::AF_INET6 as libc::sa_family_t;
    out.sin6_port = to.port().to_be();
    out.sin6_addr.s6_addr = ip.octets();
    out.sin6_scope_id = scope;
    size_of::<sockaddr_in6>() as socklen_t
}
