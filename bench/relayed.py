"""Bulk between two nodes of the overlay library: by a UDP socket, and by a relay. Printed by `python -m bench.relay`.

Both nodes are in this process, so its CPU is that of both ends: two times WireGuard, TCP and the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from netbird_overlay.node import Node
from netbird_overlay.relay.relays import Relays
from netbird_overlay.testing import allow_everything_in, introduce, loopback_node
from netbird_wire.relay_tokens import RelayToken

PORT = 80
CARRIER = 1
CHUNK = bytes(256 << 10)


@dataclass(frozen=True)
class Run:
    """One run: megabytes that arrived, the time, and the CPU of both nodes."""

    path: str
    megabytes: float
    seconds: float
    cpu: float
    relay_cpu: float = 0.0

    @property
    def row(self) -> str:
        relay = f"{self.relay_cpu / self.megabytes * 1e3:.1f}" if self.relay_cpu else "–"
        return (
            f"| {self.path} | {self.megabytes / self.seconds:,.0f} | {self.cpu / self.megabytes * 1e3:.1f} | {relay} |"
        )


class Receiver(asyncio.Protocol):
    """Counts what arrives."""

    def __init__(self) -> None:
        self.bytes = 0

    def data_received(self, data: bytes) -> None:
        self.bytes += len(data)


class Sender(asyncio.Protocol):
    """Writes as fast as the connection takes it."""

    def __init__(self) -> None:
        self.writable = asyncio.Event()
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()


def _relays(node: Node, other: bytes, online: asyncio.Event, home: asyncio.Event) -> Relays:
    """Relays that carry all of the node's datagrams to the other node."""
    relays = Relays(
        node.public_key,
        on_datagrams=lambda key, server, datagrams: node.driver.deliver(CARRIER, datagrams),
        on_online=lambda key, server: online.set(),
        on_offline=lambda key, server: None,
        on_home=home.set,
    )
    waiting: list[bytes] = []
    loop = asyncio.get_running_loop()

    def carry(carrier: int, datagrams: list[bytes]) -> None:
        if not waiting:
            loop.call_soon(flush)
        waiting.extend(datagrams)

    def flush() -> None:
        relays.send(other, relays.home, waiting)
        waiting.clear()

    node.driver.on_carried = carry
    return relays


@asynccontextmanager
async def _nodes(url: str, token: RelayToken) -> AsyncIterator[tuple[Node, Node]]:
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(loopback_node(f"100.64.0.{number}")) for number in (1, 2)]
        a, b = nodes
        for node, other in ((a, b), (b, a)):
            allow_everything_in(node)
            introduce(node, other, where=not url)
        if not url:
            yield a, b
            return
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        running = []
        opened = []
        for node, other in ((a, b), (b, a)):
            online, home = asyncio.Event(), asyncio.Event()
            relays = _relays(node, other.public_key, online, home)
            relays.configure([url], token)
            running.append(tasks.create_task(relays.run()))
            opened.append((relays, node, other, online, home))
        for relays, node, other, _, home in opened:
            await home.wait()
            relays.open(other.public_key, relays.home)
            node.driver.engine.pin(other.public_key, CARRIER)
        for _, node, other, online, _ in opened:
            await online.wait()
            node.driver.engine.handshake(other.public_key)
            node.driver.touch()
        try:
            yield a, b
        finally:
            for task in running:
                task.cancel()


async def bulk(path: str, seconds: float, *, url: str = "", token: RelayToken) -> Run:
    """One connection from one node to the other, for this time."""
    async with _nodes(url, token) as (a, b):
        receiver = Receiver()
        b.listen(PORT, lambda: receiver)
        await a.handshaken(b.public_key, ask=True)
        transport, sender = await a.dial(Sender, b.addresses[0], PORT, timeout=15)
        assert isinstance(sender, Sender)
        cpu, started = time.process_time(), time.monotonic()
        while time.monotonic() < started + seconds:
            await sender.writable.wait()
            transport.write(CHUNK)
            await asyncio.sleep(0)
        took, cpu = time.monotonic() - started, time.process_time() - cpu
        transport.abort()
        return Run(path, receiver.bytes / 1e6, took, cpu)
