"""JSON in and out: bodies are read with a limit, written with sorted keys, compact, and with a newline at the end."""

import json
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from netbird_management.model.errors import BadRequest

BODY_BYTES: Final = 1 << 20
_ESCAPES: Final = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)

M = TypeVar("M", bound=BaseModel)


class Body(BaseModel):
    """Base of what callers send. Unknown members are ignored, as clients of other versions send them; types are not
    bent into one another."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class ApiResponse(Response):
    """A JSON answer. `in_order` keeps the members as they stand."""

    media_type = "application/json; charset=UTF-8"

    def __init__(self, content: object, status_code: int = 200, *, in_order: bool = False) -> None:
        text = json.dumps(content, ensure_ascii=False, sort_keys=not in_order, separators=(",", ":"))
        # Markup characters are escaped so that no browser can take an answer for a page.
        super().__init__(text.translate(_ESCAPES) + "\n", status_code, headers={"cache-control": "no-store"})


async def read_body(request: Request, model: type[M]) -> tuple[M, dict[str, Any]]:
    """The body as a model, and as it was sent. Raises `BadRequest`."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            raise BadRequest("the request body is too large")
    try:
        raw = json.loads(bytes(body), object_pairs_hook=_no_doubles, parse_constant=_no_constant)
        if not isinstance(raw, dict):
            raise BadRequest("the request body must be a JSON object")
        return model.model_validate_json(bytes(body)), raw
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"couldn't parse the request: {where}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise BadRequest("couldn't parse json request") from error


def moment(value: datetime | None) -> str:
    """RFC 3339 in UTC, without trailing zeros; never is the year 1."""
    if value is None:
        return "0001-01-01T00:00:00Z"
    text = value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f").rstrip("0").rstrip(".")
    return text + "Z"


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member is there twice")  # readers differ in which one counts
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
