"""A plugin's selector picks the upstream of each try; nothing else is ever dialed, and every try has one outcome."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from netbird_proxy import Authenticator, ExchangeView, Identity, ProxyError, Selector, Upstream, UserId
from netbird_proxy.api.errors import (
    AddressRefused,
    ClientGone,
    DialRefused,
    HeadTimeout,
    StepFailed,
    TlsFailed,
    TunnelNotReady,
    UpstreamClosed,
    UpstreamError,
)
from netbird_proxy.operator.decisions import Remembered, described
from netbird_proxy.testing.asgi import Client
from netbird_proxy.testing.makers import host_origin, route, upstream
from netbird_proxy.testing.transcript import StepHooks, Transcript
from netbird_proxy.testing.upstreams import ScriptedAnswer, ScriptedConnection, ok

ORIGIN = host_origin()
FOUR = tuple(upstream(f"http://10.0.0.{n}:80") for n in (1, 2, 3, 4))
LAST = str(FOUR[-1])
UPGRADE = [(b"connection", b"Upgrade"), (b"upgrade", b"websocket"), (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ==")]


class Backwards:
    """Picks the last candidate, and keeps what it was called with."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], list[str]]] = []
        self.outcomes: list[tuple[str, type | None]] = []

    def pick(self, _exchange: ExchangeView, candidates: Sequence[Upstream], tried: Sequence[Upstream]) -> Upstream:
        self.asked.append(([str(item) for item in candidates], [str(item) for item in tried]))
        return candidates[-1]

    def outcome(self, upstream: Upstream, error: ProxyError | None) -> None:
        self.outcomes.append((str(upstream), None if error is None else type(error)))

    @property
    def hooks(self) -> StepHooks:
        return StepHooks(select=("chooser", Selector(self.pick, self.outcome)))


def picking(pick: Callable[..., Any], outcome: Callable[..., Any] | None = None) -> StepHooks:
    return StepHooks(select=("chooser", Selector(pick, outcome)))


async def test_the_picked_upstream_is_dialed() -> None:
    """The selector sees all upstreams in their order, the trail names the pick, and the outcome follows the answer."""
    chooser = Backwards()
    play = Transcript(route(to=FOUR), hooks=chooser.hooks)

    answer = await play.request(origin=ORIGIN)

    assert answer.status == 200
    play.saw("select chooser", f"dial {LAST}", "respond 200", "observe 200")
    assert chooser.asked == [([str(item) for item in FOUR], [])]
    assert chooser.outcomes == [(LAST, None)]
    assert [(entry.stage, entry.plugin, entry.verdict, entry.reason) for entry in play.exchange.trail] == [
        ("select", "chooser", "pick", LAST)
    ]


@pytest.mark.parametrize("failure", [DialRefused, TlsFailed])
async def test_an_upstream_that_cannot_be_reached_gives_way_to_another_pick(failure: type[UpstreamError]) -> None:
    """At most three times, each with the remaining candidates; each try is in `explain`."""
    chooser = Backwards()
    play = Transcript(route(to=FOUR), hooks=chooser.hooks, upstream=[failure("x"), failure("x"), failure("x"), ok()])

    answer = await play.request("POST", headers=[(b"content-length", b"2")], body=[b"ab"], origin=ORIGIN)

    names = [str(item) for item in FOUR]
    assert answer.status == failure.status
    assert chooser.asked == [(names, []), (names[:3], names[3:]), (names[:2], [names[3], names[2]])]
    assert chooser.outcomes == [(names[3], failure), (names[2], failure), (names[1], failure)]
    story = described(Remembered(play.exchange))
    assert [attempt["to"] for attempt in story["upstream"]] == names[:0:-1]
    assert [step["reason"] for step in story["steps"] if step["stage"] == "select"] == names[:0:-1]


@pytest.mark.parametrize("failure", [UpstreamClosed, HeadTimeout, AddressRefused, TunnelNotReady])
async def test_a_request_that_may_have_arrived_is_sent_to_no_other_pick(failure: type[UpstreamError]) -> None:
    """Nor is another upstream picked where the operator refuses an address, or all of them need the tunnel."""
    chooser = Backwards()
    play = Transcript(route(to=FOUR), hooks=chooser.hooks, upstream=[failure("x"), ok()])

    answer = await play.request(origin=ORIGIN)

    assert (answer.status, len(play.exchange.tries)) == (failure.status, 1)
    assert chooser.outcomes == [(LAST, failure)]


async def test_a_tls_failure_behind_the_request_is_tried_nowhere_else() -> None:
    """The same error before and after the request was sent has different consequences."""
    chooser = Backwards()

    class Broken(ScriptedConnection):
        async def answer(self, informational: Any = None) -> ScriptedAnswer:
            raise TlsFailed("a bad record")

    play = Transcript(route(to=FOUR), hooks=chooser.hooks)
    pool = play.upstreams.pools[-1]

    async def acquire(**_: Any) -> ScriptedConnection:
        pool.in_flight += 1
        return Broken(pool, ok(), reused=False)

    pool.acquire = acquire  # type: ignore[method-assign,assignment]
    answer = await play.request(origin=ORIGIN)

    assert (answer.status, len(play.exchange.tries)) == (TlsFailed.status, 1)
    assert chooser.outcomes == [(LAST, TlsFailed)]


async def test_upgrades_are_selected_and_passed_on_too() -> None:
    """An upgrade whose upstream cannot be reached goes to the next pick, and its outcome follows its end."""
    chooser = Backwards()
    switched = ScriptedAnswer(101, headers=[(b"upgrade", b"websocket"), (b"connection", b"Upgrade")], body=(b"x",))
    play = Transcript(route(to=FOUR), hooks=chooser.hooks, upstream=[DialRefused("x"), switched])

    answer = await play.run(Client(headers=UPGRADE, upgrade=True, origin=ORIGIN))

    assert (answer.status, answer.body) == (101, b"x")
    assert chooser.outcomes == [(LAST, DialRefused), (str(FOUR[2]), None)]


async def test_upgrades_without_a_selector_go_to_the_next_upstream_too() -> None:
    """Nothing was sent to an upstream that could not be dialed."""
    switched = ScriptedAnswer(101, headers=[(b"upgrade", b"websocket"), (b"connection", b"Upgrade")])
    play = Transcript(route(to=FOUR), upstream=[TlsFailed("x"), switched])

    answer = await play.run(Client(headers=UPGRADE, upgrade=True, origin=ORIGIN))

    assert answer.status == 101
    assert [attempt.error for attempt in play.exchange.tries] == ["tls_failed", ""]


def raises(*_: object) -> Any:
    raise SystemExit(3)


def an_equal_one(_exchange: object, candidates: Sequence[Upstream], _tried: object) -> Any:
    return upstream(str(candidates[0]))


def a_foreign_one(*_: object) -> Any:
    return upstream("http://192.0.2.1:80")


async def _later() -> Any: ...


def later(*_: object) -> Any:
    return _later()


def nothing(*_: object) -> Any:
    return None


@pytest.mark.parametrize("pick", [raises, an_equal_one, a_foreign_one, later, nothing])
async def test_promise_11_a_wrong_pick_is_never_dialed(pick: Callable[..., Any]) -> None:
    """503 `step_failed`; the core does not choose in the selector's place."""
    outcomes: list[object] = []
    play = Transcript(route(to=FOUR), hooks=picking(pick, lambda *of: outcomes.append(of)))

    answer = await play.request(origin=ORIGIN)

    assert (answer.status, play.upstreams.dialed, outcomes) == (503, 0, [])
    assert b"step_failed" in answer.body
    error = play.exchange.error
    assert isinstance(error, StepFailed)
    assert (error.plugin, error.stage) == ("chooser", "select")


async def test_promise_11_a_tried_upstream_is_not_dialed_again() -> None:
    """A selector that returns one ends the exchange."""
    play = Transcript(route(to=FOUR), hooks=picking(lambda *_: FOUR[0]), upstream=[DialRefused("x"), ok()])

    answer = await play.request(origin=ORIGIN)

    assert (answer.status, len(play.exchange.tries)) == (503, 1)
    assert b"step_failed" in answer.body


async def test_promise_11_a_late_pick_is_not_dialed() -> None:
    """The selector gets the outcome of its pick nevertheless, so that what it counts stays right."""
    outcomes: list[object] = []

    def late(_exchange: object, candidates: Sequence[Upstream], _tried: object) -> Upstream:
        until = time.monotonic() + 0.02
        while time.monotonic() < until:
            pass
        return candidates[0]

    hooks = picking(late, lambda upstream, error: outcomes.append((upstream, type(error))))
    play = Transcript(route(to=FOUR), hooks=hooks, timeout=0.01)

    answer = await play.request(origin=ORIGIN)

    assert (answer.status, play.upstreams.dialed) == (503, 0)
    assert outcomes == [(FOUR[0], StepFailed)]


@pytest.mark.parametrize("outcome", [raises, later, lambda *_: 3])
async def test_an_outcome_that_fails_changes_nothing(outcome: Callable[..., Any]) -> None:
    """It is logged, counted and in the trail; the answer is the upstream's, and a retry goes on."""
    hooks = picking(lambda _exchange, candidates, _tried: candidates[0], outcome)
    play = Transcript(route(to=FOUR), hooks=hooks, upstream=[DialRefused("x"), ok(b"fine")])

    with capture_logs() as logs:
        answer = await play.request(origin=ORIGIN)

    assert (answer.status, answer.body) == (200, b"fine")
    failed = [entry for entry in logs if entry["event"] == "exchange.step_failed"]
    assert [(entry["plugin"], entry["stage"]) for entry in failed] == [("chooser", "select")] * 2
    assert [entry.verdict for entry in play.exchange.trail] == ["pick", "failed", "pick", "failed"]


async def test_a_client_that_leaves_is_no_fault_of_the_upstream() -> None:
    """The outcome is an error that is not the upstream's, and it comes although the task was cancelled."""
    chooser = Backwards()
    waiting = asyncio.Event()

    class Silent(ScriptedConnection):
        async def answer(self, informational: Any = None) -> ScriptedAnswer:
            waiting.set()
            await asyncio.Event().wait()
            raise AssertionError

    play = Transcript(route(to=FOUR), hooks=chooser.hooks)
    pool = play.upstreams.pools[-1]

    async def acquire(**_: Any) -> ScriptedConnection:
        pool.in_flight += 1
        return Silent(pool, ok(), reused=False)

    pool.acquire = acquire  # type: ignore[method-assign,assignment]
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        asking = group.create_task(play.request(origin=ORIGIN))
        await waiting.wait()
        assert chooser.outcomes == []
        asking.cancel()

    assert chooser.outcomes == [(LAST, ClientGone)]


async def test_a_route_with_a_single_upstream_is_not_selected() -> None:
    """The hook is not called, so its requests cost nothing."""

    class Hooks(StepHooks):
        def select(self, *_: object) -> Any:
            raise AssertionError("it has nothing to select")

    play = Transcript(route(), hooks=Hooks())

    assert (await play.request(origin=ORIGIN)).status == 200


async def test_a_selector_sees_the_head_as_steps_do() -> None:
    """Its own cookies are in it, those of others are not, and the upstream gets neither."""
    seen: list[list[bytes]] = []

    def pick(exchange: ExchangeView, candidates: Sequence[Upstream], _tried: object) -> Upstream:
        seen.append(exchange.headers.get_all(b"cookie"))
        assert exchange.identity is not None
        return candidates[0]

    async def identify(_exchange: object) -> Identity:
        return Identity(UserId("alice"))

    hooks = StepHooks(
        select=("chooser", Selector(pick)), authenticate=[("login", Authenticator("exclusive", identify))]
    )
    cookies = {"mine": "chooser", "login": "login"}
    play = Transcript(route(to=FOUR), hooks=hooks, cookies=cookies)

    await play.request(origin=ORIGIN, headers=[(b"cookie", b"a=1; mine=2; login=3")])

    assert seen == [[b"a=1; mine=2"]]
    assert play.upstreams.last.get(b"cookie") == [b"a=1"]
