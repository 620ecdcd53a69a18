"""Idle connections to upstreams over an edit of a service: kept where it dials alike, and never where it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Any

import pytest

from netbird_proxy import ALLOW, Guard
from netbird_proxy.api.addresses import AddressRules, AllowedNetworks, NetworkOptions
from netbird_proxy.api.model import AccountId, Address, RouteSpec, ServiceId, Upstream
from netbird_proxy.api.tunnels import ProtocolFactory
from netbird_proxy.app import ReverseProxy
from netbird_proxy.pipeline.ending import Environment
from netbird_proxy.routing.apply import Routing
from netbird_proxy.routing.compile import Compiler
from netbird_proxy.testing.asgi import Answer, ask
from netbird_proxy.testing.fakes import FakeProxy
from netbird_proxy.testing.makers import mapping, route, upstream
from netbird_proxy.testing.transcript import StepHooks
from netbird_proxy.upstreams.host_dialer import HostDialer
from netbird_proxy.upstreams.pool import UpstreamPool
from netbird_proxy.upstreams.pools import Pools

WAIT = 10.0
OPEN = NetworkOptions(allow=(AllowedNetworks(accounts=("*",), networks=(ip_network("127.0.0.1/32"),)),))


class Edited:
    """A service that is edited between requests, on a real upstream."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.heads: list[list[bytes]] = []
        """The heads that arrived on each connection, oldest connection first."""
        self.ends: asyncio.Queue[int] = asyncio.Queue()
        """Connections that the proxy has closed, by number."""
        self.pools = Pools(UpstreamPool, grace=0.0)
        self.rules = AddressRules([OPEN], lambda: ())
        self.hooks = StepHooks(dialer=("host", HostDialer()))
        self._edits = 0
        self._routing = self._under(self.rules)

    def _under(self, rules: AddressRules) -> Routing:
        return Routing(Compiler(self.hooks, FakeProxy(), self.pools, Environment(), rules=rules))

    def target(self, **fields: Any) -> Upstream:
        return upstream(f"http://127.0.0.1:{self.port}", **fields)

    def edit(self, spec: RouteSpec | None = None, **fields: Any) -> None:
        self._edits += 1
        edited = mapping(spec or route(to=self.target()), digest=b"%d" % self._edits, **fields)
        (report,) = self._routing.update("management", [edited])
        assert report.ok, report.refused

    def change_rules(self, rules: AddressRules) -> None:
        """Serve the same under other rules, and drop the old version afterwards, as an edit does."""
        old, self._routing = self._routing, self._under(rules)
        self.edit()
        old.apply("management", [])

    async def ask(self) -> Answer:
        return await ask(ReverseProxy(self._routing))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.heads)
        self.heads.append([])
        try:
            while True:
                self.heads[number].append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.ends.put_nowait(number)
            writer.close()


@asynccontextmanager
async def edited() -> AsyncIterator[Edited]:
    made = Edited(0)
    async with asyncio.timeout(WAIT), await asyncio.start_server(made.serve, "127.0.0.1", 0) as server:
        made.port = server.sockets[0].getsockname()[1]
        made.edit()
        try:
            yield made
        finally:
            made.pools.close()


class Strict:
    """A plugin's settings for a target."""


async def allow(_exchange: object) -> Any:
    return ALLOW


def guarded(made: Edited) -> RouteSpec:
    made.hooks.steps["restrict"] = [("gate", Guard(allow))]
    return route(to=made.target())


SAME_WAY: dict[str, Callable[[Edited], RouteSpec]] = {
    "the path": lambda made: route(to=made.target(path=b"/elsewhere")),
    "the prefix": lambda made: route(to=made.target(), strip_prefix=True),
    "custom headers": lambda made: route(to=made.target(custom_headers=((b"x-team", b"blue"),))),
    "the log": lambda made: route(to=made.target(disable_access_log=True)),
    "a plugin's settings": lambda made: route(to=made.target(values={Strict: Strict()})),
    "a guard": guarded,
}


@pytest.mark.parametrize("change", SAME_WAY)
async def test_an_edit_that_changes_no_way_keeps_the_connection(change: str) -> None:
    """The next request after the edit goes out on the connection of the one before."""
    async with edited() as made:
        assert (await made.ask()).status == 200
        made.edit(SAME_WAY[change](made))
        assert (await made.ask()).status == 200
        assert [len(heads) for heads in made.heads] == [2]
        assert made.ends.empty()


@dataclass(frozen=True)
class Marked:
    """A plugin's dialer whose value is a setting of the service."""

    mark: str

    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        return await HostDialer().dial(protocol_factory, address, timeout=timeout)


def redialed(made: Edited) -> RouteSpec:
    made.hooks.the_dialer = ("host", Marked("blue"))
    return route(to=made.target())


OTHER_WAY: dict[str, Callable[[Edited], RouteSpec]] = {
    "verification": lambda made: route(to=made.target(skip_tls_verify=True)),
    "roots": lambda made: route(to=made.target(ca="PEM")),
    "the name of the certificate": lambda made: route(to=made.target(server_name="b.example")),
    "the time to connect": lambda made: route(to=made.target(dial_timeout=3.0)),
    "the dialer": redialed,
}


@pytest.mark.parametrize("change", OTHER_WAY)
async def test_an_edit_that_changes_the_way_closes_the_connection(change: str) -> None:
    """The next request gets a connection of its own, and the old one ends after the grace period."""
    async with edited() as made:
        assert (await made.ask()).status == 200
        made.edit(OTHER_WAY[change](made))
        assert await made.ends.get() == 0
        assert (await made.ask()).status == 200
        assert [len(heads) for heads in made.heads] == [1, 1]


async def test_another_account_gets_no_kept_connection() -> None:
    """A service that moves to another account does not inherit the connections."""
    async with edited() as made:
        assert (await made.ask()).status == 200
        spec = replace(route(to=made.target()), account=AccountId("other"))
        made.edit(spec, account="other")
        assert (await made.ask()).status == 200
        assert [len(heads) for heads in made.heads] == [1, 1]


async def test_promise_6_a_kept_connection_leads_around_no_judgement() -> None:
    """The address was allowed, its connection is idle, the rules close it: nothing more is sent there."""
    async with edited() as made:
        assert (await made.ask()).status == 200

        made.change_rules(AddressRules([NetworkOptions()], lambda: ()))

        assert (await made.ask()).status == 502
        assert sum(map(len, made.heads)) == 1


async def test_promise_6_an_address_that_became_our_own_gets_no_kept_connection() -> None:
    """As before, where what closes the address is a listener of this proxy."""
    async with edited() as made:
        assert (await made.ask()).status == 200

        made.change_rules(AddressRules([OPEN], lambda: (Address("127.0.0.1", made.port),)))

        assert (await made.ask()).status == 502
        assert sum(map(len, made.heads)) == 1


class Broken:
    """A plugin's dialer that cannot be compared."""

    def __init__(self, raises: type[BaseException]) -> None:
        self._raises = raises

    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        return await HostDialer().dial(protocol_factory, address, timeout=timeout)

    def __eq__(self, other: object) -> bool:
        raise self._raises("no")

    def __hash__(self) -> int:
        raise self._raises("no")


@pytest.mark.parametrize("raises", [ValueError, SystemExit])
async def test_promise_11_a_dialer_that_cannot_be_compared_harms_nobody(raises: type[BaseException]) -> None:
    """Services with such dialers are served, each on connections of its own."""
    async with edited() as made:
        for name in ("a", "b"):
            made.hooks.the_dialer = ("host", Broken(raises))
            made.edit(
                route(to=made.target(), host=f"{name}.example", service=ServiceId(name)),
                id=name,
                host=f"{name}.example",
            )
            answer = await ask(ReverseProxy(made._routing), headers=[(b"host", f"{name}.example".encode())])
            assert answer.status == 200
        assert [len(heads) for heads in made.heads] == [1, 1]


async def test_a_refused_edit_keeps_no_connection() -> None:
    """A service that is closed by an edit has no way any more."""
    async with edited() as made:
        assert (await made.ask()).status == 200
        made._routing.update("management", [mapping(route(to=made.target()), digest=b"x", refused="closed")])
        assert await made.ends.get() == 0
        assert (await made.ask()).status == 503
