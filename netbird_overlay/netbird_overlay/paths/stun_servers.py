"""The addresses of the configured STUN servers, resolved again from time to time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Final

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.members import plain_address

DEFAULT_PORT: Final = 3478
RESOLVE_SECONDS: Final = 5.0
AGAIN: Final = 300.0
"""Seconds after which names are resolved again."""
AGAIN_AFTER_FAILURE: Final = 30.0
MAX_SERVERS: Final = 16


def parse_stun(uri: str) -> tuple[str, int] | None:
    """The host and port of `stun:host:port` (RFC 7064); None for anything else. The port may be left out."""
    return parse_authority("stun", uri, default_port=DEFAULT_PORT)


def parse_authority(expected: str, uri: str, *, default_port: int) -> tuple[str, int] | None:
    """The host and port of `scheme:host:port` with the expected scheme; None for anything else."""
    scheme, _, rest = uri.partition(":")
    host, port = rest, ""
    if rest.startswith("["):
        host, _, port = rest[1:].partition("]")
        port = port.removeprefix(":")
    elif rest.count(":") == 1:
        host, _, port = rest.partition(":")
    if scheme != expected or not host or not (not port or (port.isascii() and port.isdigit())):
        return None
    number = int(port or default_port)
    return (host, number) if 0 < number < 65536 else None


class StunServers:
    """Resolves the servers of the configuration, while `run` runs, and passes each result on.

    Args:
        family: the address family of the socket that asks the servers. An IPv6 socket reaches both families.
    """

    def __init__(self, on_servers: Callable[[Sequence[Endpoint]], None], *, family: int) -> None:
        self._on_servers = on_servers
        self._family = socket.AF_INET if family == socket.AF_INET else socket.AF_UNSPEC
        self._uris: tuple[str, ...] = ()
        self._changed = asyncio.Event()

    def use(self, uris: Sequence[str]) -> None:
        if tuple(uris) != self._uris:
            self._uris = tuple(uris)
            self._changed.set()

    async def run(self) -> None:
        """Never returns."""
        while True:
            self._changed.clear()
            complete = await self._resolve()
            try:
                async with asyncio.timeout(AGAIN if complete else AGAIN_AFTER_FAILURE):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _resolve(self) -> bool:
        """Resolve all servers at the same time; True if each has an address."""
        targets = [target for uri in self._uris if (target := parse_stun(uri)) is not None][:MAX_SERVERS]
        results = await asyncio.gather(*(self._addresses(*target) for target in targets))
        servers = dict.fromkeys(endpoint for endpoints in results for endpoint in endpoints)
        self._on_servers(tuple(servers)[:MAX_SERVERS])
        return all(results)

    async def _addresses(self, host: str, port: int) -> list[Endpoint]:
        """The server's first address of each family; none if the name does not resolve."""
        plain = plain_address(host)
        if plain is not None:
            return [Endpoint(plain, port)]
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                infos = await loop.getaddrinfo(host, port, family=self._family, type=socket.SOCK_DGRAM)
        except (OSError, TimeoutError, UnicodeError):
            return []
        first: dict[int, Endpoint] = {}
        for family, _, _, _, address in infos:
            resolved = plain_address(str(address[0]))
            if resolved is not None:
                first.setdefault(family, Endpoint(resolved, port))
        return list(first.values())
