"""A path in memory between two nodes of one process, which loses and delays datagrams as a seed decides. For tests.

Engines in virtual time are joined by `simulation.Simulation.carrier` instead.
"""

from __future__ import annotations

import asyncio
import random

from netbird_overlay.driver import Driver


class LossyPath:
    """Joins a carrier of one driver with a carrier of another. It takes over both drivers' carried datagrams.

    Args:
        loss: probability with which a datagram is lost.
        delay: bounds in seconds of the time that a datagram is under way; with different bounds, datagrams overtake.

    Attributes:
        up: False while nothing passes.
        passed, lost: number of datagrams.
    """

    def __init__(
        self,
        a: Driver,
        a_number: int,
        b: Driver,
        b_number: int,
        *,
        seed: int = 0,
        loss: float = 0.0,
        delay: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.up = True
        self.passed = self.lost = 0
        self._loss, self._delay = loss, delay
        self._random = random.Random(seed)  # noqa: S311
        self._loop = asyncio.get_running_loop()
        a.on_carried = lambda number, datagrams: self._carry(number == a_number, datagrams, b, b_number)
        b.on_carried = lambda number, datagrams: self._carry(number == b_number, datagrams, a, a_number)

    def _carry(self, ours: bool, datagrams: list[bytes], receiver: Driver, number: int) -> None:
        for datagram in datagrams:
            self._carry_one(ours, datagram, receiver, number)

    def _carry_one(self, ours: bool, datagram: bytes, receiver: Driver, number: int) -> None:
        if not ours or not self.up or self._random.random() < self._loss:
            self.lost += 1
            return
        self.passed += 1
        delay = self._random.uniform(*self._delay)
        if delay:
            self._loop.call_later(delay, receiver.deliver, number, [datagram])
        else:
            self._loop.call_soon(receiver.deliver, number, [datagram])
