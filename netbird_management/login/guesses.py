"""How often somebody may be wrong about a password, a PIN or a header: this is the word that counts.

Proxies count too, to save calls; here the tries at one service by way of all proxies come together.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final

from netbird_management.ids import ServiceId

FREE: Final = 5
"""Wrong tries of one source that cost it nothing."""
LONGEST_SECONDS: Final = 300.0
SERVICE_FAILURES: Final = 60
SERVICE_WINDOW_SECONDS: Final = 60.0
TRUSTED_SECONDS: Final = 86_400.0
"""How long others' failures do not hold up a source that was right."""
SOURCES: Final = 65_536


@dataclass(slots=True)
class Source:
    """What is known of one source at one service. Moments are seconds since the epoch; 0 and `None` are never."""

    failures: int = 0
    blocked_until: float = 0.0
    right_at: float | None = None


class Guesses:
    """Counts each try as wrong until it proves right, so that many at once are no way around.

    `clock` is the wall's: what is counted outlives the process, in the store.
    """

    def __init__(self, clock: Callable[[], float], *, sources: int = SOURCES) -> None:
        self._clock = clock
        self._limit = sources
        self._sources: OrderedDict[tuple[ServiceId, str], Source] = OrderedDict()
        self._failures: dict[ServiceId, deque[float]] = {}

    def find(self, service: ServiceId, address: str) -> Source | None:
        """What is remembered here of this address; it may be changed by later tries."""
        return self._sources.get((service, source_of(address)))

    def recall(self, service: ServiceId, address: str, source: Source) -> None:
        """Take what the store knows, where nothing is remembered here."""
        self._put((service, source_of(address)), source)

    def _put(self, key: tuple[ServiceId, str], source: Source) -> None:
        self._sources[key] = source
        if len(self._sources) > self._limit:
            self._sources.popitem(last=False)

    def reserve(self, service: ServiceId, address: str) -> float:
        """Seconds until this address may try; 0 lets it try now, and counts the try.

        `address` is "" where the proxy does not tell it: all of those are held up together, and not one by one.
        """
        now, key = self._clock(), (service, source_of(address))
        known = self._sources.get(key)
        if known is not None and now < known.blocked_until:
            return known.blocked_until - now
        recent = self._failures.setdefault(service, deque(maxlen=2 * SERVICE_FAILURES))
        while recent and now - recent[0] >= SERVICE_WINDOW_SECONDS:
            recent.popleft()
        right_at = known.right_at if known is not None and address else None
        trusted = right_at is not None and now - right_at < TRUSTED_SECONDS
        if len(recent) >= SERVICE_FAILURES and not trusted:
            return max(1.0, recent[-SERVICE_FAILURES] + SERVICE_WINDOW_SECONDS - now)
        if known is None:
            known = Source()
            self._put(key, known)
        self._sources.move_to_end(key)
        known.failures += 1
        # Behind a proxy that tells no addresses everybody looks alike: one wrong guest must not lock out the others.
        if known.failures >= FREE and address:
            known.blocked_until = now + min(LONGEST_SECONDS, 2.0 ** (known.failures - FREE))
        recent.append(now)
        return 0.0

    def right(self, service: ServiceId, address: str) -> None:
        """The try was right: the source starts anew."""
        self._give_back(service)
        self._put((service, source_of(address)), Source(right_at=self._clock()))

    def unjudged(self, service: ServiceId, address: str) -> None:
        """Nobody said whether the try was right."""
        self._give_back(service)
        if (known := self._sources.get((service, source_of(address)))) is not None:
            known.failures = max(0, known.failures - 1)
            if known.failures < FREE:
                known.blocked_until = 0.0

    def _give_back(self, service: ServiceId) -> None:
        if recent := self._failures.get(service):
            recent.pop()


def source_of(address: str) -> str:
    """Whom a client's address stands for: an IPv6 host has a whole /64 to guess from."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address[:255]
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
    return str(parsed)
