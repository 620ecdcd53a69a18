"""The account's zones: exact names, wildcards, aliases, and zones that do not decide."""

from __future__ import annotations

import pytest

from netbird_overlay.membership.zones import AAAA, CNAME, A, Answer, Outcome, Zones
from netbird_wire.management_pb2 import CustomZone, SimpleRecord

TXT = 16


def zone(domain: str, *records: tuple[str, int, str], passes: bool = False) -> CustomZone:
    listed = [SimpleRecord(Name=name, Type=kind, Class="IN", TTL=300, RData=data) for name, kind, data in records]
    return CustomZone(Domain=domain, Records=listed, NonAuthoritative=passes)


ZONES = Zones(
    [
        zone("netbird.cloud.", ("alice.netbird.cloud.", A, "100.64.0.5"), ("alice.netbird.cloud", AAAA, "fd00::5")),
        zone(
            "example.com",
            ("*.example.com", A, "100.64.0.1"),
            ("wiki.example.com", A, "100.64.0.2"),
            ("wiki.example.com", A, "100.64.0.3"),
            ("text.example.com", TXT, "hello"),
            ("to-alice.example.com", CNAME, "Alice.Netbird.Cloud."),
            ("out.example.com", CNAME, "www.example.org"),
            ("loop.example.com", CNAME, "pool.example.com"),
            ("pool.example.com", CNAME, "loop.example.com"),
            ("bad.example.com", A, "fd00::7"),
            ("elsewhere.example.org", A, "100.64.0.9"),
            passes=True,
        ),
        zone("sub.example.com", ("a.sub.example.com", A, "100.64.0.8")),
        zone("empty.example"),
    ]
)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("alice.netbird.cloud", Answer(Outcome.FOUND, ("100.64.0.5", "fd00::5"))),
        ("ALICE.netbird.cloud.", Answer(Outcome.FOUND, ("100.64.0.5", "fd00::5"))),
        ("bob.netbird.cloud", Answer(Outcome.MISSING)),
        ("wiki.example.com", Answer(Outcome.FOUND, ("100.64.0.2", "100.64.0.3"))),
        ("any.example.com", Answer(Outcome.FOUND, ("100.64.0.1",))),
        ("a.b.example.com", Answer(Outcome.ELSEWHERE)),
        ("text.example.com", Answer(Outcome.EMPTY)),
        ("to-alice.example.com", Answer(Outcome.FOUND, ("100.64.0.5", "fd00::5"))),
        ("out.example.com", Answer(Outcome.ALIAS, alias="www.example.org")),
        ("loop.example.com", Answer(Outcome.EMPTY)),
        ("bad.example.com", Answer(Outcome.EMPTY)),
        ("example.com", Answer(Outcome.ELSEWHERE)),
        ("x.sub.example.com", Answer(Outcome.MISSING)),
        ("elsewhere.example.org", Answer(Outcome.ELSEWHERE)),
        ("empty.example", Answer(Outcome.ELSEWHERE)),
        ("", Answer(Outcome.ELSEWHERE)),
    ],
)
def test_a_name_is_looked_up(name: str, answer: Answer) -> None:
    """Each kind of name has its outcome."""
    assert ZONES.lookup(name) == answer


def test_ipv6_is_left_out_where_we_have_none() -> None:
    """A node without IPv6 gets IPv4 addresses alone."""
    assert ZONES.lookup("alice.netbird.cloud", ipv6=False).addresses == ("100.64.0.5",)


def test_a_single_zone_decides() -> None:
    """A zone that is the only one is authoritative, whatever it says of itself."""
    assert Zones([zone("a.example", ("x.a.example", A, "100.64.0.1"), passes=True)]).lookup("y.a.example") == Answer(
        Outcome.MISSING
    )


def test_only_records_of_the_internet_class_count() -> None:
    """A record of another class is none."""
    record = SimpleRecord(Name="x.a.example", Type=A, Class="CH", RData="100.64.0.1")
    assert Zones([CustomZone(Domain="a.example", Records=[record])]).lookup("x.a.example") == Answer(Outcome.MISSING)
