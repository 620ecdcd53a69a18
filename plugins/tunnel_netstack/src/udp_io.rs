//! A borrowed UDP socket: many datagrams a system call, IPv4 and IPv6.
//!
//! The only unsafe code of the engine. Buffers live in one allocation that stays where it is; the kernel's structures
//! that point into it are made anew for each call.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use libc::{c_int, c_uint, iovec, mmsghdr, sockaddr_in, sockaddr_in6, sockaddr_storage, socklen_t};

use crate::engine::Engine;
use crate::prefix::canonical;

/// Datagrams a system call.
const BATCH: usize = 64;
/// Datagrams one pump sends at most, so that one tunnel cannot keep the loop to itself.
const SEND_MOST: usize = 2048;

pub struct Pumped {
    pub received: usize,
    pub sent: usize,
    pub more: bool,
    pub blocked: bool,
}

/// Buffers for one batch of datagrams.
pub struct Batch {
    bytes: Vec<u8>,
    each: usize,
}

impl Batch {
    /// Room for WireGuard datagrams that carry `mtu` bytes; what is longer is not one of ours.
    pub fn new(mtu: usize) -> Self {
        let each = (mtu + 128).max(2048);
        Batch { bytes: vec![0; each * BATCH], each }
    }
}

pub fn pump(engine: &mut Engine, batch: &mut Batch, fd: c_int, budget: usize) -> io::Result<Pumped> {
    let mut pumped = Pumped { received: 0, sent: 0, more: false, blocked: false };
    while pumped.received < budget {
        let wanted = BATCH.min(budget - pumped.received);
        let got = receive(engine, batch, fd, wanted)?;
        pumped.received += got;
        // Acknowledgments leave while the next batch arrives, and room is made for what it will cause.
        engine.advance();
        send(engine, fd, &mut pumped)?;
        if got < wanted {
            break;
        }
        pumped.more = pumped.received >= budget;
    }
    engine.advance();
    send(engine, fd, &mut pumped)?;
    while !pumped.blocked && engine.pending() {
        if pumped.sent >= SEND_MOST {
            pumped.more = true;
            break;
        }
        engine.advance();
        let before = pumped.sent;
        send(engine, fd, &mut pumped)?;
        if pumped.sent == before {
            break;
        }
    }
    Ok(pumped)
}

fn receive(engine: &mut Engine, batch: &mut Batch, fd: c_int, wanted: usize) -> io::Result<usize> {
    // SAFETY: all-zero is a valid value of these C structures.
    let mut names: [sockaddr_storage; BATCH] = unsafe { zeroed() };
    let mut slices: [iovec; BATCH] = unsafe { zeroed() };
    let mut headers: [mmsghdr; BATCH] = unsafe { zeroed() };
    for (index, buffer) in batch.bytes.chunks_exact_mut(batch.each).enumerate().take(wanted) {
        slices[index] = iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let header = &mut headers[index].msg_hdr;
        header.msg_name = (&raw mut names[index]).cast();
        header.msg_namelen = size_of::<sockaddr_storage>() as socklen_t;
        header.msg_iov = &raw mut slices[index];
        header.msg_iovlen = 1;
    }
    // SAFETY: each header points to a name and a buffer of the stated sizes, which outlive the call.
    let got =
        unsafe { libc::recvmmsg(fd, headers.as_mut_ptr(), wanted as c_uint, libc::MSG_DONTWAIT, std::ptr::null_mut()) };
    if got < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => Ok(0),
            // An earlier datagram of ours was answered by an ICMP error: nobody's fault here.
            Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EMSGSIZE) => Ok(0),
            _ => Err(error),
        };
    }
    for index in 0..(got as usize).min(wanted) {
        let header = &headers[index];
        let start = index * batch.each;
        let length = (header.msg_len as usize).min(batch.each);
        match (header.msg_hdr.msg_flags & libc::MSG_TRUNC, address(&names[index])) {
            (0, Some(from)) => engine.receive(&batch.bytes[start..start + length], from),
            _ => {
                engine.shared.counters.datagrams_in += 1;
                engine.shared.counters.malformed += 1;
            }
        }
    }
    Ok(got as usize)
}

fn send(engine: &mut Engine, fd: c_int, pumped: &mut Pumped) -> io::Result<()> {
    if engine.shared.outgoing.is_empty() {
        return Ok(());
    }
    let v6 = is_v6(fd)?;
    // SAFETY: all-zero is a valid value of these C structures.
    let mut names: [sockaddr_storage; BATCH] = unsafe { zeroed() };
    let mut slices: [iovec; BATCH] = unsafe { zeroed() };
    let mut headers: [mmsghdr; BATCH] = unsafe { zeroed() };
    while !engine.shared.outgoing.is_empty() {
        let count = engine.shared.outgoing.len().min(BATCH);
        for index in 0..count {
            let Some((datagram, to)) = engine.shared.outgoing.get(index) else { break };
            // The kernel only reads it; the C structure has no way to say so.
            slices[index] = iovec { iov_base: datagram.as_ptr().cast_mut().cast(), iov_len: datagram.len() };
            let header = &mut headers[index].msg_hdr;
            header.msg_namelen = write_address(&mut names[index], to, v6);
            header.msg_name = (&raw mut names[index]).cast();
            header.msg_iov = &raw mut slices[index];
            header.msg_iovlen = 1;
        }
        // SAFETY: each header points to a name and a datagram of the stated sizes; the queue is not touched meanwhile.
        let sent = unsafe { libc::sendmmsg(fd, headers.as_mut_ptr(), count as c_uint, libc::MSG_DONTWAIT) };
        if sent > 0 {
            pumped.sent += sent as usize;
            engine.shared.outgoing.sent(sent as usize);
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
            // The first datagram cannot go where it should: the others may.
            _ => {
                engine.shared.counters.send_failed += 1;
                engine.shared.outgoing.sent(1);
            }
        }
    }
    Ok(())
}

fn is_v6(fd: c_int) -> io::Result<bool> {
    let mut domain: c_int = 0;
    let mut length = size_of::<c_int>() as socklen_t;
    // SAFETY: the option is an int, and room for one is given.
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
