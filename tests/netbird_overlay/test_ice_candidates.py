"""Candidate lines are NetBird's, and a machine's own addresses are candidates only where peers may use them."""

from __future__ import annotations

from ipaddress import ip_network

import ifaddr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.ice.candidates import (
    BadCandidate,
    Candidate,
    format_candidate,
    gather_hosts,
    is_usable,
    letters,
    parse_candidate,
    priority,
    server_reflexive,
    with_forwarded_port,
)

CID = "abcdefghijklmnopqrstuvwxyzABCDEF"
HOST = f"1966762134 1 udp 2130706431 10.99.0.2 51820 typ host ufrag kdQaPzXbWvTnLmJr cid {CID}"
REFLEXIVE = f"842163049 1 udp 1694498815 203.0.113.7 40112 typ srflx raddr 0.0.0.0 rport 51820 ufrag kdQa cid {CID}"
OVERLAY = [ip_network("100.64.0.0/10"), ip_network("fd00:1234::/64")]


def test_lines_of_netbirds_agents_are_read() -> None:
    assert parse_candidate(HOST) == Candidate(
        "host", Endpoint("10.99.0.2", 51820), 2130706431, "1966762134", None, "kdQaPzXbWvTnLmJr", CID
    )
    assert parse_candidate("candidate:" + REFLEXIVE) == Candidate(
        "srflx", Endpoint("203.0.113.7", 40112), 1694498815, "842163049", Endpoint("0.0.0.0", 51820), "kdQa", CID
    )
    assert parse_candidate("a 1 UDP 16777215 2001:DB8::1 9 typ relay new thing").endpoint == Endpoint("2001:db8::1", 9)


@pytest.mark.parametrize("line", [HOST, REFLEXIVE])
def test_lines_are_written_as_they_were_read(line: str) -> None:
    assert format_candidate(parse_candidate(line)) == line


@pytest.mark.parametrize(
    "line",
    [
        "",
        "candidate:",
        HOST.replace(" udp ", " tcp "),
        HOST.replace(" 1 udp ", " 2 udp "),
        HOST.replace("typ host", "typ guest"),
        HOST.replace("typ host", "kind host"),
        HOST.replace("51820", "0"),
        HOST.replace("51820", "65536"),
        HOST.replace("51820", "-1"),
        HOST.replace("51820", "٥"),
        HOST.replace("2130706431", "0"),
        HOST.replace("2130706431", "2147483648"),
        HOST.replace("2130706431", "1e3"),
        HOST.replace("10.99.0.2", "machine.local"),
        HOST.replace("10.99.0.2", "10.99.0.256"),
        HOST.replace("10.99.0.2", "fe80::1%eth0"),
        HOST.replace("1966762134", "1" * 33),
        HOST.replace("1966762134", "a_b"),
        HOST + " odd",
        HOST + "  ",
        HOST.replace(CID, "x" * 65),
        HOST.replace(CID, "x\x00"),
        HOST + " x y" * 300,
        REFLEXIVE.replace(" rport 51820", ""),
        REFLEXIVE.replace(" raddr 0.0.0.0", ""),
        REFLEXIVE.replace("rport 51820", "rport 70000"),
        "1 1 udp 1 1.2.3.4 5 typ",
    ],
)
def test_nonsense_is_refused(line: str) -> None:
    with pytest.raises(BadCandidate):
        parse_candidate(line)


@given(
    st.text(max_size=120) | st.lists(st.sampled_from([*REFLEXIVE.split(), "", "é", "70000"]), max_size=14).map(" ".join)
)
def test_no_line_raises_anything_but_bad_candidate(line: str) -> None:
    try:
        candidate = parse_candidate(line)
    except BadCandidate:
        return
    assert parse_candidate(format_candidate(candidate)) == candidate


def test_port_forwarded_by_the_router_is_one_more_candidate() -> None:
    mapped = parse_candidate(REFLEXIVE)
    extra = with_forwarded_port(mapped)
    assert [each.endpoint for each in extra] == [Endpoint("203.0.113.7", 40112), Endpoint("203.0.113.7", 51820)]
    assert [each.type for each in extra] == ["srflx", "srflx"]
    for alone in (REFLEXIVE.replace(f" cid {CID}", ""), REFLEXIVE.replace("40112", "51820"), HOST):
        assert with_forwarded_port(parse_candidate(alone)) == [parse_candidate(alone)]


def test_priorities_are_those_of_netbirds_agents() -> None:
    assert [priority(kind) for kind in ("host", "prflx", "srflx", "relay")] == [
        2130706431,
        1862270975,
        1694498815,
        16777215,
    ]


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "127.0.0.1",
        "::1",
        "fe80::1",
        "100.64.0.9",
        "fd00:1234::9",
    ],
)
def test_addresses_that_no_check_may_go_to(host: str) -> None:
    assert not is_usable(Endpoint(host, 51820), excluded=OVERLAY)


def test_addresses_that_checks_may_go_to() -> None:
    for endpoint in (Endpoint("10.0.0.1", 1), Endpoint("2001:db8::1", 1), Endpoint("fe80::1", 1, 2)):
        assert is_usable(endpoint, excluded=OVERLAY)
    assert not is_usable(Endpoint("10.0.0.1", 0))
    assert is_usable(Endpoint("127.0.0.1", 1), loopback=True)


def adapters(**addresses: list[str]) -> list[ifaddr.Adapter]:
    return [
        ifaddr.Adapter(
            name, name, [ifaddr.IP((ip, 0, 2) if ":" in ip else ip, 64 if ":" in ip else 24, name) for ip in ips]
        )
        for name, ips in addresses.items()
    ]


MACHINE = adapters(
    lo=["127.0.0.1", "::1"],
    eth0=["192.0.2.5", "2001:db8::5", "fe80::5"],
    eth1=["10.1.0.5", "100.64.0.5", "192.0.2.5"],
    wt0=["100.70.0.1"],
    wg7=["10.7.0.1"],
    docker0=["172.17.0.1"],
    veth12=["172.18.0.1"],
    tailscale0=["100.100.0.1"],
)


def hosts(**options: bool) -> list[str]:
    return [each.endpoint.host for each in gather_hosts(51820, excluded=OVERLAY, adapters=lambda: MACHINE, **options)]


def test_addresses_of_real_interfaces_are_candidates() -> None:
    assert hosts() == ["192.0.2.5", "2001:db8::5", "10.1.0.5"]


def test_families_follow_the_socket() -> None:
    assert hosts(ipv6=False) == ["192.0.2.5", "10.1.0.5"]
    assert hosts(ipv4=False) == ["2001:db8::5"]


def test_loopback_is_a_candidate_only_on_request() -> None:
    assert hosts(loopback=True) == ["127.0.0.1", "::1", *hosts()]


def test_candidates_of_one_machine_differ_in_priority_and_name() -> None:
    names = iter("ABC")
    candidates = gather_hosts(51820, excluded=OVERLAY, cid=lambda: next(names), ufrag="u", adapters=lambda: MACHINE)
    assert [each.priority for each in candidates] == [2130706431, 2130706175, 2130705919]
    assert [each.cid for each in candidates] == ["A", "B", "C"]
    assert len({each.foundation for each in candidates}) == 3
    assert all(parse_candidate(format_candidate(each)) == each for each in candidates)


def test_host_candidates_are_bounded() -> None:
    many = adapters(eth0=[f"10.0.0.{number}" for number in range(1, 100)])
    assert len(gather_hosts(51820, adapters=lambda: many)) == 16


def test_this_machines_addresses_are_read() -> None:
    assert Endpoint("127.0.0.1", 7) in [each.endpoint for each in gather_hosts(7, loopback=True)]
    assert not any(each.endpoint.host.startswith("127.") for each in gather_hosts(7))


def test_reflexive_candidate_names_the_socket_behind_the_nat() -> None:
    candidate = server_reflexive(Endpoint("203.0.113.7", 40112), Endpoint("10.0.0.2", 51820), cid=CID, ufrag="kdQa")
    line = format_candidate(candidate)
    assert line.endswith(f"udp 1694498815 203.0.113.7 40112 typ srflx raddr 10.0.0.2 rport 51820 ufrag kdQa cid {CID}")


def test_letters_are_letters() -> None:
    text = letters(256, lambda size: bytes(range(size)))
    assert (len(text), text.isascii(), text.isalpha(), len(set(text))) == (256, True, True, 52)
