"""Test support for tunnels: peers in one process over loopback, and a fake management server for the overlay.

All parts are real except management, a `ManagementService` whose answers the test sets.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from netbird_overlay.testing import LOOPBACK, allow_everything_in, introduce, loopback_node
from netbird_proxy import AccountId, PublicKey
from netbird_tunnel_netstack.settings import TunnelOptions
from netbird_tunnel_netstack.tunnel import NetstackTunnel
from netbird_wire.envelope import Envelope, EnvelopeError, format_key, parse_key, public_key
from netbird_wire.management_pb2 import (
    Empty,
    EncryptedMessage,
    FirewallRule,
    LoginRequest,
    LoginResponse,
    NetworkMap,
    PeerConfig,
    RemotePeerConfig,
    ServerKeyResponse,
    SyncRequest,
    SyncResponse,
)
from netbird_wire.management_pb2_grpc import ManagementServiceServicer, add_ManagementServiceServicer_to_server

ACCOUNT = AccountId("acct-1")


# Tunnels without management ---------------------------------------------------------------------------------------


@asynccontextmanager
async def loopback_tunnel(*addresses: str, private_key: bytes | None = None) -> AsyncIterator[NetstackTunnel]:
    """A tunnel on a node with these overlay addresses and no peers, on a UDP port of loopback."""
    async with loopback_node(*addresses, private_key=private_key) as node:
        tunnel = NetstackTunnel(node)
        try:
            yield tunnel
        finally:
            tunnel.close()


@asynccontextmanager
async def tunnel_pair() -> AsyncIterator[tuple[NetstackTunnel, NetstackTunnel]]:
    """A client that has the server's endpoint, and a server that admits the client."""
    async with (
        loopback_tunnel("100.64.0.1", "fd00::1") as client,
        loopback_tunnel("100.64.0.2", "fd00::2") as server,
    ):
        introduce(server.node, client.node, name="client", where=False)
        introduce(client.node, server.node, name="server")
        allow_everything_in(server.node)
        yield client, server


# Management -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class OverlayMember:
    """A registered peer in the fake management."""

    endpoint: str
    address: str = "100.64.0.1/16"
    address_v6: bytes = b""
    meta: Any = None
    streams: list[asyncio.Queue[SyncResponse | None]] = field(default_factory=list)


class FakeManagement(ManagementServiceServicer):
    """Answers Login and Sync for registered keys, with the map that was last set.

    Attributes:
        members: the registered peers by public key, as text; `forget` makes a peer register again.
        fault: awaited before each call with its name; may raise or wait.
    """

    def __init__(self) -> None:
        self._private_key = secrets.token_bytes(32)
        self.members: dict[str, OverlayMember] = {}
        self.registrations: list[tuple[str, str]] = []
        self.map = NetworkMap(Serial=1, remotePeersIsEmpty=True, firewallRulesIsEmpty=True)
        self.address = "100.64.0.1/16"
        self.fault: Callable[[str], Awaitable[None]] | None = None
        self.opened = 0

    def register(self, key: str, endpoint: str) -> None:
        self.registrations.append((key, endpoint))
        self.members.setdefault(key, OverlayMember(endpoint)).endpoint = endpoint

    def forget(self, key: str) -> None:
        for queue in self.members.pop(key).streams:
            queue.put_nowait(None)

    def renew_key(self) -> None:
        """Replace the server's key, as after a restart: messages encrypted for the old key cannot be opened."""
        self._private_key = secrets.token_bytes(32)

    def set_map(self, *, peers: list[RemotePeerConfig] = (), rules: list[FirewallRule] = (), serial: int = 0) -> None:  # type: ignore[assignment]
        """Change the map and send it on every open stream."""
        self.map = NetworkMap(
            Serial=serial or self.map.Serial + 1,
            remotePeers=peers,
            remotePeersIsEmpty=not peers,
            FirewallRules=rules,
            firewallRulesIsEmpty=not rules,
        )
        self.send(self.response())

    def send(self, response: SyncResponse) -> None:
        for member in self.members.values():
            for queue in member.streams:
                queue.put_nowait(response)

    def drop_streams(self) -> None:
        for member in self.members.values():
            for queue in member.streams:
                queue.put_nowait(None)

    def response(self) -> SyncResponse:
        network_map = NetworkMap()
        network_map.CopyFrom(self.map)
        network_map.peerConfig.address = self.address
        return SyncResponse(NetworkMap=network_map)

    async def GetServerKey(self, request: Empty, context: Any) -> ServerKeyResponse:  # noqa: N802
        await self._fault("GetServerKey")
        return ServerKeyResponse(key=format_key(public_key(self._private_key)))

    async def Login(self, request: EncryptedMessage, context: Any) -> EncryptedMessage:  # noqa: N802
        await self._fault("Login")
        envelope, inner = await self._open(request, LoginRequest, context)
        member = await self._member(request.wgPubKey, context)
        member.meta = inner.meta
        return self._sealed(envelope, LoginResponse(peerConfig=PeerConfig(address=self.address)))

    async def Sync(self, request: EncryptedMessage, context: Any) -> AsyncIterator[EncryptedMessage]:  # noqa: N802
        await self._fault("Sync")
        envelope, _ = await self._open(request, SyncRequest, context)
        member = await self._member(request.wgPubKey, context)
        queue: asyncio.Queue[SyncResponse | None] = asyncio.Queue()
        member.streams.append(queue)
        self.opened += 1
        try:
            yield self._sealed(envelope, self.response())
            while (response := await queue.get()) is not None:
                yield self._sealed(envelope, response)
        finally:
            member.streams.remove(queue)

    async def _fault(self, name: str) -> None:
        if self.fault is not None:
            await self.fault(name)

    async def _open(self, request: EncryptedMessage, kind: Any, context: Any) -> tuple[Envelope, Any]:
        try:
            envelope = Envelope(self._private_key, parse_key(request.wgPubKey))
            return envelope, envelope.open(request.body, kind)
        except EnvelopeError as exc:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(exc))
            raise

    async def _member(self, key: str, context: Any) -> OverlayMember:
        if key not in self.members:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "peer is not registered")
        return self.members[key]

    def _sealed(self, envelope: Envelope, message: LoginResponse | SyncResponse) -> EncryptedMessage:
        return EncryptedMessage(wgPubKey=format_key(public_key(self._private_key)), body=envelope.seal(message))


@dataclass(frozen=True, slots=True)
class FakeChannel:
    """The part of `netbird_proxy.ManagementChannel` that a tunnel uses."""

    channel: grpc.aio.Channel
    extensions: frozenset[str] = frozenset()
    connected: bool = True

    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("x-netbird-proxy-id", "proxy-1"),)

    async def call(self, method: str, request: Any, *, timeout: float | None = None) -> Any:
        raise NotImplementedError("a tunnel does not make the proxy's calls")


@dataclass(frozen=True, slots=True)
class FakeAccount:
    """Implements `netbird_proxy.AccountHandle`; registering needs no token."""

    directory: Path
    management: FakeChannel
    server: FakeManagement
    id: AccountId = ACCOUNT
    generation: int = 0
    connections: int = 100

    async def register(self, public_key: PublicKey, *, endpoint: str = "") -> None:
        self.server.register(public_key, endpoint)


@asynccontextmanager
async def management_server(directory: Path) -> AsyncIterator[tuple[FakeManagement, FakeAccount]]:
    """A fake management on a loopback port, and an account connected to it."""
    fake = FakeManagement()
    server = grpc.aio.server()
    add_ManagementServiceServicer_to_server(fake, server)
    port = server.add_insecure_port(f"{LOOPBACK}:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"{LOOPBACK}:{port}") as channel:
            yield fake, FakeAccount(directory, FakeChannel(channel), fake)
    finally:
        await server.stop(None)


@dataclass(frozen=True, slots=True)
class FakeProxy:
    """The part of `netbird_proxy.Proxy` that a tunnel uses."""

    tunnel_options: TunnelOptions
    id: str = "proxy-1"
    private: bool = True
    client_addresses_trusted: bool = True
    counted: Counter[str] = field(default_factory=Counter)

    def count(self, name: str, amount: int = 1) -> None:
        self.counted[name] += amount

    def options(self, model: type[Any]) -> Any:
        if model is not TunnelOptions:
            raise LookupError(f"no section of this proxy is a {model.__name__}")
        return self.tunnel_options
