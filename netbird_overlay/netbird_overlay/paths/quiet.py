"""Notices peers with which no data passes, so that their paths need not be kept."""

from __future__ import annotations

from typing import Final

CHECK_SECONDS: Final = 60.0
"""Time between two looks."""
QUIET_SECONDS: Final = 900.0
"""Time without data after which a peer may sleep; NetBird's agents wait as long."""
QUIET_BYTES: Final = 1500
"""Traffic up to which the time between two looks counts as quiet: WireGuard's own messages, keepalives of both ends and
a renewed session, are less."""


class Quiet:
    """The traffic of each peer since its last data."""

    def __init__(self) -> None:
        self._seen: dict[bytes, tuple[int, float]] = {}  # total at the last look, and when data passed last

    def look(self, key: bytes, total: int, now: float) -> bool:
        """Note the bytes that passed with a peer in all. True if it has been quiet for long enough to sleep."""
        before, active = self._seen.get(key, (total, now))
        if not 0 <= total - before <= QUIET_BYTES:
            active = now
        self._seen[key] = (total, active)
        return now - active >= QUIET_SECONDS

    def forget(self, key: bytes) -> None:
        self._seen.pop(key, None)
