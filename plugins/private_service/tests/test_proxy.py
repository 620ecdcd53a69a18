"""A private route is open only through its account's tunnel, to peers that management admits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from netbird_private_service.proxy import PrivateService
from netbird_private_service.settings import PrivateServiceSettings, PublicSchemes
from netbird_proxy import (
    ALLOW,
    Authenticator,
    Deny,
    Dialer,
    Identity,
    ManagementTimeout,
    ManagementUnavailable,
    PluginInfo,
    UserId,
    hookimpl,
)
from netbird_proxy.api.model import Origin, RouteSpec
from netbird_proxy.routing.hooks import load_hooks
from netbird_proxy.testing.fakes import FakeManagement, FakeProxy, FakeTunnel, HostDialer
from netbird_proxy.testing.makers import ACCOUNT, exchange, host_origin, peer, route, tunnel_origin, upstream
from netbird_proxy.testing.transcript import Transcript
from netbird_wire.proxy_service_pb2 import Principal, ProxyMapping, ValidateTunnelPeerResponse

ALICE = peer("100.64.0.9")
GRANT = ValidateTunnelPeerResponse(
    valid=True,
    user_id="user-1",
    user_email="alice@example.com",
    session_token="token",
    peer_group_ids=["g1", "g2"],
    peer_group_names=["All", "engineering"],
    principal=Principal(user_id="user-1", peer_id="peer-1", peer_name="laptop"),
)
NOT_IN_GROUP = ValidateTunnelPeerResponse(
    denied_reason="not_in_group",
    user_email="bob@example.com",
    peer_group_names=["All"],
    required_group_names=["engineering"],
)


class Direct:
    """A plugin with a dialer, so that routes compile."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def dialer(self) -> Dialer:
        return HostDialer()


class Impostor:
    """A plugin that identifies every caller, and runs before all others."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl(tryfirst=True)
    def authenticate(self) -> Authenticator:
        async def everybody(_exchange: object) -> Identity:
            return Identity(UserId("root"), email="root@example.com")

        return Authenticator("exclusive", everybody)


def private_route(**fields: Any) -> RouteSpec:
    values = {PrivateServiceSettings: PrivateServiceSettings(private=True)}
    return route(values=values, guarding={"private_service": ("private",)}, **fields)


@asynccontextmanager
async def playing(
    answer: object = GRANT, *, spec: RouteSpec | None = None, others: tuple[tuple[str, object], ...] = (), **fields: Any
) -> AsyncIterator[tuple[Transcript, FakeManagement]]:
    management = FakeManagement({"ValidateTunnelPeer": answer})
    tunnel = FakeTunnel({"100.64.0.9": ALICE})
    proxy = FakeProxy(management=management, tunnels={ACCOUNT: tunnel}, **fields)
    hooks = load_hooks([*others, ("private_service", PrivateService), ("direct", Direct)])
    async with hooks.running(proxy):
        play = Transcript(spec or private_route(), hooks=hooks, proxy=proxy)
        yield play, management
        play.finish()


async def test_member_comes_in_and_is_known() -> None:
    """A peer with a grant is admitted, with the identity that management sent."""
    async with playing() as (play, management):
        answer = await play.request(origin=tunnel_origin("100.64.0.9"))

        play.saw(
            "restrict private_service: allow",
            "authenticate private_service: identity user-1",
            "authorize private_service: allow",
            "dial http://10.0.0.7:8080",
            "respond 200",
            "observe 200",
        )
        who = play.exchange.identity
        assert answer.status == 200
        assert who is not None
        assert (who.email, who.by, who.method) == ("alice@example.com", "private_service", "tunnel")
        assert [group.name for group in who.groups] == ["All", "engineering"]
        assert who.attributes["peer"] == "peer-1"
        name, request = management.calls[0]
        assert (name, request.tunnel_ip, request.domain) == ("ValidateTunnelPeer", "100.64.0.9", "app.example.com")


@pytest.mark.parametrize(
    "origin", [host_origin(), host_origin("100.64.0.9"), None], ids=["host", "looks inside", "embedded"]
)
async def test_promise_1_outside_the_tunnel_nobody_is_asked_and_nothing_dialed(origin: Origin | None) -> None:
    """Only the origin decides: neither a header nor an address that looks like an overlay's opens a private route."""
    async with playing() as (play, management):
        headers = [(b"x-forwarded-for", b"100.64.0.9"), (b"x-netbird-user", b"alice"), (b"x-real-ip", b"100.64.0.9")]

        answer = await play.request(origin=origin, headers=headers)

        play.saw("restrict private_service: deny tunnel_required", "respond 403", "observe 403 tunnel_required")
        assert answer.status == 403
        assert management.calls == []


async def test_promise_1_another_accounts_tunnel_finds_no_route() -> None:
    """An equal overlay address in another tenant is another peer."""
    async with playing() as (play, management):
        answer = await play.request(origin=tunnel_origin("100.64.0.9", account="acct-2"))

        play.saw("respond 404", "observe 404 no_route")
        assert answer.status == 404
        assert management.calls == []


@pytest.mark.parametrize(
    "origin",
    [host_origin("100.64.0.9"), tunnel_origin("100.64.0.9", account="acct-2")],
    ids=["host", "another account"],
)
async def test_promise_1_each_step_alone_refuses_a_foreign_origin(origin: Origin) -> None:
    """Restrict, authenticate and authorize each hold on their own, so that no single mistake opens the door."""
    hooks = load_hooks([("private_service", PrivateService), ("direct", Direct)])
    granting = FakeManagement({"ValidateTunnelPeer": GRANT})
    proxy = FakeProxy(management=granting, tunnels={ACCOUNT: FakeTunnel({"100.64.0.9": ALICE})})
    spec = private_route()
    member = Identity(UserId("user-1"), by="private_service")
    one = exchange(origin=origin, spec=spec, identity=member)
    async with hooks.running(proxy):
        said = [
            await hooks.restrict(spec, proxy)[0][1].check(one),
            await hooks.authenticate(spec, proxy)[0][1].identify(one),
            await hooks.authorize(spec, proxy)[0][1].check(one),
        ]

    assert all(isinstance(answer, Deny) for answer in said)


async def test_promise_1_identity_of_another_plugin_is_not_enough() -> None:
    """A private route accepts identities from this plugin only."""
    async with playing(others=(("impostor", Impostor),)) as (play, management):
        answer = await play.request(origin=tunnel_origin("100.64.0.9"))

        play.saw(
            "restrict private_service: allow",
            "authenticate impostor: identity root",
            "authorize private_service: deny not_allowed",
            "respond 403",
            "observe 403 not_allowed",
        )
        assert answer.status == 403
        assert management.calls == []


async def test_stranger_is_denied_without_a_call() -> None:
    """An address outside the tunnel's roster is denied without a question to management."""
    async with playing() as (play, management):
        await play.request(origin=tunnel_origin("100.64.0.77"))

        play.saw(
            "restrict private_service: allow",
            "authenticate private_service: deny peer_unknown",
            "respond 403",
            "observe 403 peer_unknown",
        )
        assert management.calls == []


async def test_non_member_is_denied_and_the_operator_can_see_why() -> None:
    """The trail has the caller's and the required groups; the answer has neither."""
    async with playing(NOT_IN_GROUP) as (play, _):
        answer = await play.request(origin=tunnel_origin("100.64.0.9"))

        play.saw(
            "restrict private_service: allow",
            "authenticate private_service: deny not_in_group",
            "respond 403",
            "observe 403 not_in_group",
        )
        facts = play.exchange.trail[-1].facts
        assert facts is not None
        assert (facts["peer_groups"], facts["required_groups"]) == ("All", "engineering")
        assert b"engineering" not in answer.body
        assert b"bob" not in answer.body


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (ManagementUnavailable("gone"), "management_unavailable"),
        (ManagementTimeout("late"), "management_unavailable"),
        (ValidateTunnelPeerResponse(valid=True, user_id="user-1"), "validation_incomplete"),
        (ValidateTunnelPeerResponse(valid=True, session_token="token"), "validation_incomplete"),
        ("nonsense", "management_unavailable"),
    ],
    ids=["unavailable", "late", "no token", "nobody", "nonsense"],
)
async def test_promise_3_no_answer_is_no_admission(answer: object, code: str) -> None:
    """Without a complete answer from management the client gets 503 with `Retry-After`."""
    async with playing(answer) as (play, _):
        said = await play.request(origin=tunnel_origin("100.64.0.9"))

        play.saw(
            "restrict private_service: allow",
            f"authenticate private_service: deny {code}",
            "respond 503",
            f"observe 503 {code}",
        )
        assert dict(said.headers)[b"retry-after"] == b"2"


async def test_promise_3_step_that_breaks_closes_the_route() -> None:
    """An unexpected exception counts as a failure of the step and denies the request."""
    async with playing(RuntimeError("broken")) as (play, _):
        said = await play.request(origin=tunnel_origin("100.64.0.9"))

        play.saw(
            "restrict private_service: allow",
            "authenticate private_service: raised RuntimeError",
            "respond 503",
            "observe 503 step_failed",
        )
        assert said.status == 503


@pytest.mark.parametrize(
    ("extensions", "key"), [(("peer_key",), ALICE.public_key), ((), "")], ids=["ours", "NetBird's"]
)
async def test_promise_1_management_is_asked_about_the_peer_of_the_connection(
    extensions: tuple[str, ...], key: str
) -> None:
    """The question includes the peer's key if management supports it, so that the answer applies to this peer only."""
    management = FakeManagement({"ValidateTunnelPeer": GRANT}, extensions=extensions)
    proxy = FakeProxy(management=management, tunnels={ACCOUNT: FakeTunnel({"100.64.0.9": ALICE})})
    plugin = PrivateService()
    async with plugin.lifespan(proxy):
        step = plugin.authenticate(private_route(), proxy)
        assert step is not None
        assert isinstance(await step.identify(exchange(origin=tunnel_origin("100.64.0.9"))), Identity)
    (_, request), *_ = management.calls
    assert request.peer_key == key


async def test_promise_1_an_address_that_changes_hands_takes_no_connection_along() -> None:
    """A connection whose address now belongs to another peer is denied without a question to management."""
    management = FakeManagement({"ValidateTunnelPeer": GRANT})
    tunnel = FakeTunnel({"100.64.0.9": ALICE})
    proxy = FakeProxy(management=management, tunnels={ACCOUNT: tunnel})
    plugin = PrivateService()
    async with plugin.lifespan(proxy):
        step = plugin.authenticate(private_route(), proxy)
        assert step is not None
        alices = exchange(origin=tunnel_origin("100.64.0.9"))
        assert isinstance(await step.identify(alices), Identity)

        tunnel.change({"100.64.0.9": peer("100.64.0.9", "mallory")})
        proxy.generations[ACCOUNT] += 1
        asked = len(management.calls)
        for open_one in (alices, exchange(origin=alices.origin)):
            refused = await step.identify(open_one)
            assert isinstance(refused, Deny)
            assert refused.code == "peer_unknown"
        assert len(management.calls) == asked

        now = await step.identify(exchange(origin=tunnel_origin("100.64.0.9", name="mallory")))
        assert isinstance(now, Identity)


async def test_a_peer_pays_for_its_questions_and_not_for_ours() -> None:
    """A peer above its rate gets 503 with `Retry-After`; revalidations of its open exchanges still reach management."""
    management = FakeManagement({"ValidateTunnelPeer": NOT_IN_GROUP})
    proxy = FakeProxy(management=management, tunnels={ACCOUNT: FakeTunnel({"100.64.0.9": ALICE})})
    plugin = PrivateService()
    async with plugin.lifespan(proxy):
        step = plugin.authenticate(private_route(), proxy)
        assert step is not None
        asking = exchange(origin=tunnel_origin("100.64.0.9"))
        for _ in range(500):
            answer = await step.identify(asking)
            assert isinstance(answer, Deny)
            if answer.code == "too_many_validations":
                break
        else:
            raise AssertionError("a peer may ask as often as it likes")
        asking.revalidating = True

        answer = await step.identify(asking)

        assert isinstance(answer, Deny)
        assert answer.code == "not_in_group"


async def test_upstream_that_calls_its_own_service_is_a_loop() -> None:
    """A request from the service's own upstream is a loop and gets 421."""
    spec = private_route(to=upstream("http://100.64.0.9:8080"))
    async with playing(spec=spec) as (play, _):
        await play.request(origin=tunnel_origin("100.64.0.9"))

        play.saw("restrict private_service: deny loop_detected", "respond 421", "observe 421 loop_detected")


async def test_proxy_without_tunnel_listeners_refuses_the_mapping() -> None:
    """The mapping is refused, so that management can show the reason, instead of a 403 for every request."""
    async with playing(private=False) as (play, _):
        assert "without `private`" in play.reports[0].refused

        await play.request(origin=host_origin())
        play.saw("respond 503", "observe 503 route_refused")


async def test_public_routes_are_left_alone() -> None:
    """Without the flag the plugin binds nothing."""
    values = {PrivateServiceSettings: PrivateServiceSettings(private=False)}
    async with playing(spec=route(values=values)) as (play, management):
        await play.request(origin=host_origin())

        play.saw("dial http://10.0.0.7:8080", "respond 200", "observe 200")
        assert management.calls == []


def test_settings_survive_the_wire(transcript: Callable[..., Transcript]) -> None:
    """The proxy's half reads the settings that management's half writes."""
    for private in (True, False):
        wire = ProxyMapping()
        PrivateServiceSettings(private=private).to_wire(wire)

        assert PrivateServiceSettings.from_wire(wire).private is private
    assert ALLOW is not True


def public_route(**fields: Any) -> RouteSpec:
    values = {PrivateServiceSettings: PrivateServiceSettings(), PublicSchemes: PublicSchemes(asks=True)}
    return route(values=values, **fields)


async def test_a_public_service_that_asks_takes_the_tunnel_for_an_answer() -> None:
    """A peer with a grant is identified without a login; the question is the same as for a private service."""
    async with playing(spec=public_route()) as (play, management):
        answer = await play.request(origin=tunnel_origin("100.64.0.9"))

        play.saw(
            "authenticate private_service: identity user-1", "dial http://10.0.0.7:8080", "respond 200", "observe 200"
        )
        assert answer.status == 200
        assert [name for name, _ in management.calls] == ["ValidateTunnelPeer"]


@pytest.mark.parametrize(
    ("answer", "origin"),
    [
        (NOT_IN_GROUP, tunnel_origin("100.64.0.9")),
        (ManagementUnavailable("away"), tunnel_origin("100.64.0.9")),
        (GRANT, tunnel_origin("100.64.0.77")),
        (GRANT, host_origin("100.64.0.9")),
        (GRANT, None),
    ],
    ids=["not in group", "management away", "unknown peer", "host", "embedded"],
)
async def test_who_is_not_granted_there_is_left_to_the_logins(answer: object, origin: Origin | None) -> None:
    """An address outside the tunnel, or a denial by management, does not identify the caller; the logins then apply."""
    async with playing(answer, spec=public_route()) as (play, _):
        await play.request(origin=origin)

        assert play.effects[0] == "authenticate private_service: pass"
        assert play.exchange.identity is None
        play.effects.clear()


@pytest.mark.parametrize("make", [private_route, public_route])
@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", [(b"sec-fetch-site", b"cross-site")], 403),
        ("POST", [(b"sec-fetch-site", b"same-site")], 403),
        ("PUT", [(b"origin", b"https://evil.example")], 403),
        ("PUT", [(b"origin", b"http://app.example.com")], 200),
        ("POST", [], 200),
        ("GET", [(b"sec-fetch-site", b"cross-site")], 200),
    ],
)
async def test_other_sites_change_nothing_over_the_tunnel(
    make: Callable[..., RouteSpec], method: str, headers: list[tuple[bytes, bytes]], status: int
) -> None:
    """An unsafe request that another site's page makes a peer's browser send is denied."""
    async with playing(spec=make()) as (play, _):
        assert (await play.request(method, headers=headers, origin=tunnel_origin("100.64.0.9"))).status == status
        assert play.upstreams.dialed == (status == 200)
        play.effects.clear()
    async with playing(spec=make(same_origin=False)) as (play, _):
        assert (await play.request(method, headers=headers, origin=tunnel_origin("100.64.0.9"))).status == 200
        play.effects.clear()
