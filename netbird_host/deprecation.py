"""Older names of things that plugins use: each works, and a DeprecationWarning names the present one."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def older_name(old: str, new: str) -> property:
    """A read-only property under the older name of an attribute.

    Args:
        old: with its class, for the message: `Origin.tls_ahead`.
        new: the attribute that holds the value.
    """

    def read(owner: object) -> Any:
        warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=2)
        return getattr(owner, new)

    return property(read)


def older_arguments(**new_names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let callers pass keyword arguments under their older names.

    Args:
        new_names: older name → present name.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old in new_names.keys() & kwargs.keys():
                warnings.warn(f"the argument {old} is now {new_names[old]}", DeprecationWarning, stacklevel=2)
                kwargs[new_names[old]] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate
