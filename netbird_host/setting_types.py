"""Building blocks of settings models: sections, secrets, durations and counts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from netbird_wire.go_duration import parse_duration

_WHOLE = re.compile(r"[+-]?[0-9]+")


class Secret(SecretStr):
    """A string that `repr`, `str` and JSON show as `***`. `get_secret_value` returns it."""

    def _display(self) -> str:
        return "***" if self.get_secret_value() else ""

    def __repr__(self) -> str:
        return self._display()


class Section(BaseModel):
    """Base of settings models: frozen, and refuses unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    older_names: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Older name of a setting → its present name. The older one is still read, and reported at the start."""


def _seconds(value: object) -> object:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
        try:
            return parse_duration(value)
        except ValueError:
            pass
    elif isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise ValueError("expected seconds as a number, or a text such as 500ms, 90s or 1m30s")


def _whole(value: object) -> object:
    if isinstance(value, bool | float) or (isinstance(value, str) and not _WHOLE.fullmatch(value.strip())):
        raise ValueError("expected a whole number")
    return value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, allow_inf_nan=False)]
"""A duration above zero, in seconds."""
SecondsOrZero = Annotated[float, BeforeValidator(_seconds), Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
"""A whole number of at least 1."""
Port = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=65535)]
