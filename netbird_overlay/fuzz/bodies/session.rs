//! A peer with a session that sends what it likes, beside an owner who does what it may: nothing may panic, no defect of
//! the stack may show, and all stays within its bounds.
//!
//! The input is a script of steps. A step's first byte chooses its kind, and further bytes its parameters, so that many
//! scripts open connections and go on with them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use overlay_core::chance::Entropy;
use overlay_core::engine::{Engine, Options};
use overlay_core::events::{ConnId, Event, EventSink};
use overlay_core::noise::wireguard::PeerConfig;
use overlay_core::path::Path;
use overlay_core::stack::conn::Limits;
use overlay_core::stack::filter::{Filter, Rule};
use overlay_core::stack::memory::Budget;
use overlay_core::wire::prefix::Prefix;

const OURS: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
const THEIRS: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
const MOST_BYTES: usize = 1 << 20;
const MOST_CONNECTIONS: usize = 8;
const SYN: u8 = 2;
const FIN: u8 = 1;

/// The open connections of the owner.
#[derive(Default)]
struct Owner {
    conns: Vec<ConnId>,
}

impl EventSink for Owner {
    type Error = ();

    fn event(&mut self, event: Event) -> Result<(), ()> {
        match event {
            Event::Accepted { conn, .. } => self.conns.push(conn),
            Event::Closed { conn, .. } | Event::ConnectFailed { conn, .. } => self.conns.retain(|open| *open != conn),
            _ => {}
        }
        Ok(())
    }

    fn data(&mut self, _: ConnId, length: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<(), ()> {
        fill(&mut vec![0; length]);
        Ok(())
    }
}

/// The bytes of the script; zeros behind its end.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().map_or((0, self.0), |(first, rest)| (*first, rest));
        self.0 = rest;
        first
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }
}

struct World {
    engine: Engine,
    owner: Owner,
    peer: Tunn,
    key: [u8; 32],
    now: f64,
    /// By the peer's port: its next sequence number, and the one that it expects.
    numbers: HashMap<u16, (u32, u32)>,
}

fn from() -> Path {
    Path::udp(SocketAddr::from(([192, 0, 2, 1], 51820)))
}

fn filter() -> Filter {
    Filter::new(&[6, 17, 1].map(|protocol| Rule::parse("100.64.0.2/32", protocol, 1, 100).unwrap()), &[])
}

impl World {
    fn new() -> Self {
        let mut engine = Engine::new(Options {
            private_key: [1; 32].into(),
            mtu: 1280,
            limits: Limits {
                receive_buffer: 1 << 16,
                send_buffer: 1 << 16,
                max_connections: MOST_CONNECTIONS,
                reserved_for_dials: 1,
                fair: true,
                max_buffer_bytes: MOST_BYTES,
                connect_timeout: 60_000_000,
            },
            budget: Arc::new(Budget::new(MOST_BYTES)),
            handshakes_per_second: 100,
            entropy: Entropy::new(Some(b"fuzz")),
            date: Some(1.8e9),
        });
        engine.shared.clock.set(0.0);
        engine.set_addresses(vec![IpAddr::V4(OURS)]);
        engine.set_filter(filter());
        engine.tcp.listen(80, 4);
        engine.udp.listen(53);
        let secret = StaticSecret::from([2; 32]);
        let key = *PublicKey::from(&secret).as_bytes();
        let peer = Tunn::new(secret, PublicKey::from(engine.wg.public_key()), None, None, 7, None);
        let mut world = World { engine, owner: Owner::default(), peer, key, now: 0.0, numbers: HashMap::new() };
        world.meet();
        let mut buffer = [0; 256];
        if let TunnResult::WriteToNetwork(initiation) = world.peer.format_handshake_initiation(&mut buffer, false) {
            world.engine.receive(initiation, from());
        }
        world.settle();
        world
    }

    fn meet(&mut self) {
        let config = PeerConfig { key: self.key, endpoint: Some(from()), keepalive: None, preshared_key: None };
        self.engine.set_peer(config, &[Prefix::parse("100.64.0.2").unwrap()]);
    }

    /// Let the engine work, and the peer take note of what it answers.
    fn settle(&mut self) {
        self.engine.shared.clock.set(self.now);
        self.engine.advance();
        self.engine.events(&mut self.owner).unwrap();
        self.engine.advance();
        let outgoing = &mut self.engine.shared.outgoing;
        let datagrams: Vec<Vec<u8>> =
            (0..outgoing.len()).filter_map(|index| Some(outgoing.get(index)?.0.to_vec())).collect();
        outgoing.sent(usize::MAX);
        let mut buffer = vec![0; 2048];
        for datagram in datagrams {
            match self.peer.decapsulate(None, &datagram, &mut buffer) {
                TunnResult::WriteToTunnelV4(packet, _) if packet.len() >= 40 && packet[9] == 6 => {
                    let port = u16::from_be_bytes([packet[22], packet[23]]);
                    let sequence = u32::from_be_bytes(packet[24..28].try_into().unwrap());
                    let header = 20 + usize::from(packet[32] >> 4) * 4;
                    let flags = u32::from(packet[33] & (SYN | FIN) != 0);
                    let next = sequence.wrapping_add(packet.len().saturating_sub(header) as u32).wrapping_add(flags);
                    self.numbers.entry(port).or_insert((1000, 0)).1 = next;
                }
                TunnResult::WriteToNetwork(answer) => self.engine.receive(answer, from()),
                _ => {}
            }
        }
        assert_eq!(self.engine.shared.counters.internal_error, 0, "a defect of the stack");
        assert!(self.engine.tcp.buffer_bytes() <= MOST_BYTES);
        assert!(self.engine.tcp.count() <= MOST_CONNECTIONS);
    }

    fn send(&mut self, packet: &[u8]) {
        let mut buffer = vec![0; packet.len() + 256];
        if let TunnResult::WriteToNetwork(datagram) = self.peer.encapsulate(packet, &mut buffer) {
            self.engine.receive(datagram, from());
        }
        self.settle();
    }

    fn segment(&mut self, script: &mut Script) {
        let port = 1000 + u16::from(script.byte() & 7);
        let (flags, shift, back, window) = (script.byte(), script.byte() as i8, script.byte() as i8, script.byte());
        let length = usize::from(script.byte()) * 4;
        let options = usize::from(script.byte() & 3) * 4;
        let (mine, theirs) = *self.numbers.entry(port).or_insert((1000, 0));
        let mut tcp = Vec::new();
        tcp.extend(port.to_be_bytes());
        tcp.extend(80u16.to_be_bytes());
        tcp.extend(mine.wrapping_add_signed(i32::from(shift) * 64).to_be_bytes());
        tcp.extend(theirs.wrapping_add_signed(i32::from(back) * 64).to_be_bytes());
        tcp.extend([((5 + options / 4) << 4) as u8, flags]);
        tcp.extend((u16::from(window) * 257).to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(script.bytes(options));
        tcp.resize(20 + options, 1);
        tcp.resize(20 + options + length, b'x');
        if shift == 0 {
            let next = mine.wrapping_add(length as u32 + u32::from(flags & (SYN | FIN) != 0));
            self.numbers.get_mut(&port).unwrap().0 = next;
        }
        self.send(&ip(6, &tcp));
    }

    fn owner_step(&mut self, script: &mut Script) {
        let now = self.engine.shared.now();
        let (kind, which) = (script.byte(), usize::from(script.byte()));
        if let Some(&conn) = self.owner.conns.get(which % self.owner.conns.len().max(1)) {
            let tcp = &mut self.engine.tcp;
            match kind & 7 {
                0 | 1 => drop(tcp.write(conn, &vec![b'y'; usize::from(script.byte()) * 64], now)),
                2 => tcp.write_eof(conn, now),
                3 => tcp.close(conn, now),
                4 => tcp.abort(conn, now),
                5 => tcp.pause(conn, true),
                _ => tcp.pause(conn, false),
            }
        }
        self.settle();
    }

    fn change(&mut self, script: &mut Script) {
        match script.byte() & 7 {
            0 => self.engine.set_filter(Filter::default()),
            1 => self.engine.set_filter(filter()),
            2 => drop(self.engine.remove_peer(&self.key)),
            3 => self.meet(),
            4 => drop(self.engine.tcp.unlisten(80)),
            5 => self.engine.tcp.listen(80, usize::from(script.byte() & 3)),
            6 => self.engine.set_addresses(Vec::new()),
            _ => self.engine.set_addresses(vec![IpAddr::V4(OURS)]),
        }
        self.settle();
    }

    fn step(&mut self, script: &mut Script) {
        match script.byte() & 15 {
            0..=6 => self.segment(script),
            7 => {
                let length = usize::from(script.byte()) * 8;
                let packet = script.bytes(length);
                self.send(&packet);
            }
            8 => {
                let (protocol, length) = (script.byte(), usize::from(script.byte()));
                let payload = script.bytes(length);
                self.send(&ip(protocol, &payload));
            }
            9 | 10 => self.owner_step(script),
            11 => {
                let port = 1000 + u16::from(script.byte() & 7);
                if let Ok(conn) = self.engine.connect(IpAddr::V4(THEIRS), port) {
                    self.owner.conns.push(conn);
                }
                self.settle();
            }
            12 => {
                let length = usize::from(script.byte()) * 8;
                let _ = self.engine.udp_send(53, Some((IpAddr::V4(THEIRS), 53)), &vec![0; length]);
                self.settle();
            }
            13 => self.change(script),
            _ => {
                let time = script.byte();
                self.now += if time < 200 { f64::from(time) / 50.0 } else { f64::from(time) };
                self.settle();
            }
        }
    }
}

/// An IPv4 packet from the peer to us.
fn ip(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(((20 + payload.len()) as u16).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend(THEIRS.octets());
    packet.extend(OURS.octets());
    packet.extend(payload);
    packet
}

pub fn run(input: &[u8]) {
    let mut world = World::new();
    let mut script = Script(input);
    while !script.0.is_empty() {
        world.step(&mut script);
    }
}
