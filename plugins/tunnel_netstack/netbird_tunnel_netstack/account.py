"""The life of one account's tunnel, from reading its state directory to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

from netbird_overlay.engine import BufferBudget, Engine
from netbird_overlay.keys import TunnelState
from netbird_overlay.membership.enrollment import enroll
from netbird_overlay.membership.errors import ManagementFailure
from netbird_overlay.membership.joined import NodeOptions, joined
from netbird_proxy import AccountHandle, ManagementTimeout, Proxy
from netbird_tunnel_netstack.registration import Registration, management_client, proxy_error
from netbird_tunnel_netstack.settings import TunnelOptions, bind_account
from netbird_tunnel_netstack.tunnel import Changes, NetstackTunnel

ENROLL_TIMEOUT, FIRST_MAP_TIMEOUT = 60.0, 30.0
DIALS = 4
"""Ratio of the connections that peers may open to those reserved for our own dials."""
COUNT_INTERVAL = 10.0
"""Seconds between readings of the engine's counters."""
NOT_TOTALS = frozenset(("connections", "buffer_bytes", "half_open"))


@cache
def _process_budget(limit: int) -> BufferBudget:
    """Return the bytes that all tunnels of this process share."""
    return BufferBudget(limit)


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
    memory = proxy.share.count(options.memory)
    sock = bind_account(options, state, proxy.share)
    try:
        endpoint = options.endpoint(int(sock.getsockname()[1]))
        serves_dns = proxy.private and options.dns
        registration = Registration(account, state.private_key, endpoint=endpoint, serves_dns=serves_dns)
        client = management_client(account, state.private_key, proxy)
        try:
            async with asyncio.timeout(ENROLL_TIMEOUT):
                login = await enroll(client, register=registration.register)
        except TimeoutError as exc:
            raise ManagementTimeout(f"the tunnel was not logged in within {ENROLL_TIMEOUT:g} s") from exc
        except ManagementFailure as exc:
            raise proxy_error(exc) from exc
    except BaseException:
        sock.close()
        raise
    node_options = NodeOptions(
        inbound=proxy.private,
        connections=account.connections,
        dials=max(1, account.connections // DIALS),
        buffer_bytes=options.buffer,
        memory_bytes=memory,
        budget=_process_budget(memory),
        keepalive=options.keepalive,
        preshared_key=options.preshared_key_bytes(),
        ice=options.ice,
        roots=options.read_roots(),
        answer_names=serves_dns,
        name_servers=tuple(str(address) for address in options.dns_servers),
        label=account.id,
    )
    maps, reachability = Changes(), Changes()
    async with joined(
        state,
        sock,
        client,
        login,
        node_options,
        register=registration.register,
        connected=registration.management_connected,
        changed=reachability.happened,
        map_applied=maps.happened,
    ) as node:
        tunnel = NetstackTunnel(node.node, membership=node.membership, maps=maps, reachability=reachability)
        async with asyncio.TaskGroup() as group:
            counting = group.create_task(_keep_counted(node.node.driver.engine, proxy), name=f"counters {account.id}")
            try:
                try:
                    async with asyncio.timeout(FIRST_MAP_TIMEOUT):
                        await node.membership.first.wait()
                except TimeoutError as exc:
                    why = node.membership.last_error or "management is silent"
                    raise ManagementTimeout(f"no network map within {FIRST_MAP_TIMEOUT:g} s: {why}") from exc
                maps.forget()  # the first map is the tunnel's beginning, and no change
                yield tunnel
            finally:
                counting.cancel()
                tunnel.close()


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
