"""The comparison: what it counts is counted right, and its parts start. No figure of it is judged here."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from bench import alone, inmemory, instructions
from bench.idle import holding
from bench.measure import Footprint, LoadFailed, cpu_seconds, family, load, sample
from bench.messages import messages
from bench.openloop import latency
from bench.peers import start_caddy, start_haproxy, start_nginx, start_uvicorn
from bench.rows import UPLOAD
from bench.servers import start_upstream
from examples.demo.processes import Processes
from examples.demo.stack import Certificates, free_port

BUSY = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ninput()"


async def test_a_process_is_counted_with_its_children() -> None:
    """The counters are the process's own and its children's, not ours."""
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])"
    busy = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert busy.stdout is not None
    async with asyncio.timeout(30):
        assert await busy.stdout.readline() == b"done\n"
        assert len(family(busy.pid)) == 2
        assert cpu_seconds(busy.pid) >= 0.25
        assert Footprint.of(busy.pid).descriptors >= 3
        await busy.communicate(b"\n")


@pytest.mark.live
async def test_parts_start_and_answer(tmp_path: Path) -> None:
    """Everything that is compared forwards to the upstream, by HTTP and HTTPS, and the load is counted."""
    certificates = Certificates.made_in(tmp_path)
    async with Processes(tmp_path / "logs") as processes:
        upstream = await start_upstream(processes, tmp_path)
        for subject in (
            await start_nginx(processes, tmp_path, upstream, certificates),
            await start_haproxy(processes, tmp_path, upstream, certificates),
            await start_caddy(processes, tmp_path, upstream, certificates, log=True),
            await start_uvicorn(processes, certificates),
        ):
            for name, url in subject.urls.items():
                found = await sample(subject.process.pid, url + "/", host="localhost", seconds=1, connections=2)
                assert found.requests > 0
                assert found.cpu > 0
                if subject.forwards and name == "plain":
                    up = await sample(
                        subject.process.pid, url + "/sink", host="localhost", seconds=1, connections=1, script=UPLOAD
                    )
                    assert up.requests > 0
            assert (await latency(subject.urls["plain"] + "/", host="localhost", rate=50, seconds=1)).count == 50


@pytest.mark.live
async def test_echoes_are_counted_and_paid_by_the_server(tmp_path: Path) -> None:
    """Small and large messages come back whole through a real server."""
    certificates = Certificates.made_in(tmp_path)
    async with Processes(tmp_path / "logs") as processes:
        subject = await start_uvicorn(processes, certificates)
        for size in (64, 16_384):
            found = await messages(
                subject.process.pid, subject.urls["messages"], host="localhost", size=size, seconds=0.5, connections=2
            )
            assert found.requests > 0
            assert found.cpu > 0
        with pytest.raises(LoadFailed):
            await messages(
                subject.process.pid, f"http://127.0.0.1:{free_port()}", host="x", size=64, seconds=0.5, connections=1
            )


@pytest.mark.live
async def test_idle_connections_are_held_until_they_are_let_go(tmp_path: Path) -> None:
    """Plain ones and websockets, through a proxy of ours; its descriptors show that they are there."""
    async with Processes(tmp_path / "logs") as processes:
        serve = free_port()
        proxy = await alone.start(processes, tmp_path / "idle", serve)
        async with holding(proxy.port, 20, host=alone.HOST, websockets=True, serve=serve) as held:
            before = Footprint.of(proxy.process.pid).descriptors
            await held.open()
            assert Footprint.of(proxy.process.pid).descriptors == before + 40
        async with holding(proxy.port, 1, host="nobody.test") as held:
            with pytest.raises(LoadFailed, match="404"):
                await held.open()


@pytest.mark.live
async def test_a_load_that_was_not_answered_is_no_figure() -> None:
    """Errors are cheap to answer: a table must not be made of them."""
    with pytest.raises(LoadFailed):
        await load(f"http://127.0.0.1:{free_port()}/", host="localhost", seconds=1, connections=1)
    assert os.getpid() in family(os.getpid())


async def test_each_scheme_lets_its_caller_in_and_tells_the_upstream_nothing_of_it(tmp_path: Path) -> None:
    """What is counted in memory is the real way: the caller is known, and the secret stays here."""
    async with inmemory.stage(tmp_path) as made:
        for scheme in inmemory.SCHEMES:
            await made.play(scheme.name, inmemory.CONNECTIONS)
            head = made.seen[0].lower()
            assert f"x-forwarded-host: {scheme.service}.example.com".encode() in head
            assert (b"x-netbird-user: anna@example.com" in head) is (scheme.inside and scheme.base != scheme.name)
            assert b"cookie" not in head
            assert b"authorization" not in head


async def test_a_guard_and_further_plugins_are_counted_on_a_way_that_works(tmp_path: Path) -> None:
    """A closed route or a plugin that did not load would be cheap."""
    async with inmemory.stage(tmp_path, unbound=inmemory.UNBOUND) as made:
        for scheme in inmemory.EXTRAS:
            await made.play(scheme.name, inmemory.CONNECTIONS)
            assert f"x-forwarded-host: {scheme.service}.example.com".encode() in made.seen[0].lower()


async def test_what_is_refused_in_memory_is_no_figure(tmp_path: Path) -> None:
    """A denial costs less than an answer."""
    async with inmemory.stage(tmp_path) as made:
        made.shown[inmemory.CREDENTIAL_SCHEME] = b""
        with pytest.raises(RuntimeError, match="401"):
            await made.play(inmemory.CREDENTIAL_SCHEME, inmemory.CONNECTIONS)


@pytest.mark.live
async def test_instructions_are_counted(tmp_path: Path) -> None:
    """Callgrind counts an exchange's own, nothing of what was before it."""
    found = await instructions.count(tmp_path, [inmemory.PUBLIC], exchanges=inmemory.CONNECTIONS)
    assert 50_000 < found[inmemory.PUBLIC] < 2_000_000
