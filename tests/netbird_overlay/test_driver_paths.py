"""The driver's paths beside WireGuard's own datagrams on the socket: STUN's datagrams, and carriers."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from netbird_overlay.driver import Driver, open_socket
from netbird_overlay.engine import Endpoint, Engine
from netbird_overlay.node import Node
from netbird_overlay.testing import LOOPBACK, Accepting, Recorder, allow_everything_in, introduce, loopback_node

STUN = b"\0\1\0\0\x21\x12\xa4\x42transaction!"


def joined(a: Driver, b: Driver) -> None:
    """Join two drivers by a carrier that has the number 7 at either end."""
    a.on_carried = b.deliver
    b.on_carried = a.deliver


def pinned(node: Node, other: Node) -> None:
    introduce(node, other, where=False)
    node.driver.engine.pin(other.public_key, 7)


async def test_a_stream_runs_over_a_carrier() -> None:
    """Two nodes without a socket between them open a stream over a carrier."""
    async with loopback_node("100.64.0.1") as client, loopback_node("100.64.0.2") as server:
        pinned(client, server)
        pinned(server, client)
        joined(client.driver, server.driver)
        allow_everything_in(server)
        server.driver.listen(80, lambda: Recorder(echo=True))
        _, protocol = await client.dial(Recorder, "100.64.0.2", 80, timeout=10)
        assert isinstance(protocol, Recorder)
        await protocol.write_slowly(b"x" * 300_000)
        assert await protocol.has(300_000) == b"x" * 300_000


@pytest.mark.parametrize("address", [LOOPBACK, ""])
async def test_stun_shares_the_socket(address: str) -> None:
    """STUN's datagrams arrive at `on_stray` with their source, and answers leave from the same port."""
    driver = Driver(Engine(bytes(31) + b"\1"), open_socket(address, 0))
    received: asyncio.Queue[tuple[bytes, Endpoint]] = asyncio.Queue()
    driver.on_stray = lambda datagram, source: received.put_nowait((datagram, source))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((LOOPBACK, 0))
        server.setblocking(False)
        there = Endpoint(*server.getsockname())
        driver.send_stray(STUN, there)
        loop = asyncio.get_running_loop()
        datagram, source = await loop.sock_recvfrom(server, 2048)
        assert datagram == STUN
        assert source[1] == driver.local_port
        await loop.sock_sendto(server, STUN + b"answer", source)
        assert await received.get() == (STUN + b"answer", there)
    driver.close()
    driver.send_stray(STUN, there)  # a closed driver sends nothing and raises nothing
    driver.deliver(7, [STUN])


async def test_what_cannot_be_sent_is_lost() -> None:
    """A datagram that the socket refuses is lost without an exception: another family, or one that is too long."""
    driver = Driver(Engine(bytes(31) + b"\1"), open_socket(LOOPBACK, 0))
    driver.send_stray(STUN, Endpoint("2001:db8::1", 3478))
    driver.send_stray(bytes(70_000), Endpoint(LOOPBACK, 3478))
    assert driver.family == socket.AF_INET
    driver.close()


async def test_a_failing_callback_loses_nothing_of_others() -> None:
    """A callback that raises is reported, and datagrams and streams of the same turn go on."""
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    async with loopback_node("100.64.0.1") as client, loopback_node("100.64.0.2") as server:
        introduce(client, server)
        introduce(server, client, where=False)
        allow_everything_in(server)
        arrived = asyncio.Event()
        seen: list[bytes] = []

        def on_stray(datagram: bytes, source: Endpoint) -> None:
            seen.append(datagram)
            if datagram == STUN + b"2":
                arrived.set()
            raise RuntimeError("on_stray")

        def on_carried(carrier: int, datagrams: list[bytes]) -> None:
            raise RuntimeError("on_carried")

        server.driver.on_stray, server.driver.on_carried = on_stray, on_carried
        accepting = Accepting()
        server.driver.listen(80, accepting)
        _, protocol = await client.dial(Recorder, "100.64.0.2", 80, timeout=10)
        for number in (b"1", b"2"):
            client.driver.send_stray(STUN + number, Endpoint(LOOPBACK, server.driver.local_port))
        await arrived.wait()
        server.driver.engine.set_peer(b"k" * 32, ["100.64.0.9"])
        server.driver.engine.pin(b"k" * 32, 5)
        server.driver.engine.handshake(b"k" * 32)
        server.driver.touch()
        assert isinstance(protocol, Recorder)
        protocol.transport.write(b"still here")
        assert await (await accepting.next()).has(10) == b"still here"
        assert seen == [STUN + b"1", STUN + b"2"]
    assert {str(report["exception"]) for report in reports} == {"on_stray", "on_carried"}
