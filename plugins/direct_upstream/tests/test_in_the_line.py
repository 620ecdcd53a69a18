"""The plugin beside other plugins, with real routes, pools and sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from netbird_direct_upstream.proxy import DirectUpstream, DirectUpstreamOptions
from netbird_proxy import Dialer, NetworkOptions, PluginInfo, Proxy, RouteSpec, ServiceMapping, Upstream, hookimpl
from netbird_proxy.app import ReverseProxy
from netbird_proxy.defaults import DEFAULTS
from netbird_proxy.pipeline.ending import Environment
from netbird_proxy.routing.apply import Routing
from netbird_proxy.routing.compile import Compiler
from netbird_proxy.routing.hooks import load_hooks
from netbird_proxy.sources.decode.claims import CORE_CLAIMS
from netbird_proxy.sources.decode.codec import Codec
from netbird_proxy.testing.asgi import Answer, Client
from netbird_proxy.testing.fakes import FakeProxy
from netbird_proxy.testing.makers import host_origin
from netbird_proxy.upstreams.pool import UpstreamPool
from netbird_proxy.upstreams.pools import Pools
from netbird_wire.direct_upstream import set_direct
from netbird_wire.proxy_service_pb2 import PathMapping, ProxyMapping

CLOSED = DirectUpstreamOptions()
OPEN = DirectUpstreamOptions.model_validate({"allow": [{"accounts": ["*"], "networks": ["127.0.0.1/32"]}]})


class First:
    """Another plugin that dials every target from this machine, without a check of addresses."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl(tryfirst=True)
    def dialer(self, route: RouteSpec, upstream: Upstream, proxy: Proxy) -> Dialer:
        return proxy.host_dialer()


@dataclass
class Behind:
    """An upstream on 127.0.0.1."""

    port: int = 0
    requests: list[bytes] = field(default_factory=list)


@pytest_asyncio.fixture
async def behind() -> AsyncIterator[Behind]:
    upstream = Behind()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            upstream.requests.append(data)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        upstream.port = server.sockets[0].getsockname()[1]
        yield upstream


class Line:
    """The parts of a proxy from the mapping to the upstream's socket."""

    def __init__(self, options: NetworkOptions, *plugins: tuple[str, object]) -> None:
        self.proxy = FakeProxy(options=[options])
        self.hooks = load_hooks(plugins, defaults=DEFAULTS, core_claims=CORE_CLAIMS)
        self.pools = Pools(UpstreamPool)
        environment = Environment(count=self.proxy.count)
        self.routing = Routing(Compiler(self.hooks, self.proxy, self.pools, environment, rules=self.proxy.rules))
        self.app = ReverseProxy(self.routing, recognizes=lambda _origin: True, notes=self.hooks.notes)

    def apply(self, *mappings: ProxyMapping) -> None:
        decoded: list[ServiceMapping] = [Codec(self.hooks).decode(one, source="management").mapping for one in mappings]
        reports = self.routing.apply("management", decoded)
        assert [report.refused for report in reports if report.refused] == []

    async def ask(self, host: str = "svc-1.example") -> Answer:
        return await Client("GET", "/", host=host, origin=host_origin()).ask(self.app)


@asynccontextmanager
async def line(options: NetworkOptions, *plugins: tuple[str, object]) -> AsyncIterator[Line]:
    made = Line(options, *plugins)
    async with made.hooks.running(made.proxy):
        yield made
    made.pools.close()
    await asyncio.sleep(0)  # the idle connections' ends


def mapping(service: str, port: int, *, path: str = "/") -> ProxyMapping:
    target = PathMapping(path=path, target=f"http://localhost:{port}")
    set_direct(target.options, True)
    return ProxyMapping(id=service, account_id="acct", domain=f"{service}.example", path=[target])


async def test_promise_6_a_first_dialer_does_not_lead_around_the_rules(behind: Behind) -> None:
    """A plugin with its own dialer that runs first reaches only addresses that the operator opened."""
    plugins = [("direct_upstream", DirectUpstream()), ("first", First())]
    async with line(CLOSED, *plugins) as closed:
        closed.apply(mapping("svc-1", behind.port))
        answer = await closed.ask()
        assert (answer.status, b"address_refused" in answer.body) == (502, True)
    assert behind.requests == []

    async with line(OPEN, *plugins) as opened:
        opened.apply(mapping("svc-1", behind.port))
        assert (await opened.ask()).status == 200


@pytest.mark.parametrize("plugins", [("direct",), ("direct", "first")])
async def test_equal_dialers_share_a_pool_that_outlives_a_change(behind: Behind, plugins: tuple[str, ...]) -> None:
    """Two services with one target share a pool, and a service that is applied again keeps its idle connection."""
    loaded: dict[str, tuple[str, object]] = {
        "direct": ("direct_upstream", DirectUpstream()),
        "first": ("first", First()),
    }
    async with line(OPEN, *(loaded[name] for name in plugins)) as made:
        made.apply(mapping("svc-1", behind.port), mapping("svc-2", behind.port))
        assert (await made.ask("svc-1.example")).status == 200
        assert (await made.ask("svc-2.example")).status == 200
        changed = mapping("svc-1", behind.port)
        changed.pass_host_header = True
        made.apply(changed, mapping("svc-2", behind.port))
        assert (await made.ask("svc-1.example")).status == 200

        assert len(made.pools) == 1
    assert len(behind.requests) == 3
