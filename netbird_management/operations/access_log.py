"""The access log: exchanges that proxies report, kept for a number of days."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, cast, overload

from sqlalchemy import ColumnElement, CursorResult, and_, delete, func, not_, or_, select, text

from netbird_management.model.clock import now
from netbird_management.model.ids import AccountId
from netbird_management.model.services import AccessLogEntry
from netbird_management.store.engine import insert
from netbird_management.store.models import AccessLogRow
from netbird_management.store.state import State

# An entry as stored: the fields of `AccessLogEntry` in the order of `_COLUMNS`, the moment in UTC, texts cut to the
# length of their columns. A tuple, as proxies report thousands of exchanges per second and an object for each would
# double the cost.
Row = tuple[Any, ...]


async def add_access_log_rows(state: State, rows: Sequence[Row]) -> None:
    """Stores a batch in one transaction. Entries that exist are skipped, so a batch may be sent again."""
    if not rows:
        return
    async with state.write_log() as session:
        if session.get_bind().dialect.name != "sqlite":
            named = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
            await session.execute(insert(session, AccessLogRow).on_conflict_do_nothing(), named)
            return
        # Conversion by SQLAlchemy's column types, to the same text, would take half of the time per entry.
        plain = [
            (
                *row[:_MOMENT],
                row[_MOMENT].replace(tzinfo=None).isoformat(" ", "microseconds"),
                *row[_MOMENT + 1 : -2],
                json.dumps(row[-2]) if row[-2] else "{}",
                json.dumps(row[-1]) if row[-1] else "[]",
            )
            for row in rows
        ]
        await (await session.connection()).exec_driver_sql(_INSERT, plain)


class Rows(Sequence[AccessLogEntry]):
    """A sequence of entries over stored rows; each entry is created when it is read."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> AccessLogEntry: ...
    @overload
    def __getitem__(self, index: slice) -> list[AccessLogEntry]: ...
    def __getitem__(self, index: int | slice) -> AccessLogEntry | list[AccessLogEntry]:
        if isinstance(index, slice):
            return [_entry_of(row) for row in self._rows[index]]
        return _entry_of(self._rows[index])


_COLUMNS: Final = (
    "id",
    "account_id",
    "service_id",
    "timestamp",
    "source_ip",
    "method",
    "host",
    "path",
    "duration_ms",
    "status_code",
    "reason",
    "user_id",
    "auth_method",
    "bytes_upload",
    "bytes_download",
    "protocol",
    "details",
    "user_groups",
)
# Index of the account's id in a `Row`.
ACCOUNT: Final = _COLUMNS.index("account_id")
_MOMENT: Final = _COLUMNS.index("timestamp")
_INSERT: Final = (
    f"INSERT INTO access_log ({', '.join(_COLUMNS)}) "  # noqa: S608 - names of ours
    f"VALUES ({', '.join('?' * len(_COLUMNS))}) ON CONFLICT DO NOTHING"
)


def _entry_of(row: Row) -> AccessLogEntry:
    fields = dict(zip(_COLUMNS, row, strict=True))
    return AccessLogEntry(metadata=fields.pop("details"), user_groups=tuple(fields.pop("user_groups")), **fields)


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Filter and order of entries. `exact` are values by column; `contains` are substrings by column, in any case.

    `search` is a substring of id, address, host, path, or host and path together; it also matches every entry of
    `search_users`. `since` and `until` are inclusive.
    """

    exact: Mapping[str, Any] = field(default_factory=dict)
    contains: Mapping[str, str] = field(default_factory=dict)
    search: str = ""
    search_users: Sequence[str] = ()
    succeeded: bool | None = None
    since: datetime | None = None
    until: datetime | None = None
    sort_by: str = "timestamp"
    descending: bool = True


_SORTS: Final[Mapping[str, tuple[Any, ...]]] = {
    "timestamp": (AccessLogRow.timestamp,),
    "url": (AccessLogRow.host, AccessLogRow.path),
    "host": (AccessLogRow.host,),
    "path": (AccessLogRow.path,),
    "method": (AccessLogRow.method,),
    "status_code": (AccessLogRow.status_code,),
    "duration": (AccessLogRow.duration_ms,),
    "source_ip": (AccessLogRow.source_ip,),
    "user_id": (AccessLogRow.user_id,),
    "auth_method": (AccessLogRow.auth_method,),
    "reason": (AccessLogRow.reason,),
}
SORTS: Final = frozenset(_SORTS)


async def access_log_page(
    state: State,
    account_id: AccountId,
    *,
    page: int,
    page_size: int,
    query: LogQuery | None = None,
) -> tuple[list[AccessLogEntry], int]:
    """One page of entries, by default newest first, and the total number of matching entries. Pages count from 1."""
    query = query or LogQuery()
    where = [AccessLogRow.account_id == account_id, *_conditions(query)]
    order = [*_SORTS[query.sort_by], AccessLogRow.id]
    if query.sort_by != "timestamp":
        order.insert(-1, AccessLogRow.timestamp)
    rows_of = select(*(getattr(AccessLogRow, column) for column in _COLUMNS)).where(*where)
    rows_of = rows_of.order_by(*(column.desc() if query.descending else column.asc() for column in order))
    async with state.read_log() as session:
        total = await session.scalar(select(func.count()).select_from(AccessLogRow).where(*where)) or 0
        rows = (await session.execute(rows_of.offset((page - 1) * page_size).limit(page_size))).all()
    return [_entry_of(tuple(row)) for row in rows], total


def _conditions(query: LogQuery) -> list[Any]:
    def holds(column: Any, part: str) -> Any:
        return func.lower(column).contains(part.lower(), autoescape=True)

    conditions = [getattr(AccessLogRow, column) == value for column, value in query.exact.items()]
    conditions += [holds(getattr(AccessLogRow, column), part) for column, part in query.contains.items()]
    if query.search:
        columns = (AccessLogRow.id, AccessLogRow.source_ip, AccessLogRow.host, AccessLogRow.path)
        either = [holds(column, query.search) for column in (*columns, AccessLogRow.host + AccessLogRow.path)]
        if query.search_users:
            either.append(AccessLogRow.user_id.in_(list(query.search_users)))
        conditions.append(or_(*either))
    if query.succeeded is not None:
        good = AccessLogRow.status_code.between(200, 399)
        conditions.append(good if query.succeeded else not_(good))
    if query.since is not None:
        conditions.append(AccessLogRow.timestamp >= query.since)
    if query.until is not None:
        conditions.append(AccessLogRow.timestamp <= query.until)
    return conditions


FORGET_ENTRIES: Final = 2_000


async def forget_old_entries(state: State, days: float) -> None:
    await _forget(state, AccessLogRow.timestamp < now() - timedelta(days=days))


async def forget_entries_over_quota(state: State, account_id: str, quota: int) -> None:
    """Deletes an account's entries except the newest `quota`. Entries of equal time are deleted together."""
    of_account = AccessLogRow.account_id == account_id
    newest = select(AccessLogRow.timestamp).where(of_account).order_by(AccessLogRow.timestamp.desc())
    async with state.read_log() as session:
        first_over = await session.scalar(newest.offset(quota).limit(1))
    if first_over is not None:
        await _forget(state, and_(of_account, AccessLogRow.timestamp <= first_over))


async def forget_entries_of_nobody(state: State) -> None:
    """Deletes the entries of deleted accounts. The log is in a separate database, so the transaction that deletes an
    account does not delete them."""
    # The query steps through the index from one account to the next, without reading entries.
    walk = text(
        "WITH RECURSIVE found(id) AS (SELECT min(account_id) FROM access_log UNION ALL "
        "SELECT (SELECT min(account_id) FROM access_log WHERE account_id > found.id) FROM found WHERE id IS NOT NULL) "
        "SELECT id FROM found WHERE id IS NOT NULL"
    )
    async with state.read_log() as session:
        logged = (await session.scalars(walk)).all()
    for id_ in logged:
        if state.snapshots.get(AccountId(id_)) is None:
            await forget_entries_of(state, AccountId(id_))


async def forget_entries_of(state: State, account_id: AccountId) -> None:
    """Deletes all entries of an account."""
    await _forget(state, AccessLogRow.account_id == account_id)


async def _forget(state: State, condition: ColumnElement[bool]) -> None:
    """Deletes entries in batches, so that new entries are written in between. A single statement could lock the log for
    minutes."""
    some = select(AccessLogRow.id).where(condition).limit(FORGET_ENTRIES)
    forgotten = FORGET_ENTRIES
    while forgotten == FORGET_ENTRIES:
        async with state.write_log() as session:
            done = await session.execute(delete(AccessLogRow).where(AccessLogRow.id.in_(some)))
            forgotten = cast(CursorResult[Any], done).rowcount
