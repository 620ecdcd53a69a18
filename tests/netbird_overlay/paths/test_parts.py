"""The parts of the manager by themselves: timers, carriers, STUN servers, and which agent a datagram is for."""

from __future__ import annotations

import asyncio
import itertools
import math
import socket
from collections.abc import Sequence
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.ice.agent import Selected
from netbird_overlay.ice.candidates import Candidate, priority
from netbird_overlay.members import IceCredentials
from netbird_overlay.paths.carriers import Carriers
from netbird_overlay.paths.effects import StartIce
from netbird_overlay.paths.foreign_relays import judged_address
from netbird_overlay.paths.quiet import Quiet
from netbird_overlay.paths.sessions import MAX_TRANSACTIONS, IceSessions, Turns
from netbird_overlay.paths.stun_servers import StunServers, parse_stun
from netbird_overlay.paths.timers import Timers
from netbird_overlay.stun.messages import Kind, Message, encode, parse

KEYS = [b"a", b"b", b"c"]


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from([1.0, 2.0, 3.0, 4.0, math.inf])), max_size=200))
def test_timers_agree_with_a_plain_table(changes: list[tuple[bytes, float]]) -> None:
    timers: Timers[bytes] = Timers()
    table: dict[bytes, float] = {}
    for key, at in changes:
        timers.set(key, at)
        table[key] = at
        assert timers.next == min(table.values())
    for now in (1.5, 3.0, 9.0):
        due = [key for key, at in table.items() if at <= now]
        assert sorted(timers.due(now)) == sorted(due)
        for key in due:
            table[key] = math.inf


def test_the_heap_of_timers_stays_small() -> None:
    timers: Timers[bytes] = Timers()
    for number in range(10_000):
        timers.set(b"a", float(number))
    assert len(timers._heap) < 100
    assert timers.next == 9999.0


async def test_carriers_send_a_turns_datagrams_together_and_never_reuse_a_number() -> None:
    sent: list[tuple[bytes, str, Sequence[bytes]]] = []
    dropped: list[int] = []
    carriers = Carriers(lambda *each: sent.append(each), dropped.append)
    first, second = carriers.open(b"a", "r"), carriers.open(b"b", "r")
    assert carriers.open(b"a", "r") == first != second
    for number, datagram in ((first, b"1"), (second, b"2"), (first, b"3")):
        carriers.queue(number, [datagram])
    await asyncio.sleep(0)
    assert sent == [(b"a", "r", [b"1", b"3"]), (b"b", "r", [b"2"])]
    assert carriers.close(b"a", "r")
    assert not carriers.close(b"a", "r")
    carriers.queue(first, [b"late"])
    await asyncio.sleep(0)
    assert dropped == [1]
    assert carriers.open(b"a", "r") not in (first, second)
    assert carriers.hops(b"a") == ["r"]


@pytest.mark.parametrize(
    ("uri", "target"),
    [
        ("stun:stun.example:3478", ("stun.example", 3478)),
        ("stun:stun.example", ("stun.example", 3478)),
        ("stun:192.0.2.1:19302", ("192.0.2.1", 19302)),
        ("stun:[2001:db8::1]:3479", ("2001:db8::1", 3479)),
        ("stun:[2001:db8::1]", ("2001:db8::1", 3478)),
        ("stun:", None),
        ("stun::1", None),
        ("stun:host:0", None),
        ("stun:host:65536", None),
        ("stun:host:x", None),
        ("turn:host:1", None),
        ("host:1", None),
    ],
)
def test_uris_of_stun_servers(uri: str, target: tuple[str, int] | None) -> None:
    assert parse_stun(uri) == target


@given(st.text(max_size=40))
def test_no_uri_makes_the_parser_raise(text: str) -> None:
    parse_stun(text)
    parse_stun("stun:" + text)


async def test_stun_servers_are_resolved_at_each_change() -> None:
    results: asyncio.Queue[Sequence[Endpoint]] = asyncio.Queue()
    servers = StunServers(results.put_nowait, family=socket.AF_INET)
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(10):
        running = tasks.create_task(servers.run())
        assert await results.get() == ()
        servers.use(["stun:127.0.0.1:3478", "stun:127.0.0.1:3478", "nonsense", "stun:localhost:5"])
        assert await results.get() == (Endpoint("127.0.0.1", 3478), Endpoint("127.0.0.1", 5))
        running.cancel()


class Bench:
    """Sessions whose datagrams are collected."""

    def __init__(self, host: str, turns: Turns | None = None) -> None:
        numbers = itertools.count(1)
        self.sent: list[tuple[bytes, Endpoint]] = []
        self.lines: list[str] = []
        self.selected: list[tuple[bytes, int]] = []
        self.lost: list[tuple[bytes, int]] = []
        self.endpoint = Endpoint(host, 51820)
        self.sessions = IceSessions(
            send=lambda datagram, to: self.sent.append((datagram, to)),
            random=lambda size: next(numbers).to_bytes(4) * (size // 4) + bytes(size % 4),
            gather=lambda ufrag, new_id: [
                Candidate("host", self.endpoint, priority("host"), ufrag=ufrag, cid=new_id())
            ],
            on_candidate=lambda key, generation, line: self.lines.append(line),
            on_selected=self._on_selected,
            on_lost=lambda key, generation: self.lost.append((key, generation)),
            turns=turns,
        )

    def _on_selected(self, key: bytes, generation: int, event: Selected) -> None:
        self.selected.append((key, generation))

    def take(self) -> list[tuple[bytes, Endpoint]]:
        sent, self.sent = self.sent, []
        return sent


A, B = IceCredentials("aaaa", "password-of-a"), IceCredentials("bbbb", "password-of-b")


def connected() -> tuple[Bench, Bench]:
    """Two benches that selected each other's endpoint."""
    a, b = Bench("192.0.2.1"), Bench("192.0.2.2")
    a.sessions.start(b"b", StartIce(1, A, B, controlling=True), 0.0)
    b.sessions.start(b"a", StartIce(1, B, A, controlling=False), 0.0)
    a.sessions.add_remote(b"b", 1, b.lines[0], 0.0)
    now = 0.0
    while not (a.selected and b.selected):
        now += 0.01
        for bench, other in ((a, b), (b, a)):
            bench.sessions.advance(now)
            for datagram, to in bench.take():
                assert to == other.endpoint
                other.sessions.receive(datagram, bench.endpoint, now)
        assert now < 5
    return a, b


def test_two_sessions_meet_and_report_the_loss_of_the_other() -> None:
    a, b = connected()
    assert (a.selected, b.selected) == ([(b"b", 1)], [(b"a", 1)])
    b.sessions.stop(b"a", 1)
    while not a.lost:
        a.sessions.advance(a.sessions.deadline)
    assert a.lost == [(b"b", 1)]


def test_a_session_without_a_peer_is_reported_after_12_s() -> None:
    bench = Bench("192.0.2.1")
    bench.sessions.start(b"b", StartIce(3, A, B, controlling=True), 0.0)
    bench.sessions.advance(12.0)
    assert bench.lost == [(b"b", 3)]


def test_a_stop_of_an_earlier_generation_does_not_end_the_next() -> None:
    bench = Bench("192.0.2.1")
    for generation in (1, 2):
        bench.sessions.start(b"b", StartIce(generation, A, B, controlling=True), 0.0)
    bench.sessions.stop(b"b", 1)
    bench.sessions.add_remote(b"b", 1, "nonsense", 0.0)
    assert bench.sessions.counters["bad_candidates"] == 0
    assert bench.sessions.deadline < math.inf
    bench.sessions.stop(b"b", 2)
    assert bench.sessions.deadline == math.inf


def test_a_stun_servers_answer_becomes_a_candidate_of_running_sessions() -> None:
    bench = Bench("10.0.0.1")
    server = Endpoint("203.0.113.1", 3478)
    bench.sessions.use_servers([server])
    bench.sessions.start(b"b", StartIce(1, A, B, controlling=True), 0.0)
    [(query, to)] = bench.take()
    assert to == server
    mapped = Endpoint("198.51.100.1", 4000)
    answer = encode(Message(Kind.SUCCESS, parse(query).transaction, mapped=mapped))
    bench.sessions.receive(answer, Endpoint("203.0.113.9", 3478), 0.1)  # from elsewhere
    assert len(bench.lines) == 1
    bench.sessions.receive(answer, server, 0.1)
    assert "198.51.100.1 4000 typ srflx raddr 10.0.0.1 rport 51820" in bench.lines[1]
    bench.sessions.start(b"c", StartIce(1, B, A, controlling=True), 1.0)
    assert "198.51.100.1 4000 typ srflx" in bench.lines[3], "the fresh answer serves the next session at once"
    assert bench.take() == []


def test_an_address_that_a_stun_server_sees_as_the_hosts_own_is_no_second_candidate() -> None:
    bench = Bench("198.51.100.1")
    server = Endpoint("203.0.113.1", 3478)
    bench.sessions.use_servers([server])
    bench.sessions.start(b"b", StartIce(1, A, B, controlling=True), 0.0)
    [(query, _)] = bench.take()
    bench.sessions.receive(encode(Message(Kind.SUCCESS, parse(query).transaction, mapped=bench.endpoint)), server, 0.1)
    assert len(bench.lines) == 1


def test_the_table_of_checks_is_bounded() -> None:
    bench = Bench("192.0.2.1")
    for number in range(600):
        credentials = IceCredentials(f"ufrag{number}", "password")
        key = number.to_bytes(4)
        bench.sessions.start(key, StartIce(1, credentials, B, controlling=True), 0.0)
        bench.sessions.add_remote(key, 1, "1 1 udp 1 192.0.2.2 51820 typ host", 0.0)
    for tenth in range(1, 20):
        bench.sessions.advance(tenth / 10)
    assert len(bench.sessions._transactions) <= MAX_TRANSACTIONS


@given(st.binary(max_size=200))
def test_no_datagram_makes_the_sessions_raise(datagram: bytes) -> None:
    bench = Bench("192.0.2.1")
    bench.sessions.start(b"b", StartIce(1, A, B, controlling=True), 0.0)
    bench.sessions.receive(datagram, Endpoint("192.0.2.9", 1), 0.0)
    bench.sessions.receive(b"\x00\x01" + datagram, Endpoint("192.0.2.9", 1), 0.0)


def test_a_peer_is_quiet_after_15_minutes_without_data() -> None:
    quiet = Quiet()
    total, now = 1_000_000, 0.0
    looks = []
    for _ in range(16):
        looks.append(quiet.look(b"a", total, now))
        total, now = total + 400, now + 60  # keepalives, and now and then a handshake
    assert looks == [False] * 15 + [True]
    assert not quiet.look(b"a", total + 10_000, now)
    assert not quiet.look(b"a", 0, now + 1000), "the counters began anew"
    quiet.forget(b"a")
    assert not quiet.look(b"a", 0, now + 5000)


@pytest.mark.parametrize(
    ("server", "address", "judgment"),
    [
        ("rels://relay.example", "", b""),
        ("rels://relay.example", "192.0.2.1", bytes((192, 0, 2, 1))),
        ("rels://relay.example", "169.254.169.254", b""),
        ("rels://relay.example", "127.0.0.1", b""),
        ("rels://relay.example", "::ffff:127.0.0.1", b""),
        ("rels://relay.example", "10.0.0.5", bytes((10, 0, 0, 5))),
        ("rel://10.0.0.5:8080", "", b""),
        ("rel://127.0.0.1:22", "", None),
        ("rel://[::1]:22", "", None),
        ("rel://127.1:22", "", None),
        ("rel://2130706433:22", "", None),
        ("rel://0xa9fea9fe", "", None),
        ("rel://[::ffff:127.0.0.1]:22", "", None),
        ("rel://169.254.169.254", "", None),
        ("rel://[fe80::1]", "", None),
        ("rel://0.0.0.0:80", "", None),
        ("rel://224.0.0.1", "", None),
        ("http://relay.example", "", None),
        ("", "", None),
        ("rel://127.0.0.5:1", "127.0.0.5", bytes((127, 0, 0, 5))),
    ],
)
def test_relays_that_peers_name_lead_to_no_service_of_this_host(
    server: str, address: str, judgment: bytes | None
) -> None:
    packed = ip_address(address).packed if address else b""
    assert judged_address(server, packed, ["rel://127.0.0.5:80", "nonsense", "rels://relay.example"]) == judgment
