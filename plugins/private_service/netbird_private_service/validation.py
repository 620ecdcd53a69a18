"""Asking management about a peer: answers kept for a while, asked once at a time, and slowly enough.

An answer belongs to one peer key at one overlay address asking for one domain, and to the account's generation in
which it was *asked for*: whatever changes the account's map raises the generation, and what was asked before serves
nobody. Only grants are kept.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

from netbird_proxy import AccountId, ManagementError, PublicKey
from netbird_wire.proxy_service_pb2 import ValidateTunnelPeerResponse

ATTEMPTS = 3
"""Questions for one exchange when the account keeps changing under it; then it is refused for now."""

ACCOUNTS = 16_384
"""Accounts with grants; the one that got none for longest goes first, and its peers are asked about again."""
BUCKETS = 65_536
"""Peers whose questions are counted."""


class Question(NamedTuple):
    """Who asks for what. Addresses are reused, so the key is part of it. A tuple, as each exchange makes one."""

    account: AccountId
    peer: PublicKey
    address: str
    host: str


@dataclass(frozen=True, slots=True)
class _Grant:
    answer: ValidateTunnelPeerResponse
    generation: int
    until: float


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class TooManyQuestions(Exception):
    """This peer makes management work too hard; it is to come back in `retry_after` seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"more validations than allowed; again in {retry_after:.0f} s")
        self.retry_after = retry_after


class AccountChanging(ManagementError):
    """The account changed during each of the attempts, so no answer was current."""


class Validations:
    """The cache with its limits. `run` owns the questions under way; without it none can be asked."""

    def __init__(
        self,
        ask: Callable[[Question, str], Awaitable[ValidateTunnelPeerResponse]],
        generation: Callable[[AccountId], int],
        clock: Callable[[], float],
        *,
        lifetime: float,
        per_account: int,
        burst: int,
        rate: float,
    ) -> None:
        """Args:
        ask: one RPC for a question and the domain as management knows it; has its own deadline.
        lifetime: seconds a grant is kept.
        per_account: grants kept an account; the oldest goes first.
        burst, rate: questions that a peer may cause at once, and per second.
        """
        self._ask = ask
        self._generation = generation
        self._clock = clock
        self._lifetime = lifetime
        self._per_account = per_account
        self._burst = burst
        self._rate = rate
        self._grants: OrderedDict[AccountId, OrderedDict[Question, _Grant]] = OrderedDict()
        self.dropped = 0
        """Grants that were forgotten before their time because there were too many."""
        self._flights: dict[tuple[Question, int], asyncio.Task[ValidateTunnelPeerResponse | Exception]] = {}
        self._buckets: OrderedDict[tuple[AccountId, PublicKey], _Bucket] = OrderedDict()
        self._group: asyncio.TaskGroup | None = None

    async def run(self, ready: asyncio.Event) -> None:
        """Own the questions until cancelled; then whoever waits for one is cancelled with it."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            ready.set()
            try:
                await asyncio.Event().wait()
            finally:
                self._group = None

    async def validate(self, question: Question, domain: str, *, ours: bool = False) -> ValidateTunnelPeerResponse:
        """A grant or a denial that is true in the account's present generation.

        Args:
            ours: the proxy wants to know by itself, so the peer does not pay. Nor does it where a grant of its own
                ended: it has paid for that one, and what ended it is time or somebody else's change.

        Raises:
            ManagementError: no answer could be had.
            TooManyQuestions: this peer asked too often.
        """
        for _ in range(ATTEMPTS):
            generation = self._generation(question.account)
            if (granted := self.granted(question, generation)) is not None:
                return granted
            answer = await self._asked(question, domain, generation, ours)
            ours = True  # that the account changed meanwhile is not the peer's doing
            if self._generation(question.account) == generation:
                return answer
        raise AccountChanging(f"account {question.account} changed during {ATTEMPTS} validations")

    def granted(self, question: Question, generation: int) -> ValidateTunnelPeerResponse | None:
        """A grant that is remembered, and that was asked for in this generation of the account."""
        grants = self._grants.get(question.account)
        grant = grants.get(question) if grants else None
        if grant is None or grant.generation != generation or self._clock() >= grant.until:
            return None
        return grant.answer

    def _forget(self, question: Question) -> bool:
        """Drop a grant that ended; whether there was one."""
        grants = self._grants.get(question.account)
        if grants is None or grants.pop(question, None) is None:
            return False
        if not grants:
            del self._grants[question.account]
        return True

    async def _asked(self, question: Question, domain: str, generation: int, ours: bool) -> ValidateTunnelPeerResponse:
        flight = self._flights.get((question, generation))
        if flight is None:
            if not (self._forget(question) or ours):
                self._spend(question)
            if self._group is None:
                raise ManagementError("the proxy is stopping")
            flight = self._group.create_task(self._fly(question, domain, generation))
            self._flights[(question, generation)] = flight
        # Shielded: the first caller's leaving must not fail those who wait for the same answer.
        outcome = await asyncio.shield(flight)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _fly(self, question: Question, domain: str, generation: int) -> ValidateTunnelPeerResponse | Exception:
        """The answer, or what went wrong as a value: raised here it would end every other question of the group."""
        try:
            answer = await self._ask(question, domain)
        except Exception as exc:
            return exc
        finally:
            del self._flights[(question, generation)]
        if answer.valid and answer.session_token:
            self._keep(question, _Grant(answer, generation, self._clock() + self._lifetime))
        return answer

    def _keep(self, question: Question, grant: _Grant) -> None:
        grants = self._grants.setdefault(question.account, OrderedDict())
        self._grants.move_to_end(question.account)
        grants.pop(question, None)
        grants[question] = grant
        while len(grants) > self._per_account:
            grants.popitem(last=False)
            self.dropped += 1
        while len(self._grants) > ACCOUNTS:
            _, grants = self._grants.popitem(last=False)
            self.dropped += len(grants)

    def _spend(self, question: Question) -> None:
        now = self._clock()
        key = (question.account, question.peer)
        bucket = self._buckets.pop(key, None) or _Bucket(float(self._burst), now)
        bucket.tokens = min(float(self._burst), bucket.tokens + (now - bucket.at) * self._rate)
        bucket.at = now
        self._buckets[key] = bucket
        while len(self._buckets) > BUCKETS:
            # Peers come from the roster, so this many are real; the one that asked longest ago is full again anyway.
            self._buckets.popitem(last=False)
        if bucket.tokens < 1:
            raise TooManyQuestions(max(1.0, (1 - bucket.tokens) / self._rate))
        bucket.tokens -= 1

    def __repr__(self) -> str:
        kept = sum(len(grants) for grants in self._grants.values())
        return f"Validations(kept={kept}, under_way={len(self._flights)})"
