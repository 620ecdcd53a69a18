"""Protocols of policy rules: their names in policies, and their values in network maps."""

from collections.abc import Mapping
from typing import Final

from netbird_wire.management_pb2 import ALL, ICMP, TCP, UDP, RuleProtocol

PROTOCOLS: Final[Mapping[str, "RuleProtocol.ValueType"]] = {"all": ALL, "tcp": TCP, "udp": UDP, "icmp": ICMP}
# Protocols whose rules may name ports.
PORTED: Final = ("tcp", "udp")
