"""STUN messages are read as RFC 8489 and NetBird's agents write them, and nonsense is refused with one error."""

from __future__ import annotations

import struct
from contextlib import suppress
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.stun import BadStun, Kind, Mapped, Message, StunClient, Unanswered, encode, looks_like_stun, parse

# The test vectors of RFC 5769, sections 2.1 to 2.3.
PASSWORD = "VOkJxbRl1RmTxUk/WvJxBt"
TRANSACTION = bytes.fromhex("b7e7a701bc34d686fa87dfae")
REQUEST = bytes.fromhex(
    "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74002400046e0001ff80290008932ff9b1"
    "51263b36000600096576746a3a6836765920202000080014 9aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf"
)
SUCCESS_V4 = bytes.fromhex(
    "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a64300080014"
    "2b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96"
)
SUCCESS_V6 = bytes.fromhex(
    "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a1470113a9faa5d3f179bc25f4b5"
    "bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c"
)
IDS = ("a" * 32, "b" * 32)


def with_attribute(datagram: bytes, kind: int, value: bytes) -> bytes:
    """Append an attribute, as NetBird's agents append theirs: the length covers it, nothing else does."""
    datagram += struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)
    return datagram[:2] + struct.pack("!H", len(datagram) - 20) + datagram[4:]


def test_request_of_the_standards_vectors_is_read() -> None:
    message = parse(REQUEST)
    assert message == Message(
        Kind.REQUEST, TRANSACTION, username="evtj:h6vY", priority=0x6E0001FF, controlled=0x932FF9B151263B36
    )
    assert message.is_from(PASSWORD)
    assert not message.is_from(PASSWORD + "x")


@pytest.mark.parametrize(
    ("datagram", "mapped"),
    [
        (SUCCESS_V4, Endpoint("192.0.2.1", 32853)),
        (SUCCESS_V6, Endpoint("2001:db8:1234:5678:11:2233:4455:6677", 32853)),
    ],
)
def test_answers_of_the_standards_vectors_are_read(datagram: bytes, mapped: Endpoint) -> None:
    message = parse(datagram)
    assert message == Message(Kind.SUCCESS, TRANSACTION, mapped=mapped)
    assert message.is_from(PASSWORD)


@pytest.mark.parametrize("datagram", [REQUEST, SUCCESS_V4, SUCCESS_V6])
def test_attribute_of_netbirds_agents_stands_behind_the_fingerprint(datagram: bytes) -> None:
    longer = with_attribute(datagram, 0x8100, ":".join(IDS).encode())
    assert len(longer) == len(datagram) + 4 + 68
    message = parse(longer)
    assert message.candidate_ids == IDS
    assert message.is_from(PASSWORD)


def test_our_messages_have_the_shape_that_netbirds_agents_send() -> None:
    message = Message(Kind.REQUEST, TRANSACTION, username="r:l", priority=1, controlling=7, candidate_ids=IDS)
    datagram = encode(message, PASSWORD)
    assert datagram[-72:] == struct.pack("!HH", 0x8100, 65) + ":".join(IDS).encode() + bytes(3)
    before = encode(Message(Kind.REQUEST, TRANSACTION, username="r:l", priority=1, controlling=7), PASSWORD)
    assert datagram[4:-72] == before[4:]
    assert parse(before).is_from(PASSWORD)


def test_query_of_a_server_is_a_bare_header() -> None:
    assert encode(Message(Kind.REQUEST, TRANSACTION)).hex() == "000100002112a442" + TRANSACTION.hex()


def test_unauthenticated_attributes_behind_the_integrity_count_for_nothing() -> None:
    plain = encode(Message(Kind.REQUEST, TRANSACTION, username="r:l", priority=1, controlling=7), PASSWORD)
    forged = with_attribute(with_attribute(plain, 0x0025, b""), 0x0024, bytes(4))
    message = parse(forged)
    assert message.is_from(PASSWORD)
    assert not message.use_candidate
    assert message.priority == 1


def test_first_of_equal_attributes_counts() -> None:
    query = encode(Message(Kind.REQUEST, TRANSACTION, priority=1))
    assert parse(with_attribute(query, 0x0024, bytes(4))).priority == 1


def test_message_without_integrity_is_from_nobody() -> None:
    assert not parse(encode(Message(Kind.REQUEST, TRANSACTION))).is_from("")


def test_fingerprint_notices_each_changed_byte() -> None:
    unnoticed = []
    for at in range(20, len(REQUEST)):
        try:
            parse(REQUEST[:at] + bytes([REQUEST[at] ^ 1]) + REQUEST[at + 1 :])
        except BadStun:
            continue
        unnoticed.append(at)
    assert unnoticed == [len(REQUEST) - 8, len(REQUEST) - 7]  # without its type, the CRC is an unknown attribute


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        bytes(20),
        REQUEST[:-1],
        REQUEST + b"\x00",
        with_attribute(REQUEST, 0x8028, bytes(4))[:-4],
        encode(Message(Kind.REQUEST, TRANSACTION))[:2] + b"\x00\x02" + encode(Message(Kind.REQUEST, TRANSACTION))[4:],
        b"\x00\x03" + encode(Message(Kind.REQUEST, TRANSACTION))[2:],
        b"\xc0\x01" + encode(Message(Kind.REQUEST, TRANSACTION))[2:],
        *(
            with_attribute(encode(Message(Kind.REQUEST, TRANSACTION)), kind, value)
            for kind, value in [
                (0x0006, b"\xff\xff"),
                (0x0006, b"x" * 513),
                (0x0008, bytes(19)),
                (0x0008, bytes(32)),
                (0x0009, bytes(3)),
                (0x0009, bytes((0, 0, 2, 0))),
                (0x0009, bytes((0, 0, 4, 100))),
                (0x0020, bytes(3)),
                (0x0020, bytes((0, 3, 0, 0, 0, 0, 0, 0))),
                (0x0020, bytes((0, 1)) + bytes(18)),
                (0x0024, bytes(3)),
                (0x8029, bytes(4)),
                (0x802A, bytes(9)),
                (0x8028, bytes(4)),
                (0x8100, b"\xe9:\xe9"),
            ]
        ),
    ],
)
def test_nonsense_is_refused(datagram: bytes) -> None:
    with pytest.raises(BadStun):
        parse(datagram)


@given(
    st.binary(max_size=200)
    | st.builds(
        lambda kind, transaction, attributes: with_attributes(kind, transaction, attributes),
        st.sampled_from([0x0001, 0x0101, 0x0111, 0x0011, 0x0003]),
        st.binary(min_size=12, max_size=12),
        st.lists(
            st.tuples(
                st.sampled_from([1, 6, 8, 9, 0x20, 0x24, 0x25, 0x8028, 0x8029, 0x802A, 0x8100, 0x7FFF, 0xC057]),
                st.binary(max_size=40),
            ),
            max_size=8,
        ),
    )
)
@example(bytes.fromhex("000100042112a442") + bytes(12) + b"\x00\x06\xff\xff")
def test_no_datagram_raises_anything_but_bad_stun(datagram: bytes) -> None:
    try:
        message = parse(datagram)
    except BadStun:
        return
    assert looks_like_stun(datagram)
    message.is_from(PASSWORD)


@given(st.sampled_from([REQUEST, SUCCESS_V4, SUCCESS_V6]), st.randoms(use_true_random=False))
def test_no_damaged_message_raises_anything_but_bad_stun(datagram: bytes, random: Random) -> None:
    damaged = bytearray(datagram)
    for _ in range(random.randrange(1, 6)):
        damaged[random.randrange(len(damaged))] = random.randrange(256)
    del damaged[random.randrange(len(damaged)) :: random.randrange(1, 9) * 8]
    damaged[2:4] = max(0, len(damaged) - 20).to_bytes(2)
    with suppress(BadStun):
        parse(bytes(damaged))


def with_attributes(kind: int, transaction: bytes, attributes: list[tuple[int, bytes]]) -> bytes:
    datagram = struct.pack("!HHI", kind, 0, 0x2112A442) + transaction
    for each, value in attributes:
        datagram = with_attribute(datagram, each, value)
    return datagram


ADDRESSES = st.ip_addresses().map(str).filter(lambda text: not text.startswith("::ffff:"))
WORDS = st.text("abcXYZ019+/", min_size=1, max_size=64)


@given(
    st.builds(
        Message,
        st.sampled_from(Kind),
        st.binary(min_size=12, max_size=12),
        username=WORDS,
        priority=st.none() | st.integers(0, 2**32 - 1),
        use_candidate=st.booleans(),
        controlling=st.none() | st.integers(0, 2**64 - 1),
        controlled=st.none() | st.integers(0, 2**64 - 1),
        mapped=st.none() | st.builds(Endpoint, ADDRESSES, st.integers(0, 65535)),
        error=st.none() | st.integers(300, 699),
        candidate_ids=st.none() | st.tuples(WORDS, WORDS),
    ),
    WORDS,
)
def test_each_message_is_read_as_it_was_written(message: Message, password: str) -> None:
    read = parse(encode(message, password))
    assert read == message
    assert read.is_from(password)
    assert not read.is_from(password + "x")


# Servers ---------------------------------------------------------------------------------------------------------

SERVER, OTHER = Endpoint("198.51.100.1", 3478), Endpoint("198.51.100.2", 3478)
MAPPED = Endpoint("203.0.113.9", 40000)


def client() -> StunClient:
    return StunClient(Random(1).randbytes)


def sent(asking: StunClient) -> list[tuple[Message, Endpoint]]:
    return [(parse(datagram), server) for datagram, server in asking.transmits()]


def test_server_is_asked_four_times_in_five_seconds() -> None:
    asking = client()
    asking.query([SERVER], 100.0)
    times, transactions = [], set()
    now = 100.0
    while asking.pending:
        for message, server in sent(asking):
            assert server == SERVER
            times.append(now)
            transactions.add(message.transaction)
        now = asking.deadline
        asking.advance(now)
    assert (times, len(transactions), now) == ([100.0, 100.5, 101.5, 103.5], 1, 105.0)
    assert asking.events() == [Unanswered(SERVER)]
    assert asking.deadline == float("inf")


def test_answer_counts_for_25_seconds() -> None:
    asking = client()
    asking.query([SERVER], 100.0)
    ((question, _),) = sent(asking)
    answer = encode(Message(Kind.SUCCESS, question.transaction, mapped=MAPPED))
    assert asking.receive(answer, SERVER, 100.1)
    assert asking.events() == [Mapped(SERVER, MAPPED)]
    assert asking.reflexive(125.0) == [MAPPED]
    asking.query([SERVER], 125.0)
    assert (sent(asking), asking.pending) == ([], False)
    assert asking.reflexive(125.1) == []
    asking.query([SERVER], 125.1)
    assert len(sent(asking)) == 1


def test_one_address_from_two_servers_counts_once() -> None:
    asking = client()
    asking.query([SERVER, OTHER], 100.0)
    for question, server in sent(asking):
        asking.receive(encode(Message(Kind.SUCCESS, question.transaction, mapped=MAPPED)), server, 100.1)
    assert asking.reflexive(100.1) == [MAPPED]


def test_answers_of_strangers_do_not_count() -> None:
    asking = client()
    asking.query([SERVER], 100.0)
    ((question, _),) = sent(asking)
    answer = encode(Message(Kind.SUCCESS, question.transaction, mapped=MAPPED))
    assert asking.receive(answer, OTHER, 100.1)
    assert asking.counters == {"answers_from_elsewhere": 1}
    assert not asking.receive(encode(Message(Kind.SUCCESS, bytes(12), mapped=MAPPED)), SERVER, 100.1)
    assert not asking.receive(encode(Message(Kind.REQUEST, question.transaction)), SERVER, 100.1)
    assert not asking.receive(b"nb", SERVER, 100.1)
    assert (asking.events(), asking.pending) == ([], True)
    assert asking.receive(answer, SERVER, 100.2)
    assert asking.events() == [Mapped(SERVER, MAPPED)]


@pytest.mark.parametrize(
    "refusal",
    [
        Message(Kind.ERROR, TRANSACTION, error=500),
        Message(Kind.SUCCESS, TRANSACTION),
        Message(Kind.SUCCESS, TRANSACTION, mapped=Endpoint("203.0.113.9", 0)),
    ],
)
def test_refusal_ends_the_query(refusal: Message) -> None:
    asking = StunClient(lambda size: TRANSACTION[:size])
    asking.query([SERVER], 100.0)
    assert asking.receive(encode(refusal), SERVER, 100.1)
    assert (asking.events(), asking.pending) == ([Unanswered(SERVER)], False)


def test_sixteen_servers_are_asked_at_most() -> None:
    asking = client()
    asking.query([Endpoint("198.51.100.1", port) for port in range(1, 31)], 100.0)
    assert len(sent(asking)) == 16
    assert asking.counters == {"servers_left_out": 14}
