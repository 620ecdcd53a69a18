"""A table that strangers fill recovers."""

from __future__ import annotations

from netbird_host.tables import BoundedTable, IdentityCache, LatestTable


def test_full_table_begins_anew() -> None:
    """It never has more than its limit, and what comes after a flood is remembered again."""
    table: BoundedTable[int, int] = BoundedTable(3)
    sizes = [table.keep(number, -number) and len(table) for number in range(1, 8)]
    assert sizes == [1, 2, 3, 1, 2, 3, 1]
    assert dict(table) == {7: -7}


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
