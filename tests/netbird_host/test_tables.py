"""A table that strangers fill recovers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from netbird_host.tables import MEAN_BYTES, BoundedTable, IdentityCache, LatestTable


def test_full_table_begins_anew() -> None:
    """It never has more than its limit, and what comes after a flood is remembered again."""
    table: BoundedTable[int, int] = BoundedTable(3)
    sizes = [table.keep(number, -number) and len(table) for number in range(1, 8)]
    assert sizes == [1, 2, 3, 1, 2, 3, 1]
    assert dict(table) == {7: -7}


@pytest.mark.parametrize("shape", [bytes, lambda size: "x" * size, lambda size: [(b"x", bytes(size))]])
def test_promise_10_a_table_is_bounded_in_bytes(shape: Callable[[int], Any]) -> None:
    """Long keys and long values fill it like many do; afterwards usual entries are remembered again."""
    table: BoundedTable[int, Any] = BoundedTable(1000)
    largest = 0
    for number in range(2000):
        table.keep(number, shape(50_000))
        largest = max(largest, len(table))
    assert 10 < largest <= 1000 * MEAN_BYTES // 50_000

    table.keep(-1, shape(10))
    assert -1 in table
    for number in range(900):
        table.keep(number, shape(10))
    assert len(table) > 700


def test_promise_10_a_long_key_counts() -> None:
    """Clients mostly choose the key."""
    table: BoundedTable[bytes, None] = BoundedTable(1000)
    for number in range(500):
        table.keep(b"%d" % number * 20_000, None)
        assert sum(map(len, table)) <= 1000 * MEAN_BYTES


def test_an_entry_that_would_displace_all_others_is_not_kept() -> None:
    """It is returned like any other, and the others stay."""
    table: BoundedTable[str, bytes] = BoundedTable(10)
    table.keep("usual", b"value")
    assert table.keep("huge", bytes(10 * MEAN_BYTES)) == bytes(10 * MEAN_BYTES)
    assert list(table) == ["usual"]


def test_the_entry_kept_longest_ago_is_dropped() -> None:
    """Keeping an entry again makes it the youngest, reading it does not, and the caller gets the dropped entry."""
    table: LatestTable[str, int] = LatestTable(2)
    assert table.keep("a", 1) is None
    assert table.keep("b", 2) is None
    assert table.keep("a", 3) is None
    assert table.get("b") == 2
    assert table.keep("c", 4) == ("b", 2)
    assert list(table.items()) == [("a", 3), ("c", 4)]


def test_equal_objects_have_entries_of_their_own() -> None:
    """A value belongs to one object, and never to another that is equal to it or was created after it."""
    cache: IdentityCache[list[int], str] = IdentityCache(1000)
    first, equal = [1], [1]
    cache.keep(first, "first")
    assert cache.get(first) == "first"
    assert cache.get(equal) is None
    for number in range(1000):
        fresh = [number]
        assert cache.get(fresh) is None
        cache.keep(fresh, str(number))
    assert len(cache) <= 1000
