"""The management host: services, peers, groups and network maps, for reverse proxies and WireGuard peers.

Here are the public names for plugin authors, and nothing else.
"""

from pluggy import HookimplMarker

from netbird_host.info import Claim, PluginInfo, always, never
from netbird_management.network.model import Group, Peer, Policy, PolicyRule, PortRange, Resource, ResourceType
from netbird_management.network.snapshot import AccountSnapshot
from netbird_management.services.model import Capabilities, Service, Target, TargetOptions, TargetType
from netbird_management.steps import (
    ALLOW,
    Decision,
    Deny,
    DnsRecord,
    Management,
    NetworkPatch,
    PeerGate,
    Violation,
    WithholdPredicate,
)

hookimpl = HookimplMarker("netbird_management")

__all__ = [
    "ALLOW",
    "AccountSnapshot",
    "Capabilities",
    "Claim",
    "Decision",
    "Deny",
    "DnsRecord",
    "Group",
    "Management",
    "NetworkPatch",
    "Peer",
    "PeerGate",
    "PluginInfo",
    "Policy",
    "PolicyRule",
    "PortRange",
    "Resource",
    "ResourceType",
    "Service",
    "Target",
    "TargetOptions",
    "TargetType",
    "Violation",
    "WithholdPredicate",
    "always",
    "hookimpl",
    "never",
]
