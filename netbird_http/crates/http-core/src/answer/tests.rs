//! The verdicts on answers, wherever they are cut.

use super::framing::stated_timeout;
use super::*;

const LIMITS: Limits = Limits { bytes: 400, lines: 5 };

/// Status, fields, body, and: complete, keep_alive, excess, trailers.
type Read = (u16, Vec<(Vec<u8>, Vec<u8>)>, Vec<u8>, bool, bool, bool, usize);

fn read(pieces: &[&[u8]]) -> Result<Read, Violation> {
    let mut answer = Answer::new(Asked::default(), LIMITS);
    let mut body = Vec::new();
    for piece in pieces {
        let mut ranges = Vec::new();
        answer.feed(piece, &mut ranges)?;
        for range in ranges {
            body.extend_from_slice(&piece[range]);
        }
    }
    let fields = answer.headers.iter().map(|(name, value, _)| (name.to_vec(), value.to_vec())).collect();
    let trailers = answer.trailers.lines.len();
    Ok((answer.status, fields, body, answer.complete, answer.keep_alive, answer.excess, trailers))
}

const ANSWERS: [&[u8]; 12] = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3;a=\"b\"\r\nabc\r\n0\r\nX: y\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2 \r\nab\r\n0\r\n\r\nmore",
    b"HTTP/1.1 103 Hints\r\nLink: a\r\n\r\nHTTP/1.0 200\r\n\r\nuntil close",
    b"HTTP/1.1 204 None\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\nContent-Length : 2\n\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2, 02\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nX: a\nY: b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nA: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\nE: 5\r\nF: 6\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 2\r\n\r\n",
    b"SSH-2.0-x\r\n",
];

#[test]
fn any_cut_gives_the_same() {
    for answer in ANSWERS {
        let whole = read(&[answer]);
        for first in 0..answer.len() {
            for second in first..answer.len() {
                let pieces = [&answer[..first], &answer[first..second], &answer[second..]];
                assert_eq!(read(&pieces), whole, "{} at {first}, {second}", answer.escape_ascii());
            }
        }
    }
}

#[test]
fn what_is_written_askew_is_read_and_ends_the_connection() {
    for (index, kept) in [(0, true), (1, true), (2, false), (5, false), (6, false)] {
        let (status, _, _, complete, keep_alive, ..) = read(&[ANSWERS[index]]).expect("an answer");
        assert_eq!((status, complete, keep_alive), (200, true, kept), "{}", ANSWERS[index].escape_ascii());
    }
    for violation in &ANSWERS[7..] {
        assert!(read(&[violation]).is_err(), "{}", violation.escape_ascii());
    }
}

#[test]
fn equal_lengths_are_one_in_its_shortest_form() {
    let (_, fields, ..) = read(&[ANSWERS[6]]).expect("an answer");
    assert_eq!(fields, vec![(b"content-length".to_vec(), b"2".to_vec())]);
    assert!(read(&[b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000000000\r\n\r\n"]).is_err());
}

#[test]
fn what_is_kept_is_bounded() {
    let start = b"HTTP/1.1 200 OK\r\n";
    for rest in [&b"X: a"[..], b"\xff", b"\r", b"X: a\r\n"] {
        let mut answer = Answer::new(Asked::default(), LIMITS);
        answer.feed(start, &mut Vec::new()).expect("a start");
        let failed = (0..1000).any(|_| answer.feed(rest, &mut Vec::new()).is_err());
        assert!(failed && answer.section.size() <= LIMITS.bytes + rest.len());
    }
    let mut answer = Answer::new(Asked::default(), LIMITS);
    answer.feed(ANSWERS[1].split_at(49).0, &mut Vec::new()).expect("a head");
    assert!((0..1000).any(|_| answer.feed(b"1;a=b", &mut Vec::new()).is_err()));
}

#[test]
fn a_stated_time_is_a_parameter_by_its_name() {
    for (value, seconds) in [
        (&b"timeout=5, max=100"[..], Some(5)),
        (b"max=100, Timeout = 7", Some(7)),
        (b"timeout=\"15\"", Some(15)),
        (b"timeout=x;timeout=3", Some(3)),
        (b"timeout=12345678901", Some(123_456_789)),
        (b"max=100", None),
        (b"xtimeout=5", None),
        (b"timeout=-1", None),
        (b"timeout=", None),
    ] {
        assert_eq!(stated_timeout(value), seconds, "{}", value.escape_ascii());
    }
}

#[test]
fn the_limit_comes_first_wherever_the_bytes_are_cut() {
    let bytes = b"HTTP/1.1 102 a\r\n\r\nHTTP\xff";
    for limit in 16..bytes.len() {
        let whole = violation(bytes, bytes.len(), limit);
        for size in 1..bytes.len() {
            assert_eq!(violation(bytes, size, limit), whole, "limit {limit}, pieces of {size}");
        }
    }
}

fn violation(bytes: &[u8], size: usize, limit: usize) -> Option<Violation> {
    let mut answer = Answer::new(Asked::default(), Limits { bytes: limit, lines: 20 });
    bytes.chunks(size).find_map(|piece| answer.feed(piece, &mut Vec::new()).err())
}
