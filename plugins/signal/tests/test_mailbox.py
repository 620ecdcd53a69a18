"""A receiver's mailbox is bounded, and no sender keeps another out of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from netbird_signal.mailbox import BYTES, LEAST_COST, MESSAGES, Lane, Mailbox
from netbird_wire.signalexchange_pb2 import EncryptedMessage

A, B, C = Lane("192.0.2.1", "a"), Lane("192.0.2.1", "b"), Lane("192.0.2.2", "c")


def message(number: int = 0) -> EncryptedMessage:
    return EncryptedMessage(body=str(number).encode())


def drained(mailbox: Mailbox) -> list[int]:
    bodies = []
    while (taken := mailbox.take()) is not None:
        bodies.append(int(taken.body))
    return bodies


def filled(lane: Lane, count: int = MESSAGES) -> Mailbox:
    mailbox = Mailbox()
    for number in range(count):
        assert mailbox.put(lane, message(number), 1) == 0
    return mailbox


def test_messages_of_a_sender_stay_in_order_and_senders_take_turns() -> None:
    mailbox = Mailbox()
    for number in range(3):
        mailbox.put(A, message(number), 1)
    mailbox.put(C, message(9), 1)

    assert drained(mailbox) == [0, 9, 1, 2]
    assert mailbox.cost == 0


def test_a_full_mailbox_drops_the_newest_of_a_sender_alone_in_it() -> None:
    """The receiver gets what it would have got in time."""
    mailbox = filled(A)

    assert mailbox.put(A, message(9999), 1) == 1

    assert drained(mailbox) == list(range(MESSAGES))


def test_promise_10_one_sender_does_not_fill_a_mailbox_for_others() -> None:
    """Another sender of the same source, and one of another, push out the newest of the sender that has most."""
    mailbox = filled(A)

    assert mailbox.put(B, message(7777), 1) == 1
    assert mailbox.put(C, message(8888), 1) == 1

    received = drained(mailbox)
    assert {7777, 8888} <= set(received)
    assert [number for number in received if number < MESSAGES] == list(range(MESSAGES - 2))


def test_promise_10_many_keys_of_one_source_do_not_fill_a_mailbox_for_others() -> None:
    """A stranger who registers a key for each message still has one source."""
    mailbox = Mailbox()
    for number in range(MESSAGES):
        mailbox.put(Lane("203.0.113.9", str(number)), message(number), 1)

    for number in range(MESSAGES // 2):
        assert mailbox.put(C, message(10_000 + number), 1) == 1

    assert sum(number >= 10_000 for number in drained(mailbox)) == MESSAGES // 2


def test_a_large_message_displaces_few() -> None:
    """Otherwise one message would cost a walk over hundreds."""
    mailbox = filled(A)

    assert mailbox.put(C, message(), 100 * LEAST_COST) == 5

    assert len(mailbox) == MESSAGES - 4


def test_a_mailbox_above_a_lower_limit_does_not_grow() -> None:
    mailbox = filled(A, 100)
    cost = mailbox.cost

    assert mailbox.put(C, message(), 1, limit=LEAST_COST) == 1

    assert mailbox.cost == cost


senders = st.builds(Lane, st.sampled_from(["x", "y"]), st.sampled_from(["1", "2", "3"]))


@given(steps=st.lists(st.tuples(senders, st.integers(0, BYTES // 3), st.booleans()), max_size=60))
def test_every_message_is_taken_or_counted_and_the_bound_holds(steps: list[tuple[Lane, int, bool]]) -> None:
    """Any order of calls: the cost is that of the messages inside, never above the bound, and zero at the end."""
    mailbox = Mailbox()
    put = dropped = taken = 0
    for lane, size, take in steps:
        if take:
            taken += mailbox.take() is not None
        else:
            put += 1
            dropped += mailbox.put(lane, message(), size)
        assert 0 <= mailbox.cost <= BYTES
    taken += len(drained(mailbox))

    assert put == taken + dropped
    assert mailbox.cost == 0
