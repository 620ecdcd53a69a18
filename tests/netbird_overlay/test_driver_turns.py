"""The driver's turns: one call of the engine each, and a rest of the socket while datagrams of a transfer collect."""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest

from netbird_overlay.alarm import Alarm
from netbird_overlay.driver import BUDGET, REST, Driver
from netbird_overlay.engine import Engine, Turn
from netbird_overlay.testing import Accepting, Recorder, allow_everything_in, introduce, loopback_node

pytestmark = pytest.mark.timeout(30)


class Scripted:
    """A fake engine whose turns follow from its attributes, and that reads no datagram.

    Attributes:
        budgets: the budgets of the turns so far.
    """

    def __init__(self) -> None:
        self.budgets: list[int] = []
        self.may_collect = False
        self.failure: Exception | None = None
        self.ran = asyncio.Event()

    def aggregate(self, fd: int) -> bool:
        return False

    def advance(self, now: float) -> float:
        return math.inf

    @property
    def pending(self) -> bool:
        return False

    def turn(self, fd: int, now: float, budget: int) -> Turn:
        self.budgets.append(budget)
        self.ran.set()
        if self.failure is not None:
            raise self.failure
        return cast(Turn, _Turn(self.may_collect and budget > 0))

    async def has_run(self, times: int) -> None:
        """Wait for this number of turns that may receive."""
        while sum(budget > 0 for budget in self.budgets) < times:
            self.ran.clear()
            await self.ran.wait()


class _Turn:
    events: tuple[()] = ()
    carried: tuple[()] = ()
    strays: tuple[()] = ()
    more = blocked = pending = False
    deadline = math.inf

    def __init__(self, may_collect: bool) -> None:
        self.may_collect = may_collect


@pytest.fixture
async def scene() -> AsyncIterator[tuple[Scripted, Driver, socket.socket, Callable[[], bool]]]:
    """An engine, its driver, the other end of its socket, and whether the loop watches the socket (then no longer)."""
    engine = Scripted()
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    left.setblocking(False)
    descriptor = left.fileno()
    driver = Driver(cast(Engine, engine), left)
    with right:
        yield engine, driver, right, lambda: bool(asyncio.get_running_loop().remove_reader(descriptor))
        driver.close()


Scene = tuple[Scripted, Driver, socket.socket, Callable[[], bool]]


async def test_the_socket_rests_while_datagrams_collect(scene: Scene) -> None:
    """While the engine reports that datagrams may collect, a timer and not the socket begins the turns."""
    engine, _, other, is_watched = scene
    engine.may_collect = True
    other.send(b"x")
    await engine.has_run(3)
    assert not is_watched()


async def test_the_socket_is_watched_again_after_a_rest(scene: Scene) -> None:
    """The first turn without a bulk transfer ends the rest: the next datagram begins a turn at once."""
    engine, _, other, is_watched = scene
    engine.may_collect = True
    other.send(b"x")
    await engine.has_run(2)
    engine.may_collect = False
    await engine.has_run(10)
    assert is_watched()


async def test_a_rest_ends_with_the_driver(scene: Scene) -> None:
    """A driver that is closed, or whose engine fails, during a rest begins no further turn."""
    engine, driver, other, is_watched = scene
    engine.may_collect = True
    other.send(b"x")
    await engine.has_run(1)
    engine.failure = OSError("gone")
    await engine.has_run(2)
    turns = len(engine.budgets)
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(REST, later.set)  # after the driver's, if it still had one
    await later.wait()
    assert len(engine.budgets) == turns
    assert not is_watched()
    with pytest.raises(Exception, match="gone"):
        await driver.supervise()


async def test_writes_outside_of_a_turn_are_sent_during_a_rest(scene: Scene) -> None:
    """A rest concerns receiving only."""
    engine, driver, other, _ = scene
    engine.may_collect = True
    other.send(b"x")
    await engine.has_run(1)
    sends = engine.budgets.count(0)
    driver.touch()
    while engine.budgets.count(0) == sends:
        engine.ran.clear()
        await engine.ran.wait()
    assert set(engine.budgets) == {0, BUDGET}


async def test_the_alarm_is_due_no_later_than_the_earliest_time() -> None:
    """A later time changes nothing, an earlier one moves the alarm, and it goes off once."""
    loop = asyncio.get_running_loop()
    due = asyncio.Event()
    calls = []

    def callback() -> None:
        calls.append(loop.time())
        due.set()

    alarm = Alarm(loop, callback)
    alarm.set(3600)
    alarm.set(0)
    alarm.set(7200)
    await due.wait()
    assert len(calls) == 1
    alarm.set(0)
    alarm.cancel()
    alarm.cancel()
    due.clear()
    alarm.set(-5)
    await due.wait()
    assert len(calls) == 2


@pytest.mark.parametrize("chunk", [1000, 65_536, 3_000_000])
async def test_a_long_stream_arrives_whole_both_ways(chunk: int) -> None:
    """Several megabytes, written in pieces of any size, arrive in order while both ends rest and write at once."""
    data = os.urandom(6_000_000)
    async with loopback_node("100.64.0.1") as client, loopback_node("100.64.0.2") as server:
        introduce(client, server)
        introduce(server, client, where=False)
        allow_everything_in(server)
        accepting = Accepting()
        server.driver.listen(80, accepting)
        _, near = await client.driver.connect(Recorder, "100.64.0.2", 80, timeout=10)
        assert isinstance(near, Recorder)
        far = await accepting.next()
        async with asyncio.TaskGroup() as group:
            group.create_task(near.write_slowly(data, chunk))
            group.create_task(far.write_slowly(data[::-1], chunk))
            group.create_task(near.has(len(data)))
            group.create_task(far.has(len(data)))
        assert bytes(far.received) == data
        assert bytes(near.received) == data[::-1]


async def test_a_written_chunk_may_change_after_the_call() -> None:
    """A chunk arrives as it was at the call, for every kind of bytes, and however much was queued before it."""
    async with loopback_node("100.64.0.1") as client, loopback_node("100.64.0.2") as server:
        introduce(client, server)
        introduce(server, client, where=False)
        allow_everything_in(server)
        accepting = Accepting()
        server.driver.listen(80, accepting)
        _, near = await client.driver.connect(Recorder, "100.64.0.2", 80, timeout=10)
        assert isinstance(near, Recorder)
        size = 500_000
        changing = bytearray(b"b" * size)
        wide = memoryview(bytearray(b"d" * size)).cast("I")
        near.transport.write(b"a" * size)
        near.transport.write(changing)
        near.transport.write(memoryview(b"c" * size))
        near.transport.write(wide)
        changing[:] = b"x" * size
        wide[0] = 0
        far = await accepting.next()
        assert await far.has(4 * size) == b"a" * size + b"b" * size + b"c" * size + b"d" * size
