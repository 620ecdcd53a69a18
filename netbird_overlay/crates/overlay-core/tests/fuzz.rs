//! The bodies of the fuzz targets, with the corpus that is kept and mutations of it: the same every time.

use std::fs;
use std::path::PathBuf;

#[path = "../../../fuzz/bodies/inner.rs"]
mod inner;
#[path = "../../../fuzz/bodies/receive.rs"]
mod receive;
#[path = "../../../fuzz/bodies/session.rs"]
mod session;

/// SplitMix64: the numbers need to be reproducible, and nothing else.
struct Chance(u64);

impl Chance {
    fn draw(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit.max(1) as u64) as usize
    }
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(name);
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let inputs: Vec<Vec<u8>> = paths.into_iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(!inputs.is_empty());
    inputs
}

fn mutate(inputs: &[Vec<u8>], chance: &mut Chance) -> Vec<u8> {
    let mut input = inputs[chance.draw(inputs.len())].clone();
    for _ in 0..=chance.draw(4) {
        let at = chance.draw(input.len());
        match chance.draw(5) {
            0 if !input.is_empty() => input[at] ^= 1 << chance.draw(8),
            1 if !input.is_empty() => input[at] = chance.draw(256) as u8,
            2 => input.insert(at, chance.draw(256) as u8),
            3 => input.truncate(at),
            _ => {
                let other = &inputs[chance.draw(inputs.len())];
                input.extend(&other[chance.draw(other.len())..]);
            }
        }
    }
    input
}

fn run(name: &str, mutations: usize, body: fn(&[u8])) {
    let inputs = corpus(name);
    inputs.iter().for_each(|input| body(input));
    let mut chance = Chance(1);
    for _ in 0..mutations {
        let input = mutate(&inputs, &mut chance);
        body(&input);
    }
}

#[test]
fn any_datagram_of_a_stranger_is_survived() {
    run("receive", 300, receive::run);
}

#[test]
fn any_inner_packet_is_parsed() {
    run("inner", 100_000, inner::run);
}

#[test]
fn any_peer_with_a_session_is_survived() {
    run("session", 300, session::run);
}
