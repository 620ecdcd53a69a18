"""A TURN client makes, uses and keeps an allocation, and a server that lies, stalls or floods does no harm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.ice.candidates import is_usable
from netbird_overlay.stun.encoding import BadStun
from netbird_overlay.stun.turn import MAX_TRANSACTIONS, MAX_TRANSMITS, Allocated, Ended, TurnClient
from netbird_overlay.stun.turn_messages import Attribute, Class, Method, TurnMessage, frame_length, parse_turn
from netbird_overlay.stun.turn_tables import Grants
from tests.netbird_overlay.turn_double import PASSWORD, RELAYED, USER, TurnDouble

PEER, OTHER = Endpoint("198.51.100.5", 51820), Endpoint("198.51.100.6", 51820)


class Bench:
    """A client and its server without a network in between: `settle` passes datagrams until both are silent."""

    def __init__(self, *, password: str = PASSWORD, reliable: bool = False, server: TurnDouble | None = None) -> None:
        self.now = 0.0
        self.server = server or TurnDouble()
        self.client = TurnClient(
            USER, password, random=Random(1).randbytes, usable=is_usable, now=self.now, reliable=reliable
        )
        self.events: list[Allocated | Ended] = []
        self.sent = 0

    def settle(self) -> Bench:
        while datagrams := self.client.transmits():
            self.sent += len(datagrams)
            for datagram in datagrams:
                for answer in self.server.receive(datagram):
                    self.client.receive(answer, self.now)
        self.events += self.client.events()
        return self

    def until(self, seconds: float) -> Bench:
        """Let time pass, with each deadline in it."""
        while self.client.deadline <= seconds:
            self.now = max(self.now, self.client.deadline)
            self.client.advance(self.now)
            self.settle()
        self.now = seconds
        return self

    def permit(self, endpoint: Endpoint = PEER) -> Bench:
        self.client.send(b"first", endpoint, self.now)
        return self.settle()


def allocated() -> Bench:
    bench = Bench().settle()
    assert bench.events == [Allocated(RELAYED)]
    return bench


# Exchange of messages ------------------------------------------------------------------------------------------------


def test_allocation_follows_the_servers_challenge() -> None:
    bench = allocated()
    first, second = bench.server.of(Method.ALLOCATE)
    assert not first.digest
    assert first.attributes == {Attribute.REQUESTED_TRANSPORT: bytes((17, 0, 0, 0))}
    assert second.attributes[Attribute.USERNAME] == USER.encode()
    assert second.transaction != first.transaction
    assert bench.client.relayed == RELAYED


def test_datagrams_pass_once_there_is_a_permission_and_by_a_channel_once_it_is_bound() -> None:
    bench = allocated()
    assert not bench.client.send(b"before", PEER, bench.now)
    bench.settle()
    assert bench.client.send(b"check", PEER, bench.now)
    assert bench.client.send(b"data", PEER, bench.now, channel=True)
    bench.settle()
    assert bench.client.send(b"more", PEER, bench.now, channel=True)
    bench.settle()
    assert bench.server.relayed_out == [(b"check", PEER, False), (b"data", PEER, False), (b"more", PEER, True)]
    assert bench.client.receive(bench.server.data(b"in", PEER), bench.now) == (b"in", PEER)
    assert bench.client.receive(bench.server.by_channel(b"in", PEER), bench.now) == (b"in", PEER)


def test_permissions_and_channels_in_use_are_renewed_in_time_and_others_are_not() -> None:
    bench = allocated().permit()
    bench.client.send(b"x", PEER, bench.now, channel=True)
    bench.settle().permit(OTHER)
    for second in range(0, 1800, 20):
        bench.until(float(second))
        assert bench.client.send(b"x", PEER, bench.now, channel=True)
        bench.settle()
    asked = [each.endpoint(Attribute.XOR_PEER_ADDRESS) for each in bench.server.of(Method.CREATE_PERMISSION)]
    assert asked.count(OTHER) == 1
    assert 1800 / 300 <= asked.count(PEER) <= 1800 / 200
    assert 3 <= len(bench.server.of(Method.CHANNEL_BIND)) <= 9
    assert 1800 / 600 <= len(bench.server.of(Method.REFRESH)) <= 5
    assert bench.events == [Allocated(RELAYED)]


def test_a_new_nonce_is_taken_in_the_middle() -> None:
    bench = allocated()
    bench.server.nonce = b"n2"
    bench.permit()
    assert bench.client.send(b"x", PEER, bench.now)
    assert bench.settle().server.relayed_out == [(b"x", PEER, False)]


def test_an_allocation_is_given_back() -> None:
    bench = allocated()
    bench.client.release(bench.now)
    bench.settle()
    (refresh,) = bench.server.of(Method.REFRESH)
    assert refresh.lifetime() == 0
    assert bench.client.deadline == math.inf


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason"), [(403, "Forbidden"), (437, "Allocation Mismatch"), (486, "Quota"), (300, "Try Alternate")]
)
def test_a_refused_allocation_ends_with_the_servers_words(code: int, reason: str) -> None:
    server = TurnDouble()
    server.answer = lambda message: [server.error(message, code, reason)]
    assert Bench(server=server).settle().events == [Ended(f"allocate: {code} {reason}")]


def test_wrong_credentials_end_after_one_attempt() -> None:
    bench = Bench(password="wrong").settle()
    assert bench.events == [Ended("allocate: 401 Unauthorized")]
    assert bench.sent == 2


def test_reason_of_a_server_does_not_command_a_terminal() -> None:
    server = TurnDouble()
    server.answer = lambda message: [server.error(message, 486, "\x1b[2J\nno" + "x" * 500)]
    (event,) = Bench(server=server).settle().events
    assert isinstance(event, Ended)
    assert event.reason.isprintable()
    assert len(event.reason) < 100


def test_a_refused_permission_concerns_one_address_and_is_not_asked_for_all_the_time() -> None:
    bench = allocated()

    def answer(message: TurnMessage) -> Sequence[bytes]:
        refused = message.method is Method.CREATE_PERMISSION
        if refused and message.endpoint(Attribute.XOR_PEER_ADDRESS) == PEER:
            return [bench.server.error(message, 403, "Forbidden")]
        return bench.server.honest(message)

    bench.server.answer = answer
    for tenth in range(100):
        bench.until(tenth / 10)
        bench.client.send(b"x", PEER, bench.now)
        bench.client.send(b"x", OTHER, bench.now)
        bench.settle()
    assert {peer for _, peer, _ in bench.server.relayed_out} == {OTHER}
    assert len(bench.server.of(Method.CREATE_PERMISSION)) == 2
    assert bench.events == [Allocated(RELAYED)]


def test_a_refused_channel_leaves_the_longer_form() -> None:
    bench = allocated().permit()

    def answer(message: TurnMessage) -> Sequence[bytes]:
        if message.method is Method.CHANNEL_BIND:
            return [bench.server.error(message, 508, "Insufficient Capacity")]
        return bench.server.honest(message)

    bench.server.answer = answer
    for _ in range(3):
        bench.client.send(b"x", PEER, bench.now, channel=True)
        bench.settle()
    assert bench.server.relayed_out == [(b"x", PEER, False)] * 3
    assert len(bench.server.of(Method.CHANNEL_BIND)) == 1


# A server that lies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "fe80::1", "ff02::1", "::ffff:127.0.0.1"]
)
def test_a_special_address_is_no_relayed_address(host: str) -> None:
    server = TurnDouble()
    server.relayed = Endpoint(host, 50000)
    bench = Bench(server=server).settle()
    (event,) = bench.events
    assert isinstance(event, Ended)
    assert "special address" in event.reason
    assert bench.client.relayed is None
    assert [each.lifetime() for each in server.of(Method.REFRESH)] == [0], "the allocation is given back"


@pytest.mark.parametrize("source", [OTHER, Endpoint("127.0.0.1", 22), Endpoint("224.0.0.1", 1), Endpoint(PEER.host, 0)])
def test_senders_without_permission_and_special_addresses_do_not_pass(source: Endpoint) -> None:
    bench = allocated().permit()
    assert bench.client.receive(bench.server.data(b"in", source), bench.now) is None
    assert bench.client.counters["strangers"] == 1


def test_an_unasked_channel_brings_nothing() -> None:
    bench = allocated().permit()
    bench.server.channels[0x4FFF] = PEER
    assert bench.client.receive(bench.server.by_channel(b"in", PEER), bench.now) is None
    assert bench.client.counters["unknown_channels"] == 1


def test_answers_without_the_password_count_for_nothing() -> None:
    server = TurnDouble()
    server.answer = lambda message: (
        [server.success(message, password="guess")] if message.digest else server.honest(message)
    )
    bench = Bench(server=server).settle()
    assert bench.events == []
    assert bench.client.counters["unauthenticated"] == 1
    server.answer = server.honest
    assert bench.until(1.0).events == [Allocated(RELAYED)], "the next attempt is not spent"


def test_success_before_a_challenge_counts_for_nothing() -> None:
    server = TurnDouble()
    server.answer = lambda message: [server.success(message)]
    assert Bench(server=server).settle().events == []


def test_challenges_are_followed_a_few_times() -> None:
    server = TurnDouble()
    numbers = iter(range(1000))
    server.answer = lambda message: [server.error(message, 438 if message.digest else 401, nonce=b"%d" % next(numbers))]
    bench = Bench(server=server).settle()
    assert bench.events == [Ended("allocate: 438")]
    assert bench.sent <= 5


@pytest.mark.parametrize("nonce", [b"", b"n" * 764])
def test_a_challenge_without_a_fit_nonce_ends(nonce: bytes) -> None:
    server = TurnDouble()
    server.answer = lambda message: [server.error(message, 401, nonce=nonce)]
    bench = Bench(server=server).settle().until(30.0)
    (event,) = bench.events
    assert isinstance(event, Ended)


@pytest.mark.parametrize("lifetime", [0, 1, 10, 2**32 - 1])
def test_no_lifetime_makes_a_flood_of_refreshes_or_an_allocation_for_ever(lifetime: int) -> None:
    server = TurnDouble()
    server.lifetime = lifetime
    bench = Bench(server=server).settle().until(7200.0)
    assert len(server.of(Method.REFRESH)) <= 7200 / 30
    if lifetime < 30:
        assert bench.events == [Allocated(RELAYED), Ended("the allocation expired")]
    else:
        assert server.of(Method.REFRESH)


def test_an_endless_lifetime_is_refreshed_within_the_hour() -> None:
    server = TurnDouble()
    server.lifetime = 2**32 - 1
    Bench(server=server).settle().until(3600.0)
    assert server.of(Method.REFRESH)


# A server that stalls ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reliable", "sent"), [(False, 4), (True, 1)])
def test_silence_ends_after_7_s(reliable: bool, sent: int) -> None:
    server = TurnDouble()
    server.answer = lambda message: []
    bench = Bench(server=server, reliable=reliable).settle().until(7.4)
    assert (bench.events, bench.sent) == ([], sent)
    assert bench.until(7.6).events == [Ended("allocate: no answer")]
    assert bench.client.deadline == math.inf


def test_a_server_that_falls_silent_is_given_up_when_the_allocation_expires() -> None:
    bench = allocated()
    bench.server.answer = lambda message: []
    bench.until(599.0)
    assert bench.events == [Allocated(RELAYED)]
    bench.until(601.0)
    assert bench.events == [Allocated(RELAYED), Ended("the allocation expired")]
    assert len(bench.server.of(Method.REFRESH)) <= 4 * 600 / 30


def test_requests_to_a_silent_server_are_bounded() -> None:
    bench = allocated()
    bench.server.answer = lambda message: []
    for number in range(1000):
        bench.client.send(b"x", Endpoint(f"198.51.{number // 250}.{number % 250 + 1}", 1), bench.now)
    bench.settle()
    assert len(bench.server.of(Method.CREATE_PERMISSION)) <= MAX_TRANSACTIONS
    bench.until(60.0)
    bench.server.answer = bench.server.honest
    bench.permit()
    assert bench.client.send(b"x", PEER, bench.now), "the places are free again"


def test_datagrams_that_nobody_takes_are_bounded() -> None:
    bench = allocated().permit()
    for _ in range(MAX_TRANSMITS + 10):
        bench.client.send(b"x", PEER, bench.now)
    assert len(bench.client.transmits()) == MAX_TRANSMITS


def test_channels_keep_their_address_and_are_bounded() -> None:
    bench = allocated()
    peers = [Endpoint(PEER.host, port) for port in range(1, 201)]
    bench.permit()
    for peer in peers:
        bench.client.send(b"x", peer, bench.now, channel=True)
        bench.settle()
    assert len(bench.server.channels) == len(set(bench.server.channels.values())) == 128
    assert bench.server.relayed_out[-1] == (b"x", peers[-1], False), "the rest goes on without one"
    bound = dict(bench.server.channels)
    bench.until(599.0)
    for peer in peers[128:]:
        bench.client.send(b"x", peer, bench.now, channel=True)
        bench.settle()
    assert bench.server.channels == bound, "a number that may still be bound names no other address"


def test_full_table_of_grants_gives_the_place_of_an_idle_one_away() -> None:
    grants: Grants[str] = Grants(2)
    assert grants.use("a", 0.0)
    assert grants.use("b", 20.0)
    assert grants.use("c", 29.0) is None
    assert grants.use("c", 31.0)
    assert list(grants) == ["b", "c"]


# Nonsense ------------------------------------------------------------------------------------------------------------


@given(
    st.binary(max_size=120), st.sampled_from([bytes(0), b"\x00", b"\x01\x03", b"\x01\x13", b"\x00\x17", b"\x40\x00"])
)
def test_no_datagram_makes_the_client_raise_or_change(datagram: bytes, head: bytes) -> None:
    bench = allocated().permit()
    whole = head + datagram
    for data in (whole, whole[:2] + (max(0, len(whole) - 20)).to_bytes(2) + b"\x21\x12\xa4\x42" + whole[8:]):
        assert bench.client.receive(data, bench.now) is None
    assert bench.client.relayed == RELAYED
    assert bench.settle().events == [Allocated(RELAYED)]
    assert bench.client.deadline < math.inf


@given(st.binary(max_size=200))
def test_parser_returns_a_message_or_refuses(data: bytes) -> None:
    for datagram in (data, b"\x00\x03" + max(0, len(data) - 20).to_bytes(2) + b"\x21\x12\xa4\x42" + data[8:]):
        try:
            message = parse_turn(datagram)
        except BadStun:
            continue
        assert message.kind in Class


@given(st.binary(min_size=4, max_size=4))
def test_frames_of_a_stream_have_a_bounded_length(head: bytes) -> None:
    with suppress(BadStun):
        assert 4 <= frame_length(head) <= 65535 + 20 + 3
