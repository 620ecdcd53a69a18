"""Promises 5 and 11: a plugin sees of the proxy's own cookies and tokens only what it declared, and sets no other's."""

from __future__ import annotations

import asyncio
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
from netbird_proxy.testing.makers import host_origin, mapping, route
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


async def test_promise_5_a_credential_is_seen_by_the_plugin_that_checks_it_alone() -> None:
    """A declared credential reaches no step of another plugin and no upstream, under no alias and in no trailer."""
    seen: list[tuple[str, list[tuple[bytes, bytes]]]] = []

    def look(plugin: str, exchange: Any) -> None:
        fields = [pair for pair in exchange.headers if pair[0] not in (b"host", b"transfer-encoding")]
        seen.append((plugin, fields))

    def step(plugin: str, answer: Any) -> Any:
        async def run(exchange: Any) -> Any:
            look(plugin, exchange)
            return answer

        return run

    identity = Identity(UserId("alice"))
    hooks = StepHooks(
        restrict=[("other", Guard(step("other", ALLOW)))],
        authenticate=[
            ("other", Authenticator("credential", step("other", None))),
            ("session", Authenticator("credential", step("session", identity), credentials=(b"X-Key",))),
        ],
        authorize=[
            ("keys", Guard(step("keys", ALLOW), credentials=(b"authorization",))),
            ("session", Guard(step("session", ALLOW))),
        ],
        transform_request=[("other", RequestTransform(lambda exchange, _head: look("other", exchange)))],
        observe=[("other", lambda exchange: look("other", exchange))],
    )
    play = Transcript(route(), hooks=hooks, cookies=COOKIES)
    public, last = (b"x-a", b"1"), (b"x-b", b"2")
    key, alias, basic = (b"x-key", b"secret"), (b"x_key", b"secret too"), (b"authorization", b"Basic secret")
    cookie = (b"cookie", b"cart=full")  # of a plugin without steps here

    await play.request(
        origin=host_origin(),
        method="POST",
        headers=[public, key, basic, cookie, alias, last, (b"transfer-encoding", b"chunked")],
        body=[b"body"],
        trailers=[(b"x-key", b"secret"), (b"x-sum", b"3")],
    )

    everybody = [public, last]
    own = {"session": [public, key, alias, last], "keys": [public, basic, last]}
    assert seen == [
        (plugin, own.get(plugin, everybody))
        for plugin in ("other", "other", "session", "keys", "session", "other", "other")
    ]
    assert b"secret" not in play.upstreams.last.head
    assert play.upstreams.last.trailers == [(b"x-sum", b"3")]


async def test_promise_5_a_credential_sent_to_another_path_of_the_host_is_hidden_there_too() -> None:
    """A browser sends a credential to every path of a host, also to the endpoint of a plugin."""
    seen: list[tuple[str, bytes | None]] = []

    async def identify(_exchange: Any) -> Identity:
        return Identity(UserId("alice"))

    async def check(exchange: Any) -> Any:
        seen.append(("other", exchange.headers.get(b"authorization")))
        return ALLOW

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        seen.append((scope["path"], dict(scope["headers"]).get(b"authorization")))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    hooks = StepHooks(
        restrict=[("other", Guard(check))],
        authenticate=[("session", Authenticator("credential", identify, credentials=(b"authorization",)))],
        endpoint=[("session", Endpoint(app)), ("other", Endpoint(app))],
    )
    play = Transcript(route(), hooks=hooks)

    for plugin in ("session", "other"):
        await play.request(
            "GET", f"/__netbird__/{plugin}/x", origin=host_origin(), headers=[(b"authorization", b"Basic secret")]
        )

    assert seen == [
        ("other", None),
        ("/__netbird__/session/x", b"Basic secret"),
        ("other", None),
        ("/__netbird__/other/x", None),
    ]


async def test_promise_5_an_open_exchange_is_revalidated_with_the_same_views() -> None:
    """A step that is asked again, while the step of another plugin runs, sees its own view of the head."""
    seen: list[bytes | None] = []
    entered, again, released = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def other(exchange: Any) -> Any:
        seen.append(exchange.headers.get(b"x-key"))
        if exchange.revalidating:
            again.set()
        return ALLOW

    async def waits(exchange: Any) -> Any:
        if not exchange.revalidating:
            entered.set()
            await released.wait()
        return ALLOW

    hooks = StepHooks(
        restrict=[("other", Guard(other)), ("session", Guard(waits, credentials=(b"x-key",)))],
    )
    play = Transcript(route(), hooks=hooks)
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(play.app.exchanges.run())
        request = tasks.create_task(play.request(origin=host_origin(), headers=[(b"x-key", b"secret")]))
        await entered.wait()
        play.app.exchanges.revalidate()
        await again.wait()
        released.set()
        await request
        asking.cancel()

    assert seen == [None, None]


@pytest.mark.parametrize("name", [b"content-length", b"Transfer_Encoding", b"cookie", b"host", b"not a name", "x-key"])
async def test_promise_5_a_field_that_the_core_reads_is_no_credential(name: Any) -> None:
    """Hidden, it would frame the message otherwise than the client did; the route is refused."""

    async def check(_exchange: Any) -> Any:
        return ALLOW

    play = Transcript(route(), hooks=StepHooks(restrict=[("keys", Guard(check, credentials=(name,)))]))

    assert play.reports[0].refused.startswith("keys may not declare ")


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


async def test_promise_5_a_credential_sent_to_a_refused_service_is_hidden() -> None:
    """Clients go on sending it while the route is closed; no step asks for it, and no observer sees it."""
    seen: list[tuple[bytes, bytes]] = []
    hooks = StepHooks(observe=[("logs", lambda exchange: seen.extend(exchange.headers))])
    refused = mapping(route(), refused="a field that nobody claims", credential_fields=("X-Key", "é", "Host"))
    play = Transcript(refused, hooks=hooks, cookies=COOKIES)

    answer = await play.request(
        origin=host_origin(), headers=[(b"x_key", b"secret"), (b"X-Key", b"secret"), (b"x-other", b"1")]
    )

    assert answer.status == 503
    names = {name for name, _ in seen}
    assert b"x-other" in names
    assert b"host" in names
    assert not {b"x-key", b"x_key"} & names
