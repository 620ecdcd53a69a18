"""The proxy's values: where a request came from, who sent it, and what an operator wants done with it.

All frozen. Nothing here does I/O and nothing here knows a plugin.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, NewType, TypeVar, cast

from netbird_host.deprecation import older_name

AccountId = NewType("AccountId", str)
ServiceId = NewType("ServiceId", str)
UserId = NewType("UserId", str)
ExchangeId = NewType("ExchangeId", str)
"""128 random bits in lower-case hex: 32 characters, never taken from a client."""
PublicKey = NewType("PublicKey", str)
"""A WireGuard public key as canonical standard base64, 44 characters."""

Kind = Literal["http", "websocket", "stream", "datagram"]
Mode = Literal["http", "tcp", "udp", "tls"]

S = TypeVar("S")


class Address(NamedTuple):
    """Where to dial: an IP literal without brackets or a name, and a port in 1..65535."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """Where a connection was accepted. Made by a registered listener for one connection; compared by identity only.

    Attributes:
        listener: the listener's name, for logs: `http 127.0.0.1:8080` or `tunnel acct-1`.
        account: the tenant whose tunnel it came in on; None on a host socket.
        peer: the socket's own peer, v4-mapped addresses unmapped. Forwarded headers never touch it.
        local: the address it was accepted on.
        behind_tls_proxy: the operator declared that TLS ends in front of this listener.
        peer_key: the overlay peer that the tunnel authenticated the connection with; it stays when the address becomes
            another peer's. None on a host socket, and where the address was no peer's at the time.
    """

    listener: str
    account: AccountId | None
    peer: Address
    local: Address
    behind_tls_proxy: bool = False
    peer_key: PublicKey | None = None

    tls_ahead = older_name("Origin.tls_ahead", "behind_tls_proxy")

    @property
    def is_tunnel(self) -> bool:
        return self.account is not None


@dataclass(frozen=True, slots=True)
class Peer:
    """An overlay node as the tunnel's roster knows it: its key, and the addresses that only it may send from."""

    public_key: PublicKey
    addresses: tuple[str, ...]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    id: str
    name: str

    @property
    def label(self) -> str:
        """What people call it; the id where it has no name."""
        return self.name or self.id


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is calling, as one authenticator found out.

    Attributes:
        method: `tunnel`, `password`, `oidc`, … ; what the access log and the trail show.
        attributes: further facts by name; a tunnel identity always has `peer`.
        by: the plugin that vouches for it; stamped by the pipeline, never by the plugin itself.
    """

    user_id: UserId
    email: str = ""
    groups: tuple[Group, ...] = ()
    method: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    by: str = ""

    def stamped(self, *, by: str) -> Identity:
        return replace(self, by=by)


class Allow(enum.Enum):
    """The one value that opens a guard: an enum with one member, so that `is not ALLOW` narrows."""

    ALLOW = "allow"

    def __repr__(self) -> str:
        return "ALLOW"


ALLOW: Final = Allow.ALLOW

OWN_PATHS: Final = "/__netbird__/"
"""Beginning of the paths that plugins' endpoints answer on every host. A request below it never goes upstream."""


@dataclass(frozen=True, slots=True)
class Deny:
    """A guard's no.

    Attributes:
        status: HTTP status, 400..599.
        code: stable, lower-case, for clients and logs: `not_in_group`.
        reason: one sentence for the operator; clients never see it.
        headers: added to the answer, such as `Retry-After`.
        facts: for `explain`: what was compared with what. Never shown to a client.
    """

    status: int
    code: str
    reason: str = ""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OfferField:
    """One field of a login form.

    Attributes:
        autocomplete: HTML's token for what the field holds, such as `current-password`.
        numeric: digits only, so that a phone shows its number keys.
    """

    name: str
    label: str
    autocomplete: str = "off"
    numeric: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to log in. The ways of all plugins stand on one page.

    Attributes:
        method: `password`, `oidc`, …: stable, for programs.
        label: what its button or link says.
        action: an own path, `/__netbird__/<plugin>/…`: a form is posted there, and a link leads there. "" for what only
            programs can do, such as a credential in a header: no page shows it.
        fields: what the form asks for, secretly; without any it is a link.
        hidden: what the form carries besides.
        automatic: where it is the only one, a browser that is on its way to a page is sent there without being asked.
        challenges: values of `WWW-Authenticate`, for programs: a browser would ask in a window of its own.
    """

    method: str
    label: str
    action: str
    fields: tuple[OfferField, ...] = ()
    hidden: tuple[tuple[str, str], ...] = ()
    automatic: bool = False
    challenges: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Challenge:
    """An answer that asks the client for something: a redirect, a 401, a page. It ends the exchange.

    Attributes:
        offers: ways to log in, for the page that is made where `body` is empty. With a 401 they are put to the client
            as those of the `prompt` phase are, also where a guard asks for a second factor.
    """

    status: int
    code: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    reason: str = ""
    offers: tuple[Offer, ...] = ()


Decision = Allow | Deny
Verdict = Allow | Deny | Challenge


@dataclass(frozen=True, slots=True)
class Upstream:
    """One place that a route forwards to.

    Attributes:
        path: the target's own raw path, `/` or longer; what replaces a stripped prefix.
        dial_timeout: seconds for reaching it, TLS included; None takes the proxy's default.
        ca: certificates in PEM that alone vouch for it; empty: the system's roots do.
        server_name: what TLS asks for and verifies; empty: the host that is dialed.
        values: plugins' target settings by model.
    """

    scheme: Literal["http", "https", "tcp", "udp", "tls"]
    address: Address
    path: bytes = b"/"
    skip_tls_verify: bool = False
    dial_timeout: float | None = None
    custom_headers: tuple[tuple[bytes, bytes], ...] = ()
    disable_access_log: bool = False
    ca: str = field(default="", repr=False)
    server_name: str = ""
    values: Mapping[type, Any] = field(default_factory=dict)

    def settings(self, model: type[S]) -> S:
        """What this target's mapping says to a plugin. KeyError for a model that no loaded plugin declared."""
        return cast(S, self.values[model])

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}"


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """One host and path prefix of a mapping, with where it leads and what plugins are to do about it.

    Attributes:
        host: folded (lower case, no trailing dot, IDNA, no port): the table's key.
        domain: as management sent it: what RPCs about this service must say.
        prefix: raw path prefix on segment borders, starting with `/`, without a trailing slash except the root's.
        strip_prefix: replace the literal prefix by the upstream's path, else send the path as it came.
        pass_ambiguous: a path that can be read in two ways goes on as it came; else it is answered 400.
        preflight_origins: their preflights need no login.
        same_origin: unsafe requests from other sites are refused where a cookie or the tunnel says who calls.
        ask_for_both: whom the tunnel names is asked to log in as well; without it the tunnel is enough.
        guarding: claimed guarding fields that are set, by plugin id; each plugin must bind an enforcing step.
        values: plugins' mapping settings by model.
    """

    service: ServiceId
    account: AccountId
    host: str
    domain: str
    prefix: bytes
    upstreams: tuple[Upstream, ...]
    kind: Kind = "http"
    strip_prefix: bool = True
    pass_host_header: bool = False
    rewrite_redirects: bool = False
    pass_ambiguous: bool = False
    same_origin: bool = True
    preflight_origins: tuple[str, ...] = ()
    ask_for_both: bool = False
    guarding: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    values: Mapping[type, Any] = field(default_factory=dict)

    def settings(self, model: type[S]) -> S:
        """What the mapping says to a plugin. KeyError for a model that no loaded plugin declared."""
        return cast(S, self.values[model])


@dataclass(frozen=True, slots=True)
class ServiceMapping:
    """One record from management or file, decoded and judged by the codec.

    Attributes:
        source: who owns it: `management` or `file`; each source reconciles only its own.
        digest: of everything that matters to serving (not the one-time token): equal digests need no re-apply.
        refused: why it cannot be served, in one sentence; its host gets a closed route. Empty when it can.
        tunneled: whether the account's tunnel is needed for it, as far as the codec can tell.
    """

    id: ServiceId
    account: AccountId
    source: str
    mode: Mode
    host: str
    domain: str
    routes: tuple[RouteSpec, ...]
    digest: bytes
    refused: str = ""
    auth_token: str = field(default="", repr=False)
    listen_port: int = 0
    tunneled: bool = False


__all__ = [
    "ALLOW",
    "AccountId",
    "Address",
    "Challenge",
    "Decision",
    "Deny",
    "ExchangeId",
    "Group",
    "Identity",
    "Kind",
    "Offer",
    "OfferField",
    "Origin",
    "Peer",
    "PublicKey",
    "RouteSpec",
    "ServiceId",
    "ServiceMapping",
    "Upstream",
    "UserId",
    "Verdict",
]
