"""A node follows management: maps, configuration, expired logins, and the peers behind which networks are."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import groupby

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from netbird_overlay.driver import Driver, open_socket
from netbird_overlay.engine import Endpoint, Engine
from netbird_overlay.errors import Unreachable
from netbird_overlay.membership.client import ManagementClient
from netbird_overlay.membership.enrollment import enroll
from netbird_overlay.membership.errors import AddressesChanged, LoginExpired, NotRegistered
from netbird_overlay.membership.membership import Membership
from netbird_overlay.membership.meta import system_meta
from netbird_overlay.membership.testing import FakeManagement, serving
from netbird_overlay.node import Node
from netbird_overlay.paths.servers import PathServers, RemotePeer
from netbird_overlay.signal.client import SignalTarget
from netbird_overlay.testing import LOOPBACK, Recorder, allow_everything_in, introduce, loopback_node
from netbird_wire.envelope import format_key
from netbird_wire.management_pb2 import (
    ACCEPT,
    ALL,
    CUSTOM,
    DROP,
    ICMP,
    IN,
    NETBIRD_SSH,
    TCP,
    UDP,
    UNKNOWN,
    CustomZone,
    DNSConfig,
    FirewallRule,
    HostConfig,
    NetbirdConfig,
    RelayConfig,
    RemotePeerConfig,
    Route,
    RuleAction,
    SimpleRecord,
    SyncResponse,
)

pytestmark = pytest.mark.timeout(30)

US, ALICE, ROUTER, BEHIND = "100.64.0.1", "100.64.0.5", "100.64.0.9", "10.50.0.7"


@dataclass
class PathState:
    kind: str = "none"


@dataclass
class RecordedPaths:
    """Records what a membership asks of paths."""

    servers: list[PathServers] = field(default_factory=list)
    peers: list[list[RemotePeer]] = field(default_factory=list)
    woken: list[bytes] = field(default_factory=list)

    def configure(self, servers: PathServers) -> None:
        self.servers.append(servers)

    async def replace_peers(self, peers: Iterable[RemotePeer]) -> None:
        self.peers.append(list(peers))

    def state(self, key: bytes) -> PathState:
        return PathState()

    def wake(self, key: bytes) -> bool:
        self.woken.append(key)
        return True


class Member:
    """A node that is logged in and not yet synced. `changed` is set after each change of what can be reached."""

    def __init__(self, management: FakeManagement, client: ManagementClient) -> None:
        self.management = management
        self.client = client
        self.paths = RecordedPaths()
        self.applied = asyncio.Queue[None]()
        self.changed = asyncio.Event()
        self.endpoints: dict[bytes, tuple[str, int]] = {}
        self.node: Node
        self.membership: Membership

    def shaken(self, key: bytes) -> None:
        self.node.on_handshake(key)
        self.membership.on_handshake(key)

    async def join(self, *, paths: bool = False) -> None:
        login = await enroll(self.client, setup_key="SETUP")
        engine = Engine(self.client._private_key)
        engine.set_addresses([US])
        driver = Driver(engine, open_socket(LOOPBACK, 0), on_handshake=self.shaken)
        self.node = Node(driver, [US])
        self.membership = Membership(
            self.node,
            self.client,
            login,
            paths=self.paths if paths else None,
            endpoints=self.endpoints,
            applied=lambda: self.applied.put_nowait(None),
            changed=self.changed.set,
        )

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()


@asynccontextmanager
async def member(management: FakeManagement | None = None, *, paths: bool = False) -> AsyncIterator[Member]:
    """A member whose stream runs, after its first map."""
    management = management or FakeManagement()
    management.setup_keys = {"SETUP"}
    async with serving(management) as channel:
        client = ManagementClient(channel, secrets.token_bytes(32), lambda files: system_meta("node", files=files))
        made = Member(management, client)
        await made.join(paths=paths)
        try:
            async with asyncio.TaskGroup() as group:
                running = group.create_task(made.membership.run())
                await made.membership.first.wait()
                await made.applied.get()
                yield made
                running.cancel()
        finally:
            made.node.close()


async def end_of(change: Callable[[Member], None]) -> None:
    """Let a membership run until a change ends it."""
    async with member() as joined:
        change(joined)
        await asyncio.Event().wait()


def entry(peer: Node, address: str, *, name: str = "peer.netbird", version: str = "0.60.0") -> RemotePeerConfig:
    return RemotePeerConfig(
        wgPubKey=format_key(peer.public_key), allowedIps=[f"{address}/32"], fqdn=name, agentVersion=version
    )


# Configuration and the stream ---------------------------------------------------------------------------------------


async def test_paths_are_configured_by_the_login_and_refreshed_by_the_stream() -> None:
    """The login's servers are complete; a message without a map refreshes credentials and applies no map."""
    management = FakeManagement()
    management.config = NetbirdConfig(
        signal=HostConfig(uri="signal:443", protocol=HostConfig.HTTPS),
        relay=RelayConfig(urls=["rel://r1"]),
        stuns=[HostConfig(uri="stun:s1")],
    )
    async with member(management, paths=True) as joined:
        assert joined.paths.servers[0] == PathServers(
            signal=SignalTarget("signal:443", True), relays=("rel://r1",), stuns=("stun:s1",), turns=()
        )
        management.send(SyncResponse(netbirdConfig=NetbirdConfig()))
        management.set_map()
        await joined.applied.get()
        assert joined.paths.servers[1:] == [
            PathServers(relays=("rel://r1",), stuns=("stun:s1",)),
            PathServers(relays=()),
        ]


async def test_paths_get_the_peers_and_their_laziness() -> None:
    """Each map's peers are handed on with their versions; agents may sleep if the map says so, and dials wake them."""
    async with member(paths=True) as joined, loopback_node(ALICE) as alice:
        joined.management.lazy = True
        joined.management.set_map(peers=[entry(alice, ALICE, version="")])
        await joined.applied.get()
        assert "no path" in joined.membership.unreachable(ALICE)
        joined.management.set_map(peers=[entry(alice, ALICE)])
        await joined.applied.get()
        assert joined.paths.peers[-1] == [RemotePeer(alice.public_key, "0.60.0", True)]
        assert joined.membership.unreachable(ALICE) == ""
        with pytest.raises(Unreachable, match="no path"):
            await joined.node.dial(Recorder, ALICE, 80, timeout=0.05)
        assert joined.paths.woken == [alice.public_key]


async def test_an_mtu_of_a_later_map_makes_a_new_node() -> None:
    """A changed MTU, like a changed address, ends the membership, so that the node is made with the new one."""

    def change(joined: Member) -> None:
        joined.management.mtu = 1400
        joined.management.set_map()

    with pytest.raises(ExceptionGroup) as caught:
        await end_of(change)
    assert caught.group_contains(AddressesChanged, match="1400")


@pytest.mark.parametrize("kind", [NotRegistered, LoginExpired])
async def test_a_node_that_may_not_stay_ends(kind: type[Exception]) -> None:
    """Without other means to register, a node that management no longer admits ends with the reason."""

    def refuse(joined: Member) -> None:
        if kind is NotRegistered:
            joined.management.forget(joined.client.public_key)
        else:
            joined.management.expired.add(joined.client.public_key)
            joined.management.drop_streams()

    with pytest.raises(ExceptionGroup) as caught:
        await end_of(refuse)
    assert caught.group_contains(kind)


async def test_changed_posture_checks_are_answered() -> None:
    """Management gets our description again when its checks change, and not with each map."""
    async with member() as joined:
        sent = asyncio.Event()

        async def fault(name: str) -> None:
            if name == "SyncMeta":
                sent.set()

        joined.management.fault = fault
        joined.management.set_map()
        await joined.applied.get()
        assert not sent.is_set()
        joined.management.checks = ["/usr/bin/antivirus"]
        joined.management.set_map()
        await sent.wait()


async def test_the_session_deadline_has_three_states() -> None:
    """Absent is no news, zero is no expiry, and else it is the time."""
    async with member() as joined:
        seen = []
        for deadline in (Timestamp(seconds=2_000_000_000), None, Timestamp()):
            response = joined.management.response()
            if deadline is not None:
                response.sessionExpiresAt.CopyFrom(deadline)
            joined.management.send(response)
            await joined.applied.get()
            seen.append(joined.membership.session_expires_at)
        assert seen == [2_000_000_000.0, 2_000_000_000.0, None]


async def test_an_unchanged_map_touches_nothing() -> None:
    """Maps that repeat the roster, or rename a peer, keep sessions and connections."""
    async with member() as joined, loopback_node(ALICE) as alice:
        joined.endpoints[alice.public_key] = Endpoint(LOOPBACK, alice.driver.local_port)
        introduce(alice, joined.node, where=False)
        allow_everything_in(alice)
        alice.driver.listen(80, lambda: Recorder(echo=True))
        rules = [FirewallRule(PeerIP=ALICE, Direction=IN, Action=ACCEPT, Protocol=TCP)]
        joined.management.set_map(peers=[entry(alice, ALICE)], rules=rules)
        await joined.applied.get()
        _, recorder = await joined.node.dial(Recorder, ALICE, 80, timeout=10)
        before = joined.node.driver.engine.counters()["handshakes"]
        for name in ("alice.netbird", "alice2.netbird"):
            joined.management.set_map(peers=[entry(alice, ALICE, name=name)], rules=rules)
            await joined.applied.get()
        assert isinstance(recorder, Recorder)
        recorder.transport.write(b"still here")
        await recorder.has(10)
        assert joined.node.driver.engine.counters()["handshakes"] == before
        owner = joined.node.whois(ALICE)
        assert owner is not None
        assert owner.name == "alice2.netbird"


async def test_promise_1_rules_for_an_address_admit_its_new_owner_alone() -> None:
    """Where an address and a rule for it go to a new peer in one map, the old one has lost it when the rule begins."""
    async with member() as joined, loopback_node(ALICE) as alice, loopback_node("100.64.0.6") as bob:
        joined.management.set_map(peers=[entry(alice, ALICE)])
        await joined.applied.get()
        owners: list[bytes | None] = []
        engine = joined.node.driver.engine

        async def watch() -> None:
            """Note the owner of the address at each moment at which packets could be judged."""
            while True:
                owners.append(engine.whois(ALICE))
                await asyncio.sleep(0)

        # So many new peers come first that the new owner is added in a later turn.
        others = [
            RemotePeerConfig(wgPubKey=format_key(sha256(b"%d" % n).digest()), allowedIps=[f"100.65.0.{n}/32"])
            for n in range(200)
        ]
        rules = [FirewallRule(PeerIP=ALICE, Direction=IN, Action=ACCEPT, Protocol=TCP)]
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch())
            joined.management.set_map(peers=[*others, entry(bob, ALICE), entry(alice, "100.64.0.50")], rules=rules)
            await joined.applied.get()
            watching.cancel()
        assert None in owners
        assert [owner for owner, _ in groupby(owners)] == [alice.public_key, None, bob.public_key]


@pytest.mark.parametrize("protocol", [ALL, TCP, UDP, ICMP, CUSTOM, NETBIRD_SSH, UNKNOWN, 99])
@pytest.mark.parametrize("action", [ACCEPT, DROP])
async def test_rules_for_every_protocol_are_applied(protocol: int, action: RuleAction.ValueType) -> None:
    """No rule that a map can have keeps the map from being applied."""
    async with member() as joined, loopback_node(ALICE) as alice:
        rule = FirewallRule(PeerIP=ALICE, Direction=IN, Action=action, Protocol=protocol)  # type: ignore[arg-type]
        joined.management.set_map(peers=[entry(alice, ALICE)], rules=[rule])
        await joined.applied.get()
        assert joined.node.whois(ALICE) is not None


# Routes, names and reachability ---------------------------------------------------------------------------------------


def route(peer: Node, network: str = "10.50.0.0/24", **more: object) -> Route:
    return Route(Peer=format_key(peer.public_key), Network=network, NetID="office", **more)  # type: ignore[arg-type]


async def test_a_target_behind_a_routing_peer_is_dialed() -> None:
    """A subnet of the map is reached through its routing peer, and `whois` knows none of its addresses."""
    async with member() as joined, loopback_node(BEHIND, ROUTER) as router:
        joined.endpoints[router.public_key] = Endpoint(LOOPBACK, router.driver.local_port)
        introduce(router, joined.node, where=False)
        allow_everything_in(router)
        router.driver.listen(80, Recorder)
        joined.management.set_map(peers=[entry(router, ROUTER)], routes=[route(router)])
        await joined.applied.get()
        await joined.node.dial(Recorder, BEHIND, 80, timeout=10)
        assert joined.node.whois(BEHIND) is None
        assert joined.membership.unreachable(BEHIND) == ""
        joined.management.set_map(peers=[entry(router, ROUTER)])
        await joined.applied.get()
        assert "no peer" in joined.membership.unreachable(BEHIND)


async def test_a_second_routing_peer_takes_over() -> None:
    """When the carrier of a network leaves the map, the other routing peer of the group carries."""
    async with AsyncExitStack() as stack:
        joined = await stack.enter_async_context(member())
        first = await stack.enter_async_context(loopback_node(BEHIND, ROUTER))
        second = await stack.enter_async_context(loopback_node(BEHIND, "100.64.0.10"))
        for router in (first, second):
            joined.endpoints[router.public_key] = Endpoint(LOOPBACK, router.driver.local_port)
            introduce(router, joined.node, where=False)
            allow_everything_in(router)
            router.driver.listen(80, Recorder)
        peers = [entry(first, ROUTER), entry(second, "100.64.0.10")]
        routes = [route(first, Metric=1), route(second, Metric=2)]
        joined.management.set_map(peers=peers, routes=routes)
        await joined.applied.get()
        await joined.until(lambda: len(joined.membership._connected) == 2)
        assert joined.node.carrier(BEHIND) == first.public_key
        joined.management.set_map(peers=peers[1:], routes=routes)
        await joined.applied.get()
        assert joined.node.carrier(BEHIND) == second.public_key
        await joined.node.dial(Recorder, BEHIND, 80, timeout=10)


async def test_exit_nodes_are_refused_by_name() -> None:
    """An address that only an exit node reaches is unreachable, and the message names the exit node."""
    async with member() as joined, loopback_node(ROUTER) as router:
        joined.management.set_map(peers=[entry(router, ROUTER)], routes=[route(router, "0.0.0.0/0")])
        await joined.applied.get()
        with pytest.raises(Unreachable, match=r"exit nodes \(office\)"):
            await joined.node.dial(Recorder, "192.0.2.1", 80, timeout=1)


async def test_the_reason_that_a_target_cannot_be_reached_is_named() -> None:
    """Offline, unknown, without endpoint, silent, connected: each has its sentence, and changes are reported."""
    async with member() as joined, loopback_node(ALICE) as alice, loopback_node("100.64.0.6") as bob:
        unreachable = joined.membership.unreachable
        joined.management.set_map(offline=[entry(bob, "100.64.0.6", name="bob.netbird")], peers=[entry(alice, ALICE)])
        await joined.applied.get()
        assert unreachable("100.64.0.6") == "peer bob.netbird is offline"
        assert unreachable("100.64.0.77") == "no peer has this address"
        assert "no path to us yet" in unreachable(ALICE)
        introduce(alice, joined.node)
        alice.driver.engine.handshake(joined.node.public_key)
        alice.driver.touch()
        await joined.until(lambda: unreachable(ALICE) == "")
        assert unreachable(f"::ffff:{ALICE}") == ""
        joined.management.set_map(offline=[entry(alice, ALICE, name="alice.netbird")])
        await joined.until(lambda: unreachable(ALICE) == "peer alice.netbird is offline")


async def test_names_of_the_map_are_dialed() -> None:
    """A name in the account's zone leads to its peer; of several addresses those of connected peers go first."""
    async with member() as joined, loopback_node(ALICE) as alice, loopback_node("100.64.0.6") as bob:
        joined.endpoints[alice.public_key] = Endpoint(LOOPBACK, alice.driver.local_port)
        introduce(alice, joined.node, where=False)
        allow_everything_in(alice)
        alice.driver.listen(80, Recorder)
        records = [
            SimpleRecord(Name="wiki.corp.", Type=1, Class="IN", RData=address) for address in ("100.64.0.6", ALICE)
        ]
        zone = CustomZone(
            Domain="corp.", Records=[*records, SimpleRecord(Name="gone.corp", Type=1, RData="100.64.0.8")]
        )
        joined.management.set_map(
            peers=[entry(alice, ALICE), entry(bob, "100.64.0.6")], dns=DNSConfig(ServiceEnable=True, CustomZones=[zone])
        )
        await joined.applied.get()
        await joined.node.dial(Recorder, "wiki.corp", 80, timeout=10)
        assert joined.node.resolve is not None
        assert await joined.node.resolve("wiki.corp") == [ALICE]
        assert joined.membership.unreachable("wiki.corp") == ""
        assert joined.membership.unreachable("gone.corp") == "no peer has this address"
        with pytest.raises(Unreachable, match="zone"):
            await joined.node.dial(Recorder, "nobody.corp", 80, timeout=1)


async def test_a_name_behind_a_routing_peer_without_forwarder_fails_by_name() -> None:
    """A domain route whose routing peer is not in the map is unreachable, and says so."""
    async with member() as joined, loopback_node(ROUTER) as router:
        joined.management.set_map(routes=[route(router, "192.0.2.0/24", Domains=["*.corp.example"])])
        await joined.applied.get()
        with pytest.raises(Unreachable, match="routing peer of office"):
            await joined.node.dial(Recorder, "wiki.corp.example", 80, timeout=1)
        assert joined.membership.unreachable("wiki.corp.example") == "the routing peer of office is offline"
