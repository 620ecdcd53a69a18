"""A table that strangers fill recovers."""

from __future__ import annotations

from netbird_host.tables import BoundedTable


def test_full_table_begins_anew() -> None:
    """It never has more than its limit, and what comes after a flood is remembered again."""
    table: BoundedTable[int, int] = BoundedTable(3)
    sizes = [table.keep(number, -number) and len(table) for number in range(1, 8)]
    assert sizes == [1, 2, 3, 1, 2, 3, 1]
    assert dict(table) == {7: -7}
