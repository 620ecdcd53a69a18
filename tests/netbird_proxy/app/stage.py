"""A whole proxy between real ends: a listener on a host socket or in a tunnel, every plugin of ours, and an upstream
that records each byte."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from pydantic import BaseModel

from netbird_direct_upstream.proxy import DirectUpstreamOptions
from netbird_overlay.testing import Recorder
from netbird_proxy import AllowedNetworks
from netbird_proxy.api.model import AccountId, Address
from netbird_proxy.app import ReverseProxy
from netbird_proxy.defaults import DEFAULTS
from netbird_proxy.defaults.access_log import AccessLogOptions
from netbird_proxy.listening.connections import Connections
from netbird_proxy.listening.origins import Origins
from netbird_proxy.listening.sockets import serve_host
from netbird_proxy.listening.tunnels import HTTP_PORT, serve_inside
from netbird_proxy.pipeline.ending import Environment
from netbird_proxy.routing.apply import Routing
from netbird_proxy.routing.compile import Compiler
from netbird_proxy.routing.hooks import load_hooks
from netbird_proxy.sources.decode.claims import CORE_CLAIMS
from netbird_proxy.sources.decode.codec import Codec
from netbird_proxy.testing.fakes import FakeManagement, FakeProxy
from netbird_proxy.upstreams.pool import UpstreamPool
from netbird_proxy.upstreams.pools import Pools
from netbird_tunnel_netstack.testing import tunnel_pair
from netbird_wire.direct_upstream import set_direct
from netbird_wire.proxy_service_pb2 import PathMapping, Principal, ProxyMapping, ValidateTunnelPeerResponse

ACCOUNT = AccountId("acct-1")
PLUGINS = ("private_service", "identity_headers", "direct_upstream", "tunnel_netstack")
WAIT = 20.0

GRANT = ValidateTunnelPeerResponse(
    valid=True,
    user_id="user-1",
    user_email="alice@example.com",
    session_token="token",
    peer_group_ids=["g1", "g2"],
    peer_group_names=["All", "engineering"],
    principal=Principal(user_id="user-1", peer_id="peer-1", peer_name="laptop"),
)


NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
BREAK = re.compile(rb"[\r\n\0]")

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
    answers: list[bytes] = field(default_factory=list)
    """What the next requests are answered, one each; then `answer`."""
    answer: bytes = b""
    """What each request is answered; by default 200 with two bytes."""
    early: bool = False
    """Answer when the head is there, and close."""
    closes: bool = False
    """Close after an answer of `answers`."""
    connections: int = 0
    """How many were accepted."""
    broken: list[str] = field(default_factory=list)
    """Why requests could not be read."""


class Recording(asyncio.Protocol):
    """Reads as strictly as can be: whatever is not plain HTTP/1.1 with one framing fails the case."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.upstream.connections += 1

    def data_received(self, data: bytes) -> None:
        self.upstream.bytes += data
        self.buffer += data
        if self.upstream.early and b"\r\n\r\n" in self.buffer:
            self.transport.write(self.upstream.answer)
            self.transport.close()
            return
        while (found := self.read()) is not None:
            one, size = found
            del self.buffer[:size]
            self.upstream.seen.append(one)
            body = b"" if one.line.startswith("HEAD ") else b"ok"
            if self.upstream.answers:
                self.transport.write(self.upstream.answers.pop(0))
                if self.upstream.closes:
                    self.transport.close()
                continue
            plain = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            self.transport.write(self.upstream.answer or plain)

    def read(self) -> tuple[Seen, int] | None:
        try:
            return whole(bytes(self.buffer))
        except (AssertionError, ValueError) as error:
            self.upstream.broken.append(f"{error!r} in {bytes(self.buffer)!r}")
            raise


def whole(data: bytes) -> tuple[Seen, int] | None:
    """The first request, and how many bytes it has; None while it is not complete."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return None
    line, *field_lines = head.split(b"\r\n")
    fields = [(name, value) for one in field_lines for name, _, value in [one.partition(b": ")]]
    for name, value in fields:
        assert NAME.fullmatch(name)
        assert not BREAK.search(value)
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
    return Seen(f"{method.decode()} {target.decode('latin-1')}", fields, body), len(head) + 4 + used


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
                DirectUpstreamOptions(allow=(AllowedNetworks(accounts=("*",), networks=("127.0.0.1/32",)),)),
                AccessLogOptions(output="off", management=False),
                *options,
            ],
        )
        hooks = load_hooks(PLUGINS, defaults=DEFAULTS, core_claims=CORE_CLAIMS)
        await stack.enter_async_context(hooks.running(proxy))
        pools = Pools(UpstreamPool)
        stack.callback(pools.close)
        routing = Routing(
            Compiler(hooks, proxy, pools, Environment(count=proxy.count), cookies=hooks.cookies, rules=proxy.rules)
        )
        decoded = Codec(hooks).decode(mapping(port, private=inside), source="management").mapping
        (report,) = routing.apply("management", [decoded])
        assert report.ok, report.refused
        origins = Origins()
        app = ReverseProxy(routing, recognizes=origins.recognizes, notes=hooks.notes)
        app.trusted = proxy.trusted
        connections = Connections(
            app,
            origins=origins,
            listener=listener,
            account=ACCOUNT if inside else None,
            tunnel=tunnel if inside else None,
            count=proxy.count,
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
