"""Promise 11: no plugin ends the process or opens a door, whatever its steps, hooks, tasks and dialers do.

Every kind of code that a plugin gives × every way in which it may fail. A test that reaches its end shows that the loop
still runs.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from netbird_host.containment import HungSteps
from netbird_proxy import (
    ALLOW,
    Authenticator,
    Deny,
    Endpoint,
    Guard,
    Identity,
    PluginInfo,
    RequestTransform,
    ResponseTransform,
    UserId,
    hookimpl,
)
from netbird_proxy.accounts.accounts import Accounts, AccountState
from netbird_proxy.api.errors import DialFailed, DialTimeout, PluginFailed, UpstreamError
from netbird_proxy.api.model import AccountId
from netbird_proxy.routing.hooks import load_hooks
from netbird_proxy.testing.asgi import Answer
from netbird_proxy.testing.fakes import FakeManagement, FakeProxy
from netbird_proxy.testing.makers import host_origin, route, upstream
from netbird_proxy.testing.transcript import StepHooks, Transcript
from netbird_proxy.upstreams.pool import UpstreamPool

TIMEOUT = 0.05
WAIT = 20.0


class Odd(BaseException):
    """Neither an Exception nor one of Python's own."""


def raising(error: Callable[[], BaseException]) -> Callable[[], object]:
    def raises() -> object:
        raise error()

    raises.__name__ = f"raises_{error().__class__.__name__}"
    return raises


RAISES = [
    raising(make)
    for make in (
        lambda: ValueError("a defect"),
        lambda: SystemExit(3),
        lambda: KeyboardInterrupt(),
        lambda: GeneratorExit(),
        lambda: asyncio.CancelledError(),
        lambda: Odd("odd"),
        lambda: BaseExceptionGroup("", [SystemExit(3)]),
        lambda: StopIteration(),
    )
]
"""What plain code may do; a step that is awaited does the same before it first waits."""


def blocks() -> object:
    """Hold the loop until the deadline has passed, then say yes: no timer can run meanwhile."""
    until = time.monotonic() + 2 * TIMEOUT
    while time.monotonic() < until:
        pass
    return ALLOW


def nothing() -> object:
    return None


def a_number() -> object:
    return 1


def not_awaited() -> object:
    return _hangs()


PLAIN = [*RAISES, blocks, nothing, a_number, not_awaited]


async def _hangs() -> object:
    await asyncio.Event().wait()
    return ALLOW


async def _ignores() -> object:
    """Go on in spite of every cancellation, long after the deadline and the grace behind it."""
    until = time.monotonic() + 6 * TIMEOUT
    while time.monotonic() < until:
        try:
            await asyncio.sleep(TIMEOUT)
        except asyncio.CancelledError:
            continue
    return ALLOW


async def _waits_then_exits() -> object:
    await asyncio.sleep(0)
    raise SystemExit(3)


async def _cancels_itself() -> object:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.Event().wait()
    return ALLOW


def awaited(plain: Callable[[], object]) -> Callable[[], Coroutine[Any, Any, object]]:
    async def step() -> object:
        return plain()

    step.__name__ = plain.__name__
    return step


AWAITED = [*map(awaited, PLAIN), _hangs, _ignores, _waits_then_exits]


OF_ITS_OWN_TASK = [*PLAIN, *(one for one in AWAITED if one.__name__ != "not_awaited"), _cancels_itself]
"""Code that is run in a task of its own. What an awaited one returns is not looked at, so it may be anything."""


def names(value: object) -> str:
    return getattr(value, "__name__", str(value))


def step(fault: Callable[[], Any]) -> Any:
    """A step of an exchange; it may be one that is not `async` at all."""

    def run(*_arguments: object) -> Any:
        return fault()

    return run


async def asked(hooks: StepHooks, *, accept: bytes = b"*/*", target: str = "/") -> tuple[Transcript, Answer]:
    """One request past the hooks; then one more, which shows that the proxy serves on."""
    play = Transcript(route(), hooks=hooks, timeout=TIMEOUT)
    play.environment.grace = play.environment.endpoint_timeout = TIMEOUT
    async with asyncio.timeout(WAIT):
        answer = await play.request("GET", target, origin=host_origin(), headers=[(b"accept", accept)])
        await play.environment.hung_steps.answered()
        assert (await play.request(host="other.example", origin=host_origin())).status == 404
    return play, answer


@pytest.mark.parametrize("fault", [*PLAIN, *AWAITED], ids=names)
@pytest.mark.parametrize("stage", ["restrict", "authenticate", "authorize"])
async def test_promise_11_a_guard_opens_nothing(stage: str, fault: Any) -> None:
    """503 `step_failed`, in time for the client, and nothing dialed."""

    async def known(_exchange: object) -> Identity:
        return Identity(UserId("alice"))

    if stage == "authenticate" and fault.__name__ == "nothing" and asyncio.iscoroutinefunction(fault):
        return  # None is an authenticator's "not mine"
    steps: dict[str, Any] = {"authenticate": [("who", Authenticator("exclusive", known))]}
    wrapped = step(fault)
    bad = Authenticator("exclusive", wrapped) if stage == "authenticate" else Guard(wrapped)
    play, answer = await asked(StepHooks(**{**steps, stage: [("culprit", bad)]}))

    assert answer.status == 503
    assert b"step_failed" in answer.body
    assert play.upstreams.dialed == 0
    assert [one.error.plugin for one in play.observed[:1]] == ["culprit"]  # type: ignore[union-attr]


@pytest.mark.parametrize("fault", [one for one in PLAIN if one not in (nothing, blocks)], ids=names)
async def test_promise_11_a_transform_sends_nothing(fault: Any) -> None:
    """503 `step_failed`, and nothing dialed."""
    play, answer = await asked(StepHooks(transform_request=[("culprit", RequestTransform(step(fault)))]))

    assert (answer.status, play.upstreams.dialed) == (503, 0)
    assert b"step_failed" in answer.body


@pytest.mark.parametrize("fault", [one for one in PLAIN if one is not nothing], ids=names)
async def test_promise_11_a_response_transform_lets_nothing_out(fault: Any) -> None:
    """503 `step_failed` in place of the upstream's answer; a refusal of the proxy is sent as it would have been."""
    transform = ResponseTransform(step(fault), own_answers=True)
    play, answer = await asked(StepHooks(transform_response=[("culprit", transform)]))

    assert (answer.status, play.upstreams.dialed) == (503, 1)
    assert b"step_failed" in answer.body
    assert [entry.plugin for entry in play.observed[0].trail] == ["culprit"]

    async def refuse(_exchange: object) -> object:
        return Deny(403, "not_in_group")

    refusing = StepHooks(transform_response=[("culprit", transform)], restrict=[("gate", Guard(refuse))])
    play, answer = await asked(refusing)

    assert (answer.status, play.upstreams.dialed) == (403, 0)
    assert [entry.plugin for entry in play.observed[0].trail] == ["gate", "culprit"]


@pytest.mark.parametrize("fault", OF_ITS_OWN_TASK, ids=names)
async def test_promise_11_an_endpoint_keeps_nobody_waiting(fault: Any) -> None:
    """Whatever it does, its client is answered 503, and is not forwarded."""
    play, answer = await asked(
        StepHooks(endpoint=[("culprit", Endpoint(step(fault)))]), target="/__netbird__/culprit/x"
    )

    assert (answer.status, play.upstreams.dialed) == (503, 0)


@pytest.mark.parametrize("fault", PLAIN, ids=names)
async def test_promise_11_pages_and_observers_are_beside_the_answer(fault: Any) -> None:
    """The answer is the one that it would have been; a page that fails is plain text."""

    async def refuse(_exchange: object) -> object:
        raise ValueError("a defect")

    _, answer = await asked(
        StepHooks(pages=step(fault), observe=[("culprit", step(fault))], restrict=[("gate", Guard(refuse))]),
        accept=b"text/html",
    )

    assert answer.status == 503
    assert b"step_failed" in answer.body


class Faulty:
    """Implements `Dialer`."""

    def __init__(self, fault: Any) -> None:
        self.dial = step_with_options(fault)


def step_with_options(fault: Any) -> Any:
    def run(*_arguments: object, **_options: object) -> Any:
        return fault()

    return run


@pytest.mark.parametrize("fault", OF_ITS_OWN_TASK, ids=names)
async def test_promise_11_a_dialer_fails_a_dial(fault: Any) -> None:
    """It is an error of the upstream, in time, and its place is free again."""
    hung_steps = HungSteps()
    pool = UpstreamPool(upstream(), Faulty(fault), dial_timeout=TIMEOUT, grace=TIMEOUT, hung_steps=hung_steps)

    async with asyncio.timeout(WAIT):
        with pytest.raises((DialFailed, DialTimeout)) as raised:
            await pool.acquire(source="198.51.100.7")

    assert isinstance(raised.value, UpstreamError)
    assert pool.in_flight == 0
    assert hung_steps.total == (fault is _ignores)


async def test_a_stream_that_comes_when_nobody_waits_any_more_is_closed() -> None:
    """A dialer that ignored its cancellation may have one after all."""
    release, aborted = asyncio.Event(), asyncio.Event()

    class Late:
        async def dial(self, *_arguments: object, **_options: object) -> Any:
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue
            return Stream(), None

    class Stream:
        def abort(self) -> None:
            aborted.set()

    hung_steps = HungSteps()
    pool = UpstreamPool(upstream(), Late(), dial_timeout=TIMEOUT, grace=TIMEOUT, hung_steps=hung_steps)
    with pytest.raises(DialTimeout):
        await pool.acquire()
    assert hung_steps.count == 1
    release.set()
    async with asyncio.timeout(WAIT):
        await aborted.wait()


def opening(fault: Any, where: str) -> Any:
    """A tunnel whose opening, changes or closing fails."""

    @asynccontextmanager
    async def tunnel() -> AsyncIterator[Any]:
        if where == "opening":
            await fault()
        try:
            yield Changing(fault if where == "changes" else _ends)
        finally:
            if where == "closing":
                await fault()

    return tunnel()


async def _ends() -> object:
    return None


class Changing:
    """As much of a tunnel as is looked at."""

    addresses = ("100.64.0.1",)

    def __init__(self, fault: Any) -> None:
        self._fault = fault

    async def changes(self) -> AsyncIterator[None]:
        await self._fault()
        for never in ():
            yield never


ENDS_LOOPS = ("raises_SystemExit", "raises_KeyboardInterrupt", "_waits_then_exits", "raises_CancelledError")
"""In a task of a plugin's own the first ones end a loop, see `netbird_host.running`; the last ends that task alone."""
FAILS = [*map(awaited, RAISES), _waits_then_exits]


@pytest.mark.parametrize("fault", FAILS, ids=names)
@pytest.mark.parametrize("where", ["opening", "changes", "closing", "hook"])
async def test_promise_11_a_tunnel_that_fails_is_reported_and_tried_again(
    where: str, fault: Any, tmp_path: Path
) -> None:
    """The account's services stay closed, and the accounts' tasks go on."""

    class Opener:
        def open_tunnel(self, _account: Any, _proxy: Any) -> Any:
            return "culprit", "no context" if where == "hook" else opening(fault, where)

    down = asyncio.Event()

    def on_change(state: AccountState) -> None:
        if state.error:
            down.set()

    accounts = Accounts(
        Opener(),  # type: ignore[arg-type]  # only tunnels are opened here
        FakeManagement(),  # type: ignore[arg-type]  # nothing registers
        tmp_path,
        listening=None,
        on_change=on_change,
        on_map=lambda _account: None,
        connections=100,
    )
    async with asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
        await accounts.run(FakeProxy(), group)
        accounts.want(frozenset((AccountId("acme"),)))
        await down.wait()
        assert accounts.tunnel(AccountId("acme")) is None
        await accounts.stop()


@pytest.mark.parametrize("fault", RAISES, ids=names)
@pytest.mark.parametrize(
    "hook",
    [
        "restrict",
        "authenticate",
        "authorize",
        "transform_request",
        "transform_response",
        "select",
        "observe",
        "dialer",
        "endpoint",
        "pages",
    ],
)
async def test_promise_11_a_hook_that_raises_is_a_failed_plugin(hook: str, fault: Any) -> None:
    """Its route is refused, or the start is, with the plugin's name; nothing else ends."""
    plugin = type(
        "Culprit", (), {hook: hookimpl(lambda self: fault()), "describe": hookimpl(lambda self: PluginInfo())}
    )
    hooks = load_hooks([("culprit", plugin())])
    arguments: dict[str, tuple[Any, ...]] = {"pages": (FakeProxy(),), "dialer": (route(), upstream(), FakeProxy())}

    with pytest.raises(PluginFailed, match="culprit"):
        getattr(hooks, hook)(*arguments.get(hook, (route(), FakeProxy())))


@pytest.mark.parametrize("fault", FAILS, ids=names)
@pytest.mark.parametrize("where", ["entering", "leaving"])
async def test_promise_11_a_lifespan_that_raises_is_a_failed_plugin(where: str, fault: Any) -> None:
    """Both on the way in and on the way out, with the plugin's name."""

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        if where == "entering":
            await fault()
        yield
        if where == "leaving":
            await fault()

    plugin = type(
        "Culprit",
        (),
        {"lifespan": hookimpl(lambda self: lifespan()), "describe": hookimpl(lambda self: PluginInfo())},
    )
    hooks = load_hooks([("culprit", plugin())])

    with pytest.raises(PluginFailed, match="culprit"):
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(hooks.running(FakeProxy()))


@pytest.mark.parametrize("fault", [one for one in FAILS if one.__name__ not in ENDS_LOOPS], ids=names)
async def test_promise_11_background_work_that_fails_is_reported_and_the_rest_goes_on(
    fault: Any,
) -> None:
    """The event has its traceback, whoever runs the proxy may drain it, and the other plugins are left in order."""
    failing = asyncio.Event()
    told: asyncio.Future[PluginFailed] = asyncio.get_running_loop().create_future()
    left: list[str] = []

    async def background() -> None:
        await failing.wait()
        await fault()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            group.create_task(background())
            yield

    @asynccontextmanager
    async def other() -> AsyncIterator[None]:
        yield
        left.append("other")

    def plugin(life: Callable[[], Any]) -> Any:
        hooks = {"lifespan": hookimpl(lambda self: life()), "describe": hookimpl(lambda self: PluginInfo())}
        return type("Plugin", (), hooks)()

    hooks = load_hooks([("other", plugin(other)), ("culprit", plugin(lifespan))])

    async def run() -> None:
        async with hooks.running(FakeProxy(), on_failure=told.set_result):
            failing.set()
            assert (await told).plugin == "culprit"
            assert left == []  # the proxy is still there, and so is everybody else

    async with asyncio.timeout(WAIT):
        with capture_logs() as events, pytest.raises(PluginFailed, match="culprit"):
            await run()
    assert left == ["other"]
    (failed,) = (event for event in events if event["event"] == "plugin.failed")
    frames = traceback.extract_tb(failed["exc_info"].__traceback__)
    assert "background" in [frame.name for frame in frames]


@pytest.mark.parametrize("fault", RAISES, ids=names)
def test_promise_11_a_plugin_that_raises_as_it_is_loaded_is_a_failed_plugin(fault: Any) -> None:
    """The start ends with a sentence. Without a loop an interrupt is the operator's own."""
    expected = (KeyboardInterrupt, GeneratorExit) if fault.__name__ in INTERRUPTS else PluginFailed
    plugin = type("Culprit", (), {"describe": hookimpl(lambda self: fault())})
    with pytest.raises(expected):
        load_hooks([("culprit", plugin())])


INTERRUPTS = ("raises_KeyboardInterrupt", "raises_GeneratorExit")
