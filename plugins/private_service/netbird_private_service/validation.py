"""Validation of peers by management, with a cache, single flight and a rate limit for each peer.

An answer is valid for one peer key at one overlay address on one host, and for the account's generation at the time of
the *question*: every change of the account's map raises the generation and invalidates all earlier questions. Only
grants are cached.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

from netbird_proxy import AccountId, Buckets, LatestTable, ManagementError, PublicKey
from netbird_wire.proxy_service_pb2 import ValidateTunnelPeerResponse

ATTEMPTS = 3
"""Maximum number of questions for one exchange while the account keeps changing; then it is refused for now."""

ACCOUNTS = 16_384
"""Maximum number of accounts with cached grants; beyond it, those of the least recently granted one go."""
BUCKETS = 65_536
"""Maximum number of peers whose questions are counted."""


class Question(NamedTuple):
    """The caller and the host. It includes the key, as addresses are reused. A tuple, which is fast to make."""

    account: AccountId
    peer: PublicKey
    address: str
    host: str


@dataclass(frozen=True, slots=True)
class _Grant:
    answer: ValidateTunnelPeerResponse
    generation: int
    until: float


class TooManyQuestions(Exception):
    """The peer exceeded its rate of questions; it may try again in `retry_after` seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"too many validations; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class AccountChanging(ManagementError):
    """The account changed during each attempt, so that no answer was current."""


class Validations:
    """The cache and its limits. `run` owns the questions under way and must be running for new ones."""

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
        ask: performs the RPC for a question and the domain in management's spelling; has its own deadline.
        generation: returns the current generation of an account.
        clock: returns seconds, monotonic.
        lifetime: seconds for which a grant is cached.
        per_account: maximum number of grants for each account; beyond it the oldest is dropped.
        burst, rate: questions that a peer may cause at once, and per second.
        """
        self._ask = ask
        self._generation = generation
        self._clock = clock
        self._lifetime = lifetime
        self._per_account = per_account
        self._grants: LatestTable[AccountId, LatestTable[Question, _Grant]] = LatestTable(ACCOUNTS)
        self.dropped = 0
        """Number of grants that were dropped before their end because of a limit."""
        self._flights: dict[tuple[Question, int], asyncio.Task[ValidateTunnelPeerResponse | Exception]] = {}
        # Peers come from the roster, so a client cannot invent them. The oldest bucket is most likely full again.
        self._questions = Buckets(clock, burst=burst, per_second=rate, keys=BUCKETS)
        self._group: asyncio.TaskGroup | None = None

    async def run(self, ready: asyncio.Event) -> None:
        """Own the questions until cancelled, which also cancels the callers that wait for them."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            ready.set()
            try:
                await asyncio.Event().wait()
            finally:
                self._group = None

    async def validate(self, question: Question, domain: str, *, ours: bool = False) -> ValidateTunnelPeerResponse:
        """Return a grant or a denial that is valid in the account's current generation.

        Args:
            ours: the proxy itself revalidates the peer, so the question does not count against the peer's rate. Nor
                does one that replaces an expired grant: the peer's earlier question counted, and it did not cause the
                expiry.

        Raises:
            ManagementError: management gave no answer.
            TooManyQuestions: the peer exceeded its rate.
        """
        for _ in range(ATTEMPTS):
            generation = self._generation(question.account)
            if (granted := self.granted(question, generation)) is not None:
                return granted
            answer = await self._asked(question, domain, generation, ours)
            ours = True  # the peer did not cause the change of the account
            if self._generation(question.account) == generation:
                return answer
        raise AccountChanging(f"account {question.account} changed during {ATTEMPTS} validations")

    def granted(self, question: Question, generation: int) -> ValidateTunnelPeerResponse | None:
        """Return the cached grant for a question, if it belongs to this generation and has not expired."""
        grants = self._grants.get(question.account)
        grant = grants.get(question) if grants else None
        if grant is None or grant.generation != generation or self._clock() >= grant.until:
            return None
        return grant.answer

    def _forget(self, question: Question) -> bool:
        """Drop a grant. True if one was cached."""
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
        # Shielded: the cancellation of one caller must not fail the others that wait for the same answer.
        outcome = await asyncio.shield(flight)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _fly(self, question: Question, domain: str, generation: int) -> ValidateTunnelPeerResponse | Exception:
        """Return the answer or the exception. Raised, the exception would cancel all other questions of the group."""
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
        grants = self._grants.get(question.account)
        if grants is None:
            grants = LatestTable(self._per_account)
        if grants.keep(question, grant) is not None:
            self.dropped += 1
        if (evicted := self._grants.keep(question.account, grants)) is not None:
            self.dropped += len(evicted[1])

    def _spend(self, question: Question) -> None:
        key = (question.account, question.peer)
        if not self._questions.take(key):
            raise TooManyQuestions(max(1.0, self._questions.delay(key)))

    def __repr__(self) -> str:
        kept = sum(len(grants) for grants in self._grants.values())
        return f"Validations(kept={kept}, under_way={len(self._flights)})"
