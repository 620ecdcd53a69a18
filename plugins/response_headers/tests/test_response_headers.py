"""Answers carry exactly the headers that the operator and the service's settings name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from netbird_management.plugins.hooks import load_hooks as load_management
from netbird_proxy import ALLOW, Deny, Dialer, Endpoint, ExchangeView, Guard, PluginInfo, ResponseTransform, hookimpl
from netbird_proxy.api.errors import RouteRefused
from netbird_proxy.api.headers import RawHeader
from netbird_proxy.api.model import ServiceMapping
from netbird_proxy.pipeline.bound import BoundResponseTransform
from netbird_proxy.pipeline.head_rules import CORE_NAMES
from netbird_proxy.routing.hooks import Hooks, load_hooks
from netbird_proxy.routing.ownership import check_response_owners
from netbird_proxy.sources.decode.claims import CORE_CLAIMS
from netbird_proxy.sources.decode.codec import Codec
from netbird_proxy.testing.asgi import Answer
from netbird_proxy.testing.fakes import FakeProxy, HostDialer
from netbird_proxy.testing.makers import host_origin
from netbird_proxy.testing.transcript import Transcript
from netbird_proxy.testing.upstreams import ok
from netbird_response_headers.proxy import ResponseHeaders, ResponseHeadersOptions
from netbird_response_headers.settings import PLUGIN, ResponseHeadersSettings
from netbird_wire.plugin_settings import write_settings
from netbird_wire.proxy_service_pb2 import PathMapping, ProxyMapping

UPSTREAM: list[RawHeader] = [
    (b"server", b"nginx"),
    (b"x-powered-by", b"php"),
    (b"strict-transport-security", b"max-age=1"),
    (b"content-security-policy", b"default-src *"),
]
POLICY = "default-src 'self'"


class Dials:
    """A plugin that dials, and has an endpoint; it refuses all requests below `/closed`."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def dialer(self) -> Dialer:
        return HostDialer()

    @hookimpl
    def authorize(self) -> Guard:
        async def judge(exchange: ExchangeView) -> Any:
            return Deny(403, "closed") if exchange.raw_path.startswith(b"/closed") else ALLOW

        return Guard(judge)

    @hookimpl
    def endpoint(self) -> Endpoint:
        async def app(_scope: Any, _receive: Any, send: Any) -> None:
            headers = [(b"content-security-policy", b"default-src 'none'"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b""})

        return Endpoint(app)


def hooks(*others: tuple[str, object]) -> Hooks:
    return load_hooks([(PLUGIN, ResponseHeaders), ("dials", Dials), *others], core_claims=CORE_CLAIMS)


def applied(settings: dict[str, Any] | None = None) -> ServiceMapping:
    """A mapping with these settings, as the proxy reads it."""
    wire = ProxyMapping(id="svc-1", account_id="acct-1", domain="app.example.com")
    wire.path.append(PathMapping(path="/", target="http://10.0.0.7/"))
    if settings is not None:
        write_settings(wire, PLUGIN, settings)
    return Codec(hooks()).decode(wire, source="management").mapping


def play(settings: dict[str, Any] | None = None, *others: tuple[str, object], **options: Any) -> Transcript:
    proxy = FakeProxy(options=(ResponseHeadersOptions.model_validate(options),))
    return Transcript(applied(settings), hooks=hooks(*others), proxy=proxy, upstream=[ok(b"", *UPSTREAM)])


async def ask(made: Transcript, target: str = "/", *, scheme: str = "https", **fields: Any) -> Answer:
    return await made.request(target=target, origin=host_origin(), scheme=scheme, **fields)


async def test_nothing_changes_without_a_setting() -> None:
    """The upstream's head passes, and the route has no step of this plugin."""
    made = play()

    answer = await ask(made)

    assert answer.headers == [(b"content-length", b"0"), *UPSTREAM]
    made.saw("authorize dials: allow", "dial http://10.0.0.7:80", "respond 200", "observe 200")


ALL: dict[str, Any] = {
    "hsts": {"max_age_seconds": 31_536_000, "include_subdomains": True, "preload": True},
    "server": "",
    "content_security_policy": POLICY,
    "content_security_policy_report_only": "default-src 'none'",
    "fixed": {"X-Frame-Options": "DENY"},
    "remove": ["X-Powered-By"],
}


@pytest.mark.parametrize("by", ["operator", "service"])
async def test_headers_are_set_and_removed(by: str) -> None:
    """In place of the upstream's; the names of the upstream that have no setting stay."""
    made = play(**ALL) if by == "operator" else play(ALL)

    answer = await ask(made)

    assert answer.headers == [
        (b"content-length", b"0"),
        (b"content-security-policy", POLICY.encode()),
        (b"content-security-policy-report-only", b"default-src 'none'"),
        (b"x-frame-options", b"DENY"),
        (b"strict-transport-security", b"max-age=31536000; includeSubDomains; preload"),
    ]


async def test_service_replaces_settings_of_the_operator_by_name() -> None:
    """`null` switches a setting off; what the service does not set stays."""
    made = play({"server": "mine", "hsts": None, "fixed": {"X-A": ""}}, **ALL)

    answer = await ask(made)

    assert answer.get(b"server") == b"mine"
    assert answer.get(b"strict-transport-security") == b"max-age=1"
    assert answer.get(b"x-frame-options") is None
    assert answer.get(b"x-powered-by") is None
    assert answer.get(b"content-security-policy") == POLICY.encode()


async def test_transport_security_is_sent_over_tls_only() -> None:
    """RFC 6797 §7.2: a field without TLS could come from anybody, so the upstream's is removed as well."""
    made = play(hsts={"max_age_seconds": 60})

    assert (await ask(made)).get(b"strict-transport-security") == b"max-age=60"
    assert (await ask(made, scheme="http")).get(b"strict-transport-security") is None


@pytest.mark.parametrize("own_answers", [True, False])
async def test_own_answers_are_extended_by_choice(own_answers: bool) -> None:
    """Refusals and endpoints get the headers that they lack; a page keeps its own policy."""
    made = play(**ALL, own_answers=own_answers)

    refused = await ask(made, "/closed")
    page = await ask(made, "/__netbird__/dials/x")

    assert (refused.status, page.status) == (403, 200)
    for answer in (refused, page):
        assert answer.get(b"x-frame-options") == (b"DENY" if own_answers else None)
        assert (answer.get(b"strict-transport-security") is not None) == own_answers
    assert page.get(b"content-security-policy") == b"default-src 'none'"
    assert len(dict(page.headers)) == len(page.headers)


async def test_name_of_another_plugin_refuses_the_service() -> None:
    """Two plugins cannot decide one header."""

    class Other:
        @hookimpl
        def describe(self) -> PluginInfo:
            return PluginInfo()

        @hookimpl
        def transform_response(self) -> ResponseTransform:
            return ResponseTransform(lambda _exchange, _head: None, owns=(b"X_Frame_Options",))

    [report] = play(ALL, ("other", Other)).reports

    assert report.refused == "both response_headers and other own the response header x-frame-options"


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hsts": {}}, "max_age_seconds"),
        ({"hsts": {"max_age_seconds": -1}}, "greater than or equal to 0"),
        ({"hsts": {"max_age_seconds": 60, "preload": True}}, "preload requires include_subdomains"),
        ({"hsts": {"max_age_seconds": 60, "include_subdomains": True, "preload": True}}, "at least 31536000"),
        ({"hsts": {"max_age_seconds": "60"}}, "valid integer"),
        ({"server": "a\r\nset-cookie: a=1"}, "printable ASCII"),
        ({"server": "café"}, "printable ASCII"),
        ({"content_security_policy": "a\0"}, "printable ASCII"),
        ({"fixed": {"X-A": "1\n"}}, "printable ASCII"),
        ({"fixed": {"X A": "1"}}, "not the name of a header"),
        ({"fixed": {"": "1"}}, "not the name of a header"),
        ({"fixed": {"Content_Length": "1"}}, "the proxy itself decides it"),
        ({"fixed": {"X-NetBird-User": "root"}}, "the proxy itself decides it"),
        ({"fixed": {"Set-Cookie": "a=1"}}, "upstreams and plugins set cookies"),
        ({"fixed": {"Access-Control-Allow-Origin": "*"}}, "use cors"),
        ({"remove": ["Strict_Transport_Security"]}, "use hsts"),
        ({"remove": ["Connection"]}, "the proxy itself decides it"),
        ({"remove": ["Date"]}, "the proxy itself decides it"),
        ({"fixed": {"X-A": "1", "x_a": "2"}}, "x_a is named more than once"),
        ({"fixed": {"X-A": "1"}, "remove": ["x-a"]}, "x-a is named more than once"),
        ({"cors": {"origins": []}}, "at least 1 item"),
        ({"cors": {}}, "origins"),
        ({"cors": {"origins": ["*", "https://a.example"]}}, "list it alone"),
        ({"cors": {"origins": ["*"], "credentials": True}}, "credentials cannot be combined with the origin *"),
        ({"cors": {"origins": ["null"]}}, "neither * nor an origin"),
        ({"cors": {"origins": ["https://a.example/"]}}, "neither * nor an origin"),
        ({"cors": {"origins": ["https://*.example"]}}, "neither * nor an origin"),
        ({"cors": {"origins": ["https://A.example"]}}, "neither * nor an origin"),
        ({"cors": {"origins": ["https://a.example"], "methods": ["GET POST"]}}, "not a name as HTTP defines it"),
        ({"cors": {"origins": ["https://a.example"], "headers": ["x\r\n"]}}, "not a name as HTTP defines it"),
        ({"cors": {"origins": ["https://a.example"], "credentials": "yes"}}, "valid boolean"),
        ({"cors": {"origins": ["https://a.example"], "max_age_seconds": 90_000}}, "less than or equal to 86400"),
        ({"htst": {}}, "htst"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any], message: str) -> None:
    """By the same model when a service is saved, when a mapping is applied, and when the proxy starts."""
    with pytest.raises(ValidationError, match=message.replace("*", r"\*")):
        ResponseHeadersSettings.model_validate(settings)
    with pytest.raises(ValidationError):
        ResponseHeadersOptions.model_validate(settings)
    assert "plugin response_headers cannot use its settings" in applied(settings).refused


NOBODYS = (
    "Connection",
    "Content-Length",
    "Content-Encoding",
    "Content-Range",
    "Date",
    "Expect",
    "HTTP2-Settings",
    "Host",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "Proxy-Connection",
    "Sec-WebSocket-Accept",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
    "X-NetBird-User",
)


@pytest.mark.parametrize("name", NOBODYS)
def test_names_that_the_core_would_refuse_are_refused_as_settings(name: str) -> None:
    """Otherwise a setting of the operator would close every service when it is applied."""
    for alias in (name, name.upper().replace("-", "_")):
        with pytest.raises(ValidationError, match="decides it"):
            ResponseHeadersSettings.model_validate({"remove": [alias]})
    with pytest.raises(RouteRefused):
        check_response_owners(
            [BoundResponseTransform("a", ResponseTransform(lambda _e, _h: None, owns=(name.encode(),)))]
        )


def test_the_list_of_such_names_is_the_cores() -> None:
    """A name that the core adds to its own must be refused as a setting too."""
    assert {name.lower().encode() for name in NOBODYS} >= CORE_NAMES


ORIGINS = st.just(("*",)) | st.lists(
    st.sampled_from(["https://a.example", "http://b.example:8080", "https://[fd00::7]"]), min_size=1
).map(tuple)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "hsts": st.none() | st.fixed_dictionaries({"max_age_seconds": st.integers(0, 31_536_000)}),
            "server": st.none() | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
            "fixed": st.dictionaries(st.sampled_from(["X-A", "X-B"]), st.just("1")),
            "remove": st.lists(st.sampled_from(["X-C", "X-D"]), unique=True).map(tuple),
            "cors": st.none() | st.fixed_dictionaries({"origins": ORIGINS, "max_age_seconds": st.integers(0, 600)}),
        },
    )
)
def test_settings_survive_the_wire(values: dict[str, Any]) -> None:
    """The proxy's half reads the settings that management's half writes, and which of them are set."""
    settings = ResponseHeadersSettings.model_validate(values)
    wire = ProxyMapping()
    settings.to_wire(wire)

    read = ResponseHeadersSettings.from_wire(ProxyMapping.FromString(wire.SerializeToString()))

    assert read == settings
    assert read.model_fields_set == settings.model_fields_set


def test_management_claims_the_settings() -> None:
    """A service with such settings is withheld from proxies that would ignore them."""
    [plugin] = [plugin for plugin in load_management([PLUGIN]).plugins if plugin.id == PLUGIN]

    [claim] = plugin.info.claims
    assert (claim.field, claim.guards({"server": ""})) == ("plugin_settings.response_headers", True)
