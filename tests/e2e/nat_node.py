"""A node of the overlay as a process: `python -m tests.e2e.nat_node SETTINGS`, for machines behind NATs.

SETTINGS is JSON: `key` (private, hex), `address`, `peer` (public, hex) with `peer_address`, `signal` (`host:port`),
`relay` (URL) with `secret`, `stun` (`host:port`). Commands come as lines on standard input: `get BYTES` downloads from
the peer. JSON lines leave: `{"path": kind, "endpoint": …}` at each change of the path, `{"progress": bytes}` after each
megabyte, `{"digest": …, "bytes": …}` at the end, `{"error": …}` if it ends early.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import structlog

from netbird_overlay.driver import Driver, open_socket
from netbird_overlay.engine import Engine
from netbird_overlay.members import Member
from netbird_overlay.node import Node
from netbird_overlay.paths.paths import Paths
from netbird_overlay.paths.servers import PathServers, RemotePeer
from netbird_overlay.signal.client import SignalTarget
from netbird_overlay.testing import allow_everything_in
from netbird_wire.relay_tokens import relay_token

PORT = 80
MEGABYTE = 1 << 20
BLOCK = bytes(range(256)) * 256


def digest(size: int) -> str:
    """Return the SHA-256 of the download of this size."""
    whole = hashlib.sha256()
    for start in range(0, size, len(BLOCK)):
        whole.update(BLOCK[: size - start])
    return whole.hexdigest()


def say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


class Source(asyncio.Protocol):
    """Answers a decimal number and a line feed with as many bytes, as fast as they are taken."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._request = b""
        self._left = 0
        self._paused = False

    def data_received(self, data: bytes) -> None:
        self._request += data
        if self._request.endswith(b"\n"):
            self._left = int(self._request)
            self._pump()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._pump()

    def _pump(self) -> None:
        while self._left and not self._paused:
            block = BLOCK[: self._left]
            self._left -= len(block)
            self._transport.write(block)
        if not self._left:
            self._transport.write_eof()


class Download(asyncio.Protocol):
    """Counts and hashes what comes."""

    def __init__(self, size: int) -> None:
        self._size, self._bytes, self._hash = size, 0, hashlib.sha256()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(b"%d\n" % self._size)

    def data_received(self, data: bytes) -> None:
        before = self._bytes // MEGABYTE
        self._bytes += len(data)
        self._hash.update(data)
        if self._bytes // MEGABYTE > before:
            say(progress=self._bytes)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._bytes == self._size:
            say(bytes=self._bytes, digest=self._hash.hexdigest())
        else:
            say(error=f"{self._bytes} bytes, then {exc}")


async def serve(settings: dict[str, str]) -> None:
    """Run the node until standard input ends."""
    own_key, peer = bytes.fromhex(settings["key"]), bytes.fromhex(settings["peer"])
    engine = Engine(own_key)
    engine.set_addresses([settings["address"]])

    def on_handshake(key: bytes) -> None:
        node.on_handshake(key)
        paths.on_handshake(key)

    def on_change(key: bytes) -> None:
        state = paths.state(key)
        say(path=state.kind, endpoint=state.endpoint.host if state.endpoint else "", at=time.monotonic())

    driver = Driver(engine, open_socket("", 51820), on_handshake=on_handshake)
    node = Node(driver, [settings["address"]])
    paths = Paths(driver, own_key, version="0.60.0", on_change=on_change)
    node.wake = paths.wake
    allow_everything_in(node)
    node.listen(PORT, Source)
    node.set_members([Member(peer, (settings["peer_address"],))], {})
    paths.configure(
        PathServers(
            signal=SignalTarget(settings["signal"], tls=False),
            relays=(settings["relay"],) if settings.get("relay") else (),
            relay_token=relay_token(settings["secret"], int(time.time()) + 3600),
            stuns=(f"stun:{settings['stun']}",) if settings.get("stun") else (),
        )
    )
    paths.set_peers([RemotePeer(peer, "0.60.0")])
    try:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(paths.run())
            await commands(node, lambda: settings["peer_address"])
            running.cancel()
    finally:
        node.close()


async def commands(node: Node, peer: Callable[[], str]) -> None:
    """Perform the commands that come on standard input, until it ends. `peer` returns the peer's overlay address."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    say(ready=True)
    while line := await reader.readline():
        command, _, argument = line.decode().strip().partition(" ")
        assert command == "get"
        size = int(argument)
        try:
            await node.dial(lambda size=size: Download(size), peer(), PORT, timeout=60)
        except OSError as exc:
            say(error=str(exc))
        except Exception as exc:
            say(error=repr(exc))


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(json.loads(sys.argv[1])))
