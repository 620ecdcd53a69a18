"""Fixtures for whoever tests a plugin. Loaded by pytest itself through the `pytest11` entry point.

It imports the proxy only when a fixture is asked for: pytest loads this in every run of an environment that has the
proxy installed, and a plugin's coverage begins after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from netbird_proxy.testing.fakes import FakeManagement, FakeProxy
    from netbird_proxy.testing.transcript import Transcript


@pytest.fixture
def transcript() -> Iterator[Callable[..., Transcript]]:
    """Makes transcripts; at the test's end every effect must have been stated with `saw`."""
    from netbird_proxy.testing.transcript import Transcript

    made: list[Transcript] = []

    def make(*mappings: Any, **options: Any) -> Transcript:
        made.append(Transcript(*mappings, **options))
        return made[-1]

    yield make
    for transcript in made:
        transcript.finish()


@pytest.fixture
def fake_management() -> FakeManagement:
    """A management channel to script."""
    from netbird_proxy.testing.fakes import FakeManagement

    return FakeManagement()


@pytest.fixture
def fake_proxy(fake_management: FakeManagement, tmp_path: Any) -> FakeProxy:
    """The host as a plugin sees it, on that management channel, with a state directory."""
    from netbird_proxy.testing.fakes import FakeProxy

    return FakeProxy(management=fake_management, state_directory=tmp_path)
