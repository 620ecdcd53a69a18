"""The candidates of both sides of a link: each waits until the agent that it is for exists.

An agent of NetBird drops candidates that arrive before it exists, and signal servers keep no order between messages.
So the peer's candidates are kept for a while, and ours are sent once the peer's agent must exist, and once more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Final

REPEAT_CANDIDATES: Final = 1.0
"""Seconds after which our candidates are sent once more."""
CANDIDATE_AGE: Final = 10.0
"""Seconds for which a peer's candidates are kept for the agent that its next offer or answer creates."""
MAX_CANDIDATES: Final = 32
"""Maximum number of candidates kept in each direction. Further ones of the peer push out its oldest."""


class Trickle:
    """The candidates of one link.

    Args:
        send: called with each line of ours that leaves.

    Attributes:
        dropped: candidates of the peer that were pushed out.
        repeat_at: the time at which `advance` has work.
    """

    def __init__(self, send: Callable[[str], None]) -> None:
        self.dropped = 0
        self.repeat_at = math.inf
        self._send = send
        self._remote: list[tuple[float, str]] = []
        self._own: list[str] = []
        self._repeat: list[str] = []
        self._listening = False

    def begin(self, ufrag: str, now: float) -> list[str]:
        """An agent of ours began. Returns the peer's candidates for it; they stay for an agent that may follow it."""
        self._own, self._listening = [], False
        self._remote = [(at, line) for at, line in self._remote if now - at <= CANDIDATE_AGE]
        return [line for _, line in self._remote if is_for(line, ufrag)]

    def end(self) -> None:
        """The agent ended."""
        self._repeat.clear()
        self.repeat_at = math.inf

    def forget(self) -> None:
        self._remote.clear()

    def keep(self, line: str, now: float) -> None:
        """Keep a candidate of the peer."""
        self._remote.append((now, line))
        if len(self._remote) > MAX_CANDIDATES:
            del self._remote[0]
            self.dropped += 1

    def add(self, line: str, now: float) -> None:
        """Our agent gathered a candidate."""
        if len(self._own) < MAX_CANDIDATES:
            self._own.append(line)
            if self._listening:
                self._send_all([line], now)

    def release(self, now: float) -> None:
        """The peer's agent must exist by now: it answered, or our answer made it, or it sent a candidate."""
        if not self._listening:
            self._listening = True
            self._send_all(self._own, now)

    def advance(self, now: float) -> None:
        """Repeat what is due."""
        if self.repeat_at <= now:
            lines, self._repeat, self.repeat_at = self._repeat, [], math.inf
            for line in lines:
                self._send(line)

    def _send_all(self, lines: list[str], now: float) -> None:
        for line in lines:
            self._send(line)
        if lines:
            self._repeat += lines
            self.repeat_at = min(self.repeat_at, now + REPEAT_CANDIDATES)


def is_for(line: str, ufrag: str) -> bool:
    """True if a candidate's line names this user name, or none."""
    words = line.split()
    return next((value for key, value in itertools.pairwise(words) if key == "ufrag"), ufrag) == ufrag
