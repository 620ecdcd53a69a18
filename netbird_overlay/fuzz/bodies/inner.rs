//! Inner packets, as an authenticated peer sends them, in the parser that decides where they go.

use overlay_core::wire::packet;

pub fn run(input: &[u8]) {
    packet::parse(input);
}
