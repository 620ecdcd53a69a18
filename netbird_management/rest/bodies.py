"""What request bodies may say: every value of theirs does something, or is refused by name.

NetBird's clients send more members than this management acts on. Bodies declare those as `Only` a value, and accept
them as long as they ask for what holds anyway; a member that no body declares may only be unset.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict

from netbird_management.model.errors import InvalidArgument

LONGEST: Final = 255
"""Characters of a text, where nothing else is declared: what PostgreSQL's columns and clients' lists take."""


@dataclass(frozen=True, slots=True)
class Text:
    """Declares how long a text may be, in characters, and whether it may have several lines."""

    longest: int = LONGEST
    lines: bool = False


@dataclass(frozen=True, slots=True)
class Only:
    """Declares a member that can only have one value, as nothing here would act on another."""

    value: Any


DESCRIPTION: Final = Text(1024, lines=True)


class Body(BaseModel):
    """Base of what callers send; types are not bent into one another."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    answer: ClassVar[type[BaseModel] | None] = None
    """The answer of the same resource. Clients send its members back; those that no body has change nothing."""


def check(body: BaseModel) -> None:
    """Raises `InvalidArgument` that names the first member whose value would do nothing, or is no usable text."""
    _check(body, "")


def _check(body: BaseModel, above: str) -> None:
    for name, field in type(body).model_fields.items():
        value, where = getattr(body, name), above + name
        for only in field.metadata:
            if isinstance(only, Only) and not (value is None or value == only.value or _are_unset(value, only.value)):
                raise InvalidArgument(f"{where} is not supported: it can only be {json.dumps(only.value)}")
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
    """The texts and models of a value, with the names of members among the texts."""
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
        raise InvalidArgument(f"{where} must have no control characters")


def _are_unset(*values: Any) -> bool:
    return all(_is_unset(value) for value in values)


def _is_unset(value: Any) -> bool:
    """Whether a value asks for nothing: empty, off, zero, or made of such values alone."""
    if isinstance(value, dict):
        return all(_is_unset(item) for item in value.values())
    return not value
