"""TLS towards upstreams, over sockets and over a transport that is nobody's socket."""

from __future__ import annotations

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import pytest_asyncio
import trustme

from netbird_proxy.api.errors import DialTimeout, TlsFailed, UpstreamClosed
from netbird_proxy.api.model import Address, Upstream
from netbird_proxy.api.tunnels import Dialer, ProtocolFactory
from netbird_proxy.testing.transports import MemoryDialer
from netbird_proxy.upstreams.host_dialer import HostDialer
from netbird_proxy.upstreams.pool import UpstreamPool
from netbird_proxy.upstreams.protocols import Pool
from netbird_proxy.upstreams.tls import client_context

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
BODY = b"x" * 2_000_000


class Authority:
    def __init__(self) -> None:
        self.ca = trustme.CA()

    def server(self, *names: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names).configure_cert(context)
        return context

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


class Server(asyncio.Protocol):
    """Answers each request with two megabytes, in its own time."""

    def __init__(self, seen: list[object] | None = None) -> None:
        self.seen = seen if seen is not None else []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.seen.append(data)
        if data.endswith(b"\r\n\r\n"):
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY))
            self.transport.write(BODY)


def over_memory(server: ssl.SSLContext, seen: list[object] | None = None) -> MemoryDialer:
    """A dialer whose upstream speaks TLS at the other end of a transport in memory."""

    def serve() -> asyncio.BaseProtocol:
        loop = asyncio.get_running_loop()
        return SSLProtocol(loop, Server(seen), server, None, server_side=True)  # type: ignore[arg-type]

    return MemoryDialer(serve)


Pools = Callable[..., UpstreamPool]


@pytest_asyncio.fixture
async def pools() -> AsyncIterator[Pools]:
    """Makes pools, and closes them after the test."""
    made: list[UpstreamPool] = []

    def pool(*arguments: Any, **options: Any) -> UpstreamPool:
        made.append(UpstreamPool(*arguments, **options))
        return made[-1]

    yield pool
    for each in made:
        await each.close()
        if isinstance(each.dialer, MemoryDialer):
            for transport in each.dialer.transports:
                transport.abort()
                assert transport.peer is not None
                transport.peer.abort()
    await asyncio.sleep(0)
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("named", "vouched", "fine"),
    [("inner.example", True, True), ("", True, False), ("inner.example", False, False)],
    ids=["own roots and name", "the dialed name is another", "the system's roots"],
)
async def test_roots_and_a_name_of_its_own(
    authority: Authority, pools: Pools, named: str, vouched: bool, fine: bool
) -> None:
    """A target's own authority and name decide, and nothing else does: neither widens what the other allows."""
    ca = authority.ca.cert_pem.bytes().decode() if vouched else ""
    target = Upstream("https", Address("10.0.0.7", 443), ca=ca, server_name=named)
    pool = pools(target, over_memory(authority.server("inner.example")))

    if fine:
        assert await get(pool) == BODY
    else:
        with pytest.raises(TlsFailed):
            await get(pool)


async def test_own_roots_replace_the_systems(authority: Authority, pools: Pools) -> None:
    """A certificate of another authority is refused, whoever trusts that one."""
    other = trustme.CA().cert_pem.bytes().decode()
    pool = pools(Upstream("https", Address("a.example", 443), ca=other), over_memory(authority.server("a.example")))

    with pytest.raises(TlsFailed):
        await get(pool)
    assert client_context(ca=other).cert_store_stats()["x509"] == 1


async def get(pool: Pool) -> bytes:
    async with asyncio.timeout(20):
        connection = await pool.acquire()
        connection.send_head(GET, method=b"GET", has_body=False)
        answer = await connection.answer()
        body = b""
        while piece := await answer.read():
            body += piece
        pool.release(connection)
        return body


@asynccontextmanager
async def over_sockets(context: ssl.SSLContext | None) -> AsyncIterator[int]:
    """The port of a server on loopback; without a context it says nothing at all."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server if context else asyncio.Protocol, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()  # without waiting for its connections: some of them are idle in a pool that outlives it


def upstream(host: str, port: int = 443, *, skip: bool = False, timeout: float | None = None) -> Upstream:
    return Upstream("https", Address(host, port), skip_tls_verify=skip, dial_timeout=timeout)


async def test_exchanges_over_sockets(authority: Authority, pools: Pools) -> None:
    """Two exchanges over one verified connection to a real server."""
    async with over_sockets(authority.server("localhost")) as port:
        pool = pools(upstream("localhost", port), HostDialer(), tls=authority.client())
        assert await get(pool) == BODY
        assert await get(pool) == BODY
        assert pool.idle == 1


class Late:
    """A dialer that returns a stream only after the upstream has had time to send, or to leave."""

    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        opened = await HostDialer().dial(protocol_factory, address, timeout=timeout)
        for _ in range(100):
            await asyncio.sleep(0)
        return opened


@pytest.mark.parametrize("first", [b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b""], ids=["sends", "leaves"])
@pytest.mark.parametrize("dialer", [Late(), HostDialer()], ids=["late", "at once"])
async def test_an_upstream_that_does_not_wait_for_the_handshake(first: bytes, dialer: Dialer, pools: Pools) -> None:
    """Plain bytes before the handshake are never an answer, and neither is a close: the dial fails."""

    class Hasty(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            stream = cast(asyncio.Transport, transport)
            stream.write(first)
            if not first:
                stream.close()

    async with await asyncio.get_running_loop().create_server(Hasty, "127.0.0.1", 0) as server:
        pool = pools(upstream("127.0.0.1", server.sockets[0].getsockname()[1], skip=True), dialer)
        with pytest.raises(TlsFailed):
            await get(pool)
        assert (pool.idle, pool.in_flight) == (0, 0)


async def test_exchanges_over_a_foreign_transport(authority: Authority, pools: Pools) -> None:
    """The same through a transport of our own, as a tunnel's is."""
    seen: list[object] = []
    dialer = over_memory(authority.server("app.internal"), seen)
    pool = pools(upstream("app.internal"), dialer, tls=authority.client())
    assert await get(pool) == BODY
    assert await get(pool) == BODY
    assert seen == [GET, GET]
    assert len(dialer.dialed) == 1
    assert GET not in dialer.transports[0].writes


async def test_an_address_is_verified_as_an_address(authority: Authority, pools: Pools) -> None:
    """A target given as an IP literal needs a certificate for it."""
    good = over_memory(authority.server("10.0.0.7"))
    assert await get(pools(upstream("10.0.0.7"), good, tls=authority.client())) == BODY
    with pytest.raises(TlsFailed):
        await get(pools(upstream("10.0.0.8"), good, tls=authority.client()))


async def test_a_trailing_dot_is_not_part_of_the_name(authority: Authority, pools: Pools) -> None:
    """Certificates have none."""
    dialer = over_memory(authority.server("app.internal"))
    assert await get(pools(upstream("app.internal."), dialer, tls=authority.client())) == BODY


@pytest.mark.parametrize("name", ["other.internal", "app.internal"])
async def test_an_unacceptable_certificate(authority: Authority, name: str, pools: Pools) -> None:
    """Another name, or an authority that nobody trusts: no exchange, and the stream is closed."""
    dialer = over_memory(authority.server("other.internal" if name == "other.internal" else "app.internal"))
    context = authority.client() if name == "other.internal" else None
    pool = pools(upstream("app.internal"), dialer, tls=context)
    with pytest.raises(TlsFailed, match="certificate"):
        await get(pool)
    await asyncio.sleep(0)
    assert dialer.transports[0].lost
    assert pool.in_flight == 0


async def test_verification_can_be_skipped(authority: Authority, pools: Pools) -> None:
    """Where the mapping says so, any certificate will do; elsewhere the context is another."""
    dialer = over_memory(authority.server("whatever"))
    assert await get(pools(upstream("app.internal", skip=True), dialer)) == BODY
    assert client_context().verify_mode is ssl.CERT_REQUIRED
    assert client_context().check_hostname
    assert client_context() is not client_context(skip_verify=True)


async def test_a_server_that_speaks_no_tls(pools: Pools) -> None:
    """Plain HTTP behind an https target is a failed handshake, not a hang."""

    class Plain(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.Transport, transport)

        def data_received(self, data: bytes) -> None:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with pytest.raises(TlsFailed):
        await get(pools(upstream("app.internal"), MemoryDialer(Plain)))


@pytest.mark.parametrize("how", ["eof", "reset"])
async def test_a_server_that_leaves_in_the_handshake(how: str, pools: Pools) -> None:
    """Closing and resetting are failed handshakes."""

    class Leaves(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.Transport, transport)

        def data_received(self, data: bytes) -> None:
            self.transport.close() if how == "eof" else self.transport.abort()

    with pytest.raises(TlsFailed):
        await get(pools(upstream("app.internal"), MemoryDialer(Leaves)))


async def test_a_silent_handshake_ends_with_the_dial_s_deadline(pools: Pools) -> None:
    """TLS is inside the same deadline as the dial, over sockets and over any other transport."""
    silent: Callable[[], asyncio.BaseProtocol] = asyncio.Protocol
    dialer = MemoryDialer(silent)
    pool = pools(upstream("app.internal", timeout=0.05), dialer)
    with pytest.raises(DialTimeout):
        await get(pool)
    await asyncio.sleep(0)
    assert dialer.transports[0].lost
    assert pool.in_flight == 0
    async with over_sockets(None) as port:
        with pytest.raises(DialTimeout):
            await get(pools(upstream("127.0.0.1", port, timeout=0.05), HostDialer()))


async def test_cancelled_in_the_handshake(pools: Pools) -> None:
    """The stream that was opened for it is closed."""
    dialer = MemoryDialer(asyncio.Protocol)
    pool = pools(upstream("app.internal"), dialer)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(pool.acquire())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(dialer.transports) == 1
        task.cancel()
    await asyncio.sleep(0)
    assert dialer.transports[0].lost
    assert pool.in_flight == 0


async def test_a_break_within_the_answer(authority: Authority, pools: Pools) -> None:
    """A TLS stream that is reset in the middle of a body truncates it: never a short answer."""
    dialer = over_memory(authority.server("app.internal"))
    pool = pools(upstream("app.internal"), dialer, tls=authority.client())
    connection = await pool.acquire()
    connection.send_head(GET, method=b"GET", has_body=False)
    answer = await connection.answer()
    dialer.transports[0].break_off()
    body = b""

    async def rest() -> None:
        nonlocal body
        while piece := await answer.read():
            body += piece

    with pytest.raises(UpstreamClosed):
        await rest()
    assert len(body) < len(BODY)
    pool.release(connection)


async def test_a_slow_reader_stops_the_upstream_through_tls(authority: Authority, pools: Pools) -> None:
    """Back-pressure reaches the transport below, so that an encrypted flood is not collected here."""
    dialer = over_memory(authority.server("app.internal"))
    pool = pools(upstream("app.internal"), dialer, tls=authority.client())
    connection = await pool.acquire()
    connection.send_head(GET, method=b"GET", has_body=False)
    answer = await connection.answer()
    for _ in range(50):
        await asyncio.sleep(0)
    assert dialer.transports[0].reading_paused
    assert len(await answer.read()) > 0
    connection.abort()
