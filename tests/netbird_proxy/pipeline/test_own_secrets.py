"""Promises 5 and 11: a plugin sees of the proxy's own cookies and tokens only what it declared, and sets no other's."""

from __future__ import annotations

from typing import Any

import pytest

from netbird_proxy import (
    ALLOW,
    EXCHANGE_STATE,
    Authenticator,
    Challenge,
    Deny,
    Endpoint,
    Guard,
    Identity,
    RequestTransform,
    UserId,
)
from netbird_proxy.testing.makers import host_origin, route
from netbird_proxy.testing.transcript import StepHooks, Transcript

COOKIES = {"__Host-nb_session": "session", "__Host-nb_login_*": "session", "cart": "shop"}
SENT = b"a=1; __Host-nb_session=secret; cart=full; nb_session=old; __Host-nb_login_x=proof; b=2"
PUBLIC = b"a=1; b=2"
MINE = {"session": b"a=1; __Host-nb_session=secret; __Host-nb_login_x=proof; b=2", "shop": b"a=1; cart=full; b=2"}


class Looks:
    """Steps that note which cookies and which query they see."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes | None, bytes]] = []

    def look(self, who: str, exchange: Any) -> None:
        self.seen.append((who, exchange.headers.get(b"cookie"), exchange.query))

    def guard(self, who: str) -> tuple[str, Guard]:
        async def check(exchange: Any) -> Any:
            self.look(who, exchange)
            return ALLOW

        return who, Guard(check)

    def hooks(self) -> StepHooks:
        async def identify(exchange: Any) -> Identity:
            self.look("session", exchange)
            return Identity(UserId("alice"))

        return StepHooks(
            restrict=[self.guard("asks_elsewhere"), self.guard("shop")],
            authenticate=[("session", Authenticator("credential", identify))],
            authorize=[self.guard("asks_elsewhere")],
            transform_request=[("forwards", RequestTransform(lambda exchange, _head: self.look("forwards", exchange)))],
            observe=[("logs", lambda exchange: self.look("logs", exchange))],
        )


async def test_promise_5_a_step_sees_the_cookies_of_its_own_plugin_alone() -> None:
    """Everybody else sees what an upstream is sent, where it stands in the head and byte for byte."""
    looks = Looks()
    play = Transcript(route(), hooks=looks.hooks(), cookies=COOKIES)

    await play.request(
        "GET", "/x?a=1&session_token=secret&b=2", origin=host_origin(), headers=[(b"cookie", SENT), (b"x-a", b"1")]
    )

    assert looks.seen == [
        (who, MINE.get(who, PUBLIC), b"a=1&b=2")
        for who in ("asks_elsewhere", "shop", "session", "asks_elsewhere", "forwards", "logs")
    ]
    assert b"secret" not in play.upstreams.last.head
    assert play.upstreams.last.get(b"cookie") == [PUBLIC]


async def test_promise_5_cookies_without_any_of_the_clients_own_are_no_field() -> None:
    """A head whose only cookies are ours has none for others, and its fields stay in order for their owner."""
    seen: list[Any] = []

    async def check(exchange: Any) -> Any:
        seen.append(list(exchange.headers)[-3:])
        return ALLOW

    hooks = StepHooks(restrict=[("other", Guard(check)), ("session", Guard(check))])
    play = Transcript(route(), hooks=hooks, cookies=COOKIES)
    before, after, ours = (b"x-a", b"1"), (b"x-b", b"2"), (b"cookie", b"__Host-nb_session=secret")

    await play.request(origin=host_origin(), headers=[before, ours, after])

    assert seen[0][-2:] == [before, after]
    assert seen[1] == [before, ours, after]


async def test_promise_5_an_endpoint_gets_its_own_cookies_and_the_query_that_is_meant_for_it() -> None:
    """What comes back from the identity provider is the endpoint's; a guard before it does not see it."""
    looks, scopes = Looks(), []

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        scopes.append((dict(scope["headers"])[b"cookie"], scope["query_string"]))
        looks.look("session", scope["state"][EXCHANGE_STATE])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    hooks = looks.hooks()
    hooks.steps["endpoint"] = [("session", Endpoint(app))]
    play = Transcript(route(), hooks=hooks, cookies=COOKIES)

    await play.request(
        "GET", "/__netbird__/session/return?session_token=secret", origin=host_origin(), headers=[(b"cookie", SENT)]
    )

    assert scopes == [(MINE["session"], b"session_token=secret")]
    assert looks.seen == [
        ("asks_elsewhere", PUBLIC, b""),
        ("shop", MINE["shop"], b""),
        ("session", MINE["session"], b"session_token=secret"),
        ("logs", PUBLIC, b""),
    ]


HEADERS = tuple(
    (b"Set-Cookie", value)
    for value in (b"__Host-nb_session=evil", b"=__Host-nb_session=evil", b"nb_session=evil", b"cart=x", b"own=1")
)


@pytest.mark.parametrize(
    ("plugin", "kept"),
    [
        ("thief", [b"own=1"]),
        ("shop", [b"cart=x", b"own=1"]),
        ("session", [b"__Host-nb_session=evil", b"=__Host-nb_session=evil", b"own=1"]),
    ],
)
@pytest.mark.parametrize("answer", [Deny(403, "no", headers=HEADERS), Challenge(401, "login", HEADERS)])
async def test_promise_11_a_refusal_sets_no_cookie_of_another(answer: Any, plugin: str, kept: list[bytes]) -> None:
    """A session that a plugin planted would be somebody else's."""

    async def refuse(_exchange: object) -> Any:
        return answer

    play = Transcript(route(), hooks=StepHooks(restrict=[(plugin, Guard(refuse))]), cookies=COOKIES)
    got = await play.request(origin=host_origin())

    assert [value for name, value in got.headers if name.lower() == b"set-cookie"] == kept


@pytest.mark.parametrize("headers", [[], (("x-a", "1"),), ((b"x-a", b"1\r\nx-b: 2"),), ((b"x a", b"1"),), ((b"x-a",),)])
async def test_promise_11_a_refusal_whose_headers_cannot_be_sent_is_a_failure(headers: Any) -> None:
    """The client gets a plain 503, and never half an answer."""

    async def refuse(_exchange: object) -> Any:
        return Deny(403, "no", headers=headers or [(b"x-a", b"1")])  # type: ignore[arg-type]

    play = Transcript(route(), hooks=StepHooks(restrict=[("culprit", Guard(refuse))]))
    got = await play.request(origin=host_origin())

    assert (got.status, got.complete) == (503, True)
    assert b"step_failed" in got.body
