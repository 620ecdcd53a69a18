"""STUN: the right address, no amplification, bounded tables."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_host.buckets import Bucket
from netbird_relay.limits import SOURCES
from netbird_relay.stun import ALL_A_SECOND, ANSWERS_AT_ONCE, Sources, StunServer, answer

TRANSACTION = bytes.fromhex("b7e7a701bc34d686fa87dfae")
PLAIN = struct.pack("!HHI", 1, 0, 0x2112A442) + TRANSACTION


def request(*attributes: tuple[int, bytes], kind: int = 1) -> bytes:
    body = b"".join(struct.pack("!HH", name, len(value)) + value + bytes(-len(value) % 4) for name, value in attributes)
    return struct.pack("!HHI", kind, len(body), 0x2112A442) + TRANSACTION + body


def test_the_answers_are_those_of_the_standards_test_vectors() -> None:
    """Addresses and transaction of RFC 5769 §2.2 and §2.3; their attributes XOR-MAPPED-ADDRESS, byte for byte."""
    assert answer(PLAIN, "192.0.2.1", 32853) == (
        struct.pack("!HHI", 0x0101, 12, 0x2112A442) + TRANSACTION + bytes.fromhex("002000080001a147e112a643")
    )
    assert answer(PLAIN, "2001:db8:1234:5678:11:2233:4455:6677", 32853) == (
        struct.pack("!HHI", 0x0101, 24, 0x2112A442)
        + TRANSACTION
        + bytes.fromhex("002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9")
    )


def test_a_mapped_address_is_answered_as_ipv4() -> None:
    assert answer(PLAIN, "::ffff:192.0.2.1", 32853) == answer(PLAIN, "192.0.2.1", 32853)


def test_optional_attributes_and_credentials_are_ignored() -> None:
    software, fingerprint, username = (0x8022, b"agent"), (0x8028, bytes(4)), (0x0006, b"user")
    assert answer(request(software, username, fingerprint), "192.0.2.1", 1) == answer(PLAIN, "192.0.2.1", 1)


def test_an_attribute_that_must_be_understood_is_refused_by_name() -> None:
    refused = answer(request((0x0003, bytes(4)), (0x7000, b"")), "192.0.2.1", 1)
    assert refused is not None
    assert refused[:2] == b"\x01\x11"
    assert refused[20:] == bytes.fromhex("0009000400000414000a000400037000")


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        PLAIN[:19],
        PLAIN + b"\0",
        b"\x01\x01" + PLAIN[2:],  # an answer: two servers must not answer each other
        b"\x00\x11" + PLAIN[2:],  # an indication
        b"\x00\x03" + PLAIN[2:],  # Allocate
        PLAIN[:4] + bytes(4) + PLAIN[8:],  # the protocol before the magic cookie
        request((0x8022, b"x"))[:-4] + b"\0\0\0",
        PLAIN[:2] + b"\x00\x04" + PLAIN[4:] + b"\x80\x22\x00\x08",  # an attribute longer than the message
        request((0x8022, bytes(600))),
    ],
)
def test_anything_else_is_not_answered(datagram: bytes) -> None:
    assert answer(datagram, "192.0.2.1", 1) is None


@given(st.binary(max_size=600) | st.binary(max_size=560).map(lambda tail: PLAIN[:3] + tail))
def test_no_datagram_gets_a_much_longer_answer(datagram: bytes) -> None:
    for host in ("192.0.2.1", "2001:db8::1"):
        reply = answer(datagram, host, 9)
        assert reply is None or len(reply) <= len(datagram) + 24


def test_each_source_has_an_allowance_and_ipv6_networks_share_one() -> None:
    sources = Sources(0.0)
    assert [sources.may_answer("192.0.2.1", 0.0) for _ in range(int(ANSWERS_AT_ONCE) + 1)].count(False) == 1
    assert sources.may_answer("192.0.2.2", 0.0)
    assert sources.may_answer("192.0.2.1", 0.1)
    for number in range(int(ANSWERS_AT_ONCE)):
        assert sources.may_answer(f"2001:db8::{number:x}", 0.0)
    assert not sources.may_answer("2001:db8::ffff", 0.0)


def test_the_table_of_sources_and_all_answers_together_are_bounded() -> None:
    sources = Sources(0.0)
    hosts = [f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(SOURCES + 2000)]
    answered = sum(sources.may_answer(host, 0.0) for host in hosts)
    assert len(sources) == SOURCES
    assert answered == ALL_A_SECOND


def test_a_bucket_refills() -> None:
    bucket = Bucket(1.0, 1.0, 0.0)
    assert bucket.spend(1.0, 0.0)
    assert not bucket.spend(1.0, 0.5)
    assert bucket.spend(1.0, 1.0)


async def test_a_client_learns_its_address() -> None:
    counters: Counter[str] = Counter()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        for sock in (server, client):
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
        stun = StunServer(server, counters)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(10):
                client.sendto(b"nonsense", server.getsockname())
                client.sendto(PLAIN, server.getsockname())
                assert await loop.sock_recv(client, 100) == answer(PLAIN, "127.0.0.1", client.getsockname()[1])
        finally:
            stun.close()
    assert counters == {"stun_answered": 1, "stun_ignored": 1}
