"""Each hook of management, by its example in `examples/plugins/management`: loaded and asked as the host does it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

import grpc
import grpc.aio
import httpx
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue

from examples.plugins.management.build_mapping import OfficeHours
from examples.plugins.management.describe import Greeting
from examples.plugins.management.lifespan import Heartbeat, log
from examples.plugins.management.network_patches import Pings
from examples.plugins.management.peer_gate import OwnedPeers
from examples.plugins.management.peer_servers import Stun
from examples.plugins.management.record_access import Failures, Threshold
from examples.plugins.management.record_access import log as failures_log
from examples.plugins.management.routes import Summary
from examples.plugins.management.rpc import WhoAmI
from examples.plugins.management.session_gate import OfficeRules
from examples.plugins.management.upgrades import Refusing
from examples.plugins.management.validate_service import StableDomains
from examples.plugins.management.withhold_mapping import OfficeHoursOnly
from examples.plugins.proxy.restrict import OfficeHoursSettings
from netbird_management import (
    ALLOW,
    AccessLogEntry,
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
from netbird_management.compute.mapping import build
from netbird_management.compute.network_map import NetworkMaps
from netbird_management.model.accounts import Account, ProxyPeer
from netbird_management.model.clock import now
from netbird_management.model.services import AuthConfig, SecretAuth, ServiceMeta
from netbird_management.operations.accounts import create_account
from netbird_management.operations.proxy_tokens import create_proxy_token
from netbird_management.operations.users import create_token, create_user
from netbird_management.plugins.hooks import Hooks, load_hooks
from netbird_management.rest.app import create_app
from netbird_management.rest.context import Context
from netbird_management.secrets.vault import Vault
from netbird_management.server import ManagementServer, serve
from netbird_management.settings import Listener, ManagementSettings, RestListener
from netbird_management.store.state import State
from tests.netbird_management.conftest import Home
from tests.netbird_management.grpc.conftest import lab_for

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


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    """An account on a store of its own."""
    async with State.open(tmp_path, Vault.create(tmp_path)) as state:
        account_id, owner = await create_account(state, email="admin@lab.test", name="Admin")
        yield Home(state, account_id, owner)


async def test_rpc(home: Home, tmp_path: Path) -> None:
    """The service answers proxies on the host's own port, and knows whose token they have; nobody else gets there."""
    async with lab_for(home, tmp_path, plugins=(("example", WhoAmI()),)) as lab:
        method = lab.channel.unary_unary(
            "/example.WhoAmI/Account",
            request_serializer=Empty.SerializeToString,
            response_deserializer=StringValue.FromString,
        )
        _, own = await create_proxy_token(home.state, name="own", account_id=home.account_id, created_by="test")
        for token, answer in ((lab.token, "*"), (own, home.account_id)):
            metadata = (("authorization", f"Bearer {token}"),)
            assert (await method(Empty(), timeout=10, metadata=metadata)).value == answer
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await method(Empty(), timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_routes(home: Home) -> None:
    """The operation is under `/api`, for those whose role lets them, and in the document."""
    hooks = loaded(Summary())
    server = ManagementServer(ManagementSettings(), hooks, home.state)
    app = create_app(Context(home.state, hooks, NetworkMaps(hooks)), hooks.routes(server))
    user = await create_user(home.state, home.account_id, role=Role.USER, email="alice@lab.test")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:

        async def asked(who: User) -> httpx.Response:
            _, token = await create_token(home.state, who, name="t", days=1, created_by=who.id)
            return await client.get("/api/summary", headers={"authorization": f"Token {token}"})

        assert (await asked(home.owner)).json() == {"services": 0, "private": 0}
        assert (await asked(user)).json() == {"code": 403, "message": "permission denied"}
        assert (await client.get("/api/summary")).status_code == 401
        assert "/api/summary" in (await client.get("/api/openapi.json")).json()["paths"]


async def test_record_access(caplog: pytest.LogCaptureFixture, home: Home) -> None:
    """Batches are counted by what the operator's section of the settings says."""
    hooks = loaded(Failures())
    server = ManagementServer(ManagementSettings(), hooks, home.state, [Threshold(failures=2)])
    entries = [
        AccessLogEntry(str(i), ID, service, now(), "192.0.2.1", "GET", "h", "/", 1, status, 0, 0)
        for i, (service, status) in enumerate([("a", 502), ("a", 503), ("a", 200), ("b", 500)])
    ]

    async with hooks.lifespan(server):
        with caplog.at_level(logging.WARNING, failures_log.name):
            hooks.record_access(entries)

    assert [record.getMessage() for record in caplog.records] == ["service a failed 2 times"]


async def test_upgrades(tmp_path: Path) -> None:
    """The client gets the plugin's answer, whatever REST does."""
    hooks = load_hooks([("later", Refusing())])
    settings = ManagementSettings(
        state_directory=tmp_path / "state",
        plugins=(),
        rest=RestListener(listen="127.0.0.1:0"),
        grpc=Listener(listen="127.0.0.1:0"),
    )
    async with serve(settings, hooks) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.rest_port)
        writer.write(b"GET /later HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert answer.startswith(b"HTTP/1.1 503 ")


async def test_peer_servers(home: Home, tmp_path: Path) -> None:
    """Under the host that the gRPC port has."""
    hooks = load_hooks([("stun", Stun())])
    server = ManagementServer(ManagementSettings(state_directory=tmp_path), hooks, home.state)
    server.grpc_port = 1
    assert hooks.peer_servers(server).stuns == ("stun:127.0.0.1:3478",)
