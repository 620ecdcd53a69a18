"""The comparison: what it counts is counted right, and its parts start. No figure of it is judged here."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from bench import inmemory, instructions, report, schemes
from bench.measure import Footprint, LoadFailed, Sample, cpu_seconds, family, load, sample
from bench.servers import start_caddy, start_nginx, start_upstream, start_uvicorn
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


def test_best_round_counts_and_the_spread_tells_of_the_others() -> None:
    """Neighbors on a machine can only make a request dearer."""
    series = report.Series("x", "plain", [Sample(1000, 1.0, 0.2), Sample(2000, 1.0, 0.2), Sample(1000, 1.0, 0.15)])
    assert series.cpu == pytest.approx(0.1)
    assert series.spread == pytest.approx(1.0)
    assert series.rate == 2000


def test_ratios_stand_within_one_run() -> None:
    """Each row against nginx and Caddy under the same load; the overlay's against the same proxies without it."""
    results = [
        report.Series("nginx", "plain", [Sample(1000, 1.0, 0.02)]),
        report.Series("Caddy", "plain", [Sample(1000, 1.0, 0.1)]),
        report.Series("netbird-proxy", "private", [Sample(1000, 1.0, 0.2)]),
    ]
    table = report.table(results)
    assert "| netbird-proxy | 0.2000 | +0 % | 1,000 | 10.00 | 2.00 |" in table.splitlines()


def test_only_the_generated_part_of_the_page_is_replaced(tmp_path: Path) -> None:
    """What people wrote around it stays."""
    page = tmp_path / "performance.md"
    page.write_text(f"# Mine\n\n{report.BEGIN}\nold\n{report.END}\n\nmine too\n")
    report.write(page, "new")
    assert page.read_text() == f"# Mine\n\n{report.BEGIN}\nnew\n{report.END}\n\nmine too\n"


@pytest.mark.live
async def test_parts_start_and_answer(tmp_path: Path) -> None:
    """Everything that is compared forwards to the upstream, by HTTP and HTTPS, and the load is counted."""
    certificates = Certificates.made_in(tmp_path)
    async with Processes(tmp_path / "logs") as processes:
        upstream = await start_upstream(processes, tmp_path)
        for subject in (
            await start_nginx(processes, tmp_path, upstream, certificates),
            await start_caddy(processes, tmp_path, upstream, certificates, log=True),
            await start_uvicorn(processes, certificates),
        ):
            for url in subject.urls.values():
                found = await sample(subject.process.pid, url + "/", host="localhost", seconds=1, connections=2)
                assert found.requests > 0
                assert found.cpu >= 0


@pytest.mark.live
async def test_a_load_that_was_not_answered_is_no_figure() -> None:
    """Errors are cheap to answer: a table must not be made of them."""
    with pytest.raises(LoadFailed):
        await load(f"http://127.0.0.1:{free_port()}/", host="localhost", seconds=1, connections=1)
    assert os.getpid() in family(os.getpid())


def test_schemes_stand_beside_a_public_route_of_the_same_listener() -> None:
    """The ratio is the rounds' median, not the medians' ratio; what was not measured is no figure."""
    base = schemes.Call(inmemory.PUBLIC, "", "", costs=[0.1, 0.2, 0.3], ratios=[1.0, 1.0, 1.0])
    cookie = schemes.Call(inmemory.COOKIE, "", "", costs=[0.11, 0.24, 0.6], ratios=[1.1, 1.2, 2.0])
    lines = schemes.table([[base, cookie]], {inmemory.PUBLIC: 200_000, inmemory.COOKIE: 230_000}).splitlines()
    assert "| public route | 0.2000 | 1.00 | 200,000 | 1.00 |" in lines
    assert "| session cookie | 0.2400 | 1.20 | 230,000 | 1.15 |" in lines
    assert "| private route | – | – | – | – |" in lines


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
