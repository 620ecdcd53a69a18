"""The public names: everything that plugins get and give, and the application itself."""

import warnings as _warnings
from typing import TYPE_CHECKING as _TYPE_CHECKING

from netbird_proxy.api.addresses import AllowedNetworks, NetworkOptions
from netbird_proxy.api.endpoints import EXCHANGE_STATE, Endpoint
from netbird_proxy.api.errors import (
    AddressRefused,
    DialFailed,
    DialRefused,
    DialTimeout,
    DialUnreachable,
    ManagementError,
    ManagementRefused,
    ManagementTimeout,
    ManagementUnavailable,
    ProxyError,
    RouteRefused,
    TlsFailed,
    TunnelNotReady,
    UpstreamError,
    management_error,
)
from netbird_proxy.api.exchange import OBSERVED, ExchangeView, TrailEntry, Try
from netbird_proxy.api.forwarded import Forwarded, TrustedProxies
from netbird_proxy.api.headers import Headers, fold
from netbird_proxy.api.hookspecs import hookimpl
from netbird_proxy.api.host import AccountHandle, ManagementChannel, OpenExchanges, Proxy, Revocations
from netbird_proxy.api.kit import (
    TOKEN_PATTERN,
    Backoff,
    BoundedTable,
    Buckets,
    Claim,
    IdentityCache,
    LatestTable,
    LineWriter,
    LoginThrottle,
    PluginInfo,
    ReloadReport,
    SingleFlight,
    always,
    never,
    retry_after,
    source_of,
    unmapped,
)
from netbird_proxy.api.model import (
    ALLOW,
    OWN_PATHS,
    AccountId,
    Address,
    Challenge,
    Decision,
    Deny,
    ExchangeId,
    Group,
    Identity,
    Kind,
    Offer,
    OfferField,
    Origin,
    Peer,
    PublicKey,
    RouteSpec,
    ServiceId,
    ServiceMapping,
    Upstream,
    UserId,
    Verdict,
)
from netbird_proxy.api.outgoing_head import OutgoingHead
from netbird_proxy.api.response_head import ResponseHead
from netbird_proxy.api.same_origin import is_browser, is_cross_site, is_unsafe, own_path
from netbird_proxy.api.share import WHOLE, Share
from netbird_proxy.api.steps import (
    Authenticator,
    Guard,
    MappingSettings,
    Observer,
    Page,
    Pages,
    Rendered,
    RequestTransform,
    ResponseTransform,
    Selector,
    TargetSettings,
)
from netbird_proxy.api.tunnels import Dialer, ProtocolFactory, Reachability, Tunnel, TunnelListener
from netbird_proxy.app import ReverseProxy

__all__ = [
    "ALLOW",
    "EXCHANGE_STATE",
    "OBSERVED",
    "OWN_PATHS",
    "TOKEN_PATTERN",
    "WHOLE",
    "AccountHandle",
    "AccountId",
    "Address",
    "AddressRefused",
    "AllowedNetworks",
    "Authenticator",
    "Backoff",
    "BoundedTable",
    "Buckets",
    "Challenge",
    "Claim",
    "Decision",
    "Deny",
    "DialFailed",
    "DialRefused",
    "DialTimeout",
    "DialUnreachable",
    "Dialer",
    "Endpoint",
    "ExchangeId",
    "ExchangeView",
    "Forwarded",
    "Group",
    "Guard",
    "Headers",
    "Identity",
    "IdentityCache",
    "Kind",
    "LatestTable",
    "LineWriter",
    "LoginThrottle",
    "ManagementChannel",
    "ManagementError",
    "ManagementRefused",
    "ManagementTimeout",
    "ManagementUnavailable",
    "MappingSettings",
    "NetworkOptions",
    "Observer",
    "Offer",
    "OfferField",
    "OpenExchanges",
    "Origin",
    "OutgoingHead",
    "Page",
    "Pages",
    "Peer",
    "PluginInfo",
    "ProtocolFactory",
    "Proxy",
    "ProxyError",
    "PublicKey",
    "Reachability",
    "ReloadReport",
    "Rendered",
    "RequestTransform",
    "ResponseHead",
    "ResponseTransform",
    "ReverseProxy",
    "Revocations",
    "RouteRefused",
    "RouteSpec",
    "Selector",
    "ServiceId",
    "ServiceMapping",
    "Share",
    "SingleFlight",
    "TargetSettings",
    "TlsFailed",
    "TrailEntry",
    "TrustedProxies",
    "Try",
    "Tunnel",
    "TunnelListener",
    "TunnelNotReady",
    "Upstream",
    "UpstreamError",
    "UserId",
    "Verdict",
    "always",
    "fold",
    "hookimpl",
    "is_browser",
    "is_cross_site",
    "is_unsafe",
    "management_error",
    "never",
    "own_path",
    "retry_after",
    "source_of",
    "unmapped",
]

if _TYPE_CHECKING:
    Mapping = ServiceMapping
else:

    def __getattr__(name: str) -> object:
        """Earlier names, each with a DeprecationWarning."""
        if name == "Mapping":
            _warnings.warn("netbird_proxy.Mapping is now ServiceMapping", DeprecationWarning, stacklevel=2)
            return ServiceMapping
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
