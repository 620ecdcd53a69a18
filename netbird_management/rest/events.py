"""The activity log, and the access log in pages."""

import json
from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Request
from starlette.datastructures import QueryParams
from starlette.responses import Response

from netbird_management.model.ids import UserId
from netbird_management.model.services import AccessLogEntry
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.access_log import SORTS, LogQuery, access_log_page
from netbird_management.operations.events import Event, events_of
from netbird_management.rest import shapes
from netbird_management.rest.auth import AuthenticatedUser, allowed
from netbird_management.rest.context import InContext
from netbird_management.rest.wire import ApiResponse, moment

router = APIRouter(tags=["events"])

_EXACT = ("host", "method", "user_id", "source_ip")
_LONGEST = 1024  # characters of a search text; the rest is cut off


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
    """Clients expect every value of `meta` to be a string."""
    return value if isinstance(value, str) else json.dumps(value)


@router.get("/events", response_model=list[shapes.Event])
@router.get("/events/audit", response_model=list[shapes.Event])
async def list_events(caller: Annotated[AuthenticatedUser, allowed("events", "read")], context: InContext) -> Response:
    """The changes to the account, newest first."""
    return ApiResponse(
        [event_json(event, caller.account) for event in await events_of(context.state, caller.account_id)]
    )


_LOG_PARAMETERS: Final = {
    **dict.fromkeys(("page", "page_size", "status_code"), "integer"),
    **dict.fromkeys(
        (
            "sort_by",
            "sort_order",
            "search",
            "host",
            "user_id",
            "method",
            "source_ip",
            "path",
            "user_email",
            "user_name",
            "status",
            "start_date",
            "end_date",
        ),
        "string",
    ),
}


@router.get(
    "/events/proxy",
    response_model=shapes.AccessLogPage,
    openapi_extra={
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": {"type": kind}}
            for name, kind in _LOG_PARAMETERS.items()
        ]
    },
)
async def list_entries(
    request: Request, caller: Annotated[AuthenticatedUser, allowed("services", "read")], context: InContext
) -> Response:
    """Invalid parameters are ignored, as clients expect."""
    query = request.query_params
    page, size = _number(query.get("page"), 1), min(_number(query.get("page_size"), 50), 100)
    entries, total = await access_log_page(
        context.state, caller.account_id, page=page, page_size=size, query=_log_query(query, caller.account)
    )
    return ApiResponse(
        {
            "data": [entry_json(entry) for entry in entries],
            "page": page,
            "page_size": size,
            "total_pages": -(-total // size),
            "total_records": total,
        }
    )


def _log_query(query: QueryParams, account: AccountSnapshot) -> LogQuery:
    exact: dict[str, Any] = {name: query[name] for name in _EXACT if query.get(name)}
    if code := _number(query.get("status_code"), 0):
        exact["status_code"] = code
    for name, attribute in (("user_email", "email"), ("user_name", "name")):
        user_ids = _users(account, query.get(name, ""), (attribute,))
        if user_ids:
            exact["user_id"] = user_ids[0]
    status, sort_by = query.get("status"), query.get("sort_by", "")
    search = query.get("search", "")[:_LONGEST]
    return LogQuery(
        exact=exact,
        contains={"path": query["path"][:_LONGEST]} if query.get("path") else {},
        search=search,
        search_users=_users(account, search, ("email", "name")),
        succeeded={"success": True, "failed": False}.get(status or ""),
        since=_date(query.get("start_date")),
        until=_date(query.get("end_date")),
        sort_by=sort_by if sort_by in SORTS else "timestamp",
        descending=query.get("sort_order", "").lower() != "asc",
    )


def _users(account: AccountSnapshot, part: str, attributes: tuple[str, ...]) -> list[str]:
    """The sorted ids of the users with `part` in any of the attributes, in upper or lower case; none for an empty
    `part`."""
    if not part:
        return []
    users = sorted(account.users.values(), key=lambda user: user.id)
    return [
        user.id for user in users if any(part.lower() in getattr(user, attribute).lower() for attribute in attributes)
    ]


def _date(text: str | None) -> datetime | None:
    try:
        date = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return date if date is not None and date.tzinfo is not None else None


def _number(text: str | None, default: int) -> int:
    """A positive number of at most eight digits; otherwise the default."""
    if not text or not text.isascii() or not text.isdecimal() or len(text) > 8:
        return default
    return int(text) or default
