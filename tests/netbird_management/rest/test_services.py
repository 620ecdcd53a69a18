"""Services through the API: what is accepted, what is refused, and what proxies get of them."""
# Over 500 lines: one resource, with the table of bodies that are refused.

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from netbird_management import Capabilities, Claim, Deny, PluginInfo, Service, always, hookimpl
from netbird_management.compute.mapping import build
from netbird_management.compute.network_map import NetworkMaps
from netbird_management.model.accounts import Account, User
from netbird_management.model.clock import now
from netbird_management.model.ids import AccountId, PeerId, ProxyId, ServiceId
from netbird_management.model.services import InboundListener, ServiceMeta, Status
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.accounts import create_account
from netbird_management.operations.groups import create_group
from netbird_management.operations.peers import create_stock_peer
from netbird_management.operations.proxies import Registration, disconnect_proxy, register_proxy
from netbird_management.operations.statuses import set_certificate_issued
from netbird_management.operations.users import create_token
from netbird_management.plugins.hooks import Hooks, load_hooks
from netbird_management.rest.app import create_app
from netbird_management.rest.context import Context
from netbird_management.secrets.passwords import verify_secret
from netbird_management.store.models import ProxyRow, ServiceRow
from netbird_wire.proxy_service_pb2 import ProxyMapping
from tests.netbird_management.conftest import Api
from tests.netbird_management.reports import report_status

SERVICES = "/api/reverse-proxies/services"
UNDERSTANDS = Capabilities(supports_private_service=True)


def target(**change: Any) -> dict[str, Any]:
    options = {"direct_upstream": True, **change.pop("options", {})}
    return {
        "target_id": "px.test",
        "target_type": "cluster",
        "protocol": "http",
        "host": "127.0.0.1",
        "port": 9000,
        "enabled": True,
        "path": "/",
        "options": options,
        **change,
    }


def body(**change: Any) -> dict[str, Any]:
    return {"name": "app", "domain": "app.px.test", "enabled": True, "targets": [target()], **change}


@pytest.fixture
def hooks() -> Hooks:
    return load_hooks(["private_service", "direct_upstream"])


BROKEN: dict[str, dict[str, Any]] = {
    "no name": {"name": ""},
    "a name with a line break": {"name": "a\nb"},
    "a name of 256 bytes": {"name": "ä" * 128},
    "no targets": {"targets": []},
    "a target without an id": {"targets": [target(target_id="")]},
    "a bad target beside a good one": {"targets": [target(), target(target_type="moon", path="/b")]},
    "two paths alike but for a bad option": {"targets": [target(path="/a"), target(options={"path_rewrite": "x"})]},
    "unknown mode": {"mode": "smtp"},
    "tcp with http's protocol": {"mode": "tcp", "listen_port": 1},
    "a port with http": {"listen_port": 8080},
    "no domain": {"domain": ""},
    "a domain that is none": {"domain": "a b.px.test"},
    "the cluster's own address": {"domain": "px.test"},
    "private without groups": {"private": True},
    "private and of bytes": {"private": True, "access_groups": ["g"], "mode": "tcp"},
    "private with single sign-on": {
        "private": True,
        "access_groups": ["g"],
        "auth": {"bearer_auth": {"enabled": True}},
    },
    "a password that is empty": {"auth": {"password_auth": {"enabled": True, "password": ""}}},
    "a header without value": {"auth": {"header_auths": [{"enabled": True, "header": "X-Key", "value": ""}]}},
    "a header of ours": {"auth": {"header_auths": [{"enabled": True, "header": "x_netbird.user", "value": "x"}]}},
    "a hop-by-hop header": {"auth": {"header_auths": [{"enabled": True, "header": "TE", "value": "x"}]}},
    "a header without a name": {"auth": {"header_auths": [{"enabled": True, "header": "", "value": "x"}]}},
    "the Host header": {"auth": {"header_auths": [{"enabled": True, "header": "host", "value": "x"}]}},
    "a cookie as a header": {"auth": {"header_auths": [{"enabled": True, "header": "Cookie", "value": "x"}]}},
    "a header's value that is too long": {
        "auth": {"header_auths": [{"enabled": True, "header": "X-Key", "value": "x" * 4097}]}
    },
    "a header that is none": {"auth": {"header_auths": [{"enabled": True, "header": "a b", "value": "x"}]}},
    "an unknown crowdsec mode": {"access_restrictions": {"crowdsec_mode": "maybe"}},
    "a bare address": {"access_restrictions": {"allowed_cidrs": ["10.0.0.1"]}},
    "a network with host bits": {"access_restrictions": {"blocked_cidrs": ["10.0.0.1/8"]}},
    "too many networks": {"access_restrictions": {"allowed_cidrs": ["10.0.0.0/8"] * 201}},
    "too many countries": {"access_restrictions": {"blocked_countries": ["DE"] * 51}},
    "a netmask": {"access_restrictions": {"allowed_cidrs": ["10.0.0.0/255.0.0.0"]}},
    "a country of three letters": {"access_restrictions": {"allowed_countries": ["GER"]}},
    "an unknown target type": {"targets": [target(target_type="moon")]},
    "a resource that is not there": {"targets": [target(target_type="subnet")]},
    "a cluster target without direct upstream": {"targets": [target(options={"direct_upstream": False})]},
    "a cluster target without host": {"targets": [target(host="")]},
    "a host with a port": {"targets": [target(host="db:80")]},
    "a host with a path": {"targets": [target(host="db/x")]},
    "a host with a user": {"targets": [target(host="u@db")]},
    "an unknown peer": {"targets": [target(target_type="peer", target_id="p", options={"direct_upstream": False})]},
    "a protocol of another mode": {"targets": [target(protocol="tcp")]},
    "a port out of range": {"targets": [target(port=70000)]},
    "a path without slash": {"targets": [target(path="x")]},
    "a path with a query": {"targets": [target(path="/x?y")]},
    "a duration that is none": {"targets": [target(options={"request_timeout": "5x"})]},
    "a negative duration": {"targets": [target(options={"request_timeout": "-5s"})]},
    "a negative idle time": {"targets": [target(options={"session_idle_timeout": "-5s"})]},
    "an unknown rewrite": {"targets": [target(options={"path_rewrite": "maybe"})]},
    "PROXY protocol": {"targets": [target(options={"proxy_protocol": True})]},
    "a custom header of ours": {"targets": [target(options={"custom_headers": {"X-NetBird_User": "eve"}})]},
    "a hop-by-hop custom header": {"targets": [target(options={"custom_headers": {"Connection": "close"}})]},
    "a reserved custom header": {"targets": [target(options={"custom_headers": {"x-forwarded-for": "::1"}})]},
    "a custom header's name that is too long": {"targets": [target(options={"custom_headers": {"a" * 129: ""}})]},
    "a custom header's value that is too long": {"targets": [target(options={"custom_headers": {"X-A": "x" * 4097}})]},
    "a custom header's name with a line break": {"targets": [target(options={"custom_headers": {"X\r\nA": ""}})]},
    "a custom Host": {"targets": [target(options={"custom_headers": {"Host": "eve"}})]},
    "a custom header with a line break": {"targets": [target(options={"custom_headers": {"X-A": "a\r\nb: c"}})]},
    "one custom header twice": {"targets": [target(options={"custom_headers": {"X-A": "1", "x_a": "2"}})]},
    "seventeen custom headers": {"targets": [target(options={"custom_headers": {f"X-{i}": "" for i in range(17)}})]},
}


async def test_what_breaks_a_rule_is_not_stored(api: Api, proxy: Registration) -> None:
    """Each broken rule is 422, on create and on update, and leaves everything as it was."""
    stored = await api.ok("POST", SERVICES, body(domain="first.px.test"))
    for what, change in BROKEN.items():
        assert (await api.refused("POST", SERVICES, body(**change)))[0] == 422, what
        assert (await api.refused("PUT", f"{SERVICES}/{stored['id']}", body(**change)))[0] == 422, what
    assert await api.ok("GET", SERVICES) == [stored]


async def test_what_is_odd_and_allowed(api: Api, proxy: Registration) -> None:
    """One header twice under two spellings, a broken one that is off, no time and no port said, countries in small."""
    headers = [
        {"enabled": True, "header": "X-Key", "value": "one"},
        {"enabled": True, "header": "x-key", "value": "two"},
        {"enabled": False, "header": "Connection", "value": ""},
    ]
    options = {"request_timeout": "0s", "path_rewrite": "preserve"}
    made = await api.ok(
        "POST",
        SERVICES,
        body(
            auth={"header_auths": headers},
            access_restrictions={"allowed_countries": ["de"], "allowed_cidrs": ["fd00::/8"]},
            targets=[target(port=0, path=None, options=options)],
        ),
    )
    assert [one["header"] for one in made["auth"]["header_auths"]] == ["X-Key", "x-key", "Connection"]
    assert made["access_restrictions"] == {"allowed_countries": ["DE"], "allowed_cidrs": ["fd00::/8"]}
    (shown,) = made["targets"]
    assert (shown["port"], shown["options"]) == (0, {"direct_upstream": True, "path_rewrite": "preserve"})


async def test_private_services_take_every_kind_of_target(api: Api, proxy: Registration) -> None:
    """Peers and clusters alike; what makes it private, and the flag, come back as they were sent, in their order."""
    home = api.home
    peer, _ = await create_stock_peer(home.state, home.account_id, name="bob", user_id=None)
    groups = [(await create_group(home.state, home.account_id, name=name)).id for name in ("b", "a")]
    for name, one in (
        ("peer", target(target_type="peer", target_id=peer.id, options={"direct_upstream": False})),
        ("cluster", target()),
    ):
        given = body(domain=f"{name}.px.test", private=True, access_groups=groups, targets=[one])
        made = await api.ok("POST", SERVICES, given)
        again = await api.ok("PUT", f"{SERVICES}/{made['id']}", given)
        for shown in (made, again, await api.ok("GET", f"{SERVICES}/{made['id']}")):
            assert (shown["private"], shown["access_groups"]) == (True, groups)
            assert shown["targets"][0]["options"].get("direct_upstream", False) is (name == "cluster")


async def test_a_service_lives_and_dies(api: Api, proxy: Registration) -> None:
    """Create, read, replace, delete; an absent member of a replacement takes its default."""
    made = await api.ok("POST", SERVICES, body(pass_host_header=True))
    path = f"{SERVICES}/{made['id']}"
    assert await api.ok("GET", path) == made
    changed = await api.ok("PUT", path, body(name="other", enabled=False))
    assert changed == {**made, "name": "other", "enabled": False, "pass_host_header": False}
    assert await api.ok("DELETE", path) == {}
    for method in ("GET", "PUT", "DELETE"):
        assert (await api.refused(method, path, body()))[0] == 404
    assert (await api.refused("GET", f"{path}/proxies"))[0] == 404


async def test_domains_are_one_however_they_are_spelled(api: Api, proxy: Registration) -> None:
    """Upper case, a trailing dot and IDNA are the same domain, stored in one spelling and taken once."""
    made = await api.ok("POST", SERVICES, body(domain="Bücher.PX.test."))
    assert made["domain"] == "xn--bcher-kva.px.test"
    assert await api.refused("POST", SERVICES, body(domain="XN--BCHER-KVA.px.test")) == (409, "domain already taken")
    found = api.home.state.snapshots.by_domain("BÜCHER.px.test")
    assert found is not None
    assert found[1].id == made["id"]


async def test_a_domain_needs_a_cluster(api: Api, proxy: Registration) -> None:
    """Where no connected proxy serves a domain: 412; `evilpx.test` does not lie under `px.test`."""
    assert (await api.refused("POST", SERVICES, body(domain="app.elsewhere.test")))[0] == 412
    assert (await api.refused("POST", SERVICES, body(domain="evilpx.test")))[0] == 412
    await disconnect_proxy(api.home.state, proxy)
    assert (await api.refused("POST", SERVICES, body()))[0] == 412


async def test_domains_above_and_below_another_accounts_are_refused(api: Api, proxy: Registration) -> None:
    """A neighbor's cookies must not be readable, nor settable, by a well-chosen name."""
    state = api.home.state
    await api.ok("POST", SERVICES, body(domain="a.b.px.test"))
    _, owner = await create_account(state, email="eve@evil.test", name="Eve")
    for domain, status in (("x.a.b.px.test", 422), ("b.px.test", 422), ("A.B.px.test", 409), ("c.px.test", 200)):
        async with _as(api, owner) as client:
            answer = await client.post(SERVICES, json=body(domain=domain))
        assert answer.status_code == status, domain
    assert len(await api.ok("GET", SERVICES)) == 1


@asynccontextmanager
async def _as(api: Api, user: User) -> AsyncIterator[httpx.AsyncClient]:
    """The API, called as somebody else."""
    _, token = await create_token(api.home.state, user, name="t", days=1, created_by=user.id)
    async with httpx.AsyncClient(
        transport=api.client._transport, base_url="http://localhost", headers={"authorization": f"Token {token}"}
    ) as client:
        yield client


async def test_refused_domains_are_refused(api: Api, proxy: Registration, hooks: Hooks) -> None:
    """Management's own names, the operator's list, and names above or below them, whose cookies they could receive or
    set, are nobody's service; but for a cluster that the operator put below one."""

    async def status(refused: str, domain: str) -> int:
        context = Context(api.home.state, hooks, NetworkMaps(hooks), refused_domains=(refused,))
        transport = httpx.ASGITransport(create_app(context))
        async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=api.client.headers) as client:
            return (await client.post(SERVICES, json=body(domain=domain))).status_code

    assert await status("mgmt.px.test", "MGMT.px.test") == 422
    assert await status("mgmt.px.test", "x.mgmt.px.test") == 422
    assert await status("x.mgmt.px.test", "mgmt.px.test") == 422
    assert await status("test", "app.px.test") == 200


async def test_losing_protection_must_be_meant(api: Api, proxy: Registration) -> None:
    """An update after which nobody is asked who they are is 412 and changes nothing, unless it is confirmed."""
    group = await create_group(api.home.state, api.home.account_id, name="engineering")
    made = await api.ok("POST", SERVICES, body(private=True, access_groups=[group.id]))
    path = f"{SERVICES}/{made['id']}"
    groups = [group.id]
    opened: list[dict[str, Any]] = [{"private": False}, {"private": False, "access_groups": groups}]
    for change in (*opened, {"access_groups": groups}):
        status, message = await api.refused("PUT", path, body(**change))
        assert status == 412
        assert "confirm_public" in message
    assert await api.ok("GET", path) == made
    kept = await api.ok("PUT", path, body(name="renamed"))
    assert (kept["private"], kept["access_groups"]) == (True, [group.id])
    guarded = body(private=False, auth={"pin_auth": {"enabled": True, "pin": "123456"}})
    assert (await api.ok("PUT", path, guarded))["private"] is False
    opened = [{}, {"auth": {}}, {"auth": {"pin_auth": {"enabled": False, "pin": ""}}}]
    for change in opened:
        assert (await api.refused("PUT", path, body(**change)))[0] == 412
    assert (await api.ok("PUT", path, body(confirm_public=True)))["auth"] == {}


async def test_secrets_are_hashed_kept_and_never_shown(api: Api, proxy: Registration, hooks: Hooks) -> None:
    """An empty secret keeps the stored one, enabled or not; a new one replaces it; none is stored as it came."""
    auth = {
        "password_auth": {"enabled": True, "password": "hunter2"},
        "pin_auth": {"enabled": False, "pin": "424242"},
        "header_auths": [{"enabled": True, "header": "X-Key", "value": "open sesame"}],
    }
    made = await api.ok("POST", SERVICES, body(auth=auth))
    path, service_id = f"{SERVICES}/{made['id']}", ServiceId(made["id"])

    def stored() -> Service:
        return api.home.snapshot.services[service_id]

    first = stored()
    assert first.auth.password_auth is not None
    assert first.auth.pin_auth is not None
    assert await verify_secret(api.home.account_id, "hunter2", first.auth.password_auth.secret)
    assert await verify_secret(api.home.account_id, "424242", first.auth.pin_auth.secret)
    assert not await verify_secret(api.home.account_id, "hunter3", first.auth.password_auth.secret)
    empty = {
        "password_auth": {"enabled": True, "password": ""},
        "pin_auth": {"enabled": True, "pin": ""},
        "header_auths": [{"enabled": True, "header": "x-key", "value": ""}],
    }
    answer = await api.ok("PUT", path, body(auth=empty))
    assert answer["auth"] == {**empty, "header_auths": [{"enabled": True, "header": "x-key", "value": ""}]}
    kept = stored()
    assert kept.auth.password_auth == first.auth.password_auth
    assert kept.auth.header_auths[0].value == first.auth.header_auths[0].value
    assert kept.session_public_key == first.session_public_key
    empty["password_auth"]["password"] = "new"  # type: ignore[index]
    await api.ok("PUT", path, body(auth=empty))
    assert stored().auth.password_auth != first.auth.password_auth
    for secret in ("hunter2", "424242", "open sesame", "argon2id"):
        assert secret not in repr(stored())
        assert secret not in (await api.call("GET", path)).text
    wire = build(stored(), api.home.snapshot, hooks).mapping
    assert (wire.auth.password, wire.auth.pin, wire.auth.oidc) == (True, True, False)
    assert wire.auth.header_auths[0].hashed_value == first.auth.header_auths[0].value


async def test_the_session_key_is_sealed(api: Api, proxy: Registration) -> None:
    """The private half lies in the database only encrypted."""
    made = await api.ok("POST", SERVICES, body())
    async with api.home.state.read() as session:
        row = await session.get_one(ServiceRow, made["id"])
    private = api.home.state.vault.open(row.session_private_key)
    assert len(private) == 64
    assert private not in row.session_private_key


async def test_a_terminated_service_is_not_updated(api: Api, proxy: Registration) -> None:
    """403; and it shows as disabled."""
    made = await api.ok("POST", SERVICES, body())
    async with api.home.state.change(api.home.account_id) as transaction:
        (await transaction.session.get_one(ServiceRow, made["id"])).terminated = True
        transaction.touch(services=[ServiceId(made["id"])])
    assert (await api.refused("PUT", f"{SERVICES}/{made['id']}", body()))[0] == 403
    shown = await api.ok("GET", f"{SERVICES}/{made['id']}")
    assert (shown["enabled"], shown["terminated"], shown["targets"][0]["enabled"]) == (False, True, False)


async def test_statuses_are_kept_for_each_proxy(api: Api, proxy: Registration) -> None:
    """`meta.status` is the worst of the live proxies; the list names each, with what it said and why it is withheld.

    What a proxy said before it went, fell silent or connected anew is not told as if it held.
    """
    state = api.home.state
    made = await api.ok("POST", SERVICES, body())
    path, service_id = f"{SERVICES}/{made['id']}", ServiceId(made["id"])
    second = replace(proxy, proxy_id=ProxyId("proxy-2"), session_id="session-2")
    await register_proxy(state, second)
    listener = InboundListener("100.64.0.9", 443)
    await report_status(state, service_id, proxy.proxy_id, Status.ACTIVE, inbound_listener=listener)
    assert (await api.ok("GET", path))["meta"]["status"] == "active"
    await report_status(state, service_id, second.proxy_id, Status.ERROR, error_message="boom", withheld="why")
    assert (await api.ok("GET", path))["meta"]["status"] == "error"
    one, two = await api.ok("GET", f"{path}/proxies")
    assert one["inbound_listener"] == {"https_port": 443, "tunnel_ip": "100.64.0.9"}
    assert (two["status"], two["error_message"], two["withheld"]) == ("error", "boom", "why")
    await disconnect_proxy(state, second)
    assert (await api.ok("GET", path))["meta"]["status"] == "active"
    await disconnect_proxy(state, proxy)
    one, two = await api.ok("GET", f"{path}/proxies")
    assert [told["status"] for told in (one, two)] == ["disconnected", "disconnected"]
    assert (one["inbound_listener"], two["error_message"], two["withheld"]) == (None, "", "why")
    await register_proxy(state, replace(proxy, session_id="session-3"))
    assert [told["status"] for told in await api.ok("GET", f"{path}/proxies")] == ["pending", "disconnected"]
    await report_status(state, service_id, proxy.proxy_id, Status.ACTIVE)
    assert [told["status"] for told in await api.ok("GET", f"{path}/proxies")] == ["active", "disconnected"]
    async with state.write() as session:
        await session.execute(update(ProxyRow).values(last_seen=now() - timedelta(minutes=3)))
    assert [told["status"] for told in await api.ok("GET", f"{path}/proxies")] == ["disconnected", "disconnected"]
    await set_certificate_issued(state, api.home.account_id, service_id)
    await api.ok("DELETE", path)


async def test_the_mapping_of_a_service(api: Api, proxy: Registration, hooks: Hooks) -> None:
    """Fields, ports, brackets and options as proxies expect them; disabled targets are left out."""
    group = await create_group(api.home.state, api.home.account_id, name="engineering")
    peer, _ = await create_stock_peer(api.home.state, api.home.account_id, name="bob", user_id=None)
    options = {"custom_headers": {"X-A": "1"}, "request_timeout": "1.5s", "path_rewrite": "preserve"}
    targets = [
        target(port=80, path=None),
        target(host="::1", protocol="https", port=80, path="/v6", options=options),
        target(path="/off", enabled=False),
        target(target_type="peer", target_id=peer.id, path="/bob", options={"direct_upstream": False}),
    ]
    restrictions = {"blocked_countries": ["de"], "crowdsec_mode": "off"}
    made = await api.ok(
        "POST",
        SERVICES,
        body(private=True, access_groups=[group.id], targets=targets, access_restrictions=restrictions),
    )
    service = api.home.snapshot.services[ServiceId(made["id"])]
    built = build(service, api.home.snapshot, hooks)
    wire = built.mapping
    assert [(path.path, path.target) for path in wire.path] == [
        ("/", "http://127.0.0.1/"),
        ("/v6", "https://[::1]:80/"),
        ("/bob", f"http://{peer.ip}:9000/"),
    ]
    assert [path.options.direct_upstream for path in wire.path] == [True, True, False]
    assert wire.path[1].options.request_timeout.ToMilliseconds() == 1500
    assert (wire.private, wire.mode, wire.domain, wire.id) == (True, "http", "app.px.test", service.id)
    assert wire.auth.max_session_age_seconds == 86400
    assert wire.auth.session_key == service.session_public_key
    assert list(wire.access_restrictions.blocked_countries) == ["DE"]
    assert built.withheld_from(UNDERSTANDS) == ""
    assert built.withheld_from(Capabilities()) != ""
    gone = replace(service.targets[3], target_id="gone")
    without = replace(service, targets=(gone,))
    assert build(without, api.home.snapshot, hooks).mapping.path[0].target == "http://unknown:9000/"


def test_an_unclaimed_field_is_withheld_from_everybody(service: Service, hooks: Hooks) -> None:
    """A stored private service stays private when the plugin is taken off the list: nobody gets it."""
    without = build(service, _snapshot(service), load_hooks(["direct_upstream"]))
    assert without.withheld == "no plugin of management claims private"
    assert build(service, _snapshot(service), hooks).withheld == ""


class _Plugin:
    """Claims `private`, and does what a test makes it do."""

    def __init__(self, build: Any = None, withhold: Any = None) -> None:
        self._build, self._withhold = build, withhold

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(claims=(Claim("private", guards=always),))

    @hookimpl
    def build_mapping(self, mapping: ProxyMapping) -> Any:
        return self._build(mapping) if self._build is not None else setattr(mapping, "private", True)

    @hookimpl
    def withhold_mapping(self, service: Service) -> Any:
        return self._withhold


def _raise(*_: object) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    "plugin",
    [
        _Plugin(build=_raise),
        _Plugin(build=lambda mapping: None),
        _Plugin(build=lambda mapping: mapping),
        _Plugin(withhold="yes"),
        _Plugin(withhold=_raise),
        _Plugin(withhold=lambda capabilities: None),
        _Plugin(withhold=lambda capabilities: True),
        _Plugin(withhold=lambda capabilities: Deny("")),
    ],
    ids=["raises", "forgets", "returns", "no predicate", "predicate raises", "answers nothing", "nonsense", "denies"],
)
def test_a_failing_plugin_withholds(service: Service, plugin: _Plugin) -> None:
    """Whatever a plugin does wrong, a private service is never sent as a public one."""
    built = build(service, _snapshot(service), load_hooks([("guard", plugin), "direct_upstream"]))
    assert built.withheld_from(UNDERSTANDS) != ""


def test_a_plugin_that_does_right_is_sent(service: Service) -> None:
    """The control for the test above."""
    built = build(service, _snapshot(service), load_hooks([("guard", _Plugin()), "direct_upstream"]))
    assert built.withheld_from(UNDERSTANDS) == ""


@pytest.fixture
def service() -> Service:
    return Service(
        id=ServiceId("s"),
        account_id=AccountId("a"),
        name="s",
        domain="s.px.test",
        proxy_cluster="px.test",
        meta=ServiceMeta(now()),
        private=True,
    )


def _snapshot(service: Service) -> AccountSnapshot:

    account = Account(
        id=service.account_id,
        created_at=service.meta.created_at,
        created_by="",
        network=IPv4Network("100.64.0.0/16"),
        network_v6=IPv6Network("fd00::/64"),
        dns_domain="x",
    )
    return AccountSnapshot.of(account, services={service.id: service})


async def test_a_target_peer_stays_while_it_is_a_target(api: Api, proxy: Registration) -> None:
    """Deleting a peer that a service points to is 412, and names the service."""
    peer, _ = await create_stock_peer(api.home.state, api.home.account_id, name="bob", user_id=None)
    made = await api.ok(
        "POST",
        SERVICES,
        body(targets=[target(target_type="peer", target_id=peer.id, options={"direct_upstream": False})]),
    )
    status, message = await api.refused("DELETE", f"/api/peers/{peer.id}")
    assert status == 412
    assert made["id"] in message
    await api.ok("DELETE", f"{SERVICES}/{made['id']}")
    await api.ok("DELETE", f"/api/peers/{peer.id}")
    assert PeerId(peer.id) not in api.home.snapshot.peers
