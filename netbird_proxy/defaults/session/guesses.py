"""How often somebody may be wrong. This saves calls; management counts too, for all of its proxies together."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

FREE = 5
"""Wrong tries of one source that cost it nothing."""
LONGEST = 300.0
SERVICE_FAILURES = 60
SERVICE_WINDOW = 60.0
TRUSTED = 86_400.0
"""Seconds in which a source that was right before is not held up by others' failures."""
SOURCES = 16_384


@dataclass(slots=True)
class _Source:
    failures: int = 0
    blocked_until: float = 0.0
    right_at: float | None = None


class Guesses:
    """Counts each try as wrong until it proves right, so that many at once are no way around."""

    def __init__(self, clock: Callable[[], float], *, sources: int = SOURCES) -> None:
        self._clock = clock
        self._limit = sources
        self._sources: OrderedDict[tuple[str, str], _Source] = OrderedDict()
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def reserve(self, service: str, source: str, *, alone: bool = True) -> float:
        """Seconds until this source may try; 0 lets it try now, and counts the try.

        Args:
            source: "" where nobody vouches for addresses: all of those are held up together, and not one by one.
            alone: management does not count. Where it does, it knows who was right by way of other proxies, and who
                would be locked out here by strangers' guesses.
        """
        now = self._clock()
        known = self._sources.get((service, source))
        if known is not None and now < known.blocked_until:
            return known.blocked_until - now
        recent = self._recent(service, now)
        right_at = known.right_at if known is not None and source else None
        trusted = right_at is not None and now - right_at < TRUSTED
        if alone and len(recent) >= SERVICE_FAILURES and not trusted:
            return max(1.0, recent[-SERVICE_FAILURES] + SERVICE_WINDOW - now)
        if known is None:
            known = self._keep(service, source, _Source())
        self._sources.move_to_end((service, source))
        known.failures += 1
        if known.failures >= FREE and source:
            known.blocked_until = now + min(LONGEST, 2.0 ** (known.failures - FREE))
        recent.append(now)
        return 0.0

    def held(self, service: str, source: str, seconds: float) -> None:
        """The try was not judged: management has seen too many, and will not judge another before so many seconds."""
        self.unjudged(service, source)
        if source and (known := self._sources.get((service, source))) is not None:
            known.blocked_until = max(known.blocked_until, self._clock() + min(LONGEST, seconds))

    def right(self, service: str, source: str) -> None:
        """The try was right: the source starts anew."""
        self._give_back(service)
        self._keep(service, source, _Source(right_at=self._clock()))

    def _keep(self, service: str, source: str, one: _Source) -> _Source:
        self._sources[service, source] = one
        if len(self._sources) > self._limit:
            self._sources.popitem(last=False)
        return one

    def unjudged(self, service: str, source: str) -> None:
        """Nobody said whether the try was right."""
        self._give_back(service)
        if (known := self._sources.get((service, source))) is not None:
            known.failures = max(0, known.failures - 1)
            if known.failures < FREE:
                known.blocked_until = 0.0

    def _give_back(self, service: str) -> None:
        if recent := self._failures.get(service):
            recent.pop()

    def _recent(self, service: str, now: float) -> deque[float]:
        recent = self._failures.setdefault(service, deque(maxlen=2 * SERVICE_FAILURES))
        self._failures.move_to_end(service)
        if len(self._failures) > self._limit:
            self._failures.popitem(last=False)
        while recent and now - recent[0] >= SERVICE_WINDOW:
            recent.popleft()
        return recent


def source_of(address: str) -> str:
    """Whom a client's address stands for: an IPv6 host has a whole /64 to guess from."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
    return str(parsed)
