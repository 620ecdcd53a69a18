"""The channel between parent and worker, and the hello: whole messages in order, and no end by what the other sends."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from netbird_host.settings import Given, Sources
from netbird_proxy import Share
from netbird_proxy.process.workers.channel import Channel, channel_pair
from netbird_proxy.process.workers.hello import Hello
from netbird_proxy.process.workers.seat import describe_exit


async def test_messages_arrive_whole_and_the_end_is_noticed() -> None:
    """Nonsense between them is dropped."""
    ours, socket_of_theirs = channel_pair()
    theirs = Channel(socket_of_theirs)
    received: list[dict[str, object]] = []
    ended = asyncio.Event()
    ours.listen(received.append, ended.set)
    assert theirs.send({"report": {"text": "é" * 10_000}})
    for nonsense in (b"\xff", b"[1]", b"{", b"null"):
        socket_of_theirs.send(nonsense)
    assert theirs.send({"stopping": True})
    theirs.close()
    async with asyncio.timeout(20):
        await ended.wait()
    assert received == [{"report": {"text": "é" * 10_000}}, {"stopping": True}]
    assert not ours.send({"stop": "late"})
    ours.close()
    ours.close()


async def test_a_full_channel_drops_messages_and_blocks_nobody() -> None:
    """The other process does not read: sending reports that, and the messages that arrived are whole."""
    ours, socket_of_theirs = channel_pair()
    theirs = Channel(socket_of_theirs)
    sent = 0
    while theirs.send({"number": sent}):
        sent += 1
    received: list[dict[str, object]] = []
    ours.read_rest(received.append)
    assert received == [{"number": number} for number in range(sent)]
    ours.close()
    theirs.close()


def test_a_hello_reads_back_and_nonsense_is_none() -> None:
    """Settings with their sources come through as they are."""
    sources = Sources()
    sources.put(Given(("limits", "drain"), 5, "file x"))
    sources.put_text(Given(("plugins",), "a, b", "environment P"))
    hello = Hello(
        share=Share(2, 3),
        channel=7,
        turns=8,
        config="proxy.toml",
        flags=[Given(("process", "workers"), 3, "flag --workers")],
        sources=sources.dump(),
        own=[[1, 2], [3]],
        others={1: [[4], []]},
        beside=[("127.0.0.1", 80)],
    )
    again = Hello.decode(hello.encode())
    assert again == hello
    restored = Sources.restored(again.sources)
    assert (restored.get("limits", "drain"), restored.of(("limits", "drain"))) == (5, "file x")
    assert restored.texts("plugins") == ("a", "b")
    for nonsense in (b"", b"{}", b"[]", b"\xff"):
        with pytest.raises(ValueError, match=r"JSON|Expected|missing|truncated|malformed|UTF-8"):
            Hello.decode(nonsense)


def test_newer_sources_replace_the_named_sections_only() -> None:
    """A section that the newer sources do not have is gone."""
    older, newer = Sources(), Sources()
    older.put(Given(("log", "level"), "info", "file old"))
    older.put(Given(("limits", "drain"), 5, "file old"))
    older.put(Given(("tls", "certificates"), [{"cert": "a"}], "file old"))
    newer.put(Given(("log", "level"), "debug", "file new"))
    newer.put(Given(("limits", "drain"), 6, "file new"))
    mixed = Sources.restored(older.dump(), newer=newer.dump(), of="log tls")
    assert (mixed.get("log", "level"), mixed.of(("log", "level"))) == ("debug", "file new")
    assert (mixed.get("limits", "drain"), mixed.of(("limits", "drain"))) == (5, "file old")
    assert mixed.get("tls", "certificates") is None


def test_a_worker_without_a_parent_explains_itself() -> None:
    """Its exit code is that of wrong settings."""
    ended = subprocess.run(
        [sys.executable, "-m", "netbird_proxy.operator.worker"],
        input=b"",
        capture_output=True,
        env=os.environ,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, b"use netbird-proxy run --workers" in ended.stderr) == (2, True)


def test_exits_are_described() -> None:
    """By exit code, by the signal's name, and by the number of a signal without a name."""
    assert [describe_exit(code) for code in (3, -9, -200)] == [
        "exit code 3",
        "killed by SIGKILL",
        "killed by signal 200",
    ]


HANGING = """
import sys, threading
from netbird_proxy.process.workers.member import end_with_parent
threading.Thread(target=end_with_parent, args=(int(sys.argv[1]), 0.1), daemon=True).start()
print("hangs", flush=True)
while True:
    pass
"""


def test_a_worker_that_hangs_ends_with_its_parent() -> None:
    """It does not read the channel; it goes on as long as the parent lives."""
    ours, theirs = channel_pair()
    with subprocess.Popen(
        [sys.executable, "-P", "-c", HANGING, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdout=subprocess.PIPE,
    ) as worker:
        theirs.close()
        try:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"hangs\n"
            assert ours.send({"cover": []})
            assert worker.poll() is None
            ours.close()
            assert worker.wait(30) == 1
        finally:
            worker.kill()  # one that does not end would keep a core busy for good
