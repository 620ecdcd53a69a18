//! Datagrams from outside, as a stranger sends them: nothing may panic, and nothing may grow without a bound.
//!
//! The input is a sequence of datagrams: two bytes of length, one that chooses a path and the time, then the datagram.
//! Handshake messages of odd paths get the code that proves that their sender knows our key.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;

use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use overlay_core::chance::Entropy;
use overlay_core::engine::{Engine, Options};
use overlay_core::noise::wireguard::PeerConfig;
use overlay_core::path::Path;
use overlay_core::stack::conn::Limits;
use overlay_core::stack::memory::Budget;

fn engine() -> Engine {
    let mut engine = Engine::new(Options {
        private_key: [1; 32].into(),
        mtu: 1280,
        limits: Limits {
            receive_buffer: 1 << 16,
            send_buffer: 1 << 16,
            max_connections: 16,
            reserved_for_dials: 0,
            fair: true,
            max_buffer_bytes: 1 << 24,
            connect_timeout: 60_000_000,
        },
        budget: Arc::new(Budget::new(1 << 24)),
        handshakes_per_second: 4,
        entropy: Entropy::new(Some(b"fuzz")),
        date: Some(1.8e9),
    });
    engine.shared.clock.set(0.0);
    for number in 2..5u8 {
        let config = PeerConfig { key: [number; 32], endpoint: None, keepalive: None, preshared_key: None };
        engine.set_peer(config, &[]);
    }
    engine
}

/// Set the first code of a handshake message, which covers all bytes before it.
fn prove(datagram: &mut [u8], public_key: &[u8; 32]) {
    let end = match (datagram.first(), datagram.len()) {
        (Some(1), 148) | (Some(2), 92) => datagram.len() - 32,
        _ => return,
    };
    let key: [u8; 32] = Blake2s256::new().chain_update(b"mac1----").chain_update(public_key).finalize().into();
    let mut state = <Blake2sMac<blake2::digest::consts::U16> as KeyInit>::new((&key).into());
    Update::update(&mut state, &datagram[..end]);
    datagram[end..end + 16].copy_from_slice(&state.finalize_fixed());
}

pub fn run(input: &[u8]) {
    let mut engine = engine();
    let (mut rest, mut now) = (input, 0.0);
    while let [low, high, path, tail @ ..] = rest {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
        let (datagram, others) = tail.split_at(length);
        let mut datagram = datagram.to_vec();
        let from = match path & 3 {
            0 => Path::Carrier(NonZeroU64::MIN),
            number => Path::udp(SocketAddr::from(([192, 0, 2, number], u16::from(*path)))),
        };
        if path & 1 == 1 {
            prove(&mut datagram, &engine.wg.public_key());
        }
        now += f64::from(path >> 2);
        engine.shared.clock.set(now);
        engine.receive(&datagram, from);
        engine.advance();
        engine.shared.outgoing.sent(usize::MAX);
        engine.shared.outgoing.take_carried();
        engine.shared.strays.take();
        rest = others;
    }
}
