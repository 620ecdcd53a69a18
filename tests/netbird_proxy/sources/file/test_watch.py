"""The mappings file in force: at the start, after an edit, after a bad one, and beside management."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from netbird_proxy.api.errors import RouteRefused, SettingsError
from netbird_proxy.api.host import Proxy
from netbird_proxy.api.model import RouteSpec, Upstream
from netbird_proxy.api.tunnels import Dialer
from netbird_proxy.routing.hooks import load_hooks
from netbird_proxy.sources.decode.codec import Codec
from netbird_proxy.sources.file.watch import FileMappings
from netbird_proxy.testing.makers import host_origin, mapping, route
from netbird_proxy.testing.transcript import StepHooks, Transcript


def said(*hosts: str, target: str = "http://10.0.0.5:8080") -> str:
    """A file that maps these hosts, each to its own id."""
    return "".join(
        f'[[mapping]]\nid = "{host}"\ndomain = "{host}.example.com"\npath = [{{ path = "/", target = "{target}" }}]\n'
        for host in hosts
    )


class Hooks(StepHooks):
    """Hooks without steps, that refuse some upstreams and remember how often they were asked."""

    asked = 0

    def dialer(self, route: RouteSpec, upstream: Upstream, proxy: Proxy) -> tuple[str, Dialer] | None:
        self.asked += 1
        if upstream.address.port == 1:
            raise RouteRefused("a target has the port 1")
        return super().dialer(route, upstream, proxy)


class Line:
    """A file with what it is put in force in."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.hooks = Hooks()
        self.play = Transcript(hooks=self.hooks)
        codec = Codec(load_hooks([], defaults=(), core_claims=()))
        self.files = FileMappings(file, codec, self.play.routing, interval=0.005)

    def write(self, text: str) -> None:
        """As an editor does that cares: whole, under another name, then moved."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(text)
        os.replace(fresh, self.file)

    def hosts(self) -> list[str]:
        return sorted(self.play.routing.table.hosts)

    async def serves(self, *hosts: str) -> None:
        """Wait until exactly these are served."""
        async with asyncio.timeout(10):
            while self.hosts() != [f"{host}.example.com" for host in hosts]:  # noqa: ASYNC110 - a poll is what is tested
                await asyncio.sleep(0.005)

    async def refuses(self, problem: str) -> None:
        async with asyncio.timeout(10):
            while not any(problem in one for one in self.files.refused):  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path / "mappings.toml")


@asynccontextmanager
async def watching(line: Line) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(line.files.run())
        try:
            yield
        finally:
            task.cancel()


async def test_file_is_in_force_from_the_start(line: Line) -> None:
    """A request to one of its hosts finds its upstream, without management and without an account."""
    line.write(said("a", "b"))
    line.files.start()
    answer = await line.play.request(host="a.example.com", origin=host_origin())
    assert answer.status == 200
    assert line.play.upstreams.last.request_line == b"GET / HTTP/1.1"
    assert line.files.describe() == {"file": str(line.file), "mappings": 2, "refused": []}


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        said("a") + "[[mapping]]\n",
        said("a").replace("10.0.0.5:8080", "10.0.0.5:1"),
        said("a").replace("http:", "ftp:"),
        said("a") + 'mode = "tcp"\nlisten_port = 80\n',
        said("a") + "access_restrictions.allowed_cidrs = ['10.0.0.0/8']\n",
        said("a") + said("b").replace("b.example.com", "A.example.com."),
    ],
)
async def test_bad_file_stops_the_start(line: Line, text: str) -> None:
    """Nothing of it is served, and the message leads to the line."""
    line.write(text)
    with pytest.raises(SettingsError, match=rf"mappings_file: {line.file}:\d+: "):
        line.files.start()
    assert line.hosts() == []


async def test_file_that_is_missing_stops_the_start(line: Line) -> None:
    """It was asked for."""
    with pytest.raises(SettingsError, match="cannot be read"):
        line.files.start()


async def test_edits_are_taken(line: Line) -> None:
    """What is new is served, what is gone is not, what is the same is left alone."""
    line.write(said("a", "b"))
    line.files.start()
    async with watching(line):
        kept = line.play.routing.table.hosts["b.example.com"]
        line.write(said("b", "c"))
        await line.serves("b", "c")
        assert line.play.routing.table.hosts["b.example.com"] is kept
        line.write("mapping = []\n")
        await line.serves()


async def test_bad_edit_changes_nothing(line: Line) -> None:
    """The last good set stays whole, also where only one of its mappings is bad; the next good one is taken."""
    line.write(said("a"))
    line.files.start()
    async with watching(line):
        kept = line.play.routing.table
        line.write(said("b") + said("c", target="http://10.0.0.5:1"))
        await line.refuses("mappings.toml:5: mapping[1]: a target has the port 1")
        assert line.play.routing.table is kept
        line.write("[[mapping")
        await line.refuses("not TOML")
        line.file.unlink()
        await line.refuses("cannot be read")
        assert line.play.routing.table is kept
        assert line.files.describe()["mappings"] == 1
        line.write(said("b"))
        await line.serves("b")
        assert line.files.refused == ()


async def test_refused_file_is_told_once(line: Line) -> None:
    """It is not read again until it is edited again."""
    line.write(said("a"))
    line.files.start()
    async with watching(line):
        line.write(said("b", target="http://10.0.0.5:1"))
        await line.refuses("port 1")
        asked = line.hooks.asked
        await asyncio.sleep(0.05)
        assert line.hooks.asked == asked


async def test_path_that_is_refused_is_named(line: Line) -> None:
    """One of several: its own line, not the first one's."""
    line.write(
        '[[mapping]]\nid = "a"\ndomain = "a.example.com"\n[[mapping.path]]\npath = "/"\ntarget = "http://10.0.0.5"\n'
        '[[mapping.path]]\npath = "/x"\ntarget = "ftp://10.0.0.5"\n'
    )
    with pytest.raises(SettingsError, match=r"toml:9: mapping\[0\]\.path\[1\]\.target: a target is not"):
        line.files.start()


async def test_management_has_the_host_that_both_want(line: Line) -> None:
    """Whoever came first; when management lets it go, the file's is served again."""
    line.write(said("app"))
    line.files.start()
    routing = line.play.routing
    theirs = mapping(route(domain="app.example.com"))
    [theirs_report, mine_report] = routing.apply("management", [theirs])
    assert (theirs_report.service, theirs_report.refused) == ("svc-1", "")
    assert (mine_report.service, "another service's" in mine_report.refused) == ("app", True)
    assert routing.table.hosts["app.example.com"].account == "acct-1"

    line.write(said("app", "b"))
    line.files.start()
    assert routing.table.hosts["app.example.com"].account == "acct-1"

    routing.apply("management", [])
    assert routing.table.hosts["app.example.com"].account == ""


async def test_each_source_reconciles_its_own(line: Line) -> None:
    """An empty snapshot of management's leaves the file's, and an empty file leaves management's."""
    line.write(said("b"))
    line.files.start()
    line.play.routing.apply("management", [mapping()])
    async with watching(line):
        line.play.routing.apply("management", [])
        assert line.hosts() == ["b.example.com"]
        line.play.routing.apply("management", [mapping()])
        line.write("mapping = []\n")
        await line.serves("app")


@pytest.mark.parametrize("emptied", ["", "\n \n", "# nothing\n", "\ufeff"])
async def test_an_emptied_file_ends_no_service(line: Line, emptied: str) -> None:
    """It looks like what an editor or a full disk left: the last good set stays, and the reason says how to mean it."""
    line.write(said("a"))
    line.files.start()
    async with watching(line):
        line.write(emptied)
        await line.refuses("write `mapping = []`")
        assert line.hosts() == ["a.example.com"]
        line.write("mapping = []\n")
        await line.serves()


async def test_a_byte_order_mark_is_no_part_of_the_file(line: Line) -> None:
    """Some editors write one."""
    line.write("\ufeff" + said("a"))
    line.files.start()
    assert line.hosts() == ["a.example.com"]
