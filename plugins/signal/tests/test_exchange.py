"""The rules of the signal server, by the clock of the test."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from nacl.utils import random

from netbird_signal import exchange, service
from netbird_signal.exchange import (
    CONTESTED,
    COUNTERS,
    MESSAGE_BYTES,
    QUEUED_BYTES,
    RESERVED_BYTES,
    SOURCES,
    Ending,
    Exceeded,
    Exchange,
    Limits,
    Malformed,
    Registration,
    Stopping,
    Unknown,
)
from netbird_signal.mailbox import BYTES, Lane
from netbird_signal.rates import Bucket, Rate
from netbird_wire.envelope import format_key
from netbird_wire.signalexchange_pb2 import EncryptedMessage

HOME, OFFICE, STRANGER = "192.0.2.1", "192.0.2.2", "203.0.113.9"


def key() -> str:
    return format_key(random(32))


ALICE, BOB, CAROL = (format_key(bytes([number]) * 32) for number in (1, 2, 3))


@dataclass
class Lab:
    """An exchange and its clock."""

    limits: Limits = field(default_factory=Limits)
    now: float = 1000.0
    contested: list[tuple[str, str, str]] = field(default_factory=list)
    elsewhere: Callable[[EncryptedMessage, Lane], None] | None = None
    accounts: dict[str, str] | None = None

    def __post_init__(self) -> None:
        self.exchange = Exchange(
            self.limits,
            lambda: self.now,
            account_of=None if self.accounts is None else self.accounts.get,
            elsewhere=self.elsewhere,
            on_contested=lambda *moved: self.contested.append(moved),
        )

    def register(self, name: str, source: str = HOME) -> Registration:
        return self.exchange.register(name, source, lambda: None)

    def send(self, sender: str, receiver: str, body: bytes = b"box", source: str = HOME) -> None:
        self.exchange.send(EncryptedMessage(key=sender, remoteKey=receiver, body=body), source)

    def bodies(self, registration: Registration) -> list[bytes]:
        bodies = []
        while (message := self.exchange.take(registration)) is not None:
            bodies.append(message.body)
        return bodies

    def sent(self, count: int, sender: str = ALICE, source: str = HOME) -> int:
        """Return the number of accepted messages to bob."""
        accepted = 0
        for _ in range(count):
            try:
                self.send(sender, BOB, source=source)
            except Exceeded:
                continue
            accepted += 1
        return accepted


def test_a_message_reaches_its_receiver_whole() -> None:
    lab = Lab()
    bob = lab.register(BOB)
    lab.register(ALICE)

    lab.send(ALICE, BOB)

    assert lab.exchange.take(bob) == EncryptedMessage(key=ALICE, remoteKey=BOB, body=b"box")
    assert lab.exchange.queued_bytes == 0


def test_a_message_for_a_receiver_that_is_away_is_dropped_without_an_error() -> None:
    lab = Lab()
    lab.send(ALICE, BOB)

    assert lab.exchange.counts["receiver_away"] == 1
    assert lab.bodies(lab.register(BOB)) == []


def test_a_message_for_a_receiver_of_another_process_is_handed_on() -> None:
    """The seam for several processes of one network: one judges the sender, the other delivers."""
    there = Lab()
    bob = there.register(BOB)
    here = Lab(elsewhere=lambda message, lane: delivered.append(there.exchange.accept(message, lane)))
    delivered: list[bool] = []

    here.send(ALICE, BOB)
    here.send(ALICE, CAROL)

    assert delivered == [True, False]
    assert there.bodies(bob) == [b"box"]


@pytest.mark.parametrize("name", ["", "key", ALICE[:-1], ALICE + "=", ALICE + "\n", "ä" * 44, "A" * 42 + "B="])
def test_names_that_are_no_canonical_key_are_refused(name: str) -> None:
    lab = Lab()
    lab.register(BOB)
    with pytest.raises(Malformed):
        lab.register(name)
    with pytest.raises(Malformed):
        lab.send(name, BOB)
    with pytest.raises(Malformed):
        lab.send(BOB, name)
    assert lab.exchange.counts["malformed"] == 3


def test_oversized_messages_are_refused() -> None:
    lab = Lab()
    with pytest.raises(Malformed):
        lab.send(ALICE, BOB, bytes(MESSAGE_BYTES))
    assert lab.exchange.counts["oversized"] == 1


def test_promise_10_only_peers_register_where_they_are_known() -> None:
    """Strangers take no places."""
    lab = Lab(accounts={ALICE: "a"})
    lab.register(ALICE)
    with pytest.raises(Unknown):
        lab.register(BOB)

    assert lab.exchange.counts["unknown_peer"] == 1
    assert lab.exchange.streams == 1


def test_promise_10_messages_stay_within_an_account() -> None:
    """The sender is not told, as if the receiver were away; a peer that was removed sends and gets nothing more."""
    lab = Lab(accounts={ALICE: "a", BOB: "a", CAROL: "c"})
    bob, _ = lab.register(BOB), lab.register(CAROL)
    lab.send(CAROL, BOB, b"of another account")
    lab.send(key(), BOB, b"of a stranger")
    lab.send(ALICE, BOB, b"of ours")
    lab.send(BOB, BOB, b"heartbeat")
    assert lab.accounts is not None
    del lab.accounts[ALICE]
    lab.send(ALICE, BOB, b"of one that was removed")

    assert sorted(lab.bodies(bob)) == [b"heartbeat", b"of ours"]
    assert lab.exchange.counts["other_account"] == 3


def test_a_newer_stream_replaces_the_older_and_gets_its_messages() -> None:
    """A peer that reconnects loses nothing that waited; the older stream must end and gets nothing more."""
    lab = Lab()
    older = lab.register(BOB)
    lab.send(ALICE, BOB, b"1")
    woken: list[bool] = []
    older.wake = lambda: woken.append(True)

    newer = lab.register(BOB, OFFICE)
    lab.send(ALICE, BOB, b"2")

    assert older.end is Ending.REPLACED
    assert woken == [True]
    assert lab.bodies(older) == []
    lab.exchange.unregister(older)
    assert lab.bodies(newer) == [b"1", b"2"]
    lab.exchange.unregister(newer)
    lab.exchange.unregister(newer)
    assert (lab.exchange.streams, lab.exchange.queued_bytes) == (0, 0)


def test_a_stream_that_ends_frees_its_messages_and_its_place() -> None:
    lab = Lab(Limits(streams=1, streams_of_source=1))
    bob = lab.register(BOB)
    lab.send(ALICE, BOB)

    lab.exchange.unregister(bob)

    assert lab.exchange.queued_bytes == 0
    assert lab.bodies(lab.register(ALICE)) == []


def test_the_number_of_streams_is_bounded_in_all_and_by_source() -> None:
    """A peer that is registered may register again when all places are taken."""
    lab = Lab(Limits(streams=3, streams_of_source=2))
    lab.register(ALICE)
    lab.register(BOB)
    with pytest.raises(Exceeded):
        lab.register(CAROL)
    lab.register(BOB)
    lab.register(CAROL, OFFICE)
    with pytest.raises(Exceeded):
        lab.register(key(), STRANGER)
    lab.register(BOB, STRANGER)

    assert lab.exchange.counts["streams_of_source_full"] == 1
    assert lab.exchange.counts["streams_full"] == 1


def test_promise_10_a_flood_of_one_sender_costs_only_its_own_rate() -> None:
    """The flood is refused at its rate; another peer of the same source sends on."""
    lab = Lab(Limits(messages=Rate(10, 100)))
    lab.register(ALICE)
    lab.register(CAROL)

    assert lab.sent(1000, ALICE) == 100
    assert lab.sent(100, CAROL) == 100
    lab.now += 1
    assert lab.sent(1000, ALICE) == 10
    assert lab.exchange.counts["over_rate"] == 1890


def test_promise_10_a_forged_sender_costs_the_forger() -> None:
    """A stranger who names alice from another address uses up the strangers' rate there, and none of hers."""
    lab = Lab(Limits(messages=Rate(10, 100), messages_of_strangers=Rate(1, 20)))
    lab.register(ALICE)

    assert lab.sent(1000, ALICE, STRANGER) == 20
    assert lab.sent(1000, key(), STRANGER) == 0  # one rate for all names
    assert lab.sent(100, ALICE) == 100


def test_promise_10_a_source_with_many_keys_has_one_rate() -> None:
    lab = Lab(Limits(messages_of_source=Rate(10, 150), messages=Rate(10, 100)))
    names = [key() for _ in range(3)]
    for name in names:
        lab.register(name, STRANGER)
    lab.register(ALICE)

    assert sum(lab.sent(100, name, STRANGER) for name in names) == 150
    assert lab.sent(100) == 100


def test_promise_10_the_sum_of_all_refuses_those_that_send_much() -> None:
    """The process's own bound: many flooding sources use it up, and a peer with few messages is still served."""
    lab = Lab(Limits(all_messages=Rate(10, 300)))
    for number in range(4):
        name, source = key(), f"203.0.113.{number}"
        lab.register(name, source)
        lab.sent(100, name, source)
    lab.register(ALICE)

    assert lab.exchange.counts["all_over_rate"] > 0
    assert lab.sent(50) == 50


def test_promise_10_a_slow_receiver_costs_others_nothing() -> None:
    """Mailboxes that nobody reads fill the memory for all; a receiver that reads still gets its messages."""
    lab = Lab(Limits(messages=Rate(1e6, 1e6), messages_of_source=Rate(1e6, 1e6), all_messages=Rate(1e6, 1e6)))
    lab.register(ALICE)
    asleep = [key() for _ in range(QUEUED_BYTES // BYTES + 40)]
    body = bytes(MESSAGE_BYTES - 200)
    for name in asleep:
        lab.register(name)
        for _ in range(BYTES // MESSAGE_BYTES + 1):
            lab.send(ALICE, name, body)
    assert lab.exchange.queued_bytes <= QUEUED_BYTES + MESSAGE_BYTES + len(asleep) * RESERVED_BYTES

    bob = lab.register(BOB)
    for _ in range(10):
        lab.send(ALICE, BOB)
        assert lab.bodies(bob) == [b"box"]


def test_promise_10_a_stranger_takes_over_few_streams_of_others() -> None:
    """The burst and then one each time that the rate allows; the peer itself comes back, as its address has its own."""
    lab = Lab(Limits(takeovers=Rate(0.1, 3)))
    victims = [key() for _ in range(10)]
    for name in victims:
        lab.register(name)

    taken = 0
    for name in victims:
        try:
            lab.register(name, STRANGER)
        except Exceeded:
            continue
        taken += 1

    assert taken == 3
    assert lab.exchange.counts["takeovers_over_rate"] == 7
    lab.register(victims[0])
    lab.now += 10
    lab.register(victims[1], STRANGER)


def test_a_source_registers_at_a_rate() -> None:
    lab = Lab(Limits(registrations=Rate(1, 2)))
    lab.register(ALICE)
    lab.register(ALICE)
    with pytest.raises(Exceeded):
        lab.register(ALICE)
    lab.register(BOB, OFFICE)

    assert lab.exchange.counts["registrations_over_rate"] == 1


def test_a_key_that_two_addresses_fight_for_is_reported_once_a_minute() -> None:
    lab = Lab()
    for number in range(10):
        lab.register(ALICE, (HOME, STRANGER)[number % 2])
    assert len(lab.contested) == 1
    assert lab.contested[0][0] == ALICE
    lab.now += 61
    for number in range(CONTESTED):
        lab.register(ALICE, (HOME, STRANGER)[number % 2])

    assert len(lab.contested) == 2


def test_a_peer_that_moves_now_and_then_is_not_reported() -> None:
    lab = Lab()
    for number in range(10):
        lab.register(ALICE, (HOME, OFFICE)[number % 2])
        lab.now += 30

    assert lab.contested == []


def test_stopping_ends_every_stream_and_refuses_new_ones() -> None:
    lab = Lab()
    alice, bob = lab.register(ALICE), lab.register(BOB)

    lab.exchange.stop()

    assert alice.end is bob.end is Ending.STOPPING
    with pytest.raises(Stopping):
        lab.register(CAROL)


def test_every_counter_has_a_meaning() -> None:
    """The names that the code counts by are those that operators read about."""
    text = inspect.getsource(exchange) + inspect.getsource(service)
    counted = set(re.findall(r'(?:counts\[|_refuse\()"(\w+)"', text))
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")

    assert counted == set(COUNTERS)
    assert dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", readme, re.MULTILINE)) == COUNTERS


def test_a_forgotten_source_is_as_good_as_new_and_the_table_is_bounded() -> None:
    lab = Lab(Limits(messages_of_strangers=Rate(0, 1), all_messages=Rate(0, 10 * SOURCES)))
    assert lab.sent(2, source=STRANGER) == 1
    for number in range(SOURCES):
        assert lab.sent(1, source=str(number)) == 1

    assert len(lab.exchange._sources) == SOURCES
    assert lab.sent(2, source=STRANGER) == 1


def test_a_bucket_counts_what_is_missing() -> None:
    bucket = Bucket(Rate(2, 10), 0)
    for _ in range(6):
        assert bucket.take(0)

    assert bucket.missing(0) == 6
    assert bucket.missing(2) == 2
    assert bucket.missing(100) == 0


def test_limits_are_values() -> None:
    assert replace(Limits(), streams=1) != Limits()
