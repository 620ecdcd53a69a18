"""The corpus of attacks, changed here and there: nobody knows what must come of each, but much holds of all of them.

`MUTATED` says how many are played on each listener, and `MUTATED_SEED` which; hours of it are for whoever has them.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter

import pytest

from netbird_proxy.api.headers import fold

from .stage import WAIT, Seen, Stage, staged, statuses
from .test_attacks import DATA, raw

MUTATED = int(os.environ.get("MUTATED", "300"))
SEED = int(os.environ.get("MUTATED_SEED", "1"))
LONGEST = 1_500

SEEDS = [sent for case in DATA["attack"] if len(sent := raw(case["bytes"])) < LONGEST and not sent.startswith(b"HEAD")]
"""HEAD's answers cannot be read without knowing which request each is for."""
PIECES = (
    *(b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0", b"0", b"5", b";", b",", b"\x0b", b"\xff", b"_", b"-", b"/"),
    *(b"?", b"#", b"%2f", b"..", b"=", b"chunked", b"0\r\n\r\n", b"Content-Length: 5\r\n"),
    b"Transfer-Encoding: chunked\r\n",
    *(b"X-NetBird-User: mallory\r\n", b"x_netbird_groups: mallory\r\n", b"Connection: X-NetBird-User\r\n"),
    *(b"Connection: close\r\n", b"Connection: Upgrade\r\n", b"Upgrade: websocket\r\n", b"Expect: 100-continue\r\n"),
    *(b"Host: app.example\r\n", b"GET /second HTTP/1.1\r\nHost: app.example\r\n\r\n"),
)  # fmt: skip
ONCE = (
    *(b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"te", b"x-netbird-user"),
    *(b"x-netbird-groups", b"x-forwarded-for", b"x-real-ip", b"x-forwarded-host", b"x-forwarded-proto"),
)
NEVER = frozenset((b"expect", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"trailer", b"forwarded"))


def mutated(dice: random.Random) -> bytes:
    sent = bytearray(dice.choice(SEEDS))
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        at, what = dice.randrange(len(sent) + 1), dice.random()
        if what < 0.45:
            sent[at:at] = dice.choice(PIECES)
        elif what < 0.65:
            del sent[at : at + dice.choice((1, 1, 2, 5))]
        elif what < 0.8:
            sent[at : at + 1] = bytes((dice.randrange(256),))
        elif what < 0.9:
            other = dice.choice(SEEDS)
            start = dice.randrange(len(other))
            sent[at:at] = other[start : start + dice.randrange(40)]
        else:
            sent += dice.choice(SEEDS)
    return bytes(sent)


def check(one: Seen, stage: Stage) -> None:
    """What holds of every request that gets through, and could be read."""
    names = Counter(fold(name) for name, _ in one.fields)
    assert [name for name in ONCE if names[name] > 1] == []
    assert names[b"content-length"] + names[b"transfer-encoding"] <= 1
    assert NEVER.isdisjoint(names)
    assert one.get(b"host") == [b"127.0.0.1:%d" % stage.port]
    assert one.get(b"x-forwarded-for") == [stage.client.encode()]
    ours = [pair for pair in one.fields if fold(pair[0].removeprefix(b"trailer ")).startswith(b"x-netbird-")]
    assert ours == stage.identity
    path = one.line.split(" ")[1].partition("?")[0]
    assert path.startswith("/")
    assert not {".", ".."} & set(path.split("/"))


@pytest.mark.parametrize("listener", ["host", "tunnel"])
async def test_whatever_gets_through_is_plain(listener: str) -> None:
    """Read strictly: one framing, one host, names of ours by us alone, a path without dots; and plain answers."""
    dice = random.Random(SEED)
    async with staged(listener) as stage:
        through = 0
        for _ in range(MUTATED):
            sent = mutated(dice)
            stage.upstream.seen.clear()
            stage.upstream.bytes.clear()
            async with asyncio.timeout(WAIT):
                received = await stage.ask(sent)
            through += len(stage.upstream.seen)
            try:
                assert stage.upstream.broken == []
                for one in stage.upstream.seen:
                    check(one, stage)
                if b"HEAD" not in sent and b"\r\n\r\n" in received:
                    statuses(received)
            except AssertionError as failed:
                raise AssertionError(f"{sent!r}: {failed}") from failed
        assert through > MUTATED / 20
