"""ICE of all links on the loop: the sessions, this host's addresses, and the STUN and TURN servers that add others."""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import Callable, Iterable, Sequence

import ifaddr

from netbird_overlay.driver import Driver
from netbird_overlay.endpoints import Endpoint
from netbird_overlay.ice.agent import Selected
from netbird_overlay.ice.candidates import Network, is_usable
from netbird_overlay.paths.carriers import Carriers
from netbird_overlay.paths.effects import TurnPath
from netbird_overlay.paths.local_addresses import LocalAddresses
from netbird_overlay.paths.servers import PathServers
from netbird_overlay.paths.sessions import IceSessions
from netbird_overlay.paths.stun_servers import StunServers
from netbird_overlay.paths.turn_servers import TurnServers
from netbird_overlay.stun.encoding import looks_like_stun


class Direct:
    """Takes the driver's strays.

    Args:
        carriers: names a peer's path by a relayed address to the engine.
        networks: returns the overlay's networks, where nothing is sent to and nothing taken from.
        on_candidate, on_selected, on_lost: as of `IceSessions`.
        on_dropped: called with the number of datagrams that came by a relayed address for no session.
        rearm: called after each input, because `sessions.deadline` may have changed.

    Attributes:
        sessions: the agents of all links.
        turns: the allocations at TURN servers.
    """

    def __init__(
        self,
        driver: Driver,
        carriers: Carriers,
        *,
        networks: Callable[[], Sequence[Network]],
        on_candidate: Callable[[bytes, int, str], None],
        on_selected: Callable[[bytes, int, Selected], None],
        on_lost: Callable[[bytes, int], None],
        on_dropped: Callable[[int], None],
        rearm: Callable[[], None],
        loopback: bool,
        tls: ssl.SSLContext | None,
        adapters: Callable[[], Iterable[ifaddr.Adapter]],
    ) -> None:
        self._driver, self._carriers = driver, carriers
        self._on_dropped, self._rearm = on_dropped, rearm
        self._loop = asyncio.get_running_loop()
        self._addresses = LocalAddresses(driver, networks, loopback=loopback, adapters=adapters)
        self.turns = TurnServers(
            usable=lambda endpoint: is_usable(endpoint, excluded=networks(), loopback=loopback),
            on_allocated=self._on_allocated,
            on_datagram=self._on_relayed,
            tls=tls,
        )
        self.sessions = IceSessions(
            send=driver.send_stray,
            random=secrets.token_bytes,
            gather=self._addresses.gather,
            on_candidate=on_candidate,
            on_selected=on_selected,
            on_lost=on_lost,
            excluded=networks,
            loopback=loopback,
            turns=self.turns,
        )
        self._stuns = StunServers(self.sessions.use_servers, family=driver.family)
        driver.on_stray = self._on_stray

    def configure(self, servers: PathServers) -> None:
        """Use these servers from now on. A part that is None has not changed."""
        if servers.stuns is not None:
            self._stuns.use(servers.stuns)
        if servers.turns is not None:
            self.turns.use(servers.turns)

    async def run(self, on_change: Callable[[], None]) -> None:
        """Never returns. `on_change` is called when this host's addresses change."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._stuns.run())
            tasks.create_task(self.turns.run())
            tasks.create_task(self._addresses.watch(on_change))

    def stop(self, key: bytes, generation: int) -> None:
        """End the agent of a peer, and forget the carriers of its relayed addresses."""
        if self.sessions.stop(key, generation):
            for hop in self._carriers.hops(key):
                if isinstance(hop, TurnPath):
                    self._carriers.close(key, hop)

    def send(self, path: TurnPath, datagrams: Sequence[bytes]) -> None:
        """Send a turn's datagrams of WireGuard by a relayed address."""
        for datagram in datagrams:
            self.turns.send(datagram, path.endpoint, path.via, channel=True)

    def _on_stray(self, datagram: bytes, source: Endpoint) -> None:
        self.sessions.receive(datagram, source, self._loop.time())
        self._rearm()

    def _on_allocated(self, via: Endpoint) -> None:
        self.sessions.add_relayed(via, self._loop.time())
        self._rearm()

    def _on_relayed(self, datagram: bytes, source: Endpoint, via: Endpoint) -> None:
        if looks_like_stun(datagram):
            self.sessions.receive(datagram, source, self._loop.time(), via)
            self._rearm()
        elif (key := self.sessions.owner(source, via)) is not None:
            self._driver.deliver(self._carriers.open(key, TurnPath(source, via)), [datagram])
        else:
            self._on_dropped(1)
