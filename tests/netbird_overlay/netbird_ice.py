"""A scripted counterpart for ICE: what NetBird's agents were seen to do, with their quirks, for `nat.World`.

It shares the codec with the library and nothing else. Unlike ours it pairs each local candidate with each remote one,
never revives a failed pair while it is controlling, and appends attribute 0x8100 to all that it sends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.ice.candidates import format_candidate, letters, parse_candidate, priority, server_reflexive
from netbird_overlay.members import IceCredentials
from netbird_overlay.stun import Kind, Message, encode, parse
from tests.netbird_overlay.nat import Site, World

WAITS = {"host": 0.0, "srflx": 0.5, "prflx": 1.0, "relay": 2.0}
NO_ID = "0" * 32


@dataclass
class GoPair:
    """One local and one remote candidate. `state` is waiting, succeeded or failed."""

    local: str
    endpoint: Endpoint
    kind: str
    remote: str
    priority: int
    state: str = "waiting"
    sent: int = 0
    nominated: bool = False


class NetbirdAgent:
    """One agent of NetBird's on one socket, with two local candidates of the same address.

    Attributes:
        answer: what became of the session: `("selected", endpoint)`, `("failed", None)` or `("lost", None)`.
        lines: candidate lines that it sends.
    """

    def __init__(self, world: World, site: Site, endpoint: Endpoint, *, controlling: bool, stun: Endpoint) -> None:
        self.world, self.endpoint, self.controlling, self.stun = world, endpoint, controlling, stun
        self.random = Random(world.random.random())
        self.credentials = IceCredentials(letters(16, self.random.randbytes), letters(32, self.random.randbytes))
        self.locals = [letters(32, self.random.randbytes) for _ in range(2)]
        self.remote: IceCredentials | None = None
        self.pairs: list[GoPair] = []
        self.lines: list[str] = []
        self.answer: tuple[str, Endpoint | None] | None = None
        self.selected: GoPair | None = None
        self.heard = math.inf
        self._nominating: GoPair | None = None
        self._checks: dict[bytes, tuple[GoPair, bool]] = {}
        self._question = b""
        self._tick = math.inf
        self._began = math.inf
        self._transmits: list[tuple[bytes, Endpoint]] = []
        self.counters = {"without_agent": 0, "dropped": 0}
        site.hosts[endpoint] = self

    def start(self, remote: IceCredentials) -> None:
        """Make the agent, as an offer or answer lets it. Candidates from before are gone."""
        self.remote = remote
        self._began = self._tick = self.world.now
        host = f"1 1 udp {priority('host')} {self.endpoint.host} {self.endpoint.port} typ host"
        self.lines += [f"{host} ufrag {self.credentials.ufrag} cid {cid}" for cid in self.locals]
        self._question = self.random.randbytes(12)

    def add_remote(self, line: str) -> None:
        if self.remote is None:
            self.counters["without_agent"] += 1
            return
        candidate = parse_candidate(line)
        if not any(pair.endpoint == candidate.endpoint for pair in self.pairs):
            for local in self.locals:
                self.pairs.append(
                    GoPair(local, candidate.endpoint, candidate.type, candidate.cid or NO_ID, candidate.priority)
                )

    # Messages ---------------------------------------------------------------------------------------------------------

    def receive(self, datagram: bytes, source: Endpoint, now: float) -> None:
        message = parse(datagram)
        if source == self.stun:
            if message.transaction != self._question or message.mapped is None:
                return
            candidate = server_reflexive(message.mapped, self.endpoint, cid=letters(32, self.random.randbytes))
            self.lines.append(format_candidate(candidate))
            self._question = b""
            return
        if self.remote is None:
            self.counters["without_agent"] += 1
        elif message.kind is Kind.REQUEST:
            self._on_request(message, source, now)
        else:
            self._on_answer(message, source, now)

    def _on_request(self, request: Message, source: Endpoint, now: float) -> None:
        assert self.remote is not None
        names = f"{self.credentials.ufrag}:{self.remote.ufrag}"
        if request.username != names or not request.is_from(self.credentials.pwd):
            self.counters["dropped"] += 1
            return
        assert (request.controlling is None) == self.controlling, "nobody here changes roles"
        assert request.priority
        ids = request.candidate_ids
        local_id = ids[1] if ids else ""
        pairs = [pair for pair in self.pairs if pair.endpoint == source]
        if not pairs:
            remote = ids[0] if ids else NO_ID
            pairs = [GoPair(self.locals[0], source, "prflx", remote, request.priority)]
            self.pairs += pairs
        pair = next((each for each in pairs if each.local == local_id), pairs[0])
        swapped = (ids[1], ids[0]) if ids else (pair.local, pair.remote)
        answer = Message(Kind.SUCCESS, request.transaction, mapped=source, candidate_ids=swapped)
        self._transmits.append((encode(answer, self.credentials.pwd), source))
        self._hear(pair, now)
        if not self.controlling:
            pair.nominated = pair.nominated or request.use_candidate
            if pair.state == "succeeded":
                self._conclude(pair, now)
            else:
                pair.state, pair.sent = "waiting", min(pair.sent, 7)
                self._check(pair)

    def _on_answer(self, answer: Message, source: Endpoint, now: float) -> None:
        assert self.remote is not None
        pair, nominates = self._checks.pop(answer.transaction, (None, False))
        if pair is None or source != pair.endpoint or not answer.is_from(self.remote.pwd):
            self.counters["dropped"] += 1
            return
        assert answer.mapped is not None
        assert answer.candidate_ids == (pair.remote, pair.local), "the ids are swapped"
        pair.state = "succeeded"
        self._hear(pair, now)
        if self.controlling:
            if nominates:
                self._select(pair, now)
        else:
            self._conclude(pair, now)

    def _hear(self, pair: GoPair, now: float) -> None:
        if self.selected is not None and self.selected.endpoint == pair.endpoint:
            self.heard = now

    def _conclude(self, pair: GoPair, now: float) -> None:
        if pair.nominated:
            self._select(pair, now)

    def _select(self, pair: GoPair, now: float) -> None:
        if self.selected is None and self.answer is None:
            self.selected, self.heard = pair, now
            self.answer = ("selected", pair.endpoint)
            self._tick = now + 2.0

    def _check(self, pair: GoPair, *, nominates: bool = False) -> None:
        assert self.remote is not None
        transaction = self.random.randbytes(12)
        self._checks[transaction] = (pair, nominates)
        request = Message(
            Kind.REQUEST,
            transaction,
            username=f"{self.remote.ufrag}:{self.credentials.ufrag}",
            priority=priority("prflx"),
            use_candidate=nominates,
            controlling=7 if self.controlling else None,
            controlled=None if self.controlling else 7,
            candidate_ids=(pair.local, pair.remote),
        )
        self._transmits.append((encode(request, self.remote.pwd), pair.endpoint))

    # Time -------------------------------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        if self.answer in (("failed", None), ("lost", None)):
            return
        if now - self.heard >= 6.0:
            self.answer = ("lost", None)
            return
        if now < self._tick:
            return
        if self._question:
            self._transmits.append((encode(Message(Kind.REQUEST, self._question)), self.stun))
        if self.selected is not None:
            self._check(self.selected)
            self._tick = now + 2.0
            return
        if now - self._began >= 12.0:
            self.answer = ("failed", None)
            return
        self._tick = now + 0.2
        if self._nominating is not None:
            self._check(self._nominating, nominates=True)
            return
        ready = [each for each in self.pairs if each.state == "succeeded" and now - self._began >= WAITS[each.kind]]
        if self.controlling and ready:
            self._nominating = max(ready, key=lambda pair: pair.priority)
            self._check(self._nominating, nominates=True)
            return
        for pair in self.pairs:
            if pair.state == "waiting":
                pair.sent += 1
                if pair.sent > 8:
                    pair.state = "failed"
                else:
                    self._check(pair)

    @property
    def deadline(self) -> float:
        return min(self._tick, self.heard + 6.0) if self.answer not in (("failed", None), ("lost", None)) else math.inf

    def transmits(self) -> list[tuple[bytes, Endpoint]]:
        transmits, self._transmits = self._transmits, []
        return transmits
