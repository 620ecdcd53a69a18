"""One ICE session: finds the address pair on which two sockets reach each other, and watches it for its life.

No socket, clock or randomness of its own. A session is never restarted: new credentials are a new agent. What timings
there are follow NetBird's agents, so that both sides give up and try again at about the same time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.ice.candidates import (
    Candidate,
    CandidateType,
    Network,
    is_usable,
    priority,
    with_forwarded_port,
)
from netbird_overlay.ice.pairs import AnswerBudget, Pair, Pairs, State
from netbird_overlay.members import IceCredentials
from netbird_overlay.stun import BadStun, Kind, Message, encode, parse

CHECK_INTERVAL: Final = 0.2
MAX_UNANSWERED: Final = 8
"""Unanswered checks after which a pair has failed; a request from its address revives it."""
TRIGGERED_GAP: Final = 0.05
"""Least time between two checks of one pair, so that a flood of requests makes no flood of checks."""
CONNECT_TIMEOUT: Final = 12.0
KEEPALIVE_INTERVAL: Final = 2.0
LOST_AFTER: Final = 6.0
"""Time without an authentic message on the selected pair after which the path counts as gone."""
SILENT_AFTER: Final = 3.0
"""Time without one after which a controlled side follows a nomination of lower priority."""
TRANSACTION_LIFE: Final = 4.0
ACCEPTANCE_WAITS: Final[dict[CandidateType, float]] = {"host": 0.0, "srflx": 0.5, "prflx": 1.0, "relay": 2.0}
"""Time since the start during which a pair with such a candidate is not nominated: a better one may come."""
MAX_LOCALS: Final = 32
MAX_TRANSMITS: Final = 256
MAX_REMEMBERED: Final = 256
ROLE_CONFLICT: Final = 487


@dataclass(frozen=True, slots=True)
class Selected:
    """Both sides use this pair from now on. Comes again if the controlling side nominates another.

    Attributes:
        via: our relayed address that the pair begins at; None for the socket.
    """

    endpoint: Endpoint
    remote_candidate_type: CandidateType
    local_candidate_type: CandidateType
    via: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """No pair was selected in 12 s. The agent answers on, and selects nothing any more."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The selected pair was silent for 6 s. The agent answers on, and selects nothing any more."""


Event = Selected | Failed | Lost


@dataclass(frozen=True, slots=True)
class _Check:
    pair: Pair
    sent: float
    nominates: bool
    controlling: bool


class IceAgent:
    """One side of a session.

    Args:
        local, remote: the credentials of both sides; those of the remote from its offer or answer.
        controlling: True for the side that nominates.
        tie_breaker: 64 random bits, for two sides of the same role.
        random: `random(n)` returns n unpredictable bytes.
        excluded: the overlay's networks; nothing is sent there, and nothing taken from there.
        loopback: also use loopback addresses, for tests.

    Attributes:
        counters: messages and candidates that were dropped, by reason.
        selected: the pair in use, or None.
    """

    def __init__(
        self,
        *,
        local: IceCredentials,
        remote: IceCredentials,
        controlling: bool,
        tie_breaker: int,
        random: Callable[[int], bytes],
        now: float,
        excluded: Sequence[Network] = (),
        loopback: bool = False,
    ) -> None:
        self.controlling = controlling
        self.counters: Counter[str] = Counter()
        self.selected: Pair | None = None
        self._local, self._remote = local, remote
        self._tie_breaker = tie_breaker
        self._random = random
        self._excluded, self._loopback = tuple(excluded), loopback
        self._began = self._now = now
        self._over = False
        self._locals: dict[Endpoint, Candidate] = {}
        self._pairs = Pairs(self.counters)
        self._nominating: Pair | None = None
        self._keepalive_due = math.inf
        self._checks: dict[bytes, _Check] = {}
        self._budget = AnswerBudget()
        self._remembered: dict[bytes, None] = {}
        self._transmits: list[tuple[bytes, Endpoint, Endpoint | None]] = []
        self._events: list[Event] = []

    # Candidates --------------------------------------------------------------------------------------------------

    def add_local(self, candidate: Candidate) -> None:
        """Add an address of this side. Remote candidates of a family are checked once a local one of it exists."""
        if len(self._locals) < MAX_LOCALS:
            self._locals.setdefault(candidate.endpoint, candidate)
            if candidate.type == "relay":
                self._pairs.add_base(candidate.endpoint)
            for pair in self._pairs:
                self._begin(pair)

    def add_remote(self, candidate: Candidate, now: float) -> None:
        """Add an address that the remote named, at any time; unusable, repeated and superfluous ones are dropped."""
        self._now = now
        if candidate.ufrag not in ("", self._remote.ufrag):
            self.counters["candidates_of_other_sessions"] += 1
            return
        for each in with_forwarded_port(candidate):
            if not is_usable(each.endpoint, excluded=self._excluded, loopback=self._loopback):
                self.counters["candidates_unusable"] += 1
            else:
                for pair in self._pairs.add(each):
                    self._begin(pair)

    def _begin(self, pair: Pair) -> None:
        if pair.sent == -math.inf and self._local_of(pair) is not None and self.selected is None:
            pair.due = self._now

    def _local_of(self, pair: Pair) -> Candidate | None:
        """Return the best local candidate of the pair's base and family."""
        version = ip_address(pair.endpoint.host).version
        if pair.via is not None:
            return self._locals.get(pair.via) if ip_address(pair.via.host).version == version else None
        own = (
            each
            for each in self._locals.values()
            if each.type != "relay" and ip_address(each.endpoint.host).version == version
        )
        return max(own, key=lambda each: each.priority, default=None)

    # Datagrams ---------------------------------------------------------------------------------------------------

    def receive(self, datagram: bytes, source: Endpoint, now: float, via: Endpoint | None = None) -> bool:
        """Take a datagram. False if it is none of this session's messages, so that another agent may look at it.

        Args:
            via: our relayed address that it came by; None for the socket.
        """
        self._now = now
        try:
            message = parse(datagram)
        except BadStun:
            self.counters["malformed"] += 1
            return False
        if message.kind is Kind.REQUEST:
            return self._on_request(message, source, now, via)
        if message.kind is Kind.INDICATION or message.transaction not in self._checks:
            self.counters["of_no_check"] += 1
            return False
        self._on_response(message, source, now, via)
        return True

    def _on_request(self, request: Message, source: Endpoint, now: float, via: Endpoint | None) -> bool:
        to, _, sender = request.username.partition(":")
        if to != self._local.ufrag:
            self.counters["unknown_credentials"] += 1
            return False
        if sender != self._remote.ufrag or not request.is_from(self._local.pwd):
            self.counters["unknown_credentials"] += 1
        elif (request.controlling is None) == (request.controlled is None):
            self.counters["malformed"] += 1
        elif not is_usable(source, excluded=self._excluded, loopback=self._loopback):
            self.counters["sources_unusable"] += 1
        elif not self._budget.spend(source, now):
            self.counters["answers_refused"] += 1
        elif self._loses_role(request):
            self._answer(request, source, via, error=ROLE_CONFLICT)
        else:
            self._answer(request, source, via)
            if self._is_repeated(request):
                self.counters["repeated"] += 1
            elif not self._over:
                self._on_check(request, source, now, via)
        return True

    def _loses_role(self, request: Message) -> bool:
        """Settle a conflict of roles (RFC 8445 §7.3.1.1). True if the remote is to switch, else this side did."""
        theirs = request.controlling if self.controlling else request.controlled
        if theirs is None:
            return False
        if (self._tie_breaker >= theirs) == self.controlling:
            return True
        self._switch_role()
        return False

    def _switch_role(self) -> None:
        self.controlling = not self.controlling
        self._nominating = None
        for pair in self._pairs:  # nominations of the other role do not count any more
            pair.nominated = pair is self.selected
        self.counters["roles_switched"] += 1

    def _answer(self, request: Message, source: Endpoint, via: Endpoint | None, *, error: int | None = None) -> None:
        ids = request.candidate_ids
        answer = Message(
            Kind.SUCCESS if error is None else Kind.ERROR,
            request.transaction,
            mapped=source if error is None else None,
            error=error,
            candidate_ids=(ids[1], ids[0]) if ids else None,
        )
        self._send(encode(answer, self._local.pwd), source, via)

    def _is_repeated(self, request: Message) -> bool:
        """Return True for a request that came before: it may be answered, and must change nothing.

        A recording of an authentic request keeps no dead path alive, and makes no pairs with forged addresses.
        """
        if request.transaction in self._remembered:
            return True
        self._remembered[request.transaction] = None
        if len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        return False

    def _on_check(self, request: Message, source: Endpoint, now: float, via: Endpoint | None) -> None:
        pair = self._pairs.get(source, via)
        if pair is None:
            cid = request.candidate_ids[0] if request.candidate_ids else ""
            pair = self._pairs.discover(source, request.priority, cid, via)
            if pair is None:
                return
        pair.heard = now
        if request.use_candidate and not self.controlling:
            pair.nominated = True
        if pair.state is State.SUCCEEDED:
            self._conclude(pair, now)
        elif self.selected is None or pair.nominated:
            pair.state = State.CHECKING
            pair.unanswered = 0
            pair.due = max(now, pair.sent + TRIGGERED_GAP)
            self._check_due(now)

    def _on_response(self, response: Message, source: Endpoint, now: float, via: Endpoint | None) -> None:
        check = self._checks[response.transaction]
        pair = check.pair
        if not response.is_from(self._remote.pwd):
            self.counters["unknown_credentials"] += 1
            return
        if (source, via) != (pair.endpoint, pair.via):
            self.counters["answers_from_elsewhere"] += 1
            return
        del self._checks[response.transaction]
        if now - check.sent >= TRANSACTION_LIFE or self._pairs.get(source, via) is not pair:
            self.counters["late"] += 1
            return
        pair.heard = now
        pair.unanswered = 0
        if self._over:
            return
        if response.kind is Kind.ERROR:
            self._on_error(response, check, now)
        elif response.mapped is None:
            self.counters["malformed"] += 1
        else:
            local = self._locals.get(response.mapped)
            pair.local_type = local.type if local else "prflx"
            pair.state = State.SUCCEEDED
            if pair is not self._nominating:
                pair.due = math.inf
            elif check.nominates:
                pair.nominated = True
            self._conclude(pair, now)

    def _on_error(self, response: Message, check: _Check, now: float) -> None:
        if response.error != ROLE_CONFLICT:
            self.counters["checks_refused"] += 1
            if check.pair is self.selected:
                return
            check.pair.state, check.pair.due = State.FAILED, math.inf
            if self._nominating is check.pair:
                self._nominating = None
        elif check.controlling == self.controlling:
            self._switch_role()
            self._tie_breaker = int.from_bytes(self._random(8))
            check.pair.due = max(now, check.pair.sent + TRIGGERED_GAP)
            self._check_due(now)

    # Nomination --------------------------------------------------------------------------------------------------

    def _conclude(self, pair: Pair, now: float) -> None:
        """Select a pair on which a check of this side succeeded and which is nominated; else nominate the best."""
        if pair.nominated:
            self._select(pair, now)
        else:
            self._nominate(now)

    def _nominate(self, now: float) -> None:
        if not self.controlling or self._nominating is not None or self.selected is not None:
            return
        ready = [
            pair
            for pair in self._pairs
            if pair.state is State.SUCCEEDED and now >= self._began + _acceptance_wait(pair)
        ]
        if ready:
            self._nominating = pair = max(ready, key=self._priority)
            pair.unanswered = 0
            pair.due = now
            self._check_due(now)

    def _select(self, pair: Pair, now: float) -> None:
        current = self.selected
        if pair is current:
            return
        if current is not None and now - current.heard < SILENT_AFTER and self._ranks_below(pair, current):
            return
        self.selected, self._nominating = pair, None
        self._keepalive_due = now + KEEPALIVE_INTERVAL
        for each in self._pairs:
            each.due = math.inf
        self._events.append(Selected(pair.endpoint, pair.remote.type, pair.local_type, pair.via))

    def _ranks_below(self, pair: Pair, other: Pair) -> bool:
        return self._priority(pair) < self._priority(other)

    def _priority(self, pair: Pair) -> int:
        local = self._local_of(pair)
        own, theirs = local.priority if local else priority("host"), pair.remote.priority
        controlling, controlled = (own, theirs) if self.controlling else (theirs, own)
        return (min(own, theirs) << 32) + 2 * max(own, theirs) + (controlling > controlled)

    # Time --------------------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """Time of the next `advance`; infinite after the end."""
        if self._over:
            return math.inf
        due = min((pair.due for pair in self._pairs), default=math.inf)
        if self.selected is not None:
            return min(due, self._keepalive_due, self.selected.heard + LOST_AFTER)
        due = min(due, self._began + CONNECT_TIMEOUT)
        if self.controlling and self._nominating is None:
            succeeded = (pair for pair in self._pairs if pair.state is State.SUCCEEDED)
            due = min([due, *(self._began + _acceptance_wait(pair) for pair in succeeded)])
        return due

    def advance(self, now: float) -> None:
        """Send what is due, and notice what has ended. A late call sends one check a pair, not the missed ones."""
        self._now = now
        if self._over:
            return
        # The same sums as in `deadline`: a difference may round to less, and the deadline never pass.
        if self.selected is None and now >= self._began + CONNECT_TIMEOUT:
            self._end(Failed())
        elif self.selected is not None and now >= self.selected.heard + LOST_AFTER:
            self._end(Lost())
        else:
            if now >= self._keepalive_due and self.selected is not None:
                self._keepalive_due = now + KEEPALIVE_INTERVAL
                self._send_check(self.selected, now)
            self._check_due(now)
            self._nominate(now)

    def _end(self, event: Failed | Lost) -> None:
        self._over = True
        self._checks.clear()
        self._events.append(event)

    def _check_due(self, now: float) -> None:
        for pair in self._pairs:
            if pair.due > now:
                continue
            if pair.unanswered >= MAX_UNANSWERED:
                pair.state, pair.due = State.FAILED, math.inf
                if pair is self._nominating:
                    self._nominating = None
                continue
            pair.unanswered += 1
            pair.due = now + CHECK_INTERVAL
            self._send_check(pair, now)

    def _send_check(self, pair: Pair, now: float) -> None:
        while self._checks and now - next(iter(self._checks.values())).sent >= TRANSACTION_LIFE:
            del self._checks[next(iter(self._checks))]
        nominates = pair is self._nominating
        transaction = self._random(12)
        self._checks[transaction] = _Check(pair, now, nominates, self.controlling)
        pair.sent = now
        local = self._local_of(pair)
        request = Message(
            Kind.REQUEST,
            transaction,
            username=f"{self._remote.ufrag}:{self._local.ufrag}",
            priority=priority("prflx" if pair.via is None else "relay"),
            use_candidate=nominates,
            controlling=self._tie_breaker if self.controlling else None,
            controlled=None if self.controlling else self._tie_breaker,
            candidate_ids=(local.cid, pair.remote.cid) if local and local.cid and pair.remote.cid else None,
        )
        self._send(encode(request, self._remote.pwd), pair.endpoint, pair.via)

    def _send(self, datagram: bytes, endpoint: Endpoint, via: Endpoint | None) -> None:
        if len(self._transmits) == MAX_TRANSMITS:
            self.counters["transmits_dropped"] += 1
            return
        self._transmits.append((datagram, endpoint, via))

    def transmits(self) -> list[tuple[bytes, Endpoint]]:
        """Return and forget the datagrams to send, from the tunnel's own socket; those for relays stay."""
        return [(datagram, endpoint) for datagram, endpoint, via in self._take(lambda via: via is None)]

    def relayed(self) -> list[tuple[bytes, Endpoint, Endpoint]]:
        """Return and forget the datagrams to send from relayed addresses, each with destination and that address."""
        taken = self._take(lambda via: via is not None)
        return [(datagram, endpoint, via) for datagram, endpoint, via in taken if via is not None]

    def _take(self, matches: Callable[[Endpoint | None], bool]) -> list[tuple[bytes, Endpoint, Endpoint | None]]:
        taken = [each for each in self._transmits if matches(each[2])]
        self._transmits = [each for each in self._transmits if not matches(each[2])]
        return taken

    def knows(self, endpoint: Endpoint, via: Endpoint) -> bool:
        """Return True if an authentic message of the remote came from this address by this relayed address of ours."""
        pair = self._pairs.get(endpoint, via)
        return pair is not None and pair.heard > -math.inf

    def events(self) -> list[Event]:
        """Return and forget what was decided."""
        events, self._events = self._events, []
        return events


def _acceptance_wait(pair: Pair) -> float:
    """Return the time since the start in which a pair is not nominated, by the types at both of its ends."""
    return max(ACCEPTANCE_WAITS[pair.remote.type], ACCEPTANCE_WAITS["host" if pair.via is None else "relay"])
