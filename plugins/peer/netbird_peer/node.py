"""A peer from a WireGuard file, for `netbird-proxy peer` and as a client in tests."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from netbird_overlay.driver import Driver, open_socket
from netbird_overlay.engine import Endpoint, Engine
from netbird_overlay.wgconf import ConfigError, PeerSection, WireGuardConfig

RETRY_INTERVAL = 10.0
"""Seconds between handshakes to a peer with a keepalive that does not answer: WireGuard itself gives up after 90 s, but
the peer may start later."""


@asynccontextmanager
async def peer_node(config: WireGuardConfig, *, bind: str = "") -> AsyncIterator[Driver]:
    """Run the file's node until the context is left. It starts a handshake with every endpoint in the file.

    Raises:
        ConfigError: an endpoint's name cannot be resolved, or the engine refuses the file's settings.
        OSError: ListenPort is in use.
        TunnelBroken: later, inside the context, as an exception group.
    """
    endpoints = [await _resolve(peer) for peer in config.peers]
    driver = Driver(Engine(config.private_key, mtu=config.mtu), open_socket(bind, config.listen_port))
    try:
        try:
            driver.engine.set_addresses([str(address.ip) for address in config.addresses])
            for peer, endpoint in zip(config.peers, endpoints, strict=True):
                driver.engine.set_peer(
                    peer.public_key,
                    [str(network) for network in peer.allowed_ips],
                    endpoint=endpoint,
                    keepalive=peer.keepalive,
                    preshared_key=peer.preshared_key,
                )
        except ValueError as exc:
            raise ConfigError(str(exc)) from exc
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(driver.supervise()), group.create_task(_stay_connected(driver, config))]
            try:
                yield driver
            finally:
                for task in tasks:
                    task.cancel()
    finally:
        driver.close()


async def _resolve(peer: PeerSection) -> Endpoint | None:
    if peer.endpoint is None:
        return None
    try:
        addresses = await asyncio.get_running_loop().getaddrinfo(*peer.endpoint, type=socket.SOCK_DGRAM)
    except OSError as exc:
        raise ConfigError(f"Endpoint {peer.endpoint[0]} cannot be resolved: {exc.strerror}") from exc
    host, port, *more = addresses[0][4]
    scope = int(more[1]) if len(more) > 1 else 0
    return Endpoint(str(host).partition("%")[0], int(port), scope)


async def _stay_connected(driver: Driver, config: WireGuardConfig) -> None:
    first = True
    while True:
        for peer in config.peers:
            state = driver.engine.peer(peer.public_key)
            absent = state is not None and state.endpoint is not None and state.last_handshake is None
            if absent and (first or peer.keepalive):
                driver.engine.handshake(peer.public_key)
        driver.touch()
        first = False
        await asyncio.sleep(RETRY_INTERVAL)
