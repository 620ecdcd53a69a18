"""The stages in their order: what runs when, what is skipped, who is who, bodies read ahead, and observers."""

from __future__ import annotations

from typing import Any

import pytest

from netbird_proxy import ALLOW, Authenticator, Deny, Guard, Identity, RequestTransform, UserId
from netbird_proxy.api.errors import BodyTooLarge, ClientGone
from netbird_proxy.testing.asgi import Client
from netbird_proxy.testing.fakes import FakeProxy
from netbird_proxy.testing.makers import host_origin, route
from netbird_proxy.testing.transcript import StepHooks, Transcript

ORIGIN = host_origin()


async def allow(_exchange: object) -> object:
    return ALLOW


async def passes(_exchange: object) -> object:
    return None


async def alice(_exchange: object) -> object:
    return Identity(UserId("alice"), by="somebody else", method="tunnel")


def transform(_exchange: object, _outgoing: object) -> None:
    return None


async def test_stages_run_in_their_order() -> None:
    """Restrict, authenticate, authorize, transform, dial, respond, observe; the first identity ends its stage."""
    play = Transcript(
        route(),
        hooks=StepHooks(
            restrict=[("a", Guard(allow)), ("b", Guard(allow))],
            authenticate=[
                ("none", Authenticator("exclusive", passes)),
                ("who", Authenticator("credential", alice)),
                ("late", Authenticator("prompt", alice)),
            ],
            authorize=[("c", Guard(allow))],
            transform_request=[("d", RequestTransform(transform))],
        ),
    )

    await play.request(origin=ORIGIN)

    play.saw(
        "restrict a: allow",
        "restrict b: allow",
        "authenticate none: pass",
        "authenticate who: identity alice",
        "authorize c: allow",
        "transform_request d",
        "dial http://10.0.0.7:8080",
        "respond 200",
        "observe 200",
    )
    assert [(one.stage, one.plugin, one.verdict) for one in play.exchange.trail] == [
        ("restrict", "a", "allow"),
        ("restrict", "b", "allow"),
        ("authenticate", "none", "pass"),
        ("authenticate", "who", "identity"),
        ("authorize", "c", "allow"),
    ]


async def test_identity_is_vouched_for_by_its_plugin() -> None:
    """`by` is stamped by the pipeline, whatever the plugin said."""
    play = Transcript(route(), hooks=StepHooks(authenticate=[("who", Authenticator("exclusive", alice))]))
    await play.request(origin=ORIGIN)
    assert play.exchange.identity is not None
    assert play.exchange.identity.by == "who"


@pytest.mark.parametrize("stage", ["restrict", "authenticate", "authorize"])
async def test_first_refusal_ends_the_exchange(stage: str) -> None:
    """Nobody behind it is asked, and nothing is dialed."""

    async def deny(_exchange: object) -> object:
        return Deny(403, "no")

    async def never(_exchange: object) -> object:
        raise AssertionError("asked behind a refusal")

    step: Any = [("gate", Authenticator("exclusive", deny)), ("never", Authenticator("exclusive", never))]
    if stage != "authenticate":
        step = [("gate", Guard(deny)), ("never", Guard(never))]
    play = Transcript(route(), hooks=StepHooks(**{stage: step}))

    assert (await play.request(origin=ORIGIN)).status == 403
    play.saw(f"{stage} gate: deny no", "respond 403", "observe 403 no")


async def test_nobody_is_known_where_everybody_passes() -> None:
    """Authenticators that all say "not mine" leave no identity; whether that is enough is authorize's question."""
    play = Transcript(route(), hooks=StepHooks(authenticate=[("a", Authenticator("exclusive", passes))]))
    assert (await play.request(origin=ORIGIN)).status == 200
    assert play.exchange.identity is None


async def test_body_is_read_ahead_for_who_asked_and_replayed() -> None:
    """Only the step that declared it sees the body; the upstream gets all of it; reading takes nobody's time."""
    bodies: list[bytes | None] = []

    async def look(exchange: Any) -> object:
        bodies.append(exchange.body)
        return ALLOW

    async def look_and_pass(exchange: Any) -> object:
        bodies.append(exchange.body)
        return None

    play = Transcript(
        route(),
        hooks=StepHooks(
            restrict=[("blind", Guard(look))],
            authenticate=[("reads", Authenticator("credential", look_and_pass, body_bytes=10))],
            authorize=[("reads too", Guard(look, body_bytes=10)), ("watches", Guard(look, body_bytes=9, observe=True))],
        ),
    )

    headers = [(b"transfer-encoding", b"chunked")]
    answer = await play.request(
        "POST", headers=headers, body=[b"abc", b"", b"def"], trailers=[(b"x-sum", b"1")], origin=ORIGIN
    )

    assert answer.status == 200
    assert bodies == [None, b"abcdef", b"abcdef", b"abcdef"]
    assert play.exchange.body is None
    sent = play.upstreams.last
    assert (bytes(sent.body), sent.complete, sent.trailers) == (b"abcdef", True, [(b"x-sum", b"1")])


@pytest.mark.parametrize(("body", "own"), [(None, True), ([], True), (None, False)])
async def test_request_without_a_body_reads_as_empty(body: Any, own: bool) -> None:
    """A step that wants a body gets empty bytes where there is none."""
    bodies: list[bytes | None] = []

    async def look(exchange: Any) -> object:
        bodies.append(exchange.body)
        return ALLOW

    play = Transcript(route(), hooks=StepHooks(restrict=[("reads", Guard(look, body_bytes=4))]))
    answer = await play.request(body=body, own=own, origin=ORIGIN if own else None)
    assert (answer.status, bodies) == (200, [b""])


async def test_body_above_the_limit_is_refused_unread() -> None:
    """413, the step is not asked, nothing is dialed."""
    play = Transcript(route(), hooks=StepHooks(restrict=[("reads", Guard(allow, body_bytes=4))]))
    answer = await play.request(
        "POST", headers=[(b"transfer-encoding", b"chunked")], body=[b"abc", b"def", b"ghi"], origin=ORIGIN
    )
    assert answer.status == 413
    assert isinstance(play.exchange.error, BodyTooLarge)
    play.saw("respond 413", "observe 413 body_too_large")


async def test_client_that_leaves_while_its_body_is_read_ahead() -> None:
    """It is not the step's failure."""
    play = Transcript(route(), hooks=StepHooks(restrict=[("reads", Guard(allow, body_bytes=4))]))
    client = Client("POST", headers=[(b"content-length", b"4")], body=[b"ab"], leaves=True, origin=ORIGIN)
    client.leave()
    await play.run(client)
    assert isinstance(play.exchange.error, ClientGone)
    play.saw("observe 499 client_gone")


async def test_notes_are_for_those_who_declared_them() -> None:
    """A step leaves facts under declared keys; another key is its failure."""

    async def note(exchange: Any) -> object:
        exchange.note("country", "DE")
        return ALLOW

    hooks = StepHooks(restrict=[("geo", Guard(note))])
    play = Transcript(route(), hooks=hooks, notes=["country"])
    assert (await play.request(origin=ORIGIN)).status == 200
    assert play.exchange.notes == {"country": "DE"}
    assert (await Transcript(route(), hooks=hooks).request(origin=ORIGIN)).status == 503


async def test_observers_all_run_whatever_the_others_do() -> None:
    """One that raises, answers, or returns a coroutine is counted, and changes nothing for anybody."""
    seen: list[str] = []

    def raises(_exchange: object) -> None:
        raise ValueError("a defect")

    def answers(_exchange: object) -> Any:
        return True

    def coroutine(_exchange: object) -> Any:
        return allow(None)

    def last(exchange: Any) -> None:
        seen.append(f"{exchange.status} {exchange.ended_ns > 0}")

    proxy = FakeProxy()
    play = Transcript(
        route(),
        hooks=StepHooks(observe=[("a", raises), ("b", answers), ("c", coroutine), ("d", last)]),
        proxy=proxy,
    )

    answer = await play.request(origin=ORIGIN)

    assert answer.status == 200
    assert seen == ["200 True"]
    assert proxy.counters["observer_failed"] == 3


async def test_route_without_steps_has_empty_stages() -> None:
    """What nobody uses costs nothing: empty tuples, and no timer."""
    play = Transcript(route())
    [served] = list(play.routing)
    assert served.compiled is not None
    [found] = served.compiled.routes.routes
    pipeline: Any = found.runner
    assert (pipeline.restrict, pipeline.authenticate, pipeline.authorize, pipeline.steps) == ((), (), (), ())
