"""The engine's request heads, compared with the rules in Python, and read back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_http import OutgoingHead, fold
from netbird_proxy.api.errors import BadRequest, StepFailed
from netbird_proxy.api.headers import Headers
from netbird_proxy.api.steps import RequestTransform
from netbird_proxy.pipeline.bound import BoundTransform
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.pipeline.head_rules import HeadRules
from netbird_proxy.pipeline.request_heads import RequestHeads
from netbird_proxy.testing.makers import exchange, route, upstream
from tests.reference.request_heads import RequestHeads as Oracle

NAMES = st.sampled_from(
    [
        *(b"accept", b"connection", b"content-length", b"transfer-encoding", b"te", b"trailer", b"upgrade", b"expect"),
        *(b"keep-alive", b"proxy-connection", b"proxy-authorization", b"host", b"via", b"cookie", b"forwarded"),
        *(b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-user", b"x-real-ip", b"x_real_ip", b"set_cookie"),
        *(b"content_length", b"transfer.encoding", b"x-custom", b"x_custom", b"remote-user", b"x-a", b"x.a"),
    ]
)
VALUES = st.one_of(
    st.sampled_from(
        [
            *(b"", b"1", b"0", b"007", b"+1", b"chunked", b"close", b"keep-alive, X-A", b"x_custom, te", b"upgrade"),
            *(b"trailers, deflate", b"TRAILERS", b"websocket, h2c", b"TLS/1.0, a/b", b"nb_session=1; a=2", b"a=1;b"),
            *(b"__Host-nb_x=1", b"cart=2; shop_a=3", b"a\rb", b"\0"),
        ]
    ),
    st.binary(max_size=12),
)
HEADS = st.lists(st.tuples(NAMES, VALUES), max_size=8)
QUERIES = st.lists(
    st.sampled_from([b"a=1", b"session_token=x", b"sess%69on%5ftoken", b"%", b"", b"b"]), max_size=4
).map(b"&".join)
OWNERS = st.sampled_from([{}, {b"remote-user": "p"}, {b"x-forwarded-for": "p", b"x-real-ip": "p", b"te": "p"}])


def made(
    raw: list[tuple[bytes, bytes]], *, method: str, path: str, query: bytes, kind: Any, version: str, host: str
) -> Exchange:
    made = exchange(path, method=method)
    made.headers, made.query, made.http_version = Headers(raw), query, version
    made.authority, made.kind = host.encode(), kind
    made.empty_query = not query and method == "GET"
    return made


def verdict(heads: Any, one: Exchange, carried: bool | None) -> object:
    try:
        written = heads.write(one, carried)
    except (BadRequest, StepFailed) as error:
        return type(error), str(error)
    return written.head, written.method, written.has_body, written.chunked, written.upgrade


@given(
    raw=HEADS,
    method=st.sampled_from(["GET", "POST", "M-SEARCH"]),
    path=st.sampled_from(["/app", "/app/", "/app/a%2Fb;c"]),
    query=QUERIES,
    kind=st.sampled_from(["http", "websocket"]),
    version=st.sampled_from(["1.1", "1.0", "2"]),
    host=st.sampled_from(["wiki.example.com", "wiki.example.com:8443", "[2001:db8::1]", "[2001:db8::1]:80", "a:b"]),
    carried=st.sampled_from([True, False, None]),
    owners=OWNERS,
    base=st.sampled_from([b"/", b"/base", b"/base/", b"/base?k=v"]),
    pass_host=st.booleans(),
    transforms=st.lists(
        st.sampled_from(
            [
                lambda head: head.set(b"X-A", b"new"),
                lambda head: head.add(b"x.a", b"more"),
                lambda head: head.delete(b"x-a", b"accept"),
                lambda head: head.replace((b"x-a", b"x-b"), [(b"X_B", b"1")]),
                lambda head: head.replace((b"x-a",), [(b"x-b", b"1")]),
                lambda head: head.set(b"remote-user", b"me"),
                lambda head: head.set(b"host", b"me"),
                lambda head: head.set(b"x-netbird-user", b"me"),
                lambda head: head.set(b"x-a", b"a\r\nb: c"),
                lambda head: head.set(b"x-a", "text"),
                lambda head: head.set_or_delete(b"accept", None),
                lambda _head: 1,
            ]
        ),
        max_size=2,
    ),
)
def test_request_heads_are_those_of_the_rules_in_python(
    raw: list[tuple[bytes, bytes]],
    owners: dict[bytes, str],
    base: bytes,
    pass_host: bool,
    transforms: list[Any],
    carried: bool | None,
    **request: Any,
) -> None:
    """Equal bytes, equal framing and equal refusals, whatever the client sends and the plugins change."""
    rules = HeadRules(owners, cookies={b"cart": "shop", b"shop_*": "shop"}, pseudonym=b"us")
    target = upstream(path=base, custom_headers=((b"X-Custom", b"ours"), (b"Via", b"no"), (b"Remote-User", b"no")))
    spec = route(b"/app", to=target, strip_prefix=True, pass_host_header=pass_host)
    bound = [
        BoundTransform("p", RequestTransform(lambda _exchange, head, change=change: change(head)))
        for change in transforms
    ]

    found = [
        verdict(heads(spec, target, rules, bound), made(raw, **request), carried) for heads in (RequestHeads, Oracle)
    ]

    assert found[0] == found[1]


@given(raw=st.lists(st.tuples(NAMES | st.sampled_from([b"x-netbird-user", b"x_netbird.user"]), VALUES), max_size=8))
def test_promise_2_a_written_head_reads_back_as_one_head_without_names_of_ours(raw: list[tuple[bytes, bytes]]) -> None:
    """Even where the rules for arriving heads would not have run: the last one to write drops them as well."""
    heads = RequestHeads(route(), upstream(), HeadRules())
    one = exchange("/")
    one.headers = Headers(raw)
    try:
        written = heads.write(one, False)
    except BadRequest:
        return

    head, end, rest = written.head.partition(b"\r\n\r\n")
    assert (end, rest) == (b"\r\n\r\n", b"")
    lines = head.split(b"\r\n")[1:]
    names = [line.partition(b": ")[0] for line in lines]
    assert not [name for name in names if fold(name).startswith(b"x-netbird")]
    assert names.count(b"host") == 1
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
    assert not set(head.replace(b"\r\n", b"")) & set(b"\r\n")


def test_nobody_changes_a_head_that_was_written() -> None:
    """A plugin that keeps its head, and changes it later from another task, is refused."""
    kept: list[OutgoingHead] = []
    bound = BoundTransform("p", RequestTransform(lambda _exchange, head: kept.append(head)))
    heads = RequestHeads(route(), upstream(), HeadRules(), [bound])
    heads.write(exchange("/"), False)

    with pytest.raises(RuntimeError, match="was written"):
        kept[0].set(b"x-late", b"1")
    with pytest.raises(RuntimeError, match="was written"):
        kept[0].add(b"x-late", b"1")


@pytest.mark.parametrize("raw", [[(b"a", "text")], [("a", b"b")], [b"ab"], [(b"a",)], [None]])
def test_fields_of_another_type_are_a_type_error(raw: Any) -> None:
    """No value of any type ends the process."""
    one = exchange("/")
    one.headers = Headers(raw)
    with pytest.raises((TypeError, IndexError)):
        RequestHeads(route(), upstream(), HeadRules()).write(one, False)
