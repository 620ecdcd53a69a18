"""Reports of proxies, stored as the running host stores them."""

from collections.abc import Sequence
from typing import Any

from netbird_management.model.ids import ProxyId, ServiceId
from netbird_management.model.services import AccessLogEntry, Status
from netbird_management.operations.access_log import add_access_log_rows
from netbird_management.operations.statuses import Report, set_service_statuses
from netbird_management.store.state import State


async def report_status(state: State, service_id: str, proxy_id: ProxyId, status: Status, **fields: Any) -> None:
    """One status, of a service and a proxy that the store has."""
    assert await set_service_statuses(state, [Report(ServiceId(service_id), proxy_id, status, **fields)]) == set()


async def add_access_log_entries(state: State, entries: Sequence[AccessLogEntry]) -> None:
    """A batch, stored at once."""
    await add_access_log_rows(
        state,
        [
            (
                entry.id,
                entry.account_id,
                entry.service_id,
                entry.timestamp,
                entry.source_ip,
                entry.method,
                entry.host,
                entry.path,
                entry.duration_ms,
                entry.status_code,
                entry.reason,
                entry.user_id,
                entry.auth_method,
                entry.bytes_upload,
                entry.bytes_download,
                entry.protocol,
                dict(entry.metadata or {}),
                list(entry.user_groups),
            )
            for entry in entries
        ],
    )
