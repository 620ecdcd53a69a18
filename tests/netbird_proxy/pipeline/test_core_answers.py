"""The core's own answers: the status table as a whole, refusals, challenges, and what they never say."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from netbird_proxy import Authenticator, Challenge, Deny, Guard, Offer, Page, Rendered
from netbird_proxy.api.errors import ClientGone, ExchangeError, StepFailed, UpstreamClosed, UpstreamError, leaves
from netbird_proxy.pipeline import core_answers as answers
from netbird_proxy.pipeline.downstream import Downstream
from netbird_proxy.pipeline.ending import Ending, Environment, FixedAnswer
from netbird_proxy.testing.asgi import Client
from netbird_proxy.testing.makers import exchange, host_origin, route
from netbird_proxy.testing.transcript import StepHooks, Transcript

LEAVES = leaves()


def made(leaf: type[ExchangeError]) -> ExchangeError:
    return leaf("plugin-1", "restrict", "10.0.0.7") if leaf is StepFailed else leaf("dial 10.0.0.7: cause")


def test_every_failure_has_its_answer() -> None:
    """Each leaf has a status of an error, a stable code of its own, and one sentence."""
    assert len({leaf.code for leaf in LEAVES}) == len(LEAVES)
    for leaf in LEAVES:
        assert 400 <= leaf.status <= 599
        assert leaf.code.replace("_", "").isalpha()
        assert leaf.code.islower()
        assert leaf.sentence.endswith(".")
        assert leaf.side in ("downstream", "upstream", "internal")
        assert not (leaf.retryable and not issubclass(leaf, UpstreamError))


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda one: one.__name__)
async def test_failure_is_answered_by_the_table(leaf: type[ExchangeError]) -> None:
    """Status, code, sentence and exchange id; nosniff, no-store, and no word of the cause."""
    client, one = Client(), exchange()
    downstream = Downstream(client.receive, client.send, client)

    await Ending([], Environment()).fail(one, downstream, made(leaf))

    assert one.status == leaf.status
    if leaf is ClientGone:
        assert client.answer.messages == []
        return
    got = client.answer
    assert got.status == leaf.status
    assert got.body.decode() == f"{leaf.sentence}\n\ncode: {leaf.code}\nexchange: {one.id}\n"
    assert got.get(b"x-content-type-options") == b"nosniff"
    assert got.get(b"cache-control") == b"no-store"
    assert got.get(b"content-length") == b"%d" % len(got.body)
    assert not {b"10.0.0.7", b"cause", b"plugin-1"} & set(got.body.split())


@pytest.mark.parametrize(
    ("target", "own"),
    [
        ("/a%20b", "/a%20b"),
        ("//evil.example/login", "/evil.example/login"),
        ("///evil.example", "/evil.example"),
        ("/\\evil.example", "/"),
        ("/a\tb", "/"),
        ("/__netbird__/session/start", "/"),
        ("*", "/"),
    ],
)
async def test_page_leads_to_this_host_only(target: str, own: str) -> None:
    """A path that a browser would read as another host's address is no place to try again at."""
    pages: list[Page] = []

    def page(asked: Page) -> Rendered:
        pages.append(asked)
        return Rendered(b"page")

    environment = Environment()
    environment.pages = page
    client, made_exchange = Client(), exchange(target, headers=[(b"accept", b"text/html")])

    await Ending([], environment).fail(
        made_exchange, Downstream(client.receive, client.send, client), made(UpstreamClosed)
    )

    assert [one.own_path for one in pages] == [own]


async def test_json_for_those_who_ask_for_it() -> None:
    """The same three facts as an object."""
    play = Transcript(route())
    got = await play.request(host="no.example.com", headers=[(b"accept", b"Application/JSON")], origin=host_origin())
    assert got.get(b"content-type") == b"application/json"
    assert json.loads(got.body) == {
        "code": "no_route",
        "message": "No service answers at this address.",
        "exchange": play.exchange.id,
    }


async def test_head_gets_the_head_only() -> None:
    """A HEAD is answered with the length and without the bytes."""
    play = Transcript(route())
    got = await play.request("HEAD", host="no.example.com", origin=host_origin())
    assert (got.status, got.body, got.complete) == (404, b"", True)
    assert int(got.get(b"content-length") or 0) > 0


async def deny(**fields: Any) -> tuple[Any, Transcript]:
    async def refuse(_exchange: object) -> object:
        return Deny(**fields)

    play = Transcript(route(), hooks=StepHooks(restrict=[("gate", Guard(refuse))]))
    return await play.request(origin=host_origin()), play


async def test_denial_says_code_and_sentence_only() -> None:
    """The reason and the facts are the operator's: they stand in the trail, not in the body."""
    got, play = await deny(
        status=403,
        code="not_in_group",
        reason="alice is not in engineering",
        facts={"wanted": "engineering"},
        headers=((b"Retry-After", b"7"), (b"Content-Length", b"1"), (b"Connection", b"x")),
    )
    assert got.status == 403
    assert b"engineering" not in got.body
    assert b"alice" not in got.body
    assert got.get(b"retry-after") == b"7"
    assert got.get(b"connection") is None
    assert got.get(b"content-length") == b"%d" % len(got.body)
    entry = play.exchange.trail[-1]
    assert (entry.verdict, entry.reason, entry.facts) == (
        "deny not_in_group",
        "alice is not in engineering",
        {"wanted": "engineering"},
    )
    assert play.exchange.denial is not None
    play.saw("restrict gate: deny not_in_group", "respond 403", "observe 403 not_in_group")


@pytest.mark.parametrize("code", ["Not A Code", "a\nb", "", "x" * 65])
async def test_code_that_is_none_is_not_told(code: str) -> None:
    """A code is for machines: whatever else a plugin puts there stays in the trail."""
    got, _ = await deny(status=403, code=code)
    assert b"code: denied\n" in got.body


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (403, "tunnel_required", "This service is reachable through its private network only."),
        (403, "own_code", "You are not allowed to use this service."),
        (429, "own_code", "Too many requests."),
        (451, "own_code", "The request was refused."),
        (599, "own_code", "The service is not available."),
    ],
)
def test_sentences(status: int, code: str, told: str) -> None:
    """Codes that the core knows have their own sentence; others have their status's."""
    assert answers.sentence(status, code) == told


async def challenge(asked: Challenge, method: str = "GET") -> tuple[Any, Transcript]:
    async def ask(_exchange: object) -> object:
        return asked

    play = Transcript(route(), hooks=StepHooks(authenticate=[("login", Authenticator("prompt", ask))]))
    return await play.request(method, origin=host_origin()), play


async def test_challenge_brings_its_own_page() -> None:
    """Its body and type are its own; its length is ours, and it is never stored."""
    asked = Challenge(
        401, "login", headers=((b"Content-Type", b"text/html"), (b"Content-Length", b"1")), body=b"<p>Log in</p>"
    )
    got, play = await challenge(asked)
    assert (got.status, got.body) == (401, b"<p>Log in</p>")
    assert got.get(b"content-length") == b"13"
    assert got.get(b"cache-control") == b"no-store"
    assert [value for name, value in got.headers if name.lower() == b"content-type"] == [b"text/html"]
    play.saw("authenticate login: challenge login", "respond 401", "observe 401")
    assert (await challenge(asked, "HEAD"))[0].body == b""


@pytest.mark.parametrize(("code", "told"), [("login", b"code: login"), ("no code", b"code: challenge")])
async def test_challenge_without_a_page_is_put_into_words(code: str, told: bytes) -> None:
    """A redirect needs no body of the plugin's."""
    got, _ = await challenge(Challenge(302, code, headers=((b"Location", b"/login"),)))
    assert got.status == 302
    assert got.get(b"location") == b"/login"
    assert told in got.body


WAY = Offer("sso", "Log in", "/__netbird__/login/start", automatic=True)
KEY = Offer("header", "A credential", "", challenges=(b'Basic realm="x"', b'Bearer realm="x"'))


@pytest.mark.parametrize(
    ("headers", "browser"),
    [
        ([], False),
        ([(b"accept", b"*/*")], False),
        ([(b"accept", b"application/json")], False),
        ([(b"accept", b"text/html,*/*")], True),
        ([(b"accept", b"*/*"), (b"sec-fetch-mode", b"cors")], True),
        ([(b"accept", b"*/*"), (b"sec-fetch-site", b"same-origin")], True),
    ],
)
async def test_programs_are_asked_for_credentials_and_browsers_only_where_no_page_asks(
    headers: list[tuple[bytes, bytes]], browser: bool
) -> None:
    """`WWW-Authenticate` opens a window of the browser's own, for Basic alone: it would stand in front of a page."""
    form = replace(WAY, automatic=False)
    for offers, code in ((form, KEY), "login_required"), ((KEY,), "credentials_required"):

        async def ask(_exchange: object, offers: tuple[Offer, ...] = offers) -> object:
            return offers

        hooks = StepHooks(authenticate=[("login", Authenticator("prompt", ask))])
        play = Transcript(route(), hooks=hooks)
        got = await play.request(headers=headers, origin=host_origin())
        assert (got.status, code.encode() in got.body) == (401, True)
        expected = list(KEY.challenges)
        if browser:
            expected = [] if form in offers else expected[:1]
        assert [value for name, value in got.headers if name == b"www-authenticate"] == expected
        play.effects.clear()


async def test_a_guard_asks_as_logins_do() -> None:
    """Its ways stand on the same page, and the only one that needs no answer is taken by itself."""

    async def second(_exchange: object) -> object:
        return Challenge(401, "second", offers=(WAY,))

    play = Transcript(route(), hooks=StepHooks(authorize=[("second", Guard(second))]))
    program = await play.request(headers=[(b"accept", b"application/json")], origin=host_origin())
    assert (program.status, json.loads(program.body)["methods"]) == (401, {"sso": WAY.action})
    person = await play.request(headers=[(b"accept", b"text/html")], origin=host_origin())
    assert (person.status, person.get(b"location")) == (302, WAY.action.encode())
    play.effects.clear()


async def test_fixed_answer_is_observed_when_its_client_leaves() -> None:
    """Also a 404 that nobody waits for is seen once, and the cancellation goes on."""
    seen: list[int] = []
    telling = asyncio.Event()

    async def stuck(_message: Any) -> None:
        telling.set()
        await asyncio.Event().wait()

    async def broken(_message: Any) -> None:
        raise OSError("gone")

    class Once:
        plugin = "once"

        def observe(self, one: Any) -> None:
            seen.append(one.status)

    client = Client()
    answer = FixedAnswer(answers.NO_ROUTE, Ending([Once()], Environment()))  # type: ignore[list-item]
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        task = group.create_task(answer.run(exchange(), Downstream(client.receive, stuck, client)))
        await telling.wait()
        task.cancel()
    assert task.cancelled()

    await answer.run(exchange(), Downstream(client.receive, broken, client))

    assert seen == [404, 404]
