"""A limit on failed logins: wrong passwords, PINs and header values.

Both hosts count. A proxy counts to save calls; management counts for all of its proxies together and has the last word.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from netbird_host.sources import source_of
from netbird_host.tables import LatestTable

FREE: Final = 5
"""Wrong tries of one source before it must wait."""
LONGEST: Final = 300.0
"""Longest wait of a source, in seconds."""
SERVICE_FAILURES: Final = 60
"""Failures of one service within `SERVICE_WINDOW` seconds, after which sources that are not trusted must wait."""
SERVICE_WINDOW: Final = 60.0
TRUSTED: Final = 86_400.0
"""Seconds after a right try in which the failures of other sources do not delay a source."""
TURN: Final = 5.0
"""Seconds that a try waits for other tries of its source to be judged."""
SOURCES: Final = 16_384


@dataclass(slots=True)
class Source:
    """The record of one source at one service. Times are readings of the throttle's clock; 0 and `None` mean never."""

    failures: int = 0
    blocked_until: float = 0.0
    right_at: float | None = None


class LoginThrottle:
    """Counts each try as wrong until it proves right, so that sending many at once does not evade the limit.

    Services and addresses are strings. An address counts for its source (`source_of`). The address "" stands for all
    clients whose address is unknown: only the limit of the service applies to them, as one guest who is wrong must not
    lock out the others.
    """

    def __init__(self, clock: Callable[[], float], *, sources: int = SOURCES) -> None:
        """Args:
        clock: returns seconds; must be wall-clock time if the counts outlive the process.
        sources: maximum number of sources, and of services, to remember; beyond it the one that was quiet for longest
            is forgotten.
        """
        self._clock = clock
        self._sources: LatestTable[tuple[str, str], Source] = LatestTable(sources)
        self._failures: LatestTable[str, deque[float]] = LatestTable(sources)
        self._judging: Counter[tuple[str, str]] = Counter()
        self._freed: dict[tuple[str, str], asyncio.Event] = {}

    def find(self, service: str, address: str) -> Source | None:
        """The record of this address, or None. Later tries change it in place."""
        return self._sources.get((service, source_of(address)))

    def recall(self, service: str, address: str, source: Source) -> None:
        """Adopt a record from elsewhere, such as a store, where this throttle has none."""
        self._sources.keep((service, source_of(address)), source)

    @asynccontextmanager
    async def turn(self, service: str, address: str) -> AsyncIterator[None]:
        """Wait for a place among the tries of one source that are judged concurrently; reserve and judge inside it.

        A try counts as wrong while it is judged. Because a source has fewer places than free tries, clients with a
        right credential are never delayed by that, however many of them share one address.

        Raises:
            TimeoutError: no place became free within `TURN` seconds.
        """
        if not address:
            yield
            return
        key = (service, source_of(address))
        async with asyncio.timeout(TURN):
            while self._judging[key] >= self._places(key):
                freed = self._freed.setdefault(key, asyncio.Event())
                await freed.wait()
        self._judging[key] += 1
        try:
            yield
        finally:
            self._judging[key] -= 1
            if not self._judging[key]:
                del self._judging[key]
            if (waiting := self._freed.pop(key, None)) is not None:
                waiting.set()

    def _places(self, key: tuple[str, str]) -> int:
        source = self._sources.get(key)
        wrong = max(0, source.failures - self._judging[key]) if source is not None else 0
        return max(1, FREE - 1 - wrong)

    def reserve(self, service: str, address: str, *, alone: bool = True) -> float:
        """Return the seconds until this address may try; 0 allows the try now, and counts it.

        Args:
            alone: enforce the limit of the service here, because management has none. Where management counts, it also
                knows the sources that were right through other proxies, which this limit would lock out.
        """
        now, key = self._clock(), (service, source_of(address))
        source = self._sources.get(key)
        if source is not None and now < source.blocked_until:
            return source.blocked_until - now
        recent = self._recent(service, now)
        right_at = source.right_at if source is not None and address else None
        trusted = right_at is not None and now - right_at < TRUSTED
        if alone and len(recent) >= SERVICE_FAILURES and not trusted:
            return max(1.0, recent[-SERVICE_FAILURES] + SERVICE_WINDOW - now)
        if source is None:
            source = Source()
        self._sources.keep(key, source)
        source.failures += 1
        if source.failures >= FREE and address:
            source.blocked_until = now + min(LONGEST, 2.0 ** (source.failures - FREE))
        recent.append(now)
        return 0.0

    def hold_back(self, service: str, address: str, seconds: float) -> None:
        """Withdraw a try that management refused to judge, and allow no other for `seconds`."""
        self.withdraw(service, address)
        if address and (source := self.find(service, address)) is not None:
            source.blocked_until = max(source.blocked_until, self._clock() + min(LONGEST, seconds))

    def record_success(self, service: str, address: str) -> None:
        """The try was right: the source starts with no failures again."""
        self._give_back(service)
        self._sources.keep((service, source_of(address)), Source(right_at=self._clock()))

    def withdraw(self, service: str, address: str) -> None:
        """Undo the count of a try that was not judged."""
        self._give_back(service)
        if (source := self.find(service, address)) is not None:
            source.failures = max(0, source.failures - 1)
            if source.failures < FREE:
                source.blocked_until = 0.0

    def forget(self, service: str) -> None:
        """Forget the failures of a deleted service. Its sources are evicted as others come."""
        self._failures.pop(service, None)

    def _give_back(self, service: str) -> None:
        if recent := self._failures.get(service):
            recent.pop()

    def _recent(self, service: str, now: float) -> deque[float]:
        recent = self._failures.get(service) or deque(maxlen=2 * SERVICE_FAILURES)
        self._failures.keep(service, recent)
        while recent and now - recent[0] >= SERVICE_WINDOW:
            recent.popleft()
        return recent
