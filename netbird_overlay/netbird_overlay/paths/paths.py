"""The paths to all peers of a node on the loop: a link for each, and the signal client, relays and ICE that serve it.

`Paths` performs the effects of the links and reports to them what the parts below notice. It decides nothing about a
path by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import secrets
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

import ifaddr
import structlog

from netbird_overlay.driver import Driver
from netbird_overlay.ice.agent import Selected
from netbird_overlay.ice.candidates import Network
from netbird_overlay.paths.carriers import Carriers, Hop
from netbird_overlay.paths.direct import Direct
from netbird_overlay.paths.effects import (
    AddRemoteCandidate,
    CloseRelay,
    Effect,
    LocalSide,
    OpenRelay,
    Path,
    Pin,
    RelayPath,
    ResetSession,
    SendMessage,
    StartHandshake,
    StartIce,
    StopIce,
    TurnPath,
    Unpin,
)
from netbird_overlay.paths.entry import Entry
from netbird_overlay.paths.foreign_relays import judged_address
from netbird_overlay.paths.link import PeerLink
from netbird_overlay.paths.quiet import CHECK_SECONDS, Quiet
from netbird_overlay.paths.roster import EAGER_PEERS, Roster
from netbird_overlay.paths.servers import PathServers, PathState, RemotePeer
from netbird_overlay.paths.timers import Timers
from netbird_overlay.relay.relays import Relays
from netbird_overlay.signal.client import SignalClient, SignalTarget, SignalTiming
from netbird_overlay.signal.messages import GoIdle, Message
from netbird_wire.backoff import Backoff
from netbird_wire.envelope import format_key, public_key
from netbird_wire.relay_tokens import RelayToken

_log = structlog.get_logger(__name__)

NEW_LINK_DELAY: Final = 2.0
"""Seconds before a link that replaces a failed one begins."""


class Paths:
    """Keeps a path to each peer, while `run` runs.

    An error of a link or a callback is reported to the loop's exception handler, and concerns no other peer.

    Args:
        driver: the node's driver. `Paths` takes its carried datagrams and its strays.
        own_private_key: the node's WireGuard key, 32 bytes.
        version: our version, as told to peers.
        listen_port: the UDP port that peers are told; the driver's own if None.
        allow_ice: False for paths through relays only.
        loopback: use loopback addresses as candidates, for tests.
        in_use: returns True while connections with a peer are open, or datagrams pass; such a peer does not go idle.
        on_change: called with a peer's key after its path changed.
        tls: verifies the relays' certificates; None for the system's roots.
        adapters: returns the interfaces of this host.
        relay_backoff, signal_backoff, signal_timing: waits of the clients, for tests.

    Attributes:
        counters: what was dropped or refused, by reason.
    """

    def __init__(
        self,
        driver: Driver,
        own_private_key: bytes,
        *,
        version: str,
        listen_port: int | None = None,
        allow_ice: bool = True,
        loopback: bool = False,
        in_use: Callable[[bytes], bool] = lambda _key: False,
        on_change: Callable[[bytes], None] | None = None,
        tls: ssl.SSLContext | None = None,
        adapters: Callable[[], Iterable[ifaddr.Adapter]] = ifaddr.get_adapters,
        relay_backoff: Backoff | None = None,
        signal_backoff: Backoff | None = None,
        signal_timing: SignalTiming | None = None,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.on_change = on_change
        self.overlay_networks: Sequence[Network] = ()
        self._driver = driver
        self._private_key, self._own_key = own_private_key, public_key(own_private_key)
        self._in_use = in_use
        self._signal_backoff, self._signal_timing = signal_backoff, signal_timing
        self._loop = asyncio.get_running_loop()
        self._local = LocalSide(version, listen_port or driver.local_port, ice=allow_ice)
        self._roster = Roster(self._own_key, self._loop.time, self._enter, self._keep, self._leave)
        self._entries = self._roster.entries
        self._timers: Timers[bytes] = Timers()
        self._quiet = Quiet()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._signal: SignalClient | None = None
        self._signal_given = asyncio.Event()
        self._relay_urls: tuple[str, ...] = ()
        self._relay_token: RelayToken | None = None
        self._relays = Relays(
            self._own_key,
            on_datagrams=self._on_datagrams,
            on_online=self._on_online,
            on_offline=self._on_offline,
            on_home=self._refresh,
            tls=tls,
            backoff=relay_backoff,
        )
        self._carriers = Carriers(self._send, self._drop)
        self._direct = Direct(
            driver,
            self._carriers,
            networks=lambda: self.overlay_networks,
            on_candidate=self._on_candidate,
            on_selected=self._on_selected,
            on_lost=self._on_lost,
            on_dropped=self._drop,
            rearm=self._arm,
            loopback=loopback,
            tls=tls,
            adapters=adapters,
        )
        self._ice = self._direct.sessions
        driver.on_carried = self._carriers.queue

    # The caller's side -----------------------------------------------------------------------------------------------

    @property
    def signal_connected(self) -> bool:
        return self._signal is not None and self._signal.connected

    @property
    def home_relay(self) -> str:
        """The instance URL of the relay that our offers name; "" while there is none."""
        return self._relays.home

    def configure(self, servers: PathServers) -> None:
        """Use these servers from now on. Paths that do not depend on a change stay."""
        if servers.signal is not None:
            self._use_signal(servers.signal)
        if servers.relays is not None or servers.relay_token is not None:
            self._relay_urls = self._relay_urls if servers.relays is None else servers.relays
            self._relay_token = servers.relay_token or self._relay_token
            self._relays.configure(self._relay_urls, self._relay_token)
            self._refresh()
        self._direct.configure(servers)

    def _use_signal(self, target: SignalTarget) -> None:
        if self._signal is not None:
            self._signal.retarget(target)
            return
        self._signal = SignalClient(
            target=target,
            private_key=self._private_key,
            on_message=self._on_message,
            on_state=lambda _connected: self._refresh(),
            accepts=self._roster.__contains__,
            backoff=self._signal_backoff,
            timing=self._signal_timing,
        )
        self._signal_given.set()

    def set_peers(self, peers: Iterable[RemotePeer]) -> None:
        """Replace the peers; those that stay keep their paths. The engine knows them already."""
        for _ in self._roster.replace(peers):
            pass

    async def replace_peers(self, peers: Iterable[RemotePeer]) -> None:
        """Replace the peers like `set_peers`, and let the loop do other work in between.

        Peers that left are gone at once; those that joined get their links in turn, or when they are first needed.
        """
        with contextlib.closing(self._roster.replace(peers)) as pieces:
            for _ in pieces:
                await asyncio.sleep(0)

    def _enter(self, peer: RemotePeer, begin: float, idle: bool) -> None:
        now = self._loop.time()
        link = self._link(peer, now, begin, idle=idle)
        entry = self._entries[peer.key] = Entry(peer.key, peer, link, counted_at=now)
        self._act(entry, lambda: None)

    def _keep(self, entry: Entry, peer: RemotePeer) -> None:
        if entry.peer != peer:
            entry.peer = peer
            entry.link.lazy, entry.link.agent = peer.may_sleep, bool(peer.agent_version)
        if entry.link.path is not None:
            self._pin_again(entry, entry.link.path)

    def _leave(self, entry: Entry) -> None:
        self._act(entry, lambda: entry.link.close(self._loop.time()))
        self._quiet.forget(entry.key)
        self._timers.set(entry.key, math.inf)

    def _pin_again(self, entry: Entry, path: Path) -> None:
        """Restore the path of a peer that the node removed and added again, such as for other overlay addresses."""
        state = self._driver.engine.peer(entry.key)
        if state is not None and not state.pinned:
            self._do(entry, Pin(path))
            self._do(entry, StartHandshake())

    def _link(self, peer: RemotePeer, now: float, begin: float, *, idle: bool = False) -> PeerLink:
        return PeerLink(
            self._own_key,
            peer.key,
            self._local,
            now,
            begin=begin,
            draw=secrets.token_bytes,
            pick=random.uniform,
            lazy=peer.may_sleep,
            agent=bool(peer.agent_version),
            idle=idle,
        )

    def wake(self, key: bytes) -> bool:
        """Prepare for a dial to a peer: an offer opens the path to one that is idle, or has none.

        False if none can come: the peer is not in the map, runs plain WireGuard, or we have no signal server.
        """
        entry = self._roster.get(key)
        if entry is None or self._signal is None or not entry.link.answers:
            return False
        self._act(entry, lambda: entry.link.wake(self._loop.time()))
        return True

    def on_handshake(self, key: bytes) -> None:
        """Take note of a handshake. To be called by the driver's callback, after the node's own."""
        peer = self._driver.engine.peer(key)
        renewed = peer is not None and bool(peer.keepalive)
        self._pass_on(key, lambda link, now: link.handshaken(now, renewed=renewed))

    def state(self, key: bytes) -> PathState:
        """The state of the path to a peer; `none` for a peer that is not in the map."""
        entry = self._entries.get(key)
        peer = self._driver.engine.peer(key)
        return entry.state(peer, self._loop.time()) if entry is not None and peer is not None else PathState()

    def totals(self) -> dict[str, int]:
        """Return what was sent, dropped and refused since the start, by part and reason."""
        parts = {"paths": self.counters, "relay": self._relays.counters, "ice": self._ice.counters}
        parts["turn"] = self._direct.turns.counters
        if self._signal is not None:
            parts["signal"] = self._signal.counts
        return {f"{part}_{name}": count for part, counts in parts.items() for name, count in counts.items()}

    async def run(self) -> None:
        """Connect to the servers, and keep the paths. Never returns; cancellation closes the connections to servers."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._relays.run())
                tasks.create_task(self._run_signal())
                tasks.create_task(self._direct.run(self.network_changed))
                tasks.create_task(self._watch_quiet())
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer, self._timer_at = None, math.inf

    async def _run_signal(self) -> None:
        while self._signal is None:
            await self._signal_given.wait()
        await self._signal.run()

    # Effects ---------------------------------------------------------------------------------------------------------

    def _pass_on(self, key: bytes, report: Callable[[PeerLink, float], None]) -> None:
        """Pass a report of another part to the link of a peer, if the peer is still in the map."""
        if (entry := self._entries.get(key)) is not None:
            now = self._loop.time()
            self._act(entry, lambda: report(entry.link, now))

    def _act(self, entry: Entry, action: Callable[[], None]) -> None:
        """Pass an input to a link, perform its effects, and set its timer."""
        if entry.busy:
            action()
            return
        before = entry.link.path
        entry.busy = True
        try:
            action()
            while effects := entry.link.take():
                for effect in effects:
                    self._do(entry, effect)
        except Exception as exc:
            self._begin_anew(entry, exc)
        finally:
            entry.busy = False
        self._timers.set(entry.key, entry.link.deadline)
        self._arm()
        if entry.link.path != before:
            self._report_change(entry)

    def _begin_anew(self, entry: Entry, error: Exception) -> None:
        """Replace a link that failed. Its peer is reached again after a few seconds, and no other peer notices."""
        self._report(error, "a link failed")
        now = self._loop.time()
        self._direct.stop(entry.key, entry.link.generation)
        for hop in self._carriers.hops(entry.key):
            if isinstance(hop, str):
                self._close_relay(entry.key, hop)
        self._driver.engine.unpin(entry.key)
        entry.link = self._link(entry.peer, now, now + NEW_LINK_DELAY)

    def _do(self, entry: Entry, effect: Effect) -> None:
        key, engine = entry.key, self._driver.engine
        match effect:
            case SendMessage(message):
                if self._signal is not None:
                    self._signal.send(key, message)
            case OpenRelay(server, server_ip):
                self._open_relay(entry, server, server_ip)
            case CloseRelay(server):
                self._close_relay(key, server)
            case StartIce():
                self._ice.start(key, effect, self._loop.time())
            case StopIce(generation):
                self._direct.stop(key, generation)
            case AddRemoteCandidate(generation, line):
                self._ice.add_remote(key, generation, line, self._loop.time())
            case Pin(RelayPath(server)):
                engine.pin(key, self._carriers.open(key, server))
            case Pin(TurnPath() as path):
                engine.pin(key, self._carriers.open(key, path))
            case Pin(path) if not isinstance(path, RelayPath | TurnPath):
                engine.pin(key, path)
            case Unpin():
                engine.unpin(key)
            case ResetSession():
                engine.reset_session(key)
            case StartHandshake():
                engine.handshake(key)
        self._driver.touch()

    def _open_relay(self, entry: Entry, server: str, server_ip: bytes) -> None:
        address = judged_address(server, server_ip, self._relay_urls) if server != self._relays.home else b""
        if address is None:
            self.counters["relays_refused"] += 1
            entry.link.relay_lost(server, self._loop.time())
        else:
            self._carriers.open(entry.key, server)
            self._relays.open(entry.key, server, address)

    def _close_relay(self, key: bytes, server: str) -> None:
        if self._carriers.close(key, server):
            self._relays.close(key, server)

    def _report_change(self, entry: Entry) -> None:
        state = self.state(entry.key)
        _log.debug("paths.changed", peer=format_key(entry.key), kind=state.kind, relay=state.relay)
        if self.on_change is not None:
            try:
                self.on_change(entry.key)
            except Exception as exc:
                self._report(exc, "the callback of a changed path failed")

    def _report(self, error: Exception, message: str) -> None:
        self._loop.call_exception_handler({"message": f"paths: {message}", "exception": error})

    # Time ------------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        at = min(self._timers.next, self._ice.deadline)
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
            self._timer = None
        if at < math.inf:
            self._timer_at = at
            self._timer = self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, math.inf
        now = self._loop.time()
        try:
            self._ice.advance(now)
            for key in self._timers.due(now):
                if (entry := self._entries.get(key)) is not None:
                    self._act(entry, lambda entry=entry: entry.link.advance(now))  # type: ignore[misc]
        finally:
            self._arm()

    async def _watch_quiet(self) -> None:
        """Let quiet peers of a large network sleep. Never returns."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self.look_for_quiet(self._loop.time())

    def look_for_quiet(self, now: float) -> None:
        """Let those peers sleep that may, and with which no data has passed for 15 minutes since they were in use."""
        if len(self._entries) <= EAGER_PEERS:
            return
        for peer in self._driver.engine.peers():
            entry = self._entries.get(peer.public_key)
            if entry is None or entry.link.path is None or not entry.link.lazy or self._in_use(entry.key):
                self._quiet.forget(peer.public_key)
            elif self._quiet.look(entry.key, peer.rx + peer.tx, now):
                self._quiet.forget(entry.key)
                self._act(entry, lambda entry=entry: entry.link.sleep(now))  # type: ignore[misc]

    def network_changed(self) -> None:
        """Make links that lack a direct path ask for one again: this host's addresses changed."""
        now = self._loop.time()
        for entry in list(self._entries.values()):
            self._act(entry, lambda entry=entry: entry.link.network_changed(now))  # type: ignore[misc]

    # Signal ----------------------------------------------------------------------------------------------------------

    def _on_message(self, key: bytes, message: Message) -> None:
        entry = self._roster.get(key)
        if entry is None:
            self.counters["messages_of_strangers"] += 1
            return
        now = self._loop.time()
        if not entry.admits(now):
            self.counters["messages_over_rate"] += 1
            return
        if isinstance(message, GoIdle) and self._in_use(key):
            self.counters["idle_while_in_use"] += 1
            return
        self._act(entry, lambda: entry.link.receive(message, now))

    def _refresh(self) -> None:
        """Signal or the home relay came or went: tell all links."""
        relays = self._relays
        local = replace(
            self._local,
            signal=self.signal_connected,
            relays=relays.is_on,
            relay_address=relays.home,
            relay_ip=relays.home_ip,
        )
        if local == self._local:
            return
        self._local = local
        now = self._loop.time()
        for entry in list(self._entries.values()):
            self._act(entry, lambda entry=entry: entry.link.local_changed(local, now))  # type: ignore[misc]

    # Relays ----------------------------------------------------------------------------------------------------------

    def _on_online(self, key: bytes, server: str) -> None:
        self._pass_on(key, lambda link, now: link.relay_ready(server, now))

    def _on_offline(self, key: bytes, server: str) -> None:
        self._pass_on(key, lambda link, now: link.relay_lost(server, now))

    def _on_datagrams(self, key: bytes, server: str, datagrams: list[bytes]) -> None:
        number = self._carriers.number(key, server)
        if number is None:
            self._drop(len(datagrams))
        else:
            self._driver.deliver(number, datagrams)

    def _send(self, key: bytes, hop: Hop, datagrams: Sequence[bytes]) -> None:
        if isinstance(hop, TurnPath):
            self._direct.send(hop, datagrams)
        else:
            self._relays.send(key, hop, datagrams)

    def _drop(self, count: int) -> None:
        self.counters["datagrams_without_path"] += count

    # ICE -------------------------------------------------------------------------------------------------------------

    def _on_candidate(self, key: bytes, generation: int, line: str) -> None:
        self._pass_on(key, lambda link, now: link.local_candidate(generation, line, now))

    def _on_selected(self, key: bytes, generation: int, event: Selected) -> None:
        if (entry := self._entries.get(key)) is not None:
            entry.types = (event.local_candidate_type, event.remote_candidate_type)
        path = event.endpoint if event.via is None else TurnPath(event.endpoint, event.via)
        self._pass_on(key, lambda link, now: link.ice_selected(generation, path, now))

    def _on_lost(self, key: bytes, generation: int) -> None:
        self._pass_on(key, lambda link, now: link.ice_lost(generation, now))
