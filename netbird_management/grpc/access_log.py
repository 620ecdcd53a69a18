"""The access log on its way in: taken at once, stored in batches, refused when it comes faster than it is stored."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Final

import grpc

from netbird_management.clock import now
from netbird_management.grpc.errors import Refused
from netbird_management.ids import AccountId, PeerId, UserId, new_id
from netbird_management.network.snapshot import AccountSnapshot
from netbird_management.services.access_log import add_access_log_entries
from netbird_management.services.model import AccessLogEntry
from netbird_management.state import State
from netbird_wire.proxy_service_pb2 import AccessLog

QUEUE_ENTRIES: Final = 10_000
BATCH_ENTRIES: Final = 500
GATHER_SECONDS: Final = 0.25
"""How long the first of a batch waits for others: proxies send few at a time, and each write costs the same."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_INT64: Final = (1 << 63) - 1
_log = logging.getLogger(__name__)


class AccessLogs:
    """Takes entries and writes them in `run`; `record` hears of each batch, and does not raise."""

    def __init__(
        self,
        state: State,
        *,
        capacity: int = QUEUE_ENTRIES,
        record: Callable[[Sequence[AccessLogEntry]], None] = lambda _: None,
    ) -> None:
        self._state = state
        self._record = record
        self._capacity = capacity
        self._waiting: list[AccessLogEntry] = []
        self._some = asyncio.Event()

    def take(self, logs: Sequence[AccessLog]) -> None:
        """All of them or none. Raises `Refused` when there is no room; the proxy then sends them again later.

        Entries of accounts that are not here (exchanges for no known host have none) are let go.
        """
        if len(self._waiting) + len(logs) > self._capacity:
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "the access log is full: try again later")
        for log in logs:
            account = self._state.snapshots.get(log.account_id)
            if account is not None:
                self._waiting.append(_entry(log, account))
        self._some.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._some.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._some.clear()
            await self.flush()

    async def flush(self) -> None:
        """Stores all that waits. A batch that cannot be stored is tried entry by entry: one bad one costs itself.

        Cancelled, what was under way waits again, and may be stored already: it is not stored twice.
        """
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH_ENTRIES], self._waiting[BATCH_ENTRIES:]
            try:
                await self._store(batch)
            except asyncio.CancelledError:
                self._waiting = batch + self._waiting
                raise
            self._record(batch)

    async def _store(self, batch: list[AccessLogEntry]) -> None:
        try:
            await add_access_log_entries(self._state, batch)
        except Exception:
            _log.exception("access_log.batch.failed", extra={"entries": len(batch)})
            for entry in batch:
                try:
                    await add_access_log_entries(self._state, [entry])
                except Exception as error:
                    _log.error("access_log.entry.lost", extra={"entry_id": entry.id, "error": type(error).__name__})


def _entry(log: AccessLog, account: AccountSnapshot) -> AccessLogEntry:
    return AccessLogEntry(
        id=_text(log.log_id)[:255] or new_id(),
        account_id=AccountId(log.account_id),
        service_id=_text(log.service_id)[:255],
        timestamp=_moment(log),
        source_ip=_address(log.source_ip),
        method=_text(log.method),
        host=_text(log.host),
        path=_text(log.path),
        duration_ms=_count(log.duration_ms),
        status_code=log.response_code,
        bytes_upload=_count(log.bytes_upload),
        bytes_download=_count(log.bytes_download),
        reason=_reason(log),
        user_id=_text(log.user_id)[:255],
        auth_method=_text(log.auth_mechanism)[:255],
        protocol=_text(log.protocol)[:8],
        metadata={_text(name): _text(value) for name, value in log.metadata.items()},
        user_groups=_groups(log, account),
    )


def _groups(log: AccessLog, account: AccountSnapshot) -> tuple[str, ...]:
    """The ids of the caller's groups: those the proxy names, else those of the user or peer as they are now."""
    if log.user_groups:
        named = {group.name: group.id for group in account.groups.values()}
        return tuple(named[name] for name in log.user_groups if name in named)
    user = account.users.get(UserId(log.user_id))
    return user.auto_groups if user is not None else tuple(group.id for group in account.groups_of(PeerId(log.user_id)))


def _moment(log: AccessLog) -> datetime:
    if not log.HasField("timestamp"):
        return now()
    try:
        return _EPOCH + timedelta(seconds=log.timestamp.seconds, microseconds=log.timestamp.nanos // 1000)
    except (ValueError, OverflowError):
        return now()


def _text(value: str) -> str:
    """PostgreSQL keeps no NUL."""
    return value.replace("\0", "\ufffd")


def _count(value: int) -> int:
    return max(0, min(value, _MAX_INT64))


def _reason(log: AccessLog) -> str:
    if log.protocol not in ("", "http"):
        return ""
    if not log.auth_success:
        return "Authentication failed"
    return "Request failed" if log.response_code >= 400 else ""


@lru_cache(maxsize=8192)  # callers come again, and reading an address costs as much as the rest of an entry
def _address(text: str) -> str:
    try:
        address = ip_address(text)
    except ValueError:
        return ""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)
