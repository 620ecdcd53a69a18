"""The proxy in a program or another server: its own mappings and plugins, nothing private, nothing half started."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from netbird_proxy import ALLOW, Claim, Decision, Deny, ExchangeView, Guard, PluginInfo, Proxy, RouteSpec, hookimpl
from netbird_proxy.api.errors import (
    ManagementUnavailable,
    PluginFailed,
    RouteRefused,
    SettingsError,
    TunnelNotReady,
)
from netbird_proxy.api.model import AccountId, Address
from netbird_proxy.embedding import EmbeddedProxy
from netbird_proxy.testing.asgi import ask
from netbird_proxy.testing.makers import mapping
from netbird_proxy.testing.upstreams import ScriptedServer
from netbird_wire.proxy_service_pb2 import PathMapping, ProxyMapping

REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


class Direct:
    """Dials everything from this machine, and refuses one path: a plugin of the embedding program's own."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(claims=(Claim("path.options.direct_upstream"),))

    @hookimpl
    def lifespan(self, proxy: Proxy) -> Any:
        @asynccontextmanager
        async def running() -> Any:
            self.ran.append("start")
            yield
            self.ran.append("stop")

        return running()

    @hookimpl
    def restrict(self, route: RouteSpec) -> Guard:
        async def not_there(exchange: ExchangeView) -> Decision:
            return Deny(403, "closed") if exchange.raw_path == b"/closed" else ALLOW

        return Guard(not_there)

    @hookimpl
    def dialer(self, proxy: Proxy) -> Any:
        return proxy.host_dialer()


def served(port: int) -> ProxyMapping:
    target = PathMapping(path="/", target=f"http://127.0.0.1:{port}")
    return ProxyMapping(id="svc-1", account_id="acct-1", domain="App.Example.com", path=[target])


async def test_program_calls_it_in_process() -> None:
    """Plugins start before it serves and stop after; its guards guard; a change is in force when apply returns."""
    plugin = Direct()
    async with ScriptedServer.serving(lambda _head: REPLY) as server, asyncio.timeout(20):
        app = EmbeddedProxy([served(server.port)], [("direct", plugin)])
        assert (await ask(app, own=False)).status == 404
        async with app.running():
            assert plugin.ran == ["start"]
            answer = await ask(app, "GET", "/x", own=False)
            assert (answer.status, answer.body) == (200, b"hello")
            assert (await ask(app, "GET", "/closed", own=False)).status == 403
            app.apply([])
            assert (await ask(app, own=False)).status == 404
        assert plugin.ran == ["start", "stop"]
        app.apply([served(server.port)])
        assert (await ask(app, own=False)).status == 404


async def test_mapping_as_the_wire_says_it() -> None:
    """A program that has no model of its own may say it as management would."""
    async with (
        asyncio.timeout(20),
        ScriptedServer.serving(lambda _head: REPLY) as server,
        EmbeddedProxy([served(server.port)], [("direct", Direct())]).running() as app,
    ):
        assert (await ask(app, own=False)).body == b"hello"


async def test_private_mapping_is_refused() -> None:
    """There is no tunnel that it could be reached through, and nobody else to tell."""
    said = ProxyMapping(
        id="svc-1", account_id="acct-1", domain="app.example.com", private=True, path=[PathMapping(target="http://a:1")]
    )
    with pytest.raises(RouteRefused, match="svc-1"):
        async with EmbeddedProxy([said], ["private_service", ("direct", Direct())]).running():
            raise AssertionError
    with pytest.raises(PluginFailed):
        EmbeddedProxy([], ["no_such_plugin"])


async def test_heads_are_judged_again() -> None:
    """It repeats the head checks that its server may have left out."""
    async with ScriptedServer.serving(lambda _head: REPLY) as server, asyncio.timeout(20):
        async with EmbeddedProxy([served(server.port)], [("direct", Direct())]).running() as app:
            assert (await ask(app, "GET", "/a/../b", own=False)).status == 400
        assert server.received == []


async def test_host_says_what_it_has_not() -> None:
    """No management, no tunnels, no state: each says so instead of pretending."""
    proxy = EmbeddedProxy().proxy
    with pytest.raises(ManagementUnavailable):
        await proxy.management.call("X", None)
    with pytest.raises(ManagementUnavailable):
        _ = proxy.management.channel
    with pytest.raises(TunnelNotReady):
        await proxy.account_dialer(AccountId("a")).dial(asyncio.Protocol, Address("a", 1), timeout=1.0)
    with pytest.raises(SettingsError):
        _ = proxy.state_directory
    assert proxy.tunnel(AccountId("a")) is None
    assert proxy.generation(AccountId("a")) == 0
    assert proxy.management.metadata() == ()
    assert list(proxy.listening_addresses()) == []


async def test_mounted_in_uvicorn() -> None:
    """Its lifespan starts and stops it; in between it serves."""
    plugin = Direct()
    async with ScriptedServer.serving(lambda _head: REPLY) as server, asyncio.timeout(20):
        app = EmbeddedProxy([served(server.port)], [("direct", plugin)])
        config = uvicorn.Config(app, host="127.0.0.1", port=0, lifespan="on", log_config=None, proxy_headers=False)
        config.load()
        running = uvicorn.Server(config)
        running.lifespan = config.lifespan_class(config)
        await running.startup()
        port = running.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: app.example.com\r\nconnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b"hello")
        writer.close()
        await running.shutdown()
        assert plugin.ran == ["start", "stop"]


@pytest.mark.parametrize(
    "mappings", [[mapping(refused="no")], [served(1), mapping(id="svc-2", host="b.example.com", refused="no")]]
)
async def test_start_that_fails_says_so(mappings: Any) -> None:
    """A server whose application cannot start must not serve."""
    app = EmbeddedProxy(mappings, [("direct", Direct())])
    said: list[Any] = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        said.append(message)

    await app({"type": "lifespan"}, receive, send)

    assert [one["type"] for one in said] == ["lifespan.startup.failed"]
    assert "RouteRefused" in said[0]["message"]
    assert (await ask(app, own=False)).status == 404
