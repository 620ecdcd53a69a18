"""UDP between engines: datagrams both ways, rules, forged sources, floods, and errors about closed ports."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_overlay.engine import Engine, LimitReached, NoEndpoint, NoRoute, Rule, UdpFailed, UdpReceived
from netbird_overlay.simulation import Node, Simulation
from tests.netbird_overlay.test_engine_packets import RawPeer, checksum, ip

ANY_UDP: list[Rule] = [("0.0.0.0/0", 17, 1, 65535), ("::/0", 17, 1, 65535)]


def nodes(count: int = 2) -> tuple[Simulation, list[Node]]:
    """Nodes that all know each other and admit UDP."""
    simulation = Simulation()
    made = [simulation.node([f"100.64.0.{n}", f"fd00::{n}"], inbound=ANY_UDP) for n in range(1, count + 1)]
    for number, node in enumerate(made):
        for other in made[number + 1 :]:
            simulation.introduce(node, other)
    return simulation, made


def received(node: Node) -> list[UdpReceived]:
    return [event for event in node.log if isinstance(event, UdpReceived)]


@pytest.mark.parametrize(("here", "there"), [("100.64.0.1", "100.64.0.2"), ("fd00::1", "fd00::2")])
def test_datagrams_are_echoed(here: str, there: str) -> None:
    """A connected socket and a listening port exchange datagrams of every length that fits, and know each other."""
    simulation, (a, b) = nodes()
    b.engine.udp_listen(53)
    socket, local = a.engine.udp_connect(there, 53)
    assert local[0] == here
    longest = 1280 - (28 if "." in here else 48)
    for data in (b"", b"x", bytes(range(256)), b"\xff" * longest):
        assert a.engine.udp_send(socket, data)
        a.flush()
        simulation.run(1)
        question = received(b)[-1]
        assert (question.socket, question.data, question.remote) == (53, data, local)
        assert question.peer == a.engine.public_key
        assert b.engine.udp_send(53, data, question.remote)
        b.flush()
        simulation.run(1)
        answer = received(a)[-1]
        assert (answer.socket, answer.data, answer.remote) == (socket, data, (there, 53))
        assert answer.peer == b.engine.public_key
    with pytest.raises(ValueError, match="fit"):
        a.engine.udp_send(socket, bytes(longest + 1))


def two_addresses() -> tuple[Simulation, Node, Node]:
    """A server at two IPv4 addresses, and a client."""
    simulation = Simulation()
    server = simulation.node(["100.64.0.1", "100.64.9.1", "fd00::1"], inbound=ANY_UDP)
    client = simulation.node(["100.64.0.2"], inbound=ANY_UDP)
    simulation.introduce(server, client)
    server.engine.udp_listen(53)
    return simulation, server, client


def ask(simulation: Simulation, server: Node, client: Node, socket: int, data: bytes) -> bool:
    """Send a datagram, let the server answer, and return True if the answer reached the socket that sent it."""
    client.engine.udp_send(socket, data)
    client.flush()
    simulation.run(1)
    question = received(server)[-1]
    assert server.engine.udp_send(53, data, question.remote)
    server.flush()
    simulation.run(1)
    return any(event.socket == socket and event.data == data for event in received(client))


@pytest.mark.parametrize("address", ["100.64.9.1", "100.64.0.1"])
def test_listening_port_answers_from_the_address_that_was_asked(address: str) -> None:
    """A client takes an answer only from where it sent to, whichever of the node's addresses that is."""
    simulation, server, client = two_addresses()
    socket, _ = client.engine.udp_connect(address, 53)
    assert ask(simulation, server, client, socket, b"first")
    other, _ = client.engine.udp_connect("100.64.9.1", 53)
    assert ask(simulation, server, client, other, b"beside it")
    assert ask(simulation, server, client, socket, b"again")


def test_an_address_that_was_removed_is_no_source_any_more() -> None:
    simulation, server, client = two_addresses()
    socket, local = client.engine.udp_connect("100.64.9.1", 53)
    assert ask(simulation, server, client, socket, b"first")
    server.engine.set_addresses(["100.64.0.1"])
    before = len(received(client))
    assert server.engine.udp_send(53, b"late", local)
    server.flush()
    simulation.run(1)
    assert len(received(client)) == before, "from the other address it is no answer"


def test_remembered_addresses_are_bounded() -> None:
    """A peer that asks from many ports pushes out the oldest, whose answers then come from the first address."""
    engine = Engine(bytes(31) + b"\1", seed=b"server")
    engine.set_addresses(["100.64.0.2", "100.64.0.3"])
    engine.set_inbound(ANY_UDP)
    engine.udp_listen(53)
    peer = RawPeer(engine)
    for port in range(1, 3001):
        packet = segment(b"x", destination="100.64.0.3", source_port=port)
        peer.send(ip(17, packet, destination="100.64.0.3"))
        engine.events()
    assert engine.counters()["udp_asked"] == 1024
    engine.udp_close(53)
    assert engine.counters()["udp_asked"] == 0


def test_first_datagram_waits_for_the_handshake() -> None:
    """A datagram to a peer without a session is not lost: it goes out once both ends have shaken hands."""
    simulation, (a, b) = nodes()
    b.engine.udp_listen(53)
    a.engine.udp_listen(53)
    a.engine.udp_send(53, b"first", ("100.64.0.2", 53))
    a.flush()
    simulation.run(2)
    assert [event.data for event in received(b)] == [b"first"]


def test_rules_decide_on_datagrams_by_protocol_17() -> None:
    """Without a rule nothing comes in, whatever rules exist for TCP; an answer to our own datagram needs none."""
    simulation, (a, b) = nodes()
    b.engine.udp_listen(53)
    b.engine.udp_listen(54)
    b.engine.set_inbound([("100.64.0.1", 6, 1, 65535), ("100.64.0.1", 17, 53, 53)])
    a.engine.set_inbound([])
    for port in (53, 54, 55):
        socket, _ = a.engine.udp_connect("100.64.0.2", port)
        a.engine.udp_send(socket, b"%d" % port)
    a.flush()
    simulation.run(2)
    assert [event.data for event in received(b)] == [b"53"]
    assert b.engine.counters()["denied_inbound"] == 2
    assert not [event for event in a.log if isinstance(event, UdpFailed)]
    b.engine.udp_send(53, b"answer", received(b)[0].remote)
    b.flush()
    simulation.run(1)
    assert [event.data for event in received(a)] == [b"answer"]


def test_withdrawn_rule_holds_for_the_next_datagram() -> None:
    """Datagrams have no flow that a rule let in once and for all."""
    simulation, (a, b) = nodes()
    b.engine.udp_listen(53)
    socket, _ = a.engine.udp_connect("100.64.0.2", 53)
    a.engine.udp_send(socket, b"before")
    a.flush()
    simulation.run(2)
    b.engine.set_inbound([])
    a.engine.udp_send(socket, b"after")
    a.flush()
    simulation.run(2)
    assert [event.data for event in received(b)] == [b"before"]


@pytest.mark.parametrize("there", ["100.64.0.2", "fd00::2"])
def test_closed_port_is_reported_to_a_connected_socket(there: str) -> None:
    """A port that the rules allow and no socket has answers with an ICMP error; the socket stays usable."""
    simulation, (a, b) = nodes()
    socket, _ = a.engine.udp_connect(there, 53)
    a.engine.udp_send(socket, b"anybody?")
    a.flush()
    simulation.run(2)
    (failed,) = [event for event in a.log if isinstance(event, UdpFailed)]
    assert (failed.socket, failed.reason) == (socket, "unreachable")
    b.engine.udp_listen(53)
    a.engine.udp_send(socket, b"now?")
    a.flush()
    simulation.run(2)
    assert [event.data for event in received(b)] == [b"now?"]


def test_errors_about_closed_ports_are_few() -> None:
    """A flood of datagrams to closed ports causes a bounded number of ICMP errors."""
    simulation, (a, b) = nodes()
    a.engine.udp_listen(9)
    sent_before = b.engine.counters()["datagrams_out"]
    for _ in range(10):
        for _ in range(200):
            a.engine.udp_send(9, b"x", ("100.64.0.2", 7))
        a.flush()
        simulation.run(0.05)
    assert b.engine.counters()["not_listening"] > 1000
    assert b.engine.counters()["datagrams_out"] - sent_before < 250


def test_nobody_speaks_for_another() -> None:
    """A peer's datagram with another peer's inner source is dropped, whatever socket it is meant for."""
    engine, peer = udp_server()
    engine.set_peer(b"o" * 32, ["100.64.0.77"], endpoint=None)
    peer.send(ip(17, segment(b"forged", source="100.64.0.77"), source="100.64.0.77"))
    peer.send(ip(17, segment(b"own")))
    assert [event.data for event in engine.events() if isinstance(event, UdpReceived)] == [b"own"]
    assert engine.counters()["bad_source"] == 1


def test_answer_comes_from_the_connected_address_and_port_only() -> None:
    """A connected socket takes no datagram from another port or peer."""
    simulation, (a, b, c) = nodes(3)
    a.engine.set_inbound([])
    socket, local = a.engine.udp_connect("100.64.0.2", 53)
    for node, port in ((b, 53), (b, 54), (c, 53)):
        node.engine.udp_listen(port)
        node.engine.udp_send(port, b"%d" % port, local)
        node.flush()
    simulation.run(2)
    assert [(event.socket, event.remote) for event in received(a)] == [(socket, ("100.64.0.2", 53))]


def segment(
    data: bytes,
    *,
    source: str = "100.64.0.9",
    destination: str = "100.64.0.2",
    length: int | None = None,
    port: int = 53,
    source_port: int = 4000,
) -> bytes:
    """A UDP datagram with a right checksum."""
    length = 8 + len(data) if length is None else length
    head = struct.pack("!HHHH", source_port, port, length, 0)
    pseudo = ip_address(source).packed + ip_address(destination).packed + struct.pack("!HH", 17, length)
    return head[:6] + checksum(pseudo + head + data) + data


def udp_server() -> tuple[Engine, RawPeer]:
    engine = Engine(bytes(31) + b"\1", seed=b"server")
    engine.set_addresses(["100.64.0.2", "fd00::2"])
    engine.set_inbound(ANY_UDP)
    engine.udp_listen(53)
    return engine, RawPeer(engine)


@pytest.mark.parametrize(
    ("packet", "counter"),
    [
        (ip(17, segment(b"long", length=13)), "bad_packet"),
        (ip(17, segment(b"short", length=7)), "bad_packet"),
        (ip(17, segment(b"", port=0)), "bad_packet"),
        (ip(17, b"\0\1\0"), "bad_packet"),
        (ip(17, segment(b"x")[:-1] + b"y"), "bad_packet"),
        (ip(17, segment(b"first"), fragment=0x2000), "unsupported"),
        (ip(17, segment(b"later"), fragment=100), "unsupported"),
        (ip(44, bytes(8) + segment(b"f"), source="fd00::9", destination="fd00::2"), "unsupported"),
    ],
)
def test_datagram_that_is_not_whole_is_dropped_and_counted(packet: bytes, counter: str) -> None:
    """Wrong lengths and checksums, and fragments, reach no socket."""
    engine, peer = udp_server()
    peer.send(packet)
    assert not [event for event in engine.events() if isinstance(event, UdpReceived)]
    assert engine.counters()[counter] == 1


@given(st.lists(st.binary(max_size=60), max_size=20), st.sampled_from([17, 1, 58]))
def test_any_datagram_is_survived(payloads: list[bytes], protocol: int) -> None:
    """Arbitrary bytes under UDP and ICMP break nothing."""
    engine, peer = udp_server()
    for payload in payloads:
        peer.send(ip(protocol, payload))
        peer.send(ip(protocol, payload, source="fd00::9", destination="fd00::2"))
    engine.events()
    peer.send(ip(17, segment(b"whole")))
    assert [event.data for event in engine.events() if isinstance(event, UdpReceived)] == [b"whole"]
    assert engine.counters()["internal_error"] == 0


def test_promise_10_flood_of_one_peer_leaves_others_their_datagrams() -> None:
    """A peer's datagrams fill half of the queue at most, and the others' are delivered in turns between them."""
    simulation, (server, flooder, modest) = nodes(3)
    server.engine.udp_listen(53)
    for node in (flooder, modest):
        node.engine.handshake(server.engine.public_key)
        node.engine.udp_listen(9)
    simulation.run(1)
    into_server: list[bytes] = []
    for node, count in ((flooder, 3000), (modest, 20)):
        for _ in range(count // 10):
            for _ in range(10):
                assert node.engine.udp_send(9, bytes(1000), (server.address, 53))
            node.engine.advance(simulation.now)
            for datagram, _ in node.engine.transmits():
                server.engine.receive(datagram, node.endpoint, simulation.now)
                into_server.append(datagram)
    events = [event for event in server.engine.events() if isinstance(event, UdpReceived)]
    senders = [event.peer for event in events]
    assert senders.count(modest.engine.public_key) == 20
    assert modest.engine.public_key in senders[:2]
    assert senders.count(flooder.engine.public_key) <= 1024
    assert server.engine.counters()["udp_dropped"] == 3020 - len(events)


def test_sending_is_bounded_and_fair_by_peer() -> None:
    """Datagrams to a slow peer do not use up the queue for another."""
    _, (server, slow, other) = nodes(3)
    server.engine.udp_listen(53)
    taken = sum(server.engine.udp_send(53, bytes(1000), (slow.address, 9)) for _ in range(3000))
    assert 500 < taken <= 1024
    assert server.engine.udp_send(53, b"room", (other.address, 9))
    assert server.engine.counters()["udp_dropped"] == 3000 - taken


def test_sockets_end_with_their_peer_and_their_address() -> None:
    """A connected socket is its peer's: it does not pass to another that gets the address."""
    simulation, (a, _) = nodes()
    first, _ = a.engine.udp_connect("100.64.0.2", 53)
    second, _ = a.engine.udp_connect("fd00::2", 53)
    a.engine.set_addresses(["100.64.0.1"])
    a.engine.set_peer(b"o" * 32, ["100.64.0.2"])
    a.flush()
    ends = {event.socket: event.reason for event in a.log if isinstance(event, UdpFailed)}
    assert ends == {first: "peer_removed", second: "address_removed"}
    assert not a.engine.udp_send(first, b"x")
    assert not a.engine.udp_close(first)
    assert a.engine.counters()["udp_sockets"] == 0
    simulation.run(1)


def test_closed_socket_hears_nothing() -> None:
    """After `udp_close` no event names the socket, also of datagrams that had arrived before."""
    engine, peer = udp_server()
    peer.send(ip(17, segment(b"late")))
    assert engine.udp_close(53)
    assert not engine.udp_close(53)
    assert not [event for event in engine.events() if isinstance(event, UdpReceived)]


def test_sockets_are_capped_and_have_a_route() -> None:
    """Over the cap a socket is refused; an address without peer or endpoint is named as such."""
    engine, peer = udp_server()
    with pytest.raises(NoRoute):
        engine.udp_connect("100.64.0.200", 53)
    engine.set_peer(b"o" * 32, ["100.64.0.77"])
    with pytest.raises(NoEndpoint):
        engine.udp_send(53, b"x", ("100.64.0.77", 1))
    for port in range(1000, 1000 + 1023):
        engine.udp_listen(port)
    with pytest.raises(LimitReached):
        engine.udp_listen(5000)
    with pytest.raises(LimitReached):
        engine.udp_connect("100.64.0.9", 1)
    engine.udp_listen(53)
    for port in (0, 65536):
        with pytest.raises((ValueError, OverflowError)):
            engine.udp_listen(port)
    assert peer.replies() == []
