"""What plugins give and what they get: the steps that hooks return, and the proxy as a plugin sees it.

Hooks build, steps run. A step knows its settings from the moment it is built; a request never meets a wrong one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar

import grpc.aio
from pydantic import BaseModel

from netbird_proxy.api.exchange import ASGIApp, ExchangeView, OutgoingHead
from netbird_proxy.api.forwarded import TrustedProxies
from netbird_proxy.api.model import (
    AccountId,
    Address,
    Challenge,
    Decision,
    Deny,
    ExchangeId,
    Identity,
    Kind,
    Offer,
    Origin,
    Peer,
    PublicKey,
    RouteSpec,
    ServiceId,
    Upstream,
    UserId,
    Verdict,
)
from netbird_wire.proxy_service_pb2 import PathMapping, ProxyMapping

O = TypeVar("O", bound=BaseModel)  # noqa: E741

HTTP_KINDS: frozenset[Kind] = frozenset(("http", "websocket"))


class MappingSettings(Protocol):
    """A model of what a mapping says to one plugin. Frozen; made once, when the mapping is applied."""

    @classmethod
    def from_wire(cls, mapping: ProxyMapping) -> Self:
        """Read it. Raises ValueError with a sentence for management where a value cannot be used."""


class TargetSettings(Protocol):
    """The same for one target (`path` entry) of a mapping."""

    @classmethod
    def from_wire(cls, mapping: ProxyMapping, path: PathMapping) -> Self: ...


# Steps ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Guard:
    """May this exchange go on? Runs in `restrict` or `authorize`; whatever is not ALLOW ends the exchange.

    Attributes:
        check: awaited in the exchange's task; may be cancelled at any await and must let that through.
        kinds: what it can judge; it is left out on routes of other kinds.
        body_bytes: buffer up to so many bytes of the request body before it runs; 0 buffers nothing.
        observe: record the verdict, enforce nothing. Refused behind a guarding claim.
        depends_on: everything besides the exchange that the verdict depends on, comparable by `==`. Routes of one host
            whose steps depend on equal values are guarded alike; without it only the same `check` is. Where routes
            differ, a path that can be read in more than one way is refused (`ambiguous_path`).
    """

    check: Callable[[ExchangeView], Awaitable[Verdict]]
    kinds: frozenset[Kind] = HTTP_KINDS
    body_bytes: int = 0
    observe: bool = False
    depends_on: object = None


Phase = Literal["exclusive", "credential", "ambient", "prompt"]
PHASES: tuple[Phase, ...] = ("exclusive", "credential", "ambient", "prompt")


@dataclass(frozen=True, slots=True)
class Authenticator:
    """Who is calling? None passes the question on; anything else answers it, but for offers.

    Attributes:
        phase: when it is asked, see PHASES; inside a phase the operator's order holds.
        identify: in phase `prompt` it may also offer ways to log in. Those of all plugins become one 401 page, unless a
            later one answers.
        depends_on: see `Guard`.
    """

    phase: Phase
    identify: Callable[[ExchangeView], Awaitable[Identity | Deny | Challenge | Offer | tuple[Offer, ...] | None]]
    kinds: frozenset[Kind] = HTTP_KINDS
    body_bytes: int = 0
    depends_on: object = None


@dataclass(frozen=True, slots=True)
class RequestTransform:
    """Changes the outgoing head.

    Attributes:
        apply: sync; what it raises ends the exchange with 503 before anything is dialed.
        owns: header names that on this route nobody else may set. They leave the client's head, its trailers and
            `Connection` before any step runs.
        depends_on: see `Guard`.
    """

    apply: Callable[[ExchangeView, OutgoingHead], None]
    owns: tuple[bytes, ...] = ()
    depends_on: object = None


Observer = Callable[[ExchangeView], None]
"""Called once for each exchange, last, whatever became of it. Sync and short; a failure is logged."""


EXCHANGE_STATE = "netbird_proxy.api.exchange"
"""Key in `scope["state"]` under which an endpoint finds the view of its exchange."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A plugin's own application under `/__netbird__/<plugin>/` of a host. What it is asked never goes upstream.

    Its scope has the whole path in `path`, its prefix in `root_path`, and the exchange's view in its state, under
    EXCHANGE_STATE.

    Attributes:
        app: run after the host's restrict steps, without authenticate and authorize: it judges by itself.
        on_private: also on hosts whose routes only an `exclusive` authenticator opens; else it is not there.
        body_bytes: what a request body may have; more answers 413.
    """

    app: ASGIApp
    on_private: bool = False
    body_bytes: int = 65536


@dataclass(frozen=True, slots=True)
class Page:
    """What an answer of the proxy's own has to say.

    Attributes:
        sentence: fixed by the code, and harmless: nothing about plugins, addresses, causes or groups.
        own_path: of the request, so that a page may say "try again"; without its query.
        offers: ways to log in, on a 401.
        retry: whether asking again may help.
        by: the plugin whose refusal it is, so that a page may know its own; for no reader's eyes.
    """

    status: int
    code: str
    sentence: str
    exchange: ExchangeId
    host: str
    own_path: str
    offers: tuple[Offer, ...] = ()
    retry: bool = False
    by: str = ""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A page as it is sent. `headers` come on top of the core's own, which say its type, length and `no-store`."""

    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = b"text/html; charset=utf-8"


Pages = Callable[[Page], Rendered]
"""Makes the page that a browser gets. Sync and short; where it fails, the browser gets plain text."""


# Dialing and tunnels --------------------------------------------------------------------------------------------------

ProtocolFactory = Callable[[], asyncio.BaseProtocol]


class Dialer(Protocol):
    """Opens streams to upstreams."""

    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Open a plain stream; TLS, where wanted, is laid over it by the caller.

        Cancellation closes what was opened.

        Args:
            timeout: seconds for everything that it takes: tunnel start, name look-up, handshake; > 0.

        Raises:
            DialTimeout, DialRefused, DialUnreachable, DialFailed, TunnelNotReady, AddressRefused: nothing was sent.
        """


class TunnelListener(Protocol):
    def close(self) -> None:
        """Accept no more. Connections that were accepted live on. Idempotent."""


class Tunnel(Dialer, Protocol):
    """Our node in one account's overlay."""

    @property
    def addresses(self) -> Sequence[str]:
        """Our own overlay addresses, IPv4 first. They stay for the tunnel's life."""

    @property
    def public_key(self) -> PublicKey: ...

    async def listen(self, port: int, protocol_factory: ProtocolFactory) -> TunnelListener:
        """Accept streams on a port of all our addresses, as far as the account's inbound rules let them in.

        Each protocol's transport answers `get_extra_info("peername")` and `("sockname")` with `(host, port)`, and
        `("tunnel_peer")` with the public key (base64) that the connection was authenticated with. Where it has none,
        the peer is the one that `whois` names when the connection is accepted.
        """

    def whois(self, address: str) -> Peer | None:
        """The peer that alone may send from this address, or None. A hit admits nobody: it says whom to ask about."""

    def changes(self) -> AsyncIterator[None]:
        """Yields after each change of the account's map. One consumer; changes in between are one."""


# The proxy, as a plugin sees it ---------------------------------------------------------------------------------------


class ManagementChannel(Protocol):
    """The one connection to management. Every call has a deadline and carries token and proxy id."""

    @property
    def channel(self) -> grpc.aio.Channel:
        """For services of their own; calls on it must set `timeout` and pass `metadata()`."""

    def metadata(self) -> tuple[tuple[str, str], ...]: ...

    @property
    def exists(self) -> bool:
        """Whether this proxy has a management at all. Where it has none, every call fails."""

    @property
    def extensions(self) -> frozenset[str]:
        """What management said it understands beyond NetBird's own wire; empty before the first message."""

    @property
    def connected(self) -> bool:
        """Whether the mapping stream has had a message on its present connection."""

    async def call(self, method: str, request: Any, *, timeout: float | None = None) -> Any:
        """One unary `ProxyService` call by its name, such as `ValidateTunnelPeer`.

        Args:
            timeout: seconds; None takes the proxy's setting (2 s).

        Raises:
            ManagementUnavailable, ManagementTimeout, ManagementRefused.
        """


class AccountHandle(Protocol):
    """One tenant, as its tunnel plugin sees it."""

    @property
    def id(self) -> AccountId: ...

    @property
    def generation(self) -> int:
        """Raised whenever cached answers about this account must be dropped."""

    @property
    def management(self) -> ManagementChannel: ...

    @property
    def directory(self) -> Path:
        """A private directory (0700) that outlives the process, for keys and endpoints."""

    async def register(self, public_key: PublicKey, *, endpoint: str = "") -> None:
        """Make management know our node's key (`CreateProxyPeer`), spending one unspent one-time token.

        `endpoint` is `host:port` where stock WireGuard clients reach us, or empty. Waits for a token if all are
        spent. Raises ManagementError.
        """


class OpenExchanges(Protocol):
    """The exchanges and connections that are under way."""

    def revalidate(
        self,
        *,
        account: AccountId | None = None,
        user: UserId | None = None,
        peer: PublicKey | None = None,
        service: ServiceId | None = None,
    ) -> int:
        """Ask authenticate and authorize again for the open ones that match all that is given; cut those refused.

        Returns how many will be asked.
        """


class Revocations(Protocol):
    """Sessions that are over before they expire, as management tells of them."""

    def revoked(self, account: AccountId, *, subject: str, token_hash: bytes, issued_at: float) -> bool:
        """Whether a session token that is otherwise good must be refused. No I/O: ask it for each exchange, also where
        the token was verified before.

        Args:
            subject: the token's `sub`.
            token_hash: SHA-256 of the token as it stands in the cookie.
            issued_at: the token's `iat`, seconds since the epoch.
        """


class Proxy(Protocol):
    """What the host offers its plugins."""

    @property
    def id(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def domain(self) -> str:
        """The cluster's address, as told to management."""

    @property
    def private(self) -> bool:
        """Whether this proxy listens inside its accounts' tunnels."""

    @property
    def state_directory(self) -> Path: ...

    @property
    def management(self) -> ManagementChannel: ...

    @property
    def exchanges(self) -> OpenExchanges: ...

    @property
    def revocations(self) -> Revocations: ...

    def options(self, model: type[O]) -> O:
        """The operator's section for the plugin whose `PluginInfo.options` this model is."""

    def tunnel(self, account: AccountId) -> Tunnel | None:
        """The account's tunnel while it is up."""

    def account_dialer(self, account: AccountId) -> Dialer:
        """Dials through the account's tunnel, waiting inside the dial's deadline until it is up."""

    def host_dialer(self) -> Dialer:
        """Dials from this machine's own network. It judges no address."""

    def generation(self, account: AccountId) -> int:
        """See AccountHandle.generation; 0 for an account never heard of."""

    def listening_addresses(self) -> Sequence[Address]:
        """Every address this process itself accepts on, tunnel listeners and admin sockets included."""

    @property
    def knows_clients(self) -> bool:
        """Whether `client_address` can be believed: our own listeners took it, or whoever embeds us says how."""

    def trust(self, proxies: TrustedProxies | None) -> None:
        """Believe these about a client's address, on host listeners; None: nobody. A tunnel's peers are never asked."""

    def count(self, name: str, amount: int = 1) -> None:
        """Add to one of the process's counters; names are `snake_case` and bounded in number."""


__all__ = [
    "EXCHANGE_STATE",
    "HTTP_KINDS",
    "PHASES",
    "AccountHandle",
    "Authenticator",
    "Decision",
    "Dialer",
    "Endpoint",
    "Guard",
    "ManagementChannel",
    "MappingSettings",
    "Observer",
    "OpenExchanges",
    "Origin",
    "Page",
    "Pages",
    "Phase",
    "ProtocolFactory",
    "Proxy",
    "Rendered",
    "RequestTransform",
    "Revocations",
    "RouteSpec",
    "TargetSettings",
    "Tunnel",
    "TunnelListener",
    "Upstream",
]
