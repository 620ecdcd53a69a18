"""A path may change under open connections: their bytes arrive complete and in order, however often it does."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.node import Node
from netbird_overlay.paths.lossy import LossyPath
from netbird_overlay.testing import LOOPBACK, Accepting, Recorder, allow_everything_in, introduce, loopback_node

PIECE = 64 << 10


class Downloader(Recorder):
    """A recorder that does something after each piece that it received."""

    def __init__(self, after_piece: object) -> None:
        super().__init__()
        self._after_piece = after_piece
        self._due = PIECE

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        while len(self.received) >= self._due:
            self._due += PIECE
            self._after_piece()  # type: ignore[operator]


def pin(node: Node, other: Node, path: Endpoint | int) -> None:
    assert node.driver.engine.pin(other.public_key, path)
    node.driver.touch()


@pytest.mark.parametrize(("size", "loss"), [(4 << 20, 0.0), (1 << 20, 0.005)])
async def test_a_download_survives_changes_between_relay_and_udp(size: int, loss: float) -> None:
    async with loopback_node("100.64.0.1") as a, loopback_node("100.64.0.2") as b, asyncio.timeout(45):
        for node, other in ((a, b), (b, a)):
            introduce(node, other, where=False)
            allow_everything_in(node)
        relay = LossyPath(a.driver, 1, b.driver, 2, seed=1, loss=loss, delay=(0.0005, 0.001))
        pin(a, b, 1)
        pin(b, a, 2)
        # Each end has its own turn, and for a while they use different paths.
        paths = itertools.cycle(
            [
                (a, b, Endpoint(LOOPBACK, b.driver.local_port)),
                (b, a, Endpoint(LOOPBACK, a.driver.local_port)),
                (b, a, 2),
                (a, b, 1),
            ]
        )
        changes = 0

        def change() -> None:
            nonlocal changes
            changes += 1
            pin(*next(paths))

        accepting = Accepting()
        b.listen(80, accepting)
        data = random.Random(0).randbytes(size)
        _, protocol = await a.dial(lambda: Downloader(change), "100.64.0.2", 80, timeout=15)
        far = await accepting.next()
        assert isinstance(protocol, Recorder)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(far.write_slowly(data))
            assert await protocol.has(size) == data
        assert changes == size // PIECE
        assert relay.passed > 0
        assert not protocol.lost.done()


async def test_a_connection_waits_while_its_peer_has_no_path() -> None:
    async with loopback_node("100.64.0.1") as a, loopback_node("100.64.0.2") as b, asyncio.timeout(45):
        for node, other in ((a, b), (b, a)):
            introduce(node, other, where=False)
            allow_everything_in(node)
        relay = LossyPath(a.driver, 1, b.driver, 2)
        pin(a, b, 1)
        pin(b, a, 2)
        accepting = Accepting()
        b.listen(80, accepting)
        _, protocol = await a.dial(Recorder, "100.64.0.2", 80, timeout=15)
        assert isinstance(protocol, Recorder)
        far = await accepting.next()
        for node, other in ((a, b), (b, a)):
            node.driver.engine.unpin(other.public_key)
        relay.up = False
        protocol.transport.write(b"before")
        far.transport.write(b"ahead")
        relay.up = True
        pin(a, b, 1)
        pin(b, a, 2)
        assert await far.has(6) == b"before"
        assert await protocol.has(5) == b"ahead"
