"""A mapping from the wire becomes routes, or one sentence that says why not."""
# Over 500 lines: one codec, with the table of messages that it refuses.

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from netbird_proxy.api.model import Address, ServiceMapping, Upstream
from netbird_proxy.routing.hooks import Hooks
from netbird_proxy.sources.decode.codec import Codec, Decoded
from netbird_wire.direct_upstream import set_direct
from netbird_wire.plugin_settings import CORE, write_settings
from netbird_wire.proxy_service_pb2 import (
    PATH_REWRITE_PRESERVE,
    UPDATE_TYPE_MODIFIED,
    GetMappingUpdateResponse,
    PathMapping,
    PathTargetOptions,
    ProxyMapping,
    SyncMappingsResponse,
)

from .plugins_for_codec import SHOP, Shelf, Shop, bare_codec, hooks, whole_codec

GOLDEN = Path(__file__).parents[3] / "corpus" / "golden" / "wire.jsonl"
CODEC = bare_codec()
WHOLE = whole_codec()
CA = trustme.CA().cert_pem.bytes().decode()


def wire(*paths: PathMapping, **fields: object) -> ProxyMapping:
    """A public HTTP service."""
    found = ProxyMapping(id="svc-1", account_id="acct-1", domain="app.example.com", path=paths)
    for name, value in fields.items():
        setattr(found, name, value)
    return found


def target(url: str = "http://10.0.0.1/", path: str = "/", **options: object) -> PathMapping:
    return PathMapping(path=path, target=url, options=PathTargetOptions(**options))  # type: ignore[arg-type]


def decoded(message: ProxyMapping, codec: Codec = CODEC) -> Decoded:
    return codec.decode(message, source="management")


def served(message: ProxyMapping, codec: Codec = CODEC) -> ServiceMapping:
    found = decoded(message, codec).mapping
    assert found.refused == ""
    return found


def refused(message: ProxyMapping, codec: Codec = CODEC) -> str:
    found = decoded(message, codec).mapping
    assert found.refused
    assert (found.routes, found.tunneled) == ((), False)
    return found.refused


def upstream(path: PathMapping) -> Upstream:
    (route,) = served(wire(path)).routes
    (one,) = route.upstreams
    return one


def test_a_whole_mapping() -> None:
    """Every field arrives where it belongs."""
    message = wire(
        target("https://[fd00::1]:8443/base/", "/api/", path_rewrite=PATH_REWRITE_PRESERVE, skip_tls_verify=True),
        target("http://Backend.Example:80"),
        domain="App.Example.com.",
        auth_token="once",
        pass_host_header=True,
        rewrite_redirects=True,
    )
    message.path[0].options.request_timeout.FromMilliseconds(2500)
    message.path[0].options.custom_headers["X-B"] = " 2 "
    message.path[0].options.custom_headers["X-a"] = "1"
    message.path[0].options.disable_access_log = True
    found = served(message)
    assert (found.id, found.account, found.source, found.mode) == ("svc-1", "acct-1", "management", "http")
    assert (found.host, found.domain, found.auth_token) == ("app.example.com", "App.Example.com.", "once")
    api, root = found.routes
    assert (api.prefix, api.strip_prefix, root.prefix, root.strip_prefix) == (b"/api", False, b"/", True)
    for route in found.routes:
        assert (route.host, route.domain, route.kind) == ("app.example.com", "App.Example.com.", "http")
        assert (route.service, route.account) == ("svc-1", "acct-1")
        assert (route.pass_host_header, route.rewrite_redirects) == (True, True)
    assert api.upstreams == (
        Upstream(
            scheme="https",
            address=Address("fd00::1", 8443),
            path=b"/base/",
            skip_tls_verify=True,
            dial_timeout=2.5,
            custom_headers=((b"x-b", b"2"), (b"x-a", b"1")),
            disable_access_log=True,
        ),
    )
    assert root.upstreams == (Upstream(scheme="http", address=Address("backend.example", 80)),)


def test_the_wire_message_is_not_changed() -> None:
    """Whoever hands it in may still log it, or hand it to somebody else."""
    message = wire(target(), auth_token="once")
    before = message.SerializeToString(deterministic=True)
    decoded(message, whole_codec())
    assert message.SerializeToString(deterministic=True) == before


def test_the_token_stays_out_of_reprs() -> None:
    """A mapping in a log or an assertion gives its one-time token away to nobody."""
    assert "once-only" not in repr(decoded(wire(target(), auth_token="once-only")))


def test_no_path_is_no_route() -> None:
    """Management sends services without targets; they are fine and lead nowhere."""
    assert served(wire()).routes == ()


def test_targets_on_one_path_are_upstreams_of_one_route() -> None:
    """In their order; with and without a slash at the end is one path."""
    (route,) = served(wire(target("http://a/", "/x"), target("http://b/", "/x/"))).routes
    assert [str(one) for one in route.upstreams] == ["http://a:80", "http://b:80"]


def test_targets_on_one_path_must_agree_on_the_path() -> None:
    """One route cannot both strip and keep its prefix."""
    message = wire(target("http://a/", "/x"), target("http://b/", "/x", path_rewrite=PATH_REWRITE_PRESERVE))
    assert refused(message) == "the targets of path '/x' differ in path_rewrite"


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("", b"/"),
        ("/", b"/"),
        ("/a", b"/a"),
        ("/a/", b"/a"),
        ("/a/b", b"/a/b"),
        ("/a%2Fb", b"/a%2Fb"),
        ("/a b", b"/a%20b"),
        ("/ü", b"/%C3%BC"),
        ("/A;x=1", b"/A;x=1"),
        ("/a..b/...", b"/a..b/..."),
    ],
)
def test_a_path_becomes_a_raw_prefix(path: str, prefix: bytes) -> None:
    """As it stands on a request line: escapes are kept, what cannot stand there is escaped."""
    (route,) = served(wire(target(path=path))).routes
    assert route.prefix == prefix


@pytest.mark.parametrize(
    "path", ["a", "//", "//a", "/a//b", "/a//", "/.", "/a/../b", "/a/%2e%2E/b", "/a?b", "/a#b", "/a%", "/a%zz"]
)
def test_a_path_that_no_request_has_is_refused(path: str) -> None:
    """Serving something near it would be serving something else."""
    assert "path" in refused(wire(target(path=path)))


@pytest.mark.parametrize(
    ("url", "address", "path"),
    [
        ("http://10.0.0.1", ("10.0.0.1", 80), b"/"),
        ("HTTPS://10.0.0.1", ("10.0.0.1", 443), b"/"),
        ("http://10.0.0.1:8080/", ("10.0.0.1", 8080), b"/"),
        ("http://[::1]/", ("::1", 80), b"/"),
        ("http://[0:0::1]:81/", ("::1", 81), b"/"),
        ("http://bücher.example/", ("xn--bcher-kva.example", 80), b"/"),
        ("http://unknown/", ("unknown", 80), b"/"),
        ("http://h/a%2Fb", ("h", 80), b"/a%2Fb"),
        ("http://h/ü", ("h", 80), b"/%C3%BC"),
    ],
)
def test_an_http_target(url: str, address: tuple[str, int], path: bytes) -> None:
    """Scheme, host, port and raw path, with the scheme's own port where none is said."""
    one = upstream(target(url))
    assert (one.address, one.path) == (address, path)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "10.0.0.1:80",
        "ftp://h/",
        "http://",
        "http:///a",
        "http://h:0/",
        "http://h:65536/",
        "http://h:x/",
        "http://h:80:90/",
        "http://[::1/",
        "http://[::1]x:80/",
        "http://x[::1]:80/",
        "http://[fe80::1%25eth0]/",
        "http://h/?a=b",
        "http://h/?",
        "http://h/#",
        "http://h/%",
        "http://h /",
        "http://h\t/",
        " http://h/",
        "http://h\\@evil/",
        "http://h\r\nX: y/",
        "http://*.h/",
        "http://h..i/",
    ],
)
def test_a_target_that_can_be_read_in_two_ways_is_refused(url: str) -> None:
    """Nobody guesses where it leads."""
    assert refused(wire(target(url)))


def test_a_password_in_a_target_is_not_quoted() -> None:
    """It is refused, and the refusal goes to management and into logs."""
    assert refused(wire(target("http://me:hunter2@h/"))) == "a target holds user information"


@pytest.mark.parametrize("mode", ["tcp", "udp", "tls"])
def test_streams(mode: str) -> None:
    """A target is host:port, there is no path, and the port is the mapping's."""
    kinds = {"tcp": "stream", "tls": "stream", "udp": "datagram"}
    found = served(wire(PathMapping(target="[fd00::1]:5432"), mode=mode, listen_port=5432))
    (route,) = found.routes
    assert (found.mode, found.listen_port, route.kind, route.prefix) == (mode, 5432, kinds[mode], b"")
    assert [(one.scheme, one.address) for one in route.upstreams] == [(mode, ("fd00::1", 5432))]


@pytest.mark.parametrize("address", ["", "h", "h:0", ":80", "h:80/x", "http://h:80", "me@h:80", "h:80?x", "::1:80"])
def test_a_stream_target_is_host_and_port(address: str) -> None:
    """Everything else is refused."""
    assert refused(wire(PathMapping(target=address), mode="tcp", listen_port=1))


@pytest.mark.parametrize(
    ("mode", "port", "served_there"),
    [
        ("tcp", 0, False),
        ("udp", 0, False),
        ("tls", 0, True),
        ("tcp", 65536, False),
        ("tls", -1, False),
        ("udp", 1, True),
    ],
)
def test_which_listen_ports(mode: str, port: int, served_there: bool) -> None:
    """Streams need a port of their own, but for TLS, which can share one by its name."""
    found = decoded(wire(PathMapping(target="h:1"), mode=mode, listen_port=port)).mapping
    assert (found.refused == "") is served_there


def test_a_stream_needs_no_domain_but_tls_does() -> None:
    """TLS is found by its name, TCP and UDP by their port."""
    for mode, refusal in (("tcp", ""), ("udp", ""), ("tls", "domain '' is not a host")):
        found = decoded(wire(PathMapping(target="h:1"), mode=mode, listen_port=1, domain="")).mapping
        assert (found.host, found.refused) == ("", refusal)


def test_a_stream_without_target_is_refused() -> None:
    """Its port would accept and lead nowhere."""
    assert refused(wire(mode="tcp", listen_port=1)) == "the mapping has no target"


def test_proxy_protocol_is_refused_where_it_would_count() -> None:
    """An upstream that waits for the header would misread the stream without it."""
    path = PathMapping(target="h:1", options=PathTargetOptions(proxy_protocol=True))
    assert "PROXY protocol" in refused(wire(path, mode="tcp", listen_port=1))
    assert decoded(wire(target(proxy_protocol=True))).ignored == ("path.options.proxy_protocol",)


def test_an_unknown_mode_is_refused_and_its_host_closed() -> None:
    """It is not served as HTTP, and what the host served before is closed."""
    message = wire(target(), mode="quic")
    assert refused(message) == "mode must be one of http, tcp, udp, tls, not 'quic'"
    assert (decoded(message).mapping.host, decoded(message).mapping.mode) == ("app.example.com", "http")


@pytest.mark.parametrize("domain", ["", ".", "a..b", "*.example.com", "a b", "a/b", "x" * 64, "a\nb"])
def test_a_domain_that_is_no_host_is_refused(domain: str) -> None:
    """There is no Host that could be sent for it."""
    assert "is not a host" in refused(wire(target(), domain=domain))


def test_ids_that_must_be_there() -> None:
    """Without an id nothing can be reported, without an account nothing can be private."""
    assert refused(wire(target(), id="")) == "the mapping has no id"
    assert refused(wire(target(), account_id="", private=True), whole_codec()) == "a private mapping needs an account"
    assert served(wire(target(), account_id="")).account == ""


def test_which_mappings_need_the_tunnel() -> None:
    """Private ones, and all with a target that is not dialed directly."""
    direct = target()
    set_direct(direct.options, True)
    codec = whole_codec()
    assert served(wire(target()), codec).tunneled
    assert not served(wire(direct), codec).tunneled
    assert served(wire(direct, private=True), codec).tunneled
    assert served(wire(direct, target(path="/b")), codec).tunneled
    assert not served(wire(), codec).tunneled


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_senseless_timeout_is_the_default(seconds: int) -> None:
    """As NetBird reads it."""
    path = target()
    path.options.request_timeout.seconds = seconds
    assert upstream(path).dial_timeout is None


@pytest.mark.parametrize(
    "name", ["X-NetBird-User", "x_netbird_groups", "Host", "Transfer_Encoding", "Connection", "TE"]
)
def test_headers_that_are_not_an_operators_to_set_are_left_out(name: str) -> None:
    """Reserved and framing names, under any alias: reported, never sent."""
    path = target()
    path.options.custom_headers[name] = "x"
    found = decoded(wire(path))
    assert found.mapping.routes[0].upstreams[0].custom_headers == ()
    assert found.ignored == (f"path.options.custom_headers.{name}",)


@pytest.mark.parametrize(
    ("name", "value"), [("", "x"), ("a b", "x"), ("ü", "x"), ("a:", "x"), ("a", "x\r\ny"), ("a", "\0")]
)
def test_a_header_that_cannot_be_sent_refuses(name: str, value: str) -> None:
    """It would end up as something else, and the value is not quoted."""
    path = target()
    path.options.custom_headers[name] = value
    assert refused(wire(path)) == f"custom header {name!r} cannot be sent"


# Digests --------------------------------------------------------------------------------------------------------------


def test_equal_mappings_have_equal_digests() -> None:
    """A new snapshot brings new tokens and calls everything created: that is no change."""
    one = wire(target(), auth_token="once")
    other = wire(target(), auth_token="twice", type=UPDATE_TYPE_MODIFIED)
    for name in ("b", "a"):
        one.plugin_settings["shop"].update({name: 1})
    for name in ("a", "b"):
        other.plugin_settings["shop"].update({name: 1})
    assert decoded(one).mapping.digest == decoded(other).mapping.digest


def test_every_other_change_changes_the_digest() -> None:
    """Settings of plugins and fields that are merely ignored too: a plugin may read them."""
    plain = wire(target())
    changed = [wire(target("http://10.0.0.2/")), wire(target(), private=True), wire(target(), target(path="/b"))]
    unknown = wire(target())
    unknown.path[0].options.MergeFromString(b"\xf8\x01\x01")
    settings = wire(target())
    settings.plugin_settings["shop"].update({"price": 2})
    digests = {decoded(message).mapping.digest for message in (plain, *changed, unknown, settings)}
    assert len(digests) == 6


# Plugins' settings ----------------------------------------------------------------------------------------------------

WITH_SHOP: Hooks = hooks(shop=SHOP)


def test_plugins_read_their_settings() -> None:
    """Of the mapping and of each target; without any, from their defaults; and never the one-time token."""
    message = wire(target(), target(path="/b"), auth_token="once")
    message.plugin_settings["shop"].update({"price": 3})
    message.path[1].plugin_settings["shop"].update({"size": 9})
    first, second = served(message, Codec(WITH_SHOP)).routes
    assert first.settings(Shop) == second.settings(Shop) == Shop(price=3, seen_token="")
    assert [route.upstreams[0].settings(Shelf).size for route in (first, second)] == [1, 9]
    (bare,) = served(wire(target()), Codec(WITH_SHOP)).routes
    assert bare.settings(Shop).price == 0


def test_settings_that_a_plugin_cannot_use_refuse_with_its_sentence() -> None:
    """A ValueError is a sentence for the operator."""
    message = wire(target())
    message.plugin_settings["shop"].update({"closed": True})
    assert refused(message, Codec(WITH_SHOP)) == "plugin shop cannot use its settings: the shop is closed"


def test_settings_that_do_not_fit_a_model_refuse_without_their_values() -> None:
    """Where and what is wrong is said; what was there may be a secret."""
    message = wire(target())
    message.path[0].plugin_settings["shop"].update({"size": "hunter2", "other": "hunter3"})
    said = refused(message, Codec(WITH_SHOP))
    assert said.startswith("plugin shop cannot use its settings: ")
    assert "size: " in said
    assert "other: " in said
    assert "hunter" not in said


def test_a_plugin_that_fails_to_read_refuses_its_mapping() -> None:
    """Whatever it raises; and what it raised is not told to management."""
    message = wire(target())
    message.plugin_settings["shop"].update({"broken": True})
    assert refused(message, Codec(WITH_SHOP)) == "plugin shop failed to read its settings: RuntimeError"


def test_a_plugin_that_reads_nonsense_refuses_its_mapping() -> None:
    """A step would meet it at the first request."""

    class Liar(Shop):
        @classmethod
        def from_wire(cls, mapping: ProxyMapping) -> Liar:
            return None  # type: ignore[return-value]

    codec = Codec(hooks(liar=dataclasses.replace(SHOP, claims=(), settings=(Liar,), target_settings=())))
    assert refused(wire(target()), codec) == "plugin liar read its settings as NoneType, not Liar"


# All of it ------------------------------------------------------------------------------------------------------------


def captured() -> list[ProxyMapping]:
    found: list[ProxyMapping] = []
    for line in map(json.loads, GOLDEN.read_text().splitlines()):
        data = base64.b64decode(line["base64"])
        if line["type"] == "management.SyncMappingsResponse":
            found += SyncMappingsResponse.FromString(data).mapping
        elif line["type"] == "management.GetMappingUpdateResponse":
            found += GetMappingUpdateResponse.FromString(data).mapping
    return [message for message in found if message.path]


def test_captured_mappings_are_served_by_a_proxy_with_all_plugins() -> None:
    """What a live NetBird sent becomes routes, and nothing of it is left out."""
    messages = captured()
    assert len(messages) > 10
    for message in messages:
        found = decoded(message, whole_codec())
        assert (found.mapping.refused, found.ignored) == ("", ())
        assert len(found.mapping.routes) == len(message.path)
        assert ("private" in found.mapping.routes[0].guarding) is message.private


def test_captured_mappings_that_guard_are_closed_by_a_proxy_without_plugins() -> None:
    """Private and password services are not served by a proxy that cannot guard them."""
    for message in captured():
        guarded = message.private or message.auth.password or message.auth.oidc or bool(message.auth.header_auths)
        guarded |= any(path.options.direct_upstream for path in message.path)
        guarded |= message.HasField("access_restrictions")
        assert bool(decoded(message).mapping.refused) is guarded


def on_11(inner: bytes) -> bytes:
    return bytes([11 << 3 | 2, len(inner)]) + inner


@given(st.binary(max_size=127), st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_no_message_makes_the_codec_raise(unknown: bytes, domain: str, path: str, url: str) -> None:
    """Whatever arrives is served or refused, with every plugin loaded."""
    message = wire(target(f"http://{url}", f"/{path}"), domain=domain)
    message.path[0].options.MergeFromString(on_11(unknown))
    found = decoded(message, WHOLE)
    assert bool(found.mapping.routes) is (found.mapping.refused == "")


# The core's own settings ----------------------------------------------------------------------------------------------


def test_core_reads_its_settings() -> None:
    """Of the service on every route, of the target on its upstream; without any, the strict ones."""
    message = wire(target("https://10.0.0.7/"), target(path="/b"))
    write_settings(message, CORE, {"ambiguous_path": "pass", "same_origin": False})
    write_settings(message.path[0], CORE, {"ca": CA, "server_name": "api.internal"})

    first, second = served(message).routes

    assert [(route.pass_ambiguous, route.same_origin) for route in (first, second)] == [(True, False)] * 2
    assert (first.upstreams[0].ca, first.upstreams[0].server_name) == (CA, "api.internal")
    assert (second.upstreams[0].ca, second.upstreams[0].server_name) == ("", "")
    (plain,) = served(wire(target())).routes
    assert (plain.pass_ambiguous, plain.same_origin) == (False, True)
    assert CA not in repr(first)


@pytest.mark.parametrize(
    ("service", "of_target", "url", "sentence"),
    [
        ({"ambigous": 1}, {}, "https://a/", "this proxy cannot use the settings of core: ambigous: "),
        ({}, {"ca": "hunter2"}, "https://a/", "this proxy cannot use the settings of core: ca: "),
        ({}, {"ca": CA}, "http://a/", "the target of path '/' has settings for TLS, so it must be https"),
        ({}, {"server_name": "x"}, "http://a/", "the target of path '/' has settings for TLS, so it must be https"),
    ],
)
def test_settings_of_the_core_that_cannot_be_used_refuse(
    service: dict[str, Any], of_target: dict[str, Any], url: str, sentence: str
) -> None:
    """Nobody is served by half of what was asked for."""
    message = wire(target(url))
    if service:
        write_settings(message, CORE, service)
    if of_target:
        write_settings(message.path[0], CORE, of_target)

    said = refused(message)

    assert said.startswith(sentence)
    assert "hunter" not in said


def test_own_roots_and_no_verification_exclude_each_other() -> None:
    """Whoever asks for both has misunderstood one of them."""
    message = wire(target("https://a/"))
    write_settings(message.path[0], CORE, {"ca": CA})
    message.path[0].options.skip_tls_verify = True

    assert "must not have both a ca and skip_tls_verify" in refused(message)
