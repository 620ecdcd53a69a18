"""The limits of a machine, divided by its workers."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_overlay.keys import StateUnusable, TunnelState
from netbird_proxy import Share
from netbird_proxy.api.errors import SettingsError
from netbird_proxy.process.settings import Limits
from netbird_proxy.process.state import StateInUse, lock_state
from netbird_proxy.process.workers.division import worker_directory, worker_socket
from netbird_tunnel_netstack.settings import TunnelOptions, bind_account


@given(limit=st.integers(1, 1 << 40), of=st.integers(1, 128))
def test_promise_10_all_shares_together_are_within_the_limit(limit: int, of: int) -> None:
    """No share is below 1, so that only a limit below the number of workers is exceeded."""
    shares = [Share(number, of).count(limit) for number in range(1, of + 1)]
    assert min(shares) >= 1
    assert sum(shares) <= max(limit, of)
    assert sum(Share(number, of).rate(limit) for number in range(1, of + 1)) == pytest.approx(limit)


@given(items=st.lists(st.integers(), unique=True), of=st.integers(1, 128))
def test_each_worker_has_all_items_its_own_part_first(items: list[int], of: int) -> None:
    """The parts are disjoint, and together they are everything."""
    orders = [Share(number, of).order(items) for number in range(1, of + 1)]
    assert all(sorted(order) == sorted(items) for order in orders)
    starts = [len(items) * number // of for number in range(of + 1)]
    parts = [order[: end - start] for order, start, end in zip(orders, starts, starts[1:], strict=False)]
    assert [item for part in parts for item in part] == items


def test_numbers_of_the_limits_are_divided_and_times_are_not() -> None:
    """Each worker knows all services, and judges each request by the same sizes and times."""
    whole, half = Limits(), Limits().of(Share(2, 2))
    changed = {name for name in Limits.model_fields if getattr(whole, name) != getattr(half, name)}
    assert changed == {"connections", "in_flight", "upstream_idle_connections"}
    assert (half.connections, half.in_flight, half.upstream_idle_connections) == (5000, 256, 50)
    assert Limits(connections=1).of(Share(1, 128)).connections == 1


def test_workers_choose_ports_of_different_parts_and_keep_stored_ones(tmp_path: Path) -> None:
    """A port that clients' files name stays valid, also in a part that is another worker's now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    options = TunnelOptions(ports=(f"{free}-{free + 9}",), bind="127.0.0.1")
    parts = (range(free, free + 5), range(free + 5, free + 10))
    for number, part in enumerate(parts, start=1):
        directory = tmp_path / str(number)
        directory.mkdir(mode=0o700)
        state = TunnelState.load(directory)
        with bind_account(options, state, Share(number, 2)) as sock:
            assert sock.getsockname()[1] in part
        with bind_account(options, TunnelState.load(directory), Share(3 - number, 2)) as sock:
            assert sock.getsockname()[1] in part


def test_the_first_worker_has_the_directory_of_a_single_process() -> None:
    """The others' are inside of it, and no admin socket of a worker looks like that of a proxy."""
    assert worker_directory(Path("/s"), 1) == Path("/s")
    assert worker_directory(Path("/s"), 3) == Path("/s/workers/3")
    assert worker_socket(Path("/run/a.b.sock"), 2) == Path("/run/a.b.worker-2")
    assert worker_socket(Path("/run/admin"), 2) == Path("/run/admin.worker-2")


def test_a_state_directory_is_locked_once(tmp_path: Path) -> None:
    """As long as any process has the descriptor; a directory that cannot be used is no conflict."""
    directory = tmp_path / "state"
    first = lock_state(directory)
    with pytest.raises(StateInUse, match="is used by another running proxy"):
        lock_state(directory)
    copy = os.dup(first)
    os.close(first)
    with pytest.raises(StateInUse):
        lock_state(directory)
    os.close(copy)
    os.close(lock_state(directory))
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError):
        lock_state(tmp_path / "file")


def test_a_range_with_fewer_ports_than_workers_is_explained(tmp_path: Path) -> None:
    """The message names the number of workers, because a single process would have enough ports."""
    directory = tmp_path / "account"
    directory.mkdir(mode=0o700)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        options = TunnelOptions(ports=(taken.getsockname()[1],), bind="127.0.0.1")
        with pytest.raises(StateUnusable, match=r"no UDP port is free among 1 .* each of the 3 workers needs one"):
            bind_account(options, TunnelState.load(directory), Share(2, 3))
