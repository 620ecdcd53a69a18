"""The whole way of an exchange without a kernel: listener, application, plugins and pool, on wires that are calls.

What differs between two routes here is what they cost, to the instruction: no scheduler, no sockets, nobody else's
work. As a program it plays what its standard input says, `<scheme> <exchanges>` a line, so that whoever counts its
instructions can begin and end in between.
"""

from __future__ import annotations

import asyncio
import base64
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netbird_host.collector import calm_collector
from netbird_identity_headers.proxy import IdentityHeaders
from netbird_management.secrets.session_tokens import new_key_pair, sign
from netbird_private_service.proxy import PrivateService
from netbird_proxy import (
    ALLOW,
    Decision,
    ExchangeView,
    Guard,
    Observer,
    PluginInfo,
    RequestTransform,
    RouteSpec,
    hookimpl,
)
from netbird_proxy.api.model import AccountId, Address
from netbird_proxy.api.tunnels import ProtocolFactory
from netbird_proxy.app import ReverseProxy
from netbird_proxy.defaults import DEFAULTS
from netbird_proxy.defaults.access_log import AccessLogOptions, plugin, sender
from netbird_proxy.listening.connections import Connections
from netbird_proxy.listening.http1 import Http1Protocol
from netbird_proxy.listening.origins import Origins
from netbird_proxy.operator.decisions import Decisions
from netbird_proxy.pipeline.ending import Environment
from netbird_proxy.routing.apply import Routing
from netbird_proxy.routing.compile import Compiler
from netbird_proxy.routing.hooks import load_hooks
from netbird_proxy.sources.decode.claims import CORE_CLAIMS
from netbird_proxy.sources.decode.codec import Codec
from netbird_proxy.testing.fakes import FakeManagement, FakeProxy, FakeTunnel
from netbird_proxy.testing.makers import peer
from netbird_proxy.upstreams.pool import UpstreamPool
from netbird_proxy.upstreams.pools import Pools
from netbird_wire.extensions import Extension
from netbird_wire.proxy_service_pb2 import (
    AuthenticateResponse,
    PathMapping,
    Principal,
    ProxyMapping,
    SendAccessLogResponse,
    ValidateSessionResponse,
    ValidateTunnelPeerResponse,
)

ACCOUNT = AccountId("acct-1")
CONNECTIONS = 32
CALLER = "100.64.0.9"
GROUPS = ("All", "engineering")
CREDENTIAL = "Basic " + base64.b64encode(b"anna:correct horse battery staple").decode()
_BODY = b"bench: a small body that stands for an answer of an application."
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Tue, 01 Jul 2025 09:00:00 GMT\r\nContent-Type: text/plain\r\n"
    b"Content-Length: %d\r\nConnection: keep-alive\r\n\r\n%b"
) % (len(_BODY), _BODY)


@dataclass(frozen=True, slots=True)
class Scheme:
    """One kind of caller.

    Attributes:
        base: what it is compared with: a public route under the same listener.
        service: which service it asks for.
        inside: it comes in on the account's tunnel, else over TLS.
    """

    name: str
    base: str
    service: str
    inside: bool = False


PUBLIC, PUBLIC_INSIDE = "public route", "public route, overlay"
COOKIE, SIGN_ON, CREDENTIAL_SCHEME = "session cookie", "session cookie, single sign-on", "header credential"
PEER, PRIVATE_ROUTE = "tunnel peer, public service", "private route"
GUARDED, CROWDED = "guarded", "sixteen plugins"
UNBOUND = 16
"""Plugins that are loaded where it is counted what loading costs."""
SCHEMES = (
    Scheme(PUBLIC, PUBLIC, "public"),
    Scheme(COOKIE, PUBLIC, "password"),
    Scheme(SIGN_ON, PUBLIC, "oidc"),
    Scheme(CREDENTIAL_SCHEME, PUBLIC, "header"),
    Scheme(PUBLIC_INSIDE, PUBLIC_INSIDE, "public", inside=True),
    Scheme(PEER, PUBLIC_INSIDE, "password", inside=True),
    Scheme(PRIVATE_ROUTE, PUBLIC_INSIDE, "private", inside=True),
)

EXTRAS = (Scheme(GUARDED, PUBLIC, "guarded"), Scheme(CROWDED, PUBLIC, "public"))
"""A public route with a guard that always allows, and the public route beside plugins that take no part in it."""


class _Allows:
    """A trivial guard, on a single service."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def restrict(self, route: RouteSpec) -> Guard | None:
        async def check(exchange: ExchangeView) -> Decision:
            return ALLOW

        return Guard(check) if route.domain.startswith("guarded.") else None


class _Unbound:
    """Implements the hooks of a request's way, and binds nothing."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def restrict(self, route: RouteSpec) -> Guard | None:
        return None

    @hookimpl
    def authorize(self, route: RouteSpec) -> Guard | None:
        return None

    @hookimpl
    def transform_request(self, route: RouteSpec) -> RequestTransform | None:
        return None

    @hookimpl
    def observe(self, route: RouteSpec | None) -> Observer | None:
        return None


@dataclass(frozen=True, slots=True)
class Stage:
    """The services under measurement.

    Attributes:
        shown: what a scheme's callers show, as lines of their head.
        seen: the last head that the upstream got.
    """

    shown: dict[str, bytes]
    host: Connections
    tunnel: Connections
    seen: list[bytes]

    async def play(self, name: str, exchanges: int) -> None:
        """So many exchanges on kept connections. RuntimeError for any answer but the upstream's."""
        (scheme,) = (each for each in (*SCHEMES, *EXTRAS) if each.name == name)
        request = b"GET / HTTP/1.1\r\nHost: %b.example.com\r\n%b\r\n" % (
            scheme.service.encode(),
            self.shown.get(name, b""),
        )
        connections = self.tunnel if scheme.inside else self.host
        loop = asyncio.get_running_loop()
        clients = []
        for _ in range(CONNECTIONS):
            client = _Client(request, exchanges // CONNECTIONS, CALLER if scheme.inside else "203.0.113.7", loop)
            client.protocol = Http1Protocol(connections, loop)
            client.protocol.connection_made(client)
            clients.append(client)
        for client in clients:
            loop.call_soon(client.protocol.data_received, request)
        for client in clients:
            async with asyncio.timeout(600):
                await client.done
            client.protocol.connection_lost(None)


class _Wire(asyncio.Transport):
    """A stream that takes everything at once."""

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None: ...
    def abort(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class _Client(_Wire):
    """Asks again as soon as it has its answer."""

    protocol: Http1Protocol

    def __init__(self, request: bytes, left: int, address: str, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__({"peername": (address, 50000), "sockname": ("192.0.2.1", 80)})
        self.request = request
        self.left = left
        self.loop = loop
        self.done = loop.create_future()

    def write(self, data: Any) -> None:
        if data[9:12] != b"200":
            self.done.set_exception(RuntimeError(f"it was answered {bytes(data)!r}"))
            return
        self.left -= 1
        if self.left > 0:
            self.loop.call_soon(self.protocol.data_received, self.request)
        else:
            self.done.set_result(None)


class _Upstream(_Wire):
    """Answers each head at once."""

    def __init__(self, protocol: Any, seen: list[bytes]) -> None:
        super().__init__()
        self.protocol = protocol
        self.seen = seen
        self.loop = asyncio.get_running_loop()

    def write(self, data: Any) -> None:
        self.seen[0] = data
        self.loop.call_soon(self.protocol.data_received, _ANSWER)


class _Dials:
    """Reaches every upstream, in memory."""

    def __init__(self, seen: list[bytes]) -> None:
        self._seen = seen

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def dialer(self) -> _Dials:
        return self

    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        protocol = protocol_factory()
        transport = _Upstream(protocol, self._seen)
        protocol.connection_made(transport)
        return transport, protocol


@asynccontextmanager
async def stage(directory: Path, *, unbound: int = 0) -> AsyncIterator[Stage]:
    """Everything that an exchange meets in a process with the usual plugins, access log included.

    Args:
        unbound: so many further plugins are loaded, which bind nothing.
    """
    key, public = new_key_pair()

    def token(service: str, subject: str, method: Any, **claims: Any) -> bytes:
        return sign(key, f"{service}.example.com", subject, method, **claims).encode()

    def cookie(service: str, subject: str, method: str) -> bytes:
        return b"Cookie: __Host-nb_session=%b\r\n" % token(service, subject, method)

    credential = AuthenticateResponse(success=True, session_token=token("header", "header-user", "header").decode())
    person = {"user_id": "user-1", "user_email": "anna@example.com", "peer_group_names": GROUPS}
    management = FakeManagement(
        {
            "Authenticate": credential,
            "SendAccessLog": SendAccessLogResponse(),
            "ValidateSession": ValidateSessionResponse(valid=True, peer_group_ids=["g1", "g2"], **person),
            "ValidateTunnelPeer": ValidateTunnelPeerResponse(
                valid=True, session_token="token", peer_group_ids=["g1", "g2"],
                principal=Principal(user_id="user-1", peer_id="peer-1", peer_name="laptop"), **person,
            ),
        },
        extensions=list(Extension),
    )  # fmt: skip
    proxy = FakeProxy(
        management=management,
        tunnels={ACCOUNT: FakeTunnel({CALLER: peer(CALLER)})},
        options=[AccessLogOptions(output=str(directory / "access.log"), flush_interval=10.0)],
    )
    seen = [b""]
    hooks = load_hooks(
        [
            ("private_service", PrivateService),
            ("identity_headers", IdentityHeaders),
            ("bench", _Dials(seen)),
            ("allows", _Allows),
            *((f"unbound_{number}", _Unbound) for number in range(unbound)),
        ],
        defaults=DEFAULTS,
        core_claims=CORE_CLAIMS,
    )
    environment = Environment()
    compiler = Compiler(
        hooks, proxy, Pools(UpstreamPool), environment,
        cookies=hooks.cookies, observers=[("core", Decisions().record)],
    )  # fmt: skip
    routing = Routing(compiler)
    origins = Origins()
    app = ReverseProxy(routing, recognizes=origins.recognizes, notes=hooks.notes)
    codec = Codec(hooks)

    def service(name: str, **schemes: bool) -> ProxyMapping:
        made = ProxyMapping(id=name, account_id=ACCOUNT, domain=f"{name}.example.com", mode="http")
        made.path.append(PathMapping(path="/", target="http://10.0.0.7:8080/"))
        made.private = schemes.pop("private", False)
        if schemes.pop("header", False):
            made.auth.header_auths.add(header="Authorization", hashed_value="$argon2id$")
            made.auth.session_key = public
        for scheme in schemes:
            setattr(made.auth, scheme, True)
            made.auth.session_key = public
        return made

    services = [
        service("public"), service("guarded"), service("password", password=True), service("oidc", oidc=True),
        service("header", header=True), service("private", private=True),
    ]  # fmt: skip
    shown = {
        COOKIE: cookie("password", "password-user", "password"),
        SIGN_ON: cookie("oidc", "user-1", "oidc"),
        CREDENTIAL_SCHEME: f"Authorization: {CREDENTIAL}\r\n".encode(),
    }
    async with hooks.running(proxy):
        reports = routing.apply("bench", [codec.decode(mapping, source="bench").mapping for mapping in services])
        if refused := [report for report in reports if not report.ok]:
            raise RuntimeError(f"not served: {refused}")
        yield Stage(
            shown,
            Connections(app, origins=origins, listener="https 192.0.2.1:443", behind_tls_proxy=True),
            Connections(app, origins=origins, listener="tunnel acct-1", account=ACCOUNT, tunnel=proxy.tunnel(ACCOUNT)),
            seen,
        )


async def main() -> None:
    # A counted exchange takes fifty times as long: what is gathered by the clock would hardly be gathered.
    plugin.GATHER = sender.GATHER = 60.0  # of this process alone, which does nothing but be counted
    with tempfile.TemporaryDirectory() as directory:
        async with stage(Path(directory), unbound=int(sys.argv[1]) if len(sys.argv) > 1 else 0) as made:
            for scheme in (*SCHEMES, *EXTRAS):
                await made.play(scheme.name, 10 * CONNECTIONS)
            calm_collector()
            print("ready", flush=True)
            while line := await asyncio.to_thread(sys.stdin.readline):
                name, _, exchanges = line.strip().rpartition(" ")
                await made.play(name, int(exchanges))
                print("played", flush=True)


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
