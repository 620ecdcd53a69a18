"""Connections after their 101: bytes both ways, in order, none lost, with back-pressure; and upgrades not granted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netbird_proxy.asgi import CONNECTION_EXTENSION
from netbird_proxy.listening.connections import ListenLimits
from netbird_proxy.listening.http1 import Http1Protocol
from netbird_proxy.listening.raw import RawStream
from netbird_proxy.testing.transports import connect as join

ASK = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
GRANTED = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: Upgrade\r\n\r\n"
Talk = Callable[[RawStream], Awaitable[None]]


def switching(talk: Talk, before: asyncio.Event | None = None) -> Any:
    """An application that grants every upgrade."""

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        connection = scope["extensions"][CONNECTION_EXTENSION]
        assert connection.upgrade
        if before is not None:
            await before.wait()
        raw = connection.switch([(b"upgrade", b"x")])
        await talk(raw)
        raw.close()

    return app


async def echo(raw: RawStream) -> None:
    while data := await raw.read():
        await raw.write(data)
    raw.finish()


async def test_bytes_go_both_ways_after_the_101(connect: Any) -> None:
    """The head first, then what was said in the order in which it was said; the client's end ends it."""
    client = connect(switching(echo))
    client.feed(ASK)
    await client.settle()
    assert client.sent == GRANTED
    client.feed(b"GET / HTTP/1.1\r\n\r\n")
    client.feed(b"\x81\x00")
    await client.settle()
    assert client.sent == GRANTED + b"GET / HTTP/1.1\r\n\r\n\x81\x00"
    assert not client.transport.eof_written
    client.eof()
    await client.closed()
    assert client.transport.eof_written
    assert not client.transport.aborted
    assert client.log.lines == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, len(ASK) + 40), max_size=6))
def test_no_split_loses_or_reorders_a_byte(connect_sync: Any, cuts: list[int]) -> None:
    """Whatever stood behind the head, in its piece or later, comes first and once."""
    said = ASK + bytes(range(40))
    edges = sorted({0, len(said), *(min(cut, len(said)) for cut in cuts)})
    pieces = [said[a:b] for a, b in pairwise(edges)]

    async def run() -> bytes:
        client = connect_sync(switching(echo))
        for piece in pieces:
            client.feed(piece)
            await asyncio.sleep(0)
        client.eof()
        await client.closed()
        await client.end()
        return client.sent

    assert asyncio.run(run()) == GRANTED + bytes(range(40))


async def test_what_comes_before_the_101_waits_within_bounds(connect: Any) -> None:
    """It is kept for the other protocol, and no more of it is read than the buffer takes."""
    granted = asyncio.Event()
    client = connect(switching(echo, granted), limits=ListenLimits(body_buffer=100))
    client.feed(ASK + b"a" * 90)
    await client.settle()
    assert client.transport.reading
    client.feed(b"b" * 90)
    assert not client.transport.reading
    assert client.sent == b""
    granted.set()
    await client.settle()
    assert client.transport.reading
    assert client.sent == GRANTED + b"a" * 90 + b"b" * 90


async def test_slow_application_slows_the_client(connect: Any) -> None:
    """Bytes that nobody reads stop the transport; reading starts it again."""
    go = asyncio.Event()

    async def slow(raw: RawStream) -> None:
        await go.wait()
        await echo(raw)

    client = connect(switching(slow), limits=ListenLimits(body_buffer=1000))
    client.feed(ASK)
    await client.settle()
    client.feed(b"x" * 1001)
    assert not client.transport.reading
    go.set()
    await client.settle()
    assert client.transport.reading


async def test_slow_client_slows_the_application(connect: Any) -> None:
    """A write waits while the transport is full."""
    written = 0

    async def flood(raw: RawStream) -> None:
        nonlocal written
        for _ in range(10):
            await raw.write(b"x" * 100)
            written += 100

    client = connect(switching(flood), high_water=250)
    client.feed(ASK)
    await client.settle()
    assert written < 300
    while written < 1000:
        client.transport.take()
        await client.settle()
    assert client.sent == GRANTED + b"x" * 1000


async def test_client_that_takes_nothing_counts_as_gone(connect: Any) -> None:
    """As for any answer, also after it has ended its own side."""

    async def flood(raw: RawStream) -> None:
        while True:
            await raw.write(b"x" * 100)

    client = connect(switching(flood), high_water=250, limits=ListenLimits(write_timeout=0.02))
    client.feed(ASK)
    await client.settle()
    client.eof()
    await client.closed()
    assert client.transport.aborted


async def test_half_close_of_the_client_leaves_the_other_way_open(connect: Any) -> None:
    """Its end is read as an end, and what is written afterwards arrives."""

    async def answer_late(raw: RawStream) -> None:
        heard = b""
        while data := await raw.read():
            heard += data
        assert await raw.read() == b""
        await raw.write(b"heard " + heard)

    client = connect(switching(answer_late), limits=ListenLimits(half_close_timeout=0.01))
    client.feed(ASK + b"all")
    client.eof()
    await client.closed()
    assert client.sent == GRANTED + b"heard all"


async def test_client_that_ended_before_the_101_is_served(connect: Any) -> None:
    """Its end waits behind its bytes."""
    granted = asyncio.Event()
    client = connect(switching(echo, granted))
    client.feed(ASK + b"early")
    client.eof()
    await client.settle()
    granted.set()
    await client.closed()
    assert client.sent == GRANTED + b"early"


async def test_reset_cancels_the_application(connect: Any) -> None:
    """A client that breaks off is gone for both ways."""
    ended = asyncio.Event()

    async def wait(raw: RawStream) -> None:
        try:
            await raw.read()
        finally:
            ended.set()

    client = connect(switching(wait))
    client.feed(ASK)
    await client.settle()
    client.vanish()
    await client.closed()
    await client.settle()
    assert ended.is_set()


async def test_close_in_order_leaves_what_had_come(connect: Any) -> None:
    """Over TLS the end of one side is the end of both: the last bytes are read, writes fail."""
    entered = asyncio.Event()
    heard: list[bytes] = []

    async def listen(raw: RawStream) -> None:
        await entered.wait()
        while data := await raw.read():
            heard.append(data)
        assert raw.gone
        assert not raw.finish()
        with pytest.raises(ConnectionResetError):
            await raw.write(b"late")

    client = connect(switching(listen))
    client.feed(ASK + b"last words")
    await client.settle()
    client.transport.close()
    await client.closed()
    entered.set()
    await client.settle()
    assert heard == [b"last words"]


async def test_our_end_swallows_what_the_client_still_says(connect: Any) -> None:
    """The connection is closed once the client has ended too, so that a reset cannot overtake what we wrote."""

    async def bye(raw: RawStream) -> None:
        await raw.write(b"bye")
        raw.finish()

    client = connect(switching(bye))
    client.feed(ASK)
    await client.settle()
    assert client.transport.eof_written
    client.feed(b"still talking")
    assert not client.transport.closing
    client.eof()
    await client.closed()
    assert client.sent == GRANTED + b"bye"


async def test_stop_waits_for_it_and_then_cuts(connect: Any) -> None:
    """A drain gives it the time that everybody has."""
    client = connect(switching(echo))
    client.feed(ASK)
    await client.settle()
    async with asyncio.TaskGroup() as group:
        group.create_task(client.connections.drain(0.05))
        await client.settle()
        client.feed(b"on")
        await client.settle()
        assert client.sent == GRANTED + b"on"
    assert client.transport.aborted


async def test_upgrade_that_is_not_granted_ends_the_connection(connect: Any) -> None:
    """The answer is an ordinary one, and what stood behind the request is swallowed, never parsed."""

    async def refuse(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": b"no"})

    client = connect(refuse, limits=ListenLimits(body_buffer=10))
    client.feed(ASK + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await client.settle()
    assert client.transport.reading
    client.feed(b"more")
    assert client.sent == b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"
    client.eof()
    await client.closed()
    assert not client.transport.aborted


async def test_upgrade_behind_another_request_waits_its_turn(connect: Any) -> None:
    """The first is answered, then the second switches; what follows belongs to the second."""
    go = asyncio.Event()
    grant = switching(echo)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/ws":
            await grant(scope, receive, send)
            return
        await go.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    client = connect(app)
    client.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + ASK + b"raw")
    await client.settle()
    assert client.sent == b""
    go.set()
    await client.settle()
    assert client.sent == b"HTTP/1.1 204 No Content\r\n\r\n" + GRANTED + b"raw"


async def test_upgrade_of_a_1_0_client_is_an_ordinary_request(connect: Any) -> None:
    """RFC 9110 has it ignored, and what follows is still not parsed."""
    asked: list[bool] = []

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        connection = scope["extensions"][CONNECTION_EXTENSION]
        asked.append(connection.upgrade)
        with pytest.raises(RuntimeError, match="no upgrade"):
            connection.switch([])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    client = connect(app)
    client.feed(ASK.replace(b"1.1", b"1.0") + b"raw")
    await client.closed()
    assert asked == [False]


async def test_head_that_cannot_be_sent_switches_nothing(connect: Any) -> None:
    """A line break in a field of the 101 would begin what follows."""

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        scope["extensions"][CONNECTION_EXTENSION].switch([(b"upgrade", b"x\r\n\r\nraw")])

    client = connect(app)
    client.feed(ASK)
    await client.settle()
    assert client.sent.startswith(b"HTTP/1.1 500 ")


async def test_switch_for_a_client_that_has_gone(connect: Any) -> None:
    """It is told apart from a defect."""
    go = asyncio.Event()
    said: list[BaseException] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        try:
            await go.wait()
        except asyncio.CancelledError:
            try:
                scope["extensions"][CONNECTION_EXTENSION].switch([])
            except ConnectionResetError as exc:
                said.append(exc)

    client = connect(app)
    client.feed(ASK)
    await client.settle()
    client.vanish()
    await client.closed()
    await client.settle()
    assert len(said) == 1


async def test_two_readers_are_one_too_many(connect: Any) -> None:
    """Neither could know which bytes it gets."""

    async def twice(raw: RawStream) -> None:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(raw.read())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="two tasks"):
                await raw.read()
            first.cancel()

    client = connect(switching(twice))
    client.feed(ASK)
    await client.settle()
    assert client.transport.eof_written


async def test_transport_of_a_tunnel(connect: Any) -> None:
    """Any `asyncio.Transport` carries it: the two ends here are joined in memory, as a tunnel's are."""

    class Caller(asyncio.Protocol):
        def __init__(self) -> None:
            self.heard = bytearray()
            self.ended = asyncio.Event()

        def data_received(self, data: bytes) -> None:
            self.heard += data

        def eof_received(self) -> bool:
            self.ended.set()
            return False

    client = connect(switching(echo))
    caller = Caller()
    mine, _theirs = join(caller, Http1Protocol(client.connections))
    mine.write(ASK + b"through ")
    mine.write(b"the tunnel")
    mine.write_eof()
    async with asyncio.timeout(5):
        await caller.ended.wait()
    assert bytes(caller.heard) == GRANTED + b"through the tunnel"
