"""JSON in and out: bodies are read with a limit, written with sorted keys, compact, and with a newline at the end."""

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
"""Objects and lists within one another."""
_ESCAPES: Final = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


class ApiResponse(Response):
    """A JSON answer. `in_order` keeps the members as they stand."""

    media_type = "application/json; charset=UTF-8"

    def __init__(self, content: object, status_code: int = 200, *, in_order: bool = False) -> None:
        text = json.dumps(content, ensure_ascii=False, sort_keys=not in_order, separators=(",", ":"))
        # Markup characters are escaped so that no browser can take an answer for a page.
        super().__init__(text.translate(_ESCAPES) + "\n", status_code, headers={"cache-control": "no-store"})


async def sent_json(request: Request) -> dict[str, Any]:
    """The body as it was sent. FastAPI parses it once a request, however many dependencies take it.

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
    """A dependency: the body as a model. The API's document finds the model here."""

    model: type[BaseModel]

    async def __call__(self, raw: SentJson) -> BaseModel:
        """Raises `BadRequest` that names the first member that is wrong, and `InvalidArgument` as `bodies.check`."""
        try:
            body = self.model.model_validate(raw)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BadRequest(f"couldn't parse the request: {where}: {first['msg']}") from error
        check(body)
        return body


def sent_as(model: type[BaseModel]) -> Any:
    """The body of a request: `given: Annotated[GroupRequest, sent_as(GroupRequest)]`."""
    return Depends(BodyReader(model))


def moment(value: datetime | None) -> str:
    """RFC 3339 in UTC, without trailing zeros; never is the year 1."""
    if value is None:
        return "0001-01-01T00:00:00Z"
    text = value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f").rstrip("0").rstrip(".")
    return text + "Z"


def _check_values(value: object, depth: int = 0) -> None:
    """Raises `ValueError` for half of a surrogate pair, which is no text, and for what nests too deep to be stored."""
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
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member occurs twice")  # readers differ in which one counts
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
