"""Models of the API's responses for the OpenAPI document: a response has exactly these fields.

The routers build the responses; no model here runs when a request is served. Tests with generated requests keep the
two in agreement.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Shape(BaseModel):
    """A field with a default may be absent."""

    model_config = ConfigDict(extra="forbid")


class Nothing(Shape):
    """An empty object: the operation succeeded."""


class Error(Shape):
    """An error; `code` is the HTTP status."""

    message: str
    code: int


class Instance(Shape):
    setup_required: bool


class AgentLogin(Shape):
    issuer: str
    client_id: str


class SetUp(Shape):
    user_id: str
    email: str
    personal_access_token: str = ""


class Permissions(Shape):
    is_restricted: bool
    modules: dict[str, dict[Literal["create", "read", "update", "delete"], bool]]


class User(Shape):
    auto_groups: list[str]
    email: str
    id: str
    idp_id: str
    is_blocked: bool
    is_current: bool
    is_service_user: bool
    issued: str
    last_login: str
    name: str
    pending_approval: bool
    role: str
    status: str


class CurrentUser(User):
    permissions: Permissions


class PersonalToken(Shape):
    created_at: str
    created_by: str
    expiration_date: str
    id: str
    name: str
    last_used: str = ""


class NewPersonalToken(Shape):
    personal_access_token: PersonalToken
    plain_token: str


class ExtraSettings(Shape):
    user_approval_required: bool


class AccountSettings(Shape):
    dns_domain: str
    extra: ExtraSettings
    groups_propagation_enabled: bool
    ipv6_enabled_groups: list[str]
    jwt_groups_enabled: bool
    lazy_connection_enabled: bool
    network_range: str
    network_range_v6: str
    peer_expose_enabled: bool
    peer_expose_groups: list[str]
    peer_inactivity_expiration: int
    peer_inactivity_expiration_enabled: bool
    peer_login_expiration: int
    peer_login_expiration_enabled: bool
    regular_users_view_blocked: bool
    routing_peer_dns_resolution_enabled: bool


class Account(Shape):
    created_at: str
    created_by: str
    domain: str
    domain_category: str
    id: str
    settings: AccountSettings


class Resource(Shape):
    id: str
    type: str


class PeerMinimum(Shape):
    id: str
    name: str


class GroupMinimum(Shape):
    id: str
    name: str
    peers_count: int
    resources_count: int


class Group(GroupMinimum):
    issued: str
    warning: str = ""
    peers: list[PeerMinimum] | None
    resources: list[Resource] | None


class Peer(Shape):
    approval_required: bool
    city_name: str
    connected: bool
    connection_ip: str
    country_code: str
    created_at: str
    dns_label: str
    ephemeral: bool
    extra_dns_labels: list[str]
    geoname_id: int
    groups: list[GroupMinimum]
    hostname: str
    id: str
    inactivity_expiration_enabled: bool
    ip: str
    ipv6: str
    kernel_version: str
    last_login: str
    last_seen: str
    local_flags: dict[str, bool]
    login_expiration_enabled: bool
    login_expired: bool
    name: str
    os: str
    serial_number: str
    ssh_enabled: bool
    ui_version: str
    user_id: str
    version: str


class AccessiblePeer(Shape):
    city_name: str
    connected: bool
    country_code: str
    dns_label: str
    geoname_id: int
    id: str
    ip: str
    ipv6: str
    last_seen: str
    name: str
    os: str
    user_id: str


class ListedPeer(Peer):
    accessible_peers_count: int


class NewPeer(Peer):
    private_key: str = ""


class SetupKey(Shape):
    allow_extra_dns_labels: bool
    auto_groups: list[str]
    ephemeral: bool
    expires: str
    id: str
    key: str
    last_used: str
    name: str
    revoked: bool
    state: Literal["valid", "expired", "revoked", "overused"]
    type: Literal["reusable", "one-off"]
    updated_at: str
    usage_limit: int
    used_times: int
    valid: bool


class PortRange(Shape):
    start: int
    end: int


class Rule(Shape):
    action: Literal["accept", "drop"]
    bidirectional: bool
    description: str
    enabled: bool
    id: str
    name: str
    protocol: str
    sources: list[GroupMinimum] = []
    destinations: list[GroupMinimum] = []
    sourceResource: Resource | None = None  # noqa: N815 - a member's name
    destinationResource: Resource | None = None  # noqa: N815 - a member's name
    ports: list[str] = []
    port_ranges: list[PortRange] = []


class Policy(Shape):
    description: str
    enabled: bool
    id: str
    name: str
    rules: list[Rule]
    source_posture_checks: None


class DnsSettings(Shape):
    disabled_management_groups: list[str]


class Nameserver(Shape):
    ip: str
    ns_type: Literal["udp"]
    port: int


class NameserverGroup(Shape):
    description: str
    domains: list[str]
    enabled: bool
    groups: list[str]
    id: str
    name: str
    nameservers: list[Nameserver]
    primary: bool
    search_domains_enabled: bool


class Record(Shape):
    content: str
    id: str
    name: str
    ttl: int
    type: Literal["A", "AAAA", "CNAME"]


class Zone(Shape):
    distribution_groups: list[str]
    domain: str
    enable_search_domain: bool
    enabled: bool
    id: str
    name: str
    records: list[Record]


class Network(Shape):
    description: str
    id: str
    name: str
    policies: list[str]
    resources: list[str]
    routers: list[str]
    routing_peers_count: int


class NetworkResource(Shape):
    address: str
    description: str
    enabled: bool
    groups: list[GroupMinimum]
    id: str
    name: str
    type: Literal["host", "subnet", "domain"]


class NetworkRouter(Shape):
    enabled: bool
    id: str
    masquerade: bool
    metric: int
    peer: str | None = None
    peer_groups: list[str] | None = None


class PasswordAuth(Shape):
    enabled: bool
    password: Literal[""]


class PinAuth(Shape):
    enabled: bool
    pin: Literal[""]


class BearerAuth(Shape):
    enabled: bool
    distribution_groups: list[str] = []


class HeaderAuth(Shape):
    enabled: bool
    header: str
    value: Literal[""]


class Auth(Shape):
    password_auth: PasswordAuth | None = None
    pin_auth: PinAuth | None = None
    bearer_auth: BearerAuth | None = None
    header_auths: list[HeaderAuth] = []


class Restrictions(Shape):
    allowed_cidrs: list[str] = []
    blocked_cidrs: list[str] = []
    allowed_countries: list[str] = []
    blocked_countries: list[str] = []
    crowdsec_mode: str = ""


class ServiceMeta(Shape):
    created_at: str
    status: str
    certificate_issued_at: str = ""


class TargetOptions(Shape):
    custom_headers: dict[str, str] = {}
    direct_upstream: bool = False
    extensions: dict[str, Any] = {}
    path_rewrite: str = ""
    proxy_protocol: bool = False
    request_timeout: str = ""
    session_idle_timeout: str = ""
    skip_tls_verify: bool = False


class Target(Shape):
    enabled: bool
    host: str
    options: TargetOptions
    port: int
    protocol: str
    target_id: str
    target_type: Literal["peer", "host", "domain", "subnet", "cluster"]
    path: str | None = None
    extensions: dict[str, Any] = {}


class Service(Shape):
    auth: Auth
    domain: str
    enabled: bool
    id: str
    listen_port: int
    meta: ServiceMeta
    mode: Literal["http", "tcp", "udp", "tls"]
    name: str
    pass_host_header: bool
    port_auto_assigned: bool
    private: bool
    rewrite_redirects: bool
    targets: list[Target]
    terminated: bool
    proxy_cluster: str = ""
    access_groups: list[str] = []
    access_restrictions: Restrictions | None = None
    extensions: dict[str, Any] = {}


class InboundListener(Shape):
    tunnel_ip: str
    https_port: int = 0
    http_port: int = 0


class ProxyStatus(Shape):
    error_message: str
    inbound_listener: InboundListener | None
    proxy_id: str
    status: str
    updated_at: str
    withheld: str


class Cluster(Shape):
    address: str
    connected_proxies: int
    id: str
    online: bool
    type: Literal["account", "shared"]
    private: bool | None = None
    require_subdomain: bool | None = None
    supports_crowdsec: bool | None = None
    supports_custom_ports: bool | None = None
    inbound_listeners: list[InboundListener] = []


class ValidationRecord(Shape):
    """The DNS record that proves the ownership of a custom domain."""

    name: str
    type: Literal["TXT"]
    value: str


class Domain(Shape):
    domain: str
    id: str
    type: Literal["free", "custom"]
    validated: bool
    target_cluster: str = ""
    validation_record: ValidationRecord | None = None
    require_subdomain: bool | None = None
    supports_crowdsec: bool | None = None
    supports_custom_ports: bool | None = None
    supports_private: bool | None = None


class ProxyToken(Shape):
    created_at: str
    id: str
    name: str
    revoked: bool
    expires_at: str = ""
    last_used: str = ""


class NewProxyToken(ProxyToken):
    plain_token: str


class Event(Shape):
    activity: str
    activity_code: str
    id: str
    initiator_email: str
    initiator_id: str
    initiator_name: str
    meta: dict[str, str]
    target_id: str
    timestamp: str


class AccessLogEntry(Shape):
    bytes_download: int
    bytes_upload: int
    duration_ms: int
    host: str
    id: str
    method: str
    path: str
    service_id: str
    status_code: int
    timestamp: str
    auth_method_used: str = ""
    metadata: dict[str, str] = {}
    protocol: str = ""
    reason: str = ""
    source_ip: str = ""
    user_groups: list[str] = []
    user_id: str = ""


class AccessLogPage(Shape):
    data: list[AccessLogEntry]
    page: int
    page_size: int
    total_pages: int
    total_records: int
