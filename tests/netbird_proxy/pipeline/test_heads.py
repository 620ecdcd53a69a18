"""What goes to an upstream and what comes back: hop-by-hop rules, paths, Host, forwarding, cookies, redirects."""
# Over 500 lines: one set of head rules, with the tables of names.

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_http import WrittenHead
from netbird_proxy.api.errors import BadRequest, RouteRefused
from netbird_proxy.api.headers import Headers
from netbird_proxy.api.model import Upstream
from netbird_proxy.api.steps import RequestTransform
from netbird_proxy.pipeline.bound import BoundTransform
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.pipeline.head_rules import HeadRules, without_session_token
from netbird_proxy.pipeline.request_heads import RequestHeads, host_field
from netbird_proxy.pipeline.response_heads import ResponseHeads, informational, split_authority
from netbird_proxy.testing.makers import HOST, exchange, host_origin, route, tunnel_origin, upstream


def write(
    made: Exchange | None = None,
    *,
    to: Upstream | None = None,
    rules: HeadRules | None = None,
    body: bool | None = False,
    **spec: Any,
) -> WrittenHead:
    made = made or exchange()
    target = to or upstream()
    return RequestHeads(route(to=target, **spec), target, rules or HeadRules()).write(made, body)


def fields(written: WrittenHead) -> list[tuple[bytes, bytes]]:
    lines = written.head.removesuffix(b"\r\n\r\n").split(b"\r\n")[1:]
    return [(name, value) for line in lines for name, _, value in [line.partition(b": ")]]


def values(written: WrittenHead, name: bytes) -> list[bytes]:
    return [value for key, value in fields(written) if key == name]


def target(written: WrittenHead) -> bytes:
    return written.head.split(b" ")[1]


@pytest.mark.parametrize(
    ("prefix", "base", "path", "sent"),
    [
        (b"/", b"/", "/", b"/"),
        (b"/", b"/", "/a/b?c=d", b"/a/b?c=d"),
        (b"/app", b"/app", "/app", b"/app"),
        (b"/hook", b"/api/webhook", "/hook", b"/api/webhook"),
        (b"/hook", b"/api/webhook", "/hook/", b"/api/webhook/"),
        (b"/hook", b"/api/webhook/", "/hook", b"/api/webhook/"),
        (b"/hook", b"/api/webhook?k=v", "/hook?x=1", b"/api/webhook?k=v&x=1"),
        (b"/", b"/base", "/", b"/base/"),
        (b"/app", b"/app", "/app/x", b"/app/x"),
        (b"/h", b"/", "/h", b"/"),
        (b"/h", b"/", "/h/a", b"/a"),
        (b"/h", b"/base/", "/h/a", b"/base/a"),
        (b"/", b"/base", "/a", b"/base/a"),
        (b"/h", b"/", "/h//a%2Fb/./;p=1/%7Ex", b"//a%2Fb/./;p=1/%7Ex"),
        (b"/h", b"/base?k=v", "/h/a?x=1", b"/base/a?k=v&x=1"),
        (b"/h", b"/base?k=v", "/h/a", b"/base/a?k=v"),
    ],
)
def test_path_is_sent_as_it_came(prefix: bytes, base: bytes, path: str, sent: bytes) -> None:
    """The literal prefix is replaced by the target's path, with one slash between and none added behind; every other
    byte stays."""
    assert target(write(exchange(path), to=upstream(path=base), prefix=prefix)) == sent


def test_kept_prefix_is_sent() -> None:
    """A route that does not strip sends the whole path behind the target's own."""
    assert target(write(exchange("/app/x"), prefix=b"/app", strip_prefix=False)) == b"/app/x"


@given(st.binary(min_size=0, max_size=30).map(lambda raw: bytes(33 + one % 94 for one in raw).replace(b"?", b"/")))
def test_bytes_after_the_prefix_never_change(rest: bytes) -> None:
    """Promise 4, for any bytes that a request target can carry."""
    made = exchange()
    made.raw_path = b"/app/" + rest
    assert target(write(made, to=upstream(path=b"/base"), prefix=b"/app")) == b"/base/" + rest


def test_hop_by_hop_fields_stay_behind() -> None:
    """Connection's own, those it lists, and the framing of the client's connection do not go on."""
    made = exchange(
        headers=[
            (b"connection", b"keep-alive, X-Hop"),
            (b"connection", b"other"),
            (b"x-hop", b"1"),
            (b"x_hop", b"1"),
            (b"other", b"1"),
            (b"keep-alive", b"1"),
            (b"proxy-connection", b"1"),
            (b"proxy-authorization", b"1"),
            (b"proxy_authorization", b"1"),
            (b"transfer_encoding", b"chunked"),
            (b"content_length", b"7"),
            (b"upgrade", b"h2c"),
            (b"http2-settings", b"1"),
            (b"expect", b"100-continue"),
            (b"trailer", b"x"),
            (b"x-end", b"to-end"),
        ]
    )

    written = write(made)

    assert [name for name, _ in fields(written)] == [
        b"host",
        b"x-end",
        b"x-forwarded-for",
        b"x-real-ip",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-forwarded-port",
        b"via",
    ]
    assert (written.has_body, written.chunked, written.upgrade) == (False, False, ())


def test_te_trailers_is_said_anew() -> None:
    """A client that takes trailers is heard; other codings that it takes concern its own connection."""
    written = write(exchange(headers=[(b"te", b"gzip, trailers"), (b"connection", b"TE")]))

    assert values(written, b"te") == [b"trailers"]
    assert values(written, b"connection") == [b"TE"]
    assert values(write(exchange(headers=[(b"te", b"gzip")])), b"te") == []


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://10.0.0.7:80", b"10.0.0.7"),
        ("http://10.0.0.7:8080", b"10.0.0.7:8080"),
        ("https://a.example:443", b"a.example"),
        ("https://a.example:80", b"a.example:80"),
        ("http://[fd00::7]:80", b"[fd00::7]"),
        ("http://[fd00::7]:81", b"[fd00::7]:81"),
    ],
)
def test_host_is_the_targets(url: str, host: bytes) -> None:
    """Without `pass_host_header` the upstream hears its own name, its port only where it is unusual."""
    assert values(write(to=upstream(url)), b"host") == [host]
    assert host_field(upstream(url)) == host


def test_host_can_be_the_clients() -> None:
    """With `pass_host_header` the upstream hears what the client said, port included, and never twice."""
    made = exchange()
    made.authority = b"App.Example.com:8443"
    assert values(write(made, pass_host_header=True), b"host") == [b"App.Example.com:8443"]


def test_forwarding_fields_are_the_sockets() -> None:
    """What a client says about where it comes from is dropped under every alias; the connection says it."""
    made = exchange(
        origin=tunnel_origin("100.64.0.9"),
        scheme="https",
        headers=[
            (b"forwarded", b"for=1.2.3.4"),
            (b"x-forwarded-for", b"1.2.3.4"),
            (b"x_forwarded_for", b"1.2.3.4"),
            (b"x.forwarded.proto", b"1.2.3.4"),
            (b"x-forwarded-anything", b"1.2.3.4"),
            (b"x-real-ip", b"1.2.3.4"),
            (b"X-Real_Ip".lower(), b"1.2.3.4"),
        ],
    )

    written = write(made)

    assert b"1.2.3.4" not in written.head
    assert values(written, b"x-forwarded-for") == [b"100.64.0.9"]
    assert values(written, b"x-real-ip") == [b"100.64.0.9"]
    assert values(written, b"x-forwarded-proto") == [b"https"]
    assert values(written, b"x-forwarded-port") == [b"443"]
    assert values(written, b"x-forwarded-host") == [HOST.encode()]


def test_forwarding_fields_without_an_origin() -> None:
    """Embedded, the server's word about its client is all there is; where it has none, nothing is said."""
    made = exchange()
    made.origin, made.client_address, made.authority = None, "198.51.100.4", b"app.example.com:8080"
    assert values(write(made), b"x-forwarded-for") == [b"198.51.100.4"]
    assert values(write(made), b"x-forwarded-port") == [b"8080"]
    made.client_address = ""
    assert values(write(made), b"x-forwarded-for") == []


def test_forwarding_fields_that_a_plugin_owns_are_its_own() -> None:
    """A plugin that owns one of these names says it; the core still says the others."""
    spec, to = route(), upstream()

    def say(_exchange: object, outgoing: Any) -> None:
        outgoing.set(b"X-Forwarded-For", b"9.9.9.9")

    bound = BoundTransform("forwarding", RequestTransform(say, owns=(b"x-forwarded-for",)))
    rules = HeadRules({b"x-forwarded-for": "forwarding"})

    written = RequestHeads(spec, to, rules, [bound]).write(exchange(), False)

    assert values(written, b"x-forwarded-for") == [b"9.9.9.9"]
    assert values(written, b"x-real-ip") == [b"203.0.113.9"]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"a=1; b=2", b"a=1; b=2"),
        (b"a=1; nb_session=x; b=2", b"a=1; b=2"),
        (b"nb_session=x; a=1", b"a=1"),
        (b"NB_Session=x;a=1", b"a=1"),
        (b"a=1;nb_session=x", b"a=1"),
        (b"a=1; __Host-nb_session=x;  b= 2 ", b"a=1;  b= 2"),
        (b"__host-nb_login_1=x;__HOST-NB_2=y", b""),
        (b"nb_session", b""),
        (b'a="x; nb_session=y"', b'a="x'),
        (b"nb_sessions=1; xnb_session=2", b"nb_sessions=1; xnb_session=2"),
        (b"plugin=1; a=2", b"a=2"),
    ],
)
def test_our_cookies_stay_with_us(sent: bytes, kept: bytes) -> None:
    """Session cookies and those that plugins declared never reach an upstream; what stays keeps its bytes."""
    rules = HeadRules(cookies={b"plugin": "shop"})
    written = write(exchange(headers=[(b"cookie", sent)]), rules=rules)
    assert values(written, b"cookie") == ([kept] if kept else [])
    assert rules.incoming([(b"cookie", sent)]).get_all(b"cookie") == ([kept] if kept else [])


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"a=1&b=%20", b"a=1&b=%20"),
        (b"session_token=x", b""),
        (b"a=1&session_token=x&b=2", b"a=1&b=2"),
        (b"session_token&a=+%zz", b"a=+%zz"),
        (b"%73ession_token=x&a=1", b"a=1"),
        (b"session%5Ftoken=x&&a=1", b"&a=1"),
        (b"my_session_token=1", b"my_session_token=1"),
    ],
)
def test_session_token_stays_with_us(sent: bytes, kept: bytes) -> None:
    """It leaves the query under any escape; every other byte stays."""
    assert without_session_token(sent) == kept


OUR_COOKIES = st.sampled_from(
    [b"nb_session=m", b"NB_SESSION=m", b" __Host-nb_session=m", b"__host-NB_login_9=m", b"nb_session"]
)
THEIR_COOKIES = st.binary(max_size=8).map(lambda raw: b"c" + bytes(one for one in raw if one not in b";\r\n\0") + b"=1")


@given(st.lists(st.tuples(st.booleans(), OUR_COOKIES, THEIR_COOKIES), max_size=8))
def test_cookies_are_taken_out_and_nothing_else_moves(line: list[tuple[bool, bytes, bytes]]) -> None:
    """Whatever the others look like: theirs stay in order, to the byte, and none of ours does."""
    rules = HeadRules()
    sent = b";".join(ours if is_ours else theirs for is_ours, ours, theirs in line)
    kept = [theirs for is_ours, _, theirs in line if not is_ours]

    assert rules.cookie(sent) == b";".join(kept).strip(b" \t")
    assert rules.cookie(rules.cookie(sent)) == rules.cookie(sent)


QUERY_PART = st.binary(max_size=8).map(lambda raw: bytes(33 + one % 94 for one in raw if 33 + one % 94 not in b"&#"))
SPELLED = st.lists(st.booleans(), min_size=13, max_size=13).map(
    lambda escaped: b"".join(
        b"%%%02x" % byte if yes else bytes([byte]) for yes, byte in zip(escaped, b"session_token", strict=True)
    )
)


@given(
    st.lists(
        st.one_of(st.tuples(st.just(True), SPELLED, QUERY_PART), st.tuples(st.just(False), QUERY_PART, QUERY_PART)),
        max_size=6,
    )
)
def test_session_token_is_taken_out_and_nothing_else_moves(parts: list[tuple[bool, bytes, bytes]]) -> None:
    """Under any escape; the other parts stay in order, to the byte."""
    said = [(ours, name + b"=" + value if ours else b"x" + name + value) for ours, name, value in parts]

    kept = b"&".join(part for ours, part in said if not ours)

    assert without_session_token(b"&".join(part for _, part in said)) == kept


def test_session_token_does_not_reach_the_target() -> None:
    """The query that is sent is the cleaned one, and no `?` is left of an empty one."""
    assert target(write(exchange("/a?session_token=x"))) == b"/a"
    assert target(write(exchange("/a?session_token=x&b=1"))) == b"/a?b=1"


@pytest.mark.parametrize(
    ("headers", "carried", "has_body", "chunked", "line"),
    [
        ([], False, False, False, None),
        ([(b"content-length", b"0")], False, False, False, b"content-length: 0"),
        ([(b"content-length", b"5")], True, True, False, b"content-length: 5"),
        ([(b"transfer-encoding", b"chunked")], True, True, True, b"transfer-encoding: chunked"),
        ([(b"content-length", b"5")], None, True, False, b"content-length: 5"),
        ([], None, False, False, None),
    ],
)
def test_body_is_framed_anew(
    headers: list[tuple[bytes, bytes]], carried: bool | None, has_body: bool, chunked: bool, line: bytes | None
) -> None:
    """One length or one coding, written by us, or neither."""
    written = write(exchange(method="POST", headers=headers), body=carried)
    framing = [one for one in written.head.split(b"\r\n") if one.startswith((b"content-length", b"transfer-encoding"))]
    assert (written.has_body, written.chunked) == (has_body, chunked)
    assert framing == ([line] if line else [])


@pytest.mark.parametrize(("method", "has_body"), [("GET", False), ("POST", True)])
def test_later_versions_frame_outside_the_head(method: str, has_body: bool) -> None:
    """Under an HTTP/2 server a request without a length may have a body: it is sent in chunks."""
    written = write(exchange(method=method, http_version="2"), body=None)
    assert (written.has_body, written.chunked) == (has_body, has_body)


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"5"), (b"content-length", b"5")],
        [(b"content-length", b"+5")],
        [(b"content-length", b"")],
        [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")],
    ],
)
def test_unclear_length_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    """Two ways to frame a body are one too many: nothing is sent."""
    with pytest.raises(BadRequest):
        write(exchange(method="POST", headers=headers), body=None)


def test_connection_cannot_list_away_the_framing() -> None:
    """`Connection: host, content-length` removes what it can, which is not the framing."""
    made = exchange(method="POST", headers=[(b"connection", b"host, content-length"), (b"content-length", b"3")])
    written = write(made, body=True)
    assert values(written, b"host") == [b"10.0.0.7:8080"]
    assert values(written, b"content-length") == [b"3"]


def test_cookie_that_connection_lists_is_hop_by_hop() -> None:
    """A client may say that its cookie is for the next hop only; a custom one replaces the client's."""
    listed = exchange(headers=[(b"connection", b"cookie"), (b"cookie", b"a=1")])
    assert values(write(listed), b"cookie") == []
    custom = upstream(custom_headers=((b"Cookie", b"b=2"),))
    assert values(write(exchange(headers=[(b"cookie", b"a=1")]), to=custom), b"cookie") == [b"b=2"]


def test_custom_headers_replace_and_lose_to_the_core() -> None:
    """An operator's fields replace the client's, and cannot frame, route or claim where it came from."""
    to = upstream(
        custom_headers=(
            (b"X-Team", b"blue"),
            (b"Host", b"evil"),
            (b"Content-Length", b"9"),
            (b"X-Forwarded-For", b"9.9.9.9"),
        )
    )
    written = write(exchange(headers=[(b"x-team", b"red")]), to=to)
    assert values(written, b"x-team") == [b"blue"]
    assert values(written, b"host") == [b"10.0.0.7:8080"]
    assert values(written, b"content-length") == []
    assert values(written, b"x-forwarded-for") == [b"203.0.113.9"]


@pytest.mark.parametrize(
    "fields_",
    [((b"x a", b"1"),), ((b"", b"1"),), ((b"x-a", b"1\r\nx-b: 2"),), ((b"x-a\r\n", b"1"),), ((b"x-a", b"\0"),)],
)
def test_custom_header_that_cannot_be_sent_refuses_the_route(fields_: Any) -> None:
    """A field that would break the head is found at apply, not at a request."""
    with pytest.raises(RouteRefused, match="custom header"):
        write(to=upstream(custom_headers=fields_))


@pytest.mark.parametrize("path", [b"", b"x", b"/a b", b"/a\r\nb", b"/a#b", b"/\xff"])
def test_target_path_that_cannot_be_sent_refuses_the_route(path: bytes) -> None:
    """So does a target path that no request line can carry."""
    with pytest.raises(RouteRefused, match="target path"):
        write(to=upstream(path=path))


def test_via_names_us_behind_the_others() -> None:
    """Our line is added to those that are there."""
    written = write(exchange(headers=[(b"via", b"1.1 other")]), rules=HeadRules(pseudonym=b"us"))
    assert values(written, b"via") == [b"1.1 other", b"1.1 us"]


@pytest.mark.parametrize(("token", "asks"), [(b"websocket", True), (b"h2c", False), (b"", False), (b"foo/2", True)])
def test_upgrade_is_noticed_under_a_foreign_server(token: bytes, asks: bool) -> None:
    """There nobody has looked for one yet; h2c is an offer that may be ignored."""
    made = exchange(headers=[(b"connection", b"upgrade"), (b"upgrade", token)])
    written = write(made, body=None)
    assert written.upgrade == ((token,) if asks else ())
    assert values(written, b"upgrade") == list(written.upgrade)


# Responses ------------------------------------------------------------------------------------------------------------


def read(raw: list[tuple[bytes, bytes]], status: int = 200, made: Exchange | None = None, **spec: Any) -> Any:
    target_ = upstream()
    heads = ResponseHeads(route(to=target_, **spec), target_, HeadRules(cookies={b"plugin": "shop"}))
    return heads.read(made or exchange(), status, raw)


def test_response_head_loses_what_concerned_the_upstreams_connection() -> None:
    """Hop-by-hop fields and those that `Connection` lists stay behind; order and duplicates of the rest stay."""
    headers, length, trailing = read(
        [
            (b"date", b"now"),
            (b"connection", b"close, x-hop"),
            (b"x-hop", b"1"),
            (b"keep-alive", b"timeout=5"),
            (b"transfer-encoding", b"chunked"),
            (b"upgrade", b"h2c"),
            (b"set-cookie", b"a=1"),
            (b"set-cookie", b"b=2"),
        ]
    )
    assert headers == [(b"date", b"now"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    assert (length, trailing) == (None, False)


def test_upstream_cannot_list_away_length_and_cookies() -> None:
    """A `Connection` that lists what frames the answer is wrong about it."""
    headers, length, _ = read([(b"connection", b"content-length"), (b"content-length", b"3")])
    assert (headers, length) == ([(b"content-length", b"3")], 3)


def test_length_of_nothing_is_dropped() -> None:
    """204 has no length; 304 keeps the one of what it stands for."""
    assert read([(b"content-length", b"3")], 204) == ([], None, False)
    assert read([(b"content-length", b"3")], 304)[0] == [(b"content-length", b"3")]


def test_announced_trailers_are_announced() -> None:
    """A `Trailer` field goes on only where trailers can follow."""
    assert read([(b"trailer", b"x-sum")]) == ([(b"trailer", b"x-sum")], None, True)
    assert read([(b"trailer", b"x-sum"), (b"content-length", b"1")]) == ([(b"content-length", b"1")], 1, False)


def test_trailers_cannot_pose_as_a_head() -> None:
    """What routes, frames or sets cookies is dropped from the answer's trailers."""
    heads = ResponseHeads(route(), upstream(), HeadRules())
    raw = [(b"x-sum", b"1"), (b"set-cookie", b"a=1"), (b"content_length", b"1"), (b"location", b"/")]
    assert heads.trailers(raw) == [(b"x-sum", b"1")]


@pytest.mark.parametrize(
    "cookie",
    [
        b"nb_session=x",
        b"__Host-nb_session=x; Path=/",
        b" NB_SESSION =x",
        b"__host-nb_x=1",
        b"plugin=1",
        b"=__Host-nb_session=x",
        b" = nb_session=x; Path=/",
        b"==plugin=1",
        b"nb_session",
        b"nb_session; Path=/",
        b"=plugin",
        b"\t__Host-nb_session\t=x",
    ],
)
def test_upstream_cannot_set_our_cookies(cookie: bytes) -> None:
    """A session that an upstream planted would be somebody else's. Older browsers send a nameless cookie as its value
    alone, so the value of one is judged as a name."""
    assert read([(b"set-cookie", cookie), (b"set-cookie", b"mine=1")])[0] == [(b"set-cookie", b"mine=1")]


def test_informational_heads_set_no_cookies() -> None:
    """A client may keep a cookie of a 103, so none passes; what preloads does."""
    raw = [(b"link", b"</a.css>"), (b"set-cookie", b"mine=1"), (b"Set-Cookie", b"nb_session=x"), (b"te", b"trailers")]
    assert informational(raw) == [(b"link", b"</a.css>")]


@pytest.mark.parametrize(
    "name", [b"x-forwarded-user", b"X-Forwarded-For", b"x_forwarded_groups", b"X.Forwarded.Any", b"forwarded"]
)
def test_trailers_claim_nothing_about_the_client(name: bytes) -> None:
    """Every forwarding name is dropped from a request's trailers, as from its head."""
    assert HeadRules().trailers([(name, b"root"), (b"x-sum", b"1")]) == [(b"x-sum", b"1")]


@pytest.mark.parametrize(
    "bad", [(b"x-a", b"1\r\nx-netbird-user: admin"), (b"x-a\r\nx-b", b"1"), (b"x-a", b"1\n"), (b"x-a", b"\0")]
)
def test_a_field_that_breaks_the_head_is_refused(bad: tuple[bytes, bytes]) -> None:
    """Whatever server gave the fields, one with a line break would be several to the upstream."""
    with pytest.raises(BadRequest):
        write(exchange(headers=[bad]))


@pytest.mark.parametrize(
    ("location", "told"),
    [
        (b"http://10.0.0.7:8080/x?y#z", b"https://app.example.com/app/x?y#z"),
        (b"HTTP://10.0.0.7:8080", b"https://app.example.com/app/"),
        (b"http://10.0.0.7:8080?q", b"https://app.example.com/app/?q"),
        (b"http://10.0.0.7/x", b"http://10.0.0.7/x"),
        (b"http://other:8080/x", b"http://other:8080/x"),
        (b"/relative", b"/relative"),
        (b"//10.0.0.7:8080/x", b"//10.0.0.7:8080/x"),
        (b"http://10.0.0.7:port/x", b"http://10.0.0.7:port/x"),
    ],
)
def test_redirect_to_the_upstreams_address_is_told_as_the_clients(location: bytes, told: bytes) -> None:
    """Only an absolute Location whose authority is the target's is rewritten, and the stripped prefix comes back."""
    made = exchange(scheme="https", origin=host_origin())
    raw = [(b"location", location)]
    assert read(raw, 302, made, prefix=b"/app", rewrite_redirects=True)[0] == [(b"location", told)]
    assert read(raw, 302, made, prefix=b"/app")[0] == raw


@pytest.mark.parametrize(
    ("url", "location", "told"),
    [
        ("http://a.example:80", b"http://a.example/x", b"http://app.example.com/app/x"),
        ("http://a.example:80", b"http://a.example:80/x", b"http://app.example.com/app/x"),
        ("http://a.example:80", b"http://A.Example.:/x", b"http://app.example.com/app/x"),
        ("https://a.example:443", b"https://a.example/x", b"http://app.example.com/app/x"),
        ("https://a.example:443", b"https://a.example:443/x", b"http://app.example.com/app/x"),
        ("https://a.example:8443", b"https://a.example/x", b"https://a.example/x"),
        ("https://a.example:443", b"https://a.example:8443/x", b"https://a.example:8443/x"),
        ("https://a.example:443", b"http://a.example/x", b"http://a.example/x"),
        ("http://a.example:8080", b"http://a.example/x", b"http://a.example/x"),
        ("http://a.example:80", b"http://a.example:8080/x", b"http://a.example:8080/x"),
        ("http://[fd00::7]:80", b"http://[FD00:0::7]/x", b"http://app.example.com/app/x"),
        ("http://a.example:80", b"http://u@a.example/x", b"http://u@a.example/x"),
        (
            "http://a.example:80",
            b"http://a.example/%2e/%C3%A4?q=%20#f",
            b"http://app.example.com/app/%2e/%C3%A4?q=%20#f",
        ),
        ("http://a.example:80", b"http://a.example/x/", b"http://app.example.com/app/x/"),
        ("http://a.example:80", b"", b""),
        ("http://a.example:80", b"x/y", b"x/y"),
        ("http://a.example:80", b"http://\xff/x", b"http://\xff/x"),
    ],
)
def test_redirects_know_the_targets_own_address_and_port(url: str, location: bytes, told: bytes) -> None:
    """Whatever its spelling; a scheme's own port is as good as none, and another port is another place."""
    to = upstream(url)
    heads = ResponseHeads(route(b"/app", to=to, rewrite_redirects=True), to, HeadRules())

    assert heads.read(exchange(), 302, [(b"location", location)])[0] == [(b"location", told)]


@pytest.mark.parametrize(
    ("spec", "location", "told"),
    [
        ({"prefix": b"/app"}, b"http://10.0.0.7:8080/base/x", b"http://app.example.com/app/x"),
        ({"prefix": b"/app"}, b"http://10.0.0.7:8080/base", b"http://app.example.com/app/"),
        ({"prefix": b"/app"}, b"http://10.0.0.7:8080/base?q", b"http://app.example.com/app/?q"),
        ({"prefix": b"/app"}, b"http://10.0.0.7:8080/basement", b"http://10.0.0.7:8080/basement"),
        ({"prefix": b"/app"}, b"http://10.0.0.7:8080/x", b"http://10.0.0.7:8080/x"),
        ({"prefix": b"/"}, b"http://10.0.0.7:8080/base/x", b"http://app.example.com/x"),
        (
            {"prefix": b"/app", "strip_prefix": False},
            b"http://10.0.0.7:8080/base/app/x",
            b"http://app.example.com/app/x",
        ),
    ],
)
def test_redirects_leave_the_targets_own_path(spec: dict[str, Any], location: bytes, told: bytes) -> None:
    """A client does not know it; what lies outside it cannot be reached through us, and is told as it is."""
    to = upstream(path=b"/base/")
    heads = ResponseHeads(route(to=to, rewrite_redirects=True, **spec), to, HeadRules())

    assert heads.read(exchange(), 302, [(b"location", location)])[0] == [(b"location", told)]


@pytest.mark.parametrize(
    ("authority", "split"),
    [
        (b"a", (b"a", 80)),
        (b"a:", (b"a", 80)),
        (b"a:81", (b"a", 81)),
        (b"[::1]", (b"::1", 80)),
        (b"[::1]:81", (b"::1", 81)),
        (b"a:x", (b"a", 0)),
    ],
)
def test_authority_is_split(authority: bytes, split: tuple[bytes, int]) -> None:
    """Host without brackets and port, the scheme's where none is said."""
    assert split_authority(authority, 80) == split


def test_incoming_connection_keeps_what_is_the_clients() -> None:
    """Only tokens that name reserved or owned fields leave a `Connection` value."""
    rules = HeadRules({b"remote-user": "p"})
    head = rules.incoming([(b"connection", b"close, X_NetBird_User,Remote.User, x-own"), (b"connection", b"close")])
    assert head.get_all(b"connection") == [b"close, x-own", b"close"]
    assert isinstance(head, Headers)


def test_rules_without_a_shared_table_judge_alike() -> None:
    """There are only so many tables; rules beyond them have their own, and mean the same."""
    for number in range(80):
        owned = b"x-own-%d" % number
        head = HeadRules({owned: "p"}).incoming([(owned, b"1"), (b"x-netbird-a", b"1"), (b"b", b"2")])
        assert head.raw == [(b"b", b"2")]
