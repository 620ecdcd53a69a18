"""Domains of accounts' own: who may have one, and what DNS has to say."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import httpx
import pytest

from netbird_management.compute.mapping import build
from netbird_management.operations.accounts import create_account
from netbird_management.operations.custom_domains import DnsResolver, create_domain
from netbird_management.operations.proxies import Registration
from netbird_management.operations.users import create_token
from netbird_management.rest.app import create_app
from tests.netbird_management.conftest import Api, Home, context_for

DOMAINS = "/api/reverse-proxies/domains"


class NameServer(asyncio.DatagramProtocol):
    """A server of a few aliases, on loopback."""

    def __init__(self) -> None:
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
        if name in self.aliases:
            answer.answer.append(dns.rrset.from_text(name + ".", 60, "IN", "CNAME", self.aliases[name] + "."))
        else:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self.transport.sendto(answer.to_wire(), addr)


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


async def test_a_domain_is_validated_at_once_when_dns_says_so(api: Api, server: NameServer) -> None:
    """The name below it leads to the cluster, by way of another; case and the final dot do not matter."""
    server.aliases |= {"validation.example.com": "Edge.example.net", "edge.example.net": "PX.test"}
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
    server.aliases["validation.example.com"] = "elsewhere.test"
    made = await _add(api)
    assert made["validated"] is False
    target = {
        "target_id": "px.test",
        "target_type": "cluster",
        "protocol": "http",
        "host": "127.0.0.1",
        "port": 9000,
        "enabled": True,
        "options": {"direct_upstream": True},
    }
    given = {"name": "a", "domain": "a.example.com", "enabled": True, "targets": [target]}
    service = await api.ok("POST", "/api/reverse-proxies/services", given)
    hooks = context_for(api.home).hooks

    def withheld() -> str:
        return build(api.home.snapshot.services[service["id"]], api.home.snapshot, hooks).withheld

    assert "not validated" in withheld()
    assert (await api.call("GET", f"{DOMAINS}/{made['id']}/validate")).status_code == 202
    assert "not validated" in withheld()
    server.aliases["validation.example.com"] = "px.test"
    answer = await api.call("GET", f"{DOMAINS}/{made['id']}/validate")
    assert (answer.status_code, answer.content) == (202, b"")
    assert withheld() == ""
    events = await api.ok("GET", "/api/events")
    assert [event["activity_code"] for event in events[:3]] == ["domain.validate", "service.create", "domain.add"]


async def test_a_service_may_be_the_custom_domain_itself(api: Api, server: NameServer) -> None:
    """Unlike the cluster's address, which is the proxies' own."""
    server.aliases["validation.example.com"] = "px.test"
    await _add(api)
    target = {"target_id": "px.test", "target_type": "cluster", "protocol": "http", "host": "127.0.0.1", "port": 1}
    target |= {"enabled": True, "options": {"direct_upstream": True}}
    given = {"name": "a", "domain": "example.com", "enabled": True, "targets": [target]}
    made = await api.ok("POST", "/api/reverse-proxies/services", given)
    assert made["proxy_cluster"] == "px.test"
    assert (await api.refused("POST", "/api/reverse-proxies/services", {**given, "domain": "px.test"}))[0] == 422


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
    await create_domain(api.home.state, resolver, other, domain="a.example.com", target_cluster="px.test")
    for domain in ("example.com", "b.a.example.com"):
        assert (await api.refused("POST", DOMAINS, {"domain": domain, "target_cluster": "px.test"}))[0] == 422


async def test_dns_that_is_silent_validates_nothing(server: NameServer) -> None:
    """No answer and a loop of aliases both lead nowhere."""
    assert await DnsResolver(["127.0.0.1:9"], seconds=0.2).aliases("validation.example.com") == []
    server.aliases |= {"a.test": "b.test", "b.test": "a.test"}
    assert len(await DnsResolver([server.address]).aliases("a.test")) == 8
