"""Reading the network map: anything unclear in it denies access."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from netbird_overlay.network_map import MapError, OwnNode, Roster, read_inbound, read_own, read_roster
from netbird_wire.envelope import format_key, parse_key
from netbird_wire.management_pb2 import (
    ACCEPT,
    ALL,
    CUSTOM,
    DROP,
    ICMP,
    IN,
    OUT,
    TCP,
    UDP,
    UNKNOWN,
    FirewallRule,
    NetworkMap,
    PeerConfig,
    PortInfo,
    RemotePeerConfig,
    SyncResponse,
)

OURS = b"\x01" * 32
US = OwnNode(("100.64.0.1", "fd00::1"), 1280)
EVERYTHING = {("0.0.0.0/0", 6, 0, 65535), ("::/0", 6, 0, 65535)}
ALICE = "100.64.0.9/32"


def key(number: int) -> str:
    return format_key(bytes([number]) * 32)


def roster(*peers: RemotePeerConfig, own: OwnNode = US) -> Roster:
    return read_roster(NetworkMap(remotePeers=peers, remotePeersIsEmpty=not peers), OURS, own)


def addresses(found: Roster) -> dict[str, tuple[str, ...]]:
    assert found.members is not None
    return {format_key(member.key): member.addresses for member in found.members}


def rules(*given: FirewallRule) -> tuple[set[Any], set[Any]]:
    inbound = read_inbound(NetworkMap(FirewallRules=given))
    return set(inbound.allowed), set(inbound.denied)


def tcp(source: str = "100.64.0.9", port: int = 443, **more: Any) -> FirewallRule:
    return FirewallRule(
        **{"PeerIP": source, "Direction": IN, "Action": ACCEPT, "Protocol": TCP, "PortInfo": PortInfo(port=port)} | more
    )


def test_a_captured_map_is_read_whole() -> None:
    """NetBird's own map of a proxy's peer: both members by both families, and TCP to 80 and 443 from each."""
    text = (Path(__file__).parent / "syncresponse.json").read_text()
    response = json_format.ParseDict(_without_nulls(json.loads(text)), SyncResponse())
    own = read_own(response.NetworkMap.peerConfig)
    found = read_roster(response.NetworkMap, OURS, own)
    inbound = read_inbound(response.NetworkMap)

    assert [ip_address(one).version for one in own.addresses] == [4, 6]
    assert own.addresses[0] == "100.106.247.152"
    assert own.mtu == 1280
    assert found.skipped == 0
    assert addresses(found) == {
        "4SDAA8HPpKiN60Xd8QXLuEbeagsW+XlDej8j+al2hTE=": (
            "100.106.97.168",
            "fdbd:a866:d255:9ff2:1994:2ddf:3362:313",
        ),
        "bvZ4Yhzmp3tOx5vUXyivaMWKLITvquYzZjIXNPehnVk=": ("100.106.50.72", "fdbd:a866:d255:9ff2:e654:ee71:d4cd:cd46"),
    }
    assert inbound.denied == ()
    assert {(proto, first, last) for _, proto, first, last in inbound.allowed} == {(6, 80, 80), (6, 443, 443)}
    assert all("/32" in source or "/128" in source for source, _, _, _ in inbound.allowed)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def test_routes_are_nobodys_address() -> None:
    """A prefix says who carries packets: whois must not take it for who sent them."""
    found = roster(
        RemotePeerConfig(wgPubKey=key(2), allowedIps=["100.64.0.2/32", "10.0.0.0/8", "fd00::2/128", "::/0", "junk"])
    )
    assert addresses(found) == {key(2): ("100.64.0.2", "fd00::2")}


def test_an_address_of_two_is_nobodys() -> None:
    """An address of two peers identifies neither, so both lose it."""
    found = roster(
        RemotePeerConfig(wgPubKey=key(2), allowedIps=["100.64.0.2/32", "100.64.0.3/32"]),
        RemotePeerConfig(wgPubKey=key(3), allowedIps=["100.64.0.3/32"]),
        RemotePeerConfig(wgPubKey=key(4), allowedIps=["::ffff:100.64.0.3/128"]),
    )
    assert addresses(found) == {key(2): ("100.64.0.2",)}
    assert found.skipped == 3


def test_our_own_key_and_addresses_are_ours() -> None:
    """Our own key and addresses are ignored if a map assigns them to another peer."""
    found = roster(
        RemotePeerConfig(wgPubKey=format_key(OURS), allowedIps=["100.64.0.7/32"]),
        RemotePeerConfig(wgPubKey=key(2), allowedIps=["100.64.0.1/32"]),
        RemotePeerConfig(wgPubKey="short", allowedIps=["100.64.0.8/32"]),
        RemotePeerConfig(wgPubKey=key(3), allowedIps=[]),
    )
    assert addresses(found) == {}
    assert found.skipped == 3


def test_no_ipv6_of_ours_no_ipv6_of_theirs() -> None:
    """If our node has no IPv6 address, the peers' IPv6 addresses are left out."""
    peer = RemotePeerConfig(wgPubKey=key(2), allowedIps=["100.64.0.2/32", "fd00::2/128"])
    assert addresses(roster(peer, own=OwnNode(("100.64.0.1",), 1280))) == {key(2): ("100.64.0.2",)}


def test_saying_nothing_is_not_saying_nobody() -> None:
    """An empty list empties the roster only if the map declares it as empty."""
    assert read_roster(NetworkMap(), OURS, US).members is None
    assert read_roster(NetworkMap(remotePeersIsEmpty=True), OURS, US).members == ()


def test_nothing_comes_in_without_a_rule() -> None:
    """Without rules nothing is admitted, also from a server that omits them to allow everything."""
    assert rules() == (set(), set())


def test_only_what_surely_concerns_us_is_read() -> None:
    """TCP, UDP and echo requests into this node; rules for other protocols or for outbound traffic open nothing."""
    assert rules(
        tcp(),
        tcp(Protocol=ALL, PortInfo=PortInfo(range=PortInfo.Range(start=80, end=81))),
        tcp(Direction=OUT, port=1),
        tcp(Protocol=UDP, port=2),
        tcp(Protocol=ICMP, port=3),
        tcp(Protocol=CUSTOM, port=4, customProtocol=6),
        tcp(Protocol=UNKNOWN, port=5),
        tcp("100.64.0.8", Protocol=ALL, PortInfo=PortInfo()),
    )[0] == {
        (ALICE, 6, 443, 443),
        (ALICE, 6, 80, 81),
        (ALICE, 17, 80, 81),
        (ALICE, 17, 2, 2),
        (ALICE, 1, 0, 0),
        ("100.64.0.8/32", 6, 0, 65535),
        ("100.64.0.8/32", 17, 0, 65535),
        ("100.64.0.8/32", 1, 0, 0),
    }


def test_sources_and_ports_in_every_spelling() -> None:
    """The first prefix before the old single address, the unspecified address for its family, and ports as text."""
    allowed, _ = rules(
        tcp(sourcePrefixes=[ip_address("fd00::9").packed + bytes([128])]),
        tcp(source="0.0.0.0", port=80),
        tcp(source="::", port=81),
        tcp(sourcePrefixes=[bytes([0, 0, 0, 0, 32])], port=82),
        FirewallRule(PeerIP="100.64.0.9", Protocol=TCP, Port="83"),
        FirewallRule(PeerIP="100.64.0.8", Protocol=TCP),
    )
    assert allowed == {
        ("fd00::9/128", 6, 443, 443),
        ("0.0.0.0/0", 6, 80, 80),
        ("::/0", 6, 81, 81),
        ("0.0.0.0/0", 6, 82, 82),
        ("100.64.0.9/32", 6, 83, 83),
        ("100.64.0.8/32", 6, 0, 65535),
    }


def test_an_accept_rule_admits_the_first_address_alone() -> None:
    """A prefix length and further prefixes of an ACCEPT rule count for nothing, as with NetBird's agents."""
    wide, further = bytes([10, 0, 0, 0, 8]), bytes([192, 168, 0, 1, 32])
    assert rules(tcp(sourcePrefixes=[wide, further]))[0] == {("10.0.0.0/32", 6, 443, 443)}


def test_a_drop_rule_closes_all_of_its_prefixes() -> None:
    """A DROP rule counts for every address in every prefix that it has."""
    wide, further = bytes([10, 0, 0, 0, 8]), bytes([192, 168, 0, 1, 32])
    assert rules(tcp(sourcePrefixes=[wide, further], Action=DROP))[1] == {
        ("10.0.0.0/8", 6, 443, 443),
        ("192.168.0.1/32", 6, 443, 443),
    }


def test_a_rule_for_the_source_goes_before_one_for_any() -> None:
    """ACCEPT of a source beats DROP of any source, as with NetBird's agents; DROP of the source beats both."""
    allowed, denied = rules(
        tcp("0.0.0.0", Action=DROP, PortInfo=PortInfo()),
        tcp("0.0.0.0", port=443),
        tcp("100.64.0.9", port=443),
        tcp("100.64.0.8", port=443),
        tcp("100.64.0.8", port=443, Action=DROP),
    )
    assert allowed == {(ALICE, 6, 443, 443), ("100.64.0.8/32", 6, 443, 443)}
    assert denied == {("100.64.0.8/32", 6, 443, 443)}


@pytest.mark.parametrize(
    ("drops", "left"),
    [
        ([(443, 443)], {(0, 442), (444, 65535)}),
        ([(1, 10), (5, 20)], {(0, 0), (21, 65535)}),
        ([(60000, 65535)], {(0, 59999)}),
        ([(1, 65535)], {(0, 0)}),
    ],
)
def test_a_prohibition_for_any_source_cuts_what_any_source_may(
    drops: list[tuple[int, int]], left: set[tuple[int, int]]
) -> None:
    """DROP rules for any source take their ports from ACCEPT rules for any source, wherever they stand in the map."""
    ranges = [PortInfo(range=PortInfo.Range(start=start, end=end)) for start, end in drops]
    prohibitions = [tcp("0.0.0.0", Action=DROP, PortInfo=ports) for ports in ranges]
    for order in (
        [tcp("0.0.0.0", PortInfo=PortInfo()), *prohibitions],
        [*prohibitions, tcp("0.0.0.0", PortInfo=PortInfo())],
    ):
        assert rules(*order) == ({("0.0.0.0/0", 6, first, last) for first, last in left}, set())
    assert rules(*prohibitions, tcp("::", PortInfo=PortInfo()))[0] == {("::/0", 6, 0, 65535)}


def test_a_mapped_source_is_ipv4() -> None:
    """An IPv4-mapped address in a rule is the IPv4 address that packets have."""
    mapped = ip_address("::ffff:100.64.0.9").packed
    assert rules(tcp("::ffff:100.64.0.9"))[0] == {(ALICE, 6, 443, 443)}
    assert rules(tcp(sourcePrefixes=[mapped + bytes([128])]))[0] == {(ALICE, 6, 443, 443)}
    assert rules(tcp(sourcePrefixes=[mapped + bytes([104])], Action=DROP))[1] == {("100.0.0.0/8", 6, 443, 443)}
    assert rules(tcp(sourcePrefixes=[mapped + bytes([64])], Action=DROP, PortInfo=PortInfo()))[1] == set()
    assert rules(tcp(sourcePrefixes=[mapped + bytes([129])]))[0] == set()


BAD_PARTS: list[dict[str, Any]] = [
    {"source": "nobody"},
    {"source": "fe80::1%eth0"},
    {"source": ""},
    {"sourcePrefixes": [b"\x01\x02"]},
    {"sourcePrefixes": [bytes([100, 64, 0, 9, 33])]},
    {"sourcePrefixes": [bytes([100, 64, 0, 9, 32]), b""]},
]


@pytest.mark.parametrize("bad", BAD_PARTS)
def test_an_unreadable_source_admits_nobody_and_stops_everybody(bad: dict[str, Any]) -> None:
    """An ACCEPT rule with an invalid source is left out; a DROP rule with one applies to all sources."""
    assert rules(tcp(**bad)) == (set(), set())
    assert rules(tcp(**bad, Action=DROP, PortInfo=PortInfo())) == (set(), EVERYTHING)


@pytest.mark.parametrize(
    "bad",
    [
        {"PortInfo": PortInfo(range=PortInfo.Range(start=9, end=8))},
        {"PortInfo": PortInfo(range=PortInfo.Range(start=0, end=8))},
        {"PortInfo": PortInfo(port=70000)},
        {"PortInfo": None, "Port": "http"},
        {"PortInfo": None, "Port": "70000"},
    ],
)
def test_unreadable_ports_open_none_and_close_all(bad: dict[str, Any]) -> None:
    """An ACCEPT rule with invalid ports is left out; a DROP rule with them applies to all ports."""
    assert rules(tcp(**bad)) == (set(), set())
    assert rules(tcp(**bad, Action=DROP)) == (set(), {("100.64.0.9/32", 6, 0, 65535)})


@pytest.mark.parametrize(
    ("protocol", "numbers"),
    [(TCP, {6}), (UDP, {17}), (ALL, {6, 17, 1}), (UNKNOWN, {6, 17, 1}), (99, {6, 17, 1}), (ICMP, {1}), (CUSTOM, {6})],
)
def test_a_prohibition_counts_unless_it_is_surely_of_something_else(protocol: int, numbers: set[int]) -> None:
    """A DROP rule applies to every protocol that it may mean."""
    denied = rules(tcp(Protocol=protocol, Action=DROP, customProtocol=6))[1]
    assert {number for _, number, _, _ in denied} == numbers
    assert all((first, last) == (443, 443) for _, number, first, last in denied if number != 1)


def test_our_own_node() -> None:
    """Addresses by family, an MTU that a tunnel can have, IPv6 only where it fits."""
    config = PeerConfig(address="100.64.0.1/16", address_v6=ip_address("fd00::1").packed + b"\x40", mtu=1420)
    assert read_own(config) == OwnNode(("100.64.0.1", "fd00::1"), 1420)
    config.mtu = 1000
    assert read_own(config) == OwnNode(("100.64.0.1",), 1000)
    config.mtu = 100_000
    assert read_own(config).mtu == 8192


@pytest.mark.parametrize(
    "config",
    [
        PeerConfig(),
        PeerConfig(address="here"),
        PeerConfig(address="fe80::1%eth0/64"),
        PeerConfig(address="100.64.0.1/16", address_v6=b"\x01" * 16),
    ],
)
def test_a_map_without_ourselves_is_none(config: PeerConfig) -> None:
    """A map without a valid address of our node is an error."""
    with pytest.raises(MapError):
        read_own(config)


def test_keys_are_one_spelling() -> None:
    """The test's own keys are what the wire calls canonical."""
    assert parse_key(key(2)) == b"\x02" * 32
