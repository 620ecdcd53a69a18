"""What was changed, and the access log, a page at a time."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from netbird_management.ids import UserId
from netbird_management.network.activity import Event, events_of
from netbird_management.network.snapshot import AccountSnapshot
from netbird_management.rest.auth import Caller, allowed
from netbird_management.rest.context import InContext
from netbird_management.rest.json import ApiResponse, moment
from netbird_management.services.access_log import AccessLogEntry, access_log_page

router = APIRouter()

_FILTERS = {"host": "host", "method": "method", "user_id": "user_id", "source_ip": "source_ip"}


def entry_json(entry: AccessLogEntry) -> dict[str, Any]:
    optional: dict[str, Any] = {
        "auth_method_used": entry.auth_method,
        "metadata": dict(entry.metadata or {}),
        "protocol": entry.protocol,
        "reason": entry.reason,
        "source_ip": entry.source_ip,
        "user_groups": list(entry.user_groups),
        "user_id": entry.user_id,
    }
    return {
        "bytes_download": entry.bytes_download,
        "bytes_upload": entry.bytes_upload,
        "duration_ms": entry.duration_ms,
        "host": entry.host,
        "id": entry.id,
        "method": entry.method,
        "path": entry.path,
        "service_id": entry.service_id,
        "status_code": entry.status_code,
        "timestamp": moment(entry.timestamp),
        **{name: value for name, value in optional.items() if value},
    }


def event_json(event: Event, account: AccountSnapshot) -> dict[str, Any]:
    initiator = account.users.get(UserId(event.initiator_id))
    return {
        "activity": event.sentence,
        "activity_code": event.activity.value,
        "id": event.id,
        "initiator_email": "" if initiator is None else initiator.email,
        "initiator_id": event.initiator_id,
        "initiator_name": "" if initiator is None else initiator.name,
        "meta": {name: _text(value) for name, value in event.details.items()},
        "target_id": event.target_id,
        "timestamp": moment(event.timestamp),
    }


def _text(value: object) -> str:
    """Clients read all of `meta` as text."""
    return value if isinstance(value, str) else json.dumps(value)


@router.get("/events")
@router.get("/events/audit")
async def list_events(who: Annotated[Caller, allowed("events", "read")], context: InContext) -> Response:
    """What was changed, the newest first."""
    return ApiResponse([event_json(event, who.account) for event in await events_of(context.state, who.account_id)])


@router.get("/events/proxy")
async def list_entries(
    request: Request, who: Annotated[Caller, allowed("services", "read")], context: InContext
) -> Response:
    """Parameters that make no sense are ignored, as clients expect; other filters than these are not there yet."""
    query = request.query_params
    page, size = _number(query.get("page"), 1), min(_number(query.get("page_size"), 50), 100)
    filters: dict[str, Any] = {column: query[name] for name, column in _FILTERS.items() if query.get(name)}
    if status := _number(query.get("status_code"), 0):
        filters["status_code"] = status
    entries, total = await access_log_page(context.state, who.account_id, page=page, page_size=size, filters=filters)
    return ApiResponse(
        {
            "data": [entry_json(entry) for entry in entries],
            "page": page,
            "page_size": size,
            "total_pages": -(-total // size),
            "total_records": total,
        }
    )


def _number(text: str | None, default: int) -> int:
    return (
        int(text) if text and text.isascii() and text.isdecimal() and int(text[:9]) > 0 and len(text) < 9 else default
    )
