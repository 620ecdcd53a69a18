"""The application under real servers, over sockets, in front of real upstreams: uvicorn, and our own listener."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from netbird_http import judge_scope
from netbird_proxy.app import ReverseProxy
from netbird_proxy.pipeline.ending import Environment
from netbird_proxy.routing.apply import Routing
from netbird_proxy.routing.compile import Compiler
from netbird_proxy.testing.fakes import FakeProxy
from netbird_proxy.testing.makers import mapping, route, upstream
from netbird_proxy.testing.transcript import StepHooks
from netbird_proxy.testing.upstreams import ScriptedServer
from netbird_proxy.upstreams.pool import UpstreamPool
from netbird_proxy.upstreams.pools import Pools

GET = b"GET /x HTTP/1.1\r\nhost: app.example.com\r\nconnection: close\r\n\r\n"


class Seen(list[Any]):
    """The exchanges that were observed."""

    def __init__(self) -> None:
        super().__init__()
        self.any = asyncio.Event()

    def see(self, one: Any) -> None:
        self.append(one)
        self.any.set()


@asynccontextmanager
async def proxied(port: int) -> AsyncIterator[tuple[ReverseProxy, Seen]]:
    """An application whose one route leads to a port of this machine, and what its observers saw."""
    seen = Seen()
    pools = Pools(UpstreamPool)
    compiler = Compiler(StepHooks(), FakeProxy(), pools, Environment(), observers=[("test", seen.see)])
    routing = Routing(compiler)
    [report] = routing.apply("file", [mapping(route(to=upstream(f"http://127.0.0.1:{port}")), source="file")])
    assert report.ok, report.refused
    try:
        yield ReverseProxy(routing, check_head=judge_scope), seen
    finally:
        pools.close()


@asynccontextmanager
async def under_uvicorn(app: ReverseProxy) -> AsyncIterator[int]:
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        log_config=None,
        access_log=False,
        lifespan="on",
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        await server.shutdown()


async def talk(port: int, *pieces: bytes) -> bytes:
    """Say this, and hear everything until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(20):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            return await reader.read()
    finally:
        writer.close()


async def test_request_and_answer_under_uvicorn() -> None:
    """Path, query and body pass; the answer comes back with its fields."""
    reply = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-up: 1\r\n\r\nhello"
    async with (
        ScriptedServer.serving(lambda _head: reply) as server,
        proxied(server.port) as (app, seen),
        under_uvicorn(app) as port,
    ):
        said = await talk(
            port,
            b"POST /a%20b?c=d HTTP/1.1\r\nhost: app.example.com\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc",
        )
        again = await talk(port, GET)

        assert said.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"x-up: 1\r\n" in said
        assert said.endswith(b"\r\n\r\nhello")
        assert again.endswith(b"hello")
        got = bytes(server.received[0])
        assert got.startswith(b"POST /a%20b?c=d HTTP/1.1\r\nhost: 127.0.0.1:")
        assert b"\r\n\r\nabc" in got
        assert b"\r\nx-forwarded-for: 127.0.0.1\r\n" in got
        assert [one.status for one in seen] == [200, 200]
        assert len(server.received) == 1  # kept alive


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nhost: app.example.com\r\nhost: b\r\nconnection: close\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: a@b\r\nconnection: close\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: nowhere.example.com\r\nconnection: close\r\n\r\n", b"404"),
        (b"GET /../x HTTP/1.1\r\nhost: app.example.com\r\nconnection: close\r\n\r\n", b"400"),
    ],
)
async def test_what_uvicorn_lets_through_is_refused(request_: bytes, status: bytes) -> None:
    """The same head checks as far as the scope shows, and nothing reaches the upstream."""
    async with (
        ScriptedServer.serving(lambda _head: b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") as server,
        proxied(server.port) as (app, seen),
        under_uvicorn(app) as port,
    ):
        assert (await talk(port, request_)).split(b" ", 2)[1] == status
        assert server.received == []
        assert len(seen) == 1


async def test_trailers_under_uvicorn_do_not_become_fields() -> None:
    """It appends late ones to the scope's fields: no step and no upstream sees them, and a reserved one never passes.

    Those that come in the head's own segment cannot be told from fields there; reserved names are dropped from both.
    """
    reached = asyncio.Event()

    def reply(head: bytes) -> bytes:
        if head.startswith(b"POST"):
            reached.set()
            return b""
        return b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"  # behind the body's last chunk

    head = b"POST / HTTP/1.1\r\nhost: app.example.com\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    trailers = b"0\r\nx-netbird-user: root\r\nx-late: 1\r\n\r\n"
    async with (
        ScriptedServer.serving(reply) as server,
        proxied(server.port) as (app, seen),
        under_uvicorn(app) as port,
        asyncio.timeout(20),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + b"1\r\na\r\n")
        await reached.wait()
        writer.write(trailers)
        await reader.read()
        writer.close()
        assert b"x-late" not in seen[0].headers

        await talk(port, head + b"1\r\na\r\n" + trailers)
        assert b"root" not in b"".join(bytes(one) for one in server.received)
        assert all(b"x-netbird-user" not in one.headers for one in seen)


async def test_upstream_that_breaks_off_breaks_off_under_uvicorn() -> None:
    """The client sees an incomplete chunked body, not a short complete one."""
    read = asyncio.Event()

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await read.wait()
        writer.close()

    async with (
        asyncio.timeout(20),
        await asyncio.start_server(half, "127.0.0.1", 0) as server,
        proxied(server.sockets[0].getsockname()[1]) as (app, seen),
        under_uvicorn(app) as port,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET)
        await reader.readuntil(b"half")
        read.set()
        assert not (await reader.read()).endswith(b"0\r\n\r\n")
        writer.close()
        assert seen[0].error is not None


async def test_client_that_leaves_uvicorn_resets_the_upstream() -> None:
    """A download that nobody reads is given up."""
    reply = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"
    async with (
        ScriptedServer.serving(lambda _head: reply) as server,
        proxied(server.port) as (app, seen),
        under_uvicorn(app) as port,
        asyncio.timeout(20),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET)
        while b"half" not in await reader.read(1000):
            continue
        writer.transport.abort()
        await seen.any.wait()
        assert seen[0].error.code == "client_gone"


async def test_websocket_under_uvicorn_is_answered() -> None:
    """501, before any handshake."""
    async with (
        ScriptedServer.serving(lambda _head: None) as server,
        proxied(server.port) as (app, _seen),
        under_uvicorn(app) as port,
    ):
        said = await talk(
            port,
            b"GET / HTTP/1.1\r\nhost: app.example.com\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        assert said.split(b" ", 2)[1] in (b"501", b"403")
        assert server.received == []
