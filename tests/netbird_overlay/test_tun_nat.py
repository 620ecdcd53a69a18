"""The NAT over TUN rewrites packets as a kernel would: right ends, right checksums, and only what it can carry."""

from __future__ import annotations

import struct
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_overlay.endpoints import Endpoint
from tests.netbird_overlay.nat import Behavior
from tests.netbird_overlay.tun_nat import TCP, UDP, Rewriter

INSIDE, SERVER, PUBLIC = Endpoint("10.1.0.2", 51820), Endpoint("198.51.100.1", 3478), "203.0.113.1"


def total(data: bytes) -> int:
    """Return the Internet checksum of data that contains its checksum: 0 if that is right."""
    if len(data) % 2:
        data += b"\x00"
    value = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while value >> 16:
        value = (value & 0xFFFF) + (value >> 16)
    return ~value & 0xFFFF


def packed(host: str) -> bytes:
    return bytes(map(int, host.split(".")))


def is_right(packet: bytes) -> bool:
    pseudo = packet[12:20] + struct.pack("!BBH", 0, packet[9], len(packet) - 20)
    return total(packet[:20]) == 0 and total(pseudo + packet[20:]) == 0


def packet(protocol: int, source: Endpoint, destination: Endpoint, payload: bytes) -> bytes:
    ports = struct.pack("!HH", source.port, destination.port)
    if protocol == UDP:
        segment = ports + struct.pack("!HH", 8 + len(payload), 0) + payload
        checksum_at = 6
    else:
        segment = ports + struct.pack("!IIBBHHH", 1, 0, 0x50, 2, 8192, 0, 0) + payload
        checksum_at = 16
    addresses = packed(source.host) + packed(destination.host)
    checksum = total(addresses + struct.pack("!BBH", 0, protocol, len(segment)) + segment)
    segment = segment[:checksum_at] + struct.pack("!H", checksum or 0xFFFF) + segment[checksum_at + 2 :]
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 7, 0x4000, 64, protocol, 0) + addresses
    return header[:10] + struct.pack("!H", total(header)) + header[12:] + segment


def nat(behavior: Behavior = Behavior.PORT_RESTRICTED) -> Rewriter:
    return Rewriter(behavior, PUBLIC, Random(1))


def ends(packet: bytes) -> tuple[Endpoint, Endpoint]:
    hosts = [".".join(map(str, packet[at : at + 4])) for at in (12, 16)]
    ports = struct.unpack_from("!HH", packet, 20)
    return Endpoint(hosts[0], ports[0]), Endpoint(hosts[1], ports[1])


@given(st.sampled_from([TCP, UDP]), st.binary(max_size=100), st.integers(1, 65535), st.integers(1, 65535))
def test_packets_go_out_and_come_back(protocol: int, payload: bytes, port: int, server_port: int) -> None:
    rewriter = nat()
    inside, server = Endpoint(INSIDE.host, port), Endpoint(SERVER.host, server_port)
    leaving = rewriter.outgoing(packet(protocol, inside, server, payload), 0)
    assert leaving is not None
    outside, destination = ends(leaving)
    assert (outside.host, destination) == (PUBLIC, server)
    assert is_right(leaving)
    entering = rewriter.incoming(packet(protocol, server, outside, payload), 1)
    assert entering is not None
    assert ends(entering) == (server, inside)
    assert is_right(entering)


def test_udp_without_checksum_stays_without() -> None:
    bare = bytearray(packet(UDP, INSIDE, SERVER, b"x"))
    bare[26:28] = bytes(2)
    leaving = nat().outgoing(bytes(bare), 0)
    assert leaving is not None
    assert leaving[26:28] == bytes(2)


def test_strangers_do_not_enter() -> None:
    rewriter = nat()
    leaving = rewriter.outgoing(packet(UDP, INSIDE, SERVER, b"x"), 0)
    assert leaving is not None
    outside = ends(leaving)[0]
    assert rewriter.incoming(packet(UDP, Endpoint(SERVER.host, 9), outside, b"x"), 1) is None
    assert rewriter.incoming(packet(TCP, SERVER, outside, b"x"), 1) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: whole[:27],
        lambda whole: b"\x60" + whole[1:],
        lambda whole: b"\x46" + whole[1:],
        lambda whole: whole[:6] + b"\x20\x00" + whole[8:],
        lambda whole: whole[:6] + b"\x00\x01" + whole[8:],
        lambda whole: whole[:9] + b"\x01" + whole[10:],
        lambda whole: b"",
    ],
)
def test_packets_that_it_cannot_carry_are_dropped(change: object) -> None:
    assert callable(change)
    whole = packet(UDP, INSIDE, SERVER, b"x" * 40)
    assert nat().outgoing(change(whole), 0) is None
    assert nat().incoming(change(whole), 0) is None


def test_cut_stops_datagrams_only_until_it_is_restored() -> None:
    rewriter = nat()
    rewriter.command("cut udp")
    assert rewriter.outgoing(packet(UDP, INSIDE, SERVER, b""), 0) is None
    assert rewriter.outgoing(packet(TCP, INSIDE, SERVER, b""), 0) is not None
    rewriter.command("restore udp")
    assert rewriter.outgoing(packet(UDP, INSIDE, SERVER, b""), 0) is not None


def test_loss_takes_its_part() -> None:
    rewriter = nat()
    rewriter.command("loss 0.25")
    passed = sum(rewriter.outgoing(packet(UDP, INSIDE, SERVER, b""), 0) is not None for _ in range(2000))
    assert 1400 < passed < 1600


def test_restart_forgets_the_mappings() -> None:
    rewriter = nat()
    leaving = rewriter.outgoing(packet(UDP, INSIDE, SERVER, b""), 0)
    assert leaving is not None
    rewriter.command("forget")
    assert rewriter.incoming(packet(UDP, SERVER, ends(leaving)[0], b""), 0) is None
    with pytest.raises(ValueError, match="unknown command"):
        rewriter.command("stop")
