"""A link's transcripts: candidates of both sides, and peers that sleep."""

from __future__ import annotations

from netbird_overlay.signal.messages import GoIdle
from tests.netbird_overlay.paths.links import HOST_LINE, RELAY, Player, direct, relayed

# Candidates


def test_own_candidates_wait_until_the_peers_agent_must_exist_and_are_repeated_only_then() -> None:
    player = Player()
    player.start()
    assert player.answer(b"g1g1g") == [f"open {RELAY}", "ice 1 controls remote"]
    assert player.own_candidate("host") == ["candidate host"]
    assert player.pass_time(0.5) == []
    assert player.own_candidate("reflexive") == ["candidate reflexive"]
    assert player.pass_time(2) == [(0.5, "candidate host"), (0.5, "candidate reflexive")]


def test_candidates_of_an_earlier_agent_are_not_sent_for_the_next() -> None:
    player = Player()
    player.start()
    player.offer(b"g1g1g")
    player.link.local_candidate(1, "old", player.now)
    player.ice_lost()
    player.effects()
    player.link.local_candidate(1, "older", player.now)
    player.offer(b"g1g1g")
    assert player.pass_time(2) == []
    assert player.own_candidate("new") == ["candidate new"]


def test_early_candidates_are_kept_for_10_s_and_within_a_bound() -> None:
    player = Player()
    player.start()
    player.candidate(HOST_LINE.replace("10.99.0.2", "10.99.0.3"))
    player.pass_time(2)
    for number in range(100):
        player.candidate(HOST_LINE.replace("10.99.0.2", f"10.99.1.{number}"))
    assert player.link.dropped == 101 - 32
    assert [effect for effect in player.offer(b"g1g1g") if "learns" in effect] == [
        f"ice 1 learns 10.99.1.{number}" for number in range(68, 100)
    ]
    other = Player()
    other.start()
    other.candidate()
    other.pass_time(11)
    assert other.offer(b"g1g1g") == [f"open {RELAY}", "ice 1 controls remote", f"answer 3 {RELAY}"]


def test_candidates_of_a_restarted_peer_wait_for_its_offer() -> None:
    player = direct(Player())
    assert player.candidate("1 1 udp 1 10.99.0.9 51820 typ host ufrag another") == []


def test_candidates_that_came_before_the_agent_was_replaced_are_given_to_its_successor() -> None:
    player = Player()
    player.start()
    player.offer(b"g1g1g")
    player.candidate()
    assert "ice 2 learns 10.99.0.2" in player.answer(b"g2g2g")


# Idle peers


def test_go_idle_is_ignored_from_a_peer_that_is_not_lazy() -> None:
    player = direct(Player())
    player.link.receive(GoIdle(), player.now)
    assert player.effects() == []


def test_a_lazy_peer_that_goes_idle_is_left_in_peace_until_a_dial_wakes_it() -> None:
    player = direct(Player(lazy=True))
    player.link.receive(GoIdle(), player.now)
    assert player.effects() == [f"close {RELAY}", "stop ice 1", "unpin"]
    assert player.pass_time(10_000) == []
    assert player.change(relay_address="") == []
    assert player.change(relay_address=RELAY) == []
    assert player.answer(b"g1g1g") == []  # a late answer to an old offer
    assert player.pass_time(100) == []
    player.link.wake(player.now)
    assert player.effects() == [f"offer 4 {RELAY}"]


def test_a_link_that_begins_asleep_waits_for_a_dial_or_an_offer() -> None:
    player = Player(lazy=True, idle=True)
    assert player.start() == []
    assert player.pass_time(10_000) == []
    player.link.wake(player.now)
    assert player.effects() == [f"offer 3 {RELAY}"]
    other = Player(lazy=True, idle=True)
    assert other.offer(b"g1g1g") == [f"open {RELAY}", "ice 1 controls remote", f"answer 3 {RELAY}"]


def test_an_offer_of_an_idle_peer_reopens_the_link() -> None:
    player = direct(Player(lazy=True))
    player.link.receive(GoIdle(), player.now)
    player.effects()
    assert player.offer(b"g2g2g") == [f"open {RELAY}", "ice 2 controls remote", f"answer 4 {RELAY}"]


def test_a_dial_to_a_lazy_peer_whose_session_is_old_sends_an_offer() -> None:
    player = relayed(Player(lazy=True))
    player.link.wake(player.now)
    assert player.effects() == []
    player.pass_time(160)
    player.link.wake(player.now)
    player.link.wake(player.now)
    assert player.effects() == [f"offer 3 {RELAY}"]


def test_a_dial_without_path_sends_an_offer_a_second_at_most() -> None:
    player = Player()
    player.start()
    player.pass_time(2)
    for _ in range(10):
        player.link.wake(player.now)
    assert player.effects() == [f"offer 3 {RELAY}"]


def test_a_link_that_goes_to_sleep_tells_the_peer() -> None:
    player = direct(Player(lazy=True))
    player.link.sleep(player.now)
    assert player.effects() == ["GoIdle", f"close {RELAY}", "stop ice 1", "unpin"]
    player.link.sleep(player.now)
    assert player.effects() == []
    awake = direct(Player())
    awake.link.sleep(awake.now)
    assert awake.effects() == []
