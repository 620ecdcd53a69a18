//! Two engines in memory, and a stack that panics at any of its entries.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::chance::Entropy;
use crate::engine::{Engine, Options};
use crate::events::{ConnId, Event, EventSink, Reason};
use crate::noise::wireguard::PeerConfig;
use crate::path::Path;
use crate::stack::conn::Limits;
use crate::stack::filter::{Filter, Rule};
use crate::stack::guard::fault;
use crate::stack::memory::Budget;
use crate::time::SECOND;

#[derive(Default)]
struct Log {
    events: Vec<Event>,
    data: Vec<(ConnId, Vec<u8>)>,
}

impl EventSink for Log {
    type Error = ();

    fn event(&mut self, event: Event) -> Result<(), ()> {
        self.events.push(event);
        Ok(())
    }

    fn data(&mut self, conn: ConnId, length: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<(), ()> {
        let mut bytes = vec![0; length];
        fill(&mut bytes);
        self.data.push((conn, bytes));
        Ok(())
    }
}

struct Side {
    engine: Engine,
    log: Log,
    endpoint: SocketAddr,
}

impl Side {
    fn new(number: u8) -> Self {
        let mut engine = Engine::new(Options {
            private_key: [number; 32].into(),
            mtu: 1280,
            limits: Limits {
                receive_buffer: 1 << 22,
                send_buffer: 1 << 22,
                max_connections: 100,
                reserved_for_dials: 0,
                fair: false,
                max_buffer_bytes: 1 << 30,
                connect_timeout: 60 * SECOND,
            },
            budget: Arc::new(Budget::new(usize::MAX)),
            handshakes_per_second: 100,
            entropy: Entropy::new(Some(&[number])),
            date: Some(1.0),
        });
        engine.shared.clock.set(1.0);
        engine.tcp.set_addresses(&engine.shared, vec![address(number)]);
        engine.set_filter(Filter::new(
            &[Rule::parse("0.0.0.0/0", 6, 1, 65535).unwrap(), Rule::parse("0.0.0.0/0", 1, 0, 0).unwrap()],
            &[],
        ));
        engine.tcp.listen(80, 100);
        Side { engine, log: Log::default(), endpoint: SocketAddr::new(address(number), 51820) }
    }

    fn meet(&mut self, other: &Side, number: u8) {
        let prefixes = [crate::wire::prefix::Prefix::parse(&address(number).to_string()).unwrap()];
        let config = PeerConfig {
            key: other.engine.wg.public_key(),
            endpoint: Some(Path::udp(other.endpoint)),
            keepalive: None,
            preshared_key: None,
        };
        assert!(self.engine.set_peer(config, &prefixes));
    }

    /// Take a turn, and return the first `most` datagrams to send. The others wait, as behind a slow socket.
    fn turn(&mut self, now: f64, most: usize) -> Vec<(Vec<u8>, SocketAddr)> {
        self.engine.shared.clock.set(now);
        self.engine.advance();
        self.engine.events(&mut self.log).unwrap();
        self.engine.advance();
        let outgoing = &mut self.engine.shared.outgoing;
        let count = outgoing.len().min(most);
        let datagrams = (0..count).map(|index| outgoing.get(index).unwrap());
        let datagrams = datagrams.map(|(datagram, to)| (datagram.to_vec(), to)).collect();
        outgoing.sent(count);
        datagrams
    }
}

fn address(number: u8) -> IpAddr {
    IpAddr::from([100, 64, 0, number])
}

/// A node and its peers. Its address is 100.64.0.1, theirs follow.
struct Network {
    sides: Vec<Side>,
    now: f64,
    /// Datagrams that the first node may send in a turn.
    uplink: usize,
}

impl Network {
    fn new(peers: u8) -> Self {
        let mut sides: Vec<Side> = (1..=peers + 1).map(Side::new).collect();
        let (first, others) = sides.split_first_mut().unwrap();
        for (number, other) in (2..).zip(others) {
            first.meet(other, number);
            other.meet(first, 1);
        }
        Network { sides, now: 1.0, uplink: usize::MAX }
    }

    fn engine(&mut self, side: usize) -> &mut Engine {
        &mut self.sides[side].engine
    }

    /// Let some turns pass, a hundredth of a second apart.
    fn run(&mut self, turns: usize) {
        for _ in 0..turns {
            self.now += 0.01;
            for side in 0..self.sides.len() {
                let most = if side == 0 { self.uplink } else { usize::MAX };
                let from = self.sides[side].endpoint;
                for (datagram, to) in self.sides[side].turn(self.now, most) {
                    let other = self.sides.iter_mut().find(|other| other.endpoint == to).unwrap();
                    other.engine.shared.clock.set(self.now);
                    other.engine.receive(&datagram, Path::udp(from));
                }
            }
        }
    }

    /// Dial a peer from the first node, and return the connection's numbers.
    fn open(&mut self, side: usize) -> (ConnId, ConnId) {
        let conn = self.engine(0).connect(address(side as u8 + 1), 80).unwrap();
        self.run(20);
        let mut accepted = self.sides[side].log.events.iter().filter_map(|event| match event {
            Event::Accepted { conn, .. } => Some(*conn),
            _ => None,
        });
        (conn, accepted.next_back().unwrap())
    }

    /// True if exactly these bytes were once read at a peer.
    fn arrived(&self, side: usize, conn: ConnId, bytes: &[u8]) -> bool {
        self.sides[side].log.data.iter().any(|(on, data)| *on == conn && data == bytes)
    }
}

fn ends(log: &Log) -> Vec<(ConnId, Reason)> {
    let ended = log.events.iter().filter_map(|event| match event {
        Event::Closed { conn, reason } | Event::ConnectFailed { conn, reason } => Some((*conn, *reason)),
        _ => None,
    });
    ended.collect()
}

/// Let everything happen that enters the stack, with a panic at its entry after `count` others. False if no entry was
/// left to panic.
fn survive(count: u32) -> bool {
    let mut network = Network::new(1);
    let bystander = network.open(1);
    let hit = network.open(1);
    network.engine(0).tcp.write(hit.0, &[7; 3000], 0);

    fault::after(count);
    let another = network.engine(0).connect(address(2), 80);
    network.run(3);
    network.engine(1).tcp.write(hit.1, &[8; 3000], 0);
    network.run(3);
    network.engine(0).connect(address(2), 81).ok();
    network.engine(0).tcp.write_eof(hit.0, 0);
    network.run(3);
    network.engine(1).tcp.close(hit.1, 0);
    network.run(3);
    if let Ok(conn) = another {
        network.engine(0).tcp.abort(conn, 0);
    }
    network.run(3);
    let panicked = fault::disarm();

    // The tunnel works: the other connection of the same peer carries bytes, and new ones are made.
    network.engine(0).tcp.write(bystander.0, b"still here", 0);
    network.run(20);
    assert!(network.arrived(1, bystander.1, b"still here"), "after entry {count}");
    assert!(ends(&network.sides[0].log).iter().all(|(conn, _)| *conn != bystander.0), "after entry {count}");
    let fresh = network.open(1);
    network.engine(0).tcp.write(fresh.0, b"and anew", 0);
    network.run(20);
    assert!(network.arrived(1, fresh.1, b"and anew"), "after entry {count}");
    let defects: u64 = network.sides.iter().map(|side| side.engine.shared.counters.internal_error).sum();
    assert_eq!(defects, u64::from(panicked));
    panicked
}

#[test]
fn a_panic_at_any_entry_into_the_stack_ends_one_connection_at_most() {
    std::panic::set_hook(Box::new(|_| {}));
    let entries = (0..).take_while(|&count| survive(count)).count();
    let _ = std::panic::take_hook();
    assert!(entries > 20, "only {entries} entries were tried");
}

/// Return the bytes that one peer gets through a slow uplink, beside a peer with `busy` transfers.
fn through_the_uplink(busy: usize) -> usize {
    let mut network = Network::new(2);
    let greedy: Vec<ConnId> = (0..busy).map(|_| network.open(1).0).collect();
    let (modest, there) = network.open(2);
    network.uplink = 50;
    for _ in 0..200 {
        for conn in greedy.iter().chain([&modest]) {
            network.engine(0).tcp.write(*conn, &[0; 1 << 18], 0);
        }
        network.run(1);
    }
    network.sides[2].log.data.iter().filter(|(conn, _)| *conn == there).map(|(_, data)| data.len()).sum()
}

#[test]
fn a_peer_with_many_connections_has_one_share_of_the_uplink() {
    let (beside_one, beside_many) = (through_the_uplink(1), through_the_uplink(40));
    assert!(beside_many * 10 >= beside_one * 9, "{beside_many} of {beside_one} bytes");
}
