"""The typed hooks: what comes out in order, and what a wrong answer becomes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast

import pytest

from netbird_proxy import (
    ALLOW,
    Address,
    Authenticator,
    Claim,
    ExchangeView,
    Guard,
    Identity,
    PluginInfo,
    RequestTransform,
    ResponseTransform,
    RouteRefused,
    RouteSpec,
    Selector,
    ServiceId,
    Upstream,
    Verdict,
    always,
    hookimpl,
)
from netbird_proxy.api.errors import PluginFailed
from netbird_proxy.api.host import Proxy
from netbird_proxy.api.model import AccountId
from netbird_proxy.routing.hooks import Hooks, load_hooks

UPSTREAM = Upstream("http", Address("10.0.0.1", 80))
ROUTE = RouteSpec(ServiceId("s"), AccountId("a"), "app.example", "app.example", b"/", (UPSTREAM,))
PROXY = cast(Proxy, object())  # hooks under test only pass it on


async def allow(_exchange: ExchangeView) -> Verdict:
    return ALLOW


async def nobody(_exchange: ExchangeView) -> Identity | None:
    return None


def plugin(info: PluginInfo | None = None, /, **answers: Any) -> object:
    """A plugin each of whose hooks gives a fixed answer, or raises it."""

    def implementation(hook: str, answer: object) -> object:
        source = f"def {hook}(self): return answer()" if callable(answer) and hook != "observe" else ""
        namespace: dict[str, object] = {"answer": answer}
        exec(source or f"def {hook}(self): return answer", namespace)
        return hookimpl(cast(Callable[..., object], namespace[hook]))

    answers["describe"] = lambda: info or PluginInfo()
    return type("Plugin", (), {hook: implementation(hook, answer) for hook, answer in answers.items()})


def hooks(*plugins: object) -> Hooks:
    return load_hooks([(f"p{index}", one) for index, one in enumerate(plugins)])


def failing(error: Exception) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


def test_steps_come_with_the_plugin_that_gave_them() -> None:
    """Every step names its plugin, in order; None is left out."""
    guard, transform = Guard(allow), RequestTransform(lambda exchange, head: None, owns=(b"remote-user",))
    answers = ResponseTransform(lambda exchange, head: None, owns=(b"server",))
    seen: list[ExchangeView] = []
    all_of_it = hooks(
        plugin(restrict=guard, authorize=guard, transform_request=transform, transform_response=answers),
        plugin(restrict=None, observe=seen.append),
        plugin(restrict=guard),
    )

    assert all_of_it.restrict(ROUTE, PROXY) == [("p0", guard), ("p2", guard)]
    assert all_of_it.authorize(ROUTE, PROXY) == [("p0", guard)]
    assert all_of_it.transform_request(ROUTE, PROXY) == [("p0", transform)]
    assert all_of_it.transform_response(ROUTE, PROXY) == [("p0", answers)]
    chosen = Selector(lambda exchange, candidates, tried: candidates[0])
    assert hooks(plugin(select=None), plugin(select=chosen), plugin(select=3)).select(ROUTE, PROXY) == ("p1", chosen)
    assert hooks(plugin(select=None)).select(ROUTE, PROXY) is None
    assert [name for name, _ in all_of_it.observe(None, PROXY)] == ["p1"]


def test_authenticators_are_asked_by_phase_then_in_order() -> None:
    """Phases come first, whatever the plugins' order; inside a phase that order holds, and a plugin's own."""

    def step(phase: str) -> Authenticator:
        return Authenticator(phase, nobody)  # type: ignore[arg-type]

    found = hooks(
        plugin(authenticate=[step("prompt"), step("credential"), step("credential")]),
        plugin(authenticate=step("ambient")),
        plugin(authenticate=step("exclusive")),
        plugin(authenticate=step("credential")),
    ).authenticate(ROUTE, PROXY)

    assert [(name, one.phase) for name, one in found] == [
        ("p2", "exclusive"),
        ("p0", "credential"),
        ("p0", "credential"),
        ("p3", "credential"),
        ("p1", "ambient"),
        ("p0", "prompt"),
    ]


class Dials:
    async def dial(self, *_: object, timeout: float) -> Any:
        raise NotImplementedError


def test_the_first_dialer_is_taken_and_the_rest_not_asked() -> None:
    """A dialer ends the question; nobody's answer is None."""
    first = Dials()
    asked = hooks(plugin(dialer=None), plugin(dialer=lambda: first), plugin(dialer=failing(OSError("asked"))))

    assert asked.dialer(ROUTE, UPSTREAM, PROXY) == ("p1", first)
    assert hooks(plugin(dialer=None)).dialer(ROUTE, UPSTREAM, PROXY) is None


def test_a_refusal_passes_and_stops_the_asking() -> None:
    """RouteRefused goes to management as it is, whoever would come later."""
    refusing = hooks(plugin(dialer=failing(RouteRefused("not that address"))), plugin(dialer=Dials))

    with pytest.raises(RouteRefused, match="not that address"):
        refusing.dialer(ROUTE, UPSTREAM, PROXY)


async def later() -> None: ...


@pytest.mark.parametrize(
    "hook",
    ["restrict", "authorize", "authenticate", "transform_request", "transform_response", "select", "dialer", "observe"],
)
@pytest.mark.parametrize("answer", [failing(OSError("no")), later, lambda: 3, lambda: "text"])
def test_a_hook_that_fails_or_answers_nonsense_names_its_plugin(hook: str, answer: Callable[[], object]) -> None:
    """No failing or wrong answer is taken for "nothing to do": it raises, so that the route is refused."""
    made = hooks(plugin(), type("Plugin", (), {"describe": hookimpl(_described), hook: hookimpl(_of(hook, answer))}))
    arguments = (ROUTE, UPSTREAM, PROXY) if hook == "dialer" else (ROUTE, PROXY)

    with pytest.raises(PluginFailed, match=f"plugin p1: {hook}"):
        getattr(made, hook)(*arguments)


def _described(self: object) -> PluginInfo:
    return PluginInfo()


def _of(name: str, answer: Callable[[], object]) -> Callable[[object], object]:
    namespace: dict[str, object] = {"answer": answer}
    exec(f"def {name}(self): return answer()", namespace)
    return cast(Callable[[object], object], namespace[name])


async def seen_later(*_: object) -> None: ...


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("authenticate", Authenticator("soon", nobody)),  # type: ignore[arg-type]
        ("authenticate", Authenticator("prompt", None)),  # type: ignore[arg-type]
        ("authenticate", [Authenticator("prompt", nobody), None]),
        ("restrict", Guard(None)),  # type: ignore[arg-type]
        ("restrict", Guard(allow, kinds=frozenset(("htpp",)))),  # type: ignore[arg-type]
        ("restrict", Guard(allow, kinds=frozenset())),
        ("restrict", Guard(allow, body_bytes=-1)),
        ("transform_request", RequestTransform(seen_later)),  # type: ignore[arg-type]
        ("transform_request", RequestTransform(None)),  # type: ignore[arg-type]
        ("transform_request", RequestTransform(lambda exchange, head: None, owns=("x",))),  # type: ignore[arg-type]
        ("transform_response", ResponseTransform(seen_later)),  # type: ignore[arg-type]
        ("transform_response", ResponseTransform(None)),  # type: ignore[arg-type]
        ("transform_response", ResponseTransform(lambda exchange, head: None, owns=("x",))),  # type: ignore[arg-type]
        ("transform_response", ResponseTransform(lambda exchange, head: None, owns=(b"",))),
        ("transform_response", RequestTransform(lambda exchange, head: None)),
        ("select", Selector(seen_later)),  # type: ignore[arg-type]
        ("select", Selector(None)),  # type: ignore[arg-type]
        ("select", Selector(lambda exchange, candidates, tried: candidates[0], seen_later)),  # type: ignore[arg-type]
        ("select", Selector(lambda exchange, candidates, tried: candidates[0], 3)),  # type: ignore[arg-type]
        ("select", Guard(allow)),
        ("observe", seen_later),
    ],
)
def test_a_step_of_the_wrong_shape_is_refused(hook: str, step: object) -> None:
    """A step that could not be run, or whose work nobody would await, is refused when the route is made."""
    with pytest.raises(PluginFailed, match=hook):
        getattr(hooks(plugin(**{hook: step})), hook)(ROUTE, PROXY)


def test_facts_of_all_plugins_are_joined() -> None:
    """Claims know their plugin; names are pooled; models come in plugin order."""

    class Settings:
        @classmethod
        def from_wire(cls, mapping: object) -> Settings:
            return cls()

    claim = Claim("private", always)
    made = hooks(
        plugin(PluginInfo(capabilities=("z", "a"), claims=(claim,), notes=("n",))),
        plugin(PluginInfo(capabilities=("m",), cookies=("c",), settings=(Settings,))),
    )

    assert made.claims == {"private": ("p0", claim)}
    assert made.capabilities == ("a", "m", "z")
    assert (made.notes, set(made.cookies)) == (frozenset("n"), {"c"})
    assert made.settings == (("p1", Settings),)


def test_a_settings_model_that_cannot_be_read_is_refused() -> None:
    """A model without `from_wire` would leave every mapping without its settings."""
    with pytest.raises(PluginFailed, match="no `from_wire`"):
        hooks(plugin(PluginInfo(settings=(int,))))


def test_a_plugin_that_cannot_be_loaded_is_an_error_of_the_proxy() -> None:
    """The host kit's refusal arrives in the proxy's own error tree."""
    with pytest.raises(PluginFailed, match="plugin nowhere: is not installed"):
        load_hooks(["nowhere"])


def recorded(
    name: str, record: list[str], *, enter: Exception | None = None, leave: Exception | None = None
) -> Callable[[], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def context() -> AsyncIterator[None]:
        if enter:
            raise enter
        record.append(f"enter {name}")
        try:
            yield
        finally:
            record.append(f"leave {name}")
            if leave:
                raise leave

    return context


async def test_lifespans_are_entered_in_order_and_left_in_reverse() -> None:
    """What one plugin needs of an earlier one is there while it runs."""
    record: list[str] = []

    async with hooks(plugin(lifespan=recorded("a", record)), plugin(lifespan=recorded("b", record))).running(PROXY):
        record.append("run")

    assert record == ["enter a", "enter b", "run", "leave b", "leave a"]


async def test_a_lifespan_that_cannot_start_stops_the_start_and_the_rest_is_left() -> None:
    """The failure names its plugin and those entered before are left."""
    record: list[str] = []
    made = hooks(plugin(lifespan=recorded("a", record)), plugin(lifespan=recorded("b", record, enter=OSError("no"))))

    with pytest.raises(PluginFailed, match="plugin p1: lifespan could not start: OSError: no"):
        async with made.running(PROXY):
            record.append("run")

    assert record == ["enter a", "leave a"]


async def test_a_lifespan_that_fails_on_leaving_is_named_and_the_rest_is_left() -> None:
    """One plugin's failing end does not keep another from its own."""
    record: list[str] = []
    made = hooks(plugin(lifespan=recorded("a", record)), plugin(lifespan=recorded("b", record, leave=OSError("no"))))

    with pytest.raises(PluginFailed, match="plugin p1: lifespan failed: OSError: no"):
        async with made.running(PROXY):
            pass

    assert record == ["enter a", "enter b", "leave b", "leave a"]


@asynccontextmanager
async def working(work: Callable[[], Any]) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work())
        yield
        task.cancel()


async def test_failing_background_work_ends_the_run_and_is_named() -> None:
    """A plugin whose background work dies does not leave a proxy that runs without it."""

    async def work() -> None:
        raise OSError("no")

    with pytest.raises(PluginFailed, match="plugin p0: lifespan failed: OSError: no"):
        async with hooks(plugin(lifespan=lambda: working(work))).running(PROXY):
            await asyncio.Event().wait()


async def test_what_passes_through_a_lifespan_stays_what_it_is() -> None:
    """A failure of the proxy is not blamed on a plugin whose TaskGroup it passed, and cannot be swallowed by one."""

    class Swallows:
        async def __aenter__(self) -> None: ...
        async def __aexit__(self, *_: object) -> bool:
            return True

    made = hooks(plugin(lifespan=lambda: working(asyncio.Event().wait)), plugin(lifespan=Swallows))

    with pytest.raises(ZeroDivisionError):
        async with made.running(PROXY):
            raise ZeroDivisionError


def test_a_lifespan_must_be_a_context_manager() -> None:
    """Anything else would never be entered."""
    with pytest.raises(PluginFailed, match="return an async context manager"):
        hooks(plugin(lifespan=lambda: 3)).lifespans(PROXY)
