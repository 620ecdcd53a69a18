"""Peers of the overlay: their envelope, their log-in, and the stream of their maps."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from netbird_management.grpc.interceptors import OPEN_MESSAGE_BYTES
from netbird_management.grpc.peer_streams import PeerStreams
from netbird_management.grpc.server import Timing
from netbird_management.model.accounts import Group, Peer, Role, User
from netbird_management.model.ids import PeerId
from netbird_management.model.services import Service
from netbird_management.operations.accounts import create_account
from netbird_management.operations.peers import delete_peer, get_peer, note_login, note_seen, set_connected
from netbird_management.operations.users import update_user
from netbird_wire.envelope import Envelope, parse_key
from netbird_wire.management_pb2 import Empty, EncryptedMessage, LoginRequest, PeerSystemMeta, SyncRequest, SyncResponse
from tests.netbird_management.conftest import Home
from tests.netbird_management.grpc.conftest import FakePeer, FakeProxy, Lab, eventually, lab_for, register

Code = grpc.StatusCode


async def code_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def agent(lab: Lab, name: str = "laptop", **fields: Any) -> tuple[FakePeer, Peer]:
    """A peer that syncs like an agent; its key was made known beforehand."""
    node = lab.peer()
    return node, await lab.stock_peer(name, key=node.key, **fields)


async def proxy_node(lab: Lab, service: Service) -> tuple[FakeProxy, FakePeer]:
    proxy, node = lab.proxy(), lab.peer()
    await proxy.connect()
    await register(proxy, service, peer=node)
    return proxy, node


def zones(message: SyncResponse) -> dict[str, set[str]]:
    return {
        zone.Domain: {record.RData for record in zone.Records}
        for zone in message.NetworkMap.DNSConfig.CustomZones
        if zone.NonAuthoritative
    }


def peers(message: SyncResponse) -> set[str]:
    return {remote.fqdn.split(".")[0] for remote in message.NetworkMap.remotePeers}


async def test_anybody_may_ask_for_the_key_and_for_health(lab: Lab) -> None:
    """The key is one, for as long as the process lives."""
    node = lab.peer()
    keys = {(await node.stub.GetServerKey(Empty(), timeout=5)).key for _ in range(2)}
    assert len(parse_key(keys.pop())) == 32
    assert not keys
    await node.stub.isHealthy(Empty(), timeout=5)


@pytest.mark.parametrize("method", ["Login", "Sync"])
@pytest.mark.parametrize(
    "garble", ["changed", "short", "empty", "enormous", "other sender", "no key", "zero key", "nonsense"]
)
async def test_what_cannot_be_opened_is_refused_and_changes_nothing(lab: Lab, method: str, garble: str) -> None:
    """Garbled, oversized, or sealed with another key: an invalid argument, whoever the message says it is from."""
    node, _ = await agent(lab)
    before = lab.home.snapshot
    message = await node.sealed(LoginRequest(meta=node.meta) if method == "Login" else SyncRequest(meta=node.meta))
    body = message.body
    assert node.envelope is not None
    broken = {
        "changed": EncryptedMessage(wgPubKey=node.key, body=body[:-1] + bytes([body[-1] ^ 1])),
        "short": EncryptedMessage(wgPubKey=node.key, body=body[:20]),
        "empty": EncryptedMessage(wgPubKey=node.key),
        "enormous": EncryptedMessage(
            wgPubKey=node.key,
            body=node.envelope.seal(SyncRequest(meta=PeerSystemMeta(hostname="x" * OPEN_MESSAGE_BYTES))),
        ),
        "other sender": EncryptedMessage(wgPubKey=lab.peer().key, body=body),
        "no key": EncryptedMessage(wgPubKey="not a key", body=body),
        "zero key": EncryptedMessage(wgPubKey="A" * 43 + "=", body=body),
        "nonsense": EncryptedMessage(wgPubKey=node.key, body=node.envelope.seal(Empty())),
    }[garble]
    if garble == "nonsense":
        # Not a message of any kind: field 1 announces more bytes than there are.
        broken.body = _sealed_bytes(node, b"\x0a\xff\x01x")
    call = getattr(node.stub, method)(broken, timeout=5)
    code, _ = await code_of(call if method == "Login" else call.read())
    assert code is (Code.RESOURCE_EXHAUSTED if garble == "enormous" else Code.INVALID_ARGUMENT)
    assert lab.home.snapshot is before


async def test_strangers_do_not_log_in(lab: Lab) -> None:
    """An unknown key is denied; what it offers instead is not there yet, and is said so."""
    assert (await code_of(lab.peer().login()))[0] is Code.PERMISSION_DENIED
    code, details = await code_of(lab.peer().login(setupKey="A616097E-FCF0-48FA-9354-CA4A61142761"))
    assert (code, "setup key is invalid" in details) == (Code.NOT_FOUND, True)
    code, details = await code_of(lab.peer().login(jwtToken="e30.e30.e30"))
    assert (code, "no identity provider" in details) == (Code.INVALID_ARGUMENT, True)
    assert (await code_of(lab.peer().sync()))[0] is Code.PERMISSION_DENIED
    assert len(lab.home.snapshot.peers) == 0


async def test_a_login_needs_to_say_what_it_is(lab: Lab) -> None:
    """Without its machine's description it is refused."""
    node, _ = await agent(lab)
    message = await node.sealed(LoginRequest())
    assert (await code_of(node.stub.Login(message, timeout=5)))[0] is Code.FAILED_PRECONDITION


async def test_an_agent_learns_who_it_is(lab: Lab) -> None:
    """Address, name, and a signal server, which agents read without asking whether it is there."""
    node, peer = await agent(lab)
    answer = await node.login()
    prefix = lab.home.snapshot.account.network.prefixlen
    assert answer.peerConfig.address == f"{peer.ip}/{prefix}"
    assert answer.peerConfig.fqdn == "laptop.netbird.selfhosted"
    assert answer.netbirdConfig.HasField("signal")
    assert answer.HasField("sessionExpiresAt")
    assert get_peer(lab.home.state, lab.home.account_id, peer.id).last_login is not None


async def test_login_and_maps_agree_on_who_a_peer_is(lab: Lab) -> None:
    """From the first login on: a node whose addresses change has to start over."""
    service = await lab.service("app", await lab.group("g"))
    _, node = await proxy_node(lab, service)
    login, first = await node.login(), await node.sync()
    assert len(login.peerConfig.address_v6) == 17
    assert login.peerConfig == first.peerConfig == first.NetworkMap.peerConfig


async def test_the_first_map_is_whole_and_later_ones_have_no_configuration(lab: Lab) -> None:
    """A later configuration without relays would switch them off; the meta of the request is kept, without an @."""
    node, peer = await agent(lab)
    node.meta.hostname = "alice@lab.test"
    first = await node.sync()
    assert first.HasField("netbirdConfig")
    assert (first.Version, first.HasField("NetworkMapEnvelope")) == (0, False)
    await lab.stock_peer("phone")
    later = await node.next()
    assert not later.HasField("netbirdConfig")
    assert peers(later) == {"phone"}
    assert later.NetworkMap.Serial >= first.NetworkMap.Serial
    assert get_peer(lab.home.state, lab.home.account_id, peer.id).meta.hostname == "alicelab.test"


async def test_a_stream_is_presence(lab: Lab) -> None:
    """Connected while it lasts; the end of one that was replaced says nothing."""
    node, peer = await agent(lab)

    async def connected() -> bool:
        return get_peer(lab.home.state, lab.home.account_id, peer.id).connected

    await node.sync()
    assert await connected()
    older = node.call
    await node.sync()
    assert (await code_of(older.read()))[0] is Code.ABORTED
    assert await connected()
    node.call.cancel()
    await eventually(connected, lambda answer: not answer)


async def test_members_hear_of_a_proxy_when_it_comes_and_when_it_goes(lab: Lab) -> None:
    """The name of a private service points to proxies that are there, in the map of every member."""
    node, peer = await agent(lab)
    service = await lab.service("app", await lab.group("g", peer))
    assert zones(await node.sync()) == {}
    _, of_proxy = await proxy_node(lab, service)
    seen = await node.until(lambda message: bool(peers(message)))
    assert zones(seen) == {}
    first = await of_proxy.sync()
    assert peers(first) == {"laptop"}
    [made] = lab.home.snapshot.proxy_peers("px.test")
    named = await node.until(lambda message: bool(zones(message)))
    assert zones(named) == {"px.test.": {str(made.ip)}}
    of_proxy.call.cancel()
    assert zones(await node.until(lambda message: not zones(message))) == {}


@dataclass
class Watched:
    """One peer's stream, and what there is around it to change."""

    lab: Lab
    alice: User
    phone: Peer
    node: Peer
    group: Group
    service: Service

    async def due_after(self, change: Callable[["Watched"], Awaitable[object]]) -> bool:
        state = self.lab.home.state
        streams = PeerStreams()
        stream = streams.join(self.node)
        with state.snapshots.subscribe() as changes:
            await change(self)
            following = asyncio.Task(streams.follow(changes))
            await asyncio.sleep(0)  # one step takes all notices that wait
            following.cancel()
        return stream.due


@pytest.fixture
async def watched(lab: Lab) -> Watched:
    alice = await lab.user("alice@lab.test")
    phone = await lab.stock_peer("phone", alice)
    group = await lab.group("g", phone)
    service = await lab.service("app", group)
    await proxy_node(lab, service)
    [node] = lab.home.snapshot.proxy_peers("px.test")
    return Watched(lab, alice, phone, node, group, service)


def block(watched: Watched) -> Awaitable[object]:
    home = watched.lab.home
    return update_user(home.state, home.account_id, watched.alice.id, role=Role.USER, auto_groups=[], blocked=True)


@pytest.mark.parametrize(
    "change",
    [
        block,
        lambda it: it.lab.set_members(it.group),
        lambda it: it.lab.change(it.service, enabled=False),
        lambda it: it.lab.change(it.service, access_groups=(it.lab.home.snapshot.group_all.id,)),
        lambda it: it.lab.stock_peer("tablet"),
        lambda it: delete_peer(it.lab.home.state, it.lab.home.account_id, it.phone.id),
        lambda it: set_connected(it.lab.home.state, it.node, started_ns=1),
        lambda it: delete_peer(it.lab.home.state, it.lab.home.account_id, it.node.id),
    ],
    ids=["user", "members", "service", "access groups", "new peer", "no peer", "proxy is there", "own end"],
)
async def test_what_may_change_access_is_news(watched: Watched, change: Callable[[Watched], Awaitable[object]]) -> None:
    """Also what changes no map, as a blocked user: a proxy asks again who may come in whenever a map arrives."""
    assert await watched.due_after(change)


@pytest.mark.parametrize(
    "change",
    [
        lambda it: note_login(it.lab.home.state, it.phone, by_user=False),
        lambda it: note_seen(it.lab.home.state, it.phone),
        lambda it: set_connected(it.lab.home.state, it.phone, started_ns=1, connection_ip="192.0.2.1"),
        lambda it: create_account(it.lab.home.state, email="other@lab.test", name="Other"),
    ],
    ids=["log-in", "sighting", "presence", "another account"],
)
async def test_what_changes_nothing_is_no_news(
    watched: Watched, change: Callable[[Watched], Awaitable[object]]
) -> None:
    """Ordinary peers come and go all the time; nobody gets a map for it."""
    assert not await watched.due_after(change)


async def test_an_agents_maps_wait_for_one_another(home: Home, tmp_path: Path) -> None:
    """Several changes in a row are one map, the latest."""
    async with lab_for(home, tmp_path, timing=Timing(quiet=0.5)) as lab:
        node, _ = await agent(lab)
        await node.sync()
        for number in range(5):
            await lab.stock_peer(f"peer{number}")
        assert peers(await node.next()) == {f"peer{number}" for number in range(5)}


async def test_a_peer_that_is_deleted_is_told(lab: Lab) -> None:
    """Its stream ends, and it cannot log in again."""
    node, peer = await agent(lab)
    await node.sync()
    await delete_peer(lab.home.state, lab.home.account_id, PeerId(peer.id))
    assert (await code_of(node.next()))[0] is Code.PERMISSION_DENIED
    assert (await code_of(node.login()))[0] is Code.PERMISSION_DENIED


async def test_a_blocked_users_peer_is_out(lab: Lab) -> None:
    """Its stream ends at the change, and neither login nor sync is answered."""
    alice = await lab.user("alice@lab.test")
    node, _ = await agent(lab, user=alice)
    await node.login()
    await node.sync()
    await update_user(lab.home.state, lab.home.account_id, alice.id, role=Role.USER, auto_groups=[], blocked=True)
    assert (await code_of(node.next()))[0] is Code.PERMISSION_DENIED
    assert (await code_of(node.login()))[0] is Code.PERMISSION_DENIED
    assert (await code_of(node.sync()))[0] is Code.PERMISSION_DENIED


async def test_stopping_ends_streams_and_writes_that_down(home: Home, tmp_path: Path) -> None:
    """Everybody is told that management goes, and counts as gone."""
    async with lab_for(home, tmp_path) as lab:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{lab.port}")
        node, peer = await agent(lab)
        node.channel, proxy = channel, FakeProxy(channel, lab.token)
        await node.sync()
        await proxy.connect()
        assert get_peer(home.state, home.account_id, peer.id).connected
    assert not get_peer(home.state, home.account_id, peer.id).connected
    async with channel:
        assert (await code_of(node.next()))[0] is Code.UNAVAILABLE
        assert (await code_of(proxy.next()))[0] is Code.UNAVAILABLE


def _sealed_bytes(node: FakePeer, plain: bytes) -> bytes:
    """A good box around anything."""

    class Raw:
        def SerializeToString(self) -> bytes:
            return plain

    assert isinstance(node.envelope, Envelope)
    return node.envelope.seal(Raw())  # type: ignore[arg-type]
