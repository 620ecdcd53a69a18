"""The pool: who gets which connection, what is kept, and what every failure to get one is called."""
# Over 500 lines: one pool, tried with one scripted dialer.

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from netbird_proxy.api.errors import (
    AddressRefused,
    DialFailed,
    DialRefused,
    DialTimeout,
    DialUnreachable,
    TunnelNotReady,
    UpstreamClosed,
    UpstreamError,
    UpstreamOverloaded,
)
from netbird_proxy.api.model import Address, Upstream
from netbird_proxy.api.tunnels import ProtocolFactory
from netbird_proxy.testing.transports import MemoryDialer, MemoryTransport
from netbird_proxy.upstreams.host_dialer import HostDialer
from netbird_proxy.upstreams.pool import UpstreamPool
from netbird_proxy.upstreams.protocols import Pool, UpstreamConnection

T = TypeVar("T")
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
UP = Upstream("http", Address("10.0.0.7", 8080))


def started(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Begun beside the test, which awaits it before it ends."""
    return asyncio.create_task(work)  # noqa: TID251 - see above


async def settle() -> None:
    """Let what the loop has ready run: two rounds, as closing a transport takes one."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def exchange(pool: Pool, transport: Callable[[], MemoryTransport]) -> UpstreamConnection:
    """One whole exchange; the connection has been given back."""
    connection = await pool.acquire()
    connection.send_head(GET, method=b"GET", has_body=False)
    transport().feed(OK)
    answer = await connection.answer()
    while await answer.read():
        pass
    pool.release(connection)
    return connection


async def test_a_clean_exchange_s_connection_is_used_again() -> None:
    """One dial serves exchanges that follow each other; `reused` tells which they are."""
    dialer = MemoryDialer()
    pool = UpstreamPool(UP, dialer)
    first = await exchange(pool, lambda: dialer.transports[0])
    assert not first.reused
    second = await exchange(pool, lambda: dialer.transports[0])
    assert second is first
    assert second.reused
    assert dialer.dialed == [(UP.address, 30.0)]
    assert repr(pool) == "<UpstreamPool http://10.0.0.7:8080: 1 idle, 0 busy, 0 dialing>"


async def test_fresh_never_gives_an_idle_one() -> None:
    """The retry after a race must not meet the next dead connection."""
    dialer = MemoryDialer()
    pool = UpstreamPool(UP, dialer)
    first = await exchange(pool, lambda: dialer.transports[0])
    connection = await pool.acquire(fresh=True)
    assert connection is not first
    assert not connection.reused


async def test_the_newest_idle_one_goes_first() -> None:
    """So that the oldest can age out."""
    dialer = MemoryDialer()
    pool = UpstreamPool(UP, dialer)
    one, two = await pool.acquire(), await pool.acquire()
    pool.release(one)
    pool.release(two)
    assert await pool.acquire() is two
    assert await pool.acquire() is one


async def test_the_upstream_s_own_dial_timeout() -> None:
    """A target's timeout goes before the proxy's default."""
    dialer = MemoryDialer()
    await UpstreamPool(Upstream("http", UP.address, dial_timeout=1.5), dialer).acquire()
    assert dialer.dialed == [(UP.address, 1.5)]


@pytest.mark.parametrize("how", ["eof", "reset", "bytes"])
async def test_what_ends_while_idle_leaves_at_once(how: str) -> None:
    """A connection that the upstream closed, broke or talked on is not handed out again."""
    dialer = MemoryDialer()
    pool = UpstreamPool(UP, dialer)
    await exchange(pool, lambda: dialer.transports[0])
    assert pool.idle == 1
    transport = dialer.transports[0]
    if how == "eof":
        transport.feed_eof()
    elif how == "reset":
        transport.break_off()
    else:
        transport.feed(OK)
    assert pool.idle == 0
    await exchange(pool, lambda: dialer.transports[1])
    assert len(dialer.dialed) == 2


async def test_unfinished_exchanges_are_not_kept() -> None:
    """Given back too early, a connection is reset and its place is free."""
    dialer = MemoryDialer()
    pool = UpstreamPool(UP, dialer)
    connection = await pool.acquire()
    connection.send_head(GET, method=b"GET", has_body=False)
    pool.release(connection)
    assert (pool.idle, pool.in_flight) == (0, 0)
    assert dialer.transports[0].aborted


async def test_abort_gives_the_place_back() -> None:
    """After an abort nothing is in flight, and a release that comes too late does nothing."""
    dialer = MemoryDialer()
    pool = UpstreamPool(UP, dialer)
    connection = await pool.acquire()
    connection.send_head(GET, method=b"GET", has_body=False)
    connection.abort()
    assert (pool.idle, pool.in_flight) == (0, 0)
    pool.release(connection)
    assert (pool.idle, pool.in_flight) == (0, 0)


async def test_a_lost_connection_keeps_its_place_until_it_is_given_back() -> None:
    """What is in flight is exchanges, not sockets: a slow client still holds memory after its upstream has left."""
    dialer = MemoryDialer()
    pool = UpstreamPool(UP, dialer)
    connection = await pool.acquire()
    connection.send_head(GET, method=b"GET", has_body=False)
    dialer.transports[0].break_off()
    assert pool.in_flight == 1
    pool.release(connection)
    assert (pool.idle, pool.in_flight) == (0, 0)


async def test_only_so_many_in_flight() -> None:
    """Dials count, too; a place that is given back can be taken."""
    dialer = MemoryDialer()
    dialer.gate = asyncio.Event()
    pool = UpstreamPool(UP, dialer, max_in_flight=2)
    dials = [started(pool.acquire()), started(pool.acquire())]
    await settle()
    with pytest.raises(UpstreamOverloaded):
        await pool.acquire()
    dialer.gate.set()
    first, _ = await asyncio.gather(*dials)
    with pytest.raises(UpstreamOverloaded):
        await pool.acquire()
    pool.release(first)
    assert await pool.acquire() is first


async def held(pool: UpstreamPool, source: str) -> list[UpstreamConnection]:
    """As many places as this source can get."""
    got: list[UpstreamConnection] = []
    while True:
        try:
            got.append(await pool.acquire(source=source))
        except UpstreamOverloaded:
            return got


async def test_nobody_shuts_others_out() -> None:
    """Alone, a client gets half of the places, the next one half of what is left, and so on: there is always some."""
    pool = UpstreamPool(UP, MemoryDialer(), max_in_flight=512)
    first = await held(pool, "a")
    second = await held(pool, "b")
    others = [await held(pool, source) for source in "cdefgh"]
    assert len(first) == 256
    assert len(second) == 128
    assert all(others)
    await pool.acquire(source="late")
    with pytest.raises(UpstreamOverloaded, match="one client has 256 exchanges in flight"):
        await pool.acquire(source="a")


@pytest.mark.parametrize(("places", "share", "alone"), [(512, 1.0, 512), (512, 0.25, 128), (2, 0.5, 1), (1, 0.01, 1)])
async def test_how_much_one_may_take_is_a_setting(places: int, share: float, alone: int) -> None:
    """All of it where that is wanted, and one place always, if it is free."""
    pool = UpstreamPool(UP, MemoryDialer(), max_in_flight=places, share=share)
    assert len(await held(pool, "a")) == alone


@pytest.mark.parametrize("how", ["given back", "aborted", "dial failed", "dial cancelled", "upstream left"])
async def test_a_place_is_given_back_once(how: str) -> None:
    """However an exchange ends, its client has the place again, and not twice."""
    dialer = MemoryDialer()
    pool = UpstreamPool(UP, dialer, max_in_flight=4)
    kept = await pool.acquire(source="a")
    if how == "dial failed":
        dialer.fail = DialRefused("no")
        with pytest.raises(DialRefused):
            await pool.acquire(source="a")
        dialer.fail = None
    elif how == "dial cancelled":
        dialer.gate = asyncio.Event()
        dial = started(pool.acquire(source="a"))
        await settle()
        dial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dial
        dialer.gate = None
    else:
        one = await pool.acquire(source="a")
        one.send_head(GET, method=b"GET", has_body=False)
        if how == "given back":
            dialer.transports[-1].feed(OK)
            await (await one.answer()).read()
        elif how == "aborted":
            one.abort()
        else:
            dialer.transports[-1].feed_eof()
        pool.release(one)
        pool.release(one)
    assert pool._held == {"a": 1}
    assert len(await held(pool, "a")) == 1
    kept.abort()
    kept.abort()
    pool.release(kept)
    assert pool._held == {"a": 1}


async def test_only_so_many_idle() -> None:
    """More than enough are closed when they are given back."""
    dialer = MemoryDialer()
    pool = UpstreamPool(UP, dialer, max_idle=1)
    one, two = await pool.acquire(), await pool.acquire()
    pool.release(one)
    pool.release(two)
    await settle()
    assert pool.idle == 1
    assert [transport.lost for transport in dialer.transports] == [False, True]


async def test_idle_ones_age_out() -> None:
    """An unused connection is closed after its time, and one that was used meanwhile is not."""
    dialer = MemoryDialer()
    pool = UpstreamPool(UP, dialer, idle_timeout=0.05)
    one, two = await pool.acquire(), await pool.acquire()
    lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    class Watched(MemoryTransport):
        def close(self) -> None:
            super().close()
            if not lost.done():
                lost.set_result(None)

    dialer.transports[0].__class__ = Watched
    pool.release(one)
    async with asyncio.timeout(10):
        await lost
    assert pool.idle == 0
    pool.release(two)
    assert pool.idle == 1
    pool.retire()


async def test_retiring_closes_the_idle_and_lets_the_busy_finish() -> None:
    """A pool that is no longer wanted loses no exchange, not even one that comes late, and keeps nothing."""
    dialer = MemoryDialer()
    pool = UpstreamPool(UP, dialer)
    busy, idle = await pool.acquire(), await pool.acquire()
    pool.release(idle)
    pool.retire()
    await settle()
    assert dialer.transports[1].lost
    busy.send_head(GET, method=b"GET", has_body=False)
    dialer.transports[0].feed(OK)
    answer = await busy.answer()
    assert await answer.read() == b"hi"
    pool.release(busy)
    await exchange(pool, lambda: dialer.transports[2])
    await settle()
    assert pool.idle == 0
    assert all(transport.lost for transport in dialer.transports)


async def test_closing_waits_for_the_busy_then_resets_them() -> None:
    """Grace is for those that finish in time; what is left then is reset, and later ones are refused."""
    dialer = MemoryDialer()
    pool = UpstreamPool(UP, dialer)
    quick, stuck = await pool.acquire(), await pool.acquire()
    stuck.send_head(GET, method=b"GET", has_body=False)
    closing = started(pool.close(grace=0.05))
    await settle()
    pool.release(quick)
    assert not closing.done()
    async with asyncio.timeout(10):
        await closing
    with pytest.raises(UpstreamClosed):
        await stuck.answer()
    assert pool.in_flight == 0
    with pytest.raises(DialFailed):
        await pool.acquire()


async def test_closing_ends_early_when_all_have_finished() -> None:
    """Nobody waits out a grace that nobody needs."""
    dialer = MemoryDialer()
    pool = UpstreamPool(UP, dialer)
    busy = await pool.acquire()
    closing = started(pool.close(grace=3600))
    await settle()
    pool.release(busy)
    async with asyncio.timeout(10):
        await closing


async def test_closing_that_is_cancelled_resets_at_once() -> None:
    """A shutdown in a hurry leaves nothing open."""
    dialer = MemoryDialer()
    pool = UpstreamPool(UP, dialer)
    await pool.acquire()
    closing = started(pool.close(grace=3600))
    await settle()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert dialer.transports[0].aborted


async def test_a_dial_that_ends_after_the_pool_was_closed_is_undone() -> None:
    """A connection that nobody will use is not left open."""
    dialer = MemoryDialer()
    dialer.gate = asyncio.Event()
    pool = UpstreamPool(UP, dialer)
    dial = started(pool.acquire())
    await settle()
    await pool.close()
    dialer.gate.set()
    with pytest.raises(DialFailed):
        await dial
    assert dialer.transports[0].aborted
    assert pool.in_flight == 0


FAILURES: list[tuple[BaseException, type[UpstreamError]]] = [
    (DialRefused("no"), DialRefused),
    (DialTimeout("no"), DialTimeout),
    (DialUnreachable("no"), DialUnreachable),
    (TunnelNotReady("no"), TunnelNotReady),
    (AddressRefused("no"), AddressRefused),
    (TimeoutError(), DialTimeout),
    (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), DialFailed),
    (OSError(errno.EMFILE, "too many open files"), DialFailed),
    (socket.gaierror(socket.EAI_NONAME, "unknown"), DialFailed),
    (ssl.SSLError("odd"), DialFailed),
    (RuntimeError("a plugin's mistake"), DialFailed),
    (KeyError("x"), DialFailed),
]


@pytest.mark.parametrize(("raised", "expected"), FAILURES, ids=[type(raised).__name__ for raised, _ in FAILURES])
async def test_whatever_a_dialer_raises_is_an_upstream_error(
    raised: BaseException, expected: type[UpstreamError]
) -> None:
    """Our own errors pass, all others become one of them, and the place is free again."""
    dialer = MemoryDialer()
    dialer.fail = raised
    pool = UpstreamPool(UP, dialer)
    with pytest.raises(UpstreamError) as caught:
        await pool.acquire()
    assert type(caught.value) is expected
    assert pool.in_flight == 0


async def test_a_dialer_that_hangs_is_given_up() -> None:
    """The deadline holds even where a plugin's dialer forgets it."""
    dialer = MemoryDialer()
    dialer.gate = asyncio.Event()
    pool = UpstreamPool(UP, dialer, dial_timeout=0.02)
    async with asyncio.timeout(10):
        with pytest.raises(DialTimeout):
            await pool.acquire()
    assert pool.in_flight == 0


async def test_a_dialer_that_answers_nonsense_is_a_failed_dial() -> None:
    """Nothing, or a stream that nobody connected, is not a connection."""

    class Nothing:
        async def dial(
            self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
        ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
            return None  # type: ignore[return-value]

    class Unconnected:
        async def dial(
            self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
        ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
            protocol = protocol_factory()
            return MemoryTransport(protocol), protocol

    for dialer in (Nothing(), Unconnected()):
        with pytest.raises(DialFailed):
            await UpstreamPool(UP, dialer).acquire()


async def test_a_cancelled_dial_frees_its_place() -> None:
    """A client that leaves while its upstream is dialed holds nothing."""
    dialer = MemoryDialer()
    dialer.gate = asyncio.Event()
    pool = UpstreamPool(UP, dialer)
    dial = started(pool.acquire())
    await settle()
    assert pool.in_flight == 1
    dial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dial
    assert pool.in_flight == 0


# Over real sockets ----------------------------------------------------------------------------------------------------

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[UpstreamPool]:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(10):
                await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(client, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        pool = UpstreamPool(Upstream("http", Address("127.0.0.1", port)), HostDialer())
        try:
            async with asyncio.timeout(20):
                yield pool
        finally:
            await pool.close()


async def test_a_keep_alive_server() -> None:
    """Many exchanges over one real connection, with bodies both ways."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(5)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n" + body)
            await writer.drain()
            writer.write(b"\r\n0\r\n\r\n")

    async with serving(serve) as pool:
        for _ in range(20):
            connection = await pool.acquire()
            connection.send_head(b"PUT / HTTP/1.1\r\ncontent-length: 5\r\n\r\n", method=b"PUT", has_body=True)
            await connection.send_body(b"hello", chunked=False)
            connection.finish_body([], chunked=False)
            answer = await connection.answer()
            body = b""
            while piece := await answer.read():
                body += piece
            assert body == b"hello"
            pool.release(connection)
        assert (connections, pool.idle) == (1, 1)


async def test_a_large_answer_at_a_slow_reader_s_pace() -> None:
    """Ten megabytes come whole although they are held back by the reader, and little is held meanwhile."""
    total = 10_000_000

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        for _ in range(total // 100_000):
            writer.write(b"x" * 100_000)
            await writer.drain()
        await reader.read()

    async with serving(serve) as pool:
        connection = await pool.acquire()
        connection.send_head(GET, method=b"GET", has_body=False)
        answer = await connection.answer()
        size = most = 0
        while piece := await answer.read():
            size += len(piece)
            most = max(most, answer.buffered)
            await asyncio.sleep(0)
        assert size == total
        assert most < 1_000_000
        pool.release(connection)
        assert pool.idle == 1


async def test_a_large_body_at_a_slow_upstream_s_pace() -> None:
    """An upload waits for the upstream instead of piling up here."""
    total = 10_000_000

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        got = 0
        while got < total:
            got += len(await reader.read(65536))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async with serving(serve) as pool:
        connection = await pool.acquire()
        head = b"PUT / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % total
        connection.send_head(head, method=b"PUT", has_body=True)
        for _ in range(total // 100_000):
            await connection.send_body(b"x" * 100_000, chunked=False)
        connection.finish_body([], chunked=False)
        assert (await connection.answer()).status == 200
        pool.release(connection)
        assert pool.idle == 1


async def test_an_abort_resets_the_upstream() -> None:
    """An upstream that reads its body until the close sees a reset, not an orderly end."""
    seen: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
            seen.set_result("end")
        except ConnectionResetError:
            seen.set_result("reset")

    async with serving(serve) as pool:
        connection = await pool.acquire()
        connection.send_head(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", method=b"POST", has_body=True)
        await connection.send_body(b"half", chunked=True)
        connection.abort()
        assert await seen == "reset"
        assert pool.in_flight == 0


async def test_a_server_that_closes_idle_connections() -> None:
    """The pool notices, and the next exchange dials again instead of failing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)

    async with serving(serve) as pool:
        for _ in range(3):
            connection = await pool.acquire()
            connection.send_head(GET, method=b"GET", has_body=False)
            answer = await connection.answer()
            while await answer.read():
                pass
            pool.release(connection)
            while pool.idle:  # noqa: ASYNC110 - until the close has arrived, at most the timeout of `serving`
                await asyncio.sleep(0)
