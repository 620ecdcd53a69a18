"""Our protocol on real sockets, plain and with TLS, under asyncio's own loop and under uvloop."""
# Over 500 lines: real sockets, plain and TLS, on both loops, by the same fixtures.

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop

from netbird_proxy.api.errors import SettingsError
from netbird_proxy.api.model import AccountId, Address, Peer, PublicKey
from netbird_proxy.api.tunnels import Tunnel
from netbird_proxy.asgi import CONNECTION_EXTENSION, ORIGIN_STATE, ASGIApp, Receive, Scope, Send
from netbird_proxy.listening.connections import Connections, ListenLimits, uncounted
from netbird_proxy.listening.origins import Origins
from netbird_proxy.listening.peek import Peek
from netbird_proxy.listening.sockets import HostListener, serve_host
from netbird_proxy.listening.tls import ServerTls
from netbird_proxy.listening.tunnels import serve_inside
from netbird_proxy.testing.fakes import FakeTunnel
from netbird_proxy.testing.makers import peer
from netbird_proxy.testing.transports import MemoryTransport

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test's coroutine on each event loop, within a bound."""

    async def bounded(coroutine: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(20):
            await coroutine

    def runs(coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(bounded(coroutine))

    return runs


@dataclass
class Files:
    cert: Path
    key: Path


class Authority:
    """A throw-away CA with certificates in files."""

    def __init__(self, directory: Path) -> None:
        self.ca = trustme.CA()
        self.directory = directory

    def files(self, *names: str) -> Files:
        issued = self.ca.issue_cert(*names)
        stem = names[0].replace("*", "any")
        files = Files(self.directory / f"{stem}.pem", self.directory / f"{stem}.key")
        files.key.write_bytes(issued.private_key_pem.bytes())
        files.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        return files

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    body = f"{scope['scheme']} {scope['state'][ORIGIN_STATE].listener}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def connections_of(
    app: ASGIApp,
    *,
    account: str | None = None,
    tunnel: Tunnel | None = None,
    limits: ListenLimits | None = None,
    count: Callable[[str], object] = uncounted,
) -> Connections:
    return Connections(
        app,
        origins=Origins(),
        listener=f"tunnel {account}" if account else "http test",
        account=AccountId(account) if account else None,
        tunnel=tunnel,
        limits=limits,
        count=count,
    )


class PeekingListener:
    """A listener like a tunnel's, on a socket of this machine."""

    def __init__(self, server: asyncio.Server, connections: Connections) -> None:
        self._server = server
        self._connections = connections
        self.address = Address(*server.sockets[0].getsockname()[:2])

    def close(self) -> None:
        self._server.close()

    async def drain(self, timeout: float) -> None:
        await self._connections.drain(timeout)


@contextlib.asynccontextmanager
async def listening(
    app: ASGIApp,
    *,
    tls: ServerTls | None = None,
    peek: bool = False,
    limits: ListenLimits | None = None,
    made: Connections | None = None,
) -> AsyncIterator[HostListener | PeekingListener]:
    """A host listener; with `peek` one that looks at the first bytes, so that TLS is asyncio's, over the transport."""
    connections = made or connections_of(app, limits=limits)
    listener: HostListener | PeekingListener
    if peek:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Peek(connections, tls), "127.0.0.1", 0)
        listener = PeekingListener(server, connections)
    else:
        listener = await serve_host(connections, Address("127.0.0.1", 0), tls=tls)
    try:
        yield listener
    finally:
        listener.close()
        await listener.drain(2)
        assert not connections.open
        assert not connections.tasks
        assert len(connections.origins) == 0


async def fetch(address: Address, request: bytes = GET_CLOSE, **how: Any) -> bytes:
    reader, writer = await asyncio.open_connection(*address, **how)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return answer


# Plain ----------------------------------------------------------------------------------------------------------------


def test_port_zero_is_a_port_of_the_systems_choice(run: Run) -> None:
    """A listener knows the address that it really has."""

    async def test() -> None:
        async with listening(hello) as listener:
            assert listener.address.port > 0
            assert (await fetch(listener.address)).endswith(b"\r\n\r\nhttp http test")

    run(test())


def test_an_address_that_is_taken_is_a_setting_to_change(run: Run) -> None:
    """The error says which address and why."""

    async def test() -> None:
        async with listening(hello) as listener:
            with pytest.raises(SettingsError, match=str(listener.address)):
                await serve_host(connections_of(hello), listener.address)

    run(test())


def test_a_closed_listener_accepts_no_more(run: Run) -> None:
    """Closing stops accepting; who is connected is served to the end."""

    async def test() -> None:
        async with listening(hello) as listener:
            reader, writer = await asyncio.open_connection(*listener.address)
            writer.write(GET)
            await reader.readuntil(b"http test")
            listener.close()
            listener.close()
            with pytest.raises(OSError, match=r"refused|Connect call failed"):
                await asyncio.open_connection(*listener.address)
            writer.write(GET)
            await reader.readuntil(b"http test")
            writer.close()

    run(test())


def test_drain_closes_idle_and_waits_for_busy(run: Run) -> None:
    """Kept connections end at once, the one with a request gets its answer, and then the drain is over."""

    async def test() -> None:
        entered, go = asyncio.Event(), asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] == "/slow":
                entered.set()
                await go.wait()
            await hello(scope, receive, send)

        async with listening(app) as listener:
            idle, idle_writer = await asyncio.open_connection(*listener.address)
            idle_writer.write(GET)
            await idle.readuntil(b"http test")
            busy, busy_writer = await asyncio.open_connection(*listener.address)
            busy_writer.write(GET.replace(b"/ ", b"/slow "))
            await entered.wait()
            listener.close()
            async with asyncio.TaskGroup() as group:
                group.create_task(listener.drain(10))
                assert await idle.read() == b""
                go.set()
                answer = await busy.read()
            assert b"connection: close" in answer
            assert answer.endswith(b"http test")
            idle_writer.close()
            busy_writer.close()

    run(test())


def test_a_refusal_arrives_although_the_client_goes_on_sending(run: Run) -> None:
    """A reset for unread bytes must not overtake the answer that says what was wrong."""

    async def test() -> None:
        async with listening(hello) as listener:
            reader, writer = await asyncio.open_connection(*listener.address)
            writer.write(b"POST /../ HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n")
            for _ in range(20):
                writer.write(b"x" * 10000)
                await writer.drain()
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
            writer.close()

    run(test())


def test_a_half_closed_client_is_answered(run: Run) -> None:
    """A client that shuts down its sending side after a whole request gets the whole answer."""

    async def test() -> None:
        async def late(scope: Scope, receive: Receive, send: Send) -> None:
            for _ in range(20):
                await asyncio.sleep(0)
            await hello(scope, receive, send)

        async with listening(late) as listener:
            reader, writer = await asyncio.open_connection(*listener.address)
            writer.write(GET)
            writer.write_eof()
            assert (await reader.read()).endswith(b"http test")
            writer.close()

    run(test())


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_truncation_shows(run: Run, version: bytes) -> None:
    """A cut response never looks like a whole one, even where only the end of the connection ends it."""

    async def test() -> None:
        flushed = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
            await flushed.wait()
            scope["extensions"][CONNECTION_EXTENSION].abort()

        async with listening(app) as listener:
            reader, writer = await asyncio.open_connection(*listener.address)
            writer.write(b"GET / HTTP/%s\r\nHost: a\r\n\r\n" % version)
            await reader.readuntil(b"part")
            flushed.set()
            if version == b"1.0":
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            else:
                assert await reader.read() == b"\r\n"
            writer.close()

    run(test())


def test_a_client_that_resets_cancels_its_request(run: Run) -> None:
    """The application learns that nobody waits any more."""

    async def test() -> None:
        entered, left = asyncio.Event(), asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                if scope["extensions"][CONNECTION_EXTENSION].gone:
                    left.set()

        async with listening(app) as listener:
            client = socket.create_connection(listener.address)
            client.sendall(GET)
            await entered.wait()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            await left.wait()

    run(test())


# With TLS too ---------------------------------------------------------------------------------------------------------


Sides = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(params=["plain", "tls", "tls over a transport"])
def secure(request: pytest.FixtureRequest, authority: Authority) -> Sides:
    """Server side and client side of a connection: plain, the loop's own TLS, or TLS as it is in a tunnel."""
    if request.param == "plain":
        return {}, {}
    server = {"tls": ServerTls([authority.files("a.example")]), "peek": request.param != "tls"}
    return server, {"ssl": authority.client(), "server_hostname": "a.example"}


def test_a_slow_reader_slows_the_application(run: Run, secure: Sides) -> None:
    """A response much larger than any buffer waits for its client, and arrives whole."""

    async def test() -> None:
        total, sent = 16 * 1024 * 1024, 0

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal sent
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % total)]})
            while sent < total:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": sent + 65536 < total})
                sent += 65536

        async with listening(app, **secure[0]) as listener:
            reader, writer = await asyncio.open_connection(*listener.address, limit=1024, **secure[1])
            writer.write(GET_CLOSE)
            await reader.readuntil(b"\r\n\r\n")
            for _ in range(200):
                await asyncio.sleep(0)
            assert sent < total
            left = total
            while left and (piece := await reader.read(1 << 20)):
                left -= len(piece)
            assert left == 0
            writer.close()

    run(test())


def test_a_slow_application_slows_the_upload(run: Run, secure: Sides) -> None:
    """A large upload waits for the application to receive it, and arrives whole."""

    async def test() -> None:
        total, go = 16 * 1024 * 1024, asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await go.wait()
            size, more = 0, True
            while more:
                message = await receive()
                size += len(message["body"])
                more = message["more_body"]
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"%d" % size})

        async with listening(app, **secure[0]) as listener:
            reader, writer = await asyncio.open_connection(*listener.address, **secure[1])

            async def upload() -> None:
                writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % total)
                for _ in range(total // 65536):
                    writer.write(b"x" * 65536)
                    await writer.drain()

            async with asyncio.TaskGroup() as group:
                uploading = group.create_task(upload())
                done, _ = await asyncio.wait({uploading}, timeout=0.5)
                assert not done
                go.set()
            assert (await reader.read()).endswith(b"%d" % total)
            writer.close()

    run(test())


def test_requests_follow_one_another(run: Run, secure: Sides) -> None:
    """A kept connection serves one request after the other, and says which scheme it is."""

    async def test() -> None:
        async with listening(hello, **secure[0]) as listener:
            reader, writer = await asyncio.open_connection(*listener.address, **secure[1])
            scheme = b"https" if secure[0] else b"http"
            for _ in range(3):
                writer.write(GET)
                assert (await reader.readuntil(b"test")).endswith(scheme + b" http test")
            writer.close()

    run(test())


# TLS ------------------------------------------------------------------------------------------------------------------


def test_the_certificate_follows_the_name(run: Run, authority: Authority) -> None:
    """A name's own certificate goes before a wildcard's, and the first one answers for all others."""

    async def served(address: Address, name: str) -> set[str]:
        context = authority.client()
        context.check_hostname = False
        _, writer = await asyncio.open_connection(*address, ssl=context, server_hostname=name)
        tls = writer.get_extra_info("ssl_object")
        assert tls.selected_alpn_protocol() == "http/1.1"
        names = {value for kind, value in tls.getpeercert()["subjectAltName"] if kind == "DNS"}
        writer.close()
        return names

    async def test() -> None:
        tls = ServerTls(
            [authority.files("first.example"), authority.files("*.b.example"), authority.files("x.b.example")]
        )
        assert tls.covers("y.b.example")
        assert not tls.covers("z.y.b.example")
        assert not tls.covers("b.example")
        async with listening(hello, tls=tls) as listener:
            assert await served(listener.address, "first.example") == {"first.example"}
            assert await served(listener.address, "y.B.example") == {"*.b.example"}
            assert await served(listener.address, "x.b.example") == {"x.b.example"}
            assert await served(listener.address, "z.y.b.example") == {"first.example"}

    run(test())


def test_what_is_no_handshake_is_closed(run: Run, authority: Authority) -> None:
    """Plain HTTP or nonsense on a TLS port ends that connection and nothing else."""

    async def test() -> None:
        tls = ServerTls([authority.files("a.example")])
        async with listening(hello, tls=tls) as listener:
            for data in (GET, b"\x16\x03\x01\x00\x05hello", b"\0" * 100):
                reader, writer = await asyncio.open_connection(*listener.address)
                writer.write(data)
                with contextlib.suppress(ConnectionResetError):
                    assert b"HTTP" not in await reader.read()
                writer.close()
            answer = await fetch(listener.address, ssl=authority.client(), server_hostname="a.example")
            assert answer.endswith(b"https http test")

    run(test())


def test_a_handshake_has_its_time(run: Run, authority: Authority) -> None:
    """Whoever connects to a TLS port and says nothing is closed."""

    async def test() -> None:
        tls = ServerTls([authority.files("a.example")])
        async with listening(hello, tls=tls, limits=ListenLimits(head_timeout=0.05)) as listener:
            reader, writer = await asyncio.open_connection(*listener.address)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()

    run(test())


@pytest.fixture(params=["tls", "tls over a transport"])
def only_tls(request: pytest.FixtureRequest, authority: Authority) -> Sides:
    """Server side and client side of a connection with TLS: the loop's own, or as it is in a tunnel."""
    server = {"tls": ServerTls([authority.files("a.example")]), "peek": request.param != "tls"}
    return server, {"ssl": authority.client(), "server_hostname": "a.example"}


HELLO_BEGINS = b"\x16\x03\x01\x02\x00\x01"


@pytest.mark.parametrize(
    ("limits", "counted"),
    [
        (ListenLimits(connections=5), "connections_refused"),
        (ListenLimits(connections=100, client_connections=2), "connections_refused_of_client"),
    ],
    ids=["all", "one client"],
)
def test_promise_10_handshakes_count_against_the_limits(
    run: Run, only_tls: Sides, limits: ListenLimits, counted: str
) -> None:
    """Of 100 connections that begin a handshake the limit keeps its number; each other one is counted and closed."""
    server, client = only_tls
    places = min(limits.connections, limits.client_connections)
    counts: Counter[str] = Counter()

    async def test() -> None:
        made = connections_of(hello, limits=limits, count=lambda name: counts.update([name]))
        async with listening(hello, **server, made=made) as listener, asyncio.TaskGroup() as group:
            opened = [await asyncio.open_connection(*listener.address) for _ in range(100)]
            for _, writer in opened:
                writer.write(HELLO_BEGINS)
            reads = {group.create_task(end_of(reader)) for reader, _ in opened}
            while len(reads) > places:
                _, reads = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
            assert counts[counted] == 100 - places
            assert len(made.open) == places
            for _, writer in opened:
                writer.close()
            await asyncio.wait(reads)
            answer = b""
            while not answer:  # a place is free once the listener has seen that its client left
                with contextlib.suppress(OSError):
                    answer = await fetch(listener.address, **client)
            assert answer.endswith(b"https http test")

    run(test())


def test_a_stop_ends_handshakes(run: Run, only_tls: Sides) -> None:
    """A client in the middle of a handshake does not delay the end of its listener."""
    server, _ = only_tls

    async def test() -> None:
        limits = ListenLimits(connections=1, head_timeout=600)
        async with listening(hello, **server, limits=limits) as listener:
            reader, writer = await asyncio.open_connection(*listener.address)
            writer.write(HELLO_BEGINS)
            beyond, beyond_writer = await asyncio.open_connection(*listener.address)
            await end_of(beyond)  # the first one is counted by now
            listener.close()
            await listener.drain(600)
            await end_of(reader)
            writer.close()
            beyond_writer.close()

    run(test())


async def end_of(reader: asyncio.StreamReader) -> None:
    """Waits until the other side has closed or reset."""
    with contextlib.suppress(ConnectionResetError):
        await reader.read()


class TwoFamilies(asyncio.SelectorEventLoop):
    """A loop that resolves every name to both loopback addresses."""

    async def getaddrinfo(self, host: Any, port: Any, **how: Any) -> Any:
        resolve = super().getaddrinfo
        return [info for literal in ("127.0.0.1", "::1") for info in await resolve(literal, port, **how)]


def test_promise_6_each_address_of_a_listener_is_reported() -> None:
    """A name with two families is both of its addresses: each is one of our own."""

    async def test() -> None:
        listener = await serve_host(connections_of(hello), Address("both.example", 0))
        assert {address.host for address in listener.addresses} == {"127.0.0.1", "::1"}
        for address in listener.addresses:
            assert (await fetch(address)).endswith(b"http http test")
        listener.close()
        await listener.drain(2)

    with asyncio.Runner(loop_factory=TwoFamilies) as runner:
        runner.run(test())


def test_promise_6_a_wildcard_reports_each_family(run: Run) -> None:
    """An empty host is every address of both families."""

    async def test() -> None:
        listener = await serve_host(connections_of(hello), Address("", 0))
        assert {address.host for address in listener.addresses} == {"0.0.0.0", "::"}
        listener.close()
        await listener.drain(2)

    run(test())


def test_accepting_pauses_while_descriptors_run_out(run: Run) -> None:
    """A connection that cannot be accepted for want of a descriptor waits, is counted, and is served later."""
    paused = asyncio.Event()

    def count(name: str) -> None:
        if name == "accept_paused":
            paused.set()

    async def test() -> None:
        async with listening(hello, made=connections_of(hello, count=count)) as listener:
            with socket.socket() as client, contextlib.ExitStack() as taken:
                client.setblocking(False)
                soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                taken.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
                resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 32, hard))
                with contextlib.suppress(OSError):
                    while True:
                        taken.callback(os.close, os.dup(client.fileno()))
                await asyncio.get_running_loop().sock_connect(client, tuple(listener.address))
                await paused.wait()
                taken.close()
                reader, writer = await asyncio.open_connection(sock=client)
                writer.write(GET_CLOSE)
                assert (await reader.read()).endswith(b"http http test")
                writer.close()

    run(test())


class TestCertificateFiles:
    """What is wrong with a certificate is said with its file's name."""

    def test_none(self) -> None:
        """A TLS listener without certificates cannot be."""
        with pytest.raises(SettingsError, match="empty"):
            ServerTls([])

    def test_missing(self, authority: Authority) -> None:
        """The missing file is named."""
        files = authority.files("a.example")
        files.key.unlink()
        with pytest.raises(SettingsError, match=r"key .*a\.example\.key: No such file"):
            ServerTls([files])

    def test_no_certificate(self, authority: Authority) -> None:
        """A file that holds something else is named."""
        files = authority.files("a.example")
        files.cert.write_text("hello")
        with pytest.raises(SettingsError, match=r"a\.example\.pem"):
            ServerTls([files])

    def test_somebody_elses_key(self, authority: Authority) -> None:
        """A key that does not fit is refused at the start, not at the first handshake."""
        files = authority.files("a.example")
        with pytest.raises(SettingsError, match=r"b\.example\.key"):
            ServerTls([Files(files.cert, authority.files("b.example").key)])

    def test_an_encrypted_key(self, authority: Authority) -> None:
        """Nobody is asked for a pass phrase on a terminal that a service does not have."""
        from cryptography.hazmat.primitives import serialization

        files = authority.files("a.example")
        key = serialization.load_pem_private_key(files.key.read_bytes(), None)
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )
        with pytest.raises(SettingsError, match=r"a\.example\.key"):
            ServerTls([files])


# First bytes ----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def peeking(tls: ServerTls | None, *, limits: ListenLimits | None = None) -> AsyncIterator[Address]:
    connections = connections_of(hello, account="acct-1", limits=limits)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Peek(connections, tls), "127.0.0.1", 0)
    try:
        yield Address(*server.sockets[0].getsockname()[:2])
    finally:
        server.close()
        await connections.drain(2)
        assert not connections.open
        assert len(connections.origins) == 0


def test_content_decides(run: Run, authority: Authority) -> None:
    """On one port TLS is TLS and plain HTTP is plain HTTP."""

    async def test() -> None:
        async with peeking(ServerTls([authority.files("a.example")])) as address:
            assert (await fetch(address)).endswith(b"\r\n\r\nhttp tunnel acct-1")
            answer = await fetch(address, ssl=authority.client(), server_hostname="a.example")
            assert answer.endswith(b"\r\n\r\nhttps tunnel acct-1")

    run(test())


def test_a_client_hello_may_come_in_pieces(run: Run, authority: Authority) -> None:
    """What was read to look at is not lost for the handshake."""

    async def test() -> None:
        async with peeking(ServerTls([authority.files("a.example")])) as address:
            inside, outside = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = authority.client().wrap_bio(inside, outside, server_hostname="a.example")
            reader, writer = await asyncio.open_connection(*address)
            writer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                try:
                    client.do_handshake()
                except ssl.SSLWantReadError:
                    for byte in outside.read():
                        writer.write(bytes([byte]))
                        await asyncio.sleep(0)
                    inside.write(await reader.read(65536))
                else:
                    break
            client.write(GET)
            writer.write(outside.read())
            answer = b""
            while b"acct-1" not in answer:
                inside.write(await reader.read(65536))
                with contextlib.suppress(ssl.SSLWantReadError):
                    answer += client.read()
            writer.close()

    run(test())


def test_without_a_certificate_tls_is_closed_and_plain_is_served(run: Run) -> None:
    """There is nothing to shake hands with, so nobody pretends."""

    async def test() -> None:
        async with peeking(None) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"\x16\x03\x01\x02\x00\x01")
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            assert (await fetch(address)).endswith(b"http tunnel acct-1")

    run(test())


def test_a_silent_client_stalls_nobody(run: Run) -> None:
    """Others are served while somebody says nothing, and he is closed after his time."""

    async def test() -> None:
        async with peeking(None, limits=ListenLimits(head_timeout=0.2)) as address:
            reader, writer = await asyncio.open_connection(*address)
            assert (await fetch(address)).endswith(b"http tunnel acct-1")
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()

    run(test())


# Inside a tunnel ------------------------------------------------------------------------------------------------------


class LoopbackTunnel:
    """A tunnel whose overlay is this machine's loopback: its ports are whatever the system gives."""

    def __init__(self, *, refuses: int = 0) -> None:
        self.addresses = ("127.0.0.1",)
        self.refuses = refuses
        self.ports: dict[int, Address] = {}
        self.closed: list[int] = []

    async def listen(self, port: int, protocol_factory: Callable[[], asyncio.BaseProtocol]) -> Any:
        if port == self.refuses:
            raise OSError("no such port")
        server = await asyncio.get_running_loop().create_server(protocol_factory, "127.0.0.1", 0)
        self.ports[port] = Address(*server.sockets[0].getsockname()[:2])
        tunnel = self

        class Listener:
            def close(self) -> None:
                server.close()
                tunnel.closed.append(port)

        return Listener()


@pytest.mark.parametrize("with_tls", [True, False])
def test_a_tunnel_listens_on_both_ports(run: Run, authority: Authority, with_tls: bool) -> None:
    """On 80 and on 443 peers find us; HTTPS is announced only where there is a certificate."""

    async def test() -> None:
        tunnel: Any = LoopbackTunnel()
        tls = ServerTls([authority.files("a.example")]) if with_tls else None
        listener = await serve_inside(connections_of(hello, account="acct-1"), tunnel, tls=tls)
        assert (listener.address, listener.https) == ("127.0.0.1", with_tls)
        for port in (80, 443):
            assert (await fetch(tunnel.ports[port])).endswith(b"http tunnel acct-1")
            if with_tls:
                answer = await fetch(tunnel.ports[port], ssl=authority.client(), server_hostname="a.example")
                assert answer.endswith(b"https tunnel acct-1")
        listener.close()
        await listener.drain(2)
        assert sorted(tunnel.closed) == [80, 443]

    run(test())


@pytest.mark.parametrize("authenticated", [True, False], ids=["by the transport", "by the roster"])
def test_promise_1_a_connection_keeps_the_peer_that_opened_it(run: Run, authenticated: bool) -> None:
    """A request of an open connection is of the peer that opened it, also after another peer was given its address."""
    alice, mallory = peer("100.64.0.9", "alice"), peer("100.64.0.9", "mallory")
    served: asyncio.Queue[PublicKey | None] = asyncio.Queue()

    async def callers(scope: Scope, receive: Receive, send: Send) -> None:
        served.put_nowait(scope["state"][ORIGIN_STATE].peer_key)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def test() -> None:
        tunnel = FakeTunnel({"100.64.0.9": alice})
        connections = connections_of(callers, account="acct-1", tunnel=tunnel)
        await serve_inside(connections, tunnel, tls=None)

        def opened(of: Peer) -> MemoryTransport:
            extra = {"peername": ("100.64.0.9", 50000), "sockname": ("100.64.0.1", 80)}
            if authenticated:
                extra["tunnel_peer"] = of.public_key
            return MemoryTransport.open(tunnel.listening[80](), extra=extra)

        async def caller(transport: MemoryTransport) -> PublicKey | None:
            transport.feed(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
            return await served.get()

        old = opened(alice)
        assert await caller(old) == alice.public_key
        tunnel.change({"100.64.0.9": mallory})
        assert await caller(old) == alice.public_key
        assert await caller(opened(mallory)) == mallory.public_key
        if authenticated:  # the roster may lag behind what the packets were authenticated with
            assert await caller(opened(alice)) == alice.public_key
        tunnel.change({})
        assert await caller(old) == alice.public_key
        await connections.drain(0)

    run(test())


@pytest.mark.parametrize("refuses", [80, 443])
def test_a_port_that_fails_closes_the_other(run: Run, refuses: int) -> None:
    """Half a listener is none."""

    async def test() -> None:
        tunnel: Any = LoopbackTunnel(refuses=refuses)
        with pytest.raises(OSError, match="no such port"):
            await serve_inside(connections_of(hello, account="acct-1"), tunnel, tls=None)
        assert sorted(tunnel.closed) == sorted(tunnel.ports)

    run(test())


def test_the_kernel_looks_for_clients_that_vanished(run: Run) -> None:
    """Every accepted connection has the listener's bound on unanswered probes and on bytes that nobody confirms."""
    options = [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    ]
    found: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        served: Any = scope["extensions"][CONNECTION_EXTENSION]
        handle = served.protocol.transport.get_extra_info("socket")
        with socket.socket(fileno=socket.dup(handle.fileno())) as twin:
            found.extend(twin.getsockopt(*option) for option in options)
        await hello(scope, receive, send)

    async def play() -> None:
        made = connections_of(app, limits=ListenLimits(write_timeout=40))
        listener = await serve_host(made, Address("127.0.0.1", 0))
        reader, writer = await asyncio.open_connection(*listener.address)
        writer.write(GET_CLOSE)
        await reader.read()
        writer.close()
        listener.close()
        await listener.drain(1)
        assert found == [1, 40, 40_000]

    run(play())
