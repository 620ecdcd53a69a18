"""The story on real processes, as `make demo` plays it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from examples.demo.stack import Stack, stack
from examples.demo.story import STORY, Step

pytestmark = [pytest.mark.live, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def story(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One stack for all steps: each goes on where the one before it ended."""
    directory: Path = tmp_path_factory.mktemp("story")
    async with stack(directory) as running:
        yield running


@pytest.mark.parametrize("step", STORY, ids=[step.play.__name__ for step in STORY])
async def test_step(story: Stack, step: Step) -> None:
    """Each step keeps its promise, or says what came instead."""
    await step.play(story)
