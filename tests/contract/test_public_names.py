"""What plugin authors import: `__all__` says it, and says nothing else. (That plugins keep to it: `lint-imports`.)"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import pytest

import netbird_management
import netbird_proxy
import netbird_proxy.api.steps

HOSTS = pytest.mark.parametrize("host", [netbird_proxy, netbird_management], ids=lambda host: host.__name__)


@HOSTS
def test_all_is_what_there_is(host: ModuleType) -> None:
    """Every name that the package imports for others is listed once, in order, and every listed name is there."""
    there = {
        name for name, value in vars(host).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }

    assert sorted(there) == sorted(host.__all__)
    assert len(set(host.__all__)) == len(host.__all__)


@pytest.mark.parametrize("module", ["netbird_proxy.api.exchange", "netbird_proxy.api.steps"])
def test_inner_all_is_there(module: str) -> None:
    """A module that lists its names lists names that it has."""
    found = import_module(module)

    assert [name for name in found.__all__ if not hasattr(found, name)] == []


def test_every_protocol_of_the_steps_is_public() -> None:
    """What a plugin returns or is given, it can name."""
    defined = {
        name
        for name, value in vars(netbird_proxy.api.steps).items()
        if isinstance(value, type) and value.__module__ == "netbird_proxy.api.steps"
    }

    assert defined - set(netbird_proxy.__all__) == set()
