"""How slow a client may be with its request's body, and what it gets when it is slower."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from netbird_proxy.api.errors import ReadTimeout, TooSlow
from netbird_proxy.asgi import Receive, Scope, Send
from netbird_proxy.listening.connections import ListenLimits
from netbird_proxy.listening.pace import BodyPatience

LIMITS = ListenLimits(body_idle=30, min_rate=100, min_rate_grace=10)
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"


def answered(client: Any) -> bool:
    return b" 408 " in client.sent


class Reading:
    """An application that reads its request, and tells how that went."""

    def __init__(self) -> None:
        self.ended: list[BaseException | bytes] = []
        self.pieces: list[bytes] = []
        self.done = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            while True:
                message = await receive()
                self.pieces.append(message["body"])
                if not message["more_body"]:
                    break
            self.ended.append(b"".join(self.pieces))
        except BaseException as exc:
            self.ended.append(exc)
            raise
        finally:
            self.done.set()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"thanks"})


@pytest.mark.parametrize(
    ("waits", "late"),
    [
        pytest.param([(1, 100)] * 3600, None, id="at the rate for an hour"),
        pytest.param([(9, 10**6), (29.9, 1)], None, id="fast, then a pause within the idle bound"),
        pytest.param([(1, 10**9), (31, 1)], ReadTimeout, id="fast, then silence"),
        pytest.param([(11, 1)], TooSlow, id="slow to start"),
        pytest.param([(1, 50)] * 18, None, id="half the rate, within the grace"),
        pytest.param([(1, 50)] * 21, TooSlow, id="half the rate, beyond it"),
        pytest.param([(1, 10**9), *[(29, 1)] * 2], TooSlow, id="what a fast start saves is bounded"),
    ],
)
def test_patience_is_spent_by_waiting_and_earned_by_bytes(waits: list[tuple[float, int]], late: object) -> None:
    """Each wait and what it brought: only a client below the rate, or silent for too long, is too slow."""
    now, pace = 0.0, BodyPatience(LIMITS)
    for seconds, size in waits:
        if pace.wait(now) <= now + seconds:
            pace.expire()
            break
        now += seconds
        pace.came(now, size)
        now += 1000  # somebody else's time
    assert type(pace.late) is (late or type(None))


def test_no_rate_is_asked_for_where_the_setting_is_zero() -> None:
    """Then only silence counts."""
    pace = BodyPatience(ListenLimits(body_idle=30, min_rate=0, min_rate_grace=0))
    for second in range(0, 1000, 29):
        assert pace.wait(second) == second + 30
        pace.came(second + 29, 1)
    pace.expire()
    assert isinstance(pace.late, ReadTimeout)


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        (ListenLimits(body_idle=0.02), ReadTimeout),
        (ListenLimits(min_rate=1000, min_rate_grace=0.02), TooSlow),
    ],
    ids=["idle", "rate"],
)
async def test_a_late_body_ends_in_408(connect: Any, limits: ListenLimits, error: type[Exception]) -> None:
    """The application is told at its next read; the client gets the answer, and the connection ends."""
    reading = Reading()
    client = connect(reading, limits=limits)
    client.feed(POST + b"abc")
    async with asyncio.timeout(5):
        await reading.done.wait()
    await client.until(lambda: client.sent.endswith(b"in time.\n"))

    assert [type(one) for one in reading.ended] == [error]
    assert client.sent.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in client.sent
    assert client.transport.eof_written or client.transport.closing


async def test_the_bound_is_on_waiting_not_on_the_body(connect: Any) -> None:
    """A body that takes longer than the bound altogether, but never keeps us waiting for as long, is taken."""
    reading = Reading()
    client = connect(reading, limits=ListenLimits(body_idle=0.5, min_rate=0))
    client.feed(POST)
    for _ in range(10):
        clock = connect(Reading(), limits=ListenLimits(body_idle=0.1, min_rate=0))
        clock.feed(POST)
        await clock.until(partial(answered, clock))
        client.feed(b"x")
        await client.settle()
    assert reading.ended == [b"x" * 10]
    assert client.sent.endswith(b"thanks")


async def test_an_application_that_does_not_read_blames_nobody(connect: Any) -> None:
    """While it is the upstream that takes nothing, the client's time stands still."""
    gate = asyncio.Event()
    reading = Reading()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await gate.wait()
        await reading(scope, receive, send)

    client = connect(app, limits=ListenLimits(body_idle=0.01, min_rate=1000, min_rate_grace=0.01))
    client.feed(POST + b"abc")
    other = connect(Reading(), limits=ListenLimits(body_idle=0.1))
    other.feed(POST)
    await other.until(lambda: b" 408 " in other.sent)
    client.feed(b"defghij")
    gate.set()
    await client.until(lambda: client.sent.endswith(b"thanks"))
    assert reading.ended == [b"abcdefghij"]


async def test_a_late_body_behind_an_answer_that_began_ends_it(connect: Any) -> None:
    """Where the answer has begun there is nothing left to say: the connection is cut."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"early", "more_body": True})
        while True:
            await receive()

    client = connect(app, limits=ListenLimits(body_idle=0.02))
    client.feed(POST)
    await client.closed()
    assert client.transport.aborted


async def test_a_body_that_came_with_its_head_needs_no_patience(connect: Any) -> None:
    """The plain case makes no object and touches no timer beyond those of the connection."""
    reading = Reading()
    client = connect(reading, limits=ListenLimits(body_idle=0.02))
    client.feed(POST + b"0123456789")
    await client.settle()
    assert reading.ended == [b"0123456789"]
    assert client.sent.endswith(b"thanks")


async def test_what_has_come_in_time_is_not_late_because_we_are(connect: Any) -> None:
    """Where the loop was held up, the bytes and the timer come in one round: the bytes count."""
    reading = Reading()
    client = connect(reading, limits=ListenLimits(body_idle=0.05))
    client.feed(POST)
    await client.settle()
    loop = asyncio.get_running_loop()
    held = asyncio.Event()

    def hold() -> None:
        while loop.time() < start + 0.1:  # the loop is blocked
            pass
        client.feed(b"0123456789")
        client.protocol._on_timer()
        held.set()

    start = loop.time()
    loop.call_soon(hold)
    await held.wait()
    await client.until(lambda: client.sent.endswith(b"thanks"))
    assert reading.ended == [b"0123456789"]
