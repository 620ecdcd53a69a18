"""Conversion of JSON columns to models, tolerant of other versions' fields.

A field that the model lacks is ignored, and a field that the column lacks gets the model's default. Without a migration
a field may therefore be added to a model or removed from it, if the default is right for every value stored so far. A
field that protects access needs a migration, which keeps older versions from opening the store and ignoring the field.
"""

from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter

M = TypeVar("M")


def decoded(model: type[M], value: Any) -> M:
    """The model for a JSON column's value; lists become tuples. Raises `ValueError` for a value of a wrong type."""
    adapter: TypeAdapter[M] = _adapter(model)  # type: ignore[arg-type]
    return adapter.validate_python(value)


@cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)
