"""Events while Python's collector runs: a finaliser that calls the engine is served, wherever it runs."""

from __future__ import annotations

import gc

import pytest

from netbird_overlay.engine import Data, Engine
from netbird_overlay.simulation import Simulation


class Forgotten:
    """An object in a cycle, such as a stream that nobody closed: its finaliser calls the engine."""

    def __init__(self, engine: Engine, calls: list[None]) -> None:
        self.engine, self.calls, self.itself = engine, calls, self

    def __del__(self) -> None:
        self.engine.close(1 << 40)
        self.calls.append(None)


@pytest.mark.parametrize("call", ["events", "transmits", "peers", "counters", "carried", "strays"])
def test_collector_may_run_in_any_call_that_makes_objects(call: str) -> None:
    """The engine is not borrowed while lists and dictionaries are made, so that no finaliser's call is lost."""
    simulation = Simulation()
    a, b = simulation.pair()
    conn, _ = simulation.connection(a, b)
    calls: list[None] = []
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for _ in range(50):
            a.engine.write(conn, b"x")
            Forgotten(a.engine, calls)
            getattr(a.engine, call)()
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert len(calls) == 50


def test_data_is_read_once_and_in_order() -> None:
    """Events keep their order for a connection, data among them."""
    simulation = Simulation()
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b)
    order: list[str] = []
    b.on_event = lambda event: order.append(type(event).__name__)
    a.engine.write(conn, b"last words")
    a.engine.write_eof(conn)
    a.flush()
    simulation.run(1)
    b.engine.close(accepted)
    b.flush()
    assert order == [Data.__name__, "Eof", "Closed"]
