"""Over real sockets: an upstream that cannot be connected gives way, before a byte of the request is sent."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from netbird_proxy import ExchangeView, ReverseProxy, Selector
from netbird_proxy.pipeline.ending import Environment
from netbird_proxy.routing.apply import Routing
from netbird_proxy.routing.compile import Compiler
from netbird_proxy.testing.asgi import Client
from netbird_proxy.testing.fakes import FakeProxy
from netbird_proxy.testing.makers import host_origin, mapping, route, upstream
from netbird_proxy.testing.transcript import StepHooks
from netbird_proxy.testing.upstreams import ScriptedServer
from netbird_proxy.upstreams.pool import UpstreamPool
from netbird_proxy.upstreams.pools import Pools

WAIT = 20.0
IN_ORDER = StepHooks(select=("first", Selector(lambda _exchange, candidates, _tried: candidates[0])))


@asynccontextmanager
async def proxy(hooks: StepHooks, *urls: str) -> AsyncIterator[tuple[ReverseProxy, list[ExchangeView]]]:
    """A proxy with real pools, whose root route leads to these upstreams, and the exchanges that it has served."""
    seen: list[ExchangeView] = []
    pools = Pools(UpstreamPool)
    compiler = Compiler(hooks, FakeProxy(), pools, Environment(), observers=[("test", seen.append)])
    routing = Routing(compiler)
    [report] = routing.apply("file", [mapping(route(to=tuple(map(upstream, urls))), source="file")])
    assert report.ok, report.refused
    try:
        yield ReverseProxy(routing, recognizes=lambda _origin: True), seen
    finally:
        pools.close()


@asynccontextmanager
async def without_tls() -> AsyncIterator[tuple[int, bytearray]]:
    """The port of a server that answers a handshake as a web server without TLS does, and all that it received."""
    received = bytearray()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.read(65536))
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        received.extend(await reader.read())
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], received


@pytest.fixture
def closed() -> Iterator[int]:
    """A port on which nothing listens, and nothing else can meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.mark.parametrize("hooks", [StepHooks(), IN_ORDER], ids=["turns", "selected"])
async def test_the_next_upstream_gets_the_whole_request(hooks: StepHooks, closed: int) -> None:
    """After a refused connection and a failed handshake; the peer of the handshake sees nothing of the request."""
    good = ScriptedServer.serving(lambda _head: b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine")
    async with asyncio.timeout(WAIT), without_tls() as (not_tls, handshake), good as server:
        urls = (f"http://127.0.0.1:{closed}", f"https://127.0.0.1:{not_tls}", f"http://127.0.0.1:{server.port}")
        async with proxy(hooks, *urls) as (app, seen):
            headers = [(b"content-length", b"6"), (b"x-mark", b"secret")]
            client = Client("POST", headers=headers, body=[b"abc", b"def"], origin=host_origin())
            answer = await client.ask(app)

    assert (answer.status, answer.body) == (200, b"fine")
    assert [(attempt.error, attempt.connected_ns > 0) for attempt in seen[0].tries] == [
        ("dial_refused", False),
        ("tls_failed", False),
        ("", True),
    ]
    assert handshake
    assert b"secret" not in handshake
    [received] = server.received
    assert received.endswith(b"\r\n\r\nabcdef")


@pytest.mark.parametrize("hooks", [StepHooks(), IN_ORDER], ids=["turns", "selected"])
async def test_a_request_that_was_sent_goes_nowhere_else(hooks: StepHooks) -> None:
    """An upstream that closes after the head may have acted on it."""
    closing = ScriptedServer.serving(lambda _head: None)
    good = ScriptedServer.serving(lambda _head: b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    async with (
        asyncio.timeout(WAIT),
        closing as first,
        good as second,
        proxy(hooks, f"http://127.0.0.1:{first.port}", f"http://127.0.0.1:{second.port}") as (app, seen),
    ):
        answer = await Client("GET", origin=host_origin()).ask(app)

    assert answer.status == 502
    assert [attempt.error for attempt in seen[0].tries] == ["upstream_closed"]
    assert second.received == []
