"""Inner packets that no honest stack would send, from a WireGuard peer written from the protocol's paper.

That peer shares no line with the engine, so these tests also say that the engine speaks the real protocol.
"""

import hmac
import struct
import time
from hashlib import blake2s
from ipaddress import ip_address

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from netbird_overlay.engine import Accepted, Closed, ConnectFailed, Data, Endpoint, Engine, Eof, Handshake

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
SOURCE = Endpoint("203.0.113.5", 1234)


def digest(*parts: bytes) -> bytes:
    return blake2s(b"".join(parts)).digest()


def derive(key: bytes, data: bytes, count: int) -> list[bytes]:
    secret = hmac.digest(key, data, "blake2s")
    keys, last = [], b""
    for number in range(1, count + 1):
        last = hmac.digest(secret, last + bytes([number]), "blake2s")
        keys.append(last)
    return keys


def nonce(counter: int) -> bytes:
    return bytes(4) + counter.to_bytes(8, "little")


class RawPeer:
    """A peer that sends whatever inner packets it is given. Its address is 100.64.0.9 and fd00::9."""

    def __init__(self, engine: Engine, now: float = 100.0) -> None:
        self.engine, self.now = engine, now
        static, ephemeral = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self.public_key = static.public_key().public_bytes_raw()
        engine.set_peer(self.public_key, ["100.64.0.9", "fd00::9"])
        theirs = X25519PublicKey.from_public_bytes(engine.public_key)
        chain = digest(b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s")
        state = digest(digest(chain, b"WireGuard v1 zx2c4 Jason@zx2c4.com"), engine.public_key)
        mine = ephemeral.public_key().public_bytes_raw()
        (chain,), state = derive(chain, mine, 1), digest(state, mine)
        chain, key = derive(chain, ephemeral.exchange(theirs), 2)
        sealed_static = ChaCha20Poly1305(key).encrypt(nonce(0), self.public_key, state)
        state = digest(state, sealed_static)
        chain, key = derive(chain, static.exchange(theirs), 2)
        stamp = struct.pack("!QI", 2**62 + int(time.time()), 0)
        sealed_stamp = ChaCha20Poly1305(key).encrypt(nonce(0), stamp, state)
        state = digest(state, sealed_stamp)
        message = struct.pack("<II", 1, 77) + mine + sealed_static + sealed_stamp
        mac_key = digest(b"mac1----", engine.public_key)
        message += blake2s(message, digest_size=16, key=mac_key).digest() + bytes(16)
        engine.receive(message, SOURCE, now)
        ((answer, destination),) = engine.transmits()
        assert destination == SOURCE
        kind, self._index, receiver = struct.unpack_from("<III", answer)
        assert (kind, receiver) == (2, 77)
        their_ephemeral = answer[12:44]
        point = X25519PublicKey.from_public_bytes(their_ephemeral)
        (chain,), state = derive(chain, their_ephemeral, 1), digest(state, their_ephemeral)
        (chain,) = derive(chain, ephemeral.exchange(point), 1)
        (chain,) = derive(chain, static.exchange(point), 1)
        chain, temporary, key = derive(chain, bytes(32), 3)
        state = digest(state, temporary)
        ChaCha20Poly1305(key).decrypt(nonce(0), answer[44:60], state)
        send, receive = derive(chain, b"", 2)
        self._send, self._receive = ChaCha20Poly1305(send), ChaCha20Poly1305(receive)
        self._counter = 0
        self.send(b"")

    def send(self, packet: bytes) -> None:
        """Send one inner packet, or a keepalive."""
        header = struct.pack("<IIQ", 4, self._index, self._counter)
        self.engine.receive(header + self._send.encrypt(nonce(self._counter), packet, b""), SOURCE, self.now)
        self._counter += 1

    def replies(self) -> list[bytes]:
        """The inner packets that came back, keepalives left out."""
        self.engine.advance(self.now)
        packets = []
        for datagram, destination in self.engine.transmits():
            assert destination == SOURCE
            kind, receiver, counter = struct.unpack_from("<IIQ", datagram)
            assert (kind, receiver) == (4, 77)
            assert len(datagram) % 16 == 0
            packets.append(self._receive.decrypt(nonce(counter), datagram[16:], b""))
        return [packet for packet in packets if packet]

    def exchange(self, packet: bytes) -> list[bytes]:
        self.send(packet)
        return self.replies()


def checksum(data: bytes) -> bytes:
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def ip(
    protocol: int, payload: bytes, source: str = "100.64.0.9", destination: str = "100.64.0.2", *, fragment: int = 0
) -> bytes:
    """An IP packet around a payload; version by its addresses."""
    ends = ip_address(source).packed + ip_address(destination).packed
    if len(ends) == 32:
        return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + ends + payload
    head = struct.pack("!BBHHHBBH8s", 0x45, 0, 20 + len(payload), 7, fragment, 64, protocol, 0, ends)
    return head[:10] + checksum(head) + head[12:] + payload


def tcp(
    flags: int,
    payload: bytes = b"",
    *,
    port: int = 80,
    seq: int = 1000,
    ack: int = 0,
    source: str = "100.64.0.9",
    destination: str = "100.64.0.2",
    source_port: int = 5555,
    window: int = 65535,
) -> bytes:
    segment = struct.pack("!HHIIBBHHH", source_port, port, seq, ack, 5 << 4, flags, window, 0, 0) + payload
    pseudo = ip_address(source).packed + ip_address(destination).packed + struct.pack("!HH", 6, len(segment))
    segment = segment[:16] + checksum(pseudo + segment) + segment[18:]
    return ip(6, segment, source, destination)


def echo(kind: int, protocol: int = 1, source: str = "100.64.0.9", destination: str = "100.64.0.2") -> bytes:
    message = struct.pack("!BBHHH", kind, 0, 0, 7, 1) + b"ping"
    if protocol == 58:
        pseudo = ip_address(source).packed + ip_address(destination).packed + struct.pack("!II", len(message), 58)
        message = message[:2] + checksum(pseudo + message) + message[4:]
    else:
        message = message[:2] + checksum(message) + message[4:]
    return ip(protocol, message, source, destination)


def tcp_fields(packet: bytes) -> tuple[int, int, int]:
    """Flags, sequence and acknowledgment of an IPv4 TCP packet."""
    seq, ack, _, flags = struct.unpack_from("!IIBB", packet, 24)
    return flags & (FIN | SYN | RST | ACK), seq, ack


def server() -> tuple[Engine, RawPeer]:
    engine = Engine(bytes(31) + b"\1", seed=b"server")
    engine.set_addresses(["100.64.0.2", "fd00::2"])
    engine.set_inbound([("100.64.0.9/32", 6, 80, 80), ("100.64.0.9/32", 1, 0, 0), ("fd00::9", 1, 0, 0)])
    engine.listen(80)
    return engine, RawPeer(engine)


def dropped(engine: Engine) -> dict[str, int]:
    names = {"bad_packet", "bad_source", "bad_destination", "unsupported", "denied_inbound", "unmatched"}
    names |= {"not_listening", "internal_error"}
    return {name: value for name, value in engine.counters().items() if name in names and value}


def test_a_counter_ends_before_it_wraps() -> None:
    """A peer that sends the greatest counters is not heard with them, and its replay window stays as it was."""
    engine, peer = server()
    for counter in (2**64 - 1, 2**64 - 2**13 - 1):
        peer._counter = counter
        assert peer.exchange(tcp(SYN)) == []
    assert engine.counters()["replayed"] == 2
    peer._counter = 1
    (answer,) = peer.exchange(tcp(SYN))
    assert tcp_fields(answer)[0] == SYN | ACK
    peer._counter = 1
    assert peer.exchange(tcp(SYN)) == []
    assert engine.counters()["replayed"] == 3


def test_an_independent_peer_shakes_hands_and_opens_a_connection() -> None:
    """The protocol's paper and the engine agree: handshake, session, TCP, and a padded answer."""
    engine, peer = server()
    assert [type(event) for event in engine.events()][-1] is Handshake
    (answer,) = peer.exchange(tcp(SYN))
    flags, seq, ack = tcp_fields(answer)
    assert (flags, ack) == (SYN | ACK, 1001)
    peer.send(tcp(ACK | PSH, b"hello", seq=1001, ack=seq + 1))
    accepted, data = engine.events()
    assert isinstance(accepted, Accepted)
    assert (accepted.remote, accepted.peer) == (("100.64.0.9", 5555), peer.public_key)
    assert isinstance(data, Data)
    assert data.data == b"hello"
    peer.send(tcp(ACK | FIN, seq=1006, ack=seq + 1))
    assert [type(event) for event in engine.events()] == [Eof]


def test_ping_needs_a_rule() -> None:
    """Echo requests are answered where a rule for protocol 1 says so, over both families, and not otherwise."""
    engine, peer = server()
    six = ("fd00::9", "fd00::2")
    (answer,) = peer.exchange(echo(8))
    assert answer[20] == 0
    (answer,) = peer.exchange(echo(128, 58, *six))
    assert answer[40] == 129
    engine.set_inbound([])
    assert peer.exchange(echo(8)) == []
    assert peer.exchange(echo(128, 58, *six)) == []
    assert dropped(engine) == {"denied_inbound": 2}


@pytest.mark.parametrize(
    ("packet", "counter"),
    [
        (b"\x45", "bad_packet"),
        (b"junk" * 20, "bad_packet"),
        (tcp(SYN)[:30], "bad_packet"),
        (tcp(SYN, source="100.64.0.8"), "bad_source"),
        (tcp(SYN, source="100.64.0.2"), "bad_source"),
        (tcp(SYN, source="127.0.0.1"), "bad_packet"),
        (tcp(SYN, source="0.0.0.0"), "bad_packet"),
        (tcp(SYN, source="224.0.0.1"), "bad_packet"),
        (tcp(SYN, source="::ffff:100.64.0.9", destination="fd00::2"), "bad_packet"),
        (tcp(SYN, destination="100.64.0.3"), "bad_destination"),
        (tcp(SYN, destination="255.255.255.255"), "bad_packet"),
        (tcp(SYN, port=81), "denied_inbound"),
        (tcp(SYN, port=0), "bad_packet"),
        (tcp(SYN, source_port=0), "bad_packet"),
        (tcp(SYN, source="fd00::9", destination="fd00::2"), "denied_inbound"),
        (tcp(SYN | FIN), "unmatched"),
        (tcp(SYN | RST), "unmatched"),
        (tcp(ACK, port=443), "unmatched"),
        (tcp(0), "unmatched"),
        (ip(132, bytes(8)), "unsupported"),
        (ip(41, tcp(SYN)), "unsupported"),
        (ip(6, tcp(SYN)[20:], fragment=0x2000), "unsupported"),
        (ip(6, tcp(SYN)[20:], fragment=1), "unsupported"),
        (echo(0), "unsupported"),
        (echo(5), "unsupported"),
    ],
)
def test_packet_that_may_not_pass_is_dropped_and_counted(packet: bytes, counter: str) -> None:
    """Each kind of wrong packet opens nothing, and its own counter says that it came."""
    engine, peer = server()
    engine.events()
    replies = peer.exchange(packet)
    assert all(tcp_fields(reply)[0] & RST for reply in replies)
    assert dropped(engine) == {counter: 1}
    assert engine.events() == []
    assert engine.counters()["connections"] == 0


def test_checksums_of_authenticated_packets_are_not_read() -> None:
    """WireGuard vouches for every byte, so a checksum says nothing more: a SYN with a wrong one is answered."""
    _, peer = server()
    packet = bytearray(tcp(SYN))
    packet[36] ^= 1
    (answer,) = peer.exchange(bytes(packet))
    assert tcp_fields(answer)[0] == SYN | ACK


def test_connection_belongs_to_the_peer_that_opened_it() -> None:
    """Another peer that sends segments of a connection, source address and all, is not heard."""
    engine, peer = server()
    (answer,) = peer.exchange(tcp(SYN))
    _, seq, _ = tcp_fields(answer)
    engine.events()
    other = RawPeer(engine)
    engine.set_peer(other.public_key, ["100.64.0.10"])
    engine.set_peer(peer.public_key, ["100.64.0.9"])
    engine.events()
    (answer,) = peer.exchange(tcp(SYN))
    _, seq, _ = tcp_fields(answer)
    other.send(tcp(ACK | PSH, b"evil", seq=1001, ack=seq + 1))
    other.send(tcp(RST, seq=1001))
    assert engine.events() == []
    assert dropped(engine) == {"bad_source": 2}
    peer.send(tcp(ACK | PSH, b"good", seq=1001, ack=seq + 1))
    assert [event.data for event in engine.events() if isinstance(event, Data)] == [b"good"]


def test_blind_reset_does_not_end_a_connection() -> None:
    """Only a reset inside the window ends a connection."""
    engine, peer = server()
    (answer,) = peer.exchange(tcp(SYN))
    _, seq, _ = tcp_fields(answer)
    peer.send(tcp(ACK, seq=1001, ack=seq + 1))
    engine.events()
    peer.send(tcp(RST, seq=900))
    peer.send(tcp(RST, seq=1_000_000))
    assert engine.events() == []
    peer.send(tcp(RST, seq=1001))
    (event,) = engine.events()
    assert isinstance(event, Closed)
    assert event.reason == "reset"


def test_unreachable_ends_a_dial_and_nothing_else() -> None:
    """An ICMP error about a dial ends it at once; one about an established connection is a rumor."""
    engine, peer = server()
    conn = engine.connect("100.64.0.9", 8080, peer.now)
    (syn,) = peer.replies()
    error = struct.pack("!BBHI", 3, 13, 0, 0) + syn[:28]
    peer.send(ip(1, error[:2] + checksum(error) + error[4:]))
    (event,) = [event for event in engine.events() if isinstance(event, ConnectFailed)]
    assert (event.conn, event.reason) == (conn, "unreachable")
    (answer,) = peer.exchange(tcp(SYN))
    _, seq, _ = tcp_fields(answer)
    peer.send(tcp(ACK, seq=1001, ack=seq + 1))
    engine.events()
    error = struct.pack("!BBHI", 3, 1, 0, 0) + answer[:28]
    peer.send(ip(1, error[:2] + checksum(error) + error[4:]))
    assert engine.events() == []


def test_initial_sequence_numbers_come_from_the_system() -> None:
    """Engines with the same key and history start their connections at different numbers."""
    numbers = set()
    for _ in range(4):
        engine = Engine(bytes(31) + b"\1")
        engine.set_addresses(["100.64.0.2"])
        engine.set_inbound([("0.0.0.0/0", 6, 80, 80)])
        engine.listen(80)
        peer = RawPeer(engine)
        for source_port in (5555, 5556):
            (answer,) = peer.exchange(tcp(SYN, source_port=source_port))
            numbers.add(tcp_fields(answer)[1])
    assert len(numbers) == 8


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=200) | st.binary(max_size=60).map(lambda b: b"\x45" + b), max_size=8))
def test_any_inner_packet_is_survived(packets: list[bytes]) -> None:
    """Whatever a peer puts into its session, nothing raises and an honest connection goes on."""
    engine, peer = server()
    (answer,) = peer.exchange(tcp(SYN))
    _, seq, _ = tcp_fields(answer)
    peer.send(tcp(ACK, seq=1001, ack=seq + 1))
    for packet in packets:
        peer.send(packet)
    engine.events()
    peer.send(tcp(ACK | PSH, b"on", seq=1001, ack=seq + 1))
    assert [event.data for event in engine.events() if isinstance(event, Data)] == [b"on"]
    assert engine.counters()["internal_error"] == 0


segments = st.builds(
    lambda flags, payload, seq, ack, window: (flags, payload, seq, ack, window),
    st.integers(0, 255),
    st.binary(max_size=40),
    st.integers(0, 2**32 - 1) | st.integers(990, 1100),
    st.integers(-20, 3000) | st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 65535),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(segments, max_size=20))
def test_any_segment_is_survived(script: list[tuple[int, bytes, int, int, int]]) -> None:
    """Whatever flags and numbers a peer sends on a connection of its own, the engine neither raises nor errs."""
    engine, peer = server()
    (answer,) = peer.exchange(tcp(SYN))
    _, seq, _ = tcp_fields(answer)
    peer.send(tcp(ACK, seq=1001, ack=seq + 1))
    conns = [event.conn for event in engine.events() if isinstance(event, Accepted)]
    for conn in conns:
        engine.write(conn, b"w" * 500)
    for flags, payload, number, relative, window in script:
        peer.send(tcp(flags, payload, seq=number, ack=(seq + relative) % 2**32, window=window))
        peer.now += 0.5
        peer.replies()
        engine.events()
    peer.now += 2000
    engine.advance(peer.now)
    engine.advance(peer.now + 2000)
    engine.transmits()
    engine.events()
    assert engine.counters()["internal_error"] == 0


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.binary(max_size=300)
        | st.tuples(st.integers(0, 5), st.binary(max_size=200)).map(lambda p: bytes([p[0], 0, 0, 0]) + p[1])
        | st.binary(min_size=144, max_size=144).map(lambda b: b"\1\0\0\0" + b)
        | st.binary(min_size=88, max_size=88).map(lambda b: b"\2\0\0\0" + b),
        max_size=20,
    ),
    st.floats(),
)
def test_any_datagram_is_survived(datagrams: list[bytes], now: float) -> None:
    """Arbitrary bytes at any time, even one that is no number, never raise and never get in."""
    engine, peer = server()
    engine.events()
    for datagram in datagrams:
        engine.receive(datagram, SOURCE, now)
        engine.receive(datagram, Endpoint("::1", 5), now)
    engine.advance(now)
    assert engine.events() == []
    assert engine.counters()["connections"] == 0
    assert peer.public_key == engine.peers()[0].public_key


def test_huge_datagram_is_malformed() -> None:
    """More bytes than a datagram can have are dropped before anything is done with them."""
    engine, _ = server()
    engine.receive(b"\4\0\0\0" + bytes(70_000), SOURCE, 100.0)
    assert engine.counters()["malformed"] == 1
