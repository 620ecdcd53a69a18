"""The headers for the upstream carry exactly the identity's values, or are absent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from netbird_identity_headers.proxy import IdentityHeaders, IdentityHeadersOptions, _groups, _spelled, _user
from netbird_identity_headers.settings import PLUGIN, IdentityHeadersSettings
from netbird_proxy import Authenticator, Dialer, Group, Identity, PluginInfo, UserId, hookimpl
from netbird_proxy.api.model import ServiceMapping
from netbird_proxy.routing.hooks import Hooks, load_hooks
from netbird_proxy.sources.decode.claims import CORE_CLAIMS
from netbird_proxy.sources.decode.codec import Codec
from netbird_proxy.testing.fakes import FakeProxy, HostDialer
from netbird_proxy.testing.makers import host_origin
from netbird_proxy.testing.transcript import Transcript
from netbird_wire.plugin_settings import write_settings
from netbird_wire.proxy_service_pb2 import PathMapping, ProxyMapping


def who(email: str = "alice@example.com", *groups: Group, user: str | None = None) -> Identity:
    attributes = {} if user is None else {"user": user}
    return Identity(UserId("u1"), email=email, groups=groups, attributes=attributes)


def test_groups_are_named_in_order_and_all_is_among_them() -> None:
    """Sorted by name, joined with commas and nothing else."""
    groups = (Group("g2", "engineering"), Group("g1", "All"))

    assert _groups(who("a", *groups), "omit") == (b"All,engineering", [])


@pytest.mark.parametrize("name", ["a,b", "line\r\nX-Evil: 1", "café", "nul\0"])
def test_group_name_that_cannot_stand_in_a_list_is_left_out(name: str) -> None:
    """A comma would make one group two; the id is no substitute, since it is another's name space."""
    assert _groups(who("a", Group("g1", name), Group("g2", "ok")), "omit") == (b"ok", [name])
    assert _groups(who("a", Group("g1", name)), "omit") == (None, [name])


def test_group_without_a_name_is_told_by_its_id() -> None:
    """An id is better than silence where there is no name."""
    assert _groups(who("a", Group("g1", "")), "omit") == (b"g1", [])


@pytest.mark.parametrize("email", ["", "a\r\nb", "ü@example.com", "a\x7f"])
def test_user_that_cannot_be_a_field_value_is_not_told(email: str) -> None:
    """Nothing is encoded: the upstream would have to guess how."""
    assert _user(who(email), users_only=False, spelling="omit") is None


def test_peer_without_a_user_can_be_left_out() -> None:
    """Where management tells the two apart, the operator may want people only."""
    assert _user(who("laptop", user=""), users_only=True, spelling="omit") is None
    assert _user(who("laptop", user=""), users_only=False, spelling="omit") == b"laptop"
    assert _user(who("alice@example.com", user="u1"), users_only=True, spelling="omit") == b"alice@example.com"


def test_tab_is_the_only_control_byte_that_passes() -> None:
    """The byte rule of the wire: TAB and 0x20 to 0x7E."""
    allowed = {byte for byte in range(128) if _spelled(chr(byte), "omit") is not None}

    assert allowed == {9, *range(0x20, 0x7F)}


# The budget for groups ------------------------------------------------------------------------------------------------

MEMBER = Identity(UserId("u1"), email="alice@example.com", groups=(Group("g1", "All"), Group("g2", "engineering")))
NAMES = (b"x-netbird-user", b"x-netbird-groups", b"x-netbird-groups-omitted")


class Knows:
    """A plugin that dials and identifies every caller."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def dialer(self) -> Dialer:
        return HostDialer()

    @hookimpl
    def authenticate(self) -> Authenticator:
        async def alice(_exchange: object) -> Identity:
            return MEMBER

        return Authenticator("ambient", alice)


def hooks() -> Hooks:
    return load_hooks([(PLUGIN, IdentityHeaders), ("knows", Knows)], core_claims=CORE_CLAIMS)


def applied(**said: Any) -> ServiceMapping:
    """A mapping with these settings, as the proxy reads it."""
    wire = ProxyMapping(id="svc-1", account_id="acct-1", domain="app.example.com")
    wire.path.append(PathMapping(path="/", target="http://10.0.0.7/"))
    if said:
        write_settings(wire, PLUGIN, said)
    return Codec(hooks()).decode(wire, source="management").mapping


@pytest.mark.parametrize(
    ("said", "groups", "omitted"),
    [
        ({}, [b"All,engineering"], []),
        ({"groups": "all"}, [b"All,engineering"], []),
        ({"groups": "none"}, [], []),
        ({"groups_max_bytes": 15, "groups_overflow": "leave_out"}, [b"All,engineering"], []),
        ({"groups_max_bytes": 14, "groups_overflow": "leave_out"}, [], [b"2"]),
        ({"groups_max_bytes": 15, "groups_overflow": "deny"}, [b"All,engineering"], []),
        ({"groups": "none", "groups_max_bytes": 1, "groups_overflow": "deny"}, [], []),
    ],
)
async def test_groups_within_their_budget(said: dict[str, Any], groups: list[bytes], omitted: list[bytes]) -> None:
    """Either all groups are sent or none, and a client can set neither header."""
    play = Transcript(applied(**said), hooks=hooks())

    answer = await play.request(origin=host_origin(), headers=[(name, b"eve") for name in NAMES])

    assert answer.status == 200
    told = [play.upstreams.last.get(name) for name in NAMES]
    assert told == [[b"alice@example.com"], groups, omitted]


async def test_too_many_groups_can_be_refused() -> None:
    """The request is denied before a dial, and the client does not see the groups."""
    play = Transcript(applied(groups_max_bytes=14, groups_overflow="deny"), hooks=hooks())

    answer = await play.request(origin=host_origin())

    play.saw(
        "authenticate knows: identity u1",
        "authorize identity_headers: deny too_many_groups",
        "respond 403",
        "observe 403 too_many_groups",
    )
    assert b"engineering" not in answer.body


@pytest.mark.parametrize(
    "said",
    [
        {"groups": "some"},
        {"groups_max_bytes": 10},
        {"groups_overflow": "deny"},
        {"groups_max_bytes": 0, "groups_overflow": "deny"},
        {"groups_max_bytes": 1.5, "groups_overflow": "deny"},
        {"groups_max_bytes": "10", "groups_overflow": "deny"},
        {"groups_max_bytes": 10, "groups_overflow": "truncate"},
        {"max_bytes": 10},
    ],
)
def test_budget_that_is_none_refuses_the_mapping(said: dict[str, Any]) -> None:
    """An invalid limit refuses the mapping when it is applied, by the same model as when it is saved."""
    with pytest.raises(ValidationError):
        IdentityHeadersSettings.model_validate(said)
    assert "plugin identity_headers cannot use its settings" in applied(**said).refused


BUDGET = st.tuples(st.integers(1, 65_536), st.sampled_from(["leave_out", "deny"])) | st.just((None, None))


@given(st.sampled_from(["all", "none"]), BUDGET)
def test_settings_survive_the_wire(groups: Any, budget: Any) -> None:
    """The proxy's half reads the settings that management's half writes."""
    settings = IdentityHeadersSettings(groups=groups, groups_max_bytes=budget[0], groups_overflow=budget[1])
    wire = ProxyMapping()
    settings.to_wire(wire)

    assert IdentityHeadersSettings.from_wire(ProxyMapping.FromString(wire.SerializeToString())) == settings


CAFE = (Group("g1", "café"), Group("g2", "a,b"), Group("g3", "100%"), Group("g4", "x\ny"))


@pytest.mark.parametrize(
    ("spelling", "groups", "omitted"),
    [
        ("omit", [b"100%"], [b"3"]),
        ("percent", [b"100%25,a%2Cb,caf%C3%A9,x%0Ay"], []),
        ("utf8", [b"100%,caf\xc3\xa9"], [b"2"]),
    ],
)
@pytest.mark.parametrize("by", ["service", "operator"])
async def test_names_outside_ascii_are_sent_as_the_setting_says(
    by: str, spelling: Any, groups: list[bytes], omitted: list[bytes]
) -> None:
    """Omitted groups are counted for the upstream and named in the trail."""

    class Cafe(Knows):
        @hookimpl
        def authenticate(self) -> Authenticator:
            async def alice(_exchange: object) -> Identity:
                return Identity(UserId("u1"), email="alice@example.com", groups=CAFE)

            return Authenticator("ambient", alice)

    made = load_hooks([(PLUGIN, IdentityHeaders), ("knows", Cafe)], core_claims=CORE_CLAIMS)
    options = IdentityHeadersOptions(non_ascii=spelling if by == "operator" else "omit")
    wire = applied(**({"non_ascii": spelling} if by == "service" else {}))
    play = Transcript(wire, hooks=made, proxy=FakeProxy(options=[options]))

    await play.request(origin=host_origin(), headers=[(name, b"eve") for name in NAMES])

    assert [play.upstreams.last.get(name) for name in NAMES] == [[b"alice@example.com"], groups, omitted]
    entries = [entry for entry in play.exchange.trail if entry.plugin == PLUGIN]
    assert [entry.verdict for entry in entries] == [f"{number.decode()} groups omitted" for number in omitted]
    if omitted:
        assert "'a,b'" in entries[0].reason
