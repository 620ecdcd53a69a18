"""The one back-off of both hosts and their plugins."""

from __future__ import annotations

import pytest

from netbird_wire.backoff import Backoff


def test_waits_grow_up_to_a_bound_and_begin_anew_after_a_success() -> None:
    """Each wait is the factor times the last one, at most the longest; after a success the first wait is used again."""
    backoff = Backoff(1.0, 5.0, factor=2.0, pick=lambda _low, high: high)

    assert [backoff.next_wait() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    backoff.reset()
    assert backoff.next_wait() == 1.0


def test_waits_are_spread() -> None:
    """Clients that failed at the same moment return at different ones: each wait is random between two multiples."""
    bounds: list[tuple[float, float]] = []

    def pick(low: float, high: float) -> float:
        bounds.append((low, high))
        return low

    backoff = Backoff(1.0, 8.0, factor=2.0, spread=(0.0, 2.0), pick=pick)
    for _ in range(3):
        backoff.next_wait()
    assert bounds == [(0.0, 2.0), (0.0, 4.0), (0.0, 8.0)]
    drawn = {Backoff(1.0, 8.0).next_wait() for _ in range(50)}
    assert len(drawn) > 1
    assert min(drawn) >= 0.5
    assert max(drawn) == pytest.approx(1.0, abs=0.5)
