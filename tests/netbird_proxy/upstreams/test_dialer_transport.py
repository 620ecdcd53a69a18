"""httpx over a dialer, against a small server at the other end of a transport in memory."""

from __future__ import annotations

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import AsyncIterator, Callable
from typing import cast

import httpx
import pytest
import pytest_asyncio
import trustme

from netbird_proxy.api.errors import DialRefused, UpstreamError, leaves
from netbird_proxy.testing.transports import MemoryDialer
from netbird_proxy.upstreams import dialer_transport as httpx_transport
from netbird_proxy.upstreams.dialer_transport import DialerTransport

OK = b"HTTP/1.1 200 Fine\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 2\r\n\r\nhi"


class Server(asyncio.Protocol):
    """Keeps what it got; answers with what `script` says to all that has come on this connection."""

    got = b""

    def __init__(self, script: Callable[[bytes], bytes | None], seen: list[Server]) -> None:
        self.script = script
        seen.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.got += data
        answer = self.script(self.got)
        if answer is None:
            self.transport.close()
        elif answer:
            self.transport.write(answer)


class Peer:
    """A dialer to scripted servers, and the clients made over it."""

    def __init__(self) -> None:
        self.script: Callable[[bytes], bytes | None] = lambda got: OK if got.endswith(b"\r\n\r\n") else b""
        self.seen: list[Server] = []
        self.dialer = MemoryDialer(lambda: Server(lambda got: self.script(got), self.seen))
        self.client = httpx.AsyncClient(transport=DialerTransport(self.dialer), timeout=5)


@pytest_asyncio.fixture
async def peer() -> AsyncIterator[Peer]:
    it = Peer()
    async with it.client:
        yield it
    await asyncio.sleep(0)


async def test_get(peer: Peer) -> None:
    """A plain call, twice over one connection, dialed by the URL's own host and port."""
    for _ in range(2):
        answer = await peer.client.get("http://100.64.0.7:8080/a%20b?c=d")
        assert (answer.status_code, answer.reason_phrase, answer.text) == (200, "Fine", "hi")
        assert answer.headers.get_list("x-a") == ["1", "2"]
    assert [str(address) for address, _ in peer.dialer.dialed] == ["100.64.0.7:8080"]
    assert peer.seen[0].got.startswith(b"GET /a%20b?c=d HTTP/1.1\r\nhost: 100.64.0.7:8080\r\n")


async def test_an_address_of_version_six(peer: Peer) -> None:
    """Brackets are the URL's, not the address's."""
    await peer.client.get("http://[fd00::7]/")
    assert peer.dialer.dialed[0][0] == ("fd00::7", 80)


async def test_bodies(peer: Peer) -> None:
    """Of known length as they are, streams in chunks."""
    peer.script = lambda got: OK if got.endswith((b"hello", b"0\r\n\r\n")) else b""

    async def stream() -> AsyncIterator[bytes]:
        yield b"he"
        yield b"llo!"

    assert (await peer.client.post("http://peer/", content=b"hello")).text == "hi"
    assert (await peer.client.post("http://peer/", content=stream())).text == "hi"
    assert b"content-length: 5\r\n" in peer.seen[0].got
    assert peer.seen[0].got.endswith(b"2\r\nhe\r\n4\r\nllo!\r\n0\r\n\r\n")


async def test_a_stream_closed_early_is_reset(peer: Peer) -> None:
    """Who does not read to the end does not keep the connection."""
    peer.script = lambda got: b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"
    async with peer.client.stream("GET", "http://peer/") as answer:
        async for piece in answer.aiter_raw():
            assert piece == b"abc"
            break
    assert peer.dialer.transports[0].aborted


async def test_a_truncated_body(peer: Peer) -> None:
    """Fails as httpx's own would."""
    peer.script = lambda got: b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"
    async with peer.client.stream("GET", "http://peer/") as answer:
        peer.dialer.transports[0].feed_eof()
        with pytest.raises(httpx.RemoteProtocolError):
            await answer.aread()


async def test_an_idle_connection_that_was_just_closed_is_replaced(peer: Peer) -> None:
    """What may be sent twice is; what may not fails."""
    peer.script = lambda got: OK
    for method, fails in (("GET", False), ("POST", True)):
        await peer.client.get("http://peer/")
        used = len(peer.seen)

        def script(got: bytes, used: int = used) -> bytes | None:
            return None if len(peer.seen) == used else OK

        peer.script = script
        if fails:
            with pytest.raises(httpx.RemoteProtocolError):
                await peer.client.request(method, "http://peer/")
        else:
            assert (await peer.client.request(method, "http://peer/")).text == "hi"
        peer.script = lambda got: OK


async def test_a_server_that_never_answers_well_is_asked_once(peer: Peer) -> None:
    """A fresh connection that is closed without an answer is no race."""
    peer.script = lambda got: None
    with pytest.raises(httpx.RemoteProtocolError):
        await peer.client.get("http://peer/")
    assert len(peer.dialer.dialed) == 1


async def test_nonsense(peer: Peer) -> None:
    """What is no HTTP is the remote's protocol error."""
    peer.script = lambda got: b"SSH-2.0-x\r\n"
    with pytest.raises(httpx.RemoteProtocolError):
        await peer.client.get("http://peer/")


async def test_timeouts(peer: Peer) -> None:
    """Connecting, answering and reading are each bounded by the request's own numbers."""
    short = httpx.Timeout(5, read=0.05)
    peer.script = lambda got: b""
    with pytest.raises(httpx.ReadTimeout):
        await peer.client.get("http://peer/", timeout=short)
    peer.script = lambda got: b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"
    with pytest.raises(httpx.ReadTimeout):
        await peer.client.get("http://peer/", timeout=short)
    peer.dialer.gate = asyncio.Event()
    with pytest.raises(httpx.ConnectTimeout):
        await peer.client.get("http://peer/", timeout=httpx.Timeout(5, connect=0.05))


async def test_a_refused_dial(peer: Peer) -> None:
    """Our error is the cause of httpx's."""
    peer.dialer.fail = DialRefused("dial peer:80: refused")
    with pytest.raises(httpx.ConnectError) as caught:
        await peer.client.get("http://peer/")
    assert isinstance(caught.value.__cause__, DialRefused)


@pytest.mark.parametrize(
    ("headers", "url"),
    [
        ({"x": "a\r\nb: c"}, "http://peer/"),
        ({"x\r\ny": "a"}, "http://peer/"),
        ({"content-length": "5, 5"}, "http://peer/"),
        ({"transfer-encoding": "gzip"}, "http://peer/"),
        ({"transfer-encoding": "chunked", "content-length": "5"}, "http://peer/"),
    ],
)
async def test_what_cannot_be_sent_is_not(peer: Peer, headers: dict[str, str], url: str) -> None:
    """A head that could be read in two ways never leaves."""
    with pytest.raises(httpx.LocalProtocolError):
        await peer.client.get(url, headers=headers)
    assert peer.seen == []


async def test_a_body_of_another_length(peer: Peer) -> None:
    """A stream that ends before its Content-Length is our side's error, and the peer gets no whole request."""

    async def stream() -> AsyncIterator[bytes]:
        yield b"abc"

    with pytest.raises(httpx.LocalProtocolError):
        await peer.client.post("http://peer/", content=stream(), headers={"content-length": "5"})
    assert peer.dialer.transports[0].aborted


async def test_other_schemes(peer: Peer) -> None:
    """Only http and https are spoken."""
    with pytest.raises(httpx.UnsupportedProtocol):
        await peer.client.get("ftp://peer/")


async def test_https_and_the_server_s_name() -> None:
    """TLS over the dialer, verified against the URL's host or the name that the request asks for."""
    authority = trustme.CA()
    server, trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("app.internal").configure_cert(server)
    authority.configure_trust(trust)
    seen: list[Server] = []

    def serve() -> asyncio.BaseProtocol:
        inner = Server(lambda got: OK, seen)
        return SSLProtocol(asyncio.get_running_loop(), inner, server, None, server_side=True)  # type: ignore[arg-type]

    dialer = MemoryDialer(serve)
    async with httpx.AsyncClient(transport=DialerTransport(dialer, tls=trust), timeout=5) as client:
        assert (await client.get("https://app.internal/")).text == "hi"
        named = await client.get("https://100.64.0.7/", extensions={"sni_hostname": "app.internal"})
        assert named.text == "hi"
        with pytest.raises(httpx.ConnectError):
            await client.get("https://100.64.0.8/")
    for transport in dialer.transports:
        transport.abort()
        assert transport.peer is not None
        transport.peer.abort()
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_unused_pools_do_not_pile_up(peer: Peer) -> None:
    """A client that calls ever new hosts holds nothing about those that keep no connection."""
    peer.script = lambda got: b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    for number in range(200):
        await peer.client.get(f"http://peer-{number}/")
    transport = cast(DialerTransport, peer.client._transport)
    assert len(transport._pools) <= 64


def test_every_upstream_error_has_an_httpx_error() -> None:
    """The table is complete and holds nothing else."""
    assert set(httpx_transport._ERRORS) == {leaf for leaf in leaves() if issubclass(leaf, UpstreamError)}
