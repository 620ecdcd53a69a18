//! Retransmissions of the TCP stack to a remote end that is written by hand: one that reports what it received out of
//! order, one that lies about it, and one that takes it back.

use std::collections::{BTreeSet, VecDeque};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    HardwareAddress, IpAddress, IpCidr, IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr,
    TcpSeqNumber,
};

const OURS: Ipv4Address = Ipv4Address::new(10, 0, 0, 1);
const THEIRS: Ipv4Address = Ipv4Address::new(10, 0, 0, 2);
const SEGMENT: usize = 1000;

#[derive(Default)]
struct Wire {
    arriving: VecDeque<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
}

struct Arriving(Vec<u8>);

impl RxToken for Arriving {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Sending<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = vec![0; length];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Arriving;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Arriving, Sending<'_>)> {
        let packet = self.arriving.pop_front()?;
        Some((Arriving(packet), Sending(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1280;
        capabilities.checksum.ipv4 = Checksum::None;
        capabilities.checksum.tcp = Checksum::None;
        capabilities
    }
}

/// A connection of the stack. Numbers are counted from the first byte of its data.
struct Connection {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    now: Instant,
    first: TcpSeqNumber,
}

impl Connection {
    /// Open a connection. `selective`: the remote end permits selective acknowledgments.
    fn open(selective: bool) -> Self {
        let mut wire = Wire::default();
        let now = Instant::from_millis(1000);
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut wire, now);
        interface.update_ip_addrs(|list| list.push(IpCidr::new(OURS.into(), 24)).unwrap());
        let buffer = || SocketBuffer::new(vec![0; 1 << 16]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_congestion_control(CongestionControl::Cubic);
        let remote = (IpAddress::from(THEIRS), 80);
        socket.connect(interface.context(), remote, 1000).unwrap();
        let mut sockets = SocketSet::new(vec![]);
        let handle = sockets.add(socket);
        let mut connection = Connection { wire, interface, sockets, handle, now, first: TcpSeqNumber(0) };
        connection.poll();
        let syn = connection.wire.sent.pop_front().unwrap();
        let ip = Ipv4Packet::new_unchecked(&syn[..]);
        connection.first = TcpPacket::new_unchecked(ip.payload()).seq_number() + 1;
        connection.hear(TcpControl::Syn, 0, selective, [None; 3]);
        connection.sent();
        connection
    }

    fn poll(&mut self) {
        self.interface.poll(self.now, &mut self.wire, &mut self.sockets);
    }

    fn hear(&mut self, control: TcpControl, acked: usize, selective: bool, sack_ranges: [Option<(u32, u32)>; 3]) {
        let is_syn = control == TcpControl::Syn;
        let tcp = TcpRepr {
            src_port: 80,
            dst_port: 1000,
            control,
            seq_number: TcpSeqNumber(if is_syn { 0 } else { 1 }),
            ack_number: Some(self.first + acked),
            window_len: 65_000,
            window_scale: None,
            max_seg_size: is_syn.then_some(SEGMENT as u16),
            sack_permitted: selective,
            sack_ranges,
            timestamp: None,
            payload: &[],
        };
        let ip = Ipv4Repr {
            src_addr: THEIRS,
            dst_addr: OURS,
            next_header: IpProtocol::Tcp,
            payload_len: tcp.buffer_len(),
            hop_limit: 64,
        };
        let mut packet = vec![0; ip.buffer_len() + tcp.buffer_len()];
        let ignored = ChecksumCapabilities::ignored();
        ip.emit(&mut Ipv4Packet::new_unchecked(&mut packet[..]), &ignored);
        let mut segment = TcpPacket::new_unchecked(&mut packet[ip.buffer_len()..]);
        tcp.emit(&mut segment, &THEIRS.into(), &OURS.into(), &ignored);
        self.wire.arriving.push_back(packet);
        self.poll();
    }

    /// Acknowledge the bytes before `acked`, and report ranges after it.
    fn ack(&mut self, acked: usize, ranges: &[(i64, i64)]) {
        let number = |offset: i64| (i64::from(self.first.0) + offset) as u32;
        let mut blocks = [None; 3];
        for (block, &(left, right)) in blocks.iter_mut().zip(ranges) {
            *block = Some((number(left), number(right)));
        }
        self.hear(TcpControl::None, acked, false, blocks);
    }

    fn write(&mut self, segments: usize) {
        let socket = self.sockets.get_mut::<Socket>(self.handle);
        assert_eq!(socket.send_slice(&vec![7; segments * SEGMENT]), Ok(segments * SEGMENT));
        self.poll();
    }

    /// Return the numbers of the segments that were sent since the last call, in order.
    fn sent(&mut self) -> Vec<usize> {
        let packets: Vec<_> = self.wire.sent.drain(..).collect();
        let first = self.first;
        let offsets = packets.iter().filter_map(|packet| {
            let ip = Ipv4Packet::new_unchecked(&packet[..]);
            let segment = TcpPacket::new_unchecked(ip.payload());
            let offset = segment.seq_number().0.wrapping_sub(first.0) as usize;
            (!segment.payload().is_empty()).then_some(offset / SEGMENT)
        });
        offsets.collect()
    }

    /// Let time pass until the next timer.
    fn wait(&mut self) {
        let delay = self.interface.poll_delay(self.now, &self.sockets);
        self.now += delay.unwrap().max(Duration::from_millis(1));
        self.poll();
    }
}

/// A connection with ten segments on their way: 0 to 9. Twenty more wait for their turn.
fn ten_on_the_way(selective: bool) -> Connection {
    let mut connection = Connection::open(selective);
    connection.write(30);
    assert_eq!(connection.sent(), Vec::from_iter(0..10));
    connection
}

#[test]
fn only_the_holes_are_sent_again() {
    let mut connection = ten_on_the_way(true);
    connection.ack(0, &[(1000, 2000)]);
    connection.ack(0, &[(3000, 4000), (1000, 2000)]);
    // Each segment that arrived lets a new one out, and nothing is lost as yet.
    assert_eq!(connection.sent(), [10, 11]);
    connection.ack(0, &[(5000, 7000), (3000, 4000), (1000, 2000)]);
    connection.ack(0, &[(5000, 10_000), (3000, 4000), (1000, 2000)]);
    let sent = connection.sent();
    assert_eq!(sent[..3], [0, 2, 4]);
    assert!(sent[3..].iter().all(|&segment| segment >= 12), "{sent:?}");
    // An ack of a retransmission sends none of the others once more.
    connection.ack(2000, &[(5000, 12_000), (3000, 4000)]);
    assert!(connection.sent().iter().all(|&segment| segment >= 12));
}

#[test]
fn an_end_without_selective_acks_is_not_asked_for_them() {
    let mut connection = ten_on_the_way(false);
    for _ in 0..3 {
        connection.ack(0, &[(3000, 10_000)]);
    }
    connection.sent();
    connection.ack(1000, &[]);
    assert_eq!(connection.sent()[0], 1);
}

#[test]
fn a_range_that_was_taken_back_is_sent_after_a_timeout() {
    let mut connection = ten_on_the_way(true);
    connection.ack(0, &[(1000, 10_000)]);
    assert_eq!(connection.sent()[0], 0);
    // The receiver ran out of memory, and drops what it had out of order.
    connection.wait();
    let mut next = 0;
    while next < 30 {
        let sent = connection.sent();
        assert_eq!(sent, Vec::from_iter(next..next + sent.len()));
        assert_ne!(sent.len(), 0);
        next += sent.len();
        connection.ack(next * SEGMENT, &[]);
    }
}

#[test]
fn blocks_that_lie_change_nothing() {
    for (left, right) in [
        (2000, 1000),
        (-5000, -1000),
        (-1000, 1000),
        (0, 9000),
        (5000, 60_000),
        (20_000, 30_000),
        (1 << 31, (1 << 31) + 1000),
        ((1 << 31) - 1, (1 << 32) - 2),
    ] {
        let mut connection = ten_on_the_way(true);
        connection.ack(0, &[(left, right)]);
        // One segment more, as after every first duplicate acknowledgment.
        assert_eq!(connection.sent(), [10], "{left} to {right}");
    }
}

#[test]
fn any_blocks_leave_the_stream_whole() {
    let mut chance: u64 = 1;
    let mut below = |most: i64| {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (chance >> 33) as i64 % most
    };
    for _ in 0..50 {
        let mut connection = Connection::open(true);
        connection.write(60);
        let mut arrived = BTreeSet::from_iter(connection.sent());
        let mut acked = 0;
        for _ in 0..300 {
            let next = (0..).find(|segment| !arrived.contains(segment)).unwrap();
            if below(4) == 0 {
                acked = acked.max(next.min(acked + 1 + below(3) as usize));
            }
            let blocks = [0; 3].map(|_| {
                let left = below(70_000) - 5000;
                (left, left + below(9000) - 1000)
            });
            connection.ack(acked * SEGMENT, &blocks);
            // A third of the segments is lost.
            arrived.extend(connection.sent().into_iter().filter(|_| below(3) > 0));
        }
        // From here on the remote end is honest, and every segment arrives.
        for _ in 0..200 {
            let next = (0..).find(|segment| !arrived.contains(segment)).unwrap();
            connection.ack(next * SEGMENT, &[]);
            if next == 60 {
                break;
            }
            arrived.extend(connection.sent());
            connection.wait();
            arrived.extend(connection.sent());
        }
        assert_eq!(arrived, BTreeSet::from_iter(0..60));
    }
}
