"""Handshakes that we owe to peers whose sessions we do not have, sent a few at a time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Callable, Iterable

REPEATS, INTERVAL = 3, 1.0
"""Number and interval in seconds of the handshakes that we repeat to a peer that did not answer the first. WireGuard
itself repeats only after 5 s, in which the peer would continue a session that we do not have."""
JITTER = 1 / 3
"""Maximum random addition to the interval in seconds, as WireGuard has it, so that peers do not answer in step."""
A_TURN = 64
"""Maximum number of handshakes in one turn of the loop: each costs the cryptography of a whole exchange."""
PAUSE = 0.02
"""Mean pause in seconds between such turns, in which the loop does its other work."""


class Greetings:
    """Sends handshakes to peers, and repeats them until each peer has answered or `REPEATS` are spent.

    Args:
        handshake: starts a handshake with a peer; False if none was sent.
        possible: True while the peer exists and its endpoint is known.
        sent: called after each batch.
        pick: chooses a random number between two bounds.
    """

    def __init__(
        self,
        handshake: Callable[[bytes], bool],
        possible: Callable[[bytes], bool],
        sent: Callable[[], None],
        *,
        pick: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._handshake = handshake
        self._possible = possible
        self._sent = sent
        self._pick = pick
        self._left: dict[bytes, int] = {}
        self._due: list[tuple[float, int, bytes]] = []
        self._order = itertools.count()
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        """Number of peers that have not answered and get further handshakes."""
        return len(self._left)

    def add(self, keys: Iterable[bytes], now: float) -> None:
        """Greet these peers from now on: the first of them at once, the rest in the turns that follow."""
        for key in keys:
            if key not in self._left:
                heapq.heappush(self._due, (now, next(self._order), key))
            self._left[key] = 1 + REPEATS
        self.greet(now)

    def answered(self, key: bytes) -> None:
        """A session with this peer exists: it needs no further greeting."""
        self._left.pop(key, None)

    def greet(self, now: float) -> float | None:
        """Send the handshakes that are due, `A_TURN` at most. Returns the time of the next, or None without any."""
        sent = 0
        while self._due and self._due[0][0] <= now and sent < A_TURN:
            _, _, key = heapq.heappop(self._due)
            left = self._left.get(key)
            if left is None:
                continue
            if not self._possible(key):
                del self._left[key]
                continue
            sent += 1
            if self._handshake(key):
                left -= 1
            if left:
                self._left[key] = left
                due = now + INTERVAL + self._pick(0.0, JITTER)
                heapq.heappush(self._due, (due, next(self._order), key))
            else:
                del self._left[key]
        if sent:
            self._sent()
        if self._due:
            self._wake.set()
            return self._due[0][0]
        return None

    async def run(self) -> None:
        """Send what becomes due. Never returns."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            while (due := self.greet(loop.time())) is not None:  # noqa: ASYNC110 - time is what it waits for
                await asyncio.sleep(max(due - loop.time(), self._pick(0.0, 2 * PAUSE)))
