"""Validation of request bodies: management acts on every value it accepts, and refuses the others by field name.

NetBird's clients send more fields than this management supports. A body declares such a field as `Only` its supported
value; a field that no body declares must be unset.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict

from netbird_management.model.errors import InvalidArgument

LONGEST: Final = 255
"""Maximum length of a string without a declaration of its own, in characters: the width of PostgreSQL's columns."""


@dataclass(frozen=True, slots=True)
class Text:
    """Declares the maximum length of a string, in characters, and whether it may contain line breaks and tabs."""

    longest: int = LONGEST
    lines: bool = False


@dataclass(frozen=True, slots=True)
class Only:
    """Declares the only supported value of a field; any other value except an unset one is refused."""

    value: Any


DESCRIPTION: Final = Text(1024, lines=True)


class Body(BaseModel):
    """Base of all request bodies. Values are not converted: the string "1" is no integer."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    answer: ClassVar[type[BaseModel] | None] = None
    """The response of the same resource. Clients send its fields back; those that the body does not declare are
    ignored."""


def check(body: BaseModel) -> None:
    """Raises `InvalidArgument` that names the first field with an unsupported value or a malformed string."""
    _check(body, "")


def _check(body: BaseModel, above: str) -> None:
    for name, field in type(body).model_fields.items():
        value, where = getattr(body, name), above + name
        for only in field.metadata:
            if isinstance(only, Only) and not (value is None or value == only.value or _are_unset(value, only.value)):
                raise InvalidArgument(f"{where} is not supported; it must be {json.dumps(only.value)}")
        kind = next((entry for entry in field.metadata if isinstance(entry, Text)), Text())
        for at, inside in _inside(value, where):
            if isinstance(inside, BaseModel):
                _check(inside, f"{at}.")
            else:
                _check_text(at, inside, kind)
    shown = body.answer.model_fields if isinstance(body, Body) and body.answer is not None else {}
    for name, value in (body.model_extra or {}).items():
        if name not in shown and not _is_unset(value):
            raise InvalidArgument(f"{above}{name[:LONGEST]} is not supported")


def _inside(value: object, where: str) -> Iterator[tuple[str, BaseModel | str]]:
    """The strings and models within a value, each with its path; the keys of a dictionary are among the strings."""
    if isinstance(value, str | BaseModel):
        yield where, value
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _inside(item, f"{where}.{number}")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield where, name
            yield from _inside(item, f"{where}.{name[:LONGEST]}")


def _check_text(where: str, text: str, kind: Text) -> None:
    if len(text) > kind.longest:
        raise InvalidArgument(f"{where} must be at most {kind.longest} characters")
    allowed = "\n\r\t" if kind.lines else ""
    if any(
        (char < " " or "\x7f" <= char < "\xa0" or "\ud800" <= char < "\ue000") and char not in allowed for char in text
    ):
        raise InvalidArgument(f"{where} must not contain control characters")


def _are_unset(*values: Any) -> bool:
    return all(_is_unset(value) for value in values)


def _is_unset(value: Any) -> bool:
    """True for a value that requests nothing: empty, false, zero, or a dictionary of such values."""
    if isinstance(value, dict):
        return all(_is_unset(item) for item in value.values())
    return not value
