"""The addresses of this host at which peers may reach the tunnel's socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import ifaddr
import structlog

from netbird_overlay.driver import Driver
from netbird_overlay.endpoints import Endpoint
from netbird_overlay.ice.candidates import Candidate, Network, gather_hosts

_log = structlog.get_logger(__name__)

CHECK_SECONDS: Final = 60.0
"""Time between two looks at this host's addresses."""


class LocalAddresses:
    """Gathers host candidates, and notices changes.

    Args:
        excluded: returns the overlay's networks.
        loopback: include loopback addresses, for tests.
        adapters: returns the interfaces of this host.
    """

    def __init__(
        self,
        driver: Driver,
        excluded: Callable[[], Sequence[Network]],
        *,
        loopback: bool,
        adapters: Callable[[], Iterable[ifaddr.Adapter]],
    ) -> None:
        self._driver, self._excluded = driver, excluded
        self._loopback, self._adapters = loopback, adapters

    def gather(self, ufrag: str, new_id: Callable[[], str]) -> list[Candidate]:
        """Return a candidate for each address; for the one address only that the socket is bound to, if it is."""
        try:
            candidates = gather_hosts(
                self._driver.local_port,
                excluded=self._excluded(),
                cid=new_id,
                ufrag=ufrag,
                ipv6=self._driver.family == socket.AF_INET6,
                loopback=self._loopback,
                adapters=self._adapters,
            )
        except OSError as exc:  # the system did not list its interfaces; the relay serves, and checks of the peer
            _log.info("paths.no_interfaces", error=str(exc))
            return []
        bound = self._driver.local_host
        return [each for each in candidates if not bound or each.endpoint.host == bound]

    def endpoints(self) -> set[Endpoint]:
        return {candidate.endpoint for candidate in self.gather("", str)}

    async def watch(self, on_change: Callable[[], None]) -> None:
        """Call back after each change. Never returns."""
        before = self.endpoints()
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            endpoints = self.endpoints()
            if endpoints != before:
                before = endpoints
                on_change()
