"""The pairs of one session: this socket with each address at which the remote may be, and what was tried there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.ice.candidates import Candidate, CandidateType, priority

MAX_REMOTES: Final = 32
"""Most candidates that the remote may name in one session."""
MAX_DISCOVERED: Final = 16
"""Most peer-reflexive candidates of one session."""
MAX_RELAYED: Final = 2
"""Most relayed addresses of this side in one session."""


class State(Enum):
    """State of a pair: no answer yet, an answer to a check of ours, or too many checks unanswered."""

    CHECKING = "checking"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(slots=True)
class Pair:
    """A base of this side and an address of the remote.

    All local candidates of a family but relayed ones have the same base: the socket, whose routing chooses the address
    that a datagram leaves from. Each relayed address is a base of its own.

    Attributes:
        via: the relayed address that datagrams leave from; None for the socket.
        due: time of the next check, infinite if none is to come.
        sent: time of the last check.
        heard: time of the last authentic message of the remote from this address.
        unanswered: checks since the last sign of life.
        nominated: a USE-CANDIDATE came for it.
        local_type: kind of the local candidate that the remote sees.
    """

    remote: Candidate
    via: Endpoint | None = None
    due: float = math.inf
    sent: float = -math.inf
    heard: float = -math.inf
    unanswered: int = 0
    state: State = State.CHECKING
    nominated: bool = False
    local_type: CandidateType = "host"

    @property
    def endpoint(self) -> Endpoint:
        return self.remote.endpoint


class Pairs:
    """The pairs by base and remote address, bounded; the remote cannot make more by naming or by sending."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._pairs: dict[tuple[Endpoint | None, Endpoint], Pair] = {}
        self._signalled: dict[Endpoint, Candidate] = {}
        self._bases: list[Endpoint | None] = [None]

    def __iter__(self) -> Iterator[Pair]:
        return iter(self._pairs.values())

    def __len__(self) -> int:
        return len(self._pairs)

    def get(self, endpoint: Endpoint, via: Endpoint | None = None) -> Pair | None:
        return self._pairs.get((via, endpoint))

    def add_base(self, via: Endpoint) -> list[Pair]:
        """Return a new pair of a relayed address with each candidate that the remote named. At most 2 are bases."""
        if via in self._bases or len(self._bases) > MAX_RELAYED:
            return []
        self._bases.append(via)
        return [pair for each in self._signalled.values() if (pair := self._pair(each, via)) is not None]

    def add(self, candidate: Candidate) -> list[Pair]:
        """Return new pairs of each base for a candidate that the remote named; none if the table is full.

        A candidate that was discovered before takes over the named one's type and priority (RFC 8445 §7.3.1.3).
        """
        if candidate.endpoint in self._signalled:
            return []
        if len(self._signalled) == MAX_REMOTES:
            self._counters["candidates_refused"] += 1
            return []
        self._signalled[candidate.endpoint] = candidate
        return [pair for via in self._bases if (pair := self._pair(candidate, via)) is not None]

    def _pair(self, candidate: Candidate, via: Endpoint | None) -> Pair | None:
        pair = self._pairs.get((via, candidate.endpoint))
        if pair is not None:
            pair.remote = candidate
            return None
        pair = self._pairs[via, candidate.endpoint] = Pair(candidate, via)
        return pair

    def discover(self, endpoint: Endpoint, rank: int | None, cid: str, via: Endpoint | None = None) -> Pair | None:
        """Return a new pair for an address from which an authentic request came.

        If the table is full, a failed discovery makes room; without one, None.
        """
        if via not in self._bases:
            return None
        discovered = [pair for pair in self._pairs.values() if pair.endpoint not in self._signalled]
        if len(discovered) == MAX_DISCOVERED:
            failed = next((pair for pair in discovered if pair.state is State.FAILED), None)
            if failed is None:
                self._counters["discoveries_refused"] += 1
                return None
            del self._pairs[failed.via, failed.endpoint]
        candidate = Candidate("prflx", endpoint, rank or priority("prflx"), cid=cid)
        pair = self._pairs[via, endpoint] = Pair(candidate, via)
        return pair


class AnswerBudget:
    """Answers in the current second, by source and in all.

    A stranger who records one request can repeat it from forged sources; the answers must not become a flood. An
    agent of NetBird's on a machine with many addresses checks each pair of them five times a second, from one socket.
    """

    BY_SOURCE: Final = 100
    IN_ALL: Final = 400

    def __init__(self) -> None:
        self._second = -math.inf
        self._spent: Counter[Endpoint] = Counter()

    def spend(self, source: Endpoint, now: float) -> bool:
        """Return False if the source, or all sources together, had their answers in this second."""
        if not 0 <= now - self._second < 1:
            self._second = now
            self._spent.clear()
        if self._spent[source] >= self.BY_SOURCE or self._spent.total() >= self.IN_ALL:
            return False
        self._spent[source] += 1
        return True
