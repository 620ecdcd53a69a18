"""The life of one account's tunnel, from reading its state directory to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from netbird_overlay.driver import Driver
from netbird_overlay.engine import Engine
from netbird_overlay.keys import TunnelState
from netbird_overlay.node import Node
from netbird_overlay.peer_endpoints import PeerEndpoints
from netbird_proxy import AccountHandle, ManagementTimeout, Proxy
from netbird_tunnel_netstack.registration import Enrollment, system_meta
from netbird_tunnel_netstack.settings import TunnelOptions, bind_account
from netbird_tunnel_netstack.sync import MapSync, enroll
from netbird_tunnel_netstack.tunnel import NetstackTunnel

ENROLL_TIMEOUT, FIRST_MAP_TIMEOUT = 60.0, 30.0
BUFFER_BYTES = 128 << 10
"""Size of a connection's buffer in each direction, which is also its receive window."""
DIALS = 4
"""Ratio of the connections that peers may open to those reserved for our own dials."""
COUNT_INTERVAL = 10.0
"""Seconds between readings of the engine's counters."""
NOT_TOTALS = frozenset(("connections", "buffer_bytes", "half_open"))


@asynccontextmanager
async def account_tunnel(account: AccountHandle, proxy: Proxy) -> AsyncIterator[NetstackTunnel]:
    """Open a tunnel: register, log in, apply the first map, and follow the maps until the context is left.

    Raises:
        StateUnusable: the account's directory or port cannot be used; management was not called.
        ManagementError: management refused the registration, or was away for too long.
        TunnelBroken, AddressesChanged: later, inside the context, as an exception group.
    """
    options = proxy.options(TunnelOptions)
    state = TunnelState.load(account.directory)
    sock = bind_account(options, state)
    try:
        enrollment = Enrollment(
            account,
            state.private_key,
            endpoint=options.endpoint(int(sock.getsockname()[1])),
            meta=system_meta(proxy.id, inbound=proxy.private),
        )
        try:
            async with asyncio.timeout(ENROLL_TIMEOUT):
                own = await enroll(enrollment)
        except TimeoutError as exc:
            raise ManagementTimeout(f"the tunnel was not logged in within {ENROLL_TIMEOUT:g} s") from exc
        dials = max(1, account.connections // DIALS)
        engine = Engine(
            state.private_key,
            mtu=own.mtu,
            receive_buffer=BUFFER_BYTES,
            send_buffer=BUFFER_BYTES,
            max_connections=account.connections + dials,
            reserved_for_dials=dials,
            fair=True,
            max_buffer_bytes=(account.connections + dials) * 2 * BUFFER_BYTES,
        )
        engine.set_addresses(own.addresses)
    except BaseException:
        sock.close()
        raise

    endpoints = PeerEndpoints(state)

    def applied() -> None:
        members = {peer.public_key for peer in engine.peers()}
        endpoints.present(members, asyncio.get_running_loop().time())

    driver = Driver(engine, sock, on_endpoint=endpoints.moved, on_handshake=lambda key: node.on_handshake(key))
    node = Node(driver, own.addresses)
    tunnel = NetstackTunnel(node)
    sync = MapSync(enrollment, tunnel, inbound=proxy.private, endpoints=state.endpoints, applied=applied)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(driver.supervise(), name=f"driver {account.id}"),
                group.create_task(sync.run(), name=f"sync {account.id}"),
                group.create_task(node.keep_greeting(), name=f"greetings {account.id}"),
                group.create_task(endpoints.keep_saved(), name=f"state {account.id}"),
                group.create_task(_keep_counted(engine, proxy), name=f"counters {account.id}"),
            ]
            try:
                try:
                    async with asyncio.timeout(FIRST_MAP_TIMEOUT):
                        await sync.first.wait()
                except TimeoutError as exc:
                    why = sync.last_error or "management is silent"
                    raise ManagementTimeout(f"no network map within {FIRST_MAP_TIMEOUT:g} s: {why}") from exc
                yield tunnel
            finally:
                for task in tasks:
                    task.cancel()
    finally:
        tunnel.close()
        endpoints.close()


async def _keep_counted(engine: Engine, proxy: Proxy) -> None:
    """Add the engine's counters to the process's counters, which sum up all accounts."""
    added: dict[str, int] = {}
    try:
        while True:
            await asyncio.sleep(COUNT_INTERVAL)
            added = _count(engine, proxy, added)
    finally:
        _count(engine, proxy, added)


def _count(engine: Engine, proxy: Proxy, added: dict[str, int]) -> dict[str, int]:
    counters = {name: value for name, value in engine.counters().items() if name not in NOT_TOTALS}
    for name, value in counters.items():
        if value > added.get(name, 0):
            proxy.count(f"tunnel_{name}", value - added.get(name, 0))
    return counters
