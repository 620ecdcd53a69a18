"""The ICE agents of all links on the tunnel's one socket: candidates, timers, and which agent a datagram is for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Protocol

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.ice.agent import IceAgent, Selected
from netbird_overlay.ice.candidates import (
    BadCandidate,
    Candidate,
    Network,
    format_candidate,
    letters,
    parse_candidate,
    relayed,
    server_reflexive,
)
from netbird_overlay.paths.effects import StartIce
from netbird_overlay.paths.timers import Timers
from netbird_overlay.stun.client import StunClient
from netbird_overlay.stun.encoding import BadStun
from netbird_overlay.stun.messages import Kind, parse

CID_LETTERS: Final = 32
MAX_TRANSACTIONS: Final = 4096
"""Maximum number of unanswered checks, of all agents, whose answer is recognized. The oldest is forgotten."""
GATHER_SECONDS: Final = 5.0
"""Time from an agent's start in which the answer of a STUN server still becomes a candidate of it."""
_REQUEST: Final = Kind.REQUEST.to_bytes(2)
_STUN: Final = b""  # the key of the STUN client among the timers; no peer has it


@dataclass(slots=True)
class Session:
    """The agent of one peer."""

    key: bytes
    start: StartIce
    agent: IceAgent
    began: float
    hosts: Sequence[Candidate]
    reflexive: set[Endpoint]


class Turns(Protocol):
    """The allocations at TURN servers, which all sessions share."""

    def need(self, key: bytes) -> Sequence[Endpoint]:
        """Keep allocations for a session. Returns the relayed addresses that exist."""

    def release(self, key: bytes) -> None:
        """The session has ended."""

    def send(self, datagram: bytes, endpoint: Endpoint, via: Endpoint) -> None:
        """Send a datagram from a relayed address."""


class IceSessions:
    """All agents. Sans-IO; `send` takes each datagram that leaves.

    Args:
        gather: returns host candidates for a user name, with an id for each.
        on_candidate: called with key, generation and line of each candidate of ours.
        on_selected: called with key, generation and the pair.
        on_lost: called with key and generation when an agent found no pair, or lost it.
        excluded: returns the overlay's networks, where nothing is sent to and nothing taken from.
        turns: relayed addresses for sessions that need them; None without TURN servers.
    """

    def __init__(
        self,
        *,
        send: Callable[[bytes, Endpoint], None],
        random: Callable[[int], bytes],
        gather: Callable[[str, Callable[[], str]], Sequence[Candidate]],
        on_candidate: Callable[[bytes, int, str], None],
        on_selected: Callable[[bytes, int, Selected], None],
        on_lost: Callable[[bytes, int], None],
        excluded: Callable[[], Sequence[Network]] = tuple,
        loopback: bool = False,
        turns: Turns | None = None,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._send, self._random, self._gather = send, random, gather
        self._on_candidate, self._on_selected, self._on_lost = on_candidate, on_selected, on_lost
        self._excluded, self._loopback = excluded, loopback
        self._turns = turns
        self._owners: dict[tuple[Endpoint, Endpoint], bytes] = {}  # by the remote's endpoint and our relayed address
        self._stun = StunClient(random)
        self._servers: tuple[Endpoint, ...] = ()
        self._sessions: dict[bytes, Session] = {}
        self._keys: dict[str, bytes] = {}  # by our user name
        self._transactions: dict[bytes, bytes] = {}
        self._timers: Timers[bytes] = Timers()

    @property
    def deadline(self) -> float:
        return self._timers.next

    def use_servers(self, servers: Sequence[Endpoint]) -> None:
        """Replace the STUN servers that later sessions ask."""
        self._servers = tuple(servers)

    # Sessions --------------------------------------------------------------------------------------------------------

    def start(self, key: bytes, start: StartIce, now: float) -> None:
        """Make the agent of a peer, and gather its candidates. An earlier one of this peer ends."""
        self._end(key)
        excluded = self._excluded()
        agent = IceAgent(
            local=start.local,
            remote=start.remote,
            controlling=start.controlling,
            tie_breaker=int.from_bytes(self._random(8)),
            random=self._random,
            now=now,
            excluded=excluded,
            loopback=self._loopback,
        )
        hosts = self._gather(start.local.ufrag, self._new_id)
        session = self._sessions[key] = Session(key, start, agent, now, hosts, set())
        self._keys[start.local.ufrag] = key
        for candidate in hosts:
            self._add_local(session, candidate)
        if self._servers:
            self._stun.query(self._servers, now)
            self._add_reflexive(session, now)
            self._flush_stun(now)
        if start.relayed and self._turns is not None:
            for via in self._turns.need(key):
                self._add_relayed(session, via)
        self._flush(session, now)

    def stop(self, key: bytes, generation: int) -> bool:
        """End an agent. False if it has ended before."""
        session = self._sessions.get(key)
        if session is None or session.start.generation != generation:
            return False
        self._end(key)
        return True

    def _end(self, key: bytes) -> None:
        session = self._sessions.pop(key, None)
        if session is None:
            return
        self._timers.set(key, math.inf)
        if session.start.relayed and self._turns is not None:
            self._turns.release(key)
            self._owners = {ends: owner for ends, owner in self._owners.items() if owner != key}
        if self._keys.get(session.start.local.ufrag) == key:
            del self._keys[session.start.local.ufrag]

    def add_remote(self, key: bytes, generation: int, line: str, now: float) -> None:
        """Give a candidate of the peer to its agent. A bad line is counted."""
        session = self._sessions.get(key)
        if session is None or session.start.generation != generation:
            return
        try:
            candidate = parse_candidate(line)
        except BadCandidate:
            self.counters["bad_candidates"] += 1
            return
        session.agent.add_remote(candidate, now)
        session.agent.advance(now)
        self._flush(session, now)

    # Candidates ------------------------------------------------------------------------------------------------------

    def _new_id(self) -> str:
        return letters(CID_LETTERS, self._random)

    def _add_local(self, session: Session, candidate: Candidate) -> None:
        session.agent.add_local(candidate)
        self._on_candidate(session.key, session.start.generation, format_candidate(candidate))

    def _add_reflexive(self, session: Session, now: float) -> None:
        """Add the addresses that STUN servers report, unless they are the machine's own: then there is no NAT."""
        hosts = {candidate.endpoint for candidate in session.hosts}
        for mapped in self._stun.reflexive(now):
            if mapped in session.reflexive or mapped in hosts:
                continue
            session.reflexive.add(mapped)
            version = ip_address(mapped.host).version
            bases = (host.endpoint for host in session.hosts if ip_address(host.endpoint.host).version == version)
            base = next(bases, None)
            if base is not None:
                ufrag = session.start.local.ufrag
                self._add_local(session, server_reflexive(mapped, base, cid=self._new_id(), ufrag=ufrag))

    def add_relayed(self, via: Endpoint, now: float) -> None:
        """A TURN server relays for us at this address: a candidate for sessions that need one and began lately."""
        for session in list(self._sessions.values()):
            if session.start.relayed and now - session.began <= GATHER_SECONDS:
                self._add_relayed(session, via)
                session.agent.advance(now)
                self._flush(session, now)

    def _add_relayed(self, session: Session, via: Endpoint) -> None:
        self._add_local(session, relayed(via, cid=self._new_id(), ufrag=session.start.local.ufrag))

    def owner(self, endpoint: Endpoint, via: Endpoint) -> bytes | None:
        """Return the peer that an authentic message showed at this endpoint, by this relayed address of ours."""
        return self._owners.get((endpoint, via))

    # Datagrams and time ----------------------------------------------------------------------------------------------

    def receive(self, datagram: bytes, source: Endpoint, now: float, via: Endpoint | None = None) -> None:
        """Give a datagram that looks like STUN to the part that it is for; others are counted.

        Args:
            via: our relayed address that it came by; None for the socket.
        """
        try:
            message = parse(datagram)
        except BadStun:
            self.counters["malformed"] += 1
            return
        if message.kind is Kind.REQUEST:
            key = self._keys.get(message.username.partition(":")[0])
        elif via is None and self._stun.pending and self._stun.receive(datagram, source, now):
            self._flush_stun(now)
            return
        else:
            key = self._transactions.get(message.transaction)
        session = self._sessions.get(key) if key is not None else None
        if session is None or not session.agent.receive(datagram, source, now, via):
            self.counters["strays_of_no_session"] += 1
            return
        if via is not None and session.agent.knows(source, via):
            self._owners[source, via] = session.key
        self._flush(session, now)

    def advance(self, now: float) -> None:
        for key in self._timers.due(now):
            if key == _STUN:
                self._stun.advance(now)
                self._flush_stun(now)
            elif (session := self._sessions.get(key)) is not None:
                session.agent.advance(now)
                self._flush(session, now)

    def _flush_stun(self, now: float) -> None:
        for datagram, endpoint in self._stun.transmits():
            self._send(datagram, endpoint)
        self._timers.set(_STUN, self._stun.deadline)
        if self._stun.events():
            for session in list(self._sessions.values()):
                if now - session.began <= GATHER_SECONDS:
                    self._add_reflexive(session, now)
                    self._flush(session, now)

    def _flush(self, session: Session, now: float) -> None:
        """Send what the agent has to send, and report what it has to report, which may end the session."""
        for datagram, endpoint in session.agent.transmits():
            self._remember(datagram, session.key)
            self._send(datagram, endpoint)
        for datagram, endpoint, via in session.agent.relayed():
            self._remember(datagram, session.key)
            if self._turns is not None:
                self._turns.send(datagram, endpoint, via)
        self._timers.set(session.key, session.agent.deadline)
        for event in session.agent.events():
            if self._sessions.get(session.key) is not session:
                return
            if isinstance(event, Selected):
                self._on_selected(session.key, session.start.generation, event)
            else:
                self._on_lost(session.key, session.start.generation)

    def _remember(self, datagram: bytes, key: bytes) -> None:
        """Remember whose check a datagram is, for its answer."""
        if datagram[:2] == _REQUEST:
            self._transactions[datagram[8:20]] = key
            if len(self._transactions) > MAX_TRANSACTIONS:
                del self._transactions[next(iter(self._transactions))]
