"""Stored endpoints survive a killed process, are bounded, and are never required."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from netbird_overlay.keys import MOST_BYTES, MOST_ENDPOINTS, STATE_FILE, Endpoint, StateUnusable, TunnelState
from netbird_overlay.peer_endpoints import (
    GONE_KEPT,
    GONE_MOST,
    JOURNAL_FILE,
    JOURNAL_MOST_BYTES,
    PeerEndpoints,
)
from netbird_wire.envelope import format_key

ALICE, BOB = b"\x05" * 32, b"\x06" * 32
HOME, AWAY = Endpoint("192.0.2.7", 4711), Endpoint("2001:db8::7", 4712)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "acct-1"
    made.mkdir(mode=0o700)
    TunnelState.load(made).save()
    return made


def found(directory: Path) -> dict[bytes, Endpoint]:
    """Return the endpoints that a new process would read now, without an orderly end of the old one."""
    state = TunnelState.load(directory)
    PeerEndpoints(state).close()
    return state.endpoints


async def test_a_move_is_on_disk_at_once(directory: Path) -> None:
    """A move survives a kill right after it, and the last move of a peer counts."""
    kept = PeerEndpoints(TunnelState.load(directory))
    kept.moved(ALICE, HOME)
    kept.moved(BOB, HOME)
    kept.moved(ALICE, AWAY)
    assert found(directory) == {ALICE: AWAY, BOB: HOME}
    assert stat.S_IMODE((directory / JOURNAL_FILE).stat().st_mode) == 0o600


async def test_a_place_that_is_known_costs_no_write(directory: Path) -> None:
    """A handshake from an unchanged endpoint does not write to the journal."""
    kept = PeerEndpoints(TunnelState.load(directory))
    for _ in range(3):
        kept.moved(ALICE, HOME)
    assert len((directory / JOURNAL_FILE).read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "damage",
    [
        b'["half a li',
        b"\xff\xfe\n",
        b"[]\n",
        b"{}\n",
        b"7\n",
        b'["no key", "192.0.2.1", 1]\n',
        json.dumps([format_key(ALICE), "192.0.2.1", 0]).encode() + b"\n",
        json.dumps([format_key(ALICE), 1, 1]).encode() + b"\n",
    ],
)
async def test_a_damaged_line_is_no_hint(directory: Path, damage: bytes) -> None:
    """A line that cannot be read is skipped, the others count, and the tunnel starts."""
    kept = PeerEndpoints(TunnelState.load(directory))
    kept.moved(BOB, HOME)
    with (directory / JOURNAL_FILE).open("ab") as file:
        file.write(damage)
    assert found(directory) == {BOB: HOME}


async def test_the_journal_ends_in_the_state_file(directory: Path) -> None:
    """The journal is emptied once the state file contains its moves."""
    kept = PeerEndpoints(TunnelState.load(directory))
    kept.moved(ALICE, HOME)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        keeping = group.create_task(kept.keep_saved())
        while (directory / JOURNAL_FILE).stat().st_size:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
        keeping.cancel()
    assert TunnelState.load(directory).endpoints == {ALICE: HOME}


async def test_the_journal_is_bounded(directory: Path) -> None:
    """A peer that moves all the time fills the journal to its limit only; later moves wait for the state file."""
    kept = PeerEndpoints(TunnelState.load(directory))
    for number in range(3000):
        kept.moved(ALICE, Endpoint("192.0.2.7", 1 + number))
    assert 0 < (directory / JOURNAL_FILE).stat().st_size <= JOURNAL_MOST_BYTES
    kept.close()
    assert (directory / JOURNAL_FILE).stat().st_size == 0
    assert found(directory) == {ALICE: Endpoint("192.0.2.7", 3000)}


async def test_who_left_the_map_is_remembered_for_a_while(directory: Path) -> None:
    """The endpoint of a peer that left is kept for some minutes and then removed from the file."""
    state = TunnelState.load(directory)
    kept = PeerEndpoints(state)
    kept.moved(ALICE, HOME)
    kept.moved(BOB, HOME)
    kept.present({BOB}, 0)
    kept.present({BOB}, GONE_KEPT - 1)
    assert ALICE in state.endpoints
    kept.present({ALICE, BOB}, GONE_KEPT - 1)
    kept.present({BOB}, GONE_KEPT)
    assert ALICE in state.endpoints
    kept.present({BOB}, 2 * GONE_KEPT)
    assert state.endpoints == {BOB: HOME}
    kept.close()
    assert found(directory) == {BOB: HOME}


async def test_only_so_many_are_remembered(directory: Path) -> None:
    """The number of stored endpoints of absent peers is bounded; members of the map are always kept."""
    state = TunnelState.load(directory)
    kept = PeerEndpoints(state)
    keys = [number.to_bytes(32, "big") for number in range(GONE_MOST + 50)]
    for key in keys:
        kept.moved(key, HOME)
    kept.present(set(keys), 0)
    assert len(state.endpoints) == len(keys)
    kept.present(set(), 1)
    assert len(state.endpoints) == GONE_MOST


async def test_a_disk_that_fails_ends_nothing(directory: Path) -> None:
    """If the journal cannot be opened, endpoints are saved in the state file only."""
    (directory / JOURNAL_FILE).mkdir()
    kept = PeerEndpoints(TunnelState.load(directory))
    kept.moved(ALICE, HOME)
    kept.close()
    assert TunnelState.load(directory).endpoints == {ALICE: HOME}


async def test_a_link_local_place_is_not_kept(directory: Path) -> None:
    """A peer on the same link, whose endpoint has a scope, changes no file and raises nothing."""
    kept = PeerEndpoints(TunnelState.load(directory))
    kept.moved(BOB, HOME)
    kept.moved(ALICE, Endpoint("fe80::1", 7, 2))
    kept.moved(ALICE, Endpoint("fe80::1", 7))
    assert found(directory) == {BOB: HOME}


async def test_a_host_that_is_no_address_is_no_hint(directory: Path) -> None:
    """A journal's line with a host that the engine would refuse is skipped; in the state file it is damage."""
    line = json.dumps([format_key(ALICE), "alice.example.com", 7]) + "\n"
    (directory / JOURNAL_FILE).write_text(line)
    assert found(directory) == {}
    state = {"udp_port": 1, "endpoints": {format_key(ALICE): ["alice.example.com", 7]}}
    (directory / STATE_FILE).write_text(json.dumps(state))
    with pytest.raises(StateUnusable, match="not an address"):
        TunnelState.load(directory)


async def test_saving_goes_on_after_any_failure(directory: Path) -> None:
    """A save that fails in an unforeseen way ends nothing, and the next change is saved."""
    state = TunnelState.load(directory)
    kept = PeerEndpoints(state, delay=0, floor=0)
    state.endpoints["no key"] = HOME  # type: ignore[index]
    kept.moved(ALICE, HOME)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        keeping = group.create_task(kept.keep_saved())
        await _until(lambda: not kept._changed.is_set())
        del state.endpoints["no key"]  # type: ignore[arg-type]
        kept.moved(BOB, HOME)
        await _until(lambda: TunnelState.load(directory).endpoints == {ALICE: HOME, BOB: HOME})
        assert not keeping.done()
        keeping.cancel()


async def test_a_peer_that_moves_all_the_time_is_saved_seldom(directory: Path) -> None:
    """Moves of a peer in the state file wait for the floor between saves; a peer that is new to it is saved soon."""
    state = TunnelState.load(directory)
    kept = PeerEndpoints(state, delay=0, floor=3600)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        keeping = group.create_task(kept.keep_saved())
        kept.moved(ALICE, HOME)
        await _until(lambda: TunnelState.load(directory).endpoints == {ALICE: HOME})
        for number in range(100):
            kept.moved(ALICE, Endpoint("192.0.2.7", 1 + number))
            await asyncio.sleep(0)
        assert TunnelState.load(directory).endpoints == {ALICE: HOME}
        assert found(directory) == {ALICE: Endpoint("192.0.2.7", 100)}
        kept.moved(BOB, HOME)
        await _until(lambda: BOB in TunnelState.load(directory).endpoints)
        assert TunnelState.load(directory).endpoints[ALICE] == Endpoint("192.0.2.7", 100)
        keeping.cancel()


async def test_what_is_written_can_be_read(directory: Path) -> None:
    """A file with more endpoints than any account has peers keeps the newest ones, and is read by the next start."""
    state = TunnelState.load(directory)
    host = "2001:db8:1111:2222:3333:4444:5555:6666"
    state.endpoints.update({number.to_bytes(32, "big"): Endpoint(host, 65535) for number in range(MOST_ENDPOINTS + 10)})
    state.save()
    assert (directory / STATE_FILE).stat().st_size <= MOST_BYTES
    endpoints = TunnelState.load(directory).endpoints
    assert len(endpoints) == MOST_ENDPOINTS
    assert (0).to_bytes(32, "big") not in endpoints


async def test_a_file_of_another_program_is_not_read(directory: Path) -> None:
    """A state file above the limit of size is refused by name, and stays."""
    (directory / STATE_FILE).write_bytes(b" " * (MOST_BYTES + 1))
    with pytest.raises(StateUnusable, match=STATE_FILE):
        TunnelState.load(directory)
    assert (directory / STATE_FILE).exists()


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - files have no event
        await asyncio.sleep(0.005)
