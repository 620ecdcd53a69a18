"""Inbound rules: without a rule nothing is admitted, and a withdrawn rule ends its connections."""

import pytest

from netbird_overlay.engine import Accepted, Rule
from netbird_overlay.simulation import Node, Simulation

HTTP: Rule = ("100.64.0.1/32", 6, 80, 80)


def strict() -> tuple[Simulation, Node, Node]:
    """A client, and a server on which everything listens and no rule is set."""
    simulation = Simulation()
    a, b = simulation.node(["100.64.0.1", "fd00::1"]), simulation.node(["100.64.0.2", "fd00::2"], inbound=())
    simulation.introduce(a, b)
    for port in (80, 443, 8080):
        b.engine.listen(port)
    return simulation, a, b


def answered(simulation: Simulation, a: Node, b: Node, port: int, *, address: str = "100.64.0.2") -> str | None:
    """Return the result of a dial within three seconds: `open`, the reason of its end, or None without an answer."""
    before = len(b.of(Accepted))
    conn = a.connect(address, port)
    simulation.run(3)
    result = "open" if len(b.of(Accepted)) > before else a.end(conn)
    a.engine.abort(conn)
    a.flush()
    return result


def test_without_rules_nothing_comes_in() -> None:
    """A listener without rules admits no peer, and the caller gets no answer at all."""
    simulation, a, b = strict()
    assert answered(simulation, a, b, 80) is None
    assert answered(simulation, a, b, 9999) is None
    assert b.engine.counters()["denied_inbound"] >= 2
    assert b.engine.counters()["connections"] == 0


def test_rule_opens_its_ports_to_its_sources_only() -> None:
    """A rule for one address and one port opens neither another port nor the port to another address."""
    simulation, a, b = strict()
    b.engine.set_inbound([HTTP])
    assert answered(simulation, a, b, 80) == "open"
    assert answered(simulation, a, b, 443) is None
    assert answered(simulation, a, b, 80, address="fd00::2") is None
    c = simulation.node(["100.64.0.3"])
    simulation.introduce(c, b)
    assert answered(simulation, c, b, 80) is None


def test_ranges_and_any_source() -> None:
    """Port ranges hold their ends, and 0.0.0.0/0 speaks of IPv4 only."""
    simulation, a, b = strict()
    b.engine.set_inbound([("0.0.0.0/0", 6, 80, 443)])
    assert answered(simulation, a, b, 80) == "open"
    assert answered(simulation, a, b, 443) == "open"
    assert answered(simulation, a, b, 8080) is None
    assert answered(simulation, a, b, 80, address="fd00::2") is None
    b.engine.set_inbound([("::/0", 6, 80, 80)])
    assert answered(simulation, a, b, 80, address="fd00::2") == "open"
    assert answered(simulation, a, b, 80) is None


def test_denials_go_first() -> None:
    """A denied source is out even where a wider rule allows it."""
    simulation, a, b = strict()
    b.engine.set_inbound([("0.0.0.0/0", 6, 1, 65535)], denied=[("100.64.0.1", 6, 80, 80)])
    assert answered(simulation, a, b, 80) is None
    assert answered(simulation, a, b, 443) == "open"


def test_withdrawn_rule_ends_what_it_let_in() -> None:
    """When a rule goes, the connections it let in are reset; those we opened ourselves go on."""
    simulation, a, b = strict()
    b.engine.set_inbound([HTTP, ("100.64.0.1/32", 6, 443, 443)])
    conn, accepted = simulation.connection(a, b, 80)
    kept, kept_there = simulation.connection(a, b, 443)
    a.engine.listen(22)
    ours, ours_there = simulation.connection(b, a, 22)
    b.engine.set_inbound([("100.64.0.1/32", 6, 443, 443)])
    b.flush()
    simulation.run(1)
    assert (b.end(accepted), a.end(conn)) == ("denied", "reset")
    assert (b.end(kept_there), a.end(kept), b.end(ours), a.end(ours_there)) == (None, None, None, None)
    b.engine.set_inbound([])
    b.flush()
    a.send(ours_there, b"answers still come")
    simulation.run(1)
    assert b.end(kept_there) == "denied"
    assert bytes(b.received[ours]) == b"answers still come"


def test_half_open_connection_is_not_let_through_by_an_old_rule() -> None:
    """A rule that is withdrawn during a TCP handshake does not admit the connection."""
    simulation, a, b = strict()
    b.engine.set_inbound([HTTP])
    a.engine.handshake(b.engine.public_key)
    simulation.run(1)
    simulation.filter = lambda crossing: crossing.source == a.endpoint
    a.connect("100.64.0.2", 80)
    simulation.run(0.1)
    assert b.engine.counters()["half_open"] == 1
    b.engine.set_inbound([])
    b.flush()
    simulation.filter = None
    simulation.run(10)
    assert b.of(Accepted) == []
    assert (b.engine.counters()["half_open"], b.engine.counters()["connections"]) == (0, 0)


def test_unlisten_refuses_the_new_and_keeps_the_old() -> None:
    """A port that is listened on no more refuses; what came in before goes on."""
    simulation, a, b = strict()
    b.engine.set_inbound([HTTP])
    conn, accepted = simulation.connection(a, b, 80)
    assert b.engine.unlisten(80)
    assert not b.engine.unlisten(80)
    assert answered(simulation, a, b, 80) == "refused"
    a.send(conn, b"on")
    simulation.run(1)
    assert bytes(b.received[accepted]) == b"on"


@pytest.mark.parametrize(
    "rule",
    [
        ("100.64.0.1/33", 6, 80, 80),
        ("somewhere", 6, 80, 80),
        ("", 6, 80, 80),
        ("100.64.0.1", 47, 80, 80),
        ("100.64.0.1", 0, 80, 80),
        ("100.64.0.1", 6, 81, 80),
        ("100.64.0.1", 6, -1, 80),
        ("100.64.0.1", 6, 1, 65536),
    ],
)
def test_rule_that_cannot_be_understood_changes_nothing(rule: Rule) -> None:
    """A wrong rule raises, and neither opens a door nor replaces the rules in force."""
    simulation, a, b = strict()
    b.engine.set_inbound([HTTP])
    with pytest.raises(ValueError, match=r"."):
        b.engine.set_inbound([("0.0.0.0/0", 6, 1, 65535), rule])
    assert answered(simulation, a, b, 80) == "open"
    assert answered(simulation, a, b, 443) is None


def test_only_our_own_addresses_are_reached() -> None:
    """A packet for an address that is not ours is dropped and counted, whatever the rules say."""
    simulation, a, b = strict()
    b.engine.set_inbound([("0.0.0.0/0", 6, 1, 65535)])
    a.engine.set_peer(b.engine.public_key, ["0.0.0.0/0"], endpoint=b.endpoint)
    for address in ("100.64.0.77", "10.0.0.1", "8.8.8.8"):
        assert answered(simulation, a, b, 80, address=address) is None
    assert b.engine.counters()["bad_destination"] >= 3
    assert answered(simulation, a, b, 80) == "open"
