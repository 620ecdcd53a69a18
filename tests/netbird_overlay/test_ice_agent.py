"""One agent against scripted remotes, right ones and wrong ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.ice.agent import Failed, IceAgent, Lost, Selected
from netbird_overlay.ice.candidates import Candidate, CandidateType, priority
from netbird_overlay.members import IceCredentials
from netbird_overlay.stun import Kind, Message, encode, parse

OURS, THEIRS = IceCredentials("o" * 16, "p" * 32), IceCredentials("t" * 16, "q" * 32)
HERE, THERE, ELSEWHERE = Endpoint("10.0.0.1", 51820), Endpoint("198.51.100.1", 4000), Endpoint("198.51.100.2", 4000)
BEGIN = 100.0


@dataclass
class Scene:
    """An agent, and a remote that speaks by the methods' calls only."""

    controlling: bool = True
    begin: float = BEGIN
    agent: IceAgent = field(init=False)

    def __post_init__(self) -> None:
        self.random = Random(7)
        self.agent = IceAgent(
            local=OURS,
            remote=THEIRS,
            controlling=self.controlling,
            tie_breaker=5,
            random=self.random.randbytes,
            now=self.begin,
            excluded=[ip_network("100.64.0.0/10")],
        )
        self.agent.add_local(Candidate("host", HERE, priority("host"), cid="here"))

    def remote(self, endpoint: Endpoint, kind: CandidateType = "host", **fields: str) -> None:
        self.agent.add_remote(Candidate(kind, endpoint, priority(kind), **fields), self.begin)

    def sent(self) -> list[tuple[Message, Endpoint]]:
        return [(parse(datagram), endpoint) for datagram, endpoint in self.agent.transmits()]

    def request(self, **fields: object) -> Message:
        role = "controlled" if self.controlling else "controlling"
        basis = Message(Kind.REQUEST, self.random.randbytes(12), username=f"{OURS.ufrag}:{THEIRS.ufrag}", priority=1)
        return replace(basis, **{role: 3, **fields})  # type: ignore[arg-type]

    def ask(self, now: float, source: Endpoint = THERE, *, password: str = OURS.pwd, **fields: object) -> bool:
        return self.agent.receive(encode(self.request(**fields), password), source, now)

    def answer(self, check: Message, source: Endpoint, now: float, *, password: str = THEIRS.pwd) -> bool:
        return self.agent.receive(encode(Message(Kind.SUCCESS, check.transaction, mapped=HERE), password), source, now)

    def answer_all(self, now: float, *sources: Endpoint) -> list[tuple[Message, Endpoint]]:
        """Advance, answer the checks that went to these addresses, and return all messages."""
        self.agent.advance(now)
        messages = self.sent()
        for message, endpoint in messages:
            if message.kind is Kind.REQUEST and endpoint in sources:
                self.answer(message, endpoint, now)
        return messages

    def connect(self, now: float = BEGIN) -> None:
        """Select the pair with THERE."""
        self.remote(THERE)
        if not self.controlling:
            self.ask(now, use_candidate=True)
        self.answer_all(now, THERE)
        self.answer_all(now, THERE)
        assert self.agent.events() == [Selected(THERE, "host", "host")]


# Checks ----------------------------------------------------------------------------------------------------------


def test_check_says_what_netbirds_agents_expect() -> None:
    scene = Scene()
    scene.remote(THERE, cid="there")
    scene.agent.advance(BEGIN)
    ((datagram, endpoint),) = scene.agent.transmits()
    message = parse(datagram)
    assert endpoint == THERE
    assert message == Message(
        Kind.REQUEST,
        message.transaction,
        username=f"{THEIRS.ufrag}:{OURS.ufrag}",
        priority=1862270975,
        controlling=5,
        candidate_ids=("here", "there"),
    )
    assert message.is_from(THEIRS.pwd)


def test_answer_swaps_the_candidate_ids() -> None:
    scene = Scene()
    request = scene.request(candidate_ids=("x" * 32, "y" * 32))
    assert scene.agent.receive(encode(request, OURS.pwd), THERE, BEGIN)
    answer, endpoint = scene.sent()[0]
    assert endpoint == THERE
    assert answer == Message(Kind.SUCCESS, request.transaction, mapped=THERE, candidate_ids=("y" * 32, "x" * 32))
    assert answer.is_from(OURS.pwd)


def test_discovered_remote_is_addressed_by_the_id_that_it_gave() -> None:
    scene = Scene()
    scene.ask(BEGIN, candidate_ids=("x" * 32, "y" * 32))
    assert scene.sent()[1][0].candidate_ids == ("here", "x" * 32)


def test_controlling_side_ignores_nominations() -> None:
    scene = Scene()
    scene.ask(BEGIN, use_candidate=True)
    scene.answer_all(BEGIN, THERE)
    assert scene.agent.events() == []


def test_controlled_side_selects_after_a_check_of_its_own() -> None:
    scene = Scene(controlling=False)
    scene.remote(THERE)
    scene.ask(BEGIN, use_candidate=True)
    assert scene.agent.events() == []
    scene.answer_all(BEGIN, THERE)
    assert scene.agent.events() == [Selected(THERE, "host", "host")]


def test_controlled_side_selects_when_the_nomination_comes_later() -> None:
    scene = Scene(controlling=False)
    scene.remote(THERE)
    scene.answer_all(BEGIN, THERE)
    assert scene.agent.events() == []
    scene.ask(BEGIN + 1)
    assert scene.agent.events() == []
    scene.ask(BEGIN + 1, use_candidate=True)
    assert scene.agent.events() == [Selected(THERE, "host", "host")]


def test_nomination_of_a_better_pair_is_followed() -> None:
    scene = Scene(controlling=False)
    scene.connect()
    scene.remote(ELSEWHERE, "srflx")
    scene.ask(BEGIN + 1, ELSEWHERE, use_candidate=True)
    scene.answer_all(BEGIN + 1, ELSEWHERE)
    assert scene.agent.events() == []  # it is no better, and the selected pair is alive
    best = Endpoint("198.51.100.3", 4000)
    scene.agent.add_remote(Candidate("host", best, priority("host") + 1), BEGIN + 2)
    scene.ask(BEGIN + 2, best, use_candidate=True)
    scene.answer_all(BEGIN + 2, best)
    assert scene.agent.events() == [Selected(best, "host", "host")]


def test_nomination_of_any_pair_is_followed_when_the_selected_one_is_silent() -> None:
    scene = Scene(controlling=False)
    scene.connect()
    scene.remote(ELSEWHERE, "srflx")
    scene.ask(BEGIN + 3.5, ELSEWHERE, use_candidate=True)
    scene.answer_all(BEGIN + 3.5, ELSEWHERE)
    assert scene.agent.events() == [Selected(ELSEWHERE, "srflx", "host")]


def test_nominated_pair_that_dies_gives_way_to_the_next() -> None:
    scene = Scene()
    scene.remote(THERE)
    scene.remote(ELSEWHERE, "srflx")
    scene.answer_all(BEGIN, THERE, ELSEWHERE)
    now = BEGIN
    nominations = []
    while not (events := scene.agent.events()):
        for message, endpoint in scene.answer_all(now, ELSEWHERE):
            if message.use_candidate:
                nominations.append(endpoint)
        now = scene.agent.deadline
    assert nominations == [THERE] * 8 + [ELSEWHERE]
    assert events == [Selected(ELSEWHERE, "srflx", "host")]


def test_answer_names_the_kind_of_local_candidate() -> None:
    for mapped, kind in ((HERE, "host"), (Endpoint("203.0.113.1", 9), "srflx"), (Endpoint("203.0.113.2", 9), "prflx")):
        scene = Scene()
        scene.agent.add_local(Candidate("srflx", Endpoint("203.0.113.1", 9), priority("srflx")))
        scene.remote(THERE)
        for _ in range(2):
            scene.agent.advance(BEGIN)
            ((check, _),) = scene.sent()
            answer = Message(Kind.SUCCESS, check.transaction, mapped=mapped)
            scene.agent.receive(encode(answer, THEIRS.pwd), THERE, BEGIN)
        assert scene.agent.events() == [Selected(THERE, "host", kind)]


def test_discovered_candidate_takes_the_named_ones_type() -> None:
    scene = Scene()
    scene.ask(BEGIN)
    scene.remote(THERE)
    scene.answer_all(BEGIN, THERE)
    scene.answer_all(BEGIN, THERE)
    assert scene.agent.events() == [Selected(THERE, "host", "host")]


def test_refused_check_ends_its_pair() -> None:
    scene = Scene()
    scene.remote(THERE)
    scene.agent.advance(BEGIN)
    ((check, _),) = scene.sent()
    scene.agent.receive(encode(Message(Kind.ERROR, check.transaction, error=400), THEIRS.pwd), THERE, BEGIN)
    scene.agent.advance(BEGIN + 1)
    assert scene.sent() == []
    assert scene.agent.counters == {"checks_refused": 1}


def test_families_are_checked_where_this_side_has_one() -> None:
    scene = Scene()
    six = Endpoint("2001:db8::1", 4000)
    scene.remote(six)
    scene.agent.advance(BEGIN)
    assert scene.sent() == []
    scene.agent.add_local(Candidate("host", Endpoint("2001:db8::2", 51820), priority("host")))
    scene.agent.advance(BEGIN)
    assert [endpoint for _, endpoint in scene.sent()] == [six]


@given(st.floats(1, 1e7))
def test_each_deadline_passes_when_it_is_reached(begin: float) -> None:
    """A caller whose clock shows exactly the deadline does not turn in circles."""
    silent, lost, waiting = Scene(begin=begin), Scene(begin=begin), Scene(begin=begin)
    silent.agent.advance(silent.agent.deadline)
    assert silent.agent.events() == [Failed()]
    lost.connect(begin)
    while not (events := lost.agent.events()):
        before = lost.agent.deadline
        lost.agent.advance(before)
        assert lost.agent.deadline > before
    assert events == [Lost()]
    waiting.agent.add_remote(Candidate("relay", THERE, priority("relay")), begin)
    waiting.answer_all(begin, THERE)
    waiting.agent.advance(waiting.agent.deadline)
    assert [message.use_candidate for message, _ in waiting.sent()] == [True]


# Strangers -------------------------------------------------------------------------------------------------------


def test_requests_without_our_credentials_change_nothing() -> None:
    scene = Scene()
    assert not scene.ask(BEGIN, username=f"other:{THEIRS.ufrag}")
    assert scene.ask(BEGIN, username=f"{OURS.ufrag}:other")
    assert scene.ask(BEGIN, username=OURS.ufrag)
    assert scene.ask(BEGIN, password="guess")
    assert scene.ask(BEGIN, password=THEIRS.pwd)
    assert scene.agent.receive(encode(scene.request()), THERE, BEGIN)
    assert (scene.sent(), scene.agent.events()) == ([], [])
    assert scene.agent.counters == {"unknown_credentials": 6}


def test_datagrams_of_others_are_left_to_others() -> None:
    scene = Scene()
    assert not scene.agent.receive(b"nb", THERE, BEGIN)
    assert not scene.agent.receive(encode(Message(Kind.SUCCESS, bytes(12), mapped=HERE), THEIRS.pwd), THERE, BEGIN)
    assert not scene.agent.receive(encode(Message(Kind.INDICATION, bytes(12))), THERE, BEGIN)
    assert scene.sent() == []


def test_answers_count_from_where_the_check_went_and_with_the_remotes_password() -> None:
    scene = Scene()
    scene.remote(THERE)
    scene.agent.advance(BEGIN)
    ((check, _),) = scene.sent()
    assert scene.answer(check, ELSEWHERE, BEGIN)
    assert scene.answer(check, THERE, BEGIN, password=OURS.pwd)
    assert scene.agent.receive(encode(Message(Kind.ERROR, check.transaction, error=487)), THERE, BEGIN)
    assert (scene.sent(), scene.agent.controlling) == ([], True)
    assert scene.agent.counters == {"answers_from_elsewhere": 1, "unknown_credentials": 2}
    assert scene.answer(check, THERE, BEGIN + 0.1)
    assert scene.sent()[0][0].use_candidate


def test_late_answer_does_not_count() -> None:
    scene = Scene()
    scene.remote(THERE)
    scene.agent.advance(BEGIN)
    ((check, _),) = scene.sent()
    assert scene.answer(check, THERE, BEGIN + 4)
    assert scene.sent() == []
    assert scene.agent.counters == {"late": 1}


def test_recorded_request_from_elsewhere_makes_no_pair() -> None:
    scene = Scene()
    datagram = encode(scene.request(), OURS.pwd)
    scene.agent.receive(datagram, THERE, BEGIN)
    scene.sent()
    scene.agent.receive(datagram, ELSEWHERE, BEGIN + 0.1)
    assert [(message.kind, endpoint) for message, endpoint in scene.sent()] == [(Kind.SUCCESS, ELSEWHERE)]
    assert scene.agent.counters == {"repeated": 1}


def test_recorded_request_keeps_no_dead_path_alive() -> None:
    scene = Scene()
    scene.connect()
    datagram = encode(scene.request(), OURS.pwd)
    scene.agent.receive(datagram, THERE, BEGIN)
    for tick in range(1, 8):
        scene.agent.receive(datagram, THERE, BEGIN + tick)
        scene.agent.advance(BEGIN + tick)
    assert scene.agent.events() == [Lost()]


def test_answers_to_one_source_are_bounded_by_the_second() -> None:
    scene = Scene()
    datagram = encode(scene.request(), OURS.pwd)
    for _ in range(1000):
        scene.agent.receive(datagram, THERE, BEGIN)
    assert sum(message.kind is Kind.SUCCESS for message, _ in scene.sent()) == 100
    assert scene.ask(BEGIN, ELSEWHERE)
    assert ELSEWHERE in [endpoint for _, endpoint in scene.sent()]
    scene.ask(BEGIN + 1)
    assert THERE in [endpoint for _, endpoint in scene.sent()]
    assert scene.agent.counters["answers_refused"] == 900


def test_answers_to_all_sources_are_bounded_by_the_second() -> None:
    scene = Scene()
    datagram = encode(scene.request(), OURS.pwd)
    answers = 0
    for number in range(1000):
        scene.agent.receive(datagram, Endpoint("203.0.113.1", number + 1), BEGIN)
        answers += sum(message.kind is Kind.SUCCESS for message, _ in scene.sent())
    assert answers == 400


def test_request_without_one_role_is_malformed() -> None:
    scene = Scene()
    assert scene.ask(BEGIN, controlled=None)
    assert scene.ask(BEGIN, controlling=1)
    assert scene.sent() == []
    assert scene.agent.counters == {"malformed": 2}


def test_overlay_and_loopback_are_no_path() -> None:
    scene = Scene()
    for host in ("100.64.0.1", "127.0.0.1", "224.0.0.1"):
        scene.remote(Endpoint(host, 4000))
        scene.ask(BEGIN, Endpoint(host, 4000))
    scene.agent.advance(BEGIN)
    assert scene.sent() == []
    assert scene.agent.counters == {"candidates_unusable": 3, "sources_unusable": 3}


# Wrong peers -----------------------------------------------------------------------------------------------------


def test_candidates_of_another_session_are_dropped() -> None:
    scene = Scene()
    scene.remote(THERE, ufrag="stale")
    scene.remote(ELSEWHERE, ufrag=THEIRS.ufrag)
    scene.agent.advance(BEGIN)
    assert [endpoint for _, endpoint in scene.sent()] == [ELSEWHERE]
    assert scene.agent.counters == {"candidates_of_other_sessions": 1}


def test_remote_makes_no_more_than_32_pairs_by_naming() -> None:
    scene = Scene()
    for number in range(1000):
        scene.remote(Endpoint("198.51.100.1", number + 1))
    scene.agent.advance(BEGIN)
    assert len(scene.sent()) == 32
    assert scene.agent.counters == {"candidates_refused": 968}


def test_repeated_candidates_are_one() -> None:
    scene = Scene()
    for _ in range(100):
        scene.remote(THERE)
    scene.agent.advance(BEGIN)
    assert (len(scene.sent()), scene.agent.counters) == (1, {})


def test_remote_makes_no_more_than_16_pairs_by_sending() -> None:
    scene = Scene()
    for number in range(30):
        scene.ask(BEGIN, Endpoint("203.0.113.1", number + 1))
    checked = {endpoint for message, endpoint in scene.sent() if message.kind is Kind.REQUEST}
    assert len(checked) == 16
    assert scene.agent.counters == {"discoveries_refused": 14}
    for tick in range(1, 12):
        scene.agent.advance(BEGIN + tick * 0.2)
    scene.sent()
    scene.ask(BEGIN + 3)  # those have failed, and make room
    assert [endpoint for message, endpoint in scene.sent() if message.kind is Kind.REQUEST] == [THERE]


def test_flood_of_requests_makes_no_flood_of_checks() -> None:
    scene = Scene()
    for _ in range(90):
        scene.ask(BEGIN)
    assert sum(message.kind is Kind.REQUEST for message, _ in scene.sent()) == 1


def test_transmits_that_nobody_takes_are_bounded() -> None:
    scene = Scene()
    for tick in range(10):
        for number in range(100):
            scene.ask(BEGIN + tick, Endpoint("203.0.113.1", number + 1))
    assert len(scene.sent()) == 256
    assert scene.agent.counters["transmits_dropped"] > 0


def test_keepalives_go_on_after_an_error_on_the_selected_pair() -> None:
    scene = Scene()
    scene.connect()
    scene.agent.advance(BEGIN + 2)
    ((check, _),) = scene.sent()
    scene.agent.receive(encode(Message(Kind.ERROR, check.transaction, error=500), THEIRS.pwd), THERE, BEGIN + 2)
    scene.agent.advance(BEGIN + 4)
    assert [endpoint for _, endpoint in scene.sent()] == [THERE]


@given(st.data(), st.booleans())
def test_nothing_that_a_remote_sends_raises(data: st.DataObject, controlling: bool) -> None:
    scene = Scene(controlling=controlling)
    now = BEGIN
    checks: list[tuple[Message, Endpoint]] = []
    endpoints = [THERE, ELSEWHERE, Endpoint("2001:db8::1", 7), Endpoint("100.64.0.1", 7)]
    for _ in range(data.draw(st.integers(1, 30))):
        source = data.draw(st.sampled_from(endpoints))
        match data.draw(st.sampled_from(["remote", "ask", "conflict", "answer", "error", "bytes", "pass"])):
            case "remote":
                scene.agent.add_remote(Candidate("srflx", source, priority("srflx")), now)
            case "ask":
                scene.ask(now, source, use_candidate=data.draw(st.booleans()))
            case "conflict":
                scene.ask(now, source, controlling=data.draw(st.integers(0, 9)), controlled=None)
            case "answer" if checks:
                check, endpoint = data.draw(st.sampled_from(checks))
                scene.answer(check, endpoint, now)
            case "error" if checks:
                check, endpoint = data.draw(st.sampled_from(checks))
                error = data.draw(st.sampled_from([400, 487, 500]))
                scene.agent.receive(
                    encode(Message(Kind.ERROR, check.transaction, error=error), THEIRS.pwd), endpoint, now
                )
            case "bytes":
                scene.agent.receive(data.draw(st.binary(max_size=60)), source, now)
            case "pass":
                now = max(now, min(scene.agent.deadline, now + data.draw(st.floats(0, 5))))
        scene.agent.advance(now)
        assert scene.agent.deadline > now
        checks += [(message, endpoint) for message, endpoint in scene.sent() if message.kind is Kind.REQUEST]
