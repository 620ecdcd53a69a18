"""Services as operators edit them: frozen, complete, without wire or database types."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from netbird_management.model.ids import AccountId, GroupId, ProxyId, ServiceId


class Status(StrEnum):
    """The state of a service on a proxy; `SEVERITY` orders states to choose the single status that a service shows."""

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
"""Types of targets that are network resources, behind routing peers."""


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """Options of one target. Timeouts are in seconds; 0 means unset."""

    skip_tls_verify: bool = False
    request_timeout: float = 0.0
    session_idle_timeout: float = 0.0
    path_rewrite: str = ""
    """`""` removes the matched prefix, `preserve` keeps it."""
    custom_headers: tuple[tuple[str, str], ...] = ()
    """Pairs of name and value as the client wrote them, ordered by name."""
    proxy_protocol: bool = False
    direct_upstream: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """One upstream of a service, under a path.

    `target_id` is the id of a peer, of a network resource or of the cluster, depending on `target_type`. `host` is the
    operator's text; for a peer, `compute.mapping.resolve` looks the host up whenever the target is shown or sent.
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
    """Settings of this target, in the form of `Service.extensions`."""


@dataclass(frozen=True, slots=True)
class SecretAuth:
    """A password or a PIN. `secret` is an Argon2id hash once stored; on update "" keeps the stored hash."""

    enabled: bool = False
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class BearerAuth:
    """Single sign-on, optionally restricted to members of some groups."""

    enabled: bool = False
    distribution_groups: tuple[GroupId, ...] = ()


@dataclass(frozen=True, slots=True)
class HeaderAuth:
    """A request header whose whole value is the credential. `value` is stored like `SecretAuth.secret`."""

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
    """Restrictions by client address. An instance without lists and with mode `""` restricts nothing."""

    allowed_cidrs: tuple[str, ...] = ()
    blocked_cidrs: tuple[str, ...] = ()
    allowed_countries: tuple[str, ...] = ()
    blocked_countries: tuple[str, ...] = ()
    crowdsec_mode: str = ""

    def __bool__(self) -> bool:
        return self != AccessRestrictions()


@dataclass(frozen=True, slots=True)
class ServiceMeta:
    """Facts about a service that management records itself."""

    created_at: datetime


@dataclass(frozen=True, slots=True)
class Service:
    """One exposed application.

    `domain` is folded (`domains.fold`). The core stores `private` and `access_groups`; the plugin that claims `private`
    gives them their meaning. The same holds for `TargetOptions.direct_upstream`.
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
    """True if the cluster consists of the account's own proxies. The address of such a cluster does not prove that a
    domain belongs to the account."""
    extensions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings for plugins by plugin id, and for the core under `core`. The API returns them as sent, so they must not
    contain secrets."""

    @property
    def served(self) -> bool:
        """True if management sends the service to proxies; otherwise proxies must not serve it."""
        return self.enabled and not self.terminated


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Capabilities that a connected proxy reports; hashable, so that proxies with equal capabilities share one answer.

    `None` means "not reported". `claims` are the wire fields that the proxy's plugins support; `None` from a proxy that
    does not support the extension (NetBird's).
    """

    supports_custom_ports: bool | None = None
    require_subdomain: bool | None = None
    supports_crowdsec: bool | None = None
    private: bool | None = None
    supports_private_service: bool | None = None
    claims: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class InboundListener:
    """Address and ports on which a proxy serves inside the tunnel; port 0 means not served."""

    tunnel_ip: str
    https_port: int = 0
    http_port: int = 0


@dataclass(frozen=True, slots=True)
class ProxyStatus:
    """The state of one service on one proxy. `withheld` is the reason why management does not send it there, else "".

    Reports from before a proxy disconnected or reconnected are void: `connected` is false, or the status is pending.
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
    """One exchange, or one connection of a stream. `user_groups` are the ids of the user's groups at that moment."""

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
