"""Applies management's network maps to one account's tunnel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import structlog

from netbird_overlay.network_map import Inbound, MapError, OwnNode, read_inbound, read_own, read_roster
from netbird_proxy import Backoff, ManagementError
from netbird_tunnel_netstack.registration import Enrollment, NotRegistered
from netbird_tunnel_netstack.tunnel import NetstackTunnel
from netbird_wire.management_pb2 import NetworkMap, SyncResponse

log = structlog.get_logger("netbird_tunnel_netstack.sync")

FIRST_DELAY, FACTOR, LONGEST_DELAY = 0.8, 1.7, 10.0
"""Back-off in seconds; each wait is uniform in [0, 2 × interval]."""
LOOK_INTERVAL = 0.2
"""Interval in seconds at which a pause checks whether management is connected again."""


class AddressesChanged(Exception):
    """Management assigned us another overlay address: the tunnel must be opened again."""


def _backoff() -> Backoff:
    return Backoff(FIRST_DELAY, LONGEST_DELAY, factor=FACTOR, spread=(0.0, 2.0))


async def _pause(seconds: float, connected: Callable[[], bool]) -> None:
    """Wait; return early when management reconnects."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    now = connected()
    while (left := until - loop.time()) > 0:
        await asyncio.sleep(min(left, LOOK_INTERVAL))
        now, before = connected(), now
        if now and not before:
            return


async def enroll(enrollment: Enrollment) -> OwnNode:
    """Register and log in, and retry while management is away. The caller must set a time limit.

    Raises:
        ManagementError: management refused the registration.
        MapError: management's answer has no usable configuration of our node.
    """
    backoff = _backoff()
    registered = False
    while True:
        if not registered:
            await enrollment.register()
            registered = True
        try:
            return read_own((await enrollment.login()).peerConfig)
        except NotRegistered as exc:
            registered = False
            why: ManagementError = exc
        except ManagementError as exc:
            why = exc
        log.warning("tunnel.login_failed", error=str(why))
        await asyncio.sleep(backoff.next_wait())


class MapSync:
    """Runs the stream of network maps and applies each map as a whole.

    Args:
        inbound: False admits no connections of peers, whatever the map allows.
        endpoints: last endpoints of peers, for peers that are new to the engine.
        applied: called after each map.
    """

    def __init__(
        self,
        enrollment: Enrollment,
        tunnel: NetstackTunnel,
        *,
        inbound: bool,
        endpoints: dict[bytes, tuple[str, int]],
        applied: Callable[[], None],
    ) -> None:
        self._enrollment = enrollment
        self._tunnel = tunnel
        self._inbound = inbound
        self._endpoints = endpoints
        self._applied = applied
        self._serial = 0
        self._registered = True
        self.first = asyncio.Event()
        self.last_error = ""

    async def run(self) -> None:
        """Run the stream until cancelled. Raises AddressesChanged; all other failures of management are retried.

        While management is away the last map stays in force: private services still validate peers for each request.
        """
        backoff = _backoff()
        while True:
            try:
                if not self._registered:
                    await self._enrollment.register()
                    self._registered = True
                    self._check_addresses(read_own((await self._enrollment.login()).peerConfig))
                self._serial = 0  # the first message of a stream is a complete map
                async with aclosing(self._enrollment.sync()) as responses:  # type: ignore[type-var]
                    async for response in responses:
                        self._take(response)
                        backoff.reset()
                self.last_error = "management ended the stream"
            except NotRegistered as exc:
                self._registered = False
                self.last_error = str(exc)
            except (ManagementError, MapError) as exc:
                self.last_error = str(exc)
            log.warning("tunnel.sync_lost", error=self.last_error)
            await _pause(backoff.next_wait(), lambda: self._enrollment.management_connected)

    def _take(self, response: SyncResponse) -> None:
        if response.Version or response.HasField("NetworkMapEnvelope"):
            raise MapError(f"management sent version {response.Version} of the map, which is not supported")
        if not response.HasField("NetworkMap"):
            return
        network_map = response.NetworkMap
        if network_map.Serial < self._serial:
            log.info("tunnel.map_stale", serial=network_map.Serial, applied=self._serial)
            return
        self._apply(
            network_map, read_own(network_map.peerConfig if network_map.HasField("peerConfig") else response.peerConfig)
        )

    def _apply(self, network_map: NetworkMap, own: OwnNode) -> None:
        self._check_addresses(own)
        engine = self._tunnel.node.driver.engine
        inbound = read_inbound(network_map) if self._inbound else Inbound()
        roster = read_roster(network_map, engine.public_key, own)
        engine.set_inbound(inbound.allowed, denied=inbound.denied)
        if roster.members is not None:
            self._tunnel.node.set_members(roster.members, self._endpoints)
        self._tunnel.node.driver.touch()
        self._serial = network_map.Serial
        log.info(
            "tunnel.map_applied",
            serial=network_map.Serial,
            peers=len(engine.peers()),
            skipped=roster.skipped,
            rules=len(inbound.allowed) + len(inbound.denied),
        )
        self._applied()
        if self.first.is_set():
            self._tunnel.changed()
        else:
            self.first.set()

    def _check_addresses(self, own: OwnNode) -> None:
        if tuple(own.addresses) != tuple(self._tunnel.addresses):
            raise AddressesChanged(
                f"our overlay addresses changed from {', '.join(self._tunnel.addresses)} to {', '.join(own.addresses)}"
            )
