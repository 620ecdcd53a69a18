"""The fair queue: bounded, in order within a flow, and no flow keeps another from its share."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from netbird_wire.fair_queue import ITEM_OVERHEAD_BYTES, FairQueue

flows = st.integers(0, 5)
puts = st.lists(st.tuples(flows, st.integers(0, 400)), max_size=200)


@given(puts, st.integers(1, 5000), st.integers(100, 20_000))
def test_each_flow_keeps_its_order_and_the_queue_its_bound(
    items: list[tuple[int, int]], budget: int, bound: int
) -> None:
    queue: FairQueue[int] = FairQueue(bound)
    kept: dict[int, list[bytes]] = {}
    for number, (flow, size) in enumerate(items):
        item = b"%d %d " % (flow, number) + bytes(size)
        if queue.put(flow, item):
            kept.setdefault(flow, []).append(item)
        assert len(queue) <= bound

    taken: dict[int, list[bytes]] = {}
    while batch := queue.take(budget):
        for item in batch:
            taken.setdefault(int(item.split()[0]), []).append(item)

    assert taken == kept
    assert len(queue) == 0


def test_a_flow_that_floods_leaves_room_for_others() -> None:
    queue: FairQueue[str] = FairQueue(100_000)
    dropped = sum(not queue.put("flood", bytes(1000)) for _ in range(1000))
    assert dropped > 900
    assert all(queue.put("other", bytes(1000)) for _ in range(20))


def test_flows_are_taken_in_turns() -> None:
    queue: FairQueue[str] = FairQueue(1 << 20)
    for _ in range(200):
        queue.put("flood", b"f" * 1000)
    for _ in range(5):
        queue.put("other", b"o" * 1000)

    first = Counter(item[:1] for item in queue.take(12_000))

    assert first[b"o"] == 5
    assert first[b"f"] == 7


def test_tiny_items_are_bounded_too() -> None:
    queue: FairQueue[str] = FairQueue(64_000)
    assert sum(queue.put("flood", b"") for _ in range(10_000)) <= 64_000 // ITEM_OVERHEAD_BYTES
    assert queue.clear() > 0
    assert queue.take(1000) == []
