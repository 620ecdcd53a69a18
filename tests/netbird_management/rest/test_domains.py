"""Domains of accounts' own: names that may be had, the proof that DNS shows, and the proof repeated."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import httpx
import pytest
from sqlalchemy import update

from netbird_management.compute.mapping import build
from netbird_management.model.clock import now
from netbird_management.model.ids import AccountId, ServiceId
from netbird_management.operations.accounts import create_account
from netbird_management.operations.custom_domains import (
    DnsResolver,
    create_domain,
    proof_of,
    prove_domains_again,
    validate_domain,
)
from netbird_management.operations.proxies import Registration
from netbird_management.operations.services import create_service
from netbird_management.operations.users import create_token
from netbird_management.rest.app import create_app
from netbird_management.store.models import DomainRow
from tests.netbird_management import store_child
from tests.netbird_management.conftest import Api, Home, context_for

DOMAINS = "/api/reverse-proxies/domains"


class NameServer(asyncio.DatagramProtocol):
    """A server of a few aliases and texts, on loopback."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.is_broken = False
        self.aliases: dict[str, str] = {}
        self.asked: list[str] = []
        self.address = ""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        host, port = transport.get_extra_info("sockname")
        self.address = f"{host}:{port}"

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        name = query.question[0].name.to_text().rstrip(".")
        self.asked.append(name)
        answer = dns.message.make_response(query)
        if self.is_broken:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif name in self.texts and query.question[0].rdtype == dns.rdatatype.TXT:
            answer.answer.append(dns.rrset.from_text(name + ".", 60, "IN", "TXT", f'"{self.texts[name]}"'))
        elif name in self.aliases:
            answer.answer.append(dns.rrset.from_text(name + ".", 60, "IN", "CNAME", self.aliases[name] + "."))
        else:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self.transport.sendto(answer.to_wire(), addr)

    def prove(self, account_id: AccountId, domain: str) -> None:
        proof = proof_of(account_id, domain)
        self.texts[proof.name] = proof.value


@pytest.fixture
async def server() -> AsyncIterator[NameServer]:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        NameServer, local_addr=("127.0.0.1", 0)
    )
    yield protocol
    transport.close()


@pytest.fixture
async def api(home: Home, proxy: Registration, server: NameServer) -> AsyncIterator[Api]:
    _, token = await create_token(home.state, home.owner, name="test", days=1, created_by=home.owner.id)
    context = context_for(home, resolver=DnsResolver([server.address]), refused_domains=("netbird.example.org",))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(context)),
        base_url="http://localhost",
        headers={"authorization": f"Token {token}"},
    ) as client:
        yield Api(client, home)


async def _add(api: Api, domain: str = "example.com") -> dict[str, Any]:
    made: dict[str, Any] = await api.ok("POST", DOMAINS, {"domain": domain, "target_cluster": "px.test"})
    return made


TARGET = {
    "target_id": "px.test",
    "target_type": "cluster",
    "protocol": "http",
    "host": "127.0.0.1",
    "port": 9000,
    "enabled": True,
    "options": {"direct_upstream": True},
}


async def _service(api: Api, domain: str) -> dict[str, Any]:
    given = {"name": "a", "domain": domain, "enabled": True, "targets": [TARGET]}
    made: dict[str, Any] = await api.ok("POST", "/api/reverse-proxies/services", given)
    return made


def _withheld(home: Home, service_id: str) -> str:
    return build(home.snapshot.services[ServiceId(service_id)], home.snapshot, context_for(home).hooks).withheld


async def test_a_domain_is_validated_at_once_when_dns_says_so(api: Api, server: NameServer) -> None:
    """The record below the name has the account's value; case and the final dot do not matter."""
    server.prove(api.home.account_id, "example.com")
    made = await _add(api, "Example.COM.")
    assert (made["domain"], made["type"], made["validated"], made["target_cluster"]) == (
        "example.com",
        "custom",
        True,
        "px.test",
    )
    assert [one["domain"] for one in await api.ok("GET", DOMAINS)] == ["px.test", "example.com"]


async def test_a_domain_waits_for_dns(api: Api, server: NameServer) -> None:
    """It is stored unvalidated, its service is withheld; asking again validates it, and the service is mapped."""
    made = await _add(api)
    assert made["validated"] is False
    service = await _service(api, "a.example.com")
    assert "not validated" in _withheld(api.home, service["id"])
    assert (await api.call("GET", f"{DOMAINS}/{made['id']}/validate")).status_code == 202
    assert "not validated" in _withheld(api.home, service["id"])
    record = made["validation_record"]
    assert record["type"] == "TXT"
    server.texts[record["name"]] = record["value"]
    answer = await api.call("GET", f"{DOMAINS}/{made['id']}/validate")
    assert (answer.status_code, answer.content) == (202, b"")
    assert _withheld(api.home, service["id"]) == ""
    events = await api.ok("GET", "/api/events")
    assert [event["activity_code"] for event in events[:3]] == ["domain.validate", "service.create", "domain.add"]


async def test_promise_10_a_name_that_leads_to_the_cluster_proves_no_account(api: Api, server: NameServer) -> None:
    """A CNAME or a wildcard that a customer left behind is anybody's; and so is another account's record."""
    other, _ = await create_account(api.home.state, email="b@lab.test", name="B")
    server.aliases |= {"validation.example.com": "px.test", "_netbird-challenge.example.com": "px.test"}
    assert (await _add(api))["validated"] is False
    server.texts["_netbird-challenge.example.info"] = proof_of(other, "example.info").value
    assert (await _add(api, "example.info"))["validated"] is False
    server.texts["_netbird-challenge.example.net"] = proof_of(api.home.account_id, "example.info").value
    assert (await _add(api, "example.net"))["validated"] is False


@pytest.mark.parametrize("claimed", ["example.com", "shop.example.com", "a.shop.example.com"])
async def test_promise_10_a_name_without_proof_blocks_nobody(api: Api, server: NameServer, claimed: str) -> None:
    """Neither as a domain nor with a service on it; it stays unvalidated once its owner has proved it."""
    state, hooks = api.home.state, context_for(api.home).hooks
    other, _ = await create_account(state, email="b@lab.test", name="B")
    resolver = DnsResolver([server.address])
    squatted = await create_domain(state, resolver, other, domain=claimed, target_cluster="px.test")
    given = replace(store_child.service(other), domain=f"www.{claimed}")
    await create_service(state, hooks, given, store_child.SENT)
    server.prove(api.home.account_id, "shop.example.com")
    assert (await _add(api, "shop.example.com"))["validated"] is True
    for name in ("www.shop.example.com", "www.a.shop.example.com"):
        service = await _service(api, name)
        assert _withheld(api.home, service["id"]) == ""
        found = state.snapshots.by_domain(name)
        assert found is not None
        assert found[0].account.id == api.home.account_id
    server.prove(other, claimed)
    assert not await validate_domain(state, resolver, other, squatted.id)


async def test_promise_10_a_proof_is_repeated(api: Api, server: NameServer) -> None:
    """A domain whose record is gone for days is no longer the account's: its services are withheld and block nobody. A
    name server that does not answer proves nothing."""
    state, resolver = api.home.state, DnsResolver([server.address])
    server.prove(api.home.account_id, "example.com")
    made = await _add(api)
    service = await _service(api, "a.example.com")

    async def some_days_later(days: float) -> None:
        earlier = now() - timedelta(days=days)
        async with state.write() as session:
            await session.execute(update(DomainRow).values(created_at=earlier, proved_at=earlier, asked_at=earlier))
        await prove_domains_again(state, resolver)

    await some_days_later(30)
    assert _withheld(api.home, service["id"]) == ""
    server.texts.clear()
    server.is_broken = True
    await some_days_later(30)
    assert _withheld(api.home, service["id"]) == ""
    server.is_broken = False
    await some_days_later(2)
    assert _withheld(api.home, service["id"]) == ""
    await some_days_later(4)
    assert "not validated" in _withheld(api.home, service["id"])
    other, _ = await create_account(state, email="b@lab.test", name="B")
    server.prove(other, "example.com")
    theirs = await create_domain(state, resolver, other, domain="example.com", target_cluster="px.test")
    assert theirs.validated
    assert (await api.ok("GET", "/api/events"))[0]["meta"]["validated"] == "false"
    await some_days_later(13)
    assert made["id"] in {custom.id for custom in api.home.snapshot.custom_domains}
    await some_days_later(15)
    assert made["id"] in {custom.id for custom in api.home.snapshot.custom_domains}, "it has a service"
    await api.call("DELETE", f"/api/reverse-proxies/services/{service['id']}")
    await some_days_later(15)
    assert api.home.snapshot.custom_domains == ()


async def test_a_domain_that_an_earlier_version_validated_stays_so(api: Api, server: NameServer) -> None:
    """As long as its CNAME leads to the cluster; the record takes over once it is there."""
    state, resolver = api.home.state, DnsResolver([server.address])
    server.aliases |= {"validation.example.com": "Edge.example.net", "edge.example.net": "PX.test"}
    await _add(api)
    earlier = now() - timedelta(days=30)
    old = update(DomainRow).values(validated=True, by_alias=True, proved_at=earlier, asked_at=None)
    async with state.change(api.home.account_id) as transaction:
        await transaction.session.execute(old)
        transaction.touch(domains=True)
    await prove_domains_again(state, resolver)
    assert api.home.snapshot.custom_domains[0].validated
    server.aliases.clear()
    async with state.write() as session:
        await session.execute(update(DomainRow).values(proved_at=earlier, asked_at=None))
    await prove_domains_again(state, resolver)
    assert not api.home.snapshot.custom_domains[0].validated


async def test_promise_10_one_accounts_domains_keep_no_other_from_being_asked_about(
    api: Api, server: NameServer
) -> None:
    """A round asks about a few of each account."""
    state, resolver = api.home.state, DnsResolver([server.address])
    other, _ = await create_account(state, email="b@lab.test", name="B")
    for number in range(30):
        await create_domain(state, resolver, other, domain=f"d{number}.example.info", target_cluster="px.test")
    await _add(api)
    async with state.write() as session:
        await session.execute(update(DomainRow).values(asked_at=None))
    server.asked.clear()
    await prove_domains_again(state, resolver)
    assert "_netbird-challenge.example.com" in server.asked
    assert len(server.asked) == 6


async def test_a_service_may_be_the_custom_domain_itself(api: Api, server: NameServer) -> None:
    """Unlike the cluster's address, which is the proxies' own."""
    server.prove(api.home.account_id, "example.com")
    await _add(api)
    assert (await _service(api, "example.com"))["proxy_cluster"] == "px.test"
    given = {"name": "a", "domain": "px.test", "enabled": True, "targets": [TARGET]}
    assert (await api.refused("POST", "/api/reverse-proxies/services", given))[0] == 422


async def test_a_domain_goes(api: Api) -> None:
    """Deleting answers without a body; what is not there is 404."""
    made = await _add(api)
    assert (await api.call("DELETE", f"{DOMAINS}/{made['id']}")).status_code == 204
    assert (await api.refused("DELETE", f"{DOMAINS}/{made['id']}"))[0] == 404
    assert (await api.refused("GET", f"{DOMAINS}/{made['id']}/validate"))[0] == 404


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"target_cluster": "nowhere.test"}, 422),
        ({"domain": "not a domain"}, 422),
        ({"domain": "com"}, 422),
        ({"domain": "co.uk"}, 422),
        ({"domain": "GitHub.io."}, 422),
        ({"domain": "anything.ck"}, 422),
        ({"domain": "netbird.example.org"}, 422),
        ({"domain": "example.org"}, 422),
        ({"domain": "below.px.test"}, 422),
        ({"domain": "taken.example"}, 409),
    ],
)
async def test_who_may_not_have_a_domain(api: Api, given: dict[str, str], status: int) -> None:
    """An unknown cluster, no name, somebody's name: refused, and nothing is stored."""
    await _add(api, "taken.example")
    body = {"domain": "example.com", "target_cluster": "px.test", **given}
    assert (await api.refused("POST", DOMAINS, body))[0] == status
    assert [domain.domain for domain in api.home.snapshot.custom_domains] == ["taken.example"]


async def test_accounts_do_not_nest(api: Api, server: NameServer) -> None:
    """A name above or below another account's is nobody's to have."""
    other, _ = await create_account(api.home.state, email="b@lab.test", name="B")
    resolver = DnsResolver([server.address])
    server.prove(other, "a.example.com")
    await create_domain(api.home.state, resolver, other, domain="a.example.com", target_cluster="px.test")
    assert (await api.refused("POST", DOMAINS, {"domain": "a.example.com", "target_cluster": "px.test"}))[0] == 409
    for domain in ("example.com", "b.a.example.com"):
        assert (await api.refused("POST", DOMAINS, {"domain": domain, "target_cluster": "px.test"}))[0] == 422


async def test_dns_that_is_silent_validates_nothing(server: NameServer) -> None:
    """No answer and a loop of aliases both lead nowhere."""
    assert await DnsResolver(["127.0.0.1:9"], seconds=0.2).texts("validation.example.com") is None
    assert await DnsResolver(["127.0.0.1:9"], seconds=0.2).aliases("validation.example.com") == []
    server.aliases |= {"a.test": "b.test", "b.test": "a.test"}
    assert len(await DnsResolver([server.address]).aliases("a.test")) == 8
