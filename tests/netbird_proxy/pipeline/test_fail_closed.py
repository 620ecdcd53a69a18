"""No failure allows: every way a step can fail, at every stage that decides, ends in 503 without a dial."""
# Over 500 lines: one enumeration, each kind of step by each way to fail.

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from netbird_proxy import ALLOW, OBSERVED, Authenticator, Deny, Guard, Identity, RequestTransform, UserId
from netbird_proxy.api.errors import ManagementTimeout, StepFailed
from netbird_proxy.api.model import Challenge, Offer
from netbird_proxy.testing.asgi import Client
from netbird_proxy.testing.makers import host_origin, route
from netbird_proxy.testing.transcript import StepHooks, Transcript

Step = Callable[[Any], Awaitable[Any]]
STAGES = ("restrict", "authenticate", "authorize")


def hooks(stage: str, step: Any) -> StepHooks:
    """One failing step at its stage, behind and before steps that let everything through."""

    async def allow(_exchange: object) -> object:
        return ALLOW

    async def known(_exchange: object) -> Identity:
        return Identity(UserId("user-1"))

    steps: dict[str, Any] = {
        "restrict": [("first", Guard(allow))],
        "authenticate": [("who", Authenticator("exclusive", known))],
        "authorize": [("last", Guard(allow))],
    }
    if stage == "authenticate":
        steps[stage] = [("culprit", Authenticator("exclusive", step)), *steps[stage]]
    else:
        steps[stage] = [("culprit", Guard(step)), *steps[stage]]
    return StepHooks(**steps)


async def raises(_exchange: object) -> object:
    raise ValueError("a defect")


async def raises_cancelled(_exchange: object) -> object:
    raise asyncio.CancelledError


async def lost_management(_exchange: object) -> object:
    raise ManagementTimeout("call ValidateTunnelPeer: nothing within 2 s")


async def hangs(_exchange: object) -> object:
    await asyncio.Event().wait()
    return ALLOW


async def returns_late(_exchange: object) -> object:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    return ALLOW


async def raises_late(_exchange: object) -> object:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise ValueError("interrupted") from None
    return ALLOW


async def says_true(_exchange: object) -> object:
    return True


async def says_allow_as_text(_exchange: object) -> object:
    return "allow"


async def says_the_enum(_exchange: object) -> object:
    return type(ALLOW)


async def returns_its_coroutine(_exchange: object) -> object:
    return raises(None)  # not awaited


async def denies_with_success(_exchange: object) -> object:
    return Deny(200, "fine")


async def challenges_with_nonsense(_exchange: object) -> object:
    return Challenge(101, "switch")


async def challenges_to_another_site(_exchange: object) -> object:
    return Challenge(401, "login", offers=(Offer("x", "Log in", "https://evil.example/"),))


def is_not_async(_exchange: object) -> object:
    return ALLOW


async def says_nothing(_exchange: object) -> object:
    return None


async def says_allow(_exchange: object) -> object:
    return ALLOW


FAILURES = [
    raises,
    raises_cancelled,
    lost_management,
    hangs,
    returns_late,
    raises_late,
    says_true,
    says_allow_as_text,
    says_the_enum,
    returns_its_coroutine,
    denies_with_success,
    challenges_with_nonsense,
    challenges_to_another_site,
    is_not_async,
]
LATE = [hangs, returns_late, raises_late]
CASES = [(stage, step) for stage in STAGES for step in FAILURES]
# None is an authenticator's "not mine" and ALLOW no identity: each is nonsense at the other stages only.
CASES += [("restrict", says_nothing), ("authorize", says_nothing), ("authenticate", says_allow)]


@pytest.mark.parametrize(("stage", "step"), CASES, ids=lambda one: getattr(one, "__name__", one))
async def test_failing_step_closes_its_route(stage: str, step: Any) -> None:
    """503 `step_failed`, no dial, one observation; the plugin is named in the trail and nowhere a client sees."""
    play = Transcript(route(), hooks=hooks(stage, step), timeout=0.25 if step in LATE else 10.0)

    answer = await play.request("GET", "/", origin=host_origin())

    assert answer.status == 503
    assert play.upstreams.dialed == 0
    assert [effect for effect in play.effects if effect.startswith(("dial", "observe", "respond"))] == [
        "respond 503",
        "observe 503 step_failed",
    ]
    error = play.exchange.error
    assert isinstance(error, StepFailed)
    assert (error.plugin, error.stage) == ("culprit", stage)
    assert play.exchange.trail[-1].plugin == "culprit"
    assert play.exchange.trail[-1].verdict == "failed"
    assert b"culprit" not in answer.body
    assert b"step_failed" in answer.body
    assert play.exchange.id.encode() in answer.body


@pytest.mark.parametrize("stage", STAGES)
async def test_step_that_ignores_its_cancellation_is_left_behind(stage: str) -> None:
    """The timer answers and observes for it; it is counted while it hangs, and its ALLOW comes too late for a dial."""
    release = asyncio.Event()

    async def hangs_for_good(_exchange: object) -> object:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return ALLOW

    play = Transcript(route(), hooks=hooks(stage, hangs_for_good), timeout=0.02)
    client = Client(origin=host_origin())
    answered = asyncio.Event()
    send = client.send

    async def tell(message: dict[str, Any]) -> None:
        await send(message)
        if message["type"] == "http.response.body":
            answered.set()

    client.send = tell  # type: ignore[method-assign]
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        task = group.create_task(client.ask(play.app))
        await answered.wait()
        await play.environment.hung_steps.answered()

        assert not task.done()
        assert play.environment.hung_steps.count == 1
        assert client.answer.status == 503
        assert len(play.observed) == 1
        release.set()
        await task

    assert play.environment.hung_steps.count == 0
    assert play.environment.hung_steps.total == 1
    assert play.upstreams.dialed == 0
    assert len(play.observed) == 1
    assert sum(message["type"] == "http.response.start" for message in client.answer.messages) == 1


async def reads_text(exchange: Any) -> object:
    return exchange.headers.get("authorization")


async def reads_texts(exchange: Any) -> object:
    return exchange.headers.get_all("authorization")


@pytest.mark.parametrize(
    ("stage", "step", "sentence"),
    [
        ("restrict", is_not_async, "returned Allow without waiting: write the step as `async def`"),
        ("authenticate", is_not_async, "returned Allow without waiting: write the step as `async def`"),
        ("restrict", says_true, "returned bool: return ALLOW or a Deny"),
        ("restrict", says_nothing, "returned NoneType: return ALLOW or a Deny"),
        ("authenticate", says_true, "returned bool: return Identity, Deny, Challenge, Offer or None"),
        ("authorize", reads_text, "the header name 'authorization' is str: write it in bytes"),
        ("authorize", reads_texts, "the header name 'authorization' is str: write it in bytes"),
    ],
)
async def test_common_mistake_has_its_sentence(stage: str, step: Any, sentence: str) -> None:
    """The author reads in the trail and the log what to write instead."""
    play = Transcript(route(), hooks=hooks(stage, step))

    assert (await play.request(origin=host_origin())).status == 503
    assert sentence in str(play.exchange.error)


async def test_too_many_steps_left_behind_end_readiness() -> None:
    """Sixteen hanging steps are borne; one more says that this process should get no more traffic."""
    play = Transcript(route())
    behind = play.environment.hung_steps

    async def nothing() -> None:
        return None

    for _ in range(16):
        behind.left(nothing())
    assert behind.ready
    behind.left(nothing())
    assert not behind.ready
    behind.returned()
    assert behind.ready
    await behind.answered()


async def test_management_failure_says_when_to_come_again() -> None:
    """A guard that could not ask management answers 503 with `Retry-After`."""
    play = Transcript(route(), hooks=hooks("authenticate", lost_management))

    answer = await play.request(origin=host_origin())

    assert answer.status == 503
    assert answer.get(b"retry-after") == b"2"


async def test_step_may_wait_more_than_once() -> None:
    """What it is given each time it waits reaches it, and what it says in the end counts."""
    loop = asyncio.get_running_loop()

    async def waits(_exchange: object) -> object:
        given = []
        for word in ("a", "b"):
            future = loop.create_future()
            loop.call_soon(future.set_result, word)
            given.append(await future)
        return Deny(403, "".join(given))

    play = Transcript(route(), hooks=hooks("restrict", waits))

    answer = await play.request(origin=host_origin())

    assert answer.status == 403
    assert play.exchange.denial is not None
    assert play.exchange.denial.code == "ab"


@pytest.mark.parametrize(("step", "status"), [(says_allow, 200), (hangs, 503)])
async def test_step_that_reads_has_its_time_when_the_body_has_come(step: Any, status: int) -> None:
    """A slow client's time is not the step's, and a step's is bounded whatever the client did before."""
    first, second = Guard(step, body_bytes=4), Guard(says_allow, body_bytes=4)
    play = Transcript(route(), hooks=StepHooks(restrict=[("reads", first), ("too", second)]), timeout=0.02)
    client = Client("POST", "/", origin=host_origin(), headers=[(b"content-length", b"2")], body=[b"ab"])
    come, receive = asyncio.Event(), client.receive

    async def late() -> Any:
        await come.wait()
        return await receive()

    client.receive = late  # type: ignore[method-assign]
    asyncio.get_running_loop().call_later(0.06, come.set)
    async with asyncio.timeout(20):
        answer = await client.ask(play.app)

    assert answer.status == status
    if status == 503:
        assert isinstance(play.exchange.error, StepFailed)
        assert play.exchange.error.plugin == "reads"


@pytest.mark.parametrize("timeout", [0.01, 0.03])
async def test_deadline_is_a_setting_of_all_guards_together(timeout: float) -> None:
    """One limit for all guards: the one that runs when it is reached is named, with the limit, in the trail."""
    play = Transcript(
        route(), hooks=StepHooks(restrict=[("one", Guard(says_allow)), ("two", Guard(hangs))]), timeout=timeout
    )

    answer = await play.request(origin=host_origin())

    assert answer.status == 503
    assert isinstance(play.exchange.error, StepFailed)
    assert play.exchange.error.plugin == "two"
    assert f"{timeout:g} s" in str(play.exchange.error)


def _raises(_exchange: object, _outgoing: object) -> None:
    raise ValueError("a defect")


def _answers(_exchange: object, _outgoing: object) -> Any:
    return True


def _coroutine(_exchange: object, _outgoing: object) -> Any:
    return raises(None)


def _forges(_exchange: object, outgoing: Any) -> None:
    outgoing.set(b"X_NetBird_User", b"root")


def _frames(_exchange: object, outgoing: Any) -> None:
    outgoing.set(b"content-length", b"0")


def _hosts(_exchange: object, outgoing: Any) -> None:
    outgoing.set(b"host", b"elsewhere")


def _smuggles(_exchange: object, outgoing: Any) -> None:
    outgoing.add(b"x-a", b"1\r\nx-b: 2")


def _smuggles_name(_exchange: object, outgoing: Any) -> None:
    outgoing.add(b"x-a: 1\r\nx-b", b"2")


def _retargets(_exchange: object, outgoing: Any) -> None:
    outgoing.target = b"/admin"


def _another_method(_exchange: object, outgoing: Any) -> None:
    outgoing.method = b"DELETE"


@pytest.mark.parametrize(
    "apply",
    [
        _raises,
        _answers,
        _coroutine,
        _forges,
        _frames,
        _hosts,
        _smuggles,
        _smuggles_name,
        _retargets,
        _another_method,
    ],
)
async def test_failing_transform_sends_nothing(apply: Any) -> None:
    """A transform that raises, answers, or sets what is not its own closes the exchange before anything is dialed."""
    play = Transcript(route(), hooks=StepHooks(transform_request=[("culprit", RequestTransform(apply))]))

    answer = await play.request(origin=host_origin())

    play.saw("transform_request culprit", "respond 503", "observe 503 step_failed")
    assert answer.status == 503
    assert play.upstreams.dialed == 0


async def test_transform_may_not_set_what_another_owns() -> None:
    """The owner of a name is its only author on a route, whoever comes later."""

    def owner(_exchange: object, outgoing: Any) -> None:
        outgoing.set(b"remote-user", b"alice")

    def thief(_exchange: object, outgoing: Any) -> None:
        outgoing.set(b"Remote_User", b"root")

    play = Transcript(
        route(),
        hooks=StepHooks(
            transform_request=[
                ("owner", RequestTransform(owner, owns=(b"Remote-User",))),
                ("thief", RequestTransform(thief)),
            ]
        ),
    )

    assert (await play.request(origin=host_origin())).status == 503
    assert play.upstreams.dialed == 0


async def test_observe_mode_records_and_lets_through() -> None:
    """A guard in mode observe leaves its verdict in the trail, and for the logs what it would have refused."""

    async def deny(_exchange: object) -> object:
        return Deny(403, "not_in_group")

    play = Transcript(
        route(),
        hooks=StepHooks(
            restrict=[
                ("says no", Guard(deny, observe=True)),
                ("breaks", Guard(raises, observe=True)),
                ("says yes", Guard(says_allow, observe=True)),
            ]
        ),
    )

    answer = await play.request(origin=host_origin())

    assert answer.status == 200
    assert play.exchange.denial is None
    assert [(entry.plugin, entry.verdict) for entry in play.exchange.trail] == [
        ("says no", "observed deny not_in_group"),
        ("says no", "not enforced"),
        ("breaks", "observed failed"),
        ("breaks", "not enforced"),
        ("says yes", "observed allow"),
        ("says yes", "not enforced"),
    ]
    assert play.exchange.notes == {OBSERVED: "says no:not_in_group breaks:failed"}


async def test_client_that_leaves_while_a_guard_waits_is_observed_once() -> None:
    """Its task is cancelled: nothing is dialed, the cancellation goes on, and the observer sees 499."""
    asked = asyncio.Event()

    async def waits(_exchange: object) -> object:
        asked.set()
        await asyncio.Event().wait()
        return ALLOW

    play = Transcript(route(), hooks=hooks("restrict", waits))
    client = Client(origin=host_origin())
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        task = group.create_task(client.ask(play.app))
        await asked.wait()
        client.leave()
        task.cancel()

    assert task.cancelled()
    assert play.effects[-1] == "observe 499 client_gone"
    assert len(play.observed) == 1
    assert play.upstreams.dialed == 0


async def test_step_that_swallows_a_leaving_client_is_not_obeyed() -> None:
    """An ALLOW that answers a cancellation lets nobody through, also where it was the client who left."""
    asked = asyncio.Event()

    async def swallows(_exchange: object) -> object:
        asked.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return ALLOW

    play = Transcript(route(), hooks=hooks("authorize", swallows))
    client = Client(origin=host_origin())
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        task = group.create_task(client.ask(play.app))
        await asked.wait()
        task.cancel()

    assert task.cancelled()
    assert play.upstreams.dialed == 0
    assert [one.status for one in play.observed] == [499]


async def test_client_that_leaves_while_time_is_up_gets_no_answer() -> None:
    """Where the deadline and the client both cancelled, nobody waits for the 503."""
    cancelled = 0
    both = asyncio.Event()

    async def outlasts(_exchange: object) -> object:
        nonlocal cancelled
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled += 1
                both.set()
                if cancelled == 2:
                    raise

    play = Transcript(route(), hooks=hooks("restrict", outlasts), timeout=0.02)
    client = Client(origin=host_origin())
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        task = group.create_task(client.ask(play.app))
        await both.wait()
        task.cancel()

    assert task.cancelled()
    assert client.answer.status == 0
    assert [one.status for one in play.observed] == [499]
