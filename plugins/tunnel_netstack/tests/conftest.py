"""Which event loops the tests run on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

BOTH_LOOPS = ("test_transport", "test_driver")
"""What promises to work on a loop is tried on both; the rest runs on asyncio's."""


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if item.path.stem in BOTH_LOOPS:
        factories["uvloop"] = uvloop.new_event_loop
    return factories
