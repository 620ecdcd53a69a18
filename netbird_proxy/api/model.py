"""The proxy's values: origins, identities, decisions, upstreams, routes and mappings.

All are frozen. This module does no I/O and knows no plugin.
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
"""128 random bits in lower-case hex: 32 characters, always generated here, never taken from a client."""
PublicKey = NewType("PublicKey", str)
"""A WireGuard public key as canonical standard base64, 44 characters."""

Kind = Literal["http", "websocket", "stream", "datagram"]
Mode = Literal["http", "tcp", "udp", "tls"]

S = TypeVar("S")


class Address(NamedTuple):
    """An address to dial: an IP literal without brackets or a DNS name, and a port in 1..65535."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """The place where a connection was accepted. Made by a listener for one connection; compared by identity.

    Attributes:
        listener: the listener's name, for logs: `http 127.0.0.1:8080` or `tunnel acct-1`.
        account: the account whose tunnel the connection came in on; None on a host socket.
        peer: the socket's own peer, v4-mapped addresses unmapped. Forwarded headers never change it.
        local: the address that accepted it.
        behind_tls_proxy: the operator declared that a proxy in front of this listener ends TLS.
        peer_key: the overlay peer that the connection belongs to, as the tunnel authenticated it. It does not change if
            the address is later assigned to another peer. None on a host socket, and for an unknown address.
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
    """An overlay node in the tunnel's roster: its key, and the addresses that only this peer may send from."""

    public_key: PublicKey
    addresses: tuple[str, ...]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    id: str
    name: str

    @property
    def label(self) -> str:
        """The group's name, or its id if it has none."""
        return self.name or self.id


@dataclass(frozen=True, slots=True)
class Identity:
    """The caller, as an authenticator identified it.

    Attributes:
        method: `tunnel`, `password`, `oidc`, … ; shown in the access log and the trail.
        attributes: further facts by name; a tunnel identity always has `peer`.
        by: the plugin that identified the caller; set by the pipeline, never by the plugin itself.
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
    """The only verdict that lets an exchange pass a guard. An enum with one member, so that `is not ALLOW` narrows."""

    ALLOW = "allow"

    def __repr__(self) -> str:
        return "ALLOW"


ALLOW: Final = Allow.ALLOW

OWN_PATHS: Final = "/__netbird__/"
"""Beginning of the paths that plugins' endpoints answer on every host. A request below it never goes upstream."""


@dataclass(frozen=True, slots=True)
class Deny:
    """A guard's or authenticator's refusal.

    Attributes:
        status: HTTP status, 400..599.
        code: stable, lower-case, for clients and logs: `not_in_group`.
        reason: one sentence for the operator; clients never see it.
        headers: added to the answer, such as `Retry-After`.
        facts: the compared values, for `explain`. Never shown to a client.
    """

    status: int
    code: str
    reason: str = ""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OfferField:
    """A field of a login form.

    Attributes:
        autocomplete: HTML's token for what the field holds, such as `current-password`.
        numeric: accepts digits only, so that a phone shows its number keys.
    """

    name: str
    label: str
    autocomplete: str = "off"
    numeric: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """A way to log in. A single page shows the offers of all plugins.

    Attributes:
        method: `password`, `oidc`, …: stable, for programs.
        label: text of its button or link.
        action: a path of the plugin's own, `/__netbird__/<plugin>/…`, that a form is posted to or a link leads to. ""
            for an offer to programs only, such as a credential in a header, which no page shows.
        fields: secrets that the form asks for; without any, the offer is a link.
        hidden: hidden fields of the form.
        automatic: if it is the only offer, redirect a browser that navigates to a page there at once.
        challenges: values of `WWW-Authenticate`, for programs only: a browser would open its own dialog.
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
        offers: ways to log in, for the page that the proxy makes if `body` is empty. On a 401 they are presented like
            those of the `prompt` phase, also if a guard asks for a second factor.
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
    """A server that a route forwards to.

    Attributes:
        path: the target's own raw path, `/` or longer; it replaces a stripped prefix.
        dial_timeout: seconds to connect, TLS included; None for the proxy's default.
        ca: certificate authorities in PEM to trust instead of the system's; empty for the system's.
        server_name: name that TLS sends and verifies; empty for the host that is dialed.
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
        """A plugin's settings for this target. KeyError for a model that no loaded plugin declared."""
        return cast(S, self.values[model])

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}"


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """A host and path prefix of a mapping, with its upstreams and the settings of plugins.

    Attributes:
        host: the folded host (lower case, no trailing dot, IDNA, no port), the key of the routing table.
        domain: the host as management sent it, which calls about this service must repeat.
        prefix: raw path prefix on segment borders, starting with `/`, without a trailing slash except the root's.
        strip_prefix: replace the literal prefix by the upstream's path; else the path is sent unchanged.
        pass_ambiguous: forward a path that can be read in two ways unchanged; else it is answered 400.
        preflight_origins: origins whose preflight requests need no login.
        same_origin: refuse unsafe requests from other sites if a cookie or the tunnel identifies the caller.
        ask_for_both: require a login even if the tunnel already identifies the caller.
        guarding: guarding fields that are set, by the id of the plugin that claims them; it must bind an enforcing
            step.
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
        """A plugin's settings for the mapping. KeyError for a model that no loaded plugin declared."""
        return cast(S, self.values[model])


@dataclass(frozen=True, slots=True)
class ServiceMapping:
    """A service as management or a file describes it, decoded and validated.

    Attributes:
        source: owner of the record, `management` or `file`; each source reconciles only its own.
        digest: hash of everything that affects serving (not the one-time token); an equal digest needs no new apply.
        refused: the reason why it cannot be served, in a sentence; its host gets a closed route. Empty if it can.
        tunneled: it needs the account's tunnel, as far as the decoder can tell.
        credential_fields: header fields that the record names as credentials, as it spells them. While the mapping is
            refused, no plugin sees them: clients go on sending what the closed route does not ask for.
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
    credential_fields: tuple[str, ...] = ()


__all__ = [
    "ALLOW",
    "OWN_PATHS",
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
