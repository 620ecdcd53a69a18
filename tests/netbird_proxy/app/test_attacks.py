"""The corpus of attacks, played over sockets against a whole proxy with every plugin of ours, on both listeners."""

from __future__ import annotations

import asyncio
import codecs
import importlib.util
import sys
import tomllib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import BaseModel

from netbird_direct_upstream.proxy import AllowEntry, DirectUpstreamOptions
from netbird_proxy.app import ReverseProxy
from netbird_proxy.control.claims import CORE_CLAIMS
from netbird_proxy.control.codec import Codec
from netbird_proxy.defaults import DEFAULTS
from netbird_proxy.defaults.access_log import AccessLogOptions
from netbird_proxy.defaults.forwarding import ForwardingOptions
from netbird_proxy.dialing.pools import UpstreamPool
from netbird_proxy.headers import fold
from netbird_proxy.listening.connections import Connections
from netbird_proxy.listening.origins import Origins
from netbird_proxy.listening.sockets import serve_host
from netbird_proxy.listening.tunnels import HTTP_PORT, serve_inside
from netbird_proxy.model import AccountId, Address
from netbird_proxy.pipeline.pipeline import Environment
from netbird_proxy.plugins import load_hooks
from netbird_proxy.routing.apply import Routing
from netbird_proxy.routing.compile import Compiler
from netbird_proxy.routing.pools import Pools
from netbird_proxy.testing.fakes import FakeManagement, FakeProxy
from netbird_tunnel_netstack.testing import Recorder, tunnel_pair
from netbird_wire.direct_upstream import set_direct
from netbird_wire.proxy_service_pb2 import PathMapping, Principal, ProxyMapping, ValidateTunnelPeerResponse

CORPUS = Path(__file__).parents[2] / "corpus" / "attacks"
DATA = tomllib.loads((CORPUS / "attacks.toml").read_text())
RULES: dict[str, str] = DATA["rules"]
ACCOUNT = AccountId("acct-1")
PLUGINS = ("private_service", "identity_headers", "direct_upstream", "tunnel_netstack")
WAIT = 20.0
CUT = [0]
"""In `answers`: the request is given up. No whole one reaches the upstream, and no answer but a 4xx the client."""

GRANT = ValidateTunnelPeerResponse(
    valid=True,
    user_id="user-1",
    user_email="alice@example.com",
    session_token="token",
    peer_group_ids=["g1", "g2"],
    peer_group_names=["All", "engineering"],
    principal=Principal(user_id="user-1", peer_id="peer-1", peer_name="laptop"),
)


def raw(text: str) -> bytes:
    return codecs.decode(text, "unicode_escape").encode("latin-1")


# The upstream ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Seen:
    """One request as the upstream got it, to the byte."""

    line: str
    fields: list[tuple[bytes, bytes]]
    body: bytes

    def get(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key == name]


@dataclass(slots=True)
class Upstream:
    """What came in, on whichever connection. `unfinished` are the bytes of requests that never got whole."""

    seen: list[Seen] = field(default_factory=list)
    bytes: bytearray = field(default_factory=bytearray)
    open: set[Recording] = field(default_factory=set)


class Recording(asyncio.Protocol):
    """Reads as strictly as can be: whatever is not plain HTTP/1.1 with one framing fails the case."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.upstream.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.upstream.open.discard(self)

    def data_received(self, data: bytes) -> None:
        self.upstream.bytes += data
        self.buffer += data
        while (found := whole(bytes(self.buffer))) is not None:
            one, size = found
            del self.buffer[:size]
            self.upstream.seen.append(one)
            body = b"" if one.line.startswith("HEAD ") else b"ok"
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def whole(data: bytes) -> tuple[Seen, int] | None:
    """The first request, and how many bytes it has; None while it is not complete."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return None
    line, *field_lines = head.split(b"\r\n")
    fields = [(name, value) for one in field_lines for name, _, value in [one.partition(b": ")]]
    framings = [(name, value) for name, value in fields if name in (b"content-length", b"transfer-encoding")]
    body, used = b"", 0
    if framings and framings[0][0] == b"content-length":
        used = int(framings[0][1])
        if len(rest) < used:
            return None
        body = rest[:used]
    elif framings:
        while True:
            size, mark, _ = rest[used:].partition(b"\r\n")
            if not mark:
                return None
            used += len(size) + 2
            number = int(size, 16)
            if not number:
                break
            if len(rest) < used + number + 2:
                return None
            body += rest[used : used + number]
            assert rest[used + number : used + number + 2] == b"\r\n"
            used += number + 2
        while True:
            trailer, mark, _ = rest[used:].partition(b"\r\n")
            if not mark:
                return None
            used += len(trailer) + 2
            if not trailer:
                break
            name, _, value = trailer.partition(b": ")
            fields.append((b"trailer " + name, value))
    method, target, version = line.split(b" ")
    assert version == b"HTTP/1.1"
    return Seen(f"{method.decode()} {target.decode()}", fields, body), len(head) + 4 + used


ONCE = {
    *(b"host", b"content-length", b"transfer-encoding", b"x-forwarded-for", b"x-real-ip", b"x-forwarded-host"),
    *(b"x-forwarded-proto", b"x-forwarded-port", b"forwarded", b"via", b"cookie", b"x-netbird-user"),
    *(b"x-netbird-groups", b"connection", b"upgrade", b"te"),
}
HEAD_LINE = rb"[!#$%&'*+.^_`|~0-9a-z-]+: [^\r\n\0]*"


def check(one: Seen, client: str, identity: list[tuple[bytes, bytes]], port: int) -> None:
    """What holds of each request, whatever the case."""
    names = Counter(fold(name) for name, _ in one.fields)
    assert {name: times for name, times in names.items() if name in ONCE and times > 1} == {}
    assert one.get(b"host") == [b"127.0.0.1:%d" % port]
    assert (b"content-length" in names) + (b"transfer-encoding" in names) <= 1
    assert one.get(b"x-forwarded-for") == one.get(b"x-real-ip") == [client.encode()]
    assert one.get(b"x-forwarded-proto") == [b"http"]
    assert [pair for pair in one.fields if fold(pair[0]).startswith((b"x-netbird-", b"trailer x-netbird-"))] == identity
    forwarding = [name for name in names if b"forwarded" in name or b"real-ip" in name]
    assert sorted(forwarding) == sorted(
        [*(b"x-forwarded-" + one for one in (b"for", b"host", b"proto", b"port")), b"x-real-ip"]
    )
    assert all(name == name.lower() and name.strip() == name for name, _ in one.fields)


# The proxy ------------------------------------------------------------------------------------------------------------

Ask = Callable[[bytes], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Stage:
    """A listener with everything behind it."""

    ask: Ask
    upstream: Upstream
    client: str
    identity: list[tuple[bytes, bytes]]
    port: int
    counters: Counter[str]


def mapping(port: int, *, private: bool) -> ProxyMapping:
    found = ProxyMapping(id="svc-1", account_id=ACCOUNT, domain="app.example", private=private)
    for path, base in (("/", "/"), ("/api", "/base/")):
        one = PathMapping(path=path, target=f"http://127.0.0.1:{port}{base}")
        set_direct(one.options, True)
        found.path.append(one)
    return found


@asynccontextmanager
async def staged(listener: str, *options: BaseModel) -> AsyncIterator[Stage]:
    """On the host listener the service is public; in the tunnel it is private, and the client a member."""
    inside = listener == "tunnel"
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        upstream = Upstream()
        recording = await loop.create_server(lambda: Recording(upstream), "127.0.0.1", 0)
        await stack.enter_async_context(recording)
        port = recording.sockets[0].getsockname()[1]
        client, tunnel = await stack.enter_async_context(tunnel_pair())
        proxy = FakeProxy(
            management=FakeManagement({"ValidateTunnelPeer": GRANT}),
            tunnels={ACCOUNT: tunnel},
            options=[
                DirectUpstreamOptions(allow=(AllowEntry(accounts=("*",), networks=("127.0.0.1/32",)),)),
                AccessLogOptions(output="off", management=False),
                *options,
            ],
        )
        hooks = load_hooks(PLUGINS, defaults=DEFAULTS, core_claims=CORE_CLAIMS)
        await stack.enter_async_context(hooks.running(proxy))
        pools = Pools(UpstreamPool)
        stack.callback(pools.close)
        routing = Routing(Compiler(hooks, proxy, pools, Environment(count=proxy.count), cookies=hooks.cookies))
        decoded = Codec(hooks).decode(mapping(port, private=inside), source="management").mapping
        (report,) = routing.apply("management", [decoded])
        assert report.ok, report.refused
        origins = Origins()
        app = ReverseProxy(routing, recognizes=origins.recognizes, notes=hooks.notes)
        app.trusted = proxy.trusted
        connections = Connections(
            app, origins=origins, listener=listener, account=ACCOUNT if inside else None, count=proxy.count
        )
        identity: list[tuple[bytes, bytes]] = []
        if inside:
            serving: Any = await serve_inside(connections, tunnel, tls=None)
            identity = [(b"x-netbird-user", b"alice@example.com"), (b"x-netbird-groups", b"All,engineering")]

            async def ask(sent: bytes) -> bytes:
                recorder = Recorder()
                await client.dial(lambda: recorder, Address(tunnel.addresses[0], HTTP_PORT), timeout=WAIT)
                recorder.transport.write(sent)
                recorder.transport.write_eof()
                await recorder.lost
                return bytes(recorder.received)

        else:
            serving = await serve_host(connections, Address("127.0.0.1", 0))

            async def ask(sent: bytes) -> bytes:
                reader, writer = await asyncio.open_connection(*serving.address)
                writer.write(sent)
                writer.write_eof()
                received = b""
                try:
                    while data := await reader.read(65536):
                        received += data
                except ConnectionResetError:
                    pass
                writer.close()
                return received

        try:
            yield Stage(ask, upstream, client.addresses[0] if inside else "127.0.0.1", identity, port, proxy.counters)
        finally:
            serving.close()
            await serving.drain(1.0)
            routing.apply("management", [])


def statuses(received: bytes) -> list[int]:
    """The final answers on a connection, each as it is framed. What follows the last one fails the case."""
    found: list[int] = []
    while received:
        head, end, rest = received.partition(b"\r\n\r\n")
        assert end, f"half an answer: {received!r}"
        line, *lines = head.split(b"\r\n")
        assert line.startswith(b"HTTP/1.1 ")
        status = int(line[9:12])
        fields = {name.lower(): value for one in lines for name, _, value in [one.partition(b": ")]}
        received = rest[int(fields.get(b"content-length", b"0")) :]
        if status >= 200:
            found.append(status)
    return found


# The tests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listener", ["host", "tunnel"])
@pytest.mark.parametrize("rule", RULES)
async def test_attack_comes_to_nothing(rule: str, listener: str) -> None:
    """Refused before anything is dialed, or forwarded as what it is and nothing else; see the corpus's README."""
    cases = [case for case in DATA["attack"] if case["rule"] == rule]
    assert cases
    async with staged(listener) as stage:
        for case in cases:
            sent = raw(case["bytes"])
            stage.upstream.seen.clear()
            stage.upstream.bytes.clear()
            async with asyncio.timeout(WAIT):
                received = await stage.ask(sent)
            judge(case, sent, received, stage)


def judge(case: dict[str, Any], sent: bytes, received: bytes, stage: Stage) -> None:
    upstream, expected = stage.upstream, case["answers"]
    told = f"{RULES[case['rule']]}: {sent[:300]!r}"
    assert b"mallory" not in upstream.bytes, told
    assert b"mallory" not in received, told
    if expected == CUT:
        assert [status for status in statuses(received) if not 400 <= status < 500] == [], told
        assert [one.line for one in upstream.seen] == [], told
        assert b"/second" not in upstream.bytes, told
        return
    assert statuses(received) == expected, told
    assert [one.line for one in upstream.seen] == case.get("upstream", []), told
    if not upstream.seen:
        assert not upstream.bytes, told
    for one in upstream.seen:
        check(one, stage.client, stage.identity, stage.port)
    if upstream.seen:
        first = upstream.seen[0]
        assert first.body == raw(case.get("body", "")), told
        for wanted in case.get("has", []):
            name, _, value = raw(wanted).partition(b": ")
            assert first.get(name) == [value], told


@pytest.mark.parametrize("listener", ["host", "tunnel"])
async def test_trust_never_reaches_into_a_tunnel(listener: str) -> None:
    """Whoever is trusted: a tunnel's peer is who WireGuard says, and a host's peer may speak for others."""
    trusting = ForwardingOptions(trusted_proxies=("127.0.0.0/8", "100.64.0.0/10"))
    sent = b"GET /x HTTP/1.1\r\nHost: app.example\r\nX-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n\r\n"
    async with staged(listener, trusting) as stage, asyncio.timeout(WAIT):
        assert statuses(await stage.ask(sent)) == [200]

    (one,) = stage.upstream.seen
    if listener == "host":
        assert one.get(b"x-forwarded-for") == [b"203.0.113.9, 127.0.0.1"]
        assert (one.get(b"x-real-ip"), one.get(b"x-forwarded-proto")) == ([b"203.0.113.9"], [b"https"])
    else:
        assert one.get(b"x-forwarded-for") == one.get(b"x-real-ip") == [stage.client.encode()]
        assert one.get(b"x-forwarded-proto") == [b"http"]
        assert one.get(b"x-netbird-user") == [b"alice@example.com"]


def test_corpus_is_large_and_whole() -> None:
    """Distinct bytes over many rules, each of which says what it is about and has a case."""
    assert len({case["bytes"] for case in DATA["attack"]}) >= 300
    assert len(RULES) >= 60
    assert {case["rule"] for case in DATA["attack"]} == set(RULES)
    assert len(set(RULES.values())) == len(RULES)


def test_corpus_is_what_its_generator_writes() -> None:
    """The data is what is played; the generator is how it is changed."""
    spec = importlib.util.spec_from_file_location("attacks_generator", CORPUS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = generator
    try:
        spec.loader.exec_module(generator)
        assert generator.written(generator.made()) == (CORPUS / "attacks.toml").read_text()
    finally:
        del sys.modules[spec.name]
