//! An upstream's answer in pieces: the result is that of the same bytes in one piece.
//!
//! Two bytes choose the request and the size of the pieces; the others are the answer.

#![no_main]

use http_core::answer::{Answer, Asked, Limits};
use libfuzzer_sys::fuzz_target;

fn read(asked: Asked, data: &[u8], size: usize) -> impl PartialEq + std::fmt::Debug {
    let mut answer = Answer::new(asked, Limits { bytes: 1000, lines: 20 });
    let mut body = Vec::new();
    let mut verdict = Ok(());
    for piece in data.chunks(size) {
        let mut ranges = Vec::new();
        verdict = answer.feed(piece, &mut ranges);
        for range in ranges {
            body.extend_from_slice(&piece[range]);
        }
        if verdict.is_err() {
            break;
        }
    }
    let headers: Vec<_> = answer.headers.iter().map(|(name, value, _)| (name.to_vec(), value.to_vec())).collect();
    let trailers: Vec<_> = answer.trailers.iter().map(|(name, value, _)| (name.to_vec(), value.to_vec())).collect();
    (verdict, answer.status, headers, trailers, body, answer.interim.len(), answer.complete, answer.keep_alive)
}

fuzz_target!(|input: &[u8]| {
    let [first, second, data @ ..] = input else { return };
    let asked = Asked { head_only: first & 1 != 0, upgrade: first & 2 != 0 };
    assert_eq!(read(asked, data, usize::from(*second).max(1)), read(asked, data, data.len().max(1)));
});
