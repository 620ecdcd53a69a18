"""The numbers by which the engine names paths through relays, and the datagrams that leave by them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence

from netbird_overlay.paths.effects import TurnPath

Hop = str | TurnPath
"""A relay by its instance URL, or a path by a relayed address of ours."""


class Carriers:
    """A number for each peer and hop. Numbers are never used again, so that a late datagram meets no other peer.

    Args:
        send: called with key, hop and the datagrams of one turn of the loop, in order. A relay takes a batch at
            little more than the cost of one.
        on_dropped: called with the number of datagrams whose path has closed meanwhile.
    """

    def __init__(self, send: Callable[[bytes, Hop, Sequence[bytes]], None], on_dropped: Callable[[int], None]) -> None:
        self._send, self._on_dropped = send, on_dropped
        self._loop = asyncio.get_running_loop()
        self._next = itertools.count(1)
        self._numbers: dict[tuple[bytes, Hop], int] = {}
        self._owners: dict[int, tuple[bytes, Hop]] = {}
        self._outgoing: dict[int, list[bytes]] = {}

    def open(self, key: bytes, hop: Hop) -> int:
        """The number of a peer at a hop, a new one if it has none."""
        number = self._numbers.get((key, hop))
        if number is None:
            number = self._numbers[key, hop] = next(self._next)
            self._owners[number] = (key, hop)
        return number

    def number(self, key: bytes, hop: Hop) -> int | None:
        return self._numbers.get((key, hop))

    def close(self, key: bytes, hop: Hop) -> bool:
        """Forget a number. False if there is none."""
        number = self._numbers.pop((key, hop), None)
        if number is None:
            return False
        del self._owners[number]
        return True

    def hops(self, key: bytes) -> list[Hop]:
        """The hops at which a peer has a number."""
        return [hop for owner, hop in self._numbers if owner == key]

    def queue(self, number: int, datagrams: Sequence[bytes]) -> None:
        """Send datagrams with the others of this turn."""
        if not self._outgoing:
            self._loop.call_soon(self._send_all)
        self._outgoing.setdefault(number, []).extend(datagrams)

    def _send_all(self) -> None:
        outgoing, self._outgoing = self._outgoing, {}
        for number, datagrams in outgoing.items():
            owner = self._owners.get(number)
            if owner is None:
                self._on_dropped(len(datagrams))
            else:
                self._send(*owner, datagrams)
