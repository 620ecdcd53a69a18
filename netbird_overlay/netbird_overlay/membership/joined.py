"""A node that has joined a network: engine, driver, membership and kept endpoints, from the login to the end."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from netbird_overlay.driver import Driver
from netbird_overlay.engine import BufferBudget, Engine
from netbird_overlay.keys import TunnelState
from netbird_overlay.membership.client import ManagementClient
from netbird_overlay.membership.enrollment import Register
from netbird_overlay.membership.membership import Membership
from netbird_overlay.membership.meta import AGENT_VERSION
from netbird_overlay.membership.name_service import DNS_PORT, NameService, forward_to, serve_names
from netbird_overlay.network_map import TCP_NUMBER, UDP_NUMBER, read_networks, read_own
from netbird_overlay.node import KEEPALIVE, Node
from netbird_overlay.paths.paths import Paths
from netbird_overlay.peer_endpoints import PeerEndpoints
from netbird_wire.management_pb2 import LoginResponse

BUFFER_BYTES = 4 << 20
"""Default size up to which a connection's buffer grows in each direction; it is also the receive window."""
MEMORY_BYTES = 256 << 20
"""Default maximum size of all connections' buffers of a node, or of the nodes that share a budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """An operator's choices for a node.

    Attributes:
        inbound: False admits no connections of peers, whatever the map allows.
        connections: maximum number of connections that peers have open together.
        dials: number of further connections that only our own dials may use.
        buffer_bytes: size up to which a connection's buffer grows in each direction.
        memory_bytes: maximum size of all buffers of this node.
        budget: bytes of buffers that this node shares with others, in addition.
        keepalive: seconds between packets to a peer once it has shaken hands; 0 for none.
        ice: False for paths to agents through relays only.
        preshared_key: 32 bytes that all peers share with us, or None.
        roots: PEM text of the authorities that sign certificates of signal and relay servers; None for the system's.
        loopback: use this host's loopback addresses for direct paths, for tests.
        answer_names: answer DNS queries of the peers that may open connections to us, for the account's zones.
        name_servers: addresses of name servers for other names; without any, such queries are refused.
        label: distinguishes the node's tasks from those of others.
    """

    inbound: bool = True
    connections: int = 4096
    dials: int = 1024
    buffer_bytes: int = BUFFER_BYTES
    memory_bytes: int = MEMORY_BYTES
    budget: BufferBudget | None = None
    keepalive: int = KEEPALIVE
    ice: bool = True
    preshared_key: bytes | None = field(default=None, repr=False)
    roots: bytes | None = None
    loopback: bool = False
    answer_names: bool = False
    name_servers: tuple[str, ...] = ()
    label: str = ""

    @property
    def everything(self) -> int:
        return self.connections + self.dials


@dataclass(frozen=True, slots=True)
class Joined:
    """A node, its membership and the paths to its peers. All end with the context that made them."""

    node: Node
    membership: Membership
    paths: Paths


@asynccontextmanager
async def joined(
    state: TunnelState,
    sock: socket.socket,
    client: ManagementClient,
    login: LoginResponse,
    options: NodeOptions,
    *,
    register: Register | None = None,
    connected: Callable[[], bool] = lambda: True,
    changed: Callable[[], None] = lambda: None,
    map_applied: Callable[[], None] = lambda: None,
) -> AsyncIterator[Joined]:
    """Run a node until the context is left. Takes over the socket.

    Args:
        changed: called after each change of what can be reached.
        map_applied: called after each map.

    For the others see `Membership`.

    Raises:
        TunnelBroken, AddressesChanged, NotRegistered, LoginExpired: inside the context, as an exception group.
    """
    try:
        own = read_own(login.peerConfig)
        engine = Engine(
            state.private_key,
            mtu=own.mtu,
            receive_buffer=options.buffer_bytes,
            send_buffer=options.buffer_bytes,
            max_connections=options.everything,
            reserved_for_dials=options.dials,
            fair=True,
            max_buffer_bytes=options.memory_bytes,
            budget=options.budget,
        )
        engine.set_addresses(own.addresses)
    except BaseException:
        sock.close()
        raise
    endpoints = PeerEndpoints(state)

    def applied() -> None:
        endpoints.present(node.members, asyncio.get_running_loop().time())
        map_applied()

    def shaken(key: bytes) -> None:
        node.on_handshake(key)
        paths.on_handshake(key)
        membership.on_handshake(key)

    driver = Driver(engine, sock, on_endpoint=endpoints.moved, on_handshake=shaken)
    node = Node(driver, own.addresses, keepalive=options.keepalive, preshared_key=options.preshared_key)
    paths = Paths(
        driver,
        state.private_key,
        version=AGENT_VERSION,
        allow_ice=options.ice,
        loopback=options.loopback,
        in_use=node.in_use,
        tls=ssl.create_default_context(cadata=options.roots.decode("ascii")) if options.roots else None,
    )
    paths.overlay_networks = read_networks(login.peerConfig)
    membership = Membership(
        node,
        client,
        login,
        paths=paths,
        roots=options.roots,
        inbound=options.inbound,
        own_ports=((TCP_NUMBER, DNS_PORT), (UDP_NUMBER, DNS_PORT)) if options.answer_names else (),
        endpoints=state.endpoints,
        applied=applied,
        changed=changed,
        register=register,
        connected=connected,
    )
    paths.on_change = membership.on_path
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(driver.supervise(), name=f"driver {options.label}"),
                group.create_task(membership.run(), name=f"sync {options.label}"),
                group.create_task(paths.run(), name=f"paths {options.label}"),
                group.create_task(node.keep_greeting(), name=f"greetings {options.label}"),
                group.create_task(endpoints.keep_saved(), name=f"state {options.label}"),
            ]
            if options.answer_names:
                names = NameService(
                    lambda: membership.zones,
                    clock=asyncio.get_running_loop().time,
                    forward=forward_to(options.name_servers) if options.name_servers else None,
                )
                tasks.append(group.create_task(serve_names(driver, names), name=f"names {options.label}"))
            try:
                yield Joined(node, membership, paths)
            finally:
                for task in tasks:
                    task.cancel()
    finally:
        node.close()
        endpoints.close()
