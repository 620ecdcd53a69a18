"""Scripts of listed sites may call a service, and no others; preflights are answered before any login."""

from __future__ import annotations

from typing import Any

import pytest

from netbird_proxy import ALLOW, Authenticator, Challenge, Deny, Dialer, ExchangeView, Guard, PluginInfo, hookimpl
from netbird_proxy.routing.hooks import load_hooks
from netbird_proxy.sources.decode.claims import CORE_CLAIMS
from netbird_proxy.sources.decode.codec import Codec
from netbird_proxy.testing.asgi import Answer
from netbird_proxy.testing.fakes import FakeProxy, HostDialer
from netbird_proxy.testing.makers import host_origin
from netbird_proxy.testing.transcript import Transcript
from netbird_proxy.testing.upstreams import ok
from netbird_response_headers.proxy import ResponseHeaders, ResponseHeadersOptions
from netbird_response_headers.settings import PLUGIN
from netbird_wire.plugin_settings import write_settings
from netbird_wire.proxy_service_pb2 import PathMapping, ProxyMapping

APP = b"https://app.example.com"
EVIL = b"https://evil.example"
RULES: dict[str, Any] = {
    "origins": [APP.decode(), "http://localhost:3000"],
    "methods": ["GET", "PUT"],
    "headers": ["Content-Type", "X-A"],
    "exposed_headers": ["X-Total"],
    "credentials": True,
    "max_age_seconds": 60,
}
UPSTREAM = ok(b"", (b"access-control-allow-origin", b"*"), (b"Access_Control_Max_Age", b"9"), (b"vary", b"accept"))


class Gate:
    """A plugin that dials, admits addresses but one, and asks requests without a cookie to log in."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def dialer(self) -> Dialer:
        return HostDialer()

    @hookimpl
    def restrict(self) -> Guard:
        async def judge(exchange: ExchangeView) -> Any:
            return Deny(403, "ip_restricted") if exchange.client_address == "198.51.100.1" else ALLOW

        return Guard(judge)

    @hookimpl
    def authenticate(self) -> Authenticator:
        async def login(exchange: ExchangeView) -> Any:
            return None if exchange.headers.get(b"cookie") else Challenge(401, "login_required")

        return Authenticator("exclusive", login)


def play(cors: dict[str, Any], upstream: Any = UPSTREAM, **options: Any) -> Transcript:
    hooks = load_hooks([("gate", Gate), (PLUGIN, ResponseHeaders)], core_claims=CORE_CLAIMS)
    wire = ProxyMapping(id="svc-1", account_id="acct-1", domain="app.example.com")
    wire.path.append(PathMapping(path="/", target="http://10.0.0.7/"))
    write_settings(wire, PLUGIN, {"cors": cors})
    proxy = FakeProxy(options=(ResponseHeadersOptions.model_validate(options),))
    mapping = Codec(hooks).decode(wire, source="management").mapping
    return Transcript(mapping, hooks=hooks, proxy=proxy, upstream=[upstream])


async def ask(made: Transcript, *headers: tuple[bytes, bytes], peer: str = "203.0.113.9", **fields: Any) -> Answer:
    return await made.request(headers=list(headers), origin=host_origin(peer), **fields)


def rules(answer: Answer) -> list[tuple[bytes, bytes]]:
    return [pair for pair in answer.headers if pair[0].startswith(b"access-control-") or pair[0] == b"vary"]


LOGGED_IN = (b"cookie", b"a=1")


async def test_allowed_origin_is_named() -> None:
    """The upstream's own rules go, under every alias; what its answer depended on stays."""
    answer = await ask(play(RULES), LOGGED_IN, (b"origin", APP))

    assert rules(answer) == [
        (b"vary", b"accept"),
        (b"access-control-allow-origin", APP),
        (b"access-control-allow-credentials", b"true"),
        (b"access-control-expose-headers", b"X-Total"),
        (b"vary", b"origin"),
    ]
    assert not [name for name, _ in answer.headers if b"_" in name]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"origin", EVIL)],
        [(b"origin", b"null")],
        [(b"origin", APP + b".evil.example")],
        [(b"origin", APP.upper())],
        [(b"origin", APP), (b"origin", EVIL)],
        [(b"origin", APP + b", " + EVIL)],
    ],
)
async def test_other_origins_get_no_permission(headers: list[tuple[bytes, bytes]]) -> None:
    """Also none of the upstream; caches learn that the answer depends on the origin."""
    answer = await ask(play(RULES), LOGGED_IN, *headers)

    assert answer.status == 200
    assert rules(answer) == [(b"vary", b"accept"), (b"vary", b"origin")]


@pytest.mark.parametrize("vary", [b"Origin", b"accept, ORIGIN", b"*"])
async def test_vary_is_not_repeated(vary: bytes) -> None:
    """An upstream that already names the origin, or everything, is right."""
    answer = await ask(play(RULES, ok(b"", (b"vary", vary))), LOGGED_IN, (b"origin", EVIL))

    assert rules(answer) == [(b"vary", vary)]


async def test_all_origins_can_be_allowed() -> None:
    """Then answers do not depend on the origin, and no cookie may be sent."""
    answer = await ask(play({"origins": ["*"]}), LOGGED_IN, (b"origin", EVIL))

    assert rules(answer) == [(b"vary", b"accept"), (b"access-control-allow-origin", b"*")]


async def test_refusals_can_be_read_by_allowed_origins() -> None:
    """A script then sees that a login is needed; another site's script sees nothing."""
    made = play(RULES)

    assert (b"access-control-allow-origin", APP) in (await ask(made, (b"origin", APP))).headers
    assert (await ask(made, (b"origin", EVIL))).get(b"access-control-allow-origin") is None
    quiet = play(RULES, own_answers=False)
    refused = await ask(quiet, (b"origin", APP))
    assert (refused.status, refused.get(b"access-control-allow-origin")) == (401, None)


# Preflights -----------------------------------------------------------------------------------------------------------

ASKS = (b"access-control-request-method", b"PUT")


@pytest.mark.parametrize("names", [[], [(b"access-control-request-headers", b"content-type, x-a")]])
async def test_preflight_of_an_allowed_origin_needs_no_login(names: list[tuple[bytes, bytes]]) -> None:
    """The proxy answers it alone: nothing is dialed, and the answer contains the rules and nothing of the request."""
    made = play(RULES)

    answer = await ask(made, (b"origin", APP), ASKS, *names, method="OPTIONS")

    made.saw(
        "restrict gate: allow",
        "restrict response_headers: challenge preflight",
        "transform_response response_headers",
        "respond 200",
        "observe 200",
    )
    assert answer.status == 200
    assert rules(answer) == [
        (b"access-control-allow-origin", APP),
        (b"access-control-allow-credentials", b"true"),
        (b"access-control-allow-methods", b"GET, PUT"),
        (b"access-control-allow-headers", b"Content-Type, X-A"),
        (b"access-control-max-age", b"60"),
        (b"vary", b"origin, access-control-request-method, access-control-request-headers"),
        (b"access-control-expose-headers", b"X-Total"),
    ]


async def test_preflight_where_all_origins_are_allowed() -> None:
    """No credentials, and no origin repeated."""
    answer = await ask(play({"origins": ["*"]}), (b"origin", EVIL), ASKS, method="OPTIONS")

    assert answer.get(b"access-control-allow-origin") == b"*"
    assert answer.get(b"access-control-allow-credentials") is None


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("OPTIONS", [(b"origin", EVIL), ASKS]),
        ("OPTIONS", [(b"origin", APP)]),
        ("OPTIONS", [ASKS]),
        ("OPTIONS", [(b"origin", APP), (b"origin", EVIL), ASKS]),
        ("OPTIONS", [(b"origin", APP), ASKS, ASKS]),
        ("OPTIONS", [(b"origin", APP), (b"access-control-request-method", b"PUT X")]),
        ("OPTIONS", [(b"origin", APP), ASKS, (b"access-control-request-headers", b"a b")]),
        ("GET", [(b"origin", APP), ASKS]),
    ],
)
async def test_everything_else_meets_the_login(method: str, headers: list[tuple[bytes, bytes]]) -> None:
    """A request that is no preflight of an allowed origin gains nothing."""
    made = play(RULES)

    answer = await ask(made, *headers, method=method)

    assert answer.status == 401
    assert answer.get(b"access-control-allow-methods") is None
    assert not made.upstreams.dialed


async def test_restrictions_by_address_come_before_a_preflight() -> None:
    """A stranger whom the restrictions keep out does not learn the rules."""
    answer = await ask(play(RULES), (b"origin", APP), ASKS, method="OPTIONS", peer="198.51.100.1")

    assert answer.status == 403
    assert answer.get(b"access-control-allow-methods") is None


async def test_preflights_leave_upgrades_and_endpoints_as_they_are() -> None:
    """The guard judges upgrades too, so that they stay possible; endpoints of plugins are not opened."""
    made = play(RULES)

    answer = await ask(made, (b"origin", APP), ASKS, method="OPTIONS", target="/__netbird__/gate/x")

    assert answer.status == 404
    assert rules(answer) == []
    [applied] = made.routing
    assert applied.compiled is not None
    [route] = applied.compiled.routes.routes
    assert route.upgrades is not route.runner
