"""`__all__` lists all names for plugin authors and nothing else. (`lint-imports` checks that plugins keep to it.)"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

import pytest

import netbird_management
import netbird_proxy
from netbird_proxy import api
from netbird_proxy.embedding import EmbeddedProxy
from netbird_proxy.testing.fakes import FakeProxy
from netbird_proxy.testing.makers import exchange, host_origin

HOSTS = pytest.mark.parametrize("host", [netbird_proxy, netbird_management], ids=lambda host: host.__name__)


@HOSTS
def test_all_is_what_there_is(host: ModuleType) -> None:
    """Every name that the package imports for others is listed once, in order, and every listed name is there."""
    there = {
        name for name, value in vars(host).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }

    assert sorted(there) == sorted(host.__all__)
    assert len(set(host.__all__)) == len(host.__all__)


def test_the_proxys_names_are_those_of_its_api() -> None:
    """Plugins get every name that a module of `netbird_proxy.api` lists, and beside them the application alone."""
    modules = [import_module(f"{api.__name__}.{module.name}") for module in iter_modules(api.__path__)]
    listed = [name for module in modules for name in module.__all__]

    assert sorted([*listed, "ReverseProxy"]) == sorted(netbird_proxy.__all__)
    assert [name for module in modules for name in module.__all__ if not hasattr(module, name)] == []


@pytest.mark.parametrize("module", ["endpoints", "host", "steps", "tunnels"])
def test_every_type_that_plugins_exchange_with_the_host_is_public(module: str) -> None:
    """A plugin can name each type that it returns or is given."""
    there = import_module(f"{api.__name__}.{module}")
    defined = {
        name for name, value in vars(there).items() if isinstance(value, type) and value.__module__ == there.__name__
    }

    assert defined - set(netbird_proxy.__all__) == set()


def test_the_state_key_of_an_endpoint_is_stable() -> None:
    """Applications that plugins mount read the view of their exchange under this key, also by its literal."""
    assert netbird_proxy.EXCHANGE_STATE == "netbird_proxy.exchange"


def test_earlier_names_of_members_warn_and_have_the_value() -> None:
    """A plugin that reads `asked_again`, `tls_ahead` or `knows_clients` still works, and its author learns the names
    that replace them."""
    with pytest.warns(DeprecationWarning, match="exchange.asked_again is now revalidating"):
        assert exchange().asked_again is False
    with pytest.warns(DeprecationWarning, match="tls_ahead is now behind_tls_proxy"):
        origin = host_origin(tls_ahead=True)
    with pytest.warns(DeprecationWarning, match="Origin.tls_ahead is now behind_tls_proxy"):
        assert origin.tls_ahead is True
    with pytest.warns(DeprecationWarning, match="knows_clients is now client_addresses_trusted"):
        proxy = FakeProxy(knows_clients=False)
    for host in (proxy, EmbeddedProxy([], []).proxy):
        with pytest.warns(DeprecationWarning, match="Proxy.knows_clients is now client_addresses_trusted"):
            assert host.knows_clients is False


def test_an_earlier_name_warns_and_is_the_new_one() -> None:
    """A plugin that imports `Mapping` still loads, and its author learns the name that replaces it."""
    with pytest.warns(DeprecationWarning, match="ServiceMapping"):
        from netbird_proxy import Mapping
    assert Mapping is netbird_proxy.ServiceMapping
    with pytest.raises(AttributeError):
        netbird_proxy.no_such_name  # noqa: B018 - the attribute access is the test
