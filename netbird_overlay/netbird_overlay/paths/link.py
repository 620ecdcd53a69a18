"""One peer's link: negotiates by signal messages which path carries the peer's datagrams, and guards that path.

NetBird's agents follow the same rules, so the two ends need no common leader. Both ends offer; each answers. A relay
carries the first datagrams, ICE replaces it when a direct pair of addresses works, and the relay stays as the standby.

Sans-IO: each input names the time, and `take` returns the effects that the input had, in order. `deadline` is the time
at which `advance` has work. Nothing here raises because of a peer's message.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.ice.candidates import letters
from netbird_overlay.members import IceCredentials
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
from netbird_overlay.paths.guard import Guard, Status
from netbird_overlay.paths.trickle import Trickle, is_for
from netbird_overlay.signal.messages import Answer, GoIdle, Message, Negotiation, Offer, RemoteCandidate
from netbird_wire.envelope import format_key

SESSION_BYTES: Final = 5
UFRAG_LETTERS, PWD_LETTERS = 16, 32
FIRST_HANDSHAKE: Final = 30.0
"""Seconds in which the first handshake must complete after a path came up."""
NEXT_HANDSHAKE: Final = 210.0
"""Seconds from one handshake to the next: WireGuard renews a session in use after 120 s and gives up after 90 more."""
FRESH_HANDSHAKE: Final = 5.0
"""Age in seconds up to which a session surely outlives an offer. The sender of an offer may have restarted and lost an
older one, and a path through a relay shows no other sign of that."""
LIVE_SESSION: Final = 150.0
"""Age in seconds up to which a session surely still carries data."""
RELAY_WAIT: Final = 30.0
"""Seconds for which a subscription waits for the peer. A later message of the peer opens it again."""
AGENT_BURST, AGENT_INTERVAL = 6.0, 5.0
"""Number of ICE agents that a peer's messages may create at once, and seconds for a further one. Each of them sends all
our candidates, so that a flood of sessions would use up what the signal server lets us send to others."""
WAKE_INTERVAL: Final = 1.0
"""Shortest time in seconds between the offers that dials cause."""
ASK_INTERVAL: Final = 1.0
"""Shortest time in seconds between two handshakes that the link starts, however many offers arrive."""


class PeerLink:
    """The negotiation with one peer.

    Args:
        local: the state of our own side.
        begin: the time of the first offer; None for now.
        draw: returns that many random bytes.
        pick: returns a random number between two bounds.
        lazy: True if the peer may close its side while no data passes, and opens it again on an offer.
        agent: False for a peer that probably runs plain WireGuard and never answers an offer.
        idle: begin asleep, until a dial or an offer of the peer.

    Attributes:
        path: the path that datagrams to the peer take; None while it has none, or plain WireGuard roams by itself.
        since: the time at which `path` became what it is.
        idle: True while no path is wanted, because no data passes.
        sessions_dropped: sessions of the peer beyond those that may begin.
    """

    def __init__(
        self,
        own_key: bytes,
        remote_key: bytes,
        local: LocalSide,
        now: float,
        *,
        draw: Callable[[int], bytes],
        pick: Callable[[float, float], float],
        begin: float | None = None,
        lazy: bool = False,
        agent: bool = True,
        idle: bool = False,
    ) -> None:
        # Both ends compare the texts, so that exactly one of them is the controller; the bytes order differently.
        self.controller = format_key(own_key) > format_key(remote_key)
        self.path: Path | None = None
        self.since = now
        self.idle = idle
        self.sessions_dropped = 0
        self.lazy, self.agent = lazy, agent
        self._local, self._draw = local, draw
        self._guard = Guard(now if begin is None else begin, pick)
        if idle:
            self._guard.rest()
        self._effects: list[Effect] = []
        self._credentials = IceCredentials(letters(UFRAG_LETTERS, draw), letters(PWD_LETTERS, draw))
        self._session = draw(SESSION_BYTES)
        self._offered_session = b""  # the session in our last offer
        self._offered_ready = False  # an offer has left that named everything we have
        self._offered_at = -math.inf
        self._last: Negotiation | None = None  # the peer's last offer or answer
        self._remote_ice = True
        self._generation = 0
        self._agents_left, self._counted_at = AGENT_BURST, now
        self._remote: IceCredentials | None = None  # of the running agent; None without an agent
        self._remote_session = b""
        self._selected: Endpoint | TurnPath | None = None
        self._was_direct = False
        self._trickle = Trickle(lambda line: self._send(RemoteCandidate(line)))
        self._relays: dict[str, float] = {}  # server → end of the wait; infinity while the peer is online there
        self._handshake_at = self._handshake_asked = -math.inf
        self._watch_at = math.inf

    def take(self) -> list[Effect]:
        """Take the effects since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    @property
    def deadline(self) -> float:
        return min(
            self._guard.at, self._watch_at, self._trickle.repeat_at, min(self._relays.values(), default=math.inf)
        )

    @property
    def relay_online(self) -> bool:
        return math.inf in self._relays.values()

    @property
    def dropped(self) -> int:
        """Number of candidates of the peer that were pushed out, and of its sessions that could not begin."""
        return self._trickle.dropped + self.sessions_dropped

    @property
    def answers(self) -> bool:
        """False for a peer that probably runs plain WireGuard, and has never sent an offer or answer."""
        return self.agent or self._last is not None

    @property
    def generation(self) -> int:
        """The number of the running ICE agent; 0 without one."""
        return self._generation if self._remote is not None else 0

    def status(self) -> Status:
        """The link's completeness: `partial` if only the relay works although a direct path may be possible."""
        relay_usable = self._relay_usable()
        relay_up = relay_usable and self.relay_online
        if not (self._local.ice and self._remote_ice):
            return "connected" if relay_up else "disconnected"
        if self._remote is not None and (relay_up or not relay_usable):
            return "connected"
        return "partial" if relay_up else "disconnected"

    def _relay_usable(self) -> bool:
        return bool(self._local.relay_address and self._last is not None and self._last.relay_address)

    # Time ----------------------------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Perform due work."""
        self._trickle.advance(now)
        for server, until in list(self._relays.items()):
            if until <= now:
                self._close_relay(server, now)
        if self._watch_at <= now:
            self._give_up_path(now)
        if self._guard.at <= now:
            self._tick(now)

    def _tick(self, now: float) -> None:
        status = self.status()
        if status == "disconnected" and not self.answers:
            status = "partial"  # plain WireGuard never answers: three offers, then one an hour
        if self._guard.tick(status, now, hopeful=self._was_direct) and self._local.signal:
            self._offer(now)

    def _offer(self, now: float) -> None:
        self._offered_session, self._offered_at = self._session, now
        self._offered_ready = self._offered_ready or self._local.ready
        self._send(Offer(self._negotiation()))

    def _negotiation(self) -> Negotiation:
        """Our side of the negotiation.

        The credentials are in it also while the peer sends none: a peer may only believe that we have no ICE, and if
        both sides kept quiet for that reason, neither would ever speak again.
        """
        local = self._local
        return Negotiation(
            credentials=self._credentials if local.ice else None,
            listen_port=local.listen_port,
            version=local.version,
            relay_address=local.relay_address,
            relay_ip=local.relay_ip,
            session_id=self._session if local.ice else b"",
        )

    # Inputs --------------------------------------------------------------------------------------------------------

    def receive(self, message: Message, now: float) -> None:
        """Process a message of the peer. The caller verified the sender."""
        match message:
            case Offer(negotiation):
                self._wake_up(now, offered=True)
                self._negotiate(negotiation, now, offer=True)
            case Answer(negotiation):
                if not self.idle:  # a late answer to an old offer does not wake the link
                    self._negotiate(negotiation, now, offer=False)
            case RemoteCandidate(line):
                self._take_candidate(line, now)
            case GoIdle() if self.lazy:
                self._go_idle(now)

    def local_changed(self, local: LocalSide, now: float) -> None:
        """Our own side changed: signal or relay came or went."""
        before, self._local = self._local, local
        if not local.relays:
            for server in list(self._relays):
                self._close_relay(server, now)
        if not local.ice and self._remote is not None:
            self._drop_agent(now)
        if self.idle:
            return
        if local.ready and (not before.ready or before.relay_address != local.relay_address):
            if self._last is not None:
                self._join_relay(self._last, now)
            if self._offered_ready:
                self._guard.hasten(now)
            else:
                self._guard.begin(now)
        elif local.signal and not before.signal and self._offered_at == -math.inf:
            self._guard.begin(now)

    def network_changed(self, now: float) -> None:
        """The addresses of this host changed, so that a direct path may have become possible."""
        if not self.idle:
            self._guard.hasten(now)

    def wake(self, now: float) -> None:
        """A dial needs the peer: make sure that it knows, if it may be away or idle."""
        if self.idle:
            self._wake_up(now, offered=False)
            return
        away = self.path is None or (self.lazy and now - self._handshake_at > LIVE_SESSION)
        if away and self._local.signal and now - self._offered_at >= WAKE_INTERVAL:
            self._offer(now)

    def sleep(self, now: float) -> None:
        """No data has passed for long: close the path and tell the peer, which may sleep, to do so too."""
        if self.lazy and not self.idle:
            self._send(GoIdle())
            self._go_idle(now)

    def close(self, now: float) -> None:
        """Close all paths, without a word to the peer. The link must not be used any more."""
        self._close_all(now)

    def handshaken(self, now: float, *, renewed: bool = True) -> None:
        """A WireGuard handshake with the peer completed. `renewed`: keepalives renew it, so a next one must come."""
        self._handshake_at = now
        if self.path is not None:
            self._watch_at = now + NEXT_HANDSHAKE if renewed else math.inf

    # Offers and answers ----------------------------------------------------------------------------------------------

    def _negotiate(self, negotiation: Negotiation, now: float, *, offer: bool) -> None:
        self._last = negotiation
        self._remote_ice = negotiation.credentials is not None
        if not self._remote_ice and self._remote is not None:
            self._drop_agent(now)
        self._join_relay(negotiation, now)
        if negotiation.credentials is not None and self._local.ice:
            self._join_ice(negotiation, negotiation.credentials, now, offer=offer)
        if offer:
            if isinstance(self.path, RelayPath) and now - self._handshake_at > FRESH_HANDSHAKE:
                self._ask_handshake(now)
            self._send(Answer(self._negotiation()))
        if self._remote is not None:
            self._trickle.release(now)

    def _join_relay(self, negotiation: Negotiation, now: float) -> None:
        if not (self._local.relays and self._local.relay_address and negotiation.relay_address):
            return
        server, ip = (self._local.relay_address, b"")
        if not self.controller:
            server, ip = negotiation.relay_address, negotiation.relay_ip
            if server == self._local.relay_address:
                ip = b""
        if server in self._relays:
            return
        # The relay in use stays until the peer is online at the new one. A third one replaces the second.
        for other, until in list(self._relays.items()):
            if until != math.inf:
                self._close_relay(other, now)
        self._relays[server] = now + RELAY_WAIT
        self._effects.append(OpenRelay(server, ip))

    def _join_ice(self, negotiation: Negotiation, remote: IceCredentials, now: float, *, offer: bool) -> None:
        if self._remote is not None and negotiation.session_id in (b"", self._remote_session):
            return
        if not self._may_create_agent(now):
            return  # the peer's later offers repeat the session
        if self._remote is not None:
            # An answer shows that the peer's agent was made for our last offer. A new session of ours would be news to
            # the peer, and its answer to that news another session; so it stays where the peer knows it already.
            keep = not offer and self._session == self._offered_session
            self._drop_agent(now, restarted=True, keep_session=keep)
        self._generation += 1
        self._remote, self._remote_session = remote, negotiation.session_id
        self._effects.append(self._start_ice(remote))
        for line in self._trickle.begin(remote.ufrag, now):
            self._effects.append(AddRemoteCandidate(self._generation, line))

    def _start_ice(self, remote: IceCredentials) -> StartIce:
        relayed = not self._relay_usable()  # as NetBird's agents: TURN servers only where one side has no relay
        return StartIce(self._generation, self._credentials, remote, self.controller, relayed)

    def _may_create_agent(self, now: float) -> bool:
        self._agents_left = min(AGENT_BURST, self._agents_left + (now - self._counted_at) / AGENT_INTERVAL)
        self._counted_at = now
        if self._agents_left < 1:
            self.sessions_dropped += 1
            return False
        self._agents_left -= 1
        return True

    def _drop_agent(self, now: float, *, restarted: bool = False, keep_session: bool = False) -> None:
        """End the agent. `restarted`: because the peer began another session."""
        was_selected, reset = self._selected is not None, restarted and self.controller and bool(self._remote_session)
        self._effects.append(StopIce(self._generation))
        self._remote, self._selected, self._remote_session = None, None, b""
        self._trickle.end()
        if not keep_session:
            self._session = self._draw(SESSION_BYTES)
        if not was_selected:
            return
        self._fall_back(now)
        if not self.idle:
            self._guard.hasten(now)
        if reset:
            self._effects.append(ResetSession())
            self._handshake_at = self._handshake_asked = -math.inf
        if self.path is not None and restarted and now - self._handshake_at > FRESH_HANDSHAKE:
            self._watch_at = now + FIRST_HANDSHAKE
            self._ask_handshake(now)

    # Candidates ------------------------------------------------------------------------------------------------------

    def _take_candidate(self, line: str, now: float) -> None:
        """Give a candidate to the agent that it is meant for, and keep it for the agent that may follow."""
        self._trickle.keep(line, now)
        if self._remote is not None and is_for(line, self._remote.ufrag):
            self._effects.append(AddRemoteCandidate(self._generation, line))
            self._trickle.release(now)

    def local_candidate(self, generation: int, line: str, now: float) -> None:
        """Our agent gathered a candidate."""
        if generation == self.generation:
            self._trickle.add(line, now)

    # Paths -----------------------------------------------------------------------------------------------------------

    def relay_ready(self, server: str, now: float) -> None:
        """The peer is online at a relay that the link opened."""
        if server not in self._relays:
            return
        self._relays[server] = math.inf
        for other in [other for other in self._relays if other != server]:
            del self._relays[other]
            self._effects.append(CloseRelay(other))
        if self._selected is None:
            self._use(RelayPath(server), now)
            # Also by the end that would leave it to the other: that end may hold a session that we lost in a restart.
            self._start_handshake(now)

    def relay_lost(self, server: str, now: float) -> None:
        """The relay reported the peer as gone, or our connection to the relay ended."""
        if server in self._relays:
            self._close_relay(server, now)

    def _close_relay(self, server: str, now: float) -> None:
        online = self._relays.pop(server) == math.inf
        self._effects.append(CloseRelay(server))
        if self.path == RelayPath(server):
            self._use(None, now)
        if online and not self.idle:
            self._guard.hasten(now)

    def ice_selected(self, generation: int, path: Endpoint | TurnPath, now: float) -> None:
        """Our agent found a pair of addresses that works in both directions."""
        if generation != self.generation:
            return
        before, self._selected, self._was_direct = self.path, path, True
        self._use(path, now)
        if before is None or now - self._handshake_at > LIVE_SESSION:
            self._ask_handshake(now)

    def ice_lost(self, generation: int, now: float) -> None:
        """Our agent found no pair, or the pair stopped working."""
        if generation == self.generation and generation:
            self._drop_agent(now)

    def _use(self, path: Path | None, now: float) -> None:
        if path == self.path:
            return
        if path is None:
            self._effects.append(Unpin())
            self._watch_at = math.inf
        else:
            self._effects.append(Pin(path))
            if self.path is None:
                self._watch_at = now + FIRST_HANDSHAKE
        self.path, self.since = path, now

    def _fall_back(self, now: float) -> None:
        online = [server for server, until in self._relays.items() if until == math.inf]
        self._use(RelayPath(online[0]) if online else None, now)

    def _give_up_path(self, now: float) -> None:
        """The session was not renewed in time, so the path does not work, in spite of all that was reported of it."""
        self._watch_at = math.inf
        match self.path:
            case RelayPath(server):
                self._close_relay(server, now)
            case None:
                pass
            case _:
                self._drop_agent(now)
                if self.path is not None:
                    self._watch_at = now + FIRST_HANDSHAKE
                    self._ask_handshake(now)

    def _ask_handshake(self, now: float) -> None:
        if now - self._handshake_asked >= ASK_INTERVAL:
            self._start_handshake(now)

    def _start_handshake(self, now: float) -> None:
        self._handshake_asked = now
        self._effects.append(StartHandshake())

    # Idle peers ------------------------------------------------------------------------------------------------------

    def _go_idle(self, now: float) -> None:
        self.idle = True
        self._close_all(now)
        self._guard.rest()

    def _wake_up(self, now: float, *, offered: bool) -> None:
        if not self.idle:
            return
        self.idle = False
        if offered:  # our answer completes the exchange; our own offer follows if it does not
            self._guard.hasten(now)
        else:
            self._guard.begin(now)
            self._tick(now)

    def _close_all(self, now: float) -> None:
        for server in list(self._relays):  # first, so that the end of the agent does not fall back to them
            self._close_relay(server, now)
        if self._remote is not None:
            self._drop_agent(now)
        self._trickle.forget()

    def _send(self, message: Message) -> None:
        self._effects.append(SendMessage(message))
