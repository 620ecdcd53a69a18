"""Nothing that a mapping says is overlooked: what nobody understands refuses it, and what guards is noted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from netbird_host.info import Claim, PluginInfo, always
from netbird_proxy.api.errors import PluginFailed
from netbird_proxy.sources.decode.claims import CORE_CLAIMS, Claims
from netbird_proxy.sources.decode.codec import Codec, Decoded
from netbird_wire.direct_upstream import set_direct
from netbird_wire.proxy_service_pb2 import (
    MIDDLEWARE_SLOT_ON_REQUEST,
    MIDDLEWARE_SLOT_ON_RESPONSE,
    MiddlewareConfig,
    ProxyMapping,
)

from .plugins_for_codec import (
    PRIVATE,
    SESSION,
    SHOP,
    bare_codec,
    claiming,
    hooks,
    whole_codec,
)


def mapping() -> ProxyMapping:
    """A public service that sets nothing which could guard."""
    found = ProxyMapping(id="svc-1", account_id="acct-1", domain="app.example.com", mode="http", auth_token="once")
    found.path.add(path="/", target="http://10.0.0.1/")
    return found


def decode(codec: Codec, wire: ProxyMapping) -> Decoded:
    return codec.decode(wire, source="management")


def private(wire: ProxyMapping) -> None:
    wire.private = True


def password(wire: ProxyMapping) -> None:
    wire.auth.password = True


def pin(wire: ProxyMapping) -> None:
    wire.auth.pin = True


def oidc(wire: ProxyMapping) -> None:
    wire.auth.oidc = True


def header_auth(wire: ProxyMapping) -> None:
    wire.auth.header_auths.add(header="X-Key", hashed_value="$argon2id$")


def allowed_cidrs(wire: ProxyMapping) -> None:
    wire.access_restrictions.allowed_cidrs.append("10.0.0.0/8")


def blocked_countries(wire: ProxyMapping) -> None:
    wire.access_restrictions.blocked_countries.append("XX")


def crowdsec(wire: ProxyMapping) -> None:
    wire.access_restrictions.crowdsec_mode = "enforce"


def direct(wire: ProxyMapping) -> None:
    set_direct(wire.path[0].options, True)


def direct_under_11(wire: ProxyMapping) -> None:
    wire.path[0].options.direct_upstream_11 = True


def settings(wire: ProxyMapping) -> None:
    wire.plugin_settings["stranger"].update({"door": "shut"})


def empty_settings(wire: ProxyMapping) -> None:
    wire.plugin_settings["stranger"].SetInParent()


def target_settings(wire: ProxyMapping) -> None:
    wire.path[0].plugin_settings["stranger"].update({"door": "shut"})


NEEDS_A_PLUGIN: list[tuple[Callable[[ProxyMapping], None], str]] = [
    (private, "private"),
    (password, "auth.password"),
    (pin, "auth.pin"),
    (oidc, "auth.oidc"),
    (header_auth, "auth.header_auths"),
    (allowed_cidrs, "access_restrictions.allowed_cidrs"),
    (blocked_countries, "access_restrictions.blocked_countries"),
    (crowdsec, "access_restrictions.crowdsec_mode"),
    (direct, "path.options.direct_upstream"),
    (direct_under_11, "path.options.direct_upstream"),
    (settings, "plugin_settings.stranger"),
    (empty_settings, "plugin_settings.stranger"),
    (target_settings, "path.plugin_settings.stranger"),
]
ids = [setter.__name__ for setter, _ in NEEDS_A_PLUGIN]


@pytest.mark.parametrize(("sets", "field"), NEEDS_A_PLUGIN, ids=ids)
def test_a_field_that_nobody_claims_refuses_the_mapping(sets: Callable[[ProxyMapping], None], field: str) -> None:
    """Without its plugin, the whole mapping is closed, and the sentence names the field."""
    wire = mapping()
    sets(wire)
    found = decode(bare_codec(), wire).mapping
    assert found.refused == f"no plugin of this proxy supports {field}"
    assert found.routes == ()
    assert (found.host, found.id) == ("app.example.com", "svc-1")


@pytest.mark.parametrize(("sets", "field"), NEEDS_A_PLUGIN[:-3], ids=ids[:-3])
def test_a_field_that_guards_is_noted_under_its_plugin(sets: Callable[[ProxyMapping], None], field: str) -> None:
    """With its plugin the mapping is served, and the route says who must guard it with what."""
    wire = mapping()
    sets(wire)
    found = decode(Codec(hooks(other=claiming("plugin_settings.other"), the_one=claiming(field))), wire).mapping
    assert found.refused == ""
    assert [route.guarding for route in found.routes] == [{"the_one": (field,)}]


def test_what_core_understands_guards_nothing() -> None:
    """A mapping with every one of core's fields set needs no plugin."""
    wire = mapping()
    wire.pass_host_header = wire.rewrite_redirects = True
    wire.auth.session_key, wire.auth.max_session_age_seconds = "cHVibGlj", 86400
    options = wire.path[0].options
    options.skip_tls_verify = options.agent_network = options.disable_access_log = True
    options.request_timeout.seconds = options.session_idle_timeout.seconds = 5
    options.capture_max_request_bytes = options.capture_max_response_bytes = 1
    options.capture_content_types.append("text/plain")
    options.custom_headers["X-A"] = "b"
    found = decode(bare_codec(), wire).mapping
    assert (found.refused, [route.guarding for route in found.routes]) == ("", [{}])


@pytest.mark.parametrize("mode", ["", "off"])
def test_restrictions_that_say_nothing_are_unset(mode: str) -> None:
    """An empty message, and one that is switched off, need nobody."""
    wire = mapping()
    wire.access_restrictions.SetInParent()
    wire.access_restrictions.crowdsec_mode = mode
    wire.auth.SetInParent()
    assert decode(bare_codec(), wire).mapping.refused == ""


def test_watching_only_does_not_guard_but_needs_its_plugin() -> None:
    """`observe` is claimed like anything, and nobody has to enforce it."""
    wire = mapping()
    wire.access_restrictions.crowdsec_mode = "observe"
    assert decode(bare_codec(), wire).mapping.refused
    (route,) = decode(whole_codec(), wire).mapping.routes
    assert route.guarding == {}


def test_all_unclaimed_fields_are_named_once() -> None:
    """An operator sees everything that is missing, targets included, in one sentence."""
    wire = mapping()
    private(wire)
    oidc(wire)
    direct(wire)
    wire.path.add(path="/b", target="http://10.0.0.2/").options.direct_upstream = True
    assert decode(bare_codec(), wire).mapping.refused == (
        "no plugin of this proxy supports auth.oidc, private, path.options.direct_upstream"
    )


def test_a_targets_guard_is_that_routes_only() -> None:
    """What a mapping sets guards all its routes, what a target sets guards its own."""
    wire = mapping()
    private(wire)
    wire.path.add(path="/b", target="http://10.0.0.2/").options.direct_upstream = True
    routes = decode(whole_codec(), wire).mapping.routes
    assert {route.prefix: dict(route.guarding) for route in routes} == {
        b"/": {"private": ("private",)},
        b"/b": {"private": ("private",), "direct": ("path.options.direct_upstream",)},
    }


def test_a_claim_of_a_message_is_asked_about_the_message() -> None:
    """A plugin may claim restrictions whole, and its predicate sees all of them."""
    seen = []

    def judge(value: object) -> bool:
        seen.append(value)
        return True

    wire = mapping()
    allowed_cidrs(wire)
    blocked_countries(wire)
    codec = Codec(hooks(geo=PluginInfo(claims=(Claim("access_restrictions", judge),))))
    (route,) = decode(codec, wire).mapping.routes
    assert route.guarding == {"geo": ("access_restrictions",)}
    assert seen == [wire.access_restrictions]


def test_a_closer_claim_wins() -> None:
    """One plugin may take the restrictions and another one field of them."""
    wire = mapping()
    crowdsec(wire)
    codec = Codec(hooks(a=claiming("access_restrictions"), b=claiming("access_restrictions.crowdsec_mode")))
    (route,) = decode(codec, wire).mapping.routes
    assert route.guarding == {"b": ("access_restrictions.crowdsec_mode",)}


def test_settings_of_one_plugin_are_not_covered_by_anothers_name() -> None:
    """A key with a dot is one key."""
    wire = mapping()
    wire.plugin_settings["shop.door"].update({"shut": True})
    assert "plugin_settings.shop.door" in decode(whole_codec(), wire).mapping.refused


def raises(_value: object) -> bool:
    raise RuntimeError("hunter2")


def test_a_predicate_that_fails_refuses_the_mapping() -> None:
    """Nobody has said that the field is harmless; the sentence names the plugin and quotes nothing."""
    wire = mapping()
    private(wire)
    found = decode(Codec(hooks(p=PluginInfo(claims=(Claim("private", raises),)))), wire).mapping
    assert found.refused == "plugin p could not judge private: RuntimeError"


@pytest.mark.parametrize("answer", [None, 0, "", [], "no"])
def test_a_predicate_that_answers_nonsense_guards(answer: object) -> None:
    """Only False opens."""
    wire = mapping()
    private(wire)
    claim = Claim("private", lambda _value: answer)  # type: ignore[arg-type, return-value]
    (route,) = decode(Codec(hooks(p=PluginInfo(claims=(claim,)))), wire).mapping.routes
    assert route.guarding == {"p": ("private",)}


@pytest.mark.parametrize(
    "field",
    [
        "privat",
        "path",
        "path.options",
        "plugin_settings",
        "path.plugin_settings",
        "plugin_settings.",
        "auth.plugin_settings.x",
        "private.x",
        "path.options.direct_upstream_11",
        "path.options.custom_headers.X",
        "auth.header_auths.header",
        "",
    ],
)
def test_a_claim_of_nothing_stops_the_start(field: str) -> None:
    """A misspelt claim would guard nothing, and one of everything would hide what others must guard."""
    with pytest.raises(PluginFailed):
        Claims({field: ("p", Claim(field, always))})


@pytest.mark.parametrize("field", sorted(CORE_CLAIMS))
def test_core_claims_exist_and_are_cores_alone(field: str) -> None:
    """Each is a field of a mapping, and no plugin may take it."""
    with pytest.raises(PluginFailed, match="core's"):
        Claims({field: ("p", Claim(field))})


def test_core_claims_name_fields() -> None:
    """A core claim that were misspelt would refuse every mapping that sets the field."""
    for field in CORE_CLAIMS:
        kind = ProxyMapping.DESCRIPTOR
        *around, last = field.split(".")
        for name in around:
            kind = kind.fields_by_name[name].message_type  # type: ignore[assignment]
        assert last in kind.fields_by_name or kind.GetOptions().map_entry


@pytest.mark.parametrize("where", ["", "auth", "auth.header_auths", "access_restrictions"])
def test_unknown_fields_that_may_guard_refuse(where: str) -> None:
    """A newer management may say there what we cannot understand, with every plugin loaded."""
    wire, unknown = mapping(), b"\xf8\x01\x01"  # number 31
    if where == "":
        wire.MergeFromString(unknown)
    elif where == "auth":
        wire.auth.MergeFromString(unknown)
    elif where == "access_restrictions":
        wire.access_restrictions.MergeFromString(unknown)
    else:
        wire.auth.header_auths.add(header="X").MergeFromString(unknown)
    assert decode(whole_codec(), wire).mapping.refused == f"{where}#31 is not supported by this proxy"


def test_an_operator_may_tolerate_a_number_of_the_mapping_itself() -> None:
    """By name, for the mapping alone: the same number elsewhere, and others, still refuse."""
    codec = Codec(hooks(session=SESSION), tolerate=[31])
    wire = mapping()
    wire.MergeFromString(b"\xf8\x01\x01")
    assert decode(codec, wire) == Decoded(decode(codec, wire).mapping, ("#31",))
    assert decode(codec, wire).mapping.refused == ""
    wire.auth.MergeFromString(b"\xf8\x01\x01")
    assert decode(codec, wire).mapping.refused == "auth#31 is not supported by this proxy"


def test_unknown_fields_elsewhere_are_reported_and_ignored() -> None:
    """A target's new option guards nothing that we know of."""
    wire = mapping()
    wire.path[0].MergeFromString(b"\xf8\x01\x01")
    wire.path[0].options.MergeFromString(b"\xf8\x01\x01")
    wire.path[0].options.path_rewrite = 7  # type: ignore[assignment]
    found = decode(bare_codec(), wire)
    assert found.mapping.refused == ""
    assert found.ignored == ("path#31", "path.options#31", "path.options.path_rewrite=7")


def test_an_unknown_type_refuses() -> None:
    """Neither created nor modified nor removed: nobody can say what to do with it."""
    wire = mapping()
    wire.type = 9  # type: ignore[assignment]
    assert decode(bare_codec(), wire).mapping.refused == "type=9 is not supported by this proxy"


def middlewares(*those: MiddlewareConfig) -> ProxyMapping:
    wire = mapping()
    for one in those:
        inner = one.SerializeToString()
        wire.path[0].options.MergeFromString(bytes([11 << 3 | 2, len(inner)]) + inner)
    return wire


def test_a_middleware_that_guards_refuses() -> None:
    """NetBird would have run it before the upstream; we cannot, so we do not serve."""
    log = MiddlewareConfig(id="log", enabled=True, slot=MIDDLEWARE_SLOT_ON_RESPONSE)
    waf = MiddlewareConfig(id="waf", enabled=True, slot=MIDDLEWARE_SLOT_ON_REQUEST)
    assert decode(whole_codec(), middlewares(log, waf)).mapping.refused == (
        "path.options.middlewares (waf) is not supported by this proxy"
    )
    harmless = decode(whole_codec(), middlewares(log))
    assert (harmless.mapping.refused, harmless.ignored) == ("", ("path.options.middlewares (log)",))


def test_middlewares_that_cannot_be_read_refuse() -> None:
    """Bytes that are no middleware may have been one that guards."""
    wire = mapping()
    wire.path[0].options.MergeFromString(bytes([11 << 3 | 2, 1]) + b"\xff")
    assert "unreadable" in decode(whole_codec(), wire).mapping.refused


def test_capabilities_set_all_five_and_tell_the_claims() -> None:
    """False is said, too; what is no field of NetBird's goes among the claims."""
    told = Codec(hooks(private=PRIVATE, shop=SHOP, x=PluginInfo(capabilities=("rate_limit",)))).capabilities(
        private=False
    )
    assert {field.name for field, _ in told.ListFields()} == {field.name for field in told.DESCRIPTOR.fields}
    assert (told.supports_private_service, told.private, told.supports_custom_ports) == (True, False, False)
    assert list(told.claims) == [
        "path.plugin_settings.shop",
        "plugin_settings.core.ask_for_both",
        "plugin_settings.shop",
        "private",
        "rate_limit",
    ]
    assert Codec(hooks()).capabilities(private=True).private
    assert not Codec(hooks()).capabilities(private=True).supports_private_service


def test_every_guarding_field_of_netbirds_wire_has_a_claim_in_these_tests() -> None:
    """The whole codec serves a mapping with everything set."""
    wire = mapping()
    for sets, _ in NEEDS_A_PLUGIN[:-4]:
        sets(wire)
    found = decode(whole_codec(), wire).mapping
    assert found.refused == ""
    assert set(found.routes[0].guarding) == {"session", "private", "restrictions", "direct"}
