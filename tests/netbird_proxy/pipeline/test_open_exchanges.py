"""Open exchanges: asked about again after a change, and cut within a stated bound when they may not go on."""
# Over 500 lines: one module, tried on one virtual clock.

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from netbird_proxy import ALLOW, Authenticator, Challenge, Deny, Guard, Identity, UserId
from netbird_proxy.api.model import AccountId, PublicKey, ServiceId, ServiceMapping
from netbird_proxy.pipeline.downstream import Downstream
from netbird_proxy.pipeline.open_exchanges import AT_ONCE, OpenExchanges
from netbird_proxy.testing.asgi import Client
from netbird_proxy.testing.makers import ACCOUNT, SERVICE, exchange, host_origin, mapping, route, upstream
from netbird_proxy.testing.transcript import StepHooks, Transcript
from netbird_proxy.testing.upstreams import ScriptedAnswer


class Door:
    """A guard and an authenticator that say what the test wants said now."""

    def __init__(self) -> None:
        self.user: Any = Identity(UserId("alice"), attributes={"peer_key": "key-1"})
        self.verdict: Any = ALLOW
        self.asked = 0
        self.bodies: list[bytes | None] = []
        self.again: list[bool] = []

    async def identify(self, _exchange: object) -> Any:
        return self.user

    async def judge(self, exchange: Any) -> Any:
        self.asked += 1
        self.bodies.append(exchange.body)
        self.again.append(exchange.revalidating)
        if isinstance(self.verdict, BaseException):
            raise self.verdict
        if callable(self.verdict) and not isinstance(self.verdict, type(ALLOW)):
            return await self.verdict()
        return self.verdict

    def hooks(self, body_bytes: int = 0) -> StepHooks:
        return StepHooks(
            authenticate=[("who", Authenticator("exclusive", self.identify))],
            authorize=[("gate", Guard(self.judge, body_bytes=body_bytes))],
        )


class Stream:
    """A client whose answer has begun and does not end."""

    def __init__(self, play: Transcript, **fields: Any) -> None:
        self.client = Client(origin=host_origin(), **fields)
        self.play = play
        self.begun = asyncio.Event()
        send = self.client.send

        async def tell(message: Any) -> None:
            await send(message)
            if message.get("body"):
                self.begun.set()

        self.client.send = tell  # type: ignore[method-assign]

    async def run(self) -> None:
        await self.client.ask(self.play.app)


class Endless(ScriptedAnswer):
    """An event stream."""

    __slots__ = ()

    async def read(self) -> bytes:
        if data := await ScriptedAnswer.read(self):
            return data
        await asyncio.Event().wait()
        raise AssertionError


@asynccontextmanager
async def streaming(
    door: Door,
    *mappings: ServiceMapping,
    timeout: float = 5.0,
    body_bytes: int = 0,
    interval: float | None = None,
    guards: Sequence[tuple[str, Guard]] = (),
    **fields: Any,
) -> AsyncIterator[tuple[Transcript, Stream, asyncio.Task[None]]]:
    """One stream under way, with somebody to ask about it."""
    hooks = door.hooks(body_bytes)
    hooks.steps["restrict"] = guards
    play = Transcript(*(mappings or (mapping(),)), hooks=hooks, upstream=[Endless(body=(b"event",))], timeout=timeout)
    if interval is not None:
        play.app.exchanges = OpenExchanges(
            lambda *request: play.routing.table.match(*request),
            timeout=play.routing.compiler.environment.timeout,
            interval=interval,
        )
    stream = Stream(play, **fields)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        asking = group.create_task(play.app.exchanges.run())
        task = group.create_task(stream.run())
        await stream.begun.wait()
        try:
            yield play, stream, task
        finally:
            task.cancel()
            asking.cancel()


def cut(play: Transcript, stream: Stream) -> str:
    """Check that the stream was cut on both sides, and return the code."""
    assert stream.client.answer.aborted
    assert not stream.client.answer.complete
    assert play.upstreams.last.aborted
    assert len(play.observed) == 1
    assert play.exchange.denial is not None
    assert play.exchange.trail[-1].stage == "revalidate"
    assert len(play.app.exchanges) == 0
    return play.exchange.denial.code


async def test_stream_that_may_go_on_goes_on() -> None:
    """It was asked about, and nothing happened to it; its own record stays as it was."""
    door = Door()
    asked = asyncio.Event()

    async def judge() -> object:
        asked.set()
        return ALLOW

    async with streaming(door) as (play, stream, task):
        door.verdict = judge
        assert play.app.exchanges.revalidate(account=ACCOUNT) == 1
        await asked.wait()
        assert door.again == [False, True]  # a guard can tell whose doing it is that it is asked
        play.app.exchanges.revalidate(account=ACCOUNT)
        await asyncio.sleep(0)
        assert not task.done()
        assert not stream.client.answer.aborted


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (Deny(403, "not_in_group"), "not_in_group"),
        (Challenge(401, "login"), "login"),
        (ValueError("a defect"), "step_failed"),
        (asyncio.CancelledError(), "step_failed"),
        (None, "step_failed"),
        (True, "step_failed"),
    ],
)
async def test_stream_that_may_not_go_on_is_cut(said: Any, code: str) -> None:
    """Whatever is not ALLOW, on both sides, with one observation."""
    door = Door()
    async with streaming(door) as (play, stream, task):
        door.verdict = said
        play.app.exchanges.revalidate()
        await task
    assert cut(play, stream) == code


@pytest.mark.parametrize("user", [None, Identity(UserId("bob"))])
async def test_stream_of_somebody_else_is_cut(user: Any) -> None:
    """Its caller must still be its caller."""
    door = Door()
    async with streaming(door) as (play, stream, task):
        door.user = user
        play.app.exchanges.revalidate()
        await task
    assert cut(play, stream) == "identity_changed"


async def test_step_that_hangs_does_not_hold_the_door() -> None:
    """The clock cuts, whatever the step does with its cancellation."""
    door = Door()
    release = asyncio.Event()

    async def hangs() -> object:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return ALLOW

    async with streaming(door, timeout=0.05) as (play, stream, task):
        door.verdict = hangs
        play.app.exchanges.revalidate()
        try:
            async with asyncio.timeout(20):
                await task
        finally:
            release.set()
    assert stream.client.answer.aborted
    assert play.exchange.denial is not None
    assert play.exchange.denial.code == "not_readmitted"


async def test_stream_whose_route_goes_is_cut() -> None:
    """Removed, refused, or another service's: the change itself says whom to ask about."""
    for moves in ([], [mapping(refused="no")], [mapping(id="svc-2")]):
        door = Door()
        async with streaming(door) as (play, stream, task):
            play.routing.apply("management", moves)
            await task
        assert cut(play, stream) == "route_gone"


async def test_stream_whose_route_changed_is_asked_about_on_the_new_one() -> None:
    """It keeps the upstream that it has as long as the new route's guards let it in."""
    door = Door()
    changed = mapping(route(to=upstream("http://10.0.0.8:80")))
    async with streaming(door) as (play, stream, task):
        play.routing.apply("management", [changed])
        door.verdict = Deny(403, "not_in_group")
        await task
    assert cut(play, stream) == "not_in_group"


async def test_everybody_is_asked_about_after_the_interval() -> None:
    """Where no event tells of a revocation, the timer does."""
    door = Door()
    async with streaming(door, interval=0.02) as (_play, stream, task):
        door.verdict = Deny(403, "not_in_group")
        await task
    assert stream.client.answer.aborted


async def test_body_that_a_step_had_read_is_there_again() -> None:
    """A step that judges the body judges the same one."""
    door = Door()
    said = asyncio.Event()

    async def judge() -> object:
        said.set()
        return ALLOW

    async with streaming(door, body_bytes=10, method="POST", headers=[(b"content-length", b"3")], body=[b"abc"]) as (
        play,
        _stream,
        _task,
    ):
        door.verdict = judge
        play.app.exchanges.revalidate()
        await said.wait()
    assert door.bodies == [b"abc", b"abc"]


async def test_only_those_that_match_are_asked_about() -> None:
    """By account, user, peer and service; all that is given must hold."""
    async with streaming(Door()) as (play, _stream, _task):
        revalidate = play.app.exchanges.revalidate
        assert revalidate(account=ACCOUNT, user=UserId("alice"), peer=PublicKey("key-1"), service=SERVICE) == 1
        assert revalidate(account=AccountId("acct-2")) == 0
        assert revalidate(user=UserId("bob")) == 0
        assert revalidate(peer=PublicKey("key-2")) == 0
        assert revalidate(service=ServiceId("svc-2")) == 0


async def test_exchange_that_has_not_been_answered_is_refused() -> None:
    """Cut before its head went out, the client is told."""
    door = Door()
    waiting = asyncio.Event()
    play = Transcript(mapping(), hooks=door.hooks(), upstream=[ScriptedAnswer(hold=waiting)])
    client = Client(origin=host_origin())
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        asking = group.create_task(play.app.exchanges.run())
        task = group.create_task(client.ask(play.app))
        await play.upstreams.in_use.wait()
        door.verdict = Deny(403, "not_in_group")
        play.app.exchanges.revalidate()
        await task
        asking.cancel()
    assert (client.answer.status, client.answer.complete) == (403, True)
    assert play.upstreams.last.aborted
    assert play.effects[-1] == "observe 403 not_in_group"


async def test_client_that_leaves_while_it_is_cut_left() -> None:
    """Both cancelled: nobody is told anything."""
    door = Door()
    async with streaming(door) as (play, _stream, task):
        [one] = play.app.exchanges._open
        one.cut(Deny(403, "no"))
        one.cut(Deny(403, "again"))
        task.cancel()
    assert task.cancelled()
    assert play.exchange.error is not None
    assert play.exchange.error.code == "client_gone"


async def test_client_that_breaks_while_it_is_refused() -> None:
    """A `send` that fails then is a client that left."""
    door = Door()
    play = Transcript(mapping(), hooks=door.hooks(), upstream=[ScriptedAnswer(hold=asyncio.Event())])
    client = Client(origin=host_origin())

    async def broken(_message: Any) -> None:
        raise ConnectionResetError("gone")

    client.send = broken  # type: ignore[method-assign]
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        task = group.create_task(client.ask(play.app))
        await play.upstreams.in_use.wait()
        [one] = play.app.exchanges._open
        one.cut(Deny(403, "no"))
        await task
    assert play.exchange.error is not None
    assert play.exchange.error.code == "client_gone"


async def test_finished_exchange_is_not_asked_about() -> None:
    """What ended meanwhile is nobody's concern."""
    door = Door()
    play = Transcript(mapping(), hooks=door.hooks())
    await play.request(origin=host_origin())
    assert len(play.app.exchanges) == 0
    assert play.app.exchanges.revalidate() == 0
    assert door.asked == 1


async def test_exchange_that_ends_before_its_turn_is_not_asked_about() -> None:
    """It was wanted, and left before anybody asked."""
    door = Door()
    play = Transcript(mapping(), hooks=door.hooks())
    client = Client(origin=host_origin())
    send = client.send

    async def change_and_send(message: Any) -> None:
        assert play.app.exchanges.revalidate() == 1
        await send(message)

    client.send = change_and_send  # type: ignore[method-assign]
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        asking = group.create_task(play.app.exchanges.run())
        await client.ask(play.app)
        await asyncio.sleep(0)
        asking.cancel()
    assert door.asked == 1


@pytest.mark.parametrize("verdict", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
async def test_promise_11_a_step_that_is_asked_again_ends_its_exchange_alone(verdict: Any) -> None:
    """Whatever it raises, the one it was asked about is cut, and the asking goes on."""
    door = Door()
    async with streaming(door) as (play, stream, task):
        door.verdict = verdict
        play.app.exchanges.revalidate()
        await task
    assert cut(play, stream) == "step_failed"


async def test_guard_that_judges_beginnings_is_not_asked_again() -> None:
    """A limit that counts would count what nobody began, and cut what is under way."""
    begun = 0

    async def first_only(_exchange: object) -> object:
        nonlocal begun
        begun += 1
        return ALLOW if begun == 1 else Deny(429, "too_many")

    door, asked = Door(), asyncio.Event()

    async def judge() -> object:
        asked.set()
        return ALLOW

    async with streaming(door, guards=[("limit", Guard(first_only, again=False))]) as (play, _stream, task):
        door.verdict = judge
        play.app.exchanges.revalidate()
        await asked.wait()
        await asyncio.sleep(0)
        assert not task.done()
    assert begun == 1


async def test_promise_8_a_change_while_one_is_asked_about_is_asked_about_too() -> None:
    """The answer that is under way may be from before the change."""
    door, asked, answer = Door(), asyncio.Event(), asyncio.Event()

    async def judge() -> object:
        asked.set()
        await answer.wait()
        return ALLOW

    async with streaming(door) as (play, stream, task):
        door.verdict = judge
        play.app.exchanges.revalidate()
        await asked.wait()
        play.app.exchanges.revalidate()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        door.verdict = Deny(403, "not_in_group")
        answer.set()
        await task
    assert cut(play, stream) == "not_in_group"


# The bound, by a clock of its own -------------------------------------------------------------------------------------


class _Jumping(selectors.DefaultSelector):  # type: ignore[misc, valid-type]  # the system's best
    """A selector that waits for nothing: the loop's clock goes on instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose hours pass as soon as nothing is to be done."""

    def __init__(self) -> None:
        self.jumping = _Jumping()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now


def virtually(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(story())


GONE = ServiceId("gone")


class Crowd:
    """Many open exchanges behind one guard, with somebody to ask about them."""

    def __init__(self, guard: Callable[[Any], Awaitable[Any]], number: int, gone: Container[int] = ()) -> None:
        """`gone`: the numbers of those that came in on `GONE`, a service that has no route now."""
        # The time of the steps themselves is measured by the real clock, too, which a busy machine lets run on.
        self.play = Transcript(mapping(), hooks=StepHooks(restrict=[("gate", Guard(guard))]), timeout=600.0)
        self.exchanges = OpenExchanges(
            lambda *request: self.play.routing.table.match(*request),
            timeout=5.0,
            hung_steps=self.play.environment.hung_steps,
        )
        self.number = number
        self.gone = gone
        self.all_open = asyncio.Event()
        self.ended: dict[int, float] = {}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[asyncio.Task[None]]:
        """Yields the task that asks."""
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(self.exchanges.run())
            tasks = [group.create_task(self._stay(number)) for number in range(self.number)]
            await self.all_open.wait()
            try:
                yield asking
            finally:
                for task in (asking, *tasks):
                    task.cancel()

    async def _stay(self, number: int) -> None:
        client = Client(origin=host_origin())
        downstream = Downstream(client.receive, client.send, None)
        spec = route(service=GONE) if number in self.gone else route()
        entry = self.exchanges.enter(exchange(f"/{number}", spec=spec), downstream)
        if len(self.exchanges) == self.number:
            self.all_open.set()
        try:
            await asyncio.Event().wait()
        finally:
            if downstream.cut is not None:
                self.ended[number] = asyncio.get_running_loop().time()
            self.exchanges.leave(entry)


async def _slow(asked: Any) -> Any:
    """Every tenth is revoked, and each answer takes two seconds."""
    await asyncio.sleep(2.0)
    return Deny(403, "revoked") if asked.raw_path.endswith(b"7") else ALLOW


def test_promise_8_ten_thousand_streams_with_slow_answers_are_asked_within_the_bound() -> None:
    """After an event the revoked ones among them have ended within `limits.step_deadline`."""

    async def story() -> None:
        crowd = Crowd(_slow, 10_000)
        async with crowd.open():
            began = asyncio.get_running_loop().time()
            assert crowd.exchanges.revalidate() == 10_000
            await asyncio.sleep(5.5)
            assert {number for number in range(10_000) if number % 10 == 7} <= set(crowd.ended)
            assert max(crowd.ended.values()) - began <= 5.0

    virtually(story)


def test_promise_8_by_the_clock_nobody_is_cut_for_waiting() -> None:
    """Where nothing changed, the answers have an interval's time, and only the revoked ones end."""

    async def story() -> None:
        crowd = Crowd(_slow, 3 * AT_ONCE)
        async with crowd.open():
            await asyncio.sleep(120.0)
            assert set(crowd.ended) == {number for number in range(3 * AT_ONCE) if number % 10 == 7}

    virtually(story)


def test_promise_8_an_event_has_its_bound_wherever_in_the_queue_its_exchanges_stand() -> None:
    """By the clock a long queue may take an interval; a service that goes meanwhile ends its exchanges in time."""

    async def takes_long(_asked: Any) -> Any:
        await asyncio.sleep(4.0)
        return ALLOW

    async def story() -> None:
        gone = range(7, 4 * AT_ONCE, 10)
        crowd = Crowd(takes_long, 4 * AT_ONCE, gone)
        async with crowd.open():
            await asyncio.sleep(61.0)  # the clock has asked about all of them, and three quarters wait
            began = asyncio.get_running_loop().time()
            crowd.exchanges.changed(frozenset({GONE}))
            await asyncio.sleep(30.0)
            assert set(crowd.ended) == set(gone)
            assert max(crowd.ended.values()) - began <= 5.0

    virtually(story)


def test_promise_8_steps_that_hang_keep_no_place() -> None:
    """More than there are places, ignoring every cancellation: all are cut in time, and a stop waits for none."""
    release = asyncio.Event()

    async def hangs(_asked: Any) -> Any:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return ALLOW

    async def story() -> None:
        crowd = Crowd(hangs, AT_ONCE + 10)
        try:
            async with crowd.open() as asking:
                began = asyncio.get_running_loop().time()
                crowd.exchanges.revalidate()
                await asyncio.sleep(11.0)
                assert len(crowd.ended) == crowd.number
                assert max(crowd.ended.values()) - began <= 5.0
                assert crowd.play.environment.hung_steps.count >= AT_ONCE
                assert crowd.exchanges.revalidate() == 0
                asking.cancel()
                await asyncio.wait((asking,), timeout=1.0)
                assert asking.done()
        finally:
            release.set()

    virtually(story)


async def test_stop_of_the_process_is_no_verdict() -> None:
    """Who was being asked about when everything ends is not refused for it."""
    door = Door()
    asked = asyncio.Event()

    async def waits() -> object:
        asked.set()
        await asyncio.Event().wait()
        return ALLOW

    async with streaming(door) as (play, stream, _task):
        door.verdict = waits
        play.app.exchanges.revalidate()
        await asked.wait()
    assert play.exchange.denial is None
    assert stream.client.answer.aborted
