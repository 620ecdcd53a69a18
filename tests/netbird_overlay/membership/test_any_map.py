"""Any map is applied or refused: nothing else is raised, and no peer gets more than the map says."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netbird_overlay.engine import Engine
from netbird_overlay.membership.applied_map import AppliedMap
from netbird_overlay.membership.configuration import read_login, read_refresh
from netbird_overlay.network_map import MapError, OwnNode, read_own
from netbird_overlay.testing import loopback_node
from netbird_wire.envelope import format_key
from netbird_wire.management_pb2 import (
    CustomZone,
    DNSConfig,
    FirewallRule,
    NameServer,
    NameServerGroup,
    NetbirdConfig,
    NetworkMap,
    PeerConfig,
    PortInfo,
    RemotePeerConfig,
    Route,
    SimpleRecord,
)

US = OwnNode(("100.64.0.1", "fd00::1"), 1280)
KEYS = [format_key(bytes([number]) * 32) for number in range(1, 5)]
HOSTS = [
    "100.64.0.1",
    "100.64.0.5",
    "100.64.0.6",
    "10.50.0.7",
    "fd00::5",
    "::ffff:100.64.0.5",
    "0.0.0.0",
    "::",
    "127.0.0.1",
]

small = st.integers(-(2**31), 2**31 - 1)
names = st.sampled_from(["", ".", "a.example", "*.a.example", "*", "b.example.", "x" * 300, "\u00fc.example"])
keys = st.sampled_from([*KEYS, "", "junk"])
hosts = st.sampled_from([*HOSTS, "", "junk", "fe80::1%eth0"])
prefixes = st.one_of(
    st.builds(lambda host, length: f"{host}/{length}", hosts, st.sampled_from([0, 8, 24, 32, 64, 128, 129])), hosts
)


def lists(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, max_size=4)


ports = st.one_of(
    st.none(),
    st.builds(PortInfo, port=st.integers(0, 2**32 - 1)),
    st.builds(
        lambda start, end: PortInfo(range=PortInfo.Range(start=start, end=end)),
        st.integers(0, 70000),
        st.integers(0, 70000),
    ),
)
rules = st.builds(
    FirewallRule,
    PeerIP=hosts,
    Direction=st.sampled_from([0, 1, 7]),
    Action=st.sampled_from([0, 1, 7]),
    Protocol=st.sampled_from([0, 1, 2, 3, 4, 5, 6, 99]),
    Port=st.sampled_from(["", "0", "80", "http", "99999", "\u0663"]),
    PortInfo=ports,
    customProtocol=st.sampled_from([0, 1, 6, 17, 58, 255]),
    sourcePrefixes=lists(st.binary(max_size=18)),
)
peers = st.builds(RemotePeerConfig, wgPubKey=keys, allowedIps=lists(prefixes), fqdn=names, agentVersion=names)
routes = st.builds(
    Route,
    ID=names,
    Network=prefixes,
    NetworkType=small,
    Peer=keys,
    Metric=st.integers(-(2**63), 2**63 - 1),
    NetID=names,
    Domains=lists(names),
    keepRoute=st.booleans(),
)
records = st.builds(
    SimpleRecord, Name=names, Type=st.sampled_from([1, 5, 28, 0, -1]), Class=names, RData=st.one_of(names, hosts)
)
servers = st.builds(NameServer, IP=hosts, Port=st.integers(-(2**63), 2**63 - 1))
groups = st.builds(NameServerGroup, NameServers=lists(servers), Primary=st.booleans(), Domains=lists(names))
dns = st.builds(
    DNSConfig,
    ServiceEnable=st.booleans(),
    NameServerGroups=lists(
        st.builds(NameServerGroup, NameServers=lists(servers), Primary=st.booleans(), Domains=lists(names))
    ),
    CustomZones=lists(st.builds(CustomZone, Domain=names, Records=lists(records), NonAuthoritative=st.booleans())),
    ForwarderPort=st.integers(-(2**63), 2**63 - 1),
)
maps = st.builds(
    NetworkMap,
    remotePeers=lists(peers),
    remotePeersIsEmpty=st.booleans(),
    offlinePeers=lists(peers),
    Routes=lists(routes),
    DNSConfig=dns,
    FirewallRules=lists(rules),
)


async def apply(sequence: list[NetworkMap]) -> None:
    """Apply maps one after the other to a real node, and check what must hold after each."""
    async with loopback_node(*US.addresses, private_key=secrets.token_bytes(32)) as node:
        applied = AppliedMap(node, None, inbound=True, endpoints={}, connected=set())
        for network_map in sequence:
            await applied.apply(network_map, US)
            listed = {(peer.wgPubKey, text) for peer in network_map.remotePeers for text in peer.allowedIps}
            if network_map.remotePeers or network_map.remotePeersIsEmpty:
                assert {format_key(key) for key in node.members} <= {key for key, _ in listed}
            for host in HOSTS:
                owner = node.whois(host)
                assert owner is None or owner.addresses
                assert host not in US.addresses or owner is None
                applied.unreachable(host)
            for name in ("a.example", "x.a.example", "b.example"):
                applied.unreachable(name)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(maps, min_size=1, max_size=3))
def test_any_sequence_of_maps_is_applied(sequence: list[NetworkMap]) -> None:
    """Peers are those of the map, our own addresses are nobody's, and no part of a map raises."""
    asyncio.run(apply(sequence))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40) | st.binary(min_size=17, max_size=17), prefixes | st.text(max_size=30), small)
def test_our_own_node_is_read_or_refused(address_v6: bytes, address: str, mtu: int) -> None:
    """A configuration of our node is usable, or an error that the stream survives."""
    try:
        own = read_own(PeerConfig(address=address, address_v6=address_v6, mtu=mtu))
    except MapError:
        return
    Engine(bytes(31) + b"\x01", mtu=own.mtu).set_addresses(own.addresses)
    assert 576 <= own.mtu <= 8192


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_configuration_is_read(data: bytes) -> None:
    """Servers are read or left out, whatever bytes make the message."""
    try:
        config = NetbirdConfig.FromString(data)
    except Exception:
        return
    read_login(config)
    read_refresh(config)
