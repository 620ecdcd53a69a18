//! The control messages beside a datagram: the size of a run's datagrams, and our own address.

use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libc::{c_int, c_uint, cmsghdr, in6_pktinfo, in_pktinfo, msghdr};
use overlay_core::wire::prefix::canonical;

/// Room for both control messages, aligned for their heads.
pub type Control = [u64; 10];

/// The kernel's facts about a received message.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The size of the datagrams in a run.
    pub run_size: Option<usize>,
    /// The address that the message was sent to.
    pub local: Option<IpAddr>,
}

/// Read the control messages of a header that recvmmsg has filled in.
///
/// # Safety
/// The header's control buffer must be alive, and its length that of what the kernel wrote.
pub unsafe fn read(header: &msghdr) -> Facts {
    let mut facts = Facts::default();
    let mut control = libc::CMSG_FIRSTHDR(header);
    while let Some(message) = control.as_ref() {
        // The kernel's lengths are right; a wrong one must lead neither out of the buffer nor in circles.
        let offset = control as usize - header.msg_control as usize;
        if message.cmsg_len > header.msg_controllen - offset {
            break;
        }
        let data = libc::CMSG_DATA(control);
        match (message.cmsg_level, message.cmsg_type) {
            (libc::SOL_UDP, libc::UDP_GRO) if holds::<c_int>(message) => {
                let size = usize::try_from(data.cast::<c_int>().read_unaligned()).ok();
                facts.run_size = size.filter(|size| *size > 0);
            }
            (libc::IPPROTO_IP, libc::IP_PKTINFO) if holds::<in_pktinfo>(message) => {
                let info = data.cast::<in_pktinfo>().read_unaligned();
                facts.local = usable(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)).into());
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if holds::<in6_pktinfo>(message) => {
                let info = data.cast::<in6_pktinfo>().read_unaligned();
                facts.local = usable(canonical(Ipv6Addr::from(info.ipi6_addr.s6_addr).into()));
            }
            _ => {}
        }
        control = libc::CMSG_NXTHDR(header, control);
    }
    facts
}

fn holds<T>(message: &cmsghdr) -> bool {
    // SAFETY: the macro only computes a number.
    message.cmsg_len >= unsafe { libc::CMSG_LEN(size_of::<T>() as c_uint) } as usize
}

/// An address that datagrams can be sent from.
fn usable(address: IpAddr) -> Option<IpAddr> {
    let usable = match address {
        IpAddr::V4(v4) => !v4.is_multicast() && !v4.is_broadcast() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_multicast() && !v6.is_unspecified(),
    };
    usable.then_some(address)
}

/// Write the control messages of a message to send: the size of the datagrams if it is a run, and our own address.
pub fn write(header: &mut msghdr, control: &mut Control, run_size: Option<usize>, local: Option<IpAddr>, v6: bool) {
    header.msg_control = std::ptr::null_mut();
    header.msg_controllen = 0;
    if run_size.is_none() && local.is_none() {
        return;
    }
    *control = Control::default();
    header.msg_control = (&raw mut *control).cast();
    let room = size_of::<Control>();
    let mut used = 0;
    if let Some(size) = run_size {
        used += append(header, used, room, libc::SOL_UDP, libc::UDP_SEGMENT, size as u16);
    }
    match local {
        Some(local) if v6 => {
            let local = match local {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            let info = in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: local.octets() }, ipi6_ifindex: 0 };
            used += append(header, used, room, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
        }
        Some(IpAddr::V4(v4)) => {
            let address = libc::in_addr { s_addr: u32::from(v4).to_be() };
            let info = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address, ipi_addr: libc::in_addr { s_addr: 0 } };
            used += append(header, used, room, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
        }
        _ => {}
    }
    header.msg_controllen = used;
}

/// Append a control message after `used` bytes. Returns its length; 0 without room, which does not happen.
fn append<T>(header: &mut msghdr, used: usize, room: usize, level: c_int, kind: c_int, value: T) -> usize {
    // SAFETY: the macros only compute numbers.
    let (space, length) = unsafe {
        (libc::CMSG_SPACE(size_of::<T>() as c_uint) as usize, libc::CMSG_LEN(size_of::<T>() as c_uint) as usize)
    };
    if used + space > room {
        return 0;
    }
    // SAFETY: the control buffer has room for the message at this place, which is a multiple of the alignment.
    unsafe {
        let message = header.msg_control.cast::<u8>().add(used).cast::<cmsghdr>();
        (*message).cmsg_level = level;
        (*message).cmsg_type = kind;
        (*message).cmsg_len = length;
        libc::CMSG_DATA(message).cast::<T>().write_unaligned(value);
    }
    space
}

#[cfg(test)]
mod tests {
    use std::mem::zeroed;

    use super::*;

    fn written(run_size: Option<usize>, local: Option<&str>, v6: bool) -> (Facts, usize) {
        // SAFETY: all-zero is a valid value of this C structure.
        let mut header: msghdr = unsafe { zeroed() };
        let mut control = Control::default();
        write(&mut header, &mut control, run_size, local.map(|text| text.parse().unwrap()), v6);
        // SAFETY: `write` has filled in the control buffer and its length.
        (unsafe { read(&header) }, header.msg_controllen)
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(written(None, None, true), (Facts::default(), 0));
        assert_eq!(written(None, Some("2001:db8::1"), true).0.local, Some("2001:db8::1".parse().unwrap()));
        // An IPv4 address has one form, whatever the socket's family.
        assert_eq!(written(Some(1200), Some("192.0.2.1"), true).0.local, Some("192.0.2.1".parse().unwrap()));
        assert_eq!(written(None, Some("2001:db8::1"), false).1, 0);
    }

    #[test]
    fn a_cut_or_nonsensical_control_message_is_no_fact() {
        // SAFETY: all-zero is a valid value of this C structure.
        let mut header: msghdr = unsafe { zeroed() };
        for size in [i32::MIN, -1, 0, 1, 1200, i32::MAX] {
            let mut control = Control::default();
            header.msg_control = (&raw mut control).cast();
            let mut used = append(&mut header, 0, size_of::<Control>(), libc::SOL_UDP, libc::UDP_GRO, size);
            let info = in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: 0 },
                ipi_addr: libc::in_addr { s_addr: u32::from(Ipv4Addr::new(192, 0, 2, 1)).to_be() },
            };
            used += append(&mut header, used, size_of::<Control>(), libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            let run_size = usize::try_from(size).ok().filter(|size| *size > 0);
            let local = Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
            for length in 0..=used {
                header.msg_controllen = length;
                // SAFETY: the control buffer is alive, and its first bytes are written.
                let facts = unsafe { read(&header) };
                assert!(facts.run_size.is_none() || facts.run_size == run_size, "{size} {length}");
                assert!(facts.local.is_none() || facts.local == local, "{size} {length}");
            }
            header.msg_controllen = used;
            // SAFETY: as above.
            assert_eq!(unsafe { read(&header) }, Facts { run_size, local });
            // A message that claims to be shorter than its head or than its kind, or longer than the buffer.
            for claim in [0, 1, size_of::<cmsghdr>() - 1, size_of::<cmsghdr>(), used + 1, usize::MAX] {
                // SAFETY: the head is within the control buffer.
                unsafe { (*header.msg_control.cast::<cmsghdr>()).cmsg_len = claim };
                // SAFETY: as above.
                let facts = unsafe { read(&header) };
                assert!(facts.local.is_none() || facts.local == local, "{size} {claim}");
            }
        }
    }

    #[test]
    fn both_messages_have_room() {
        let (_, both) = written(Some(1200), Some("2001:db8::1"), true);
        let (_, one) = written(None, Some("2001:db8::1"), true);
        assert!(both > one && both <= size_of::<Control>());
    }

    #[test]
    fn no_datagram_is_sent_from_a_group() {
        for address in ["224.0.0.1", "255.255.255.255", "0.0.0.0", "ff02::1", "::"] {
            assert_eq!(usable(address.parse().unwrap()), None, "{address}");
        }
    }
}
