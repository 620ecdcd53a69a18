"""Nodes that join networks whose management is fake, and whose signal server and relay are real."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from netbird_overlay.driver import open_socket
from netbird_overlay.keys import TunnelState
from netbird_overlay.membership.client import ManagementClient
from netbird_overlay.membership.enrollment import enroll
from netbird_overlay.membership.joined import Joined, NodeOptions, joined
from netbird_overlay.membership.meta import system_meta
from netbird_overlay.membership.testing import FakeManagement, serving
from netbird_overlay.node import Node
from netbird_overlay.testing import LOOPBACK
from netbird_wire.envelope import format_key, public_key
from netbird_wire.management_pb2 import (
    ACCEPT,
    IN,
    TCP,
    FirewallRule,
    HostConfig,
    NetbirdConfig,
    RelayConfig,
    RemotePeerConfig,
)
from tests.netbird_overlay.paths.house import Servers, token

VERSION = "0.60.0"
EVERYBODY = [FirewallRule(PeerIP="0.0.0.0", Direction=IN, Action=ACCEPT, Protocol=TCP)]


def configuration(servers: Servers, *, relays: bool = True) -> NetbirdConfig:
    """The servers as management names them."""
    access = token()
    return NetbirdConfig(
        signal=HostConfig(uri=f"{LOOPBACK}:{servers.signal_port}", protocol=HostConfig.HTTP),
        relay=RelayConfig(
            urls=[relay.url for relay in servers.relays.values()] if relays else [],
            tokenPayload=access.payload,
            tokenSignature=access.signature_text,
        ),
    )


@dataclass
class Agent:
    """A joined node with a management of its own. `changed` is set after each change of what it can reach."""

    management: FakeManagement
    address: str
    private_key: bytes
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    joined: Joined | None = None

    @property
    def node(self) -> Node:
        assert self.joined is not None
        return self.joined.node

    def entry(self) -> RemotePeerConfig:
        """The agent in another node's map."""
        return RemotePeerConfig(
            wgPubKey=format_key(public_key(self.private_key)),
            allowedIps=[f"{self.address}/32"],
            fqdn=f"agent-{self.address}",
            agentVersion=VERSION,
        )

    def kind(self, key: bytes) -> str:
        """The kind of the path to a peer."""
        assert self.joined is not None
        assert self.joined.paths is not None
        return self.joined.paths.state(key).kind

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()


@asynccontextmanager
async def agent(
    servers: Servers, address: str, *, ice: bool = False, relays: bool = True, answer_names: bool = False
) -> AsyncIterator[Agent]:
    """A node that joined at this address, with the map that its management last got."""
    management = FakeManagement()
    management.setup_keys = {"SETUP"}
    management.address = f"{address}/16"
    management.config = configuration(servers, relays=relays)
    made = Agent(management, address, secrets.token_bytes(32))
    with tempfile.TemporaryDirectory() as directory:
        state = TunnelState(Path(directory), made.private_key, None, {})
        async with serving(management) as channel:
            client = ManagementClient(channel, made.private_key, lambda files: system_meta("agent", files=files))
            login = await enroll(client, setup_key="SETUP")
            options = NodeOptions(ice=ice, loopback=True, label=address, answer_names=answer_names)
            async with joined(
                state, open_socket(LOOPBACK, 0), client, login, options, changed=made.changed.set
            ) as made.joined:
                await made.joined.membership.first.wait()
                yield made
