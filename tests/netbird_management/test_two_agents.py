"""Two of NetBird's agents in one network of ours, by one address: management, signal and relay.

The agents are scripted from captured messages: what they sent is sent again byte for byte, and what they got is
compared byte for byte, but for addresses, times and tokens of this network.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from netbird_management.model.accounts import AccountSettings, Peer
from netbird_management.operations.account_settings import SettingsChange, update_account
from netbird_management.operations.accounts import create_account
from netbird_management.operations.policies import delete_policy
from netbird_management.operations.setup_keys import create_setup_key
from netbird_management.plugins.hooks import load_hooks
from netbird_management.server import ManagementServer, serve
from netbird_management.settings import Listener, ManagementSettings, RestListener
from netbird_wire.envelope import Envelope, parse_key
from netbird_wire.management_pb2 import Empty, EncryptedMessage, LoginRequest, LoginResponse, SyncRequest, SyncResponse
from netbird_wire.management_pb2_grpc import ManagementServiceStub
from netbird_wire.relay import Auth, AuthResponse, PeersOnline, Subscribe, Transport, decode, encode, peer_id
from netbird_wire.relay_tokens import RelayToken
from tests.netbird_management.grpc.conftest import SECONDS, soon

CORPUS = Path(__file__).parents[1] / "corpus" / "golden"
CAPTURED: list[dict[str, Any]] = [json.loads(line) for line in (CORPUS / "wire.jsonl").read_text().splitlines()]
KEYS: dict[str, dict[str, str]] = json.loads((CORPUS / "keys.json").read_text())
SIGNAL = "/signalexchange.SignalExchange/"


def captured(kind: str) -> bytes:
    """The serialized message in the envelope of the first captured one of this kind."""
    line = next(line for line in CAPTURED if line["kind"] == kind)
    return base64.b64decode(line["inner_base64"])


@dataclass
class Agent:
    """One agent on its machine. The port is all that it is told of the network."""

    name: str
    channel: grpc.aio.Channel
    port: int
    stream: Any = None
    envelope: Envelope | None = None
    updates: Any = None

    @property
    def key(self) -> str:
        return KEYS[self.name]["pub"]

    @property
    def stub(self) -> ManagementServiceStub:
        return ManagementServiceStub(self.channel)

    async def sealed(self, message: Message) -> EncryptedMessage:
        """The message in an envelope. Agents ask for the server's key before each call."""
        server = await self.stub.GetServerKey(Empty(), timeout=SECONDS, wait_for_ready=True)
        self.envelope = Envelope(base64.b64decode(KEYS[self.name]["priv"]), parse_key(server.key))
        return EncryptedMessage(wgPubKey=self.key, body=self.envelope.seal(message))

    async def login(self, *, setup_key: str = "") -> LoginResponse:
        request = LoginRequest.FromString(captured("ManagementService.Login.req"))
        request.setupKey = setup_key
        request.meta.hostname = self.name
        request.peerKeys.wgPubKey = self.key.encode()
        answer = await self.stub.Login(await self.sealed(request), timeout=SECONDS)
        assert self.envelope is not None
        return self.envelope.open(answer.body, LoginResponse)

    async def connect_signal(self, login: LoginResponse) -> None:
        """Opens the stream of the announced signal server and waits for the header that confirms it."""
        assert login.netbirdConfig.signal.uri == f"127.0.0.1:{self.port}"
        call = self.channel.stream_stream(SIGNAL + "ConnectStream")
        self.stream = call(metadata=(("x-wiretrustee-peer-id", self.key),))
        headers = await soon(self.stream.initial_metadata())
        assert ("x-wiretrustee-peer-registered", "1") in tuple(headers)

    async def send_signal(self, raw: bytes) -> None:
        await self.channel.unary_unary(SIGNAL + "Send")(raw, timeout=SECONDS)

    async def sync(self) -> SyncResponse:
        self.updates = self.stub.Sync(await self.sealed(SyncRequest.FromString(captured("ManagementService.Sync.req"))))
        return await self.update()

    async def update(self) -> SyncResponse:
        message = await soon(self.updates.read())
        assert self.envelope is not None
        return self.envelope.open(message.body, SyncResponse)

    @asynccontextmanager
    async def relay(self, login: LoginResponse) -> AsyncIterator[ClientConnection]:
        """A connection to the announced relay, with the announced token."""
        config = login.netbirdConfig.relay
        [url] = config.urls
        assert url == f"rel://127.0.0.1:{self.port}"
        token = RelayToken(config.tokenPayload, base64.b64decode(config.tokenSignature))
        async with connect(f"ws{url.removeprefix('rel')}/relay", compression=None, proxy=None) as connection:
            await connection.send(encode(Auth(peer_id(parse_key(self.key)), token)))
            assert decode(await _bytes(connection)) == AuthResponse(url)
            yield connection


async def _bytes(connection: ClientConnection) -> bytes:
    data = await soon(connection.recv())
    assert isinstance(data, bytes)
    return data


@dataclass
class Network:
    """Our host with its default plugins, on one port, and two agents that know only its address."""

    server: ManagementServer
    setup_key: str
    alice: Agent
    bob: Agent

    def peer(self, agent: Agent) -> Peer:
        match = self.server.state.snapshots.by_peer_key(agent.key)
        assert match is not None
        return match[1]


@asynccontextmanager
async def host(store: Path, port: int = 0) -> AsyncIterator[ManagementServer]:
    settings = ManagementSettings(
        state_directory=store,
        rest=RestListener(listen=f"127.0.0.1:{port}", grpc=True),
        grpc=Listener(listen="127.0.0.1:0"),
        grace=1,
    )
    async with serve(settings, load_hooks(settings.plugins)) as server:
        yield server


@asynccontextmanager
async def agents(server: ManagementServer) -> AsyncIterator[Network]:
    """A new account with a setup key, and two agents that are not registered yet."""
    account_id, _ = await create_account(server.state, email="admin@lab.test", name="Admin")
    lazy = AccountSettings(lazy_connection_enabled=True)
    await update_account(server.state, account_id, SettingsChange(lazy))
    _, plain = await create_setup_key(
        server.state, account_id, name="agents", kind="reusable", expires_in=0, auto_groups=[]
    )
    options = (("grpc.use_local_subchannel_pool", 1),)
    target = f"127.0.0.1:{server.rest_port}"
    async with grpc.aio.insecure_channel(target, options) as one, grpc.aio.insecure_channel(target, options) as two:
        alice, bob = Agent("alice", one, server.rest_port), Agent("bob", two, server.rest_port)
        yield Network(server, plain, alice, bob)


@pytest.fixture
async def network(empty_store: Path) -> AsyncIterator[Network]:
    async with host(empty_store) as server, agents(server) as made:
        yield made


def substituted(message: Message, network: Network, agent: Agent) -> bytes:
    """A captured answer as it must be in this network: other addresses, ports and tokens, the rest byte for byte."""
    peer, server = network.peer(agent), network.server
    assert peer.ipv6 is not None
    account = server.state.snapshots.get(peer.account_id)
    assert account is not None
    url = f"127.0.0.1:{server.rest_port}"
    config = message.netbirdConfig  # type: ignore[attr-defined]
    config.signal.uri, config.relay.urls[0] = url, f"rel://{url}"
    del config.stuns[:]  # no STUN port is set in this network
    configs = [message.peerConfig]  # type: ignore[attr-defined]
    if isinstance(message, SyncResponse):
        configs.append(message.NetworkMap.peerConfig)
        message.NetworkMap.Serial = account.account.serial
        for record in message.NetworkMap.DNSConfig.CustomZones[0].Records:
            record.RData = str(peer.ip if record.Type == 1 else peer.ipv6)
    for each in configs:
        each.address = f"{peer.ip}/16"
        each.address_v6 = peer.ipv6.packed + bytes([64])
    return _without_token(message)


def _without_token(message: Message) -> bytes:
    relay = message.netbirdConfig.relay  # type: ignore[attr-defined]
    relay.tokenPayload = relay.tokenSignature = ""
    return message.SerializeToString(deterministic=True)


async def test_an_agent_joins_byte_for_byte(network: Network) -> None:
    """Probe, login by setup key, signal, first map: what NetBird's server answered, ours answers."""
    alice = network.alice
    with pytest.raises(grpc.aio.AioRpcError) as probe:
        await alice.login()
    assert (probe.value.code(), probe.value.details()) == (grpc.StatusCode.PERMISSION_DENIED, "peer is not registered")

    login = await alice.login(setup_key=network.setup_key)
    await alice.connect_signal(login)
    expected = LoginResponse.FromString(captured("ManagementService.Login.resp"))
    assert _without_token(login) == substituted(expected, network, alice)

    first = await alice.sync()
    expected_first = SyncResponse.FromString(captured("ManagementService.Sync.resp"))
    assert _without_token(first) == substituted(expected_first, network, alice)


async def test_two_agents_find_each_other(network: Network) -> None:
    """Each is in the other's map; captured offer, candidate and answer pass the signal server unchanged; a datagram
    passes the relay; the API shows both as connected."""
    alice, bob = network.alice, network.bob
    logins = [await agent.login(setup_key=network.setup_key) for agent in (alice, bob)]
    for agent, login in zip((alice, bob), logins, strict=True):
        await agent.connect_signal(login)
    maps = [await alice.sync(), await bob.sync()]
    assert [[peer.wgPubKey for peer in message.NetworkMap.remotePeers] for message in maps] == [[bob.key], [alice.key]]
    assert [peer.agentVersion for peer in maps[1].NetworkMap.remotePeers] == ["development"]
    assert all(message.peerConfig.LazyConnectionEnabled for message in maps)

    for sender, receiver in ((alice, bob), (bob, alice)):
        for line in CAPTURED:
            if line["kind"] == "SignalExchange.Send.req" and (line["from"], line["to"]) == (sender.name, receiver.name):
                raw = base64.b64decode(line["base64"])
                await sender.send_signal(raw)
                assert await soon(receiver.stream.read()) == raw

    ids = [peer_id(parse_key(agent.key)) for agent in (alice, bob)]
    async with alice.relay(logins[0]) as one, bob.relay(logins[1]) as two:
        await one.send(encode(Subscribe((ids[1],))))
        assert decode(await _bytes(one)) == PeersOnline((ids[1],))
        await one.send(encode(Transport(ids[1], b"a WireGuard datagram")))
        assert decode(await _bytes(two)) == Transport(ids[0], b"a WireGuard datagram")

    assert all(network.peer(agent).connected for agent in (alice, bob))
    assert {network.peer(agent).connection_ip for agent in (alice, bob)} == {"127.0.0.1"}


async def test_an_agent_that_is_blocked_by_policy_leaves_the_map(network: Network) -> None:
    """Without a policy between them neither has the other."""
    alice, bob = network.alice, network.bob
    for agent in (alice, bob):
        await agent.login(setup_key=network.setup_key)
    assert len((await alice.sync()).NetworkMap.remotePeers) == 1
    account_id = network.peer(alice).account_id
    account = network.server.state.snapshots.get(account_id)
    assert account is not None
    await delete_policy(network.server.state, account_id, next(iter(account.policies)))

    later = await alice.update()
    assert (later.NetworkMap.remotePeersIsEmpty, later.NetworkMap.firewallRulesIsEmpty) == (True, True)
    assert not later.HasField("netbirdConfig")


async def test_a_relays_token_of_another_secret_is_refused(network: Network) -> None:
    """The relay knows the secret of management and no other."""
    alice = network.alice
    login = await alice.login(setup_key=network.setup_key)
    login.netbirdConfig.relay.tokenSignature = base64.b64encode(bytes(32)).decode()
    with pytest.raises(ConnectionClosed):
        async with alice.relay(login):
            raise AssertionError("admitted")


async def test_management_restarts_under_its_agents(empty_store: Path) -> None:
    """Its key is another one, and agents, which ask for it before each call, come back without a setup key: with the
    same address, the same relay secret, and their stream."""
    async with host(empty_store) as server, agents(server) as network:
        before = await network.alice.login(setup_key=network.setup_key)
        await network.alice.sync()
        port, secret, stale = server.rest_port, server.relay_secret, network.alice.envelope
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with host(empty_store, port) as server, grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        alice = Agent("alice", channel, port)
        again = await alice.login()
        assert again.peerConfig == before.peerConfig
        assert server.relay_secret == secret
        assert (await alice.sync()).NetworkMap.peerConfig == before.peerConfig
        assert stale is not None
        request = EncryptedMessage(wgPubKey=alice.key, body=stale.seal(LoginRequest()))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await alice.stub.Login(request, timeout=SECONDS)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
