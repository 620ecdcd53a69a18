//! The verdicts on requests, wherever they are cut.

use super::*;

const LIMITS: Limits = Limits { bytes: 200, lines: 5 };

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// An event, with bytes in place of positions; pieces of a body in a row are one.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Seen {
    Head { method: String, path: String, query: Option<String>, fields: Pairs, flags: [bool; 5] },
    Body(Vec<u8>),
    End(Pairs),
    Refused(u16, &'static str, String, String),
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn pairs(fields: &Fields) -> Pairs {
    fields.iter().map(|(name, value, _)| (name.to_vec(), value.to_vec())).collect()
}

fn read_with(limits: Limits, pieces: &[&[u8]]) -> Vec<Seen> {
    let mut reader = Reader::new(limits);
    let mut seen: Vec<Seen> = Vec::new();
    for piece in pieces {
        let mut events = Vec::new();
        let verdict = reader.feed(piece, &mut events);
        for event in events {
            match event {
                Event::Head(head) => {
                    let bytes = &head.fields.bytes;
                    seen.push(Seen::Head {
                        method: text(head.method.of(bytes)),
                        path: text(head.path.of(bytes)),
                        query: head.query.map(|query| text(query.of(bytes))),
                        fields: pairs(&head.fields),
                        flags: [head.modern, head.has_body(), head.keep_alive, head.expects, head.upgrade],
                    });
                }
                Event::Body(range) => {
                    assert!(!range.is_empty());
                    match seen.last_mut() {
                        Some(Seen::Body(body)) => body.extend_from_slice(&piece[range]),
                        _ => seen.push(Seen::Body(piece[range].to_vec())),
                    }
                }
                Event::End(trailers) => seen.push(Seen::End(pairs(&trailers))),
            }
        }
        if let Err(refused) = verdict {
            let Refusal { status, reason } = refused.refusal;
            seen.push(Seen::Refused(status, reason, text(&refused.method), text(&refused.target)));
            assert_eq!(reader.feed(b"x", &mut Vec::new()).map_err(|refused| refused.refusal.reason), Err(reason));
            break;
        }
    }
    seen
}

fn read(data: &[u8]) -> Vec<Seen> {
    read_with(LIMITS, &[data])
}

/// The verdict on one head: its path, or status and reason.
fn verdict(data: &[u8]) -> Result<String, (u16, &'static str)> {
    match read(data).first() {
        Some(Seen::Head { path, .. }) => Ok(path.clone()),
        Some(Seen::Refused(status, reason, ..)) => Err((*status, *reason)),
        other => panic!("{other:?}"),
    }
}

fn head(line: &str, fields: &str) -> Vec<u8> {
    format!("{line}\r\nHost: a\r\n{fields}\r\n").into_bytes()
}

const STREAMS: [&[u8]; 15] = [
    b"GET /a?b HTTP/1.1\r\nHost: a\r\nX: 1 \r\n\r\nGET  /c?  HTTP/1.0\r\nHost: a\r\n\r\nGET /never",
    b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\r\n\nGET /c HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=\"y\"\r\nde\r\n0\r\nT: v\r\n\r\nGET /",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX : a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nhiGET /../ HTTP/1.1\r\nHost: a\r\n\r\nGET",
    b"GET /a HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nGET /c HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\nOPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n\r\n\rGET http://a?b HTTP/1.1\r\nhost: a\r\n\r\nGET \x01",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\nX: y\r\nX: y\r\nX: y\r\nX: y\r\nX: y\r\nX: y\r\n\r\n",
    b"\x16\x03\x01\x02\x00",
    b"GE\xffT / HTTP/1.1\r\n",
    b"GET /\n\n",
    b" a\x01 b HTTP/1.1\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: a\nb\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

#[test]
fn any_cut_gives_the_same() {
    for stream in STREAMS {
        let whole = read(stream);
        for first in 0..stream.len() {
            for second in first..stream.len() {
                let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
                assert_eq!(read_with(LIMITS, &pieces), whole, "{} at {first}, {second}", stream.escape_ascii());
            }
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(read_with(LIMITS, &bytes), whole);
    }
}

#[test]
fn the_limit_comes_first_wherever_the_bytes_are_cut() {
    let streams = [
        &b"\r\n\r\nGET /abc HTTP/1.1\r\nHost: a\r\nX: y\r\nZ\x00: 1\r\n\r\n"[..],
        b"GET /abc HTTP/1.1\r\nHost: a\r\n\r\nGE\x01",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;abcdefgh\r\na\r\n0\r\nX: y\r\nY: \x01\r\n\r\n",
    ];
    for stream in streams {
        for bytes in 1..stream.len() {
            let limits = Limits { bytes, lines: 20 };
            let whole = read_with(limits, &[stream]);
            for size in 1..stream.len() {
                let pieces: Vec<&[u8]> = stream.chunks(size).collect();
                assert_eq!(read_with(limits, &pieces), whole, "limit {bytes}, pieces of {size}");
            }
        }
    }
}

#[test]
fn a_stream_is_heads_bodies_and_ends_in_order() {
    let seen = read(STREAMS[2]);
    let [Seen::Head { method, fields, flags, .. }, body, end] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!((method.as_str(), flags), ("POST", &[true, true, true, false, false]));
    assert_eq!(fields[1], (b"transfer-encoding".to_vec(), b"chunked".to_vec()));
    assert_eq!(body, &Seen::Body(b"abcde".to_vec()));
    assert_eq!(end, &Seen::End(vec![(b"t".to_vec(), b"v".to_vec())]));
}

#[test]
fn an_empty_query_differs_from_none() {
    let queries = read(STREAMS[0]).into_iter().map(|seen| match seen {
        Seen::Head { query, .. } => query,
        other => panic!("{other:?}"),
    });
    assert_eq!(queries.collect::<Vec<_>>(), [Some("b".to_string()), Some(String::new())]);
}

#[test]
fn what_is_behind_the_last_request_is_ignored() {
    for last in [head("GET / HTTP/1.1", "Connection: x, Close\r\n"), head("GET / HTTP/1.0", "")] {
        assert_eq!(read(&[&last[..], b"\x00 junk"].concat()).len(), 1);
    }
    for kept in [head("GET / HTTP/1.1", ""), head("GET / HTTP/1.0", "Connection: keep-alive\r\n")] {
        assert_eq!(read(&[&kept[..], &kept].concat()).len(), 2);
    }
}

#[test]
fn an_upgrade_that_may_be_granted_ends_http() {
    let ask = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let raw = [&head("GET / HTTP/1.1", ask)[..], b"\x81\x85"].concat();
    assert_eq!(read(&raw)[1], Seen::Body(b"\x81\x85".to_vec()));
    assert_eq!(verdict(&head("GET / HTTP/1.1", &format!("{ask}Content-Length: 1\r\n"))), Err((400, "upgrade_body")));
    let old = head("GET / HTTP/1.0", &format!("Connection: keep-alive\r\n{ask}"));
    assert_eq!(read(&[&old[..], &old].concat()).len(), 1);
}

#[test]
fn an_upgrade_that_nobody_follows_is_ignored() {
    for offer in ["Upgrade: h2c\r\n", "Upgrade: TLS/1.2, HTTP/2.0\r\n", "Upgrade: web socket\r\n", ""] {
        let posted = head("POST / HTTP/1.1", &format!("Connection: Upgrade\r\n{offer}Content-Length: 2\r\n"));
        let seen = read(&[&posted[..], b"hi", &posted].concat());
        assert_eq!((seen.len(), &seen[1]), (4, &Seen::Body(b"hi".to_vec())), "{offer}");
    }
}

#[test]
fn a_method_is_any_token() {
    for method in ["LIST", "VERSION-CONTROL", "get", "A!#$%&'*+-.^_`|~9"] {
        assert_eq!(verdict(&head(&format!("{method} /x HTTP/1.1"), "")), Ok("/x".into()), "{method}");
    }
    for method in ["", "G(T", "G\tT", "\u{0}", "PRI"] {
        assert!(verdict(&head(&format!("{method} /x HTTP/1.1"), "")).is_err(), "{method:?}");
    }
}

#[test]
fn a_request_line_is_three_words() {
    let malformed = Err((400, "malformed"));
    for (line, expected) in [
        ("GET  /  HTTP/1.1", Ok("/".into())),
        ("GET / HTTP/1.1 ", malformed.clone()),
        ("GET / /y HTTP/1.1", malformed.clone()),
        ("GET / http/1.1", malformed.clone()),
        ("GET / HTTP/1.2", malformed.clone()),
        ("GET / HTTP/1.1\n", malformed.clone()),
        ("GET ", malformed.clone()),
        ("GET / ", malformed.clone()),
        ("PRI * HTTP/2.0", malformed),
        ("GET / HTTP/2.0", Err((505, "version"))),
        ("GET / HTTP/0.9", Err((505, "version"))),
        ("GET /", Err((505, "version"))),
        ("GET a/b HTTP/1.1", Err((400, "malformed_target"))),
        ("GET /\u{1} HTTP/1.1", Err((400, "malformed_target"))),
        ("CONNECT a:443 HTTP/1.1", Err((400, "method_connect"))),
        ("TRACE / HTTP/1.1", Err((400, "method_trace"))),
    ] {
        assert_eq!(verdict(&head(line, "")), expected, "{line:?}");
    }
}

#[test]
fn a_head_with_two_readings_is_refused() {
    for (fields, reason) in [
        ("Host: a\r\n", "host_repeated"),
        ("Content-Length: 1\r\nContent-Length: 1\r\n", "length_repeated"),
        ("Content-Length: 01\r\n", "length"),
        ("Content-Length: +1\r\n", "length"),
        ("Content-Length:\r\n", "length"),
        ("Content-Length: 1, 1\r\n", "length"),
        ("Content-Length: 1234567890123456789\r\n", "length"),
        ("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", "length_and_coding"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "coding_repeated"),
        ("Transfer-Encoding: gzip, chunked\r\n", "coding"),
        ("Transfer-Encoding: identity\r\n", "coding"),
        ("Transfer_Encoding: chunked\r\n", "framing_alias"),
        ("content.length: 1\r\n", "framing_alias"),
        ("X : a\r\n", "malformed"),
        ("X: a\n", "malformed"),
        ("X: a\r\n b\r\n", "malformed"),
        ("X\r\n", "malformed"),
        (": a\r\n", "malformed"),
    ] {
        assert_eq!(verdict(&head("POST / HTTP/1.1", fields)), Err((400, reason)), "{fields:?}");
    }
    for data in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"GET / HTTP/1.0\r\nX: a\r\n\r\n"] {
        assert_eq!(verdict(data), Err((400, "host_missing")));
    }
    assert_eq!(verdict(b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"), Err((400, "host_invalid")));
    assert_eq!(verdict(&head("POST / HTTP/1.0", "Transfer-Encoding: chunked\r\n")), Err((400, "coding")));
    for value in ["x", "100-continue, x", "", "100-continue\r\nExpect: 100-continue"] {
        let expectation = head("POST / HTTP/1.1", &format!("Expect: {value}\r\nContent-Length: 1\r\n"));
        assert_eq!(verdict(&expectation), Err((417, "expectation")));
    }
}

#[test]
fn blanks_around_a_value_and_case_decide_nothing() {
    let odd =
        b"POST / HTTP/1.1\r\nHost: \t a \t\r\nTransfer-Encoding: CHUNKED \r\nExpect: 100-Continue\t\r\n\r\n0\r\n\r\n";
    assert!(matches!(&read(odd)[..], [Seen::Head { flags: [_, true, _, true, _], .. }, Seen::End(_)]));
    assert_eq!(verdict(&head("POST / HTTP/1.1", "Content-Length: 3 \r\n")), Ok("/".into()));
}

#[test]
fn what_is_kept_is_bounded() {
    let long = vec![b'a'; 300];
    for (start, refusal) in [
        (&b"GET /"[..], (414, "target_bytes")),
        (b"G", (431, "head_bytes")),
        (b"GET / HTTP/1.1\r\nX: ", (431, "head_bytes")),
    ] {
        let data = [start, &long].concat();
        assert_eq!(verdict(&data), Err(refusal));
        let mut reader = Reader::new(LIMITS);
        for byte in data.chunks(1) {
            let _ = reader.feed(byte, &mut Vec::new());
            assert!(reader.section.size() <= LIMITS.bytes + 20);
        }
    }
    assert_eq!(verdict(&b"\r\n".repeat(150)), Err((431, "head_bytes")));
    assert_eq!(verdict(&head("GET / HTTP/1.1", &"X: y\r\n".repeat(5))), Err((431, "head_lines")));
    for framing in ["1;a".to_string() + &"b".repeat(300), "0\r\nX: ".to_string() + &"b".repeat(300)] {
        let data = [&head("POST / HTTP/1.1", "Transfer-Encoding: chunked\r\n")[..], framing.as_bytes()].concat();
        assert!(matches!(read(&data).last(), Some(Seen::Refused(431, "trailer_bytes", ..))));
    }
}

#[test]
fn a_limit_of_bytes_counts_target_and_fields() {
    let fit = LIMITS.bytes - "/".len() - "Host: a\r\nX: \r\n".len();
    for (size, expected) in [(fit, Ok("/".to_string())), (fit + 1, Err((431, "head_bytes")))] {
        assert_eq!(verdict(&head("GET / HTTP/1.1", &format!("X: {}\r\n", "a".repeat(size)))), expected);
    }
}

#[test]
fn a_broken_body_is_refused_behind_its_head() {
    for (rest, reason) in [
        ("zz\r\n", "malformed_body"),
        ("3 \r\nabc\r\n", "malformed_body"),
        ("3\nabc", "malformed_body"),
        ("3\r\nabcd\r\n", "malformed_body"),
        ("0\r\nX: a\nb\r\n\r\n", "malformed_body"),
        ("0\r\nX : a\r\n\r\n", "malformed_body"),
        ("0\r\nContent-Length: 3\r\n\r\n", "malformed_body"),
        ("0\r\nTransfer-Encoding: chunked\r\n\r\n", "malformed_body"),
        ("0\r\nA:\r\nB:\r\nC:\r\nD:\r\nE:\r\nF:\r\n\r\n", "trailer_bytes"),
    ] {
        let data = [&head("POST / HTTP/1.1", "Transfer-Encoding: chunked\r\n")[..], rest.as_bytes()].concat();
        match read(&data).last() {
            Some(Seen::Refused(_, refused, ..)) => assert_eq!(*refused, reason, "{rest:?}"),
            other => panic!("{rest:?}: {other:?}"),
        }
    }
}

#[test]
fn a_refusal_carries_what_was_read_of_the_request_line() {
    for (data, method, target) in [
        (&b"GET /a?b HTTP/1.1\r\n\r\n"[..], "GET", "/a?b"),
        (b"GET /a\x01 HTTP/1.1\r\n", "GET", "/a"),
        (b"\x16\x03 /a", "", ""),
        (b"GE T", "", ""),
    ] {
        match read(data).last() {
            Some(Seen::Refused(_, _, first, second)) => assert_eq!((&first[..], &second[..]), (method, target)),
            other => assert!(other.is_none(), "{other:?}"),
        }
    }
    let mut reader = Reader::new(LIMITS);
    assert!(!reader.in_head());
    reader.feed(b"GET /a", &mut Vec::new()).expect("a beginning");
    assert!(reader.in_head());
    assert_eq!(reader.request_line(), (b"GET".to_vec(), b"/a".to_vec()));
}

#[test]
fn a_scope_passes_the_same_judge() {
    let scope = Scope { method: b"GET", version: b"2", path: b"/a", query: b"" };
    let judged = |scope: Scope<'_>, headers: &[(&[u8], &[u8])]| {
        judge_scope(&scope, headers.iter().copied()).map_err(|refusal| refusal.reason)
    };
    let host: (&[u8], &[u8]) = (b"Host", b"a ");
    assert_eq!(judged(scope, &[host]), Ok(()));
    assert_eq!(judged(scope, &[host, (b"host", b"b")]), Err("host_repeated"));
    assert_eq!(judged(scope, &[host, (b"x a", b"b")]), Err("field_name"));
    for value in [&b"a\r"[..], b"a\nb", b"\0"] {
        assert_eq!(judged(scope, &[host, (b"x", value)]), Err("field_value"));
    }
    assert_eq!(judged(Scope { method: b"GE T", ..scope }, &[host]), Err("method_invalid"));
    assert_eq!(judged(Scope { method: b"TRACE", ..scope }, &[host]), Err("method_trace"));
    assert_eq!(judged(Scope { path: b"/a/..", ..scope }, &[host]), Err("path_dots"));
    assert_eq!(judged(Scope { query: b"a#b", ..scope }, &[host]), Err("target_fragment"));
    let coded: (&[u8], &[u8]) = (b"transfer-encoding", b"chunked");
    assert_eq!(judged(Scope { version: b"1.0", ..scope }, &[host, coded]), Err("coding"));
}
