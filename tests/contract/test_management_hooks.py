"""Each hook of management, by its example in `examples/plugins/management`: loaded and asked as the host does it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

from examples.plugins.management.build_mapping import OfficeHours
from examples.plugins.management.describe import Greeting
from examples.plugins.management.lifespan import Heartbeat, log
from examples.plugins.management.network_patches import Pings
from examples.plugins.management.peer_gate import OwnedPeers
from examples.plugins.management.session_gate import OfficeRules
from examples.plugins.management.validate_service import StableDomains
from examples.plugins.management.withhold_mapping import OfficeHoursOnly
from examples.plugins.proxy.restrict import OfficeHoursSettings
from netbird_management import (
    ALLOW,
    AccountId,
    AccountSnapshot,
    Capabilities,
    Deny,
    Group,
    GroupId,
    Login,
    Peer,
    PeerId,
    Resource,
    ResourceType,
    Role,
    Service,
    ServiceId,
    User,
    UserId,
)
from netbird_management.clock import now
from netbird_management.network.model import Account, ProxyPeer
from netbird_management.plugins import Hooks, load_hooks
from netbird_management.services.mapping import build
from netbird_management.services.model import AuthConfig, SecretAuth, ServiceMeta

ID = AccountId("acct")
MEMBERS = Group(GroupId("g"), "members")
SERVICE = Service(
    id=ServiceId("s"),
    account_id=ID,
    name="office wiki",
    domain="wiki.px.test",
    proxy_cluster="px.test",
    meta=ServiceMeta(now()),
    private=True,
    access_groups=(MEMBERS.id,),
)


def peer(name: str, address: str, **fields: object) -> Peer:
    made = Peer(
        id=PeerId(name),
        account_id=ID,
        key=name,
        ip=IPv4Address(address),
        name=name,
        dns_label=name,
        created_at=now(),
    )
    return replace(made, **fields)  # type: ignore[arg-type]


ALICE = peer("alice", "100.64.0.2", user_id=UserId("u"))
PROXY = peer("proxy", "100.64.0.1", proxy=ProxyPeer("px.test"), connected=True)


def account(service: Service = SERVICE) -> AccountSnapshot:
    said = Account(
        id=ID,
        created_at=now(),
        created_by="",
        network=IPv4Network("100.64.0.0/16"),
        network_v6=IPv6Network("fd00::/64"),
        dns_domain="x",
    )
    group = replace(MEMBERS, peers=frozenset({ALICE.id}))
    everybody = Group(GroupId("all"), "All", frozenset({ALICE.id}))
    return AccountSnapshot.of(
        said,
        services={service.id: service},
        peers={ALICE.id: ALICE, PROXY.id: PROXY},
        groups={group.id: group, everybody.id: everybody},
    )


class Running:
    """The host as a plugin sees it."""

    def snapshot(self, account_id: AccountId) -> AccountSnapshot | None:
        return account() if account_id == ID else None


def loaded(plugin: object) -> Hooks:
    """The example beside the plugins that every host has."""
    return load_hooks([("example", plugin), "private_service", "direct_upstream"])


def test_describe() -> None:
    """A host knows what it loaded."""
    info = loaded(Greeting()).plugins["example"].info

    assert (info.version, info.summary) == ("1.0", "greets")


async def test_lifespan() -> None:
    """Work begins with the host and ends with it."""
    beaten = asyncio.Event()

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            beaten.set()

    handler, level = Listening(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        async with loaded(Heartbeat()).lifespan(Running()):
            await asyncio.wait_for(beaten.wait(), 10)
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def test_validate_service() -> None:
    """The rule speaks when it is broken, beside those of other plugins."""
    hooks = loaded(StableDomains())
    moved = replace(SERVICE, domain="other.px.test")

    def broken(service: Service, previous: Service | None) -> list[str]:
        return [one.field for one in hooks.validate_service(service, previous, frozenset({"domain"}), account())]

    assert broken(SERVICE, None) == []
    assert broken(SERVICE, SERVICE) == []
    assert broken(moved, SERVICE) == ["domain"]
    assert broken(replace(moved, access_groups=()), SERVICE) == ["domain", "access_groups"]


def test_build_mapping() -> None:
    """What the plugin adds reaches the proxy's half, beside what core and others say."""
    built = build(SERVICE, account(), loaded(OfficeHours()))

    assert not built.withheld
    assert OfficeHoursSettings.from_wire(built.mapping) == OfficeHoursSettings(8, 18)
    assert built.mapping.private
    other = replace(SERVICE, name="wiki")
    assert not build(other, account(other), loaded(OfficeHours())).mapping.plugin_settings


def test_withhold_mapping() -> None:
    """Only a proxy that claims the settings gets the service; one that claims nothing does not."""
    built = build(SERVICE, account(), loaded(OfficeHoursOnly()))
    able = Capabilities(supports_private_service=True, claims=frozenset({"plugin_settings.office_hours"}))

    assert built.withheld_from(able) == ""
    assert "office hours" in built.withheld_from(replace(able, claims=frozenset({"private"})))
    assert "office hours" in built.withheld_from(replace(able, claims=None))


def test_peer_gate() -> None:
    """All gates are asked: membership alone is not enough here, nor is an owner."""
    gates = loaded(OwnedPeers()).peer_gates(SERVICE, Running())
    orphan = replace(ALICE, user_id=None)

    def let_in(who: Peer, *groups: Group) -> list[object]:
        return [gate(peer=who, groups=groups, account=account()) for _, gate in gates]

    assert [name for name, _ in gates] == ["example", "private_service"]
    assert let_in(ALICE, MEMBERS) == [ALLOW, ALLOW]
    assert let_in(orphan, MEMBERS) == [Deny("peer_without_owner"), ALLOW]
    refused = let_in(ALICE)[1]
    assert isinstance(refused, Deny)
    assert refused.reason == "not_in_group"


async def test_session_gate() -> None:
    """Each login is judged by all gates: where it comes from, who it is, and what the service is."""
    public = replace(SERVICE, private=False, auth=AuthConfig(password_auth=SecretAuth(True, "hash")))
    everybody = account(public)
    boss = User(UserId("u"), ID, Role.ADMIN, now())

    async def let_in(service: Service, login: Login) -> list[object]:
        gates = loaded(OfficeRules()).session_gates(service, Running())
        return [await gate(login=login, account=everybody) for _, gate in gates]

    inside = Login("password", "password-user", client_address="192.0.2.7")
    assert await let_in(public, inside) == [ALLOW]
    assert await let_in(public, replace(inside, client_address="198.51.100.7")) == [Deny("not_in_the_office")]
    assert await let_in(public, replace(inside, client_address="")) == [Deny("not_in_the_office")]
    assert await let_in(public, Login("oidc", "u", boss)) == [Deny("no_administrators")]
    assert await let_in(public, Login("oidc", "u", replace(boss, role=Role.USER))) == [ALLOW]
    assert await let_in(replace(public, private=True), inside) == [ALLOW, Deny("tunnel_required")]


@pytest.mark.parametrize("private", [True, False])
def test_network_patches(private: bool) -> None:
    """A policy for each proxy of a private service, and none of a public one."""
    service = replace(SERVICE, private=private)
    patches = loaded(Pings()).network_patches(service, account(service))

    rules = [rule for patch in patches for policy in patch.policies for rule in policy.rules]
    pings = [rule for rule in rules if rule.protocol == "icmp"]
    assert [(rule.sources, rule.destination_resource) for rule in pings] == (
        [((MEMBERS.id,), Resource("proxy", ResourceType.PEER))] if private else []
    )
