"""Two `netbird-peer`s in a network of nothing but our own parts: management with its signal server and relay."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from examples.demo.processes import BIN, Process
from examples.demo.stack import Stack, stack

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

SECONDS = 60
PLUGINS = ("private_service", "direct_upstream", "signal_server", "relay")


class Peer:
    """One `netbird-peer up` and the commands that use it."""

    def __init__(self, running: Stack, name: str) -> None:
        self._stack = running
        self.name = name
        self.state = running.directory / name
        self.address = ""
        self.process: Process | None = None

    async def up(self, setup_key: str = "", *options: str) -> None:
        arguments = ["--management-url", self._stack.grpc, "--hostname", self.name, "--loopback", *options]
        if setup_key:
            arguments += ["--setup-key", setup_key]
        self.process = await self.start("up", *arguments)
        self.address = (await self.process.until_line(r"^ready on (\S+)"))[1].rstrip(",")

    async def start(self, *arguments: str) -> Process:
        argv = [str(BIN / "netbird-peer"), *arguments, "--state", str(self.state)]
        return await self._stack.processes.start(f"{self.name}-{arguments[0]}", argv)

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        argv = [str(BIN / "netbird-peer"), *arguments, "--state", str(self.state)]
        return await self._stack.processes.run(argv)

    async def status(self) -> dict[str, Any]:
        code, out, err = await self.run("status", "--json")
        assert code == 0, err
        status: dict[str, Any] = json.loads(out)
        return status

    async def path_to(self, other: Peer, *kinds: str) -> dict[str, Any]:
        """Wait for a path of one of these kinds, and return it."""
        async with asyncio.timeout(SECONDS):
            while True:
                for peer in (await self.status())["peers"]:
                    if other.address in peer["addresses"] and peer["path"] in kinds and peer["handshake"] is not None:
                        return dict(peer)
                await asyncio.sleep(0.2)


@asynccontextmanager
async def network(tmp_path: Path, *plugins: str) -> AsyncIterator[tuple[Stack, str]]:
    """Management, and a setup key that registers any number of peers."""
    async with stack(tmp_path) as running:
        await running.start_management(plugins)
        key = await running.api.post(
            "/setup-keys",
            {"name": "peers", "type": "reusable", "expires_in": 86400, "auto_groups": [], "usage_limit": 0},
        )
        yield running, key["key"]


@asynccontextmanager
async def page() -> AsyncIterator[int]:
    """An HTTP server on loopback that says hello; yields its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield int(server.sockets[0].getsockname()[1])


async def test_two_peers_meet_through_our_signal_and_reach_each_other(tmp_path: Path) -> None:
    """They find a direct path, and each command uses it: by address, by name, by a local port and by SOCKS."""
    async with network(tmp_path, *PLUGINS) as (running, key), page() as port:
        alice, bob = Peer(running, "alice"), Peer(running, "bob")
        await alice.up(key)
        await bob.up(key)
        serving = await bob.start("serve", f"8080=127.0.0.1:{port}")
        await serving.until_line(r"^ready on")

        path = await alice.path_to(bob, "ice")
        # A check may arrive before the candidate that it comes from: then its address is `prflx`.
        assert set(path["candidates"]) <= {"host", "prflx"}
        assert await alice.run("get", f"http://{bob.address}:8080/") == (0, "hello", "")
        name = path["name"]
        assert await alice.run("get", f"http://{name}:8080/") == (0, "hello", "")
        forwarding = await alice.start("forward", f"0={name}:8080")
        local = (await forwarding.until_line(r"^ready on 127\.0\.0\.1: (\d+)="))[1]
        assert await _fetched(int(local), b"") == b"hello"
        socks = await alice.start("socks", "--listen", "127.0.0.1:0")
        local = (await socks.until_line(r"^ready on 127\.0\.0\.1:(\d+)"))[1]
        request = b"\x05\x01\x00\x03" + bytes([len(name)]) + name.encode() + (8080).to_bytes(2, "big")
        assert await _fetched(int(local), b"\x05\x01\x00" + request) == b"hello"

        peers = {peer["name"]: peer for peer in await running.api.get("/peers")}
        assert peers["alice"]["connected"]
        assert peers["bob"]["connected"]


async def test_peers_without_a_direct_path_meet_at_our_relay(tmp_path: Path) -> None:
    """One of them uses relays only."""
    async with network(tmp_path, *PLUGINS) as (running, key), page() as port:
        alice, bob = Peer(running, "alice"), Peer(running, "bob")
        await alice.up(key, "--relay-only")
        await bob.up(key)
        serving = await bob.start("serve", f"8080=127.0.0.1:{port}")
        await serving.until_line(r"^ready on")

        path = await alice.path_to(bob, "relay")
        assert path["relay"].startswith("rel://")
        assert await alice.run("get", f"http://{bob.address}:8080/") == (0, "hello", "")


async def test_peers_come_back_after_restarts_of_each_part(tmp_path: Path) -> None:
    """Management and its signal server restart with another key; then a peer does, with its state directory alone."""
    async with network(tmp_path, *PLUGINS) as (running, key), page() as port:
        alice, bob = Peer(running, "alice"), Peer(running, "bob")
        await alice.up(key)
        await bob.up(key)
        serving = await bob.start("serve", f"8080=127.0.0.1:{port}")
        await serving.until_line(r"^ready on")
        await alice.path_to(bob, "ice")

        running.management.send(signal.SIGTERM)
        await running.management.handle.wait()
        assert await alice.run("get", f"http://{bob.address}:8080/") == (0, "hello", "")  # without any server
        await running.restart_management()
        async with asyncio.timeout(SECONDS):
            while not all([(await peer.status())["signal_connected"] for peer in (alice, bob)]):  # noqa: ASYNC110
                await asyncio.sleep(0.2)

        assert alice.process is not None
        alice.process.send(signal.SIGKILL)
        await alice.process.handle.wait()
        before = alice.address
        await alice.up()
        assert alice.address == before
        await alice.path_to(bob, "ice")
        assert await alice.run("get", f"http://{bob.address}:8080/") == (0, "hello", "")


async def _fetched(port: int, before: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(before + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(SECONDS):
        answer = await reader.read()
    writer.close()
    return answer.partition(b"\r\n\r\n")[2]
