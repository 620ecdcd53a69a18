"""Several workers as one proxy: they share the connections, one that is lost costs its own exchanges only, and the
parent starts, reloads and stops all of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections import Counter
from pathlib import Path

import pytest

from examples.demo.calls import until
from examples.demo.processes import BIN, Processes
from tests.e2e.alone import mapped, started, written
from tests.e2e.test_reload import Authority
from tests.e2e.test_starting import upstream
from tests.e2e.test_stopping import ACTIVATED, GET, SIZE, open_to, refused, slow
from tests.e2e.worker_processes import ask, children, command, connections, pids, runs, state, workers

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]


async def all_ready(directory: Path) -> bool:
    return all(not worker["unready"] for worker in (await state(directory))["workers"])


async def test_connections_are_shared_and_lines_are_whole(tmp_path: Path) -> None:
    """The smaller share of 256 connections is at least 35 %, and both workers' lines are whole on one output."""
    async with upstream() as target, workers(tmp_path, mapped(app=target)) as proxy:
        opened = [await asyncio.open_connection("127.0.0.1", proxy.port) for _ in range(256)]
        running = await pids(tmp_path)

        async def accepted() -> bool:
            return sum(connections(pid, proxy.port) for pid in running) == 256

        await until("all are accepted", accepted, timeout=20)
        assert min(connections(pid, proxy.port) for pid in running) >= 0.35 * 256
        for _, writer in opened:
            writer.close()
        for _ in range(10):
            assert await asyncio.gather(*(ask(proxy.port) for _ in range(20))) == [200] * 20

        async def logged() -> bool:
            return sum('"event":"exchange.done"' in line for line in proxy.process.lines) == 200

        await until("each exchange has its line", logged, timeout=20)
        assert {json.loads(line).get("worker") for line in proxy.process.lines if "proxy.ready" in line} == {1, 2}
        assert await proxy.process.stop() == 0


async def test_a_killed_worker_is_replaced_while_the_other_serves(tmp_path: Path) -> None:
    """No client is refused at any time; only exchanges of the killed process are lost."""
    answers: Counter[int] = Counter()
    stop = asyncio.Event()

    async def load(port: int) -> None:
        while not stop.is_set():
            answers[await ask(port)] += 1

    async with upstream() as target, workers(tmp_path, mapped(app=target)) as proxy:
        first, second = await pids(tmp_path)
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(load(proxy.port))
            os.kill(second, signal.SIGKILL)
            await proxy.process.until_line(r"worker\.ended.*SIGKILL")

            async def replaced() -> bool:
                return (await pids(tmp_path))[1] not in (0, second) and await all_ready(tmp_path)

            await until("another one is ready", replaced, timeout=40)
            stop.set()
        assert (await pids(tmp_path))[0] == first
        assert set(answers) <= {200, 0}, answers
        assert answers[0] <= 4  # at most one exchange of each client was with the killed process
        assert (await state(tmp_path))["workers"][1]["restarts"] == 1


async def test_a_stopped_workers_connections_are_served_by_another(tmp_path: Path) -> None:
    """While a worker does not run at all, the other one accepts what waits in both accept queues."""
    async with upstream() as target, workers(tmp_path, mapped(app=target)) as proxy:
        _, second = await pids(tmp_path)
        os.kill(second, signal.SIGSTOP)
        try:
            async with asyncio.timeout(30):
                assert await asyncio.gather(*(ask(proxy.port) for _ in range(40))) == [200] * 40
            assert (await pids(tmp_path))[1] == second
        finally:
            os.kill(second, signal.SIGCONT)


async def test_a_worker_that_hangs_is_killed_and_replaced(tmp_path: Path) -> None:
    """It is counted, and the proxy is ready all the time."""
    async with workers(tmp_path, mapped(app=1), extra="[process]\nwatchdog = 2\n") as proxy:
        first, _ = await pids(tmp_path)
        os.kill(first, signal.SIGSTOP)
        await proxy.process.until_line(r"worker\.hung")
        assert (await state(tmp_path))["ready"] is True

        async def replaced() -> bool:
            return (await pids(tmp_path))[0] not in (0, first) and await all_ready(tmp_path)

        await until("another one is ready", replaced, timeout=40)
        answer = await state(tmp_path)
        assert (answer["counters"]["workers_hung"], answer["counters"]["workers_restarted"]) == (1, 1)


async def test_a_worker_that_cannot_start_stops_the_proxy_with_one_message(tmp_path: Path) -> None:
    """The message and the exit code are the worker's."""
    config, _, _ = written(tmp_path, mapped(app=1))
    (tmp_path / "state" / "workers").mkdir(parents=True)
    (tmp_path / "state").chmod(0o700)
    (tmp_path / "state" / "workers" / "2").write_text("not a directory")
    async with Processes(tmp_path / "logs") as processes:
        code, _, errors = await processes.run(command(config, 3))
    messages = [line for line in errors.splitlines() if line.startswith("netbird-proxy: ")]
    assert (code, messages) == (2, [f"netbird-proxy: state_directory {tmp_path}/state/workers/2 is not a directory"])


@pytest.mark.parametrize("stopped", [False, True], ids=["serving", "stopped"])
async def test_workers_end_with_a_killed_parent(tmp_path: Path, stopped: bool) -> None:
    """None serves on without a parent, also none that was stopped; another proxy can use the state directory then."""
    async with workers(tmp_path, mapped(app=1)) as proxy:
        running = await pids(tmp_path)
        if stopped:
            os.kill(running[0], signal.SIGSTOP)
        proxy.process.send(signal.SIGKILL)

        async def ended() -> bool:
            return not any(runs(pid) for pid in running)

        await until("all workers have ended", ended, timeout=30)
        async with Processes(tmp_path / "logs") as processes:
            again = await processes.start("again", command(proxy.config, 2))
            await again.until_line(r"workers\.ready", timeout=60)


async def test_stopping_lets_open_exchanges_end(tmp_path: Path) -> None:
    """New connections are refused, the download is whole, and all processes end."""
    async with slow() as target, workers(tmp_path, mapped(app=target.port)) as proxy:
        running = await pids(tmp_path)
        async with open_to(proxy, GET) as (reader, _):
            proxy.process.send(signal.SIGTERM)
            await refused(proxy.port)
            target.go.set()
            assert len(await reader.readexactly(SIZE)) == SIZE
        assert await proxy.process.stop() == 0
        assert not any(runs(pid) for pid in running)


@pytest.mark.parametrize("how", ["bound", "second signal"])
async def test_stopping_is_bounded(tmp_path: Path, how: str) -> None:
    """By limits.drain, or by a second signal."""
    extra = f"[limits]\ndrain = {1 if how == 'bound' else 600}\n"
    async with (
        slow() as target,
        workers(tmp_path, mapped(app=target.port), extra=extra) as proxy,
        open_to(proxy, GET),
    ):
        proxy.process.send(signal.SIGTERM)
        await refused(proxy.port)
        if how != "bound":
            proxy.process.send(signal.SIGTERM)
        assert await proxy.process.stop(sign=signal.SIGCONT, timeout=30) == 0


async def test_one_worker_that_stops_loses_no_connection(tmp_path: Path) -> None:
    """An operator's SIGTERM to a worker drains that one only; another accepts on its sockets, and a new one follows."""
    answers: Counter[int] = Counter()
    stop = asyncio.Event()

    async def load(port: int) -> None:
        while not stop.is_set():
            answers[await ask(port)] += 1

    async with upstream() as target, workers(tmp_path, mapped(app=target)) as proxy:
        _, second = await pids(tmp_path)
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(load(proxy.port))
            os.kill(second, signal.SIGTERM)

            async def replaced() -> bool:
                return (await pids(tmp_path))[1] not in (0, second) and await all_ready(tmp_path)

            await until("another one is ready", replaced, timeout=40)
            stop.set()
    assert set(answers) == {200}, answers


async def test_all_workers_reload_or_none(tmp_path: Path) -> None:
    """SIGHUP and the command reach all; bad settings reach none, and a worker that starts then has the old ones."""
    authority = Authority(tmp_path)
    first = authority.issue()
    extra = (
        f'[[listen]]\naddress = "127.0.0.1:0"\ntls = true\n[log]\nlevel = "info"\n'
        f'[[tls.certificates]]\ncert = "{authority.cert}"\nkey = "{authority.key}"\n'
    )
    async with Processes(tmp_path / "logs") as processes:
        config, _, _ = written(tmp_path, mapped(app=1), extra=extra)
        port = free_tls_port(config)
        proxy = await processes.start("proxy", command(config, 2))
        await proxy.until_line(r"workers\.ready", timeout=60)

        async def shown() -> set[int]:
            return {await authority.shown(port) for _ in range(24)}  # all on one worker: once in 2^23

        assert await shown() == {first}
        good = config.read_text()
        second = authority.issue()
        config.write_text(good.replace('"info"', '"debug"'))
        proxy.send(signal.SIGHUP)
        reloaded = json.loads((await proxy.until_line(r".*workers\.reloaded.*"))[0])
        assert reloaded["kept"] == []
        assert [line.split(",")[0] for line in reloaded["done"]] == [
            "log: level debug",
            f"certificate {authority.cert}",
        ]
        assert await shown() == {second}

        authority.issue()
        config.write_text(good + "[nonsense]\nx = 1\n")
        seen = len(proxy.lines)
        proxy.send(signal.SIGHUP)
        kept = json.loads((await proxy.until_line(r".*workers\.reloaded.*", start=seen))[0])["kept"]
        assert ["nonsense" in line for line in kept] == [True]
        assert await shown() == {second}

        os.kill((await pids(tmp_path))[1], signal.SIGKILL)
        await proxy.until_line(r"worker\.ended.*SIGKILL")

        async def back() -> bool:
            return await all_ready(tmp_path)

        await until("another one is ready with the old settings", back, timeout=40)

        config.write_text(good)
        authority.key.write_text("not a key")
        code, output, _ = await processes.run(
            [str(BIN / "netbird-proxy"), "reload", "--config", str(config), "--admin", str(tmp_path / "admin.sock")]
        )
        assert code == 1, output
        assert "all workers keep the old" in output


def free_tls_port(config: Path) -> int:
    """Give the listener with port 0 a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    config.write_text(config.read_text().replace('"127.0.0.1:0"', f'"127.0.0.1:{port}"'))
    return port


@pytest.mark.parametrize(("first", "second"), [(2, 2), (2, 1), (1, 2)])
async def test_one_proxy_uses_a_state_directory(tmp_path: Path, first: int, second: int) -> None:
    """A second one, with other ports, does not start; its exit code lets a supervisor try again."""
    (tmp_path / "other").mkdir()
    async with Processes(tmp_path / "logs") as processes:
        config, _, _ = written(tmp_path, mapped(app=1))
        proxy = await processes.start("proxy", command(config, first))
        await proxy.until_line(r"workers\.ready" if first > 1 else r"proxy\.ready", timeout=60)
        other, _, _ = written(tmp_path / "other", mapped(app=1))
        other.write_text(other.read_text().replace(f"{tmp_path / 'other' / 'state'}", f"{tmp_path / 'state'}"))
        code, _, errors = await processes.run(command(other, second))
    assert (code, "is used by another running proxy" in errors) == (1, True)


@pytest.mark.parametrize("by", ["a server", "another proxy with workers", "a proxy without workers"])
async def test_a_port_that_is_taken_stops_the_start(tmp_path: Path, by: str) -> None:
    """Also where the other one would share it: half of the connections would be another proxy's."""
    (tmp_path / "other").mkdir()
    async with Processes(tmp_path / "logs") as processes:
        config, _, port = written(tmp_path, mapped(app=1))
        other, _, _ = written(tmp_path / "other", mapped(app=1), port=port)
        if by == "a server":
            with socket.create_server(("127.0.0.1", port)):
                code, _, errors = await processes.run(command(config, 2))
        else:
            proxy = await processes.start("proxy", command(other, 1 if by == "a proxy without workers" else 2))
            await proxy.until_line(r"workers\.ready|proxy\.ready.*", timeout=60)
            code, _, errors = await processes.run(command(config, 2))
    assert (code, f"listen.address 127.0.0.1:{port}: Address already in use" in errors) == (2, True), errors


async def test_one_worker_is_a_single_process(tmp_path: Path) -> None:
    """It has no parent, no child, and its state and admin socket as ever."""
    async with Processes(tmp_path / "logs") as processes:
        config, _, _ = written(tmp_path, mapped(app=1))
        proxy = await processes.start("proxy", command(config, 1))
        await proxy.until_line(r"proxy\.ready")
        assert children(proxy.pid) == []
        assert (await state(tmp_path))["listening"]


@pytest.mark.parametrize("count", [0, -1, 129])
async def test_absurd_numbers_are_refused(tmp_path: Path, count: int) -> None:
    """Nothing is started."""
    config, _, _ = written(tmp_path, mapped(app=1))
    async with Processes(tmp_path / "logs") as processes:
        code, _, errors = await processes.run(command(config, count))
    assert (code, "process.workers: " in errors, "flag --workers" in errors) == (2, True, True)


async def test_workers_share_a_socket_of_the_supervisor(tmp_path: Path) -> None:
    """All accept on it; the socket outlives the proxy."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        port = listening.getsockname()[1]
        config, _, _ = written(tmp_path, mapped(app=1), port=port)
        handle = await asyncio.create_subprocess_exec(
            *[sys.executable, "-c", ACTIVATED, *command(config, 2)],
            env={**os.environ, "LISTEN_FDS": "1"},
            preexec_fn=lambda: os.dup2(listening.fileno(), 3),
            close_fds=False,
            stderr=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(60):
                assert await ask(port, "nobody.example.com") == 404
            await until("both are ready", lambda: all_ready(tmp_path), timeout=40)
            for pid in await pids(tmp_path):
                os.kill(pid, signal.SIGSTOP)
                async with asyncio.timeout(30):
                    assert await ask(port, "nobody.example.com") == 404
                os.kill(pid, signal.SIGCONT)
            handle.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(handle.wait(), 40) == 0
        finally:
            if handle.returncode is None:
                handle.kill()
        _, late = await asyncio.open_connection("127.0.0.1", port)
        late.close()


async def test_the_supervisor_hears_of_all_workers_at_once(tmp_path: Path) -> None:
    """Ready once all are, signs of life from the parent, stopping once; nothing comes from a worker."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.settimeout(20)
        notices: list[bytes] = []

        async def hear(word: bytes, times: int = 1) -> None:
            while sum(notice.startswith(word) for notice in notices) < times:
                notices.append(await asyncio.to_thread(ear.recv, 1000))

        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"}
        async with workers(tmp_path, mapped(app=1), env=env) as proxy:
            await hear(b"READY=1\nSTATUS=2 workers listen on 127.0.0.1:%d" % proxy.port)
            await hear(b"WATCHDOG=1", 2)
            assert await proxy.process.stop() == 0
            await hear(b"STOPPING=1\n")
    assert sum(notice.startswith(b"READY=1") for notice in notices) == 1


async def test_the_state_of_a_single_process_is_the_first_workers(tmp_path: Path) -> None:
    """Its id stays; the other worker's is its own, and stays over restarts; so do those of fewer workers."""
    ids: list[list[str]] = []
    async with Processes(tmp_path / "logs") as processes:
        proxy = await started(processes, tmp_path, mapped(app=1))
        single = (await state(tmp_path))["id"]
        await proxy.process.stop()
        for count in (2, 3):
            process = await processes.start("proxy", command(proxy.config, count))
            await process.until_line(r"workers\.ready", timeout=60)
            ids.append([worker["state"]["id"] for worker in (await state(tmp_path))["workers"]])
            await process.stop()
    assert [ids[0][0], len(set(ids[1]))] == [single, 3]
    assert ids[1][:2] == ids[0]
