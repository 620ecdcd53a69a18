"""The engine on real UDP sockets that it only borrows: loopback, IPv4, IPv6 and both at once."""

import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from netbird_overlay.engine import Accepted, Connected, Data, Endpoint, Engine, Event, Handshake, Writable


class End:
    """An engine with a socket, driven by hand as an event loop would."""

    def __init__(self, number: int, family: int, host: str) -> None:
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        if family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.bind((host, 0))
        self.engine = Engine(bytes(31) + bytes([number]))
        self.engine.set_addresses([f"100.64.0.{number}"])
        self.engine.set_inbound([("0.0.0.0/0", 6, 1, 65535)])
        self.log: list[Event] = []
        self.received: dict[int, bytearray] = {}
        self.unsent: dict[int, bytes] = {}
        self.wants_write = False

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def turn(self) -> None:
        result = self.engine.pump(self.socket.fileno(), time.monotonic())
        self.wants_write = result.blocked
        for event in self.engine.events():
            if isinstance(event, Data):
                self.received.setdefault(event.conn, bytearray()).extend(event.data)
            else:
                self.log.append(event)
            if isinstance(event, Writable):
                self.send(event.conn, b"")
        if self.engine.pending and not result.blocked:
            self.engine.pump(self.socket.fileno(), time.monotonic(), 0)

    def send(self, conn: int, data: bytes) -> None:
        data = self.unsent.pop(conn, b"") + data
        taken = self.engine.write(conn, data)
        if taken < len(data):
            self.unsent[conn] = data[taken:]


def run(ends: list[End], until: Callable[[], bool], seconds: float = 20) -> bool:
    """Turn the ends whenever there is something for them to do."""
    limit = time.monotonic() + seconds
    for end in ends:
        end.turn()
    while not until() and time.monotonic() < limit:
        wait = max(0.0, min(*(end.engine.deadline for end in ends), limit) - time.monotonic())
        readable, writable, _ = select.select(
            [end.socket for end in ends], [end.socket for end in ends if end.wants_write], [], wait
        )
        now = time.monotonic()
        for end in ends:
            if end.socket in readable or end.socket in writable or end.engine.deadline <= now:
                end.turn()
    return until()


@contextmanager
def ends(*kinds: tuple[int, str]) -> Iterator[list[End]]:
    with ExitStack() as stack:
        made = [End(number, family, host) for number, (family, host) in enumerate(kinds, 1)]
        for end in made:
            stack.callback(end.socket.close)
        yield made


FOUR, SIX, BOTH = (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::")


@pytest.mark.parametrize(
    ("kinds", "hosts"),
    [
        ((FOUR, FOUR), ("127.0.0.1", "127.0.0.1")),
        ((SIX, SIX), ("::1", "::1")),
        ((BOTH, FOUR), ("127.0.0.1", "127.0.0.1")),
        ((BOTH, SIX), ("::1", "::1")),
    ],
)
@pytest.mark.parametrize("aggregate", [False, True])
def test_bytes_cross_real_sockets(kinds: tuple[tuple[int, str], ...], hosts: tuple[str, str], aggregate: bool) -> None:
    """Eight megabytes from one socket to the other, on each kind of socket; the accepting end learns the endpoint."""
    with ends(*kinds) as (a, b):
        if aggregate:
            assert a.engine.aggregate(a.socket.fileno())
            assert b.engine.aggregate(b.socket.fileno())
        a.engine.set_peer(b.engine.public_key, ["100.64.0.2"], endpoint=Endpoint(hosts[1], b.port))
        b.engine.set_peer(a.engine.public_key, ["100.64.0.1"])
        b.engine.listen(80)
        conn = a.engine.connect("100.64.0.2", 80, time.monotonic())
        assert run([a, b], lambda: any(isinstance(event, Connected) for event in a.log))
        data = os.urandom(1 << 20) * 8
        a.send(conn, data)
        a.turn()
        assert run([a, b], lambda: sum(map(len, b.received.values())) == len(data))
        (accepted,) = [event.conn for event in b.log if isinstance(event, Accepted)]
        assert b.received[accepted] == data
        state = b.engine.peer(a.engine.public_key)
        assert state is not None
        assert state.endpoint == Endpoint(hosts[0], a.port)
        b.send(accepted, b"thanks")
        b.turn()
        assert run([a, b], lambda: bytes(a.received.get(conn, b"")) == b"thanks")


def test_pump_keeps_to_its_budget() -> None:
    """No more datagrams than asked for are taken, and `more` says that there may be others."""
    with ends(FOUR, FOUR) as (a, b):
        for _ in range(10):
            b.socket.sendto(b"not wireguard", ("127.0.0.1", a.port))
        result = a.engine.pump(a.socket.fileno(), time.monotonic(), 4)
        assert (result.received, result.more) == (4, True)
        result = a.engine.pump(a.socket.fileno(), time.monotonic(), 0)
        assert result.received == 0
        result = a.engine.pump(a.socket.fileno(), time.monotonic(), 100)
        assert (result.received, result.more, result.sent) == (6, False, 0)
        assert a.engine.counters()["malformed"] == 10


def test_runs_of_datagrams_are_taken_apart() -> None:
    """Many datagrams of one sender that the kernel hands over together are still judged one by one."""
    with ends(FOUR, FOUR) as (a, b):
        assert a.engine.aggregate(a.socket.fileno())
        for number in range(40):
            b.socket.sendto(b"\4\0\0\0" + bytes([number] * 60), ("127.0.0.1", a.port))
        assert a.engine.pump(a.socket.fileno(), time.monotonic(), 100).received == 40
        assert a.engine.counters()["unknown_session"] == 40


def test_aggregation_is_refused_without_harm() -> None:
    """Where there is no UDP socket there is nothing to aggregate, and nothing has changed."""
    with ends(FOUR, FOUR) as (a, b), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        assert not a.engine.aggregate(other.fileno())
        b.socket.sendto(b"\4\0\0\0" + bytes(9000), ("127.0.0.1", a.port))
        a.turn()
        assert a.engine.counters()["malformed"] == 1


def test_oversized_and_empty_datagrams_are_malformed() -> None:
    """What the socket had to cut, and what has no bytes, is counted and dropped."""
    with ends(FOUR, FOUR) as (a, b):
        b.socket.sendto(b"\4\0\0\0" + bytes(9000), ("127.0.0.1", a.port))
        b.socket.sendto(b"", ("127.0.0.1", a.port))
        a.turn()
        assert a.engine.counters()["malformed"] == 2


def test_unusable_socket_raises() -> None:
    """A descriptor that is no socket, or closed, is the caller's mistake and is told as OSError."""
    engine = Engine(bytes(31) + b"\1")
    read, write = os.pipe()
    try:
        with pytest.raises(OSError, match=r"."):
            engine.pump(read, 1.0)
    finally:
        os.close(read)
        os.close(write)
    with pytest.raises(OSError, match=r"."):
        engine.pump(read, 1.0)


def test_peer_that_cannot_be_reached_does_not_stop_the_others() -> None:
    """A datagram that the system refuses to send is counted; those behind it still go."""
    with ends(FOUR, FOUR) as (a, b):
        a.engine.set_peer(b"x" * 32, ["100.64.0.9"], endpoint=Endpoint("2001:db8::1", 1))
        a.engine.set_peer(b.engine.public_key, ["100.64.0.2"], endpoint=Endpoint("127.0.0.1", b.port))
        b.engine.set_peer(a.engine.public_key, ["100.64.0.1"])
        a.engine.handshake(b"x" * 32)
        a.engine.handshake(b.engine.public_key)
        assert run([a, b], lambda: any(isinstance(event, Handshake) for event in b.log))
        assert a.engine.counters()["send_failed"] >= 1
