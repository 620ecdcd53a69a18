"""An account's tunnel against a management server with the real wire protocol."""
# Over 500 lines: one fake management and one account serve every case.

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import structlog

from netbird_overlay.driver import open_socket
from netbird_overlay.engine import Endpoint
from netbird_overlay.keys import KEY_FILE, StateUnusable, TunnelState
from netbird_overlay.membership.errors import AddressesChanged
from netbird_overlay.membership.testing import FakeManagement
from netbird_overlay.testing import LOOPBACK, Accepting, Recorder, allow_everything_in, introduce, loopback_node
from netbird_proxy import (
    Address,
    DialTimeout,
    DialUnreachable,
    ManagementError,
    ManagementRefused,
    Proxy,
    PublicKey,
    Reachability,
)
from netbird_tunnel_netstack.account import account_tunnel
from netbird_tunnel_netstack.plugin import TunnelNetstack
from netbird_tunnel_netstack.settings import TunnelOptions
from netbird_tunnel_netstack.testing import FakeAccount, FakeProxy, loopback_tunnel, management_server
from netbird_tunnel_netstack.tunnel import NetstackTunnel
from netbird_wire.envelope import format_key, public_key
from netbird_wire.management_pb2 import (
    ACCEPT,
    IN,
    TCP,
    FirewallRule,
    NetbirdConfig,
    PortInfo,
    RemotePeerConfig,
    SyncResponse,
)

pytestmark = pytest.mark.timeout(60)

US, ALICE = "100.64.0.1", "100.64.0.5"
Setting = tuple[FakeManagement, FakeAccount]


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    directory = tmp_path / "acct-1"
    directory.mkdir(mode=0o700)
    async with management_server(directory) as made:
        yield made


def opened(account: FakeAccount, *, private: bool = True) -> AbstractAsyncContextManager[NetstackTunnel]:
    options = TunnelOptions.model_validate({"ports": 0, "bind": LOOPBACK, "endpoint_host": "vpn.example.com"})
    return account_tunnel(account, cast(Proxy, FakeProxy(options, private=private)))


@asynccontextmanager
async def alice_of(tunnel: NetstackTunnel) -> AsyncIterator[NetstackTunnel]:
    """A stock client that has our endpoint, while we have only its key."""
    async with loopback_tunnel(ALICE) as alice:
        introduce(alice.node, tunnel.node)
        yield alice


def entry(peer: NetstackTunnel, *addresses: str) -> RemotePeerConfig:
    key = format_key(peer.node.driver.engine.public_key)
    return RemotePeerConfig(wgPubKey=key, allowedIps=addresses or [f"{ALICE}/32"], fqdn="alice.netbird")


def rule(source: str = ALICE, port: int = 443) -> FirewallRule:
    return FirewallRule(PeerIP=source, Direction=IN, Action=ACCEPT, Protocol=TCP, PortInfo=PortInfo(port=port))


async def dial(peer: NetstackTunnel, *, port: int = 443, timeout: float = 10) -> Recorder:
    _, protocol = await peer.dial(Recorder, Address(US, port), timeout=timeout)
    assert isinstance(protocol, Recorder)
    return protocol


async def test_comes_up(setting: Setting) -> None:
    """The tunnel is registered with its endpoint, logged in with its description, and opens with the first map."""
    management, account = setting
    async with loopback_tunnel(ALICE) as alice:
        management.set_map(peers=[entry(alice)])
        async with opened(account) as tunnel:
            key = tunnel.public_key
            assert management.registrations == [(key, f"vpn.example.com:{tunnel.node.driver.local_port}")]
            assert list(tunnel.addresses) == [US]
            found = tunnel.whois(ALICE)
            assert found is not None
            assert (found.public_key, found.name) == (format_key(alice.node.driver.engine.public_key), "alice.netbird")
            meta = management.members[key].meta
            assert meta.hostname == "ingress-proxy-proxy-1"
            assert meta.syncMessageVersion == 0
            assert meta.flags.disableServerRoutes
            assert not meta.flags.blockInbound


async def test_lets_in_whom_the_map_lets_in(setting: Setting) -> None:
    """A member is admitted on the ports of its rules only, and loses its connections with the rule."""
    management, account = setting
    async with opened(account) as tunnel, alice_of(tunnel) as alice:
        changes = tunnel.changes()
        accepting = Accepting()
        await tunnel.listen(443, accepting)
        await tunnel.listen(80, Accepting())
        management.set_map(peers=[entry(alice)])
        await anext(changes)
        with pytest.raises(DialTimeout):
            await dial(alice, timeout=0.5)

        management.set_map(peers=[entry(alice)], rules=[rule()])
        await anext(changes)
        await dial(alice)
        accepted = await accepting.next()
        with pytest.raises(DialTimeout):
            await dial(alice, port=80, timeout=0.5)

        management.set_map(peers=[entry(alice)])
        await anext(changes)
        assert isinstance(await accepted.lost, ConnectionAbortedError)


async def test_who_leaves_the_map_is_gone(setting: Setting) -> None:
    """Removing a peer notifies the tunnel's consumer, removes it from `whois` and ends its connections."""
    management, account = setting
    async with opened(account) as tunnel, alice_of(tunnel) as alice:
        changes = tunnel.changes()
        accepting = Accepting()
        await tunnel.listen(443, accepting)
        management.set_map(peers=[entry(alice)], rules=[rule()])
        await anext(changes)
        await dial(alice)
        accepted = await accepting.next()
        management.set_map()
        await anext(changes)
        assert tunnel.whois(ALICE) is None
        assert await accepted.lost is not None


async def test_a_proxy_that_is_not_private_lets_nobody_in(setting: Setting) -> None:
    """A proxy without `private` admits no peer, whatever the map allows, and reports that to management."""
    management, account = setting
    async with opened(account, private=False) as tunnel, alice_of(tunnel) as alice:
        changes = tunnel.changes()
        await tunnel.listen(443, Recorder)
        management.set_map(peers=[entry(alice)], rules=[rule()])
        await anext(changes)
        with pytest.raises(DialTimeout):
            await dial(alice, timeout=0.5)
        assert management.members[tunnel.public_key].meta.flags.blockInbound


async def test_a_restart_is_the_same_node_and_finds_its_peers(setting: Setting) -> None:
    """Key and port stay the same after a restart, and stored peers get a handshake at once."""
    management, account = setting
    async with loopback_tunnel(ALICE) as alice:
        async with opened(account) as tunnel:
            key, port = tunnel.public_key, tunnel.node.driver.local_port
            changes = tunnel.changes()
            await tunnel.listen(443, Recorder)
            introduce(alice.node, tunnel.node)
            management.set_map(peers=[entry(alice)], rules=[rule()])
            await anext(changes)
            await dial(alice)
        await alice.listen(8080, Recorder)
        allow_everything_in(alice.node)
        async with opened(account) as again:
            assert (again.public_key, again.node.driver.local_port) == (key, port)
            state = again.node.driver.engine.peer(alice.node.driver.engine.public_key)
            assert state is not None
            assert state.endpoint == Endpoint(LOOPBACK, alice.node.driver.local_port)
            await again.dial(Recorder, Address(ALICE, 8080), timeout=10)


async def test_a_killed_process_leaves_its_peers_to_the_next(setting: Setting, tmp_path: Path) -> None:
    """The process after a hard kill sends a handshake to every peer that had an answer from the killed one."""
    management, account = setting
    killed = tmp_path / "as the kill left it"
    async with loopback_tunnel(ALICE) as alice:
        async with opened(account) as tunnel:
            changes = tunnel.changes()
            accepting = Accepting(lambda: Recorder(echo=True))
            await tunnel.listen(443, accepting)
            introduce(alice.node, tunnel.node)
            management.set_map(peers=[entry(alice)], rules=[rule()])
            await anext(changes)
            answered = await dial(alice)
            answered.transport.write(b"x")
            await answered.has(1)
            shutil.copytree(account.directory, killed)
        async with opened(FakeAccount(killed, account.management, management)) as again:
            async with asyncio.timeout(10):
                await again.node.handshaken(alice.node.driver.engine.public_key)


async def test_who_comes_back_into_the_map_is_found_at_once(setting: Setting) -> None:
    """A peer that returns to the map gets a handshake at once, because it may still use the session that we ended."""
    management, account = setting
    async with opened(account) as tunnel, alice_of(tunnel) as alice:
        changes = tunnel.changes()
        await tunnel.listen(443, Recorder)
        management.set_map(peers=[entry(alice)], rules=[rule()])
        await anext(changes)
        await dial(alice)
        management.set_map(rules=[rule()])
        await anext(changes)
        management.set_map(peers=[entry(alice)], rules=[rule()])
        await anext(changes)
        async with asyncio.timeout(10):
            await tunnel.node.handshaken(alice.node.driver.engine.public_key)
        await dial(alice)


async def test_a_greeting_that_is_lost_is_repeated(setting: Setting) -> None:
    """A lost handshake is repeated sooner than WireGuard alone would."""
    management, account = setting
    key = secrets.token_bytes(32)
    with open_socket(LOOPBACK, 0) as hole:
        state = TunnelState.load(account.directory)
        state.endpoints[public_key(key)] = Endpoint(*hole.getsockname())
        state.save()
        management.set_map(peers=[RemotePeerConfig(wgPubKey=format_key(public_key(key)), allowedIps=[f"{ALICE}/32"])])
        async with opened(account), asyncio.timeout(14):  # WireGuard by itself sends the fourth after 15 s
            sizes = [len(await asyncio.get_running_loop().sock_recv(hole, 2048)) for _ in range(4)]
    assert sizes == [148] * 4


async def test_a_forgotten_peer_registers_again(setting: Setting) -> None:
    """A node that management deleted registers again with a new token and the same key, and the tunnel stays open."""
    management, account = setting
    async with opened(account) as tunnel:
        changes = tunnel.changes()
        management.forget(tunnel.public_key)
        await anext(changes)
        assert [key for key, _ in management.registrations] == [tunnel.public_key] * 2
        assert management.opened == 2


async def test_a_lost_stream_is_taken_up_again(setting: Setting) -> None:
    """The stream is reconnected without a new token or login, with management's current key, and its map applies."""
    management, account = setting
    async with opened(account) as tunnel, loopback_tunnel(ALICE) as alice:
        changes = tunnel.changes()
        management.renew_key()
        management.set_map(peers=[entry(alice)], serial=1)
        await anext(changes)  # the old stream still carried it
        management.drop_streams()
        management.map.Serial = 1
        await anext(changes)
        assert management.opened == 2
        assert len(management.registrations) == 1
        assert tunnel.whois(ALICE) is not None


async def test_old_maps_and_other_news_change_nothing(setting: Setting) -> None:
    """A map older than the applied one is dropped, and a message without a map changes nothing."""
    management, account = setting
    async with opened(account) as tunnel, loopback_tunnel(ALICE) as alice:
        changes = tunnel.changes()
        management.set_map(peers=[entry(alice)], serial=9)
        await anext(changes)
        management.set_map(serial=8)
        management.send(SyncResponse(netbirdConfig=NetbirdConfig()))
        management.set_map(peers=[entry(alice)], rules=[rule()], serial=10)
        await anext(changes)
        assert tunnel.whois(ALICE) is not None


async def test_a_map_of_another_kind_is_not_half_read(setting: Setting) -> None:
    """A map in an unsupported form ends the stream, and the node reconnects."""
    management, account = setting
    async with opened(account) as tunnel:
        changes = tunnel.changes()
        management.send(SyncResponse(Version=1))
        await anext(changes)
        assert management.opened == 2


async def test_another_address_ends_the_tunnel(setting: Setting) -> None:
    """A new overlay address ends the tunnel with an error, because its listeners use the old address."""
    management, account = setting
    with pytest.raises(ExceptionGroup) as caught:
        await _wait_inside(management, account)
    assert caught.group_contains(AddressesChanged)
    async with opened(account) as tunnel:
        assert list(tunnel.addresses) == ["100.64.0.77"]


async def _wait_inside(management: FakeManagement, account: FakeAccount) -> None:
    async with opened(account):
        management.address = "100.64.0.77/16"
        management.set_map()
        await asyncio.Event().wait()


async def test_waits_for_a_management_that_is_away(setting: Setting) -> None:
    """The node retries the login while management is away, without another registration."""
    management, account = setting
    failures = iter([RuntimeError("not yet"), RuntimeError("not yet")])

    async def fault(name: str) -> None:
        if name == "Login" and (failure := next(failures, None)) is not None:
            raise failure

    management.fault = fault
    async with opened(account):
        assert len(management.registrations) == 1


async def test_a_refused_registration_is_told(setting: Setting) -> None:
    """A refused registration raises at the opening of the tunnel; the port is released and the key stays."""

    class Refusing(FakeAccount):
        async def register(self, public_key: PublicKey, *, endpoint: str = "", serves_dns: bool = False) -> None:
            raise ManagementRefused("the token is spent")

    management, account = setting
    refusing = Refusing(account.directory, account.management, management)
    for _ in range(2):
        with pytest.raises(ManagementError, match="spent"):
            await opened(refusing).__aenter__()
    async with opened(account):
        pass


async def test_unusable_state_tells_management_nothing(setting: Setting) -> None:
    """Unusable state raises before any call to management, and no new key is made."""
    management, account = setting
    async with opened(account):
        pass
    (account.directory / KEY_FILE).write_text("damaged")
    with pytest.raises(StateUnusable):
        await opened(account).__aenter__()
    assert len(management.registrations) == 1
    assert (account.directory / KEY_FILE).read_text() == "damaged"


async def test_leaving_releases_everything(setting: Setting) -> None:
    """Closing the tunnel, also by cancellation, leaves no task, no stream and no port."""
    _, account = setting
    before = asyncio.all_tasks()
    inside = asyncio.Event()

    async def hold() -> None:
        async with opened(account) as tunnel:
            assert tunnel.node.driver.local_port
            inside.set()
            await asyncio.Event().wait()

    for _ in range(2):  # the second time the port has to be free
        inside.clear()
        async with asyncio.TaskGroup() as group:
            holding = group.create_task(hold())
            await inside.wait()
            holding.cancel()
        assert holding.cancelled()
    left = {task.get_name() for task in asyncio.all_tasks() - before}
    assert not {name for name in left if "acct-1" in name}


async def test_the_plugin_opens_it(setting: Setting) -> None:
    """The hook `open_tunnel` opens this tunnel, and `describe` names its settings."""
    _, account = setting
    plugin = TunnelNetstack()
    assert plugin.describe().options is TunnelOptions
    options = TunnelOptions.model_validate({"ports": 0, "bind": LOOPBACK})
    async with plugin.open_tunnel(account, cast(Proxy, FakeProxy(options))) as tunnel:
        assert list(tunnel.addresses) == [US]


async def test_drops_are_counted(setting: Setting) -> None:
    """Packets that the engine dropped are in the proxy's counters, at the latest when the tunnel ends."""
    management, account = setting
    options = TunnelOptions.model_validate({"ports": 0, "bind": LOOPBACK})
    proxy = FakeProxy(options)
    async with account_tunnel(account, cast(Proxy, proxy)) as tunnel, alice_of(tunnel) as alice:
        changes = tunnel.changes()
        management.set_map(peers=[entry(alice)])
        await anext(changes)
        with pytest.raises(DialTimeout):
            await dial(alice, timeout=0.3)
    assert proxy.counted["tunnel_denied_inbound"] >= 1
    assert proxy.counted["tunnel_handshakes"] == 1
    assert "tunnel_connections" not in proxy.counted


async def test_a_channel_closed_beneath_it_is_not_the_end_of_hearing(setting: Setting) -> None:
    """A closed channel, which gRPC reports as a cancellation, does not end the task: the stream is reconnected."""
    _, account = setting
    async with opened(account):
        with structlog.testing.capture_logs() as logs:
            await account.management.channel.close()
            async with asyncio.timeout(10):
                while not any(entry["event"] == "tunnel.sync_lost" for entry in logs):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        assert {task.get_name() for task in asyncio.all_tasks()} >= {"sync acct-1"}


async def test_promise_10_members_fill_no_tunnel(setting: Setting) -> None:
    """Two greedy members leave room for a third, and for the proxy's own dial to a peer."""
    management, account = setting
    members = ("100.64.0.5", "100.64.0.6", "100.64.0.7")
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(loopback_tunnel(address)) for address in members]
        entries = [entry(peer, f"{address}/32") for peer, address in zip(peers, members, strict=True)]
        management.set_map(peers=entries, rules=[rule("0.0.0.0")])
        tunnel = await stack.enter_async_context(opened(replace(account, connections=12)))
        await tunnel.listen(443, Recorder)
        for peer in peers:
            introduce(peer.node, tunnel.node)

        counters = tunnel.node.driver.engine.counters

        async def take_all(peer: NetstackTunnel) -> int:
            """Dial until the tunnel drops a connection, and return the number of successful dials."""
            taken, dropped = 0, counters()["share_reached"]
            while True:
                async with asyncio.TaskGroup() as group:
                    dialing = group.create_task(peer.dial(Recorder, Address(US, 443), timeout=30))
                    while not dialing.done():
                        if counters()["share_reached"] > dropped:
                            dialing.cancel()
                            return taken
                        await asyncio.sleep(0.005)
                taken += 1

        assert [await take_all(peer) for peer in peers] == [6, 3, 2]
        assert counters()["limit_reached"] == 0

        allow_everything_in(peers[0].node)
        await peers[0].listen(8080, Recorder)
        for _ in range(3):
            await tunnel.dial(Recorder, Address(members[0], 8080), timeout=10)


async def test_promise_10_tunnels_share_the_memory_of_the_process(setting: Setting) -> None:
    """One member takes a quarter of the process's memory at most: the rest is for others and for other accounts."""
    management, account = setting
    options = TunnelOptions.model_validate({"ports": 0, "bind": LOOPBACK, "memory": 1 << 20})
    async with account_tunnel(account, cast(Proxy, FakeProxy(options))) as tunnel, alice_of(tunnel) as alice:
        changes = tunnel.changes()
        await tunnel.listen(443, Recorder)
        management.set_map(peers=[entry(alice)], rules=[rule()])
        await anext(changes)
        counters = tunnel.node.driver.engine.counters
        async with asyncio.TaskGroup() as group:
            dialing = [group.create_task(alice.dial(Recorder, Address(US, 443), timeout=30)) for _ in range(20)]
            while counters()["limit_reached"] == 0 or counters()["half_open"]:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            assert counters()["connections"] == 8
            assert (1 << 20) // 4 < counters()["buffer_bytes"] < (1 << 20) // 3
            for task in dialing:
                task.cancel()


async def test_the_operator_s_options_reach_the_engine(setting: Setting) -> None:
    """The preshared key and the keepalive of the settings hold for every peer; a peer without the key stays out."""
    management, account = setting
    values = {"ports": 0, "bind": LOOPBACK, "keepalive": 7, "preshared_key": format_key(b"\x07" * 32)}
    proxy = cast(Proxy, FakeProxy(TunnelOptions.model_validate(values)))
    async with (
        account_tunnel(account, proxy) as tunnel,
        loopback_node(ALICE, preshared_key=b"\x07" * 32) as node,
        loopback_tunnel("100.64.0.6") as without,
    ):
        alice = NetstackTunnel(node)
        for peer in (alice, without):
            introduce(peer.node, tunnel.node)
        changes = tunnel.changes()
        await tunnel.listen(443, Recorder)
        management.set_map(peers=[entry(alice), entry(without, "100.64.0.6/32")], rules=[rule("0.0.0.0")])
        await anext(changes)
        with pytest.raises(DialUnreachable):
            await dial(without, timeout=0.5)
        await dial(alice)
        state = tunnel.node.driver.engine.peer(node.public_key)
        assert state is not None
        assert state.keepalive == 7


async def test_the_proxy_learns_what_it_cannot_reach(setting: Setting) -> None:
    """The tunnel says why a target cannot be reached, and notifies the proxy when that changes."""
    management, account = setting
    async with opened(account) as tunnel, alice_of(tunnel) as alice:
        assert isinstance(tunnel, Reachability)
        moved = tunnel.reachability()
        address = Address(ALICE, 8080)
        assert tunnel.unreachable(address) == "no peer has this address"
        management.set_map(offline=[entry(alice)])
        while tunnel.unreachable(address) != "peer alice.netbird is offline":
            await anext(moved)
        management.set_map(peers=[entry(alice)], rules=[rule()])
        await tunnel.listen(443, Recorder)
        while "no path" not in tunnel.unreachable(address):
            await anext(moved)
        await dial(alice)
        while tunnel.unreachable(address):
            await anext(moved)
