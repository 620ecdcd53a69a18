"""The faults themselves: each does what it says, and is over when it is healed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from netbird_proxy.testing.faults import KINDS, Fault, Gate, Kind, TcpRelay, UdpRelay, play, schedule

LINES = [("management", "grpc"), ("peers", "udp"), ("upstream", "tcp"), ("store", "store")]
SOON = 5.0


@asynccontextmanager
async def tcp_echo() -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1000):
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.DatagramTransport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:  # type: ignore[override]
        self.transport.sendto(data, addr)


class Heard(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.said: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, _addr: object) -> None:
        self.said.put_nowait(data)


def test_a_schedule_is_had_again_by_its_seed() -> None:
    """The same seed gives the same faults, in order, over in time, each possible where it is."""
    sorts = dict(LINES)
    for seed in range(300):
        faults = schedule(seed, LINES, length=2.0)
        assert faults == schedule(seed, LINES, length=2.0)
        assert faults == sorted(faults, key=lambda fault: fault.at)
        assert all(fault.kind in KINDS[sorts[fault.line]] for fault in faults)
        assert all(fault.at >= 0 and fault.at + fault.seconds <= 2.0 for fault in faults)


def test_every_fault_occurs() -> None:
    """Over some seeds nothing that can go wrong is left out."""
    seen = {(fault.line, fault.kind) for seed in range(300) for fault in schedule(seed, LINES, length=2.0)}

    assert seen == {(name, kind) for name, sort in LINES for kind in KINDS[sort]}


async def test_a_frozen_stream_goes_on_when_it_thaws() -> None:
    """Nothing is lost of a stream that was frozen, and nothing passes while it is."""
    async with tcp_echo() as port, TcpRelay("127.0.0.1", port).running() as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(b"before")
        assert await asyncio.wait_for(reader.readexactly(6), SOON) == b"before"
        relay.apply("freeze")
        writer.write(b"during")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(1), 0.05)
        relay.heal()
        assert await asyncio.wait_for(reader.readexactly(6), SOON) == b"during"
        writer.close()


async def test_a_broken_line_resets_and_refuses_until_it_heals() -> None:
    """Connections end, new ones too, and after it they are taken."""
    async with tcp_echo() as port, TcpRelay("127.0.0.1", port).running() as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(b"x")
        await asyncio.wait_for(reader.readexactly(1), SOON)
        relay.apply("break")
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), SOON)
        writer.close()
        relay.heal()
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(b"again")
        assert await asyncio.wait_for(reader.readexactly(5), SOON) == b"again"
        writer.close()


async def test_garbled_bytes_are_as_many() -> None:
    """One bit of a piece is turned, sooner or later; lag only delays."""
    async with tcp_echo() as port, TcpRelay("127.0.0.1", port).running() as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        relay.apply("garble")
        relay.apply("lag")
        got = b""
        for _ in range(50):
            writer.write(b"\0")
            got += await asyncio.wait_for(reader.readexactly(1), SOON)
            if got.strip(b"\0"):
                break
        assert got.strip(b"\0")
        writer.close()


@pytest.mark.parametrize("kind", ["lag", "shuffle", "garble", "lose", "freeze"])
async def test_datagrams(kind: Kind) -> None:
    """Late, out of order, wrong or not at all; right again when healed."""
    loop = asyncio.get_running_loop()
    echo, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    port = echo.get_extra_info("sockname")[1]
    async with UdpRelay("127.0.0.1", port, seed=3).running() as relay:
        transport, heard = await loop.create_datagram_endpoint(Heard, remote_addr=("127.0.0.1", relay.port))
        transport.sendto(b"first")
        assert await asyncio.wait_for(heard.said.get(), SOON) == b"first"
        relay.apply(kind)
        sent = [bytes([number]) * 8 for number in range(40)]
        for one in sent:
            transport.sendto(one)
        got: list[bytes] = []
        complete = kind in ("lag", "shuffle", "garble")
        while len(got) < len(sent):
            try:
                got.append(await asyncio.wait_for(heard.said.get(), SOON if complete else 0.1))
            except TimeoutError:
                break
        if kind in ("lag", "shuffle"):
            assert sorted(got) == sent
        elif kind == "garble":
            assert len(got) == len(sent)
            assert sorted(got) != sent
        else:
            assert len(got) < len(sent)
            assert set(got) <= set(sent)
        if kind == "shuffle":
            assert got != sent
        relay.heal()
        transport.sendto(b"last")
        assert await asyncio.wait_for(heard.said.get(), SOON) == b"last"
        transport.close()
    echo.close()


async def test_a_gate_fails_or_holds() -> None:
    """What goes through a gate is held while it is frozen, and fails while it fails."""
    gate = Gate(lambda: OSError("no disk"))
    await gate.passed()
    gate.apply("fail")
    with pytest.raises(OSError, match="no disk"):
        await gate.passed()
    gate.heal()
    gate.apply("freeze")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(gate.passed(), 0.02)
    gate.heal()
    await asyncio.wait_for(gate.passed(), SOON)
    assert gate.failed == 1


async def test_all_lines_heal_however_a_play_ends() -> None:
    """Cancelled in the middle of a fault, the line is good again."""
    gate = Gate(lambda: OSError("no disk"))
    playing = asyncio.Task(play([Fault(0.0, "store", "fail", 3600.0)], {"store": gate}))
    async with asyncio.timeout(SOON):
        while not gate.failing:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)
    playing.cancel()
    await asyncio.wait((playing,))

    assert not gate.failing
