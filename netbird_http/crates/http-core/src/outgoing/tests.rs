use super::*;

fn rules(owners: &[(&[u8], &str)], custom: &[(&[u8], &[u8])]) -> OutgoingRules {
    let destination =
        Destination { path: b"/base/".to_vec(), query: b"k=v".to_vec(), cut: 4, host: Some(b"up:8080".to_vec()) };
    let owners = owners.iter().map(|(name, owner)| (name.to_vec(), owner.to_string())).collect();
    let custom = custom.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    OutgoingRules::new(destination, owners, Cookies::default(), custom, b"us")
}

const REQUEST: Request<'_> = Request {
    method: b"GET",
    raw_path: b"/app/a%2Fb",
    query: b"x=1&session_token=y",
    empty_query: false,
    authority: b"wiki.example.com",
    scheme: b"https",
    address: b"192.0.2.7",
    upgrades: false,
    framed_in_head: true,
    carried_body: Some(false),
};

fn written(rules: &OutgoingRules, request: &Request<'_>, raw: &[(&[u8], &[u8])]) -> Result<String, Unsendable> {
    let draft = rules.begin(request, raw.iter().copied())?;
    Ok(String::from_utf8(draft.written()?.head).unwrap())
}

#[test]
fn a_head_has_the_upstreams_target_and_the_cores_fields() {
    let head = written(&rules(&[], &[]), &REQUEST, &[(b"accept", b"*/*"), (b"keep-alive", b"5")]).unwrap();

    assert_eq!(
        head,
        "GET /base/a%2Fb?k=v&x=1 HTTP/1.1\r\nhost: up:8080\r\naccept: */*\r\nx-forwarded-for: 192.0.2.7\r\n\
         x-real-ip: 192.0.2.7\r\nx-forwarded-host: wiki.example.com\r\nx-forwarded-proto: https\r\n\
         x-forwarded-port: 443\r\nvia: 1.1 us\r\n\r\n"
    );
}

#[test]
fn an_empty_query_is_sent_as_one() {
    let mut rules = rules(&[], &[]);
    assert_eq!(rules.target(b"/app/a", b"", true), b"/base/a?k=v");
    rules.query.clear();
    assert_eq!(rules.target(b"/app/a", b"", true), b"/base/a?");
    assert_eq!(rules.target(b"/app/a", b"", false), b"/base/a");
    assert_eq!(rules.target(b"/app/a", b"session_token=x", false), b"/base/a");
}

#[test]
fn no_name_of_ours_and_no_alias_of_a_framing_name_passes() {
    for name in [&b"x-netbird-user"[..], b"x_netbird.user", b"content_length", b"transfer.encoding", b"x-forwarded-a"] {
        let head = written(&rules(&[], &[]), &REQUEST, &[(name, b"sent")]).unwrap();
        assert!(!head.contains("sent"), "{head}");
    }
}

#[test]
fn a_listed_name_stays_behind_and_an_owned_one_is_not_the_cores() {
    let owned = rules(&[(b"x-real-ip", "forwarding")], &[]);
    let head =
        written(&owned, &REQUEST, &[(b"connection", b"close, X_A"), (b"x-a", b"sent"), (b"x-b", b"kept")]).unwrap();

    assert!(!head.contains("sent") && head.contains("x-b: kept") && !head.contains("x-real-ip"), "{head}");
    assert_eq!(owned.refusal(b"X-Real-IP", "forwarding"), None);
    assert!(owned.refusal(b"x-real-ip", "other").is_some());
}

#[test]
fn only_owners_may_set_names() {
    let rules = rules(&[(b"x-netbird-user", "identity")], &[]);

    for core in [&b"host"[..], b"Via", b"content-length", b"x_forwarded_for", b"te"] {
        assert!(rules.refusal(core, "identity").is_some(), "{}", String::from_utf8_lossy(core));
    }
    assert_eq!(rules.refusal(b"x-netbird-user", "identity"), None);
    assert!(rules.refusal(b"x-netbird-other", "identity").is_some());
    assert_eq!(rules.refusal(b"x-anything", "identity"), None);
}

#[test]
fn two_framings_or_a_break_are_not_sent() {
    let plain = rules(&[], &[]);
    for raw in [
        &[(&b"content-length"[..], &b"1"[..]), (b"content-length", b"1")][..],
        &[(b"content-length", b"+1")],
        &[(b"content-length", b"")],
        &[(b"content-length", b"1"), (b"transfer-encoding", b"chunked")],
        &[(b"a", b"b\r\nc: d")],
        &[(b"a", b"b\0")],
    ] {
        assert!(written(&plain, &REQUEST, raw).is_err());
    }
    assert!(written(&plain, &Request { method: b"GET / HTTP/1.1\r\n", ..REQUEST }, &[]).is_err());
}

#[test]
fn an_upgrade_asks_for_no_protocol_that_carries_requests() {
    let request = Request { upgrades: true, ..REQUEST };
    let head = written(&rules(&[], &[]), &request, &[(b"upgrade", b"h2c, websocket, TLS/1.0, a b")]).unwrap();

    assert!(head.contains("connection: Upgrade\r\nupgrade: websocket\r\n"), "{head}");
}

#[test]
fn a_custom_header_replaces_the_clients() {
    let rules = rules(&[(b"x-own", "p")], &[(b"X-Key", b"ours"), (b"Via", b"no"), (b"X-Own", b"no"), (b"Host", b"no")]);
    let head = written(&rules, &REQUEST, &[(b"x_key", b"theirs")]).unwrap();

    assert!(head.contains("x-key: ours\r\n") && !head.contains("theirs") && !head.contains(": no"), "{head}");
}
