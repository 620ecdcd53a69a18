"""Tasks outside a TaskGroup: the one place that starts them.

A TaskGroup is the rule, because it keeps a task's exception and its cancellation. It does not fit where a task must
outlive its caller, or where a failure must not end its siblings. There the starter owns the task: it keeps a reference,
cancels the task when it leaves, and reads its result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def start_owned(work: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
    """Start a task on the running loop. The caller owns it, as above, and says in a comment why it is in no group."""
    return asyncio.get_running_loop().create_task(work, name=name)
