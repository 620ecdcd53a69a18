//! A client's requests in pieces: the events are those of the same bytes in one piece.
//!
//! The first byte chooses the size of the pieces; the others are the requests.

#![no_main]

use http_core::fields::Fields;
use http_core::request::{Event, Limits, Reader, Refused};
use libfuzzer_sys::fuzz_target;

fn pairs(fields: &Fields) -> Vec<(Vec<u8>, Vec<u8>)> {
    fields.iter().map(|(name, value, _)| (name.to_vec(), value.to_vec())).collect()
}

/// Heads with their facts, bodies, and trailers, each as text; pieces of a body in a row are joined.
fn read(data: &[u8], size: usize) -> (Vec<String>, Option<Refused>) {
    let mut reader = Reader::new(Limits { bytes: 1000, lines: 20 });
    let mut seen: Vec<String> = Vec::new();
    for piece in data.chunks(size) {
        let mut events = Vec::new();
        let verdict = reader.feed(piece, &mut events);
        for event in events {
            match event {
                Event::Head(head) => seen.push(format!("head {head:?} {:?}", pairs(&head.fields))),
                Event::Body(range) => {
                    let text = piece[range].escape_ascii().to_string();
                    match seen.last_mut().filter(|last| last.starts_with("body ")) {
                        Some(body) => body.push_str(&text),
                        None => seen.push(format!("body {text}")),
                    }
                }
                Event::End(trailers) => seen.push(format!("end {:?}", pairs(&trailers))),
            }
        }
        if let Err(refused) = verdict {
            return (seen, Some(refused));
        }
    }
    (seen, None)
}

fuzz_target!(|input: &[u8]| {
    let [first, data @ ..] = input else { return };
    assert_eq!(read(data, usize::from(*first).max(1)), read(data, data.len().max(1)));
});
