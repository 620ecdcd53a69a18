"""JSON columns to models: with tolerance, as a store outlives the version that wrote it.

A field that the model lacks is ignored, and one that the column lacks gets the model's default. So a field may be added
to a model or dropped from it without a migration if the default is right for every value stored so far; a field that
guards something needs a migration, which keeps older versions from opening the store and ignoring it.
"""

from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter

M = TypeVar("M")


def decoded(model: type[M], value: Any) -> M:
    """The model of what a JSON column holds; lists become tuples. Raises `ValueError` for what fits no field."""
    adapter: TypeAdapter[M] = _adapter(model)  # type: ignore[arg-type]
    return adapter.validate_python(value)


@cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)
