//! Parses the fields of an inner IP packet that decide its destination. Trusts no length field.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;
pub const UDP_HEADER: usize = 8;

/// The addresses and ports of a TCP connection, from one end's view.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flow {
    pub local: IpAddr,
    pub remote: IpAddr,
    pub local_port: u16,
    pub remote_port: u16,
}

pub enum Content {
    Tcp {
        source_port: u16,
        destination_port: u16,
        flags: u8,
        sequence: u32,
    },
    Udp {
        source_port: u16,
        destination_port: u16,
        /// The place of the datagram in the packet, its header included.
        range: Range<usize>,
    },
    EchoRequest,
    /// An ICMP "destination unreachable" about a TCP or UDP packet that this node sent, and the packet's protocol.
    Unreachable(u8, Flow),
    /// Another protocol, or a fragment.
    Other,
}

pub struct Header {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub content: Content,
}

/// None if the bytes are not an IP packet, or if an address is not a single host's.
pub fn parse(packet: &[u8]) -> Option<Header> {
    let ip = parse_ip(packet)?;
    if !is_host(ip.source) || !is_host(ip.destination) {
        return None;
    }
    let content = match (ip.protocol, ip.source) {
        _ if ip.fragment => Content::Other,
        (6, _) => {
            let flags = *ip.payload.get(13)?;
            let (source_port, destination_port) = ports(ip.payload)?;
            if source_port == 0 || destination_port == 0 {
                return None;
            }
            let sequence: &[u8; 4] = ip.payload.get(4..8)?.try_into().ok()?;
            Content::Tcp { source_port, destination_port, flags, sequence: u32::from_be_bytes(*sequence) }
        }
        (17, _) => {
            let length: &[u8; 2] = ip.payload.get(4..6)?.try_into().ok()?;
            let length = usize::from(u16::from_be_bytes(*length));
            let (source_port, destination_port) = ports(ip.payload)?;
            let start = packet.len() - ip.payload.len();
            if length < UDP_HEADER || start + length > ip.total || source_port == 0 || destination_port == 0 {
                return None;
            }
            Content::Udp { source_port, destination_port, range: start..start + length }
        }
        (1, IpAddr::V4(_)) => icmp(ip.payload, 8, 3)?,
        (58, IpAddr::V6(_)) => icmp(ip.payload, 128, 1)?,
        _ => Content::Other,
    };
    Some(Header { source: ip.source, destination: ip.destination, content })
}

struct Ip<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    fragment: bool,
    payload: &'a [u8],
    /// The length of the packet without padding, at most what is there.
    total: usize,
}

fn parse_ip(packet: &[u8]) -> Option<Ip<'_>> {
    match packet.first()? >> 4 {
        4 => {
            let header: &[u8; 20] = packet.get(..20)?.try_into().ok()?;
            let header_length = usize::from(header[0] & 0x0f) * 4;
            if header_length < 20 {
                return None;
            }
            Some(Ip {
                source: IpAddr::V4(Ipv4Addr::new(header[12], header[13], header[14], header[15])),
                destination: IpAddr::V4(Ipv4Addr::new(header[16], header[17], header[18], header[19])),
                protocol: header[9],
                // A fragment: more follow, or it is not the first.
                fragment: header[6] & 0x3f != 0 || header[7] != 0,
                payload: packet.get(header_length..)?,
                total: packet.len().min(usize::from(u16::from_be_bytes([header[2], header[3]]))),
            })
        }
        6 => {
            let header: &[u8; 40] = packet.get(..40)?.try_into().ok()?;
            let source: [u8; 16] = header[8..24].try_into().ok()?;
            let destination: [u8; 16] = header[24..40].try_into().ok()?;
            Some(Ip {
                source: IpAddr::V6(Ipv6Addr::from(source)),
                destination: IpAddr::V6(Ipv6Addr::from(destination)),
                protocol: header[6],
                fragment: false,
                payload: packet.get(40..)?,
                total: packet.len().min(40 + usize::from(u16::from_be_bytes([header[4], header[5]]))),
            })
        }
        _ => None,
    }
}

fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_unspecified() && !v4.is_multicast() && !v4.is_broadcast() && !v4.is_loopback(),
        // An IPv4-mapped address would be a second name for an IPv4 address.
        IpAddr::V6(v6) => {
            !v6.is_unspecified() && !v6.is_multicast() && !v6.is_loopback() && v6.to_ipv4_mapped().is_none()
        }
    }
}

fn ports(segment: &[u8]) -> Option<(u16, u16)> {
    let bytes: &[u8; 4] = segment.get(..4)?.try_into().ok()?;
    Some((u16::from_be_bytes([bytes[0], bytes[1]]), u16::from_be_bytes([bytes[2], bytes[3]])))
}

fn icmp(message: &[u8], echo_request: u8, unreachable: u8) -> Option<Content> {
    let kind = *message.first()?;
    if kind == echo_request {
        return Some(Content::EchoRequest);
    }
    // IPv4's type 3 code 4 reports a packet size, not reachability.
    if kind != unreachable || (unreachable == 3 && message.get(1) == Some(&4)) {
        return Some(Content::Other);
    }
    let Some(ip) = message.get(8..).and_then(parse_ip) else { return Some(Content::Other) };
    Some(match (ip.protocol, ports(ip.payload)) {
        (protocol @ (6 | 17), Some((source_port, destination_port))) => Content::Unreachable(
            protocol,
            Flow { local: ip.source, remote: ip.destination, local_port: source_port, remote_port: destination_port },
        ),
        _ => Content::Other,
    })
}
