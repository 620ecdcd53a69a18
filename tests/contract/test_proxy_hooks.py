"""Each hook of the proxy, by its example in `examples/plugins/proxy`: loaded as a plugin, called as the proxy does."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel, SecretStr
from typer.testing import CliRunner

from examples.plugins.proxy.authenticate import Robots, RobotsOptions
from examples.plugins.proxy.authorize import Editors
from examples.plugins.proxy.commands import HeaderCommands
from examples.plugins.proxy.describe import Greeting, GreetingOptions
from examples.plugins.proxy.dialer import UnixSockets, UnixSocketsOptions
from examples.plugins.proxy.endpoint import Whose
from examples.plugins.proxy.lifespan import Heartbeat
from examples.plugins.proxy.observe import Answers
from examples.plugins.proxy.open_tunnel import Interface, InterfaceOptions
from examples.plugins.proxy.pages import Brand, BrandOptions
from examples.plugins.proxy.restrict import OfficeHours
from examples.plugins.proxy.second_factor import Terms
from examples.plugins.proxy.select import FirstWrites
from examples.plugins.proxy.transform_request import RequestIds
from examples.plugins.proxy.transform_response import AnswerIds
from netbird_proxy import (
    AccountId,
    Address,
    Authenticator,
    Deny,
    DialFailed,
    DialRefused,
    Endpoint,
    ExchangeView,
    Identity,
    Offer,
    Page,
    Peer,
    PluginInfo,
    PublicKey,
    RouteRefused,
    ServiceMapping,
    Tunnel,
    hookimpl,
)
from netbird_proxy.api.errors import SettingsError
from netbird_proxy.api.host import ManagementChannel
from netbird_proxy.process.settings import read_settings
from netbird_proxy.routing.hooks import Hooks, load_hooks
from netbird_proxy.sources.decode.codec import Codec
from netbird_proxy.testing.fakes import FakeManagement, FakeProxy, HostDialer
from netbird_proxy.testing.makers import ACCOUNT, identity, route, upstream
from netbird_proxy.testing.transcript import Transcript
from netbird_proxy.testing.upstreams import ScriptedAnswer, ok
from netbird_wire.proxy_service_pb2 import PathMapping, ProxyMapping

WAIT = 10.0


class Host:
    """Dials everything from this machine, as the last to be asked."""

    @hookimpl(trylast=True)
    def dialer(self) -> HostDialer:
        return HostDialer()

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()


def loaded(plugin: object, *others: object) -> Hooks:
    return load_hooks([("example", plugin), *((f"other{i}", one) for i, one in enumerate(others)), ("host", Host())])


def play(plugin: object, *others: object, options: tuple[BaseModel, ...] = ()) -> Transcript:
    return Transcript(route(), hooks=loaded(plugin, *others), proxy=FakeProxy(options=options))


class Signed:
    """Vouches for whoever it was made for."""

    def __init__(self, who: Identity | None) -> None:
        self._who = who

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def authenticate(self) -> Authenticator:
        async def identify(_exchange: ExchangeView) -> Identity | None:
            return self._who

        return Authenticator("ambient", identify)


def test_describe(tmp_path: Path) -> None:
    """What a plugin declares is there for the proxy: its section is read, its notes may be left."""
    hooks = load_hooks([("greeting", Greeting())])
    file = tmp_path / "proxy.toml"
    file.write_text(
        'private = true\n[management]\nurl = "https://m.example"\ndomain = "p.example"\ntoken_file = "t"\n'
        '[greeting]\ntext = "hi"\n'
    )

    options = read_settings(file, environment={}).settings(hooks.options).options

    assert options["greeting"] == GreetingOptions(text="hi")
    assert hooks.notes == {"greeting"}
    file.write_text(file.read_text().replace("text =", "txet ="))
    with pytest.raises(SettingsError, match=r"greeting.txet: unknown setting; did you mean greeting.text"):
        read_settings(file, environment={}).settings(hooks.options)


async def test_lifespan(tmp_path: Path) -> None:
    """Work goes on between start and stop, and ends with the latter."""
    beaten = asyncio.Event()

    class Watched(FakeProxy):
        def count(self, name: str, amount: int = 1) -> None:
            super().count(name, amount)
            beaten.set()

    plugin = Heartbeat()
    plugin.interval = 0.001
    proxy = Watched(state_directory=tmp_path)

    async with loaded(plugin).running(proxy):
        assert (tmp_path / "alive").exists()
        await asyncio.wait_for(beaten.wait(), WAIT)

    assert proxy.counters["heartbeats"] >= 1
    assert not (tmp_path / "alive").exists()


@dataclass
class Account:
    """An account whose key registrations are remembered."""

    id: AccountId
    directory: Path
    management: ManagementChannel
    registered: list[PublicKey]
    generation: int = 0

    async def register(self, public_key: PublicKey, *, endpoint: str = "", serves_dns: bool = False) -> None:
        self.registered.append(public_key)


async def test_open_tunnel(tmp_path: Path) -> None:
    """The tunnel of one account listens, dials from its own address, and knows its peers; others have none."""
    options = InterfaceOptions(account=ACCOUNT, address="127.0.0.7", key="our-key", peers={"127.0.0.7": "their-key"})
    proxy = FakeProxy(options=[options])
    registered: list[PublicKey] = []
    hooks = loaded(Interface())

    other = Account(AccountId("other"), tmp_path, FakeManagement(), registered)
    assert hooks.open_tunnel(other, proxy) is None
    opened = hooks.open_tunnel(Account(ACCOUNT, tmp_path, FakeManagement(), registered), proxy)
    assert opened is not None
    context: AbstractAsyncContextManager[Tunnel] = opened[1]

    async with context as tunnel:
        assert registered == ["our-key"] == [tunnel.public_key]
        accepted: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        class Accept(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                accepted.set_result(transport.get_extra_info("peername")[0])
                transport.close()

        port = _free_port("127.0.0.7")
        listener = await tunnel.listen(port, Accept)
        transport, _ = await tunnel.dial(asyncio.Protocol, Address("127.0.0.7", port), timeout=WAIT)
        assert tunnel.whois(str(await asyncio.wait_for(accepted, WAIT))) == Peer(PublicKey("their-key"), ("127.0.0.7",))
        assert tunnel.whois("127.0.0.8") is None
        transport.close()
        listener.close()
        with pytest.raises(DialFailed):
            await tunnel.dial(asyncio.Protocol, Address("127.0.0.7", port), timeout=WAIT)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def unix_server(path: Path) -> AsyncIterator[None]:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    async with await asyncio.start_unix_server(greet, str(path)):
        yield


async def test_dialer(tmp_path: Path) -> None:
    """Its own upstreams are dialed its way, a bad one refuses the route, the rest is left to others."""
    hooks, proxy = loaded(UnixSockets()), FakeProxy(options=[UnixSocketsOptions(directory=tmp_path)])
    mine = upstream("http://wiki.sock.internal:80")
    found = hooks.dialer(route(to=mine), mine, proxy)
    assert found is not None
    assert found[0] == "example"

    async with unix_server(tmp_path / "wiki.sock"):
        received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        class Read(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                received.set_result(data)

        await found[1].dial(Read, mine.address, timeout=WAIT)
        assert await asyncio.wait_for(received, WAIT) == b"hello"
    (tmp_path / "wiki.sock").unlink(missing_ok=True)
    with pytest.raises(DialFailed, match="No such file"):
        await found[1].dial(asyncio.Protocol, mine.address, timeout=WAIT)

    bad = upstream("http://../../etc.sock.internal:80")
    with pytest.raises(RouteRefused, match="not a socket's name"):
        hooks.dialer(route(to=bad), bad, proxy)
    other = upstream()
    found = hooks.dialer(route(to=other), other, proxy)
    assert found is not None
    assert found[0] == "host"


def office(first: float, last: float) -> ProxyMapping:
    wire = ProxyMapping(id="svc-1", account_id=ACCOUNT, domain="app.example.com", mode="http")
    wire.path.append(PathMapping(path="/", target="http://10.0.0.7:8080/"))
    wire.plugin_settings["office_hours"].update({"first": first, "last": last})
    return wire


@pytest.mark.parametrize(("hour", "status"), [(7, 403), (8, 200), (17, 200), (18, 403)])
async def test_restrict(hour: int, status: int) -> None:
    """What management said of the service decides; whoever is refused is not dialed for."""
    hooks = loaded(OfficeHours(hour=lambda: hour))
    mapping = Codec(hooks).decode(office(8, 18), source="management").mapping
    transcript = Transcript(mapping, hooks=hooks)

    answer = await transcript.request()

    assert answer.status == status
    assert transcript.upstreams.dialed == (status == 200)


def test_restrict_is_never_left_out() -> None:
    """Settings that make no sense, or that nobody there understands, refuse the service."""
    assert "are none" in Codec(loaded(OfficeHours())).decode(office(18, 8), source="management").mapping.refused
    without = Codec(loaded(Answers())).decode(office(8, 18), source="management").mapping.refused
    assert "plugin_settings.office_hours" in without


async def test_endpoint() -> None:
    """Its paths are its own on every host, also where nobody may come in, and nothing of them is dialed."""
    transcript = Transcript(route(), hooks=loaded(Whose(), Exclusive()), notes=("whose",))

    answer = await transcript.request(target="/__netbird__/example/")
    assert (answer.status, json.loads(answer.body)["host"]) == (200, route().host)
    assert transcript.exchange.notes == {"whose": route().service}
    assert (await transcript.request(target="/__netbird__/example/other")).status == 404
    assert (await transcript.request(target="/__netbird__/unknown/")).status == 404
    assert (await transcript.request(target="/")).status == 403
    assert not transcript.upstreams.dialed


async def test_endpoint_keeps_to_its_place() -> None:
    """It is behind what restricts the host; not there on a private one unless it says so; and closed when it fails."""
    hooks = loaded(Whose(), OfficeHours(hour=lambda: 3))
    behind = Transcript(Codec(hooks).decode(office(8, 18), source="management").mapping, hooks=hooks, notes=("whose",))
    assert (await behind.request(target="/__netbird__/example/")).status == 403

    class Public:
        @hookimpl
        def describe(self) -> PluginInfo:
            return PluginInfo()

        @hookimpl
        def endpoint(self, host: ServiceMapping) -> Endpoint:
            async def app(_scope: object, _receive: object, _send: object) -> None:
                raise RuntimeError("broken")

            return Endpoint(app)

    assert (await play(Public(), Exclusive()).request(target="/__netbird__/example/")).status == 404
    broken = await play(Public()).request(target="/__netbird__/example/")
    assert (broken.status, b"broken" in broken.body) == (503, False)


class Exclusive:
    """Lets nobody in, and alone decides."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def authenticate(self) -> Authenticator:
        async def identify(_exchange: ExchangeView) -> Deny:
            return Deny(403, "nobody", "by nature")

        return Authenticator("exclusive", identify)


async def test_pages() -> None:
    """A browser gets the page, a program what programs get, and a page that fails costs nobody the answer."""
    transcript = play(
        Brand(), Offering(Offer("door", "The door", "/__netbird__/other0/")), options=(BrandOptions(name="A & B"),)
    )

    page = await transcript.request(headers=[(b"accept", b"text/html,*/*")])
    assert page.status == 401
    assert b"<h1>A &amp; B</h1>" in page.body
    assert b'<a href="/__netbird__/other0/">The door</a>' in page.body
    assert transcript.exchange.id.encode() in page.body
    program = await transcript.request(headers=[(b"accept", b"application/json")])
    assert json.loads(program.body)["methods"] == {"door": "/__netbird__/other0/"}

    class Torn:
        @hookimpl
        def describe(self) -> PluginInfo:
            return PluginInfo()

        @hookimpl
        def pages(self) -> object:
            def page(_what: Page) -> object:
                raise RuntimeError("torn")

            return page

    torn = await play(Torn(), Exclusive()).request(headers=[(b"accept", b"text/html")])
    assert (torn.status, b"torn" in torn.body) == (403, False)


class Offering:
    """Offers ways to log in."""

    def __init__(self, *offers: Offer) -> None:
        self._offers = offers

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def authenticate(self) -> Authenticator:
        async def identify(_exchange: ExchangeView) -> tuple[Offer, ...]:
            return self._offers

        return Authenticator("prompt", identify)


async def test_authenticate_offers() -> None:
    """Offers of all are one answer; the only one, where it asks nothing, is a way; and none leads to another site."""
    way = Offer("sso", "Single sign-on", "/__netbird__/other0/start", automatic=True)
    form = Offer("door", "The door", "/__netbird__/other1/")
    browser = [(b"accept", b"text/html"), (b"sec-fetch-mode", b"navigate")]

    both = await play(Offering(way), Offering(form)).request(headers=[(b"accept", b"application/json")])
    assert (both.status, list(json.loads(both.body)["methods"])) == (401, ["sso", "door"])
    alone = await play(Offering(way)).request(headers=browser)
    assert (alone.status, alone.get(b"location")) == (302, b"/__netbird__/other0/start")
    assert (await play(Offering(way)).request("POST", headers=browser)).status == 401
    assert (await play(Offering(way)).request(headers=[(b"sec-fetch-mode", b"cors")])).status == 401
    assert (await play(Offering(way, form), Signed(identity("a"))).request()).status == 200
    elsewhere = Offer("sso", "Single sign-on", "https://evil.example/")
    assert (await play(Offering(elsewhere)).request()).status == 503


@pytest.mark.parametrize(
    ("headers", "who"),
    [([], "nobody"), ([(b"x-robot-key", b"k1")], "robot-builder"), ([(b"x-robot-key", b"k2")], None)],
)
async def test_authenticate(headers: list[tuple[bytes, bytes]], who: str | None) -> None:
    """A right key names its robot, a wrong one ends the exchange, none leaves it to the next authenticator."""
    options = RobotsOptions(keys={"builder": SecretStr("k1")})
    transcript = play(Robots(), Signed(identity("nobody")), options=(options,))

    answer = await transcript.request(headers=headers)

    assert answer.status == (200 if who else 401)
    found = transcript.exchange.identity
    assert (found.user_id if found else None) == who


@pytest.mark.parametrize(
    ("method", "groups", "status"), [("GET", [], 200), ("PUT", [], 403), ("PUT", ["editors"], 200)]
)
async def test_authorize(method: str, groups: list[str], status: int) -> None:
    """Only members change things; everybody looks."""
    transcript = play(Editors(), Signed(identity(groups={name: name for name in groups})))

    assert (await transcript.request(method)).status == status
    assert transcript.upstreams.dialed == (status == 200)


async def test_authorize_may_ask() -> None:
    """Somebody who is known is asked once more, by the page that asks for logins; a program hears where to go."""
    hooks = loaded(Terms(), Signed(identity()))
    transcript = Transcript(route(), hooks=hooks, cookies=hooks.cookies)

    asked = await transcript.request(headers=[(b"accept", b"application/json")])
    assert (asked.status, json.loads(asked.body)["methods"]) == (401, {"terms": "/__netbird__/example/accept"})
    assert not transcript.upstreams.dialed
    accepted = await transcript.request(target="/__netbird__/example/accept")
    assert accepted.status == 303
    cookie = (accepted.get(b"set-cookie") or b"").partition(b";")[0]
    assert (await transcript.request(headers=[(b"cookie", cookie)])).status == 200
    both = play(Editors(), Terms(), Signed(identity()))
    assert (await both.request("PUT", headers=[(b"cookie", cookie)])).status == 403


async def test_transform_request() -> None:
    """The upstream gets our id and nobody else's, under any spelling."""
    transcript = play(RequestIds())

    await transcript.request(headers=[(b"X-Request-Id", b"forged"), (b"x_request_id", b"forged")])

    sent = transcript.upstreams.last
    assert sent.get(b"x-request-id") == [transcript.exchange.id.encode()]
    assert b"forged" not in sent.head


async def test_select() -> None:
    """Reads go to the copies, and to the first upstream if no copy is there; a write is never sent to a copy."""
    both = (upstream("http://10.0.0.1:80"), upstream("http://10.0.0.2:80"))
    hooks = loaded(FirstWrites(), Signed(identity()))
    refused = DialRefused("x")
    transcript = Transcript(route(to=both), hooks=hooks, upstream=[ok(), refused, ok(), ok(), refused])

    async def dialed(method: str) -> tuple[int, list[str]]:
        answer = await transcript.request(method)
        return answer.status, [attempt.upstream.address.host for attempt in transcript.exchange.tries]

    assert await dialed("GET") == (200, ["10.0.0.2"])
    assert await dialed("GET") == (200, ["10.0.0.2", "10.0.0.1"])
    assert await dialed("POST") == (200, ["10.0.0.1"])
    assert await dialed("POST") == (503, ["10.0.0.1"])


async def test_transform_response() -> None:
    """The client gets our id in place of the upstream's, and with a refusal too."""
    upstream = ScriptedAnswer(headers=[(b"content-length", b"0"), (b"X-Request-ID", b"forged")])
    transcript = Transcript(route(), hooks=loaded(AnswerIds(), Signed(identity()), Editors()), upstream=[upstream])

    answer = await transcript.request()
    assert answer.headers == [(b"content-length", b"0"), (b"x-request-id", transcript.exchange.id.encode())]
    refused = await transcript.request("PUT")
    assert (refused.status, refused.get(b"x-request-id")) == (403, transcript.exchange.id.encode())


async def test_observe() -> None:
    """Every exchange is seen once, those without a route too."""
    proxy = FakeProxy()
    transcript = Transcript(route(), hooks=loaded(Answers()), proxy=proxy)

    await transcript.request()
    await transcript.request(host="nowhere.example.com")

    assert {name: n for name, n in proxy.counters.items() if name.startswith("answers")} == {
        "answers_2xx": 1,
        "answers_4xx": 1,
    }


def test_commands() -> None:
    """The commands run under the plugin's name, as `netbird-proxy` mounts them."""
    root = typer.Typer()
    for name, command in loaded(HeaderCommands()).commands():
        root.add_typer(command, name=name)

    assert CliRunner().invoke(root, ["example", "fold", "X_NetBird.User"]).output == "x-netbird-user\n"
    assert CliRunner().invoke(root, ["example", "same", "X-A", "x_a"]).exit_code == 0
    assert CliRunner().invoke(root, ["example", "same", "X-A", "X-B"]).exit_code == 1
