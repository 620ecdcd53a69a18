"""A service as an operator edits it, decoded: frozen, complete, without wire or database types."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from netbird_management.model.ids import AccountId, GroupId, ProxyId, ServiceId


class Status(StrEnum):
    """How a service fares on a proxy; `SEVERITY` orders them for the one status that a service shows."""

    PENDING = "pending"
    ACTIVE = "active"
    TUNNEL_NOT_CREATED = "tunnel_not_created"
    CERTIFICATE_PENDING = "certificate_pending"
    CERTIFICATE_FAILED = "certificate_failed"
    ERROR = "error"


SEVERITY: Final = (
    Status.ACTIVE,
    Status.PENDING,
    Status.CERTIFICATE_PENDING,
    Status.TUNNEL_NOT_CREATED,
    Status.CERTIFICATE_FAILED,
    Status.ERROR,
)


class TargetType(StrEnum):
    PEER = "peer"
    HOST = "host"
    DOMAIN = "domain"
    SUBNET = "subnet"
    CLUSTER = "cluster"


RESOURCES: Final = frozenset({TargetType.HOST, TargetType.DOMAIN, TargetType.SUBNET})
"""Targets that are resources of a network, behind routing peers."""


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """Options of one target. Timeouts are seconds, 0 is unset."""

    skip_tls_verify: bool = False
    request_timeout: float = 0.0
    session_idle_timeout: float = 0.0
    path_rewrite: str = ""
    """`""` cuts the matched prefix, `preserve` keeps it."""
    custom_headers: tuple[tuple[str, str], ...] = ()
    """Name and value, ordered by name, as they were written."""
    proxy_protocol: bool = False
    direct_upstream: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """One upstream of a service, under a path.

    `target_id` names a peer, a network resource or the cluster, as `target_type` says. `host` is what the operator
    wrote; for a peer it is looked up (`compute.mapping.resolve`) when the target is shown or sent.
    """

    target_id: str
    target_type: TargetType
    protocol: str
    port: int = 0
    enabled: bool = True
    host: str = ""
    path: str | None = None
    options: TargetOptions = TargetOptions()
    extensions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """As `Service.extensions`, for this target."""


@dataclass(frozen=True, slots=True)
class SecretAuth:
    """A password or a PIN. `secret` is an Argon2id hash once stored; "" keeps the stored one on update."""

    enabled: bool = False
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class BearerAuth:
    """Single sign-on, optionally only for members of some groups."""

    enabled: bool = False
    distribution_groups: tuple[GroupId, ...] = ()


@dataclass(frozen=True, slots=True)
class HeaderAuth:
    """A request header whose whole value is the credential. `value` as `SecretAuth.secret`."""

    header: str
    enabled: bool = False
    value: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class AuthConfig:
    password_auth: SecretAuth | None = None
    pin_auth: SecretAuth | None = None
    bearer_auth: BearerAuth | None = None
    header_auths: tuple[HeaderAuth, ...] = ()

    @property
    def any_enabled(self) -> bool:
        schemes = (self.password_auth, self.pin_auth, self.bearer_auth, *self.header_auths)
        return any(scheme is not None and scheme.enabled for scheme in schemes)


@dataclass(frozen=True, slots=True)
class AccessRestrictions:
    """Who may come in by address. An instance without lists and with mode `""` restricts nothing."""

    allowed_cidrs: tuple[str, ...] = ()
    blocked_cidrs: tuple[str, ...] = ()
    allowed_countries: tuple[str, ...] = ()
    blocked_countries: tuple[str, ...] = ()
    crowdsec_mode: str = ""

    def __bool__(self) -> bool:
        return self != AccessRestrictions()


@dataclass(frozen=True, slots=True)
class ServiceMeta:
    """Facts about a service that no caller sent."""

    created_at: datetime


@dataclass(frozen=True, slots=True)
class Service:
    """One exposed application.

    `domain` is folded (`domains.fold`). `private` and `access_groups` are kept by core and given meaning by
    whichever plugin claims `private`; likewise `TargetOptions.direct_upstream`.
    `session_public_key` is base64 of 32 bytes; the private half stays in the store (`SessionKeys`).
    """

    id: ServiceId
    account_id: AccountId
    name: str
    domain: str
    proxy_cluster: str
    """The folded address of the proxies that serve it."""
    meta: ServiceMeta
    targets: tuple[Target, ...] = ()
    enabled: bool = True
    terminated: bool = False
    mode: str = "http"
    listen_port: int = 0
    port_auto_assigned: bool = False
    pass_host_header: bool = False
    rewrite_redirects: bool = False
    auth: AuthConfig = AuthConfig()
    access_restrictions: AccessRestrictions = AccessRestrictions()
    private: bool = False
    access_groups: tuple[GroupId, ...] = ()
    session_public_key: str = ""
    source: str = "permanent"
    source_peer: str = ""
    own_cluster: bool = False
    """Whether the cluster is of the account's own proxies, whose address proves no name to be the account's."""
    extensions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What it says to plugins, by plugin, and to the core under `core`. Shown as it was sent: no place for secrets."""

    @property
    def served(self) -> bool:
        """Whether proxies get it at all (a snapshot leaves the others out, a change removes them)."""
        return self.enabled and not self.terminated


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a connected proxy says it can do; hashable, so that one answer serves all proxies that say the same.

    `None` is "not reported". `claims` are the wire fields its plugins understand; `None` from a proxy that does not
    know the extension (NetBird's).
    """

    supports_custom_ports: bool | None = None
    require_subdomain: bool | None = None
    supports_crowdsec: bool | None = None
    private: bool | None = None
    supports_private_service: bool | None = None
    claims: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class InboundListener:
    """Where a proxy serves inside the tunnel; a port of 0 is not served."""

    tunnel_ip: str
    https_port: int = 0
    http_port: int = 0


@dataclass(frozen=True, slots=True)
class ProxyStatus:
    """How one service fares on one proxy. `withheld` says why management does not send it there, else "".

    What a proxy said before it went, or before it connected anew, is over: `connected` is false, or the status pending.
    """

    proxy_id: ProxyId
    status: Status
    connected: bool = True
    error_message: str = ""
    withheld: str = ""
    inbound_listener: InboundListener | None = None
    updated_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class AccessLogEntry:
    """One exchange, or one connection of a stream. `user_groups` are the caller's group ids at that moment."""

    id: str
    account_id: AccountId
    service_id: str
    timestamp: datetime
    source_ip: str
    method: str
    host: str
    path: str
    duration_ms: int
    status_code: int
    bytes_upload: int
    bytes_download: int
    reason: str = ""
    user_id: str = ""
    auth_method: str = ""
    protocol: str = ""
    metadata: Mapping[str, str] | None = None
    user_groups: tuple[str, ...] = ()
