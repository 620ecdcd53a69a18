//! Builds and checks UDP datagrams, and ICMP errors about them, as whole IP packets.

use std::net::IpAddr;

use crate::stack::filter::UDP;
use crate::wire::packet::{Flow, UDP_HEADER};

const ICMP_V4: u8 = 1;
const ICMP_V6: u8 = 58;
const HOPS: u8 = 64;
/// Maximum size of an ICMPv6 error (RFC 4443 section 2.4 c).
const LONGEST_ERROR: usize = 1280;

/// Bytes of headers in front of a datagram's data.
pub fn overhead(local: IpAddr) -> usize {
    ip_header(local) + UDP_HEADER
}

fn ip_header(local: IpAddr) -> usize {
    if local.is_ipv4() {
        20
    } else {
        40
    }
}

/// Build the packet of a datagram. `data` must fit in the packet with `overhead`, and in 16 bits.
pub fn build(flow: &Flow, data: &[u8]) -> Vec<u8> {
    let length = UDP_HEADER + data.len();
    let mut datagram = Vec::with_capacity(length);
    datagram.extend_from_slice(&flow.local_port.to_be_bytes());
    datagram.extend_from_slice(&flow.remote_port.to_be_bytes());
    datagram.extend_from_slice(&(length as u16).to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(data);
    // RFC 768: a checksum of zero is sent as its complement, because zero means none.
    let checksum = match !sum(&datagram, pseudo_header(flow.local, flow.remote, UDP, length)) {
        0 => 0xffff,
        checksum => checksum,
    };
    datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
    in_packet(flow.local, flow.remote, UDP, &datagram)
}

/// True if the checksum of a received datagram is right, or left out where IPv4 permits that.
pub fn is_intact(source: IpAddr, destination: IpAddr, datagram: &[u8]) -> bool {
    let omitted = datagram[6..8] == [0, 0];
    if omitted {
        return source.is_ipv4();
    }
    sum(datagram, pseudo_header(source, destination, UDP, datagram.len())) == 0xffff
}

/// Build the ICMP error that says that no socket has the port of a received packet.
pub fn port_unreachable(local: IpAddr, remote: IpAddr, packet: &[u8], mtu: usize) -> Vec<u8> {
    let (protocol, kind, code, most) = match local {
        // RFC 792: the header and eight bytes.
        IpAddr::V4(_) => (ICMP_V4, 3, 3, usize::from(packet[0] & 0x0f) * 4 + 8),
        IpAddr::V6(_) => (ICMP_V6, 1, 4, LONGEST_ERROR.min(mtu) - 48),
    };
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&packet[..packet.len().min(most)]);
    let start = match local {
        IpAddr::V4(_) => 0,
        IpAddr::V6(_) => pseudo_header(local, remote, protocol, message.len()),
    };
    let checksum = !sum(&message, start);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    in_packet(local, remote, protocol, &message)
}

fn in_packet(local: IpAddr, remote: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(ip_header(local) + payload.len() + 16);
    match (local, remote) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => {
            let total = ((20 + payload.len()) as u16).to_be_bytes();
            // Don't Fragment: no node on the way could put fragments together, and this one never sends any.
            packet.extend_from_slice(&[0x45, 0, total[0], total[1], 0, 0, 0x40, 0, HOPS, protocol, 0, 0]);
            packet.extend_from_slice(&local.octets());
            packet.extend_from_slice(&remote.octets());
            let checksum = !sum(&packet, 0);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        (IpAddr::V6(local), IpAddr::V6(remote)) => {
            let length = (payload.len() as u16).to_be_bytes();
            packet.extend_from_slice(&[0x60, 0, 0, 0, length[0], length[1], protocol, HOPS]);
            packet.extend_from_slice(&local.octets());
            packet.extend_from_slice(&remote.octets());
        }
        // Both ends of a flow are of one family.
        _ => return packet,
    }
    packet.extend_from_slice(payload);
    packet
}

/// The sum of the fields that IP adds to a checksum.
fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u32 {
    let of = |address: IpAddr| match address {
        IpAddr::V4(v4) => u32::from(sum(&v4.octets(), 0)),
        IpAddr::V6(v6) => u32::from(sum(&v6.octets(), 0)),
    };
    of(source) + of(destination) + u32::from(protocol) + length as u32
}

/// The one's complement sum of 16-bit words (RFC 1071), folded.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let (words, rest) = bytes.as_chunks::<2>();
    let mut total: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    total += rest.first().map_or(0, |last| u64::from(*last) << 8);
    total += u64::from(start);
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    total as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::packet::{parse, Content};
    use crate::wire::prefix::parse_address;

    fn flow(local: &str, remote: &str) -> Flow {
        let (local, remote) = (parse_address(local).unwrap(), parse_address(remote).unwrap());
        Flow { local, remote, local_port: 4000, remote_port: 53 }
    }

    #[test]
    fn built_datagrams_parse_and_are_intact() {
        for flow in [flow("100.64.0.1", "100.64.0.2"), flow("fd00::1", "fd00::2")] {
            for data in [&b""[..], b"x", b"odd length", &[0xff; 1000]] {
                let mut packet = build(&flow, data);
                packet.extend_from_slice(&[0; 15]); // WireGuard's padding
                let header = parse(&packet).unwrap();
                let Content::Udp { source_port, destination_port, range } = header.content else { panic!() };
                assert_eq!((source_port, destination_port), (4000, 53));
                assert_eq!(&packet[range.start + UDP_HEADER..range.end], data);
                assert!(is_intact(header.source, header.destination, &packet[range.clone()]));
                packet[range.start] ^= 1;
                assert!(!is_intact(header.source, header.destination, &packet[range]));
            }
        }
    }

    #[test]
    fn a_checksum_may_be_left_out_over_ipv4_only() {
        for (flow, intact) in [(flow("100.64.0.1", "100.64.0.2"), true), (flow("fd00::1", "fd00::2"), false)] {
            let mut packet = build(&flow, b"data");
            let start = ip_header(flow.local);
            packet[start + 6..start + 8].fill(0);
            assert_eq!(is_intact(flow.local, flow.remote, &packet[start..]), intact);
        }
    }

    #[test]
    fn an_error_names_the_flow_that_it_is_about() {
        for flow in [flow("100.64.0.1", "100.64.0.2"), flow("fd00::1", "fd00::2")] {
            let error = port_unreachable(flow.remote, flow.local, &build(&flow, &[7; 1300]), 1280);
            assert!(error.len() <= 1280);
            let Content::Unreachable(protocol, about) = parse(&error).unwrap().content else { panic!() };
            assert_eq!((protocol, about), (UDP, flow));
        }
    }
}
