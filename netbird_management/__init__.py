"""The management host: services, peers, groups and network maps, for reverse proxies and WireGuard peers.

This module exports the public names for plugin authors, and nothing else.
"""

from netbird_host.info import Claim, PluginInfo, always, never
from netbird_management.model.accounts import (
    Group,
    Peer,
    Policy,
    PolicyRule,
    PortRange,
    Resource,
    ResourceType,
    Role,
    User,
)
from netbird_management.model.admission import admitted
from netbird_management.model.ids import AccountId, GroupId, PeerId, PolicyId, ServiceId, UserId
from netbird_management.model.services import AccessLogEntry, Capabilities, Service, Target, TargetOptions, TargetType
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.plugins.hookspecs import hookimpl
from netbird_management.plugins.steps import (
    ALLOW,
    ApiCaller,
    Decision,
    Deny,
    DnsRecord,
    Login,
    Management,
    NetworkPatch,
    PeerGate,
    PeerServers,
    ProxyCaller,
    RpcService,
    SessionGate,
    TakeSocket,
    Violation,
    WithholdPredicate,
)

__all__ = [
    "ALLOW",
    "AccessLogEntry",
    "AccountId",
    "AccountSnapshot",
    "ApiCaller",
    "Capabilities",
    "Claim",
    "Decision",
    "Deny",
    "DnsRecord",
    "Group",
    "GroupId",
    "Login",
    "Management",
    "NetworkPatch",
    "Peer",
    "PeerGate",
    "PeerId",
    "PeerServers",
    "PluginInfo",
    "Policy",
    "PolicyId",
    "PolicyRule",
    "PortRange",
    "ProxyCaller",
    "Resource",
    "ResourceType",
    "Role",
    "RpcService",
    "Service",
    "ServiceId",
    "SessionGate",
    "TakeSocket",
    "Target",
    "TargetOptions",
    "TargetType",
    "User",
    "UserId",
    "Violation",
    "WithholdPredicate",
    "admitted",
    "always",
    "hookimpl",
    "never",
]
