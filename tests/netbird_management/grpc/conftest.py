"""A gRPC server on a real database, and proxies and peers that speak to it over real channels."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from dataclasses import replace as changed
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio
import pytest
from nacl.public import PrivateKey

from netbird_management.grpc.server import Timing, serve_grpc
from netbird_management.model.accounts import Group, Peer, Role, User
from netbird_management.model.clock import now
from netbird_management.model.ids import AccountId, GroupId, PeerId, ProxyId
from netbird_management.model.services import Capabilities, Service, ServiceMeta, Target, TargetOptions, TargetType
from netbird_management.operations.groups import create_group, update_group
from netbird_management.operations.peers import create_stock_peer
from netbird_management.operations.proxies import Registration, register_proxy
from netbird_management.operations.proxy_tokens import create_proxy_token
from netbird_management.operations.services import create_service, update_service
from netbird_management.operations.users import create_user
from netbird_management.plugins.hooks import Hooks, load_hooks
from netbird_management.server import ManagementServer
from netbird_management.settings import Listener, ManagementSettings
from netbird_wire.envelope import Envelope, format_key, parse_key
from netbird_wire.management_pb2 import (
    Empty,
    EncryptedMessage,
    LoginRequest,
    LoginResponse,
    PeerCapabilityIPv6Overlay,
    PeerCapabilitySourcePrefixes,
    PeerKeys,
    PeerSystemMeta,
    SyncRequest,
    SyncResponse,
)
from netbird_wire.management_pb2_grpc import ManagementServiceStub
from netbird_wire.proxy_service_pb2 import (
    CreateProxyPeerRequest,
    ProxyCapabilities,
    ProxyMapping,
    SyncMappingsAck,
    SyncMappingsInit,
    SyncMappingsRequest,
    SyncMappingsResponse,
)
from netbird_wire.proxy_service_pb2_grpc import ProxyServiceStub
from tests.netbird_management.conftest import Home

CLUSTER = "px.test"
SECONDS = 10
"""How long anything may take here."""
T = TypeVar("T")


async def soon(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, SECONDS)


async def eventually(probe: Callable[[], Awaitable[T]], wanted: Callable[[T], bool]) -> T:
    """What the probe finds once it is as wanted: for what is written down off the way and announced to nobody."""
    async with asyncio.timeout(SECONDS):
        while not wanted(found := await probe()):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
    return found


@dataclass
class FakeProxy:
    """A proxy as the wire shows it. `mappings` is what it would serve by what it was told."""

    channel: grpc.aio.Channel
    token: str
    proxy_id: str = "proxy-1"
    cluster: str = CLUSTER
    capabilities: ProxyCapabilities = field(
        default_factory=lambda: ProxyCapabilities(
            supports_custom_ports=True, private=True, supports_private_service=True
        )
    )
    mappings: dict[str, ProxyMapping] = field(default_factory=dict)
    call: Any = None

    @property
    def stub(self) -> ProxyServiceStub:
        return ProxyServiceStub(self.channel)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"), ("x-netbird-proxy-id", self.proxy_id))

    def introduction(self) -> SyncMappingsRequest:
        init = SyncMappingsInit(proxy_id=self.proxy_id, address=self.cluster, capabilities=self.capabilities)
        return SyncMappingsRequest(init=init)

    async def introduce(self) -> None:
        self.call = self.stub.SyncMappings(metadata=self.metadata)
        await self.call.write(self.introduction())

    async def next(self) -> SyncMappingsResponse:
        """The next message, applied and acknowledged. Raises AioRpcError."""
        message: Any = await soon(self.call.read())
        if message is grpc.aio.EOF:
            await soon(self.call.code())
            raise EOFError
        for mapping in message.mapping:
            if mapping.type == 2:
                self.mappings.pop(mapping.id, None)
            else:
                self.mappings[mapping.id] = mapping
        await self.call.write(SyncMappingsRequest(ack=SyncMappingsAck()))
        assert isinstance(message, SyncMappingsResponse)
        return message

    async def connect(self) -> list[SyncMappingsResponse]:
        """The whole snapshot."""
        await self.introduce()
        self.mappings.clear()
        messages = [await self.next()]
        while not messages[-1].initial_sync_complete:
            messages.append(await self.next())
        return messages

    async def unary(self, method: str, request: Any, *, metadata: Any = None) -> Any:
        call = getattr(self.stub, method)
        return await call(request, timeout=SECONDS, metadata=self.metadata if metadata is None else metadata)


@dataclass
class FakePeer:
    """A node of the overlay as the wire shows it."""

    channel: grpc.aio.Channel
    private_key: bytes = field(default_factory=lambda: bytes(PrivateKey.generate()))
    meta: PeerSystemMeta = field(
        default_factory=lambda: PeerSystemMeta(
            hostname="node",
            netbirdVersion="0.77.1",
            capabilities=[PeerCapabilitySourcePrefixes, PeerCapabilityIPv6Overlay],
        )
    )
    envelope: Envelope | None = None
    call: Any = None

    @property
    def key(self) -> str:
        return format_key(bytes(PrivateKey(self.private_key).public_key))

    @property
    def stub(self) -> ManagementServiceStub:
        return ManagementServiceStub(self.channel)

    async def sealed(self, message: Any) -> EncryptedMessage:
        server = await self.stub.GetServerKey(Empty(), timeout=SECONDS)
        self.envelope = Envelope(self.private_key, parse_key(server.key))
        return EncryptedMessage(wgPubKey=self.key, body=self.envelope.seal(message))

    async def login(self, **fields: Any) -> LoginResponse:
        request = LoginRequest(meta=self.meta, peerKeys=PeerKeys(wgPubKey=self.key.encode()), **fields)
        answer = await self.stub.Login(await self.sealed(request), timeout=SECONDS)
        assert self.envelope is not None
        return self.envelope.open(answer.body, LoginResponse)

    async def sync(self) -> SyncResponse:
        """Opens the stream; its first message."""
        self.call = self.stub.Sync(await self.sealed(SyncRequest(meta=self.meta)))
        return await self.next()

    async def next(self) -> SyncResponse:
        message: Any = await soon(self.call.read())
        if message is grpc.aio.EOF:
            raise EOFError
        assert self.envelope is not None
        return self.envelope.open(message.body, SyncResponse)

    async def until(self, wanted: Callable[[SyncResponse], bool]) -> SyncResponse:
        """The first of the coming messages that is as wanted."""
        while not wanted(message := await self.next()):
            pass
        return message


@dataclass
class Lab:
    """The account `home` behind a gRPC server, with its hooks."""

    home: Home
    host: ManagementServer
    port: int
    channel: grpc.aio.Channel
    token: str

    @property
    def hooks(self) -> Hooks:
        return self.host.hooks

    def proxy(self, **fields: Any) -> FakeProxy:
        return FakeProxy(self.channel, fields.pop("token", self.token), **fields)

    def peer(self, **fields: Any) -> FakePeer:
        return FakePeer(self.channel, **fields)

    async def group(self, name: str, *members: Peer) -> Group:
        return await create_group(
            self.home.state, self.home.account_id, name=name, peers=[member.id for member in members]
        )

    async def set_members(self, group: Group, *members: Peer) -> None:
        ids = [PeerId(member.id) for member in members]
        await update_group(self.home.state, self.home.account_id, group.id, name=group.name, peers=ids)

    async def user(self, email: str) -> User:
        return await create_user(self.home.state, self.home.account_id, role=Role.USER, email=email)

    async def stock_peer(self, name: str, user: User | None = None, key: str | None = None) -> Peer:
        peer, _ = await create_stock_peer(
            self.home.state,
            self.home.account_id,
            name=name,
            user_id=None if user is None else user.id,
            public_key=key,
        )
        return peer

    async def service(self, name: str, *groups: Group, targets: tuple[Target, ...] = (), **fields: Any) -> Service:
        """A service `<name>.px.test`, private if it has groups."""
        given = Service(
            id="",  # type: ignore[arg-type]
            account_id=self.home.account_id,
            name=name,
            domain=f"{name}.{CLUSTER}",
            proxy_cluster="",
            meta=ServiceMeta(created_at=now()),
            targets=targets or (direct_target(),),
            private=bool(groups),
            access_groups=tuple(GroupId(group.id) for group in groups),
            **fields,
        )
        return await create_service(self.home.state, self.hooks, given, frozenset({"private", "access_groups"}))

    async def change(self, service: Service, **fields: Any) -> Service:
        sent = frozenset({"private", "access_groups", *fields})
        given = changed(service, **fields)
        return await update_service(self.home.state, self.hooks, given, sent, confirm_public=True)


def direct_target(host: str = "127.0.0.1", port: int = 9000) -> Target:
    return Target(
        target_id=CLUSTER,
        target_type=TargetType.CLUSTER,
        protocol="http",
        port=port,
        host=host,
        options=TargetOptions(direct_upstream=True),
    )


def peer_target(peer: Peer, port: int = 9000) -> Target:
    return Target(target_id=peer.id, target_type=TargetType.PEER, protocol="http", port=port)


def new_key() -> str:
    return base64.b64encode(bytes(PrivateKey.generate().public_key)).decode()


async def register(proxy: FakeProxy, service: Service, *, peer: FakePeer, endpoint: str = "") -> Any:
    """CreateProxyPeer for a peer's key, with the token that the service's mapping brought."""
    request = CreateProxyPeerRequest(
        service_id=service.id,
        account_id=service.account_id,
        token=proxy.mappings[service.id].auth_token,
        wireguard_public_key=peer.key,
        cluster=proxy.cluster,
        wireguard_endpoint=endpoint,
    )
    return await proxy.unary("CreateProxyPeer", request)


@asynccontextmanager
async def lab_for(
    home: Home, directory: Path, *, plugins: tuple[Any, ...] = ("private_service", "direct_upstream"), **options: Any
) -> AsyncIterator[Lab]:
    """A server of its own; a proxy of the cluster was seen before, so that services can be made at once."""
    registration = Registration(
        ProxyId("earlier"), "earlier", CLUSTER, "127.0.0.1", None, None, Capabilities(True, False, False, True, True)
    )
    await register_proxy(home.state, registration)
    _, token = await create_proxy_token(home.state, name="shared", account_id=None, created_by="test")
    settings = ManagementSettings(state_directory=directory)
    host = ManagementServer(settings, load_hooks(plugins), home.state)
    options.setdefault("timing", Timing(quiet=0.05))
    async with (
        serve_grpc(host, Listener(listen="127.0.0.1:0"), grace=2.0, **options) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield Lab(home, host, port, channel, token)


@pytest.fixture
async def lab(home: Home, tmp_path: Path) -> AsyncIterator[Lab]:
    async with lab_for(home, tmp_path) as opened:
        yield opened


@pytest.fixture
def account_id(home: Home) -> AccountId:
    return home.account_id
