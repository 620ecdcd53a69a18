"""A link's transcripts: offers, answers, relays, the choice of the path. Each test states the whole list of effects."""

from __future__ import annotations

import itertools
from dataclasses import replace

from netbird_overlay.signal.messages import Heartbeat
from tests.netbird_overlay.paths.links import (
    NO_ICE,
    OTHER_RELAY,
    PAIR,
    READY,
    RELAY,
    Player,
    direct,
    negotiation,
    relayed,
)

# The example sequences of NetBird's agents


def test_without_ice_offers_cross_and_the_relay_carries() -> None:
    player = Player(NO_ICE)
    assert player.start() == [f"offer no ice {RELAY}"]
    assert player.offer(b"g1g1g") == [f"open {RELAY}", f"answer no ice {RELAY}"]
    assert player.answer(b"") == []
    assert player.relay_ready() == [f"pin {RELAY}", "handshake"]
    assert player.handshaken() == []
    assert player.link.status() == "connected"
    assert player.pass_time(200) == []


def test_with_ice_offers_cross_and_a_direct_pair_replaces_the_relay() -> None:
    player = Player()
    assert player.start() == [f"offer 3 {RELAY}"]
    assert player.candidate() == []  # it overtook the answer, so it waits for the agent
    assert player.offer(b"g1g1g") == [
        f"open {RELAY}",
        "ice 1 controls remote",
        "ice 1 learns 10.99.0.2",
        f"answer 3 {RELAY}",
    ]
    assert player.own_candidate("ours") == ["candidate ours"]
    assert player.answer(b"g1g1g") == []
    assert player.relay_ready() == [f"pin {RELAY}", "handshake"]
    player.handshaken()
    assert player.pass_time(1.5) == [(1.0, "candidate ours")]
    assert player.ice_selected(PAIR) == ["pin direct"]
    assert player.link.path == PAIR
    assert player.link.relay_online  # it stays as the standby
    assert player.pass_time(200) == []


def test_the_end_that_is_not_the_controller_joins_the_relay_that_the_other_names() -> None:
    player = Player(controller=False)
    player.start()
    assert player.offer(b"g1g1g", relay=OTHER_RELAY, ip=b"\x0a\x63\x00\x02") == [
        f"open {OTHER_RELAY} at 0a630002",
        "ice 1 follows remote",
        f"answer 3 {RELAY}",
    ]


def test_the_controller_stays_at_its_own_relay() -> None:
    player = Player(controller=True)
    player.start()
    assert player.offer(b"", relay=OTHER_RELAY, ip=b"\x0a\x63\x00\x02") == [f"open {RELAY}", f"answer 3 {RELAY}"]


def test_the_controller_is_the_end_with_the_greater_text_and_not_the_greater_bytes() -> None:
    # "z" is after "6" as text, but 0xcd… is before 0xea… as bytes.
    assert Player(controller=True).link.controller
    assert not Player(controller=False).link.controller


# Offers, answers and sessions


def test_an_offer_is_answered_even_if_it_changes_nothing() -> None:
    player = direct(Player())
    assert player.offer(b"g1g1g") == [f"answer 3 {RELAY}"]
    assert player.offer(b"g1g1g") == [f"answer 3 {RELAY}"]


def test_an_answer_is_not_answered() -> None:
    assert direct(Player()).answer(b"g1g1g") == []


def test_a_message_without_session_leaves_a_running_agent_alone() -> None:
    player = direct(Player())
    assert player.offered(replace(negotiation(b"g1g1g"), session_id=b"")) == [f"answer 3 {RELAY}"]


def test_a_lost_offer_is_repeated_after_3_s_then_twice_as_late_up_to_the_links_own_bound() -> None:
    player = Player(NO_ICE)
    player.start()
    offer = f"offer no ice {RELAY}"
    assert player.pass_time(100) == [(3.0, offer), (9.0, offer), (21.0, offer), (45.0, offer), (82.5, offer)]


def test_a_flood_of_sessions_creates_a_few_agents_and_the_next_one_later() -> None:
    player = Player()
    player.start()
    effects = []
    for number in range(100):
        effects += player.offer(bytes([number]) * 5)
        effects += player.offer(b"")  # ends the agent
    assert len([effect for effect in effects if effect.startswith("ice ")]) == 6
    assert len([effect for effect in effects if effect.startswith("answer ")]) == 200
    player.pass_time(5)
    assert "ice 7 controls remote" in player.offer(b"other")


def test_silence_of_a_peer_that_believes_us_without_ice_is_not_mirrored() -> None:
    player = direct(Player())
    # The peer's agent goes, so ours goes too; but every message of ours still has credentials.
    assert player.offer(b"") == ["stop ice 1", f"pin {RELAY}", f"answer 4 {RELAY}"]
    assert player.answer(b"") == []
    assert player.offer(b"") == [f"answer 4 {RELAY}"]
    assert player.offer(b"g2g2g") == ["ice 2 controls remote", f"answer 4 {RELAY}"]


def test_two_ends_that_believe_each_other_without_ice_are_content_with_the_relay() -> None:
    player = relayed(Player())
    assert player.link.status() == "connected"
    assert player.pass_time(200) == []


# Choice and fall-back


def test_a_relay_that_is_ready_late_is_only_the_standby() -> None:
    player = Player()
    player.start()
    player.offer(b"g1g1g")
    assert player.ice_selected(PAIR) == ["pin direct", "handshake"]
    assert player.relay_ready() == []
    assert player.link.path == PAIR


def test_a_lost_direct_pair_falls_back_to_the_relay_at_once_and_offers_a_new_session() -> None:
    player = direct(Player())
    assert player.ice_lost() == ["stop ice 1", f"pin {RELAY}"]
    assert player.pass_time(1) == [(0.8, f"offer 4 {RELAY}")]


def test_a_lost_direct_pair_without_relay_is_forgotten() -> None:
    player = direct(Player(replace(READY, relays=False, relay_address="")))
    assert player.link.path == PAIR
    assert player.ice_lost() == ["stop ice 1", "unpin"]
    assert player.pass_time(1) == [(0.8, "offer 4")]


def test_the_controller_resets_the_session_when_the_peer_began_another() -> None:
    player = direct(Player(controller=True))
    assert player.offer(b"g2g2g") == [
        "stop ice 1",
        f"pin {RELAY}",
        "reset session",
        "handshake",
        "ice 2 controls remote",
        f"answer 4 {RELAY}",
    ]


def test_the_other_end_keeps_the_session_but_renews_it_when_the_peer_began_another() -> None:
    player = direct(Player(controller=False))
    player.pass_time(10)
    assert player.offer(b"g2g2g") == [
        "stop ice 1",
        f"pin {RELAY}",
        "handshake",
        "ice 2 follows remote",
        f"answer 4 {RELAY}",
    ]


def test_an_answer_with_a_new_session_rebuilds_the_agent_under_the_session_that_it_answers() -> None:
    # The peer made its agent for our last offer. A new session of ours would make it start over once more.
    player = Player()
    player.start()
    player.offer(b"g1g1g")
    assert player.answer(b"g2g2g") == ["stop ice 1", "ice 2 controls remote"]
    assert player.offer(b"g2g2g") == [f"answer 3 {RELAY}"]


def test_a_lost_relay_in_use_is_forgotten_and_offered_anew() -> None:
    player = relayed(Player())
    assert player.relay_lost() == [f"close {RELAY}", "unpin"]
    assert player.pass_time(1) == [(0.8, f"offer 3 {RELAY}")]
    assert player.answer(b"") == [f"open {RELAY}"]
    assert player.relay_ready() == [f"pin {RELAY}", "handshake"]


def test_a_lost_standby_relay_changes_no_path_and_is_offered_anew() -> None:
    player = direct(Player())
    assert player.relay_lost() == [f"close {RELAY}"]
    assert player.link.path == PAIR
    assert player.link.status() == "disconnected"  # complete is only a link with its standby
    assert player.pass_time(1) == [(0.8, f"offer 3 {RELAY}")]
    assert player.answer(b"g1g1g") == [f"open {RELAY}"]
    assert player.relay_ready() == []


def test_the_relay_in_use_stays_until_the_peer_is_online_at_the_new_one() -> None:
    player = relayed(Player(controller=False))
    assert player.offer(b"", relay=OTHER_RELAY) == [f"open {OTHER_RELAY}", f"answer 3 {RELAY}"]
    assert player.relay_ready(OTHER_RELAY) == [f"close {RELAY}", f"pin {OTHER_RELAY}", "handshake"]


def test_a_subscription_that_no_peer_joins_ends_after_30_s_and_a_later_message_opens_it_again() -> None:
    player = Player(NO_ICE)
    player.start()
    player.offer(b"")
    closed = [(at, effect) for at, effect in player.pass_time(31) if not effect.startswith("offer")]
    assert closed == [(30.0, f"close {RELAY}")]
    assert player.answer(b"") == [f"open {RELAY}"]


def test_a_peer_that_names_no_relay_gets_none() -> None:
    player = Player(NO_ICE)
    player.start()
    assert player.offer(b"", relay="") == [f"answer no ice {RELAY}"]
    assert player.link.status() == "disconnected"


def test_an_offer_while_our_relay_is_away_is_used_when_it_is_back() -> None:
    player = Player(replace(NO_ICE, relay_address="", relay_ip=b""))
    assert player.start() == ["offer no ice"]
    assert player.offer(b"") == ["answer no ice"]
    assert player.change(relay_address=RELAY) == [f"open {RELAY}"]
    assert player.start() == [f"offer no ice {RELAY}"]


def test_relays_that_are_switched_off_end_their_paths() -> None:
    player = relayed(Player())
    assert player.change(relays=False, relay_address="") == [f"close {RELAY}", "unpin"]


def test_ice_that_is_switched_off_ends_the_agent() -> None:
    player = direct(Player())
    assert player.change(ice=False) == ["stop ice 1", f"pin {RELAY}"]
    assert player.offer(b"g1g1g") == [f"answer no ice {RELAY}"]


# The guard


def test_a_link_with_the_relay_only_offers_three_times_and_then_hourly() -> None:
    player = Player()
    player.start()
    player.offer(b"g1g1g")
    player.relay_ready()
    player.handshaken()
    player.ice_lost()
    assert player.link.status() == "partial"
    offers = []
    for _ in range(90):  # two hours and a quarter
        offers += [at for at, effect in player.pass_time(90) if effect.startswith("offer")]
        player.handshaken()
    assert len(offers) == 3 + 2


def test_a_link_that_lost_its_direct_path_offers_more_often_than_hourly() -> None:
    player = direct(Player())
    player.ice_lost()
    times = []
    for _ in range(40):
        times += [player.now + at for at, effect in player.pass_time(90) if effect.startswith("offer")]
        player.handshaken()
    gaps = [round(later - earlier) for earlier, later in itertools.pairwise(times)]
    assert gaps[:2] == [2, 3]  # the three that follow the loss
    assert gaps[2:] == sorted(gaps[2:])
    assert 30 <= gaps[2] <= 75  # the first tick after 30 s
    assert len(times) > 8


def test_an_event_restarts_the_guard_of_a_link_with_the_relay_only() -> None:
    player = Player()
    player.start()
    player.offer(b"g1g1g")
    player.relay_ready()
    player.handshaken()
    player.ice_lost()
    player.pass_time(200)
    player.handshaken()
    player.link.network_changed(player.now)
    offer = f"offer 4 {RELAY}"
    assert player.pass_time(10) == [(0.8, offer), (2.4, offer), (5.6, offer)]


def test_signal_and_relay_that_are_back_make_incomplete_links_offer() -> None:
    player = Player(NO_ICE)
    player.start()
    player.change(relay_address="", signal=False)
    assert player.pass_time(100) == []  # nothing can be sent
    assert player.change(signal=True) == []
    assert player.change(relay_address=RELAY) == []
    assert player.pass_time(1) == [(0.8, f"offer no ice {RELAY}")]


def test_signal_that_is_back_leaves_complete_links_alone() -> None:
    player = direct(Player())
    player.change(signal=False)
    player.change(signal=True)
    assert player.pass_time(60) == []


def test_a_first_offer_waits_for_no_tick_once_the_relay_is_there() -> None:
    player = Player(replace(NO_ICE, signal=False, relay_address=""))
    assert player.start() == []
    assert player.pass_time(50) == []
    player.change(signal=True)
    assert player.start() == ["offer no ice"]
    player.change(relay_address=RELAY)
    assert player.start() == [f"offer no ice {RELAY}"]


def test_plain_wireguard_peers_are_offered_three_times_and_then_hourly() -> None:
    player = Player(agent=False)
    offers = [(0.0, effect) for effect in player.start()] + player.pass_time(7000)
    assert [round(at) for at, _ in offers] == [0, 3, 9, offers[3][0]]
    assert 3600 <= offers[3][0] <= 3700


# Handshakes


def test_a_path_without_handshake_is_given_up_after_30_s() -> None:
    player = Player(NO_ICE)
    player.start()
    player.offer(b"")
    player.relay_ready()
    assert player.pass_time(31) == [
        (30.0, f"close {RELAY}"),
        (30.0, "unpin"),
        (30.8, f"offer no ice {RELAY}"),
    ]


def test_a_path_whose_session_is_not_renewed_is_given_up_after_210_s() -> None:
    player = relayed(Player(NO_ICE))
    player.pass_time(100)
    player.handshaken()
    assert player.pass_time(211) == [
        (210.0, f"close {RELAY}"),
        (210.0, "unpin"),
        (210.8, f"offer no ice {RELAY}"),
    ]


def test_a_session_that_no_keepalive_renews_may_grow_old() -> None:
    player = relayed(Player(NO_ICE))
    player.link.handshaken(player.now, renewed=False)
    assert player.pass_time(10_000) == []


def test_a_direct_path_without_handshake_falls_back_to_the_relay() -> None:
    player = direct(Player())
    assert player.pass_time(211) == [
        (210.0, "stop ice 1"),
        (210.0, f"pin {RELAY}"),
        (210.0, "handshake"),
        (210.8, f"offer 4 {RELAY}"),
    ]


def test_a_change_between_paths_gives_the_session_no_new_time() -> None:
    player = Player()
    player.start()
    player.offer(b"g1g1g")
    player.relay_ready()
    player.pass_time(20)
    player.ice_selected(PAIR)
    assert (10.0, "stop ice 1") in player.pass_time(11)


def test_an_offer_on_an_open_relay_path_starts_a_handshake_unless_the_last_is_fresh() -> None:
    player = relayed(Player(NO_ICE))
    player.pass_time(4)
    assert player.offer(b"") == [f"answer no ice {RELAY}"]
    player.pass_time(2)
    assert player.offer(b"") == ["handshake", f"answer no ice {RELAY}"]


def test_a_flood_of_offers_starts_a_handshake_a_second_at_most() -> None:
    player = relayed(Player(NO_ICE))
    player.pass_time(60)
    effects = [effect for _ in range(100) for effect in player.offer(b"")]
    assert effects.count("handshake") == 1


def test_both_ends_start_a_handshake_when_the_relay_is_ready() -> None:
    for controller in (True, False):
        player = Player(NO_ICE, controller=controller)
        player.start()
        player.offer(b"")
        assert player.relay_ready() == [f"pin {RELAY}", "handshake"]


# The rest


def test_a_removed_peers_paths_close_without_a_word_to_it() -> None:
    player = direct(Player())
    player.link.close(player.now)
    assert player.effects() == [f"close {RELAY}", "stop ice 1", "unpin"]


def test_a_heartbeat_and_late_reports_of_ended_parts_change_nothing() -> None:
    player = direct(Player())
    player.link.receive(Heartbeat(), player.now)
    player.link.ice_selected(99, PAIR, player.now)
    player.link.ice_lost(99, player.now)
    player.link.relay_ready(OTHER_RELAY, player.now)
    player.link.relay_lost(OTHER_RELAY, player.now)
    assert player.effects() == []
