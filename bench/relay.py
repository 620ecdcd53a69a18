"""The relay alone: bytes a core between pairs of peers, and what thousands of connected peers cost.

`python -m bench.relay` starts the command as users do and loads it over loopback. Senders repeat one prepared batch, so
that the load costs little beside what is measured. Peers are this module's own, without the client library, whose cost
stands in a table of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvloop

from bench import relayed
from bench.measure import Footprint, cpu_seconds
from netbird_overlay.relay.client import RelayConnection
from netbird_wire.relay import Auth, Subscribe, Transport, chunks, encode, peer_id
from netbird_wire.relay_tokens import relay_token
from netbird_wire.relay_url import parse_relay_url
from netbird_wire.websocket import ClientWebSocket

SECRET = "a secret for one run of the benchmark"
TOKEN = relay_token(SECRET, 4_000_000_000)
DATAGRAM = bytes(1312)
"""A full WireGuard datagram of a tunnel with an MTU of 1280."""
BATCH = 64
"""Datagrams in one write of a sender, as a driver's turn makes them."""
ROOM = 2 << 20
"""Bytes a sender may be ahead of its receiver, less than what the relay queues, so that nothing is dropped."""


def identity(number: int) -> bytes:
    return peer_id(number.to_bytes(32, "big"))


class Client(asyncio.Protocol):
    """One peer: authenticated, and counting what it gets."""

    def __init__(self, number: int) -> None:
        self.id = identity(number)
        self.websocket = ClientWebSocket("127.0.0.1", 80, "/relay", secure=False, max_message_bytes=8820)
        self.ready = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport
        self.bytes = 0
        self.arrived = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.transport.write(self.websocket.to_send())

    def data_received(self, data: bytes) -> None:
        if self.ready.done():
            self.bytes += len(data)
            self.arrived.set()
            return
        for message in self.websocket.receive(data):
            if message[1] == 7:
                self.ready.set_result(None)
        if self.websocket.opened and not self.ready.done():
            self.send(encode(Auth(self.id, TOKEN)))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_exception(exc or EOFError("the relay closed the connection"))

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    async def got(self, count: int) -> None:
        """Wait until this number of bytes has arrived."""
        while self.bytes < count:
            self.arrived.clear()
            await self.arrived.wait()

    def send(self, *messages: bytes) -> None:
        self.transport.write(self.websocket.frames(messages))


@dataclass
class Server:
    """The running relay."""

    pid: int
    port: int
    clients: list[Client] = field(default_factory=list)

    async def connect(self, number: int) -> Client:
        _, client = await asyncio.get_running_loop().create_connection(lambda: Client(number), "127.0.0.1", self.port)
        await client.ready
        self.clients.append(client)
        return client

    def disconnect_all(self) -> None:
        for client in self.clients:
            client.transport.abort()
        self.clients.clear()


@asynccontextmanager
async def relay() -> AsyncIterator[Server]:
    with tempfile.TemporaryDirectory() as directory:
        secret = Path(directory) / "secret"
        secret.touch(mode=0o600)
        secret.write_text(SECRET)
        many = "1000000"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from netbird_relay.command import main; main()", "run"),
            *("--listen", "127.0.0.1:0", "--exposed-url", "rel://127.0.0.1", "--secret-file", str(secret)),
            *("--connections", many, "--connections-per-address", many, "--subscriptions", "10000000"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            assert process.stdout is not None
            line = (await process.stdout.readline()).decode()
            server = Server(process.pid, int(line.rpartition(":")[2]))
            yield server
            server.disconnect_all()
        finally:
            process.kill()
            await process.wait()


@dataclass(frozen=True)
class Bulk:
    """One run of bulk traffic: bytes of datagrams that arrived, and the relay's CPU time."""

    pairs: int
    megabytes: float
    seconds: float
    cpu: float

    @property
    def row(self) -> str:
        datagrams = self.megabytes * 1e6 / len(DATAGRAM)
        return (
            f"| {self.pairs} | {self.megabytes / self.cpu:,.0f} | {self.cpu / datagrams * 1e6:.2f} |"
            f" {self.megabytes / self.seconds:,.0f} |"
        )


async def _send(sender: Client, receiver: Client, until: float) -> None:
    """Send batches to the receiver, never more than ROOM ahead of it."""
    batch = sender.websocket.frames([encode(Transport(receiver.id, DATAGRAM))] * BATCH)
    arriving = receiver.bytes
    sent = 0
    while time.monotonic() < until:
        await sender.writable.wait()
        if sent - (receiver.bytes - arriving) > ROOM:
            await asyncio.sleep(0)
            continue
        sender.transport.write(batch)
        sent += len(batch)
        await asyncio.sleep(0)


async def bulk(server: Server, pairs: int, seconds: float) -> Bulk:
    """Bulk from one peer of each pair to the other."""
    clients = [await server.connect(number) for number in range(2 * pairs)]
    before, started = cpu_seconds(server.pid), time.monotonic()
    base = sum(client.bytes for client in clients)
    async with asyncio.TaskGroup() as tasks:
        for sender, receiver in zip(clients[::2], clients[1::2], strict=True):
            tasks.create_task(_send(sender, receiver, started + seconds))
    took, cpu = time.monotonic() - started, cpu_seconds(server.pid) - before
    frame = len(DATAGRAM) + 38 + 4
    arrived = (sum(client.bytes for client in clients) - base) / frame * len(DATAGRAM)
    server.disconnect_all()
    return Bulk(pairs, arrived / 1e6, took, cpu)


async def crowd(server: Server, peers: int, subscriptions: int) -> str:
    """Connect many peers, each subscribed to some others; the cost of the crowd and of one more peer's coming."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    empty, before, started = Footprint.of(server.pid).resident, cpu_seconds(server.pid), time.monotonic()
    for start in range(0, peers, 50):
        await asyncio.gather(*(server.connect(number) for number in range(start, min(start + 50, peers))))
    took, connecting = time.monotonic() - started, cpu_seconds(server.pid) - before
    connected = Footprint.of(server.pid).resident
    before = cpu_seconds(server.pid)
    for number, client in enumerate(server.clients):
        others = [identity((number + step) % peers) for step in range(1, subscriptions + 1)]
        client.send(*(encode(Subscribe(piece)) for piece in chunks(others)))
    for client in server.clients:
        await client.got(subscriptions * 36)
    subscribing = cpu_seconds(server.pid) - before
    subscribed = Footprint.of(server.pid).resident
    before, started = cpu_seconds(server.pid), time.monotonic()
    await asyncio.sleep(5)
    idle = (cpu_seconds(server.pid) - before) / (time.monotonic() - started)
    watchers = list(server.clients)
    for client in watchers:
        client.send(encode(Subscribe((identity(peers),))))
    await asyncio.sleep(0.5)
    held = [client.bytes for client in watchers]
    before = cpu_seconds(server.pid)
    await server.connect(peers)
    for client, count in zip(watchers, held, strict=True):
        await client.got(count + 1)
    telling = cpu_seconds(server.pid) - before
    server.disconnect_all()
    memory = (subscribed - connected) * 1e6 / peers / subscriptions
    return (
        f"{peers:,} peers connected in {took:.1f} s with {connecting / peers * 1e3:.2f} ms CPU each and"
        f" {(connected - empty) * 1e3 / peers:.0f} kB each; {subscriptions} subscriptions of each cost"
        f" {subscribing / peers / subscriptions * 1e6:.1f} µs and {memory:.0f} bytes a subscription; then the relay"
        f" used {idle:.1%} of a core. One more peer that all wait for costs {telling * 1e3:.0f} ms CPU."
    )


class _Sink(asyncio.Transport):
    """A socket that takes everything."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default


async def library(count: int = 50_000) -> str:
    """CPU of the client library for each datagram, without the socket."""
    connection = RelayConnection(
        parse_relay_url("rel://127.0.0.1"),
        identity(1),
        TOKEN,
        on_events=lambda connection, events: None,
        on_dropped=lambda reason, number: None,
    )
    connection.connection_made(_Sink())
    other = identity(2)
    datagrams = [DATAGRAM] * BATCH
    started = time.process_time()
    for _ in range(count // BATCH):
        connection.send(other, datagrams)
        connection._flush()
    sending = time.process_time() - started
    return f"The client library takes {sending / count * 1e6:.2f} µs to send a datagram."


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--peers", type=int, default=2000)
    parser.add_argument("--subscriptions", type=int, default=200)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores; datagrams of {len(DATAGRAM)} bytes\n")
    print("| pairs of peers | MB a CPU second | µs CPU a datagram | MB/s |\n|---|---|---|---|")
    async with relay() as server:
        for pairs in (1, 8, 64):
            print((await bulk(server, pairs, options.seconds)).row)
    async with relay() as server:
        print("\n" + await crowd(server, options.peers, options.subscriptions))
    print(await library() + "\n")
    print(
        "| one connection between two nodes | MB/s | ms CPU a MB, both nodes | ms CPU a MB, relay |\n|---|---|---|---|"
    )
    print((await relayed.bulk("UDP", options.seconds, token=TOKEN)).row)
    async with relay() as server:
        before = cpu_seconds(server.pid)
        run = await relayed.bulk("relay", options.seconds, url=f"rel://127.0.0.1:{server.port}", token=TOKEN)
        print(replace(run, relay_cpu=cpu_seconds(server.pid) - before).row)


if __name__ == "__main__":
    uvloop.run(main())
