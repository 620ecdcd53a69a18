"""Bodies and streams over real sockets: what is passed on when, and what happens to clients that are slow or leave."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from netbird_proxy.api.model import Address
from netbird_proxy.api.response_head import ResponseHead
from netbird_proxy.api.steps import ExchangeView, ResponseTransform
from netbird_proxy.app import ReverseProxy
from netbird_proxy.listening.connections import Connections, ListenLimits
from netbird_proxy.listening.origins import Origins
from netbird_proxy.listening.sockets import serve_host
from netbird_proxy.pipeline.ending import Environment
from netbird_proxy.routing.apply import Routing
from netbird_proxy.routing.compile import Compiler
from netbird_proxy.testing.fakes import FakeProxy
from netbird_proxy.testing.makers import HOST, mapping, route, upstream
from netbird_proxy.testing.transcript import StepHooks
from netbird_proxy.upstreams.pool import UpstreamPool
from netbird_proxy.upstreams.pools import Pools

Run = Callable[[Coroutine[Any, Any, None]], None]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]

GET = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
CHUNKED = f"POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


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


class House:
    """A listener of ours with one route, and the upstream behind it."""

    def __init__(self) -> None:
        self.seen: asyncio.Queue[ExchangeView] = asyncio.Queue()
        self.upstreams: asyncio.Queue[Client] = asyncio.Queue()
        """Connections that the upstream has accepted; the test speaks for it."""
        self.address = Address("", 0)
        self.writers: list[asyncio.StreamWriter] = []

    async def connect(self, *, receive_buffer: int = 0) -> Client:
        handle = socket.socket()
        if receive_buffer:
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        handle.setblocking(False)
        await asyncio.get_running_loop().sock_connect(handle, (self.address.host, self.address.port))
        client = await asyncio.open_connection(sock=handle, limit=1 << 14)
        self.writers.append(client[1])
        return client

    async def begin(self, request: bytes, **options: Any) -> tuple[Client, Client]:
        """A request under way: the client's end and the upstream's, which has read the head."""
        client = await self.connect(**options)
        client[1].write(request)
        behind = await self.upstreams.get()
        await behind[0].readuntil(b"\r\n\r\n")
        return client, behind


@asynccontextmanager
async def house(limits: ListenLimits | None = None, hooks: StepHooks | None = None) -> AsyncIterator[House]:
    made = House()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.writers.append(writer)
        await made.upstreams.put((reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pools = Pools(UpstreamPool)
    compiler = Compiler(
        hooks or StepHooks(), FakeProxy(), pools, Environment(), observers=[("test", made.seen.put_nowait)]
    )
    routing = Routing(compiler)
    [report] = routing.apply("file", [mapping(route(to=upstream(f"http://127.0.0.1:{port}")), source="file")])
    assert report.ok, report.refused
    origins = Origins()
    app = ReverseProxy(routing, recognizes=origins.recognizes)
    connections = Connections(app, origins=origins, listener="test", limits=limits)
    listener = await serve_host(connections, Address("127.0.0.1", 0))
    made.address = listener.address
    try:
        yield made
    finally:
        listener.close()
        await listener.drain(0)
        pools.close()
        for writer in made.writers:
            writer.transport.abort()
        server.close()
        await asyncio.sleep(0)


def vanish(client: Client) -> None:
    """Leave without a word: what was sent is thrown away, the other end gets a reset."""
    handle = client[1].get_extra_info("socket")
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client[1].transport.abort()


async def ended_badly(behind: Client) -> bytes:
    """What still came to an upstream whose connection then was reset, or ended without the body's end."""
    got = b""
    try:
        while piece := await behind[0].read(65536):
            got += piece
    except ConnectionResetError:
        pass
    assert not got.endswith(b"0\r\n\r\n"), "a cut body looks complete"
    return got


async def flood(behind: Client) -> None:
    """Send for as long as anybody takes it."""
    while True:
        behind[1].write(b"x" * (1 << 20))
        await behind[1].drain()


# At once --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [STREAM, UNTIL_CLOSE], ids=["chunked", "until close"])
def test_each_event_reaches_the_client_before_the_next_is_made(run: Run, head: bytes) -> None:
    """Nothing waits for more: head and every event of a stream are there while the upstream is silent."""

    async def play() -> None:
        async with house() as made:
            client, behind = await made.begin(GET)
            behind[1].write(head)
            got = await client[0].readuntil(b"\r\n\r\n")
            assert got.startswith(b"HTTP/1.1 200 ")
            for number in range(5):
                event = b"data: %d\n\n" % number
                behind[1].write(b"%x\r\n%b\r\n" % (len(event), event) if head is STREAM else event)
                assert (await client[0].readuntil(event)).endswith(event)

    run(play())


def test_each_chunk_reaches_the_upstream_before_the_next_is_sent(run: Run) -> None:
    """A streamed upload is not gathered, and an upstream may answer piece by piece while it comes."""

    async def play() -> None:
        async with house() as made:
            client, behind = await made.begin(CHUNKED)
            behind[1].write(STREAM)
            for number in range(5):
                word = b"%08d" % number
                client[1].write(b"8\r\n%b\r\n" % word)
                assert await behind[0].readuntil(word)
                behind[1].write(b"8\r\n%b\r\n" % word)
                assert await client[0].readuntil(word)
            client[1].write(b"0\r\n\r\n")
            assert await behind[0].readuntil(b"0\r\n\r\n")
            behind[1].write(b"0\r\n\r\n")
            assert await client[0].readuntil(b"\r\n0\r\n\r\n")
            exchange = await made.seen.get()
            assert (exchange.bytes_received, exchange.bytes_sent, exchange.error) == (40, 40, None)

    run(play())


# Half-closed ----------------------------------------------------------------------------------------------------------


def test_a_client_that_has_said_all_gets_its_answer(run: Run) -> None:
    """Shutting down the sending side after a whole request says nothing about the answer."""

    async def play() -> None:
        async with house() as made:
            client, behind = await made.begin(GET)
            client[1].write_eof()
            behind[1].write(OK)
            assert (await client[0].read()).endswith(b"\r\n\r\nok")
            exchange = await made.seen.get()
            assert (exchange.status, exchange.error) == (200, None)

    run(play())


def test_a_half_closed_client_that_reads_is_served_beyond_the_bound(run: Run) -> None:
    """The bound is for those who may have left: whoever goes on reading a long answer gets it whole."""

    async def play() -> None:
        async with house(ListenLimits(half_close_timeout=0.1)) as made:
            client, behind = await made.begin(GET)
            client[1].write_eof()
            behind[1].write(UNTIL_CLOSE)
            await client[0].readuntil(b"\r\n\r\n")
            for number in range(20):
                behind[1].write(b"%04d" % number)
                await asyncio.sleep(0.02)
                assert await client[0].readuntil(b"%04d" % number)
            behind[1].close()
            assert (await client[0].read()).endswith(b"\r\n0\r\n\r\n")

    run(play())


def test_a_half_closed_client_that_gets_nothing_is_given_up(run: Run) -> None:
    """It may have left altogether: an upstream that is silent is not held for it."""

    async def play() -> None:
        async with house(ListenLimits(half_close_timeout=0.1)) as made:
            client, behind = await made.begin(GET)
            client[1].write_eof()
            await ended_badly(behind)
            exchange = await made.seen.get()
            assert (exchange.status, exchange.error and exchange.error.code) == (499, "client_gone")

    run(play())


def test_an_end_within_a_body_is_no_end_of_the_body(run: Run) -> None:
    """A half-close in the middle of an upload is a client that left; the upstream is reset."""

    async def play() -> None:
        async with house() as made:
            client, behind = await made.begin(CHUNKED + b"3\r\nabc\r\n")
            await behind[0].readuntil(b"abc\r\n")
            client[1].write_eof()
            await ended_badly(behind)
            exchange = await made.seen.get()
            assert (exchange.status, exchange.error and exchange.error.code) == (499, "client_gone")

    run(play())


# Vanished -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [b"", STREAM, STREAM + b"3\r\nabc\r\n"], ids=["before", "at the head", "within"])
def test_a_client_that_vanishes_frees_its_upstream(run: Run, head: bytes) -> None:
    """Before, at the beginning of and within an answer: the upstream's connection ends, and the log says 499 or 200."""

    async def play() -> None:
        async with house() as made:
            client, behind = await made.begin(GET)
            if head:
                behind[1].write(head)
                await client[0].readuntil(b"\r\n\r\n")
            vanish(client)
            await ended_badly(behind)
            exchange = await made.seen.get()
            assert exchange.status == (200 if head else 499)
            assert exchange.error is not None
            assert exchange.error.code == "client_gone"

    run(play())


def test_an_upload_whose_client_vanishes_never_looks_complete(run: Run) -> None:
    """Nor does what came of it look whole: the upstream's connection is reset within the body."""

    async def play() -> None:
        async with house() as made:
            client, behind = await made.begin(CHUNKED + b"3\r\nabc\r\n")
            await behind[0].readuntil(b"abc\r\n")
            vanish(client)
            await ended_badly(behind)
            assert (await made.seen.get()).status == 499

    run(play())


def test_an_upstream_that_vanishes_cuts_the_client_off(run: Run) -> None:
    """A truncated answer of unknown length must not look complete: the client sees a reset, or no last chunk."""

    async def play() -> None:
        async with house() as made:
            client, behind = await made.begin(GET)
            behind[1].write(STREAM + b"3\r\nabc\r\n")
            await client[0].readuntil(b"abc\r\n")
            vanish(behind)
            await ended_badly(client)
            exchange = await made.seen.get()
            assert exchange.error is not None
            assert exchange.error.code == "upstream_closed"

    run(play())


# Slow -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (ListenLimits(body_idle=0.1), "read_timeout"),
        (ListenLimits(min_rate=1000, min_rate_grace=0.1), "too_slow"),
    ],
    ids=["idle", "rate"],
)
def test_a_body_that_does_not_come_is_answered_and_its_upstream_reset(
    run: Run, limits: ListenLimits, code: str
) -> None:
    """408 with its own code and the exchange's id; nothing of the body looks complete upstream."""

    async def play() -> None:
        async with house(limits) as made:
            client, behind = await made.begin(CHUNKED + b"3\r\nabc\r\n")
            await behind[0].readuntil(b"abc\r\n")
            await ended_badly(behind)
            answer = await client[0].read()
            exchange = await made.seen.get()
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert code.encode() in answer
            assert exchange.id.encode() in answer
            assert (exchange.status, exchange.error and exchange.error.code) == (408, code)

    run(play())


def test_an_upstream_that_takes_nothing_is_not_the_clients_fault(run: Run) -> None:
    """While the upstream does not read, the client's time stands still, however much it still wants to send."""

    async def play() -> None:
        async with house(ListenLimits(body_idle=0.1, min_rate=10**6, min_rate_grace=0.2)) as made:
            size = 32 * 1024 * 1024
            client, behind = await made.begin(
                f"PUT / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {size}\r\n\r\n".encode()
            )
            client[1].write(b"x" * size)
            await asyncio.sleep(0.3)
            got = 0
            while got < size:
                got += len(await behind[0].read(1 << 20))
            behind[1].write(OK)
            assert (await client[0].readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")

    run(play())


@pytest.mark.parametrize(
    "limits",
    [ListenLimits(write_timeout=0.2), ListenLimits(write_timeout=1000, min_rate=10**7, min_rate_grace=0.2)],
    ids=["stalls", "never began to read"],
)
def test_a_client_that_does_not_take_its_answer_is_cut(run: Run, limits: ListenLimits) -> None:
    """It holds an upstream and memory; when it takes nothing for the bound, both are given back."""

    async def play() -> None:
        async with house(limits) as made:
            client, behind = await made.begin(GET, receive_buffer=4096)
            client[1].transport.pause_reading()
            behind[1].write(UNTIL_CLOSE)
            with pytest.raises(ConnectionError):
                await flood(behind)
            exchange = await made.seen.get()
            assert exchange.error is not None
            assert exchange.error.code == "client_gone"

    run(play())


def test_a_slow_client_gets_its_answer_whole(run: Run) -> None:
    """A client that takes its answer at its pace is waited for, at the end of a closing connection too."""

    async def play() -> None:
        size = 4 * 1024 * 1024
        async with house(ListenLimits(write_timeout=0.25, linger_timeout=0.01, min_rate=1000)) as made:
            request = f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()
            client, behind = await made.begin(request, receive_buffer=4096)
            behind[1].write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
            await client[0].readuntil(b"\r\n\r\n")
            got = 0
            while piece := await client[0].read(1 << 16):
                got += len(piece)
                if got % (1 << 18) < len(piece):
                    await asyncio.sleep(0.05)
            assert got == size

    run(play())


# Transforms of response heads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_head", "answer", "expected"),
    [
        (GET, OK, b"ok"),
        (GET.replace(b"GET", b"HEAD"), OK.removesuffix(b"ok"), b""),
        (GET, b"HTTP/1.1 304 Not Modified\r\nServer: nginx\r\n\r\n", b""),
        (GET, STREAM + b"2\r\nok\r\n0\r\n\r\n", b"2\r\nok\r\n0\r\n\r\n"),
    ],
    ids=["whole", "head", "304", "chunked"],
)
def test_transformed_heads_reach_the_client(run: Run, request_head: bytes, answer: bytes, expected: bytes) -> None:
    """In each form of writing an answer: the lines of the transform are there, and the body is the upstream's."""

    def apply(_exchange: ExchangeView, head: ResponseHead) -> None:
        head.delete(b"server")
        head.set(b"x-frame-options", b"DENY")

    hooks = StepHooks(transform_response=[("a", ResponseTransform(apply, owns=(b"server", b"x-frame-options")))])

    async def play() -> None:
        async with house(hooks=hooks) as made:
            client, behind = await made.begin(request_head)
            behind[1].write(answer.replace(b"\r\n\r\n", b"\r\nServer: nginx\r\n\r\n", 1))
            lines = (await client[0].readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
            assert b"x-frame-options: deny" in lines
            assert not [line for line in lines if line.startswith(b"server:")]
            assert await client[0].readexactly(len(expected)) == expected

    run(play())


def test_failing_transform_answers_503_and_keeps_the_clients_connection(run: Run) -> None:
    """Nothing of the upstream's answer arrives; its connection is closed, and the next request has another one."""
    fails = [True]

    def apply(_exchange: ExchangeView, _head: ResponseHead) -> None:
        if fails.pop():
            raise ValueError("a defect")

    async def play() -> None:
        async with house(hooks=StepHooks(transform_response=[("a", ResponseTransform(apply))])) as made:
            client, behind = await made.begin(GET)
            behind[1].write(OK.replace(b"ok", b"no").replace(b"\r\n\r\n", b"\r\nX-Secret: 1\r\n\r\n"))
            head = await client[0].readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"x-secret" not in head.lower()
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            body = await client[0].readexactly(int(length.partition(b":")[2]))
            assert b"step_failed" in body
            await ended_badly(behind)

            fails.append(False)
            client[1].write(GET)
            again = await made.upstreams.get()
            await again[0].readuntil(b"\r\n\r\n")
            again[1].write(OK)
            assert (await client[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            assert await client[0].readexactly(2) == b"ok"

    run(play())
