"""NetBird's agents and the proxy reach each other: by the map, a signal server and a relay, without any endpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from netbird_overlay.membership.testing import FakeManagement
from netbird_overlay.testing import LOOPBACK, Accepting, Recorder
from netbird_proxy import Address, DialUnreachable, Proxy
from netbird_tunnel_netstack.account import account_tunnel
from netbird_tunnel_netstack.settings import TunnelOptions
from netbird_tunnel_netstack.testing import FakeProxy, management_server
from netbird_tunnel_netstack.tunnel import NetstackTunnel
from netbird_wire.management_pb2 import ACCEPT, IN, TCP, FirewallRule, PortInfo, RemotePeerConfig
from tests.netbird_overlay.membership.agents import EVERYBODY, VERSION, Agent, agent, configuration
from tests.netbird_overlay.paths.house import servers

pytestmark = pytest.mark.timeout(60)

US, ALICE = "100.64.0.1", "100.64.0.5"


@asynccontextmanager
async def overlay(directory: Path) -> AsyncIterator[tuple[FakeManagement, NetstackTunnel, Agent]]:
    """The proxy's tunnel, the management of its account, and an agent. Neither has the other in its map yet."""
    private = directory / "acct-1"
    private.mkdir(mode=0o700)
    async with servers() as group, management_server(private) as (management, account), agent(group, ALICE) as alice:
        management.config = configuration(group)
        options = TunnelOptions.model_validate({"ports": 0, "bind": LOOPBACK, "ice": False})
        async with account_tunnel(account, cast(Proxy, FakeProxy(options))) as tunnel:
            alice.management.set_map(
                peers=[RemotePeerConfig(wgPubKey=tunnel.public_key, allowedIps=[f"{US}/32"], agentVersion=VERSION)],
                rules=EVERYBODY,
            )
            await alice.until(lambda: alice.node.members)
            yield management, tunnel, alice


async def test_a_target_that_is_an_agent_is_dialed(tmp_path: Path) -> None:
    """The proxy reaches an agent that it never heard of but in the map, and reports it as reachable from then on."""
    async with overlay(tmp_path) as (management, tunnel, alice):
        alice.node.listen(8080, Recorder)
        target = Address(ALICE, 8080)
        with pytest.raises(DialUnreachable, match="no peer"):
            await tunnel.dial(Recorder, target, timeout=1)
        changes = tunnel.changes()
        management.set_map(peers=[alice.entry()])
        await anext(changes)
        await tunnel.dial(Recorder, target, timeout=20)
        moved = tunnel.reachability()
        while tunnel.unreachable(target):
            await anext(moved)


async def test_an_agent_opens_a_private_service(tmp_path: Path) -> None:
    """An agent is admitted on the ports of its rules, and its connection names its key."""
    async with overlay(tmp_path) as (management, tunnel, alice):
        accepting = Accepting()
        await tunnel.listen(443, accepting)
        rule = FirewallRule(PeerIP=ALICE, Direction=IN, Action=ACCEPT, Protocol=TCP, PortInfo=PortInfo(port=443))
        management.set_map(peers=[alice.entry()], rules=[rule])
        await alice.node.dial(Recorder, US, 443, timeout=20)
        accepted = await accepting.next()
        assert accepted.transport.get_extra_info("tunnel_peer") == alice.entry().wgPubKey
        peer = tunnel.whois(ALICE)
        assert peer is not None
        assert peer.name == f"agent-{ALICE}"
