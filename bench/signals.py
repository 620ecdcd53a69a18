"""The rate of the signal server: 2,000 registered peers, each with an address of its own.

Run as `python -m bench.signals [SECONDS]`; prints messages a second, and the server's CPU time and memory.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from netbird_wire.envelope import format_key
from netbird_wire.signalexchange_pb2 import EncryptedMessage

PEERS, CHANNELS, SENDERS = 2_000, 8, 64
BODY = bytes(143)  # an offer of NetBird's agents
METHODS = "/signalexchange.SignalExchange/"
Metadata = tuple[tuple[str, str], ...]


class Peer:
    """One registered peer, which counts what it gets."""

    def __init__(self, channel: grpc.aio.Channel, number: int) -> None:
        self.name = format_key(os.urandom(32))
        self._address = ("x-forwarded-for", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        self._send = channel.unary_unary(METHODS + "Send")
        self._stream: Any = channel.stream_stream(METHODS + "ConnectStream")(
            metadata=(("x-wiretrustee-peer-id", self.name), self._address)
        )
        self.received = 0

    async def receive(self) -> None:
        await self._stream.initial_metadata()
        while isinstance(await self._stream.read(), bytes):
            self.received += 1

    async def send(self, receiver: Peer) -> None:
        message = EncryptedMessage(key=self.name, remoteKey=receiver.name, body=BODY)
        await self._send(message.SerializeToString(), metadata=(self._address,))


async def bench(seconds: float) -> str:
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "netbird_signal.command", "run", "--listen", "127.0.0.1:0",
        "--trusted-proxy", "127.0.0.0/8", "--messages-per-second", "1000000",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        port = int((await server.stdout.readline()).decode().rpartition(":")[2])
        return await _load(server.pid, port, seconds)
    finally:
        server.terminate()
        await server.wait()


async def _load(pid: int, port: int, seconds: float) -> str:
    channels = [
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) for _ in range(CHANNELS)
    ]
    idle = _memory(pid)
    peers = [Peer(channels[number % CHANNELS], number) for number in range(PEERS)]
    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(peer.receive()) for peer in peers]
        await asyncio.sleep(1)
        registered = _memory(pid)
        turns = itertools.cycle(range(PEERS))
        started, used = time.monotonic(), _cpu(pid)
        senders = [group.create_task(_send_until(started + seconds, peers, turns)) for _ in range(SENDERS)]
        sent = sum([await sender for sender in senders])
        took, spent = time.monotonic() - started, _cpu(pid) - used
        received = sum(peer.received for peer in peers)
        for reader in readers:
            reader.cancel()
    for channel in channels:
        await channel.close()
    return (
        f"{sent / took:,.0f} messages a second, {spent / sent * 1e6:.0f} µs of the server's CPU each; "
        f"{received} of {sent} received by {PEERS} peers; {(registered - idle) / PEERS / 1024:.0f} KiB a peer"
    )


async def _send_until(deadline: float, peers: list[Peer], turns: Iterable[int]) -> int:
    sent = 0
    for number in turns:
        if time.monotonic() >= deadline:
            break
        await peers[number].send(peers[number * 7 % PEERS - 1])
        sent += 1
    return sent


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print(asyncio.run(bench(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)))
