"""Local datagrams on the overlay: associations of clients, and datagrams on the control socket's stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_overlay.datagrams import DatagramFactory
from netbird_overlay.errors import Unreachable
from netbird_peer.datagrams import ASSOCIATIONS, PEER_ASSOCIATIONS, WAITING, DatagramSocket, Frames, UdpForward, frame

SECONDS = 10


@given(datagrams=st.lists(st.binary(max_size=300), max_size=8), cuts=st.lists(st.integers(0, 2000), max_size=8))
def test_any_split_gives_the_same_datagrams(datagrams: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(frame, datagrams))
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    frames, received = Frames(), []
    for start, end in zip(edges, edges[1:], strict=False):  # noqa: RUF007
        received += frames.feed(stream[start:end])

    assert received == datagrams


class Socket(asyncio.DatagramTransport):
    """A socket on the overlay that answers at once, in capitals."""

    def __init__(self, protocol: asyncio.DatagramProtocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.sent: list[bytes] = []
        self.closed = False

    def sendto(self, data: Any, addr: Any = None) -> None:
        self.sent.append(bytes(data))
        self.protocol.datagram_received(bytes(data).upper(), ("wiki", 53))

    def close(self) -> None:
        self.closed = True


class Lab:
    """A forwarding port without a socket, and the sockets that it opens."""

    def __init__(self) -> None:
        self.sockets: list[Socket] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.answers: list[tuple[bytes, Any]] = []

    async def open(self, protocol_factory: DatagramFactory, host: str, port: int, *, timeout: float) -> DatagramSocket:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        protocol = protocol_factory()
        socket = Socket(protocol)
        self.sockets.append(socket)
        protocol.connection_made(socket)
        return socket, protocol


class Local(asyncio.DatagramTransport):
    """The local port's socket."""

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self._lab = lab

    def sendto(self, data: Any, addr: Any = None) -> None:
        self._lab.answers.append((bytes(data), addr))


@asynccontextmanager
async def forwarding(lab: Lab, most_each: int = ASSOCIATIONS) -> AsyncIterator[UdpForward]:
    async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as tasks:
        forward = UdpForward(tasks, lab.open, "wiki", 53, timeout=SECONDS, most_each=most_each)
        forward.connection_made(Local(lab))
        yield forward
        lab.gate.set()
        await settle()
        for socket in lab.sockets:
            socket.protocol.connection_lost(None)


async def settle() -> None:
    """Let the tasks that are ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


def client(number: int) -> tuple[str, int]:
    return "127.0.0.1", 1024 + number


async def test_each_client_has_a_socket_and_gets_its_own_answers() -> None:
    lab = Lab()
    async with forwarding(lab) as forward:
        forward.datagram_received(b"a", client(1))
        forward.datagram_received(b"b", client(2))
        await settle()
        forward.datagram_received(b"c", client(1))

        assert [socket.sent for socket in lab.sockets] == [[b"a", b"c"], [b"b"]]
        assert lab.answers == [(b"A", client(1)), (b"B", client(2)), (b"C", client(1))]


async def test_few_datagrams_wait_for_the_socket() -> None:
    """The oldest are dropped, as a full queue of the network would."""
    lab = Lab()
    lab.gate.clear()
    async with forwarding(lab) as forward:
        for number in range(WAITING + 3):
            forward.datagram_received(str(number).encode(), client(1))
        lab.gate.set()
        await settle()

        assert lab.sockets[0].sent == [str(number).encode() for number in range(3, WAITING + 3)]


async def test_the_number_of_clients_is_bounded() -> None:
    """The client that was silent for longest gives way; a client that comes again gets a new socket."""
    lab = Lab()
    async with forwarding(lab) as forward:
        for number in range(ASSOCIATIONS):
            forward.datagram_received(b"x", client(number))
        await settle()
        forward.datagram_received(b"again", client(0))
        forward.datagram_received(b"x", client(ASSOCIATIONS))
        await settle()

        assert len(forward) == ASSOCIATIONS
        assert [index for index, socket in enumerate(lab.sockets) if socket.closed] == [1]


async def test_an_overlay_address_takes_no_places_of_others() -> None:
    """The served port's places of one address are few: beyond them, its own client that was silent for longest ends."""
    lab = Lab()
    async with forwarding(lab, most_each=PEER_ASSOCIATIONS) as forward:
        forward.datagram_received(b"x", ("100.64.0.9", 1))
        for port in range(1, 1000):
            forward.datagram_received(b"x", ("100.64.0.5", port))
        await settle()
        forward.datagram_received(b"y", ("100.64.0.9", 1))

        assert len(forward) == PEER_ASSOCIATIONS + 1
        assert lab.sockets[0].sent == [b"x", b"y"]


async def test_the_end_of_a_port_ends_its_sockets() -> None:
    lab = Lab()
    async with forwarding(lab) as forward:
        for number in range(3):
            forward.datagram_received(b"x", client(number))
        await settle()
        forward.connection_lost(None)

        assert [socket.closed for socket in lab.sockets] == [True] * 3
        assert len(forward) == 0


async def test_a_client_that_gave_way_while_its_socket_opened_leaks_none() -> None:
    lab = Lab()
    lab.gate.clear()
    async with forwarding(lab) as forward:
        for number in range(ASSOCIATIONS + 1):
            forward.datagram_received(b"x", client(number))
        lab.gate.set()
        await settle()

        assert [index for index, socket in enumerate(lab.sockets) if socket.closed] == [0]


@pytest.mark.parametrize("error", [Unreachable("away"), OSError("gone"), ZeroDivisionError()], ids=repr)
async def test_a_socket_that_cannot_be_opened_costs_its_client_only(error: Exception) -> None:
    """The next datagram tries again. A defect is reported."""
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context["exception"]))
    lab = Lab()
    async with forwarding(lab) as forward:
        lab.error = error
        forward.datagram_received(b"a", client(1))
        await settle()
        assert len(forward) == 0
        lab.error = None
        forward.datagram_received(b"b", client(1))
        await settle()

        assert lab.answers == [(b"B", client(1))]
    assert reported == ([error] if isinstance(error, ZeroDivisionError) else [])
