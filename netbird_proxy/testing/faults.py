"""Faults on the lines between the parts: relays that stand in a line and let it freeze, break, lag or garble.

Everything that is chosen is chosen by one seeded generator, so that a run can be had again by its seed (the operating
system's own timing apart). A line is good until something is said of it, and good again after `heal`.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Literal, Protocol, cast

Kind = Literal["freeze", "break", "lag", "garble", "lose", "shuffle", "fail"]
KINDS: dict[str, tuple[Kind, ...]] = {
    "tcp": ("freeze", "break", "lag", "garble"),
    "grpc": ("freeze", "break", "lag", "garble"),
    "udp": ("freeze", "lag", "garble", "lose", "shuffle"),
    "store": ("freeze", "fail"),
}
"""The faults of each sort of line. A stream keeps the order of its bytes, and is broken once it loses one."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong: from `at`, for `seconds`, both from the schedule's start."""

    at: float
    line: str
    kind: Kind
    seconds: float

    def __str__(self) -> str:
        return f"{self.at:.2f} s: {self.line} {self.kind} for {self.seconds:.2f} s"


class Line(Protocol):
    """Where faults happen."""

    def apply(self, kind: Kind) -> None: ...

    def heal(self) -> None: ...


def schedule(seed: int, lines: Sequence[tuple[str, str]], *, length: float, most: int = 4) -> list[Fault]:
    """Up to `most` faults, in order, all over after `length` seconds.

    Args:
        lines: name and sort (a key of KINDS) of each line.
    """
    dice = random.Random(seed)  # noqa: S311 - to be had again, not to be secret
    faults: list[Fault] = []
    for _ in range(dice.randint(0, most)):
        name, sort = dice.choice(list(lines))
        at = dice.uniform(0, length * 0.8)
        faults.append(Fault(at, name, dice.choice(KINDS[sort]), dice.uniform(0.02, length - at)))
    return sorted(faults, key=lambda fault: fault.at)


async def play(faults: Sequence[Fault], lines: dict[str, Line]) -> None:
    """Let them happen, and heal every line at the end, whatever ends it."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    happenings: list[tuple[float, Callable[[], None]]] = []
    for fault in faults:
        line = lines[fault.line]
        happenings.append((fault.at, lambda line=line, kind=fault.kind: line.apply(kind)))  # type: ignore[misc]
        happenings.append((fault.at + fault.seconds, line.heal))
    try:
        for at, happen in sorted(happenings, key=lambda happening: happening[0]):
            await asyncio.sleep(max(0.0, start + at - loop.time()))
            happen()
    finally:
        for line in lines.values():
            line.heal()


class _Weather:
    """The state of one line."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)  # noqa: S311
        self.lag = self.garbled = self.lost = self.shuffled = 0.0
        self.open = asyncio.Event()
        self.open.set()

    def apply(self, kind: Kind) -> None:
        match kind:
            case "freeze":
                self.open.clear()
            case "lag":
                self.lag = self.dice.uniform(0.01, 0.2)
            case "garble":
                self.garbled = 0.5
            case "lose":
                self.lost = self.dice.uniform(0.1, 0.6)
            case "shuffle":
                self.shuffled = 0.1
            case _:
                raise ValueError(f"a line cannot {kind}")

    def heal(self) -> None:
        self.lag = self.garbled = self.lost = self.shuffled = 0.0
        self.open.set()

    def garble(self, data: bytes) -> bytes:
        """Perhaps with one bit turned."""
        if not data or self.dice.random() >= self.garbled:
            return data
        place = self.dice.randrange(len(data))
        return data[:place] + bytes([data[place] ^ (1 << self.dice.randrange(8))]) + data[place + 1 :]


class TcpRelay:
    """A TCP port in front of another one.

    Attributes:
        connections: how many were taken.
        reads: how often something came, from either side.
    """

    def __init__(self, host: str, port: int, *, seed: int = 0) -> None:
        self._target = (host, port)
        self._weather = _Weather(seed)
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._broken = False
        self.connections = 0
        self.reads = 0

    @property
    def port(self) -> int:
        assert self._server is not None, "the relay is not open"
        return int(self._server.sockets[0].getsockname()[1])

    def aim(self, port: int) -> None:
        """New connections go to another port: what was there was started again."""
        self._target = (self._target[0], port)

    def apply(self, kind: Kind) -> None:
        if kind == "break":
            self._broken = True
            self.cut()
        else:
            self._weather.apply(kind)

    def heal(self) -> None:
        self._broken = False
        self._weather.heal()

    def cut(self) -> None:
        """Reset every connection; new ones are taken, unless the line is broken."""
        for writer in list(self._writers):
            writer.transport.abort()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[TcpRelay]:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield self
        finally:
            self.heal()
            self._server.close()
            while self._serving:
                self.cut()  # again, as one may just have come about
                await asyncio.wait(self._serving, timeout=0.05)
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._broken:
            writer.transport.abort()
            return
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._serving.add(task)
        self._writers.add(writer)
        try:
            with suppress(OSError):
                there, back = await asyncio.open_connection(*self._target)
                self._writers.add(back)
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._pump(reader, back))
                        group.create_task(self._pump(there, writer))
                finally:
                    self._writers.discard(back)
                    back.transport.abort()
        finally:
            self._writers.discard(writer)
            self._serving.discard(task)
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        weather = self._weather
        with suppress(OSError):
            while data := await reader.read(65536):
                self.reads += 1
                if weather.lag:
                    await asyncio.sleep(weather.dice.uniform(0, weather.lag))
                await weather.open.wait()
                writer.write(weather.garble(data))
                await writer.drain()
            await weather.open.wait()
            if writer.can_write_eof():
                writer.write_eof()


class UdpRelay:
    """A UDP port in front of another one, with a socket of its own towards it for each sender."""

    def __init__(self, host: str, port: int, *, seed: int = 0) -> None:
        self._target = (host, port)
        self._weather = _Weather(seed)
        self._front: asyncio.DatagramTransport | None = None
        self._backs: dict[tuple[str, int], asyncio.DatagramTransport] = {}
        self._opening: set[tuple[str, int]] = set()
        self._group: asyncio.TaskGroup | None = None

    @property
    def port(self) -> int:
        assert self._front is not None, "the relay is not open"
        return int(self._front.get_extra_info("sockname")[1])

    def apply(self, kind: Kind) -> None:
        self._weather.apply(kind)

    def heal(self) -> None:
        self._weather.heal()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[UdpRelay]:
        loop = asyncio.get_running_loop()
        made = await loop.create_datagram_endpoint(lambda: _Datagrams(self._arrived), local_addr=("127.0.0.1", 0))
        self._front = made[0]
        try:
            async with asyncio.TaskGroup() as self._group:
                yield self
        finally:
            self._front.close()
            for back in self._backs.values():
                back.close()

    def _arrived(self, data: bytes, sender: tuple[str, int]) -> None:
        back = self._backs.get(sender)
        if back is not None:
            self._pass(data, back, None)
        elif sender not in self._opening and self._group is not None:
            self._opening.add(sender)
            self._group.create_task(self._open(data, sender))

    async def _open(self, data: bytes, sender: tuple[str, int]) -> None:
        front = self._front
        made = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Datagrams(lambda answer, _: self._pass(answer, front, sender)),
            remote_addr=self._target,
            family=socket.AF_INET,
        )
        self._backs[sender] = made[0]
        self._opening.discard(sender)
        self._pass(data, self._backs[sender], None)

    def _pass(self, data: bytes, to: asyncio.DatagramTransport | None, address: tuple[str, int] | None) -> None:
        weather = self._weather
        # Datagrams on a frozen line are lost; the protocol above them has to send again.
        if to is None or to.is_closing() or not weather.open.is_set() or weather.dice.random() < weather.lost:
            return
        data = weather.garble(data)
        wait = weather.lag + (weather.dice.uniform(0, weather.shuffled) if weather.shuffled else 0.0)
        if wait:
            asyncio.get_running_loop().call_later(wait, _send, to, data, address)
        else:
            to.sendto(data, address)


def _send(to: asyncio.DatagramTransport, data: bytes, address: tuple[str, int] | None) -> None:
    if not to.is_closing():
        to.sendto(data, address)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, arrived: Callable[[bytes, tuple[str, int]], None]) -> None:
        self._arrived = arrived

    def datagram_received(self, data: bytes, addr: tuple[str | int, ...]) -> None:
        self._arrived(data, (str(addr[0]), int(addr[1])))

    def error_received(self, exc: Exception) -> None:
        """Nobody listens there now: lost, as any datagram may be."""


class Gate:
    """A line inside a program: what goes through calls `passed` first, which waits or raises as the weather is."""

    def __init__(self, failure: Callable[[], Exception]) -> None:
        """Args:
        failure: makes what a failing line raises.
        """
        self._failure = failure
        self._open = asyncio.Event()
        self._open.set()
        self.failing = False
        self.failed = 0

    def apply(self, kind: Kind) -> None:
        if kind == "freeze":
            self._open.clear()
        elif kind == "fail":
            self.failing = True
        else:
            raise ValueError(f"a gate cannot {kind}")

    def heal(self) -> None:
        self.failing = False
        self._open.set()

    async def passed(self) -> None:
        await self._open.wait()
        if self.failing:
            self.failed += 1
            raise self._failure()
