"""Names behind routing peers: resolved there, and their addresses routed there before anyone dials them."""

from __future__ import annotations

import asyncio

import dns.message
import dns.rcode
import dns.rrset
import pytest

from netbird_overlay.errors import Failed, Unreachable
from netbird_overlay.membership.domain_routes import (
    DEFAULT_FORWARDER_PORT,
    MAX_ADDRESSES,
    MAX_OF_NAME,
    DomainRoutes,
    has_name,
)
from netbird_overlay.membership.peer_routes import RouteGroup

CORP = RouteGroup("corp", domains=("*.corp.example", "corp.example"))
KEPT = RouteGroup("kept", domains=("*.kept.example",), keep=True)


class Forwarder:
    """A routing peer's DNS forwarder, whose answers the test sets; and what was routed when."""

    def __init__(self) -> None:
        self.answers: list[str] = ["192.0.2.7"]
        self.code = dns.rcode.NOERROR
        self.asked: list[tuple[str, int]] = []
        self.learned = 0
        self.failure: Exception | None = None
        self.routes = DomainRoutes(
            forwarder=lambda group: "100.64.0.9", exchange=self.exchange, learned=self.learn, ipv6=False
        )

    def learn(self) -> None:
        self.learned += 1

    async def exchange(
        self, query: dns.message.Message, address: str, port: int, timeout: float
    ) -> dns.message.Message:
        self.asked.append((address, port))
        if self.failure is not None:
            raise self.failure
        answer = dns.message.make_response(query)
        answer.set_rcode(self.code)
        if self.answers and self.code == dns.rcode.NOERROR:
            assert isinstance(query, dns.message.QueryMessage)
            answer.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", *self.answers))
        return dns.message.from_wire(answer.to_wire())

    async def resolve(self, name: str) -> list[str]:
        lookup = self.routes.lookup(name)
        assert lookup is not None
        return list(await lookup)


@pytest.fixture
def forwarder() -> Forwarder:
    made = Forwarder()
    made.routes.replace([CORP, KEPT], 22054)
    return made


@pytest.mark.parametrize(
    ("name", "matches"),
    [("a.b", 3), ("x.a.b", 0), ("x.c.d", 5), ("c.d", 0), ("y.x.c.d", 5), ("xc.d", 0), (".c.d", 0), ("", 0)],
)
def test_patterns(name: str, matches: int) -> None:
    """A plain pattern is one name; a pattern with a star is each name below, and not the name itself."""
    assert has_name(("a.b", "*.c.d"), name) == matches


async def test_a_name_is_resolved_by_its_routing_peer(forwarder: Forwarder) -> None:
    """The query goes to the routing peer's forwarder, and the answer is routed before the dialer has it."""
    assert await forwarder.resolve("wiki.corp.example") == ["192.0.2.7"]
    assert forwarder.asked == [("100.64.0.9", 22054)]
    assert forwarder.learned == 1
    assert forwarder.routes.addresses() == {CORP.id: ("192.0.2.7",)}
    assert forwarder.routes.lookup("wiki.example.org") is None
    assert await forwarder.resolve("corp.example") == ["192.0.2.7"]


async def test_later_answers_replace_earlier_ones_unless_kept(forwarder: Forwarder) -> None:
    """Addresses follow the last answer; with `keep` they stay routed."""
    for answer in (["192.0.2.7"], ["192.0.2.8"]):
        forwarder.answers = answer
        assert await forwarder.resolve("a.corp.example") == answer
        assert await forwarder.resolve("a.kept.example") == answer
    assert forwarder.routes.addresses() == {CORP.id: ("192.0.2.8",), KEPT.id: ("192.0.2.8", "192.0.2.7")}
    forwarder.routes.replace([CORP], 0)
    assert forwarder.routes.addresses() == {CORP.id: ("192.0.2.8",)}
    await forwarder.resolve("a.corp.example")
    assert forwarder.asked[-1] == ("100.64.0.9", DEFAULT_FORWARDER_PORT)


async def test_what_can_go_wrong_is_named(forwarder: Forwarder) -> None:
    """A missing name is unreachable; a failure of the forwarder is one."""
    forwarder.code = dns.rcode.NXDOMAIN
    with pytest.raises(Unreachable, match="does not exist"):
        await forwarder.resolve("a.corp.example")
    forwarder.code = dns.rcode.SERVFAIL
    with pytest.raises(Failed, match="SERVFAIL"):
        await forwarder.resolve("a.corp.example")
    forwarder.failure = ConnectionError("refused")
    with pytest.raises(Failed, match="refused"):
        await forwarder.resolve("a.corp.example")
    assert forwarder.learned == 0


async def test_addresses_of_this_machine_are_not_routed(forwarder: Forwarder) -> None:
    """Loopback, link-local, multicast and unspecified addresses in an answer are left out."""
    forwarder.answers = ["127.0.0.1", "169.254.169.254", "224.0.0.1", "0.0.0.0"]
    with pytest.raises(Unreachable, match="no address"):
        await forwarder.resolve("a.corp.example")
    assert forwarder.routes.addresses() == {}


async def test_answers_are_bounded(forwarder: Forwarder) -> None:
    """A routing peer that answers without end fills the table to its limits; the last name keeps its addresses."""
    for number in range(2 * MAX_ADDRESSES // 60):
        forwarder.answers = [f"10.{number >> 8}.{number & 255}.{n}" for n in range(1, 61)]
        await forwarder.resolve(f"n{number}.corp.example")
    for number in range(10):
        forwarder.answers = [f"11.0.{number}.{n}" for n in range(1, 61)]
        await forwarder.resolve("same.kept.example")
    addresses = forwarder.routes.addresses()
    assert sum(map(len, addresses.values())) <= MAX_ADDRESSES
    assert len(addresses[KEPT.id]) == MAX_OF_NAME
    assert set(forwarder.answers) <= set(addresses[KEPT.id])


async def test_a_lookup_can_be_canceled(forwarder: Forwarder) -> None:
    """A dial that is cancelled while it waits for the forwarder leaves no route."""

    async def hang(query: dns.message.Message, address: str, port: int, timeout: float) -> dns.message.Message:
        await asyncio.Event().wait()
        raise AssertionError

    routes = DomainRoutes(forwarder=lambda group: "100.64.0.9", exchange=hang, learned=forwarder.learn, ipv6=False)
    routes.replace([CORP], 0)

    async def look() -> None:
        lookup = routes.lookup("a.corp.example")
        assert lookup is not None
        await lookup

    async with asyncio.TaskGroup() as group:
        looking = group.create_task(look())
        await asyncio.sleep(0)
        looking.cancel()
    assert looking.cancelled()
    assert routes.addresses() == {}
