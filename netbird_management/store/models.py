"""The tables. Only `network_rows` and `service_rows` convert rows of an account's snapshot to models.

Ordered lists that no query searches (targets, access groups, rules) are JSON columns of their owner's row, always
written whole. `secrets.vault` seals secrets before they are stored.
"""

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import JSON, BigInteger, DateTime, ForeignKey, Index, LargeBinary, String, UniqueConstraint
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A moment: a time-zone-aware `datetime` in UTC for Python, a naive one in UTC for the database."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment must have a time zone")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


_TYPES: Final[dict[Any, Any]] = {
    datetime: UtcDateTime,
    int: BigInteger,
    dict[str, Any]: JSON,
    list[str]: JSON,
    list[int]: JSON,
    list[dict[str, Any]]: JSON,
    bytes: LargeBinary,
    str: String(255),
}


class Row(DeclarativeBase):
    """Base of the tables of accounts."""

    type_annotation_map = _TYPES


class LogRow(DeclarativeBase):
    """Base of the tables of the log. On SQLite they are in a separate file, so that no change waits for the log."""

    type_annotation_map = _TYPES


class AccountRow(Row):
    __tablename__ = "accounts"

    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]
    created_by: Mapped[str]
    network: Mapped[str]
    network_v6: Mapped[str]
    dns_domain: Mapped[str]
    serial: Mapped[int] = mapped_column(default=0)
    changes: Mapped[int] = mapped_column(default=0, server_default="0")
    """Number of changes so far; each event contains the number of its change."""
    settings: Mapped[dict[str, Any]]


class UserRow(Row):
    __tablename__ = "users"

    id: Mapped[str] = mapped_column(primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    role: Mapped[str]
    email: Mapped[str] = mapped_column(default="")
    name: Mapped[str] = mapped_column(default="")
    auto_groups: Mapped[list[str]]
    is_service_user: Mapped[bool] = mapped_column(default=False)
    blocked: Mapped[bool] = mapped_column(default=False)
    pending_approval: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime]
    last_login: Mapped[datetime | None]


class UserIdentityRow(Row):
    """The user whom an identity provider identifies by a subject."""

    __tablename__ = "user_identities"

    issuer: Mapped[str] = mapped_column(primary_key=True)
    subject: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]


class PersonalTokenRow(Row):
    __tablename__ = "personal_access_tokens"

    id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    hashed_token: Mapped[str] = mapped_column(unique=True)
    expires_at: Mapped[datetime]
    created_by: Mapped[str]
    created_at: Mapped[datetime]
    last_used: Mapped[datetime | None]


class GroupRow(Row):
    __tablename__ = "groups"
    __table_args__ = (UniqueConstraint("account_id", "name", name="one_group_a_name"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    issued: Mapped[str] = mapped_column(default="api")


class PeerRow(Row):
    __tablename__ = "peers"
    __table_args__ = (
        UniqueConstraint("account_id", "ip", name="one_peer_an_address"),
        UniqueConstraint("account_id", "ipv6", name="one_peer_an_ipv6_address"),
        UniqueConstraint("account_id", "dns_label", name="one_peer_a_label"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    key: Mapped[str] = mapped_column(unique=True)
    ip: Mapped[str]
    ipv6: Mapped[str | None]
    name: Mapped[str]
    dns_label: Mapped[str]
    user_id: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    meta: Mapped[dict[str, Any]]
    ssh_key: Mapped[str] = mapped_column(String(4096), default="")
    connected: Mapped[bool] = mapped_column(default=False)
    stream_started_ns: Mapped[int] = mapped_column(default=0)
    connection_ip: Mapped[str] = mapped_column(default="")
    last_seen: Mapped[datetime | None]
    last_login: Mapped[datetime | None]
    created_at: Mapped[datetime]
    ephemeral: Mapped[bool] = mapped_column(default=False)
    stock: Mapped[bool] = mapped_column(default=False)
    login_expiration_enabled: Mapped[bool] = mapped_column(default=False, server_default="0")
    login_expired: Mapped[bool] = mapped_column(default=False, server_default="0")
    extra_dns_labels: Mapped[list[str]] = mapped_column(default=list, server_default="[]")
    proxy_cluster: Mapped[str | None]
    wireguard_endpoint: Mapped[str] = mapped_column(default="")
    serves_dns: Mapped[bool] = mapped_column(default=False, server_default="0")


class GroupPeerRow(Row):
    __tablename__ = "group_peers"

    group_id: Mapped[str] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    peer_id: Mapped[str] = mapped_column(ForeignKey("peers.id", ondelete="CASCADE"), primary_key=True, index=True)


class PolicyRow(Row):
    __tablename__ = "policies"

    id: Mapped[str] = mapped_column(primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    enabled: Mapped[bool]
    description: Mapped[str] = mapped_column(String(1024), default="")
    rules: Mapped[list[dict[str, Any]]]


class DomainRow(Row):
    __tablename__ = "domains"
    __table_args__ = (UniqueConstraint("account_id", "domain", name="one_custom_domain_a_name"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    domain: Mapped[str]
    target_cluster: Mapped[str]
    validated: Mapped[bool] = mapped_column(default=False)
    by_alias: Mapped[bool] = mapped_column(default=False, server_default="0")
    """True if an earlier version validated the domain by a CNAME to the cluster."""
    created_at: Mapped[datetime]
    proved_at: Mapped[datetime | None]
    """Time at which DNS last showed the proof."""
    asked_at: Mapped[datetime | None]
    """Time at which DNS was last queried for the proof."""


class SetupKeyRow(Row):
    """A key by which machines join without a user. The key is shown once and stored as a hash."""

    __tablename__ = "setup_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    hashed_key: Mapped[str] = mapped_column(unique=True)
    hint: Mapped[str] = mapped_column(String(8))
    kind: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked: Mapped[bool] = mapped_column(default=False)
    used_times: Mapped[int] = mapped_column(default=0)
    last_used: Mapped[datetime | None]
    auto_groups: Mapped[list[str]]
    usage_limit: Mapped[int]
    ephemeral: Mapped[bool] = mapped_column(default=False)
    allow_extra_dns_labels: Mapped[bool] = mapped_column(default=False)


class NameserverGroupRow(Row):
    __tablename__ = "nameserver_groups"
    __table_args__ = (UniqueConstraint("account_id", "name", name="one_nameserver_group_a_name"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    description: Mapped[str] = mapped_column(String(1024), default="")
    enabled: Mapped[bool]
    primary: Mapped[bool]
    nameservers: Mapped[list[dict[str, Any]]]
    groups: Mapped[list[str]]
    domains: Mapped[list[str]]
    search_domains_enabled: Mapped[bool]


class ZoneRow(Row):
    __tablename__ = "dns_zones"
    __table_args__ = (UniqueConstraint("account_id", "domain", name="one_zone_a_domain"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    domain: Mapped[str]
    enabled: Mapped[bool]
    enable_search_domain: Mapped[bool]
    distribution_groups: Mapped[list[str]]
    records: Mapped[list[dict[str, Any]]]


class NetworkRow(Row):
    """A network behind routing peers, with its resources and its routers."""

    __tablename__ = "networks"

    id: Mapped[str] = mapped_column(primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    description: Mapped[str] = mapped_column(String(1024))
    resources: Mapped[list[dict[str, Any]]]
    routers: Mapped[list[dict[str, Any]]]


class EventRow(Row):
    """The record of a change, written in the transaction of the change."""

    __tablename__ = "events"
    __table_args__ = (Index("events_of_account", "account_id", "number"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))
    number: Mapped[int]
    timestamp: Mapped[datetime]
    activity: Mapped[str] = mapped_column(String(64))
    initiator_id: Mapped[str]
    target_id: Mapped[str]
    details: Mapped[dict[str, Any]]


class ServiceRow(Row):
    __tablename__ = "services"
    __table_args__ = (UniqueConstraint("account_id", "domain", name="one_service_a_domain"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    domain: Mapped[str]
    proxy_cluster: Mapped[str] = mapped_column(index=True)
    own_cluster: Mapped[bool] = mapped_column(default=False, server_default="0")
    targets: Mapped[list[dict[str, Any]]]
    enabled: Mapped[bool]
    terminated: Mapped[bool] = mapped_column(default=False)
    mode: Mapped[str] = mapped_column(String(8))
    listen_port: Mapped[int]
    port_auto_assigned: Mapped[bool]
    pass_host_header: Mapped[bool]
    rewrite_redirects: Mapped[bool]
    auth: Mapped[dict[str, Any]]
    restrictions: Mapped[dict[str, Any]]
    private: Mapped[bool]
    access_groups: Mapped[list[str]]
    session_private_key: Mapped[bytes]
    session_public_key: Mapped[str]
    source: Mapped[str]
    source_peer: Mapped[str] = mapped_column(default="")
    extensions: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime]
    certificate_issued_at: Mapped[datetime | None]


class ProxyRow(Row):
    __tablename__ = "proxies"

    id: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str]
    cluster_address: Mapped[str] = mapped_column(index=True)
    ip_address: Mapped[str]
    account_id: Mapped[str | None] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    token_id: Mapped[str | None]
    last_seen: Mapped[datetime]
    connected_at: Mapped[datetime | None]
    disconnected_at: Mapped[datetime | None]
    status: Mapped[str] = mapped_column(String(20))
    supports_custom_ports: Mapped[bool | None]
    require_subdomain: Mapped[bool | None]
    supports_crowdsec: Mapped[bool | None]
    private: Mapped[bool | None]


class ServiceStatusRow(Row):
    """The state of one service on one proxy."""

    __tablename__ = "service_statuses"

    service_id: Mapped[str] = mapped_column(ForeignKey("services.id", ondelete="CASCADE"), primary_key=True)
    proxy_id: Mapped[str] = mapped_column(ForeignKey("proxies.id", ondelete="CASCADE"), primary_key=True, index=True)
    status: Mapped[str] = mapped_column(String(32))
    error_message: Mapped[str] = mapped_column(String(4096), default="")
    withheld: Mapped[str] = mapped_column(String(4096), default="")
    tunnel_ip: Mapped[str | None]
    https_port: Mapped[int] = mapped_column(default=0)
    http_port: Mapped[int] = mapped_column(default=0)
    updated_at: Mapped[datetime]


class ProxyTokenRow(Row):
    __tablename__ = "proxy_access_tokens"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    hashed_token: Mapped[str] = mapped_column(unique=True)
    account_id: Mapped[str | None] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    expires_at: Mapped[datetime | None]
    created_by: Mapped[str]
    created_at: Mapped[datetime]
    last_used: Mapped[datetime | None]
    revoked: Mapped[bool] = mapped_column(default=False)


class RevocationRow(Row):
    """Revoked sessions: one token, or all sessions of a subject issued before `not_before`. Either `subject` or
    `token_hash` is empty."""

    __tablename__ = "revocations"

    id: Mapped[str] = mapped_column(primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    subject: Mapped[str] = mapped_column(default="")
    token_hash: Mapped[bytes] = mapped_column(default=b"")
    service_id: Mapped[str] = mapped_column(default="", server_default="")
    """The service of the token's session."""
    not_before: Mapped[datetime]


class SealRow(Row):
    """The fingerprint of the key that sealed the store's secrets; a single row."""

    __tablename__ = "seal"

    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)


class SpentNonceRow(Row):
    """The nonce of a spent one-time token or login, kept until it expires."""

    __tablename__ = "spent_nonces"

    nonce: Mapped[str] = mapped_column(primary_key=True)
    expires_at: Mapped[datetime] = mapped_column(index=True)


class GuessRow(Row):
    """Recent failed attempts of one source at a service's passwords, PINs and headers."""

    __tablename__ = "guesses"

    service_id: Mapped[str] = mapped_column(ForeignKey("services.id", ondelete="CASCADE"), primary_key=True)
    source: Mapped[str] = mapped_column(primary_key=True)
    failures: Mapped[int]
    blocked_until: Mapped[datetime | None]
    right_at: Mapped[datetime | None]
    updated_at: Mapped[datetime] = mapped_column(index=True)


class AccessLogRow(LogRow):
    __tablename__ = "access_log"
    __table_args__ = (Index("ix_access_log_of_account", "account_id", "timestamp"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    account_id: Mapped[str]
    service_id: Mapped[str]
    timestamp: Mapped[datetime] = mapped_column(index=True)
    source_ip: Mapped[str]
    method: Mapped[str] = mapped_column(String(64))
    host: Mapped[str]
    path: Mapped[str] = mapped_column(String(4096))
    duration_ms: Mapped[int]
    status_code: Mapped[int]
    reason: Mapped[str] = mapped_column(default="")
    user_id: Mapped[str] = mapped_column(default="")
    auth_method: Mapped[str] = mapped_column(default="")
    bytes_upload: Mapped[int]
    bytes_download: Mapped[int]
    protocol: Mapped[str] = mapped_column(String(8), default="")
    details: Mapped[dict[str, Any]]
    user_groups: Mapped[list[str]]
