//! The kernel's form of addresses.

use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use libc::{c_int, sockaddr_in, sockaddr_in6, sockaddr_storage, socklen_t};
use overlay_core::wire::prefix::canonical;

/// Read an address; None for one of another family.
pub fn read(name: &sockaddr_storage) -> Option<SocketAddr> {
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

/// Write an address for a socket of this family, and return its length.
pub fn write(name: &mut sockaddr_storage, to: SocketAddr, v6: bool) -> socklen_t {
    let (ip, scope) = match to {
        SocketAddr::V4(v4) if !v6 => {
            // SAFETY: the storage is large and aligned enough for each kind of address; all-zero is valid.
            let out = unsafe { &mut *(&raw mut *name).cast::<sockaddr_in>() };
            // SAFETY: as above.
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
    // SAFETY: as above.
    *out = unsafe { zeroed() };
    out.sin6_family = libc::AF_INET6 as libc::sa_family_t;
    out.sin6_port = to.port().to_be();
    out.sin6_addr.s6_addr = ip.octets();
    out.sin6_scope_id = scope;
    size_of::<sockaddr_in6>() as socklen_t
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for (address, v6) in [("192.0.2.1:1", false), ("192.0.2.1:1", true), ("[fe80::1%3]:65535", true)] {
            // SAFETY: all-zero is a valid value of this C structure.
            let mut name: sockaddr_storage = unsafe { zeroed() };
            let address: SocketAddr = address.parse().unwrap();
            assert!(write(&mut name, address, v6) > 0);
            assert_eq!(read(&name), Some(address));
        }
    }
}
