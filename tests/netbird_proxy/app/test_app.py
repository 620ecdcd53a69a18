"""The ASGI entry: what becomes an exchange, whose origin is believed, what is refused before a route is sought."""

from __future__ import annotations

from typing import Any

import pytest

from netbird_proxy.api.steps import Guard
from netbird_proxy.asgi import ORIGIN_STATE
from netbird_proxy.testing.asgi import Client
from netbird_proxy.testing.makers import HOST, host_origin, route, tunnel_origin
from netbird_proxy.testing.transcript import StepHooks, Transcript

ORIGIN = host_origin()


async def test_exchange_says_what_came() -> None:
    """Method, raw path, query, host folded and as sent, client and times; an id of our own."""
    play = Transcript(route())

    await play.request("PUT", "/a%20b?c=%64", host="App.Example.COM.:8443", origin=tunnel_origin("100.64.0.5"))
    await play.request(origin=ORIGIN)

    first, second = play.observed
    assert (first.method, first.raw_path, first.query, first.http_version) == ("PUT", b"/a%20b", b"c=%64", "1.1")
    assert (first.host, first.authority, first.client_address) == (HOST, b"App.Example.COM.:8443", "100.64.0.5")
    assert first.route is not None
    assert len(first.id) == 32
    assert int(first.id, 16) >= 0
    assert first.id != second.id
    assert first.ended_ns >= first.started_ns > 0


@pytest.mark.parametrize(
    ("scheme", "ahead", "seen"), [("http", False, "http"), ("https", False, "https"), ("http", True, "https")]
)
async def test_scheme_is_the_connections(scheme: str, ahead: bool, seen: str) -> None:
    """TLS on the connection, or declared in front of the listener; a forwarded header decides nothing."""
    play = Transcript(route())
    headers = [(b"x-forwarded-proto", b"https")]
    await play.request(origin=host_origin(behind_tls_proxy=ahead), scheme=scheme, headers=headers)
    assert play.exchange.scheme == seen


@pytest.mark.parametrize("origin", [host_origin(), tunnel_origin(), tunnel_origin(account="acct-2")])
@pytest.mark.parametrize("host", [HOST, "unknown.example.com"])
async def test_options_of_the_whole_server_are_the_cores(origin: Any, host: str) -> None:
    """204 with `Allow` for every host alike: no service is asked, and the answer tells none from another."""
    play = Transcript(route(), hooks=StepHooks(restrict=[("test", Guard(never_asked))]))

    answer = await play.request("OPTIONS", "*", origin=origin, host=host)

    assert (answer.status, answer.body, play.exchange.route) == (204, b"", None)
    assert [value for name, value in answer.headers if name == b"allow"] == [
        b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
    ]
    play.saw("respond 204", "observe 204")


async def never_asked(_exchange: object) -> Any:
    raise AssertionError("a guard was asked")


@pytest.mark.parametrize("forged", [tunnel_origin(), "tunnel acct-1", 1])
async def test_origin_that_no_listener_issued_is_an_error(forged: Any) -> None:
    """500 `foreign_origin`, nothing dialed: somebody put it there, so nothing about it may be believed."""
    play = Transcript(route(), foreign_origins=True)

    answer = await play.request(extra={"state": {ORIGIN_STATE: forged}})

    assert answer.status == 500
    play.saw("respond 500", "observe 500 foreign_origin")
    assert play.exchange.origin is None


async def test_embedded_client_is_untrusted() -> None:
    """Without an origin it is a host socket's; the server's word is its address."""
    play = Transcript(route())
    await play.request(own=False)
    assert play.exchange.origin is None
    assert play.exchange.client_address == "203.0.113.9"
    await play.request(own=False, extra={"client": None, "state": None, "extensions": None})
    assert play.exchange.client_address == ""


@pytest.mark.parametrize("host", [None, "", "a b", "user@app.example.com", "app.example.com:x", "\xff"])
async def test_host_that_is_none_is_refused(host: str | None) -> None:
    """400, observed, no route."""
    play = Transcript(route())
    assert (await play.request(host=host, origin=ORIGIN)).status == 400
    play.saw("respond 400", "observe 400 bad_request")


async def test_server_without_raw_path_is_refused() -> None:
    """There are no bytes to authorize."""
    play = Transcript(route())
    assert (await play.request(own=False, extra={"raw_path": None})).status == 400
    play.saw("respond 400", "observe 400 bad_request")


async def test_head_checks_are_repeated_under_foreign_servers_only() -> None:
    """What our own parser has judged is not judged again."""
    asked: list[str] = []

    def check(scope: Any) -> str | None:
        asked.append(scope["method"])
        return "two hosts" if scope["method"] == "GET" else None

    play = Transcript(route(), check_head=check)
    assert (await play.request(own=False)).status == 400
    assert (await play.request("HEAD", own=False)).status == 200
    assert (await play.request(origin=ORIGIN)).status == 200
    assert asked == ["GET", "HEAD"]


@pytest.mark.parametrize(
    ("via", "status"),
    [
        (b"1.1 netbird-proxy", 508),
        (b"1.0 a, 1.1 netbird-proxy (x), 1.1 b", 508),
        (b"1.1 netbird-proxy-2", 200),
        (b"netbird-proxy", 200),
    ],
)
async def test_request_that_came_round_is_stopped(via: bytes, status: int) -> None:
    """Our own name in `Via` is a loop: 508, nothing dialed again."""
    play = Transcript(route())
    answer = await play.request(origin=ORIGIN, headers=[(b"via", b"1.1 other"), (b"via", via)])
    assert answer.status == status
    assert play.upstreams.dialed == (status == 200)


@pytest.mark.parametrize(("method", "path"), [("GET", "*"), ("OPTIONS", ""), ("OPTIONS", "x"), ("OPTIONS", "*x")])
async def test_what_is_no_path_has_no_route(method: str, path: str) -> None:
    """A target that is neither a path nor that of `OPTIONS *` matches no route."""
    play = Transcript(route())
    assert (await play.request(method, path, origin=ORIGIN)).status == 404


@pytest.mark.parametrize("whole", [True, False])
async def test_websocket_of_a_foreign_server_is_answered(whole: bool) -> None:
    """It cannot carry one of ours: 501 where the server can say so, else closed before its handshake."""
    play = Transcript(route())
    client = Client(
        own=False,
        headers=[(b"connection", b"upgrade"), (b"upgrade", b"websocket")],
        extra={"type": "websocket", "scheme": "wss", "extensions": {"websocket.http.response": {}} if whole else {}},
    )
    del client.scope["method"]

    await client.ask(play.app)

    kinds = [message["type"] for message in client.answer.messages]
    assert kinds == (
        ["websocket.http.response.start", "websocket.http.response.body"] if whole else ["websocket.close"]
    )
    assert play.effects == ["observe 501 upgrade_unsupported"]
    assert play.exchange.scheme == "https"


async def test_lifespan_is_answered() -> None:
    """Servers that insist on it are told that all is well."""
    play = Transcript()
    events = iter(["lifespan.startup", "lifespan.shutdown"])
    said: list[str] = []

    async def receive() -> Any:
        return {"type": next(events)}

    async def send(message: Any) -> None:
        said.append(message["type"])

    await play.app({"type": "lifespan"}, receive, send)

    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_unknown_scope_is_no_exchange() -> None:
    """What ASGI has not is an error of the server's."""
    client = Client()
    with pytest.raises(ValueError, match="mqtt"):
        await Transcript().app({"type": "mqtt"}, client.receive, client.send)


async def test_head_of_an_exchange_is_frozen() -> None:
    """A server that appends to its scope's fields later changes nothing here."""
    play = Transcript(route())
    client = Client(origin=ORIGIN)
    await play.run(client)
    client.scope["headers"].append((b"x-late", b"1"))
    assert b"x-late" not in play.exchange.headers
