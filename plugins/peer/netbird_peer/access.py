"""The two ways in which a command reaches the overlay: a WireGuard file of its own, or a running `netbird-peer up`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from netbird_overlay.datagrams import DatagramFactory
from netbird_overlay.driver import Connection, ProtocolFactory
from netbird_overlay.errors import Unreachable
from netbird_overlay.wgconf import ConfigError, WireGuardConfig, parse_config
from netbird_peer.control import ControlClient
from netbird_peer.datagrams import DatagramSocket, OpenDatagrams
from netbird_peer.home import default_directory
from netbird_peer.node import peer_node
from netbird_peer.pipe import Dial


def read_config(path: Path) -> WireGuardConfig:
    """Raises ConfigError."""
    try:
        return parse_config(path.read_text(encoding="utf-8"), name=str(path))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} cannot be read: {exc}") from exc


@dataclass(frozen=True, slots=True)
class Overlay:
    """Opens streams and sockets on the overlay."""

    dial: Dial
    datagrams: OpenDatagrams


@asynccontextmanager
async def overlay(
    config: WireGuardConfig | None, state: Path | None, resolve: Sequence[str] = ()
) -> AsyncIterator[Overlay]:
    """Yield the way to the overlay.

    Args:
        config: a WireGuard file's node, which runs until the context is left. Without it, an `up` must run.
        state: the state directory of that `up`; None for the user's.
        resolve: HOST=ADDR pairs, for a file's node; `up` knows the names of its network.

    Raises:
        ConfigError, OSError: the file's node cannot run, or an entry of `resolve` cannot be read.
    """
    if config is None:
        client = ControlClient(state or default_directory())
        yield Overlay(client.dial, client.datagrams)
        return
    names = dict(map(_resolved, resolve))
    async with peer_node(config) as driver:

        async def dial(protocol_factory: ProtocolFactory, host: str, port: int, *, timeout: float) -> Connection:
            return await driver.connect(protocol_factory, _address(host, config, names), port, timeout=timeout)

        async def datagrams(
            protocol_factory: DatagramFactory, host: str, port: int, *, timeout: float
        ) -> DatagramSocket:
            return driver.datagram_endpoint(protocol_factory, remote=(_address(host, config, names), port))

        yield Overlay(dial, datagrams)


def _resolved(entry: str) -> tuple[str, str]:
    name, equals, address = entry.partition("=")
    if not equals:
        raise ConfigError(f"--resolve {entry!r} is not HOST=ADDR")
    try:
        return _folded(name), str(ip_address(address.strip("[]")))
    except ValueError as exc:
        raise ConfigError(f"--resolve {entry!r}: {exc}") from exc


def _folded(name: str) -> str:
    return name.lower().rstrip(".")


def _address(host: str, config: WireGuardConfig, names: dict[str, str]) -> str:
    """Return the overlay address of a host. Raises Unreachable."""
    if (address := names.get(_folded(host))) is not None:
        return address
    with contextlib.suppress(ValueError):
        return str(ip_address(host))
    single = [network for peer in config.peers for network in peer.allowed_ips if network.version == 4]
    if len(config.peers) == 1 and len(single) == 1 and single[0].prefixlen == 32:
        return str(single[0].network_address)
    raise Unreachable(f"the file has no address for {host}: add --resolve {host}=ADDR")
