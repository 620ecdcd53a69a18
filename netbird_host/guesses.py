"""How often somebody may be wrong about a password, a PIN or a header.

Both hosts count: a proxy to save calls, management for all of its proxies together; the word of the latter counts.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from netbird_host.sources import source_of

FREE: Final = 5
"""Wrong tries of one source that cost it nothing."""
LONGEST: Final = 300.0
"""Seconds."""
SERVICE_FAILURES: Final = 60
SERVICE_WINDOW: Final = 60.0
TRUSTED: Final = 86_400.0
"""Seconds in which a source that was right before is not held up by others' failures."""
TURN: Final = 5.0
"""Seconds that a try waits until others of its source are judged."""
SOURCES: Final = 16_384


@dataclass(slots=True)
class Source:
    """What is known of one source at one service. Moments are the clock's; 0 and `None` are never."""

    failures: int = 0
    blocked_until: float = 0.0
    right_at: float | None = None


class Guesses:
    """Counts each try as wrong until it proves right, so that many at once are no way around.

    Services and addresses are texts; an address counts for its source (`source_of`), and "" for whoever nobody vouches
    for: all of those are held up together, and not one by one, as one wrong guest must not lock out the others.
    """

    def __init__(self, clock: Callable[[], float], *, sources: int = SOURCES) -> None:
        """Args:
        clock: in seconds; the wall's where what is counted outlives the process.
        sources: how many are remembered, and of how many services; the one that was quiet for longest is forgotten.
        """
        self._clock = clock
        self._limit = sources
        self._sources: OrderedDict[tuple[str, str], Source] = OrderedDict()
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()
        self._judging: Counter[tuple[str, str]] = Counter()
        self._freed: dict[tuple[str, str], asyncio.Event] = {}

    def find(self, service: str, address: str) -> Source | None:
        """What is remembered of this address; it may be changed by later tries."""
        return self._sources.get((service, source_of(address)))

    def recall(self, service: str, address: str, source: Source) -> None:
        """Take what was known elsewhere, where nothing is remembered here."""
        self._keep((service, source_of(address)), source)

    @asynccontextmanager
    async def turn(self, service: str, address: str) -> AsyncIterator[None]:
        """A place among the tries of one source that are judged at once: reserve and judge inside it.

        A try counts as wrong while it is judged, so that many at once are no way around. With fewer places than free
        tries that holds nobody up whose credential is right, however many of them are behind one address.

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
        """Seconds until this address may try; 0 lets it try now, and counts the try.

        Args:
            alone: nobody else counts. Where management does, it knows who was right by way of other proxies, and who
                would be locked out here by strangers' guesses.
        """
        now, key = self._clock(), (service, source_of(address))
        known = self._sources.get(key)
        if known is not None and now < known.blocked_until:
            return known.blocked_until - now
        recent = self._recent(service, now)
        right_at = known.right_at if known is not None and address else None
        trusted = right_at is not None and now - right_at < TRUSTED
        if alone and len(recent) >= SERVICE_FAILURES and not trusted:
            return max(1.0, recent[-SERVICE_FAILURES] + SERVICE_WINDOW - now)
        if known is None:
            known = self._keep(key, Source())
        self._sources.move_to_end(key)
        known.failures += 1
        if known.failures >= FREE and address:
            known.blocked_until = now + min(LONGEST, 2.0 ** (known.failures - FREE))
        recent.append(now)
        return 0.0

    def held(self, service: str, address: str, seconds: float) -> None:
        """The try was not judged: management has seen too many, and will not judge another before so many seconds."""
        self.unjudged(service, address)
        if address and (known := self.find(service, address)) is not None:
            known.blocked_until = max(known.blocked_until, self._clock() + min(LONGEST, seconds))

    def right(self, service: str, address: str) -> None:
        """The try was right: the source starts anew."""
        self._give_back(service)
        self._keep((service, source_of(address)), Source(right_at=self._clock()))

    def unjudged(self, service: str, address: str) -> None:
        """Nobody said whether the try was right."""
        self._give_back(service)
        if (known := self.find(service, address)) is not None:
            known.failures = max(0, known.failures - 1)
            if known.failures < FREE:
                known.blocked_until = 0.0

    def forget(self, service: str) -> None:
        """Forget the failures of a service that is gone. Its sources go as others come."""
        self._failures.pop(service, None)

    def _give_back(self, service: str) -> None:
        if recent := self._failures.get(service):
            recent.pop()

    def _keep(self, key: tuple[str, str], one: Source) -> Source:
        self._sources[key] = one
        if len(self._sources) > self._limit:
            self._sources.popitem(last=False)
        return one

    def _recent(self, service: str, now: float) -> deque[float]:
        recent = self._failures.setdefault(service, deque(maxlen=2 * SERVICE_FAILURES))
        self._failures.move_to_end(service)
        if len(self._failures) > self._limit:
            self._failures.popitem(last=False)
        while recent and now - recent[0] >= SERVICE_WINDOW:
            recent.popleft()
        return recent
