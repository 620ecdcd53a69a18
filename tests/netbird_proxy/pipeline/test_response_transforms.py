"""Transforms of response heads: run in order on what a client gets, and closed where they fail."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from netbird_proxy import ALLOW, Authenticator, Challenge, Deny, Endpoint, ExchangeView, Guard, ResponseTransform
from netbird_proxy.api.errors import DialRefused
from netbird_proxy.api.headers import RawHeader
from netbird_proxy.api.response_head import ResponseHead
from netbird_proxy.testing.asgi import Answer, Client
from netbird_proxy.testing.makers import HOST, host_origin, mapping, route
from netbird_proxy.testing.transcript import StepHooks, Transcript
from netbird_proxy.testing.upstreams import ScriptedAnswer, ok

ORIGIN = host_origin()
SECRET = b"of-the-upstream"


def setting(*lines: RawHeader, own_answers: bool = False) -> ResponseTransform:
    """A transform that sets these lines, and owns their names."""

    def apply(_exchange: ExchangeView, head: ResponseHead) -> None:
        for name, value in lines:
            head.set(name, value)

    return ResponseTransform(apply, owns=tuple(name for name, _ in lines), own_answers=own_answers)


def raises(_exchange: ExchangeView, _head: ResponseHead) -> None:
    raise ValueError("a defect")


def play(*transforms: tuple[str, ResponseTransform], upstream: Any = (), **steps: Any) -> Transcript:
    cookies = steps.pop("cookies", None)
    hooks = StepHooks(transform_response=transforms, **steps)
    return Transcript(mapping(route()), hooks=hooks, upstream=upstream, cookies=cookies)


def names(answer: Answer) -> list[bytes]:
    return [name for name, _ in answer.headers]


async def test_transforms_change_what_they_own_in_order() -> None:
    """Each sees what earlier ones made of the upstream's head; lines of owned names that nobody sets stay."""
    seen: list[tuple[RawHeader, ...]] = []

    def second(_exchange: ExchangeView, head: ResponseHead) -> None:
        seen.append(head.headers)
        head.add(b"x-b", b"second")

    upstream = ok(b"hello", (b"server", b"nginx"), (b"x-b", b"upstream"), (b"x-kept", b"1"))
    made = play(
        ("first", setting((b"Server", b"ours"))),
        ("second", ResponseTransform(second, owns=(b"x-b", b"x-kept"))),
        upstream=[upstream],
    )

    answer = await made.request(origin=ORIGIN)

    made.saw(
        "dial http://10.0.0.7:8080",
        "transform_response first",
        "transform_response second",
        "respond 200",
        "observe 200",
    )
    assert answer.headers == [
        (b"content-length", b"5"),
        (b"x-b", b"upstream"),
        (b"x-kept", b"1"),
        (b"server", b"ours"),
        (b"x-b", b"second"),
    ]
    assert seen == [tuple(answer.headers[:-1])]
    assert answer.body == b"hello"


@pytest.mark.parametrize(
    ("method", "upstream", "status"),
    [
        ("GET", ScriptedAnswer(304, headers=[(b"etag", b'"1"'), (b"content-length", b"5")]), 304),
        ("GET", ScriptedAnswer(204), 204),
        ("HEAD", ScriptedAnswer(200, headers=[(b"content-length", b"5")]), 200),
        ("GET", ScriptedAnswer(500, headers=[(b"content-length", b"4")], body=[b"oops"]), 500),
    ],
)
async def test_every_final_head_is_transformed(method: str, upstream: ScriptedAnswer, status: int) -> None:
    """Also 304, which updates stored fields, an answer to HEAD, and an error of the upstream; the body stays."""
    seen: list[int] = []

    def apply(_exchange: ExchangeView, head: ResponseHead) -> None:
        seen.append(head.status)
        head.set(b"x-frame-options", b"DENY")

    made = play(("frames", ResponseTransform(apply, owns=(b"x-frame-options",))), upstream=[upstream])

    answer = await made.request(method, origin=ORIGIN)

    assert (answer.status, answer.complete, seen) == (status, True, [status])
    assert answer.headers == [*upstream.headers, (b"x-frame-options", b"DENY")]
    assert answer.body == (b"oops" if status == 500 else b"")


async def test_informational_heads_and_trailers_lose_owned_names() -> None:
    """No transform sees them, so a name that a plugin owns could not be decided there."""
    upstream = ScriptedAnswer(
        headers=[(b"trailer", b"x-sum, server")],
        body=[b"hello"],
        before=[(103, [(b"link", b"</a.css>"), (b"Server", b"nginx")])],
        trailers=[(b"x-sum", b"1"), (b"SERVER", b"nginx")],
    )
    runs: list[int] = []

    def apply(_exchange: ExchangeView, head: ResponseHead) -> None:
        runs.append(head.status)

    made = play(("hides", ResponseTransform(apply, owns=(b"server",))), upstream=[upstream])

    answer = await made.request(origin=ORIGIN)

    assert runs == [200]
    assert answer.informational == [(103, [(b"link", b"</a.css>")])]
    assert answer.trailers == [(b"x-sum", b"1")]


def asks_for_upgrade() -> Client:
    headers = [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
    return Client(headers=headers, body=(), upgrade=True, origin=ORIGIN)


SWITCHED = [(b"upgrade", b"websocket"), (b"connection", b"Upgrade"), (b"server", b"nginx")]


async def test_head_of_an_upgrade_is_transformed() -> None:
    """The 101 is the answer that the client gets; its `Upgrade` is the core's."""
    made = play(("a", setting((b"server", b"ours"))), upstream=[ScriptedAnswer(101, headers=list(SWITCHED))])

    answer = await made.run(asks_for_upgrade())

    assert (answer.status, answer.headers) == (101, [(b"server", b"ours"), (b"upgrade", b"websocket")])


async def test_failing_transform_grants_no_upgrade() -> None:
    """The client gets 503, and the upstream's connection is closed."""
    made = play(("a", ResponseTransform(raises)), upstream=[ScriptedAnswer(101, headers=list(SWITCHED))])

    answer = await made.run(asks_for_upgrade())

    made.saw("dial http://10.0.0.7:8080", "transform_response a", "abort", "respond 503", "observe 503 step_failed")
    assert answer.status == 503


def _answers(_exchange: object, _head: object) -> object:
    return Deny(403, "no")


async def _later() -> None: ...


def _coroutine(_exchange: object, _head: object) -> object:
    return _later()


def _forges(_exchange: object, head: Any) -> None:
    head.set(b"X_NetBird_User", b"root")


def _frames(_exchange: object, head: Any) -> None:
    head.set(b"content-length", b"0")


def _smuggles(_exchange: object, head: Any) -> None:
    head.set(b"x-a", b"1\r\nset-cookie: a=1")


def _another_status(_exchange: object, head: Any) -> None:
    head.status = 200


@pytest.mark.parametrize("apply", [raises, _answers, _coroutine, _forges, _frames, _smuggles, _another_status])
async def test_failing_transform_sends_nothing_of_the_upstream(apply: Any) -> None:
    """503 `step_failed`; the log, the trail and observers name the plugin, and the client does not learn its name."""
    upstream = ok(SECRET, (b"x-secret", SECRET))
    made = play(("culprit", ResponseTransform(apply, owns=(b"x-a",), own_answers=True)), upstream=[upstream])

    with capture_logs() as logs:
        answer = await made.request(origin=ORIGIN)

    made.saw(
        "dial http://10.0.0.7:8080",
        "transform_response culprit",
        "abort",
        "respond 503",
        "observe 503 step_failed",
    )
    assert b"step_failed" in answer.body
    assert SECRET not in answer.body + b"".join(value for _, value in answer.headers)
    assert b"culprit" not in answer.body
    assert [(entry.stage, entry.plugin) for entry in made.exchange.trail] == [("transform_response", "culprit")]
    [event] = [event for event in logs if event["event"] == "exchange.step_failed"]
    assert (event["plugin"], event["stage"]) == ("culprit", "transform_response")


async def test_no_other_upstream_is_tried_after_a_failing_transform() -> None:
    """The failure is the plugin's, and the upstream has done its work: nothing is sent twice."""
    made = play(("a", ResponseTransform(raises)), upstream=[ok(), ok()])

    answer = await made.request("POST", origin=ORIGIN, body=[b"x"])

    assert (answer.status, made.upstreams.dialed) == (503, 1)


async def test_head_that_a_plugin_keeps_is_closed() -> None:
    """Neither a later transform's turn nor the time after the answer lets it change anything."""
    heads: list[ResponseHead] = []

    def keep(_exchange: ExchangeView, head: ResponseHead) -> None:
        heads.append(head)

    def use(_exchange: ExchangeView, _head: ResponseHead) -> None:
        heads[0].set(b"x-a", b"late")

    made = play(("keeps", ResponseTransform(keep, owns=(b"x-a",))), ("uses", ResponseTransform(use)), upstream=[ok()])

    answer = await made.request(origin=ORIGIN)

    assert (answer.status, answer.get(b"x-a")) == (503, None)


async def test_slow_transform_sends_nothing_of_the_upstream() -> None:
    """The clock judges when it returns: what exceeds the time of the route's steps has failed."""
    made = play(("slow", setting((b"x-a", b"1"))), upstream=[ok(SECRET)])
    made.environment.timeout = -1.0

    answer = await made.request(origin=ORIGIN)

    assert answer.status == 503
    assert SECRET not in answer.body
    assert "more than" in made.exchange.trail[-1].reason


# Answers of the proxy itself ------------------------------------------------------------------------------------------


async def refuse(_exchange: object) -> object:
    return Deny(403, "not_in_group", headers=((b"X-Reason", b"core"),))


async def allow(_exchange: object) -> object:
    return ALLOW


async def test_own_answers_are_extended_by_choice_only() -> None:
    """Without `own_answers` a transform does not run for a refusal."""
    made = play(
        ("a", setting((b"x-a", b"1"))),
        ("b", setting((b"x-b", b"1"), own_answers=True)),
        restrict=[("g", Guard(refuse))],
    )

    answer = await made.request(origin=ORIGIN)

    made.saw("restrict g: deny not_in_group", "transform_response b", "respond 403", "observe 403 not_in_group")
    assert (answer.get(b"x-a"), answer.get(b"x-b")) == (None, b"1")


async def test_own_answers_keep_their_lines() -> None:
    """A transform adds what the answer lacks, and of its lines it sees the media type alone."""
    seen: list[tuple[RawHeader, ...]] = []

    def apply(_exchange: ExchangeView, head: ResponseHead) -> None:
        seen.append(head.headers)
        assert head.own_answer
        for name in (b"Cache_Control", b"Content-Type", b"x-reason", b"x-new"):
            head.set(name, b"plugin")
        head.delete(b"x-content-type-options")

    owns = (b"cache-control", b"content-type", b"x-reason", b"x-new", b"x-content-type-options")
    made = play(("a", ResponseTransform(apply, owns=owns, own_answers=True)), restrict=[("g", Guard(refuse))])

    answer = await made.request(origin=ORIGIN)

    assert seen == [((b"content-type", b"text/plain; charset=utf-8"),)]
    assert answer.get(b"content-type") == b"text/plain; charset=utf-8"
    assert answer.get(b"cache-control") == b"no-store"
    assert answer.get(b"x-content-type-options") == b"nosniff"
    assert answer.get(b"x-reason") == b"core"
    assert answer.headers[-1] == (b"x-new", b"plugin")
    assert len(set(names(answer))) == len(answer.headers)


@pytest.mark.parametrize(
    "name",
    [
        b"Cache-Control",
        b"CDN-Cache-Control",
        b"Surrogate_Control",
        b"X-Accel-Expires",
        b"Expires",
        b"Location",
        b"Refresh",
        b"WWW-Authenticate",
    ],
)
async def test_own_answers_get_no_line_that_changes_their_use(name: bytes) -> None:
    """Neither a cache nor a browser does with a refusal or an endpoint's answer what these do not ask for."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    made = play(
        ("a", setting((name, b"plugin"), (b"x-a", b"1"), own_answers=True)),
        upstream=[ok()],
        endpoint=[("shop", Endpoint(app))],
    )

    page = await made.request(target="/__netbird__/shop/x", origin=ORIGIN)
    served = await made.request(origin=ORIGIN)

    assert page.headers == [(b"content-length", b"0"), (b"x-a", b"1")]
    assert (name.lower(), b"plugin") in served.headers


async def test_promise_5_plugins_do_not_see_what_an_own_answer_sets() -> None:
    """A login's cookie and the address of its redirect are secrets between the proxy and the browser."""
    seen: list[object] = []
    secrets = (
        (b"Set-Cookie", b"login_state=secret; Secure"),
        (b"Location", b"https://idp.example/?state=secret"),
    )

    async def login(_exchange: object) -> object:
        return Challenge(303, "login", secrets, body=b"\n")

    def apply(_exchange: ExchangeView, head: ResponseHead) -> None:
        seen.extend(head.headers)
        seen.append(head.get(b"set-cookie"))
        head.delete(b"set-cookie", b"location")
        head.set(b"location", b"https://evil.example/")

    made = play(
        ("a", ResponseTransform(apply, owns=(b"set-cookie", b"location"), own_answers=True)),
        authenticate=[("login", Authenticator("prompt", login))],
        cookies={"login_state": "login"},
    )

    answer = await made.request(origin=ORIGIN)

    assert seen == [None]
    assert answer.headers[:2] == list(secrets)
    assert not {b"set-cookie", b"location"} & {name for name, _ in answer.headers[2:]}


@pytest.mark.parametrize("cookie", [b"nb_session=x", b"__Host-nb_x=1", b"cart=1", b"=cart=1"])
async def test_promise_5_plugins_do_not_set_cookies_of_others(cookie: bytes) -> None:
    """Neither the proxy's cookies nor those that another plugin declared: it is a failure of the transform."""

    def apply(_exchange: ExchangeView, head: ResponseHead) -> None:
        head.add(b"set-cookie", cookie)

    transform = ResponseTransform(apply, owns=(b"set-cookie",))
    made = play(("thief", transform), upstream=[ok()], cookies={"cart": "shop"})
    assert (await made.request(origin=ORIGIN)).status == 503

    owner = play(("shop", transform), upstream=[ok()], cookies={"cart": "shop"})
    answer = await owner.request(origin=ORIGIN)
    assert answer.status == (200 if b"cart" in cookie else 503)


@pytest.mark.parametrize("apply", [raises, _answers, _coroutine, _forges])
async def test_own_answers_go_out_unchanged_if_a_transform_fails(apply: Any) -> None:
    """Also without the lines of transforms before it; the log and the trail name the plugin."""
    plain = await play(restrict=[("g", Guard(refuse))]).request(origin=ORIGIN)
    made = play(
        ("first", setting((b"x-a", b"1"), own_answers=True)),
        ("culprit", ResponseTransform(apply, own_answers=True)),
        restrict=[("g", Guard(refuse))],
    )

    with capture_logs() as logs:
        answer = await made.request(origin=ORIGIN)

    made.saw(
        "restrict g: deny not_in_group",
        "transform_response first",
        "transform_response culprit",
        "respond 403",
        "observe 403 not_in_group",
    )
    assert (answer.status, answer.headers) == (403, plain.headers)
    assert made.exchange.trail[-1].plugin == "culprit"
    assert [event["plugin"] for event in logs if event["event"] == "exchange.step_failed"] == ["culprit"]
    assert made.proxy.counters["step_failed"] == 1  # type: ignore[attr-defined]  # the fake has them


async def test_endpoints_are_extended_and_keep_their_secrets() -> None:
    """A transform of another plugin sees neither the endpoint's head nor the request as the endpoint sees it."""
    seen: list[object] = []

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        exchange = scope["state"]["netbird_proxy.exchange"]
        headers = [(b"Set-Cookie", b"cart=1"), (b"X-Frame-Options", b"SAMEORIGIN")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        seen.append(exchange.query)
        await send({"type": "http.response.body", "body": exchange.headers.get(b"cookie")})

    def apply(exchange: ExchangeView, head: ResponseHead) -> None:
        seen.extend((head.headers, exchange.headers.get(b"cookie"), exchange.query))
        head.set(b"x-frame-options", b"DENY")
        head.set(b"x-new", b"1")

    made = play(
        ("other", ResponseTransform(apply, owns=(b"x-frame-options", b"x-new"), own_answers=True)),
        ("quiet", setting((b"x-quiet", b"1"))),
        endpoint=[("shop", Endpoint(app))],
        cookies={"cart": "shop"},
    )

    answer = await made.request(
        target="/__netbird__/shop/x?session_token=s&a=1", origin=ORIGIN, headers=[(b"cookie", b"cart=full")]
    )

    assert seen == [(), None, b"a=1", b"session_token=s&a=1"]
    assert answer.body == b"cart=full"
    assert answer.headers == [(b"set-cookie", b"cart=1"), (b"x-frame-options", b"SAMEORIGIN"), (b"x-new", b"1")]


async def test_failures_are_extended() -> None:
    """A failure of the upstream is an answer of the proxy; one that a transform caused is sent as it is."""
    made = play(("a", setting((b"x-a", b"1"), own_answers=True)), upstream=[DialRefused("closed")])

    answer = await made.request(origin=ORIGIN)

    assert (answer.status, answer.get(b"x-a")) == (502, b"1")


async def test_requests_without_a_route_meet_no_transform() -> None:
    """No plugin decides about a host that is not its route's."""
    made = play(("a", setting((b"x-a", b"1"), own_answers=True)))

    answer = await made.request(origin=ORIGIN, host="other.example")

    made.saw("respond 404", "observe 404 no_route")
    assert answer.get(b"x-a") is None
    assert (await made.request(origin=ORIGIN, host=HOST)).get(b"x-a") == b"1"
