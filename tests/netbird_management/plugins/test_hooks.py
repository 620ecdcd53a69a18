"""What the host makes of its plugins' answers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from netbird_management import AccountSnapshot, NetworkPatch, PluginInfo, Service, Violation, hookimpl
from netbird_management.compute.network_map import NetworkMaps
from netbird_management.operations.proxies import Registration
from netbird_management.plugins.hooks import HookError, load_hooks
from netbird_management.rest.app import create_app
from netbird_management.rest.context import Context
from tests.netbird_management.conftest import Api, Home
from tests.netbird_management.rest.test_services import SERVICES, body, service, target

__all__ = ["service"]


class Plugin:
    """Answers every hook with what a test gives it; an exception is raised."""

    def __init__(self, answer: Any = None) -> None:
        self._answer = answer

    def _give(self) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def lifespan(self) -> Any:
        return self._give()

    @hookimpl
    def validate_service(self, service: Service, sent: frozenset[str], account: AccountSnapshot) -> Any:
        return self._give()

    @hookimpl
    def peer_gate(self) -> Any:
        return self._give()

    @hookimpl
    def network_patches(self) -> Any:
        return self._give()


async def test_lifespans_are_entered_in_order_and_left_in_reverse(home: Home) -> None:
    """Also when what runs inside fails."""
    trail: list[str] = []

    @asynccontextmanager
    async def span(name: str) -> AsyncIterator[None]:
        trail.append(f"+{name}")
        try:
            yield
        finally:
            trail.append(f"-{name}")

    hooks = load_hooks([("one", Plugin(span("one"))), ("none", Plugin()), ("two", Plugin(span("two")))])

    async def run() -> None:
        async with hooks.lifespan(home):  # type: ignore[arg-type]
            trail.append("run")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run()
    assert trail == ["+one", "+two", "run", "-two", "-one"]


@pytest.mark.parametrize("answer", [ZeroDivisionError("x"), 1, "text", ["no violation"]])
async def test_wrong_answers_name_the_plugin(home: Home, service: Service, answer: Any) -> None:
    """A hook that raises or answers nonsense is a failure of that plugin, never an answer."""
    hooks = load_hooks([("wrong", Plugin(answer))])
    with pytest.raises(HookError, match="plugin wrong: validate_service"):
        hooks.validate_service(service, None, frozenset(), home.snapshot)
    with pytest.raises(HookError, match="plugin wrong: peer_gate"):
        hooks.peer_gates(service, home)  # type: ignore[arg-type]
    with pytest.raises(HookError, match="plugin wrong: lifespan"):
        async with hooks.lifespan(home):  # type: ignore[arg-type]
            pass


def test_a_failing_patch_adds_nothing(service: Service, home: Home) -> None:
    """The network of everybody else must not suffer from one service's plugin; access only ever comes from a patch."""
    for answer in (ZeroDivisionError("x"), "text"):
        assert load_hooks([("wrong", Plugin(answer))]).network_patches(service, home.snapshot) == ()
    patch = NetworkPatch()
    assert load_hooks([("right", Plugin(patch))]).network_patches(service, home.snapshot) == (patch,)


async def test_a_failing_rule_refuses_the_save(api: Api, proxy: Registration) -> None:
    """500 with a fixed sentence, nothing stored; and the rules of all plugins are told together."""
    plain = body(targets=[target(options={"direct_upstream": False})])
    secret = ZeroDivisionError("secret")
    for plugins, status, message in (
        ([("wrong", Plugin(secret))], 500, "internal server error"),
        ([("one", Plugin([Violation("a")])), ("two", Plugin([Violation("b")]))], 422, "a; b"),
    ):
        hooks = load_hooks(plugins)
        app = create_app(Context(api.home.state, hooks, NetworkMaps(hooks)))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=api.client.headers) as client:
            answer = await client.post(SERVICES, json=plain)
        assert answer.json() == {"message": message, "code": status}
    assert not api.home.snapshot.services
