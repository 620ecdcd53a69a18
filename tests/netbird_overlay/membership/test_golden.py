"""Our client opens, reads and applies the bytes that a NetBird management server sent to an agent."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from netbird_overlay.driver import Driver, open_socket
from netbird_overlay.engine import Engine
from netbird_overlay.membership.client import ManagementClient
from netbird_overlay.membership.membership import Membership
from netbird_overlay.membership.meta import system_meta
from netbird_overlay.network_map import read_own
from netbird_overlay.node import Node
from netbird_overlay.paths.servers import PathServers, RemotePeer
from netbird_overlay.signal.client import SignalTarget
from netbird_overlay.testing import LOOPBACK
from netbird_wire.envelope import parse_key

pytestmark = pytest.mark.timeout(30)

LINES = [json.loads(line) for line in (Path(__file__).parent / "golden.jsonl").read_text().splitlines()]
BOB = "bvZ4Yhzmp3tOx5vUXyivaMWKLITvquYzZjIXNPehnVk="
PROXY = "qWtax9c3m2sJXMuGAq8gA0jo6k4ppAzgG3vTE49qIww="


def captured(kind: str, peer: str = "") -> list[bytes]:
    return [base64.b64decode(line["base64"]) for line in LINES if (line["kind"], line["peer"]) == (kind, peer)]


class Recording(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A server that answers with the captured bytes, without reading the requests."""

    def service(self, details: Any) -> Any:
        method = details.method.rpartition("/")[2]
        if method == "Sync":
            return grpc.unary_stream_rpc_method_handler(self._sync)
        kind = f"ManagementService.{method}.resp"
        (answer,) = captured(kind, "" if method == "GetServerKey" else "alice")

        async def reply(request: bytes, context: Any) -> bytes:
            return answer

        return grpc.unary_unary_rpc_method_handler(reply)

    async def _sync(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for message in captured("ManagementService.Sync.resp", "alice"):
            yield message
        await asyncio.Event().wait()


class Recorded:
    """Paths that only record."""

    def __init__(self) -> None:
        self.servers: list[PathServers] = []
        self.peers: list[RemotePeer] = []
        self.overlay_networks: Any = ()

    def configure(self, servers: PathServers) -> None:
        self.servers.append(servers)

    async def replace_peers(self, peers: Any) -> None:
        self.peers = list(peers)

    def wake(self, key: bytes) -> bool:
        return False


async def test_a_captured_login_and_stream_are_followed() -> None:
    """NetBird's own answers to an agent: its servers, its addresses of both families, its peers and its names."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Recording(),))
    port = server.add_insecure_port(f"{LOOPBACK}:0")
    await server.start()
    private_key = captured("private key", "alice")[0]
    applied = asyncio.Queue[None]()
    async with grpc.aio.insecure_channel(f"{LOOPBACK}:{port}") as channel:
        client = ManagementClient(channel, private_key, lambda files: system_meta("alice", files=files))
        login = await client.login()
        own = read_own(login.peerConfig)
        assert own.addresses == ("100.106.97.168", "fdbd:a866:d255:9ff2:1994:2ddf:3362:313")
        assert own.lazy
        engine = Engine(private_key, mtu=own.mtu)
        engine.set_addresses(own.addresses)
        node = Node(Driver(engine, open_socket(LOOPBACK, 0)), own.addresses)
        paths = Recorded()
        membership = Membership(node, client, login, paths=cast(Any, paths), applied=lambda: applied.put_nowait(None))
        async with asyncio.TaskGroup() as group:
            running = group.create_task(membership.run())
            await applied.get()
            assert not node.members
            await applied.get()
            running.cancel()
        node.close()
    await server.stop(None)

    assert paths.servers[0].signal == SignalTarget("10.99.0.1:8081", tls=False)
    assert paths.servers[0].relays == ("rel://10.99.0.1:8081",)
    assert paths.servers[0].relay_token is not None
    assert paths.servers[0].relay_token.payload == "1795387365"
    assert paths.servers[0].stuns == ("stun:10.99.0.1:3478",)
    assert membership.session_expires_at is None
    assert {(peer.key, peer.agent_version, peer.lazy) for peer in paths.peers} == {
        (parse_key(BOB), "development", True),
        (parse_key(PROXY), "development", True),
    }
    bob = node.members[parse_key(BOB)]
    assert bob.addresses == ("100.106.50.72", "fdbd:a866:d255:9ff2:e654:ee71:d4cd:cd46")
    assert bob.name == "bob.netbird.selfhosted"
    assert node.resolve is not None
    assert set(await node.resolve("bob.netbird.selfhosted")) == set(bob.addresses)
