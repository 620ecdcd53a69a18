"""The queues of the signal client, and the watchdog of its stream, by the clock of the test."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from netbird_overlay.signal.messages import RemoteCandidate
from netbird_overlay.signal.outbox import Outbox
from netbird_overlay.signal.watchdog import Verdict, Watchdog

A, B, C = bytes(32), bytes([1] * 32), bytes([2] * 32)


def line(number: int) -> RemoteCandidate:
    return RemoteCandidate(str(number))


def drained(outbox: Outbox, now: float = 0) -> list[tuple[bytes, str]]:
    taken = []
    while (entry := outbox.take(now)) is not None:
        assert isinstance(entry.message, RemoteCandidate)
        taken.append((entry.key, entry.message.line))
        outbox.finish(entry)
    return taken


def test_peers_take_turns() -> None:
    """A peer with many messages delays another's by one message."""
    outbox = Outbox()
    for number in range(3):
        outbox.put(A, line(number), 0)
    outbox.put(B, line(9), 0)

    assert drained(outbox) == [(A, "0"), (B, "9"), (A, "1"), (A, "2")]


def test_a_full_outbox_drops_the_oldest_of_the_same_peer_only() -> None:
    """One peer cannot push out another's messages."""
    outbox = Outbox(messages_of_a_peer=3, messages=4)
    outbox.put(B, line(9), 0)
    for number in range(5):
        outbox.put(A, line(number), 0)
    outbox.put(C, line(7), 0)  # full, and C has none to give

    assert drained(outbox) == [(B, "9"), (A, "2"), (A, "3"), (A, "4")]
    assert outbox.counts == Counter(dropped=3)


def test_messages_expire() -> None:
    outbox = Outbox(lifetime=10)
    outbox.put(A, line(0), 0)
    outbox.put(A, line(1), 5)

    assert drained(outbox, 12) == [(A, "1")]
    assert outbox.counts == Counter(expired=1)


def test_a_message_that_was_put_back_comes_first() -> None:
    """Its peer had no turn in the meantime."""
    outbox = Outbox()
    outbox.put(A, line(0), 0)
    outbox.put(A, line(1), 0)
    entry = outbox.take(0)
    assert entry is not None
    assert outbox.take(0) is None

    outbox.put_back(entry)

    assert drained(outbox) == [(A, "0"), (A, "1")]


@given(
    st.lists(st.tuples(st.sampled_from(["put", "take", "finish", "back"]), st.sampled_from([A, B, C])), max_size=200)
)
def test_every_message_leaves_once_in_order_or_is_counted(steps: list[tuple[str, bytes]]) -> None:
    """Any order of calls: no message is lost, doubled or overtaken by a later one of its peer."""
    outbox = Outbox(messages_of_a_peer=4, messages=8)
    flying = []
    added, left = 0, []
    for step, key in steps:
        if step == "put":
            outbox.put(key, line(added), 0)
            added += 1
        elif step == "take" and (entry := outbox.take(0)) is not None:
            assert entry.key not in [other.key for other in flying]
            flying.append(entry)
        elif step == "finish" and flying:
            entry = flying.pop()
            left.append((entry.key, entry.message))
            outbox.finish(entry)
        elif step == "back" and flying:
            outbox.put_back(flying.pop(0))
        assert len(outbox) <= 8 + 3  # what was put back may exceed the bound by one message a peer
    for entry in flying:
        left.append((entry.key, entry.message))
        outbox.finish(entry)
    left += [(key, RemoteCandidate(text)) for key, text in drained(outbox)]

    assert len(left) + outbox.counts["dropped"] == added
    for key in (A, B, C):
        numbers = [int(message.line) for peer, message in left if peer == key and isinstance(message, RemoteCandidate)]
        assert numbers == sorted(set(numbers))
    assert len(outbox) == 0


def test_the_watchdog_probes_once_and_then_gives_up() -> None:
    """30 s without a message: a probe. 10 s later, still nothing: dead."""
    watchdog = Watchdog(0)
    assert watchdog.check(29.9) is Verdict.ALIVE
    assert watchdog.check(watchdog.deadline) is Verdict.PROBE
    assert watchdog.check(39.9) is Verdict.ALIVE
    assert watchdog.check(40) is Verdict.DEAD


def test_any_message_satisfies_the_watchdog() -> None:
    watchdog = Watchdog(0)
    watchdog.check(30)
    watchdog.heard(35)

    assert watchdog.check(64.9) is Verdict.ALIVE
    assert watchdog.check(65) is Verdict.PROBE
