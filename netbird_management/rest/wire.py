"""JSON of requests and responses. Responses are compact, with sorted keys and a newline at the end."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from fastapi import Depends
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from netbird_management.model.errors import BadRequest
from netbird_management.rest.bodies import check

DEPTH: Final = 100
"""Maximum depth of nested objects and lists; beyond it 400."""
_ESCAPES: Final = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


class ApiResponse(Response):
    """A JSON response. `in_order` keeps the order of the keys instead of sorting them."""

    media_type = "application/json; charset=UTF-8"

    def __init__(self, content: object, status_code: int = 200, *, in_order: bool = False) -> None:
        text = json.dumps(content, ensure_ascii=False, sort_keys=not in_order, separators=(",", ":"))
        # Markup characters are escaped so that no browser renders a response as a page.
        super().__init__(text.translate(_ESCAPES) + "\n", status_code, headers={"cache-control": "no-store"})


async def sent_json(request: Request) -> dict[str, Any]:
    """The body as the client sent it. FastAPI caches the result, so each request is parsed once.

    Raises `BadRequest`.
    """
    try:
        raw = json.loads((await request.body()).decode(), object_pairs_hook=_no_doubles, parse_constant=_no_constant)
        _check_values(raw)
    except (ValueError, RecursionError) as error:
        raise BadRequest("couldn't parse json request") from error
    if not isinstance(raw, dict):
        raise BadRequest("the request body must be a JSON object")
    return raw


SentJson = Annotated[dict[str, Any], Depends(sent_json)]


@dataclass(frozen=True, slots=True)
class BodyReader:
    """A dependency that yields the body as a model. The OpenAPI document takes the model from here."""

    model: type[BaseModel]

    async def __call__(self, raw: SentJson) -> BaseModel:
        """Raises `BadRequest` that names the first invalid field, and `InvalidArgument` as `bodies.check` does."""
        try:
            body = self.model.model_validate(raw)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BadRequest(f"couldn't parse the request: {where}: {first['msg']}") from error
        check(body)
        return body


def sent_as(model: type[BaseModel]) -> Any:
    """A dependency that yields the request's body: `body: Annotated[GroupRequest, sent_as(GroupRequest)]`."""
    return Depends(BodyReader(model))


def moment(value: datetime | None) -> str:
    """A time in RFC 3339, in UTC, without trailing zeros. None becomes the year 1, which clients show as "never"."""
    if value is None:
        return "0001-01-01T00:00:00Z"
    text = value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f").rstrip("0").rstrip(".")
    return text + "Z"


def _check_values(value: object, depth: int = 0) -> None:
    """Raises `ValueError` for an unpaired surrogate, which UTF-8 cannot encode, and for a value nested too deeply."""
    if depth > DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict):
        for name, inside in value.items():
            name.encode()
            _check_values(inside, depth + 1)
    elif isinstance(value, list):
        for inside in value:
            _check_values(inside, depth + 1)


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a field occurs twice")  # JSON parsers differ in the one that they keep
    return members


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
