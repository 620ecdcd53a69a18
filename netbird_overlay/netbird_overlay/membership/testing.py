"""A fake management server for a node's membership: its answers are those that the test sets."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from netbird_overlay.testing import LOOPBACK
from netbird_wire.envelope import Envelope, EnvelopeError, format_key, parse_key, public_key
from netbird_wire.management_pb2 import (
    Checks,
    DNSConfig,
    Empty,
    EncryptedMessage,
    FirewallRule,
    LoginRequest,
    LoginResponse,
    NetbirdConfig,
    NetworkMap,
    PeerConfig,
    RemotePeerConfig,
    Route,
    ServerKeyResponse,
    SyncMetaRequest,
    SyncRequest,
    SyncResponse,
)
from netbird_wire.management_pb2_grpc import ManagementServiceServicer, add_ManagementServiceServicer_to_server


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
        setup_keys, tokens: credentials that register a peer by its login.
        expired: public keys whose login has expired.
        config: the servers in each login and in the first message of each stream.
        checks: paths of posture checks, in the same messages.
        flow: the answer about logins by an identity provider, as bytes; empty: there is none.
        fault: awaited before each call with its name; may raise or wait.
        logins, metas: the requests so far.
    """

    def __init__(self) -> None:
        self._private_key = secrets.token_bytes(32)
        self.members: dict[str, OverlayMember] = {}
        self.registrations: list[tuple[str, str]] = []
        self.map = NetworkMap(Serial=1, remotePeersIsEmpty=True, firewallRulesIsEmpty=True)
        self.address = "100.64.0.1/16"
        self.mtu = 0
        self.lazy = False
        self.setup_keys: set[str] = set()
        self.tokens: set[str] = set()
        self.expired: set[str] = set()
        self.config: NetbirdConfig | None = None
        self.checks: list[str] = []
        self.flow = b""
        self.logins: list[LoginRequest] = []
        self.metas: list[SyncMetaRequest] = []
        self.fault: Callable[[str], Awaitable[None]] | None = None
        self.opened = 0
        self.target = ""

    def register(self, key: str, endpoint: str) -> None:
        self.registrations.append((key, endpoint))
        self.members.setdefault(key, OverlayMember(endpoint)).endpoint = endpoint

    def forget(self, key: str) -> None:
        for queue in self.members.pop(key).streams:
            queue.put_nowait(None)

    def renew_key(self) -> None:
        """Replace the server's key, as after a restart: messages encrypted for the old key cannot be opened."""
        self._private_key = secrets.token_bytes(32)

    def set_map(
        self,
        *,
        peers: Sequence[RemotePeerConfig] = (),
        rules: Sequence[FirewallRule] = (),
        routes: Sequence[Route] = (),
        offline: Sequence[RemotePeerConfig] = (),
        dns: DNSConfig | None = None,
        serial: int = 0,
    ) -> None:
        """Change the map and send it on every open stream."""
        self.map = NetworkMap(
            Serial=serial or self.map.Serial + 1,
            remotePeers=peers,
            remotePeersIsEmpty=not peers,
            FirewallRules=rules,
            firewallRulesIsEmpty=not rules,
            Routes=routes,
            offlinePeers=offline,
            DNSConfig=dns,
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
        network_map.peerConfig.CopyFrom(self._own())
        return SyncResponse(NetworkMap=network_map, Checks=self._checks())

    def _own(self) -> PeerConfig:
        return PeerConfig(address=self.address, mtu=self.mtu, LazyConnectionEnabled=self.lazy)

    def _checks(self) -> list[Checks]:
        return [Checks(Files=self.checks)] if self.checks else []

    async def GetServerKey(self, request: Empty, context: Any) -> ServerKeyResponse:  # noqa: N802
        await self._fault("GetServerKey")
        return ServerKeyResponse(key=format_key(public_key(self._private_key)))

    async def Login(self, request: EncryptedMessage, context: Any) -> EncryptedMessage:  # noqa: N802
        await self._fault("Login")
        envelope, inner = await self._open(request, LoginRequest, context)
        self.logins.append(inner)
        if inner.setupKey or inner.jwtToken:
            if inner.setupKey not in self.setup_keys and inner.jwtToken not in self.tokens:
                await context.abort(grpc.StatusCode.NOT_FOUND, "setup key is invalid")
            self.members.setdefault(request.wgPubKey, OverlayMember(""))
            self.expired.discard(request.wgPubKey)
        member = await self._member(request.wgPubKey, context)
        member.meta = inner.meta
        return self._sealed(
            envelope, LoginResponse(peerConfig=self._own(), netbirdConfig=self.config, Checks=self._checks())
        )

    async def SyncMeta(self, request: EncryptedMessage, context: Any) -> Empty:  # noqa: N802
        await self._fault("SyncMeta")
        _, inner = await self._open(request, SyncMetaRequest, context)
        await self._member(request.wgPubKey, context)
        self.metas.append(inner)
        return Empty()

    async def Logout(self, request: EncryptedMessage, context: Any) -> Empty:  # noqa: N802
        await self._fault("Logout")
        await self._open(request, Empty, context)
        await self._member(request.wgPubKey, context)
        self.forget(request.wgPubKey)
        return Empty()

    async def GetPKCEAuthorizationFlow(self, request: EncryptedMessage, context: Any) -> EncryptedMessage:  # noqa: N802
        envelope, _ = await self._open(request, Empty, context)
        if not self.flow:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no pkce authorization flow information available")
        return self._sealed(envelope, Empty.FromString(self.flow))

    GetDeviceAuthorizationFlow = GetPKCEAuthorizationFlow

    async def isHealthy(self, request: Empty, context: Any) -> Empty:  # noqa: N802
        await self._fault("isHealthy")
        return Empty()

    async def Sync(self, request: EncryptedMessage, context: Any) -> AsyncIterator[EncryptedMessage]:  # noqa: N802
        await self._fault("Sync")
        envelope, _ = await self._open(request, SyncRequest, context)
        member = await self._member(request.wgPubKey, context)
        queue: asyncio.Queue[SyncResponse | None] = asyncio.Queue()
        member.streams.append(queue)
        self.opened += 1
        try:
            first = self.response()
            if self.config is not None:
                first.netbirdConfig.CopyFrom(self.config)
            yield self._sealed(envelope, first)
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
        if key in self.expired:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "peer login has expired, please log in once more")
        return self.members[key]

    def _sealed(self, envelope: Envelope, message: LoginResponse | SyncResponse | Empty) -> EncryptedMessage:
        return EncryptedMessage(wgPubKey=format_key(public_key(self._private_key)), body=envelope.seal(message))


@asynccontextmanager
async def serving(fake: FakeManagement) -> AsyncIterator[grpc.aio.Channel]:
    """Serve a fake management on a loopback port, and yield a channel to it."""
    server = grpc.aio.server()
    add_ManagementServiceServicer_to_server(fake, server)
    port = server.add_insecure_port(f"{LOOPBACK}:0")
    fake.target = f"{LOOPBACK}:{port}"
    await server.start()
    try:
        async with grpc.aio.insecure_channel(fake.target) as channel:
            yield channel
    finally:
        await server.stop(None)
