"""The second part of the story: settings change and processes fail while users are connected."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from examples.demo.calls import (
    ALICE_SEEN,
    BOB,
    STATUS,
    UPGRADE,
    WIKI,
    Step,
    StoryFailed,
    Stream,
    add_service,
    caller,
    change_service,
    direct,
    expect,
    identity_seen,
    open_outside,
    outside,
    overlay,
    until,
    within,
)
from examples.demo.stack import CLUSTER, Stack

BUSY, BOARD, GONE, MEMO, DIARY = (f"{name}.{CLUSTER}" for name in ("busy", "board", "gone", "memo", "diary"))
CHANGES_OF_BUSY = 100
CACHE = "[private_service]\ncache_seconds = 6\n"
"""A short lifetime of grants, so that the story need not wait for minutes while management is away."""

RESTART = 3.0
"""Maximum time in seconds from a proxy's start to its first answer. Time in which the proxy or management waited for a
core of a busy machine does not count."""


async def serving_inside(stack: Stack) -> None:
    """Wait until the last started proxy has its tunnel open. Its status at management may still be an old one."""
    await stack.proxies["proxy"].process.until_line(r"tunnel\.up")


async def members(stack: Stack, group: str, *peers: str) -> None:
    body = {"name": group, "peers": [stack.ids[f"peer {peer}"] for peer in peers]}
    await stack.api.put(f"/groups/{stack.ids[group]}", body)


async def bob_joins_and_leaves(stack: Stack) -> str:
    loop = asyncio.get_running_loop()
    async with caller(stack, "bob-laptop") as bob:
        expect("before", (await bob.get(WIKI)).status, 403)
        await members(stack, "engineering", "alice-laptop", "bob-laptop")

        async def served() -> bool:
            return (await bob.get(WIKI)).status == 200

        joined = await until("bob is served after joining", served, timeout=5)
        seen = identity_seen(await bob.get(WIKI))
        expect("identity", seen, [["x-netbird-groups", "All,engineering"], ["x-netbird-user", BOB]])
        page = await bob.open(WIKI, "/__drip__")
        expect("page", page.status, 200)
        async with asyncio.timeout(10):
            await page.reader.readuntil(b"drip")
        await members(stack, "engineering", "alice-laptop")
        left = loop.time()
        cut = asyncio.Task(page.until_cut())
        async with asyncio.timeout(10):

            async def refused() -> bool:
                return (await bob.get(WIKI)).status == 403

            refused_after = await until("bob is refused after leaving", refused, timeout=5)
            cut_after = await cut - left
        page.close()
        within("bob is refused", refused_after, 1)
        within("bob's page is cut", cut_after, 1)
    return f"served after {joined:.2f} s, refused after {refused_after:.2f} s, page cut after {cut_after:.2f} s"


# Atomic changes -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Load:
    """Clients that send one request after another and record the answers."""

    stack: Stack
    host: str
    answers: int = 0
    wrong: list[str] = field(default_factory=list)

    async def send_on_one_connection(self) -> None:
        """Send requests on one connection, which is opened again if it closes between two answers."""
        version = 0
        while True:
            stream: Stream | None = None
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.stack.proxies["proxy"].http)
                stream = Stream(reader, writer.transport)
                while True:
                    version = await self._ask(stream, version)
            finally:
                if stream is not None:
                    stream.close()

    async def _ask(self, stream: Stream, version: int) -> int:
        await stream.begin(self.host, "/")
        length = int(stream.head.lower().split("content-length:", 1)[1].split("\r\n", 1)[0])
        text = (await stream.reader.readexactly(length)).decode()
        self.answers += 1
        if stream.status != 200:
            self.wrong.append(f"{stream.status} {text[:80]!r}")
            return version
        name = text.split('"upstream": "', 1)[1].split('"', 1)[0]
        now = int(text.lower().split('"x-version",', 1)[1].split('"', 2)[1])
        if name != ("busy-a", "busy-b")[now % 2]:
            self.wrong.append(f"version {now} by {name}")
        if now < version:
            self.wrong.append(f"version {now} after {version}")
        return now


async def busy_changes_its_upstream(stack: Stack) -> str:
    for name in ("busy-a", "busy-b"):
        await stack.start_upstream(name)

    def target(version: int) -> dict[str, Any]:
        direct_target = direct("127.0.0.1", stack.upstreams[("busy-a", "busy-b")[version % 2]])
        # The two values together show whether a request was served before or after the change.
        return direct_target | {"options": direct_target["options"] | {"custom_headers": {"X-Version": str(version)}}}

    await add_service(stack, "busy", BUSY, target(0))
    await stack.until_service("busy", "active", proxy="proxy")
    load = Load(stack, BUSY)
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(load.send_on_one_connection()) for _ in range(4)]
        start = loop.time()
        for version in range(1, CHANGES_OF_BUSY + 1):
            await change_service(stack, "busy", BUSY, target(version))
        took = loop.time() - start
        served = load.answers

        async def settled() -> bool:
            return f'"{CHANGES_OF_BUSY}"' in (await outside(stack, BUSY)).text

        last = await until("the last change is served", settled, timeout=5)
        for task in tasks:
            task.cancel()
    expect("wrong answers", load.wrong[:5], [])
    return f"{CHANGES_OF_BUSY} changes, {served / took:.0f} requests a second, all 200; the last after {last:.2f} s"


async def board_turns_private(stack: Stack) -> str:
    """A public service becomes private: an outsider's websocket is cut, alice's stays open."""
    target = direct("127.0.0.1", stack.upstreams["status"])
    await add_service(stack, "board", BOARD, target)
    await stack.until_service("board", "active", proxy="proxy")
    loop = asyncio.get_running_loop()
    async with caller(stack, "alice-laptop") as alice:
        hers = await alice.open(BOARD, "/__echo__", *UPGRADE)
        outsiders = await open_outside(stack, BOARD, "/__echo__", *UPGRADE)
        for who, stream in (("alice", hers), ("an outsider", outsiders)):
            expect(f"{who} is switched", stream.status, 101)
            expect(f"{who} is echoed", await stream.echo(b"hello"), b"hello")
        await change_service(stack, "board", BOARD, target, groups=["engineering"])
        changed = loop.time()
        async with asyncio.timeout(10):
            cut_after = await outsiders.until_cut() - changed
        outsiders.close()
        within("the outsider's websocket is cut", cut_after, 1)
        expect("alice's websocket", await hers.echo(b"still here"), b"still here")
        hers.close()
        expect("from outside", (await outside(stack, BOARD)).status_code, 403)
    return f"the outsider's is cut after {cut_after:.2f} s, alice's goes on"


# Management fails -----------------------------------------------------------------------------------------------------


async def without_management(stack: Stack, how: str, unasked: str) -> str:
    """Cached callers and public routes are still served; a caller without a grant gets 503 with `Retry-After`.

    `unasked` is a host that bob may use and has not requested yet.
    """
    loop = asyncio.get_running_loop()
    async with caller(stack, "alice-laptop") as alice, caller(stack, "bob-laptop") as bob:
        expect("alice before", (await alice.get(WIKI)).status, 200)
        changed_at = loop.time()
        if how == "frozen":
            stack.management.send(signal.SIGSTOP)
        else:
            await stack.management.stop(sign=signal.SIGKILL)
        try:
            expect("alice, who is known", identity_seen(await alice.get(WIKI)), ALICE_SEEN)
            expect("public", (await outside(stack, STATUS)).status_code, 200)
            start = loop.time()
            refused = await bob.get(unasked)
            took = loop.time() - start
            expect("bob, who has to be asked about", refused.status, 503)
            within("his 503 came", took, 2.5)
            if not refused.headers.get("retry-after", "").isdecimal():
                raise StoryFailed(f"no Retry-After: {refused.headers}")

            async def forgotten() -> bool:
                return (await alice.get(WIKI)).status == 503

            if how == "frozen":
                await until("alice's entry ends", forgotten, timeout=10 - (loop.time() - changed_at))
                expect("public, still", (await outside(stack, STATUS)).status_code, 200)
        finally:
            if how == "frozen":
                stack.management.send(signal.SIGCONT)
            else:
                await stack.restart_management()

        async def known_again() -> bool:
            return (await bob.get(unasked)).status == 200

        back = await until("bob is served again", known_again, timeout=15)
        expect("alice again", (await alice.get(WIKI)).status, 200)
    return f"bob's 503 after {took:.2f} s with Retry-After: {refused.headers['retry-after']}; served {back:.2f} s after"


async def management_is_frozen(stack: Stack) -> str:
    # Grants of this proxy expire after seconds, so that the story need not wait for minutes.
    expect("exit code", await stack.proxies["proxy"].process.stop(), 0)
    await stack.start_proxy("proxy", extra=CACHE)
    await serving_inside(stack)
    for name, host in (("memo", MEMO), ("diary", DIARY)):
        await add_service(stack, name, host, direct("127.0.0.1", stack.upstreams["lobby"]), groups=["All"])
    for name in ("memo", "diary"):
        await stack.until_service(name, "active", proxy="proxy")
    return await without_management(stack, "frozen", MEMO)


async def management_is_killed(stack: Stack) -> str:
    return await without_management(stack, "killed", DIARY)


async def deleted_meanwhile(stack: Stack) -> str:
    """A paused proxy misses a deletion while management is killed and restarted, and applies it afterwards."""

    async def online() -> bool:
        return bool(await stack.online_clusters())

    await until("the proxy is back", online, timeout=15)
    await add_service(stack, "gone", GONE, direct("127.0.0.1", stack.upstreams["status"]))
    await stack.until_service("gone", "active", proxy="proxy")
    proxy = stack.proxies["proxy"].process
    await stack.management.stop(sign=signal.SIGKILL)
    proxy.send(signal.SIGSTOP)
    try:
        await stack.restart_management()
        await stack.api.delete(f"/reverse-proxies/services/{stack.ids['gone']}")
        first_line = len(proxy.lines)
    finally:
        proxy.send(signal.SIGCONT)
    await proxy.until_line(r"management\.stream\.connected", start=first_line)

    async def gone() -> bool:
        return (await outside(stack, GONE)).status_code == 404

    took = await until("the deleted service is gone", gone, timeout=5)
    within("gone after the reconnect", took, 1)
    expect("another is still there", (await outside(stack, STATUS)).status_code, 200)
    return f"gone {took:.2f} s after the reconnect"


# The proxy fails ------------------------------------------------------------------------------------------------------


async def proxy_is_killed(stack: Stack) -> str:
    """Both callers send requests when the killed proxy restarts, alice in her old session right after her last page."""
    loop = asyncio.get_running_loop()
    async with caller(stack, "alice-laptop") as alice:
        expect("before", (await alice.get(WIKI)).status, 200)
        await stack.proxies["proxy"].process.stop(sign=signal.SIGKILL)
        before = stack.management.kept_waiting()
        start = loop.time()
        await stack.start_proxy("proxy", wait=False)
        process = stack.proxies["proxy"].process

        def waited() -> float:
            """Return the time without a core of the proxy and management, of which one runs at a time."""
            return process.kept_waiting() + stack.management.kept_waiting() - before

        async def public() -> bool:
            try:
                return (await outside(stack, STATUS)).status_code == 200
            except httpx.ConnectError:
                return False

        async def private() -> bool:
            with suppress(OSError):
                return (await alice.get(WIKI, timeout=30)).status == 200
            return False

        async def status_again() -> tuple[float, float]:
            await until("status is served again", public, timeout=60)
            return loop.time() - start, waited()

        async def wiki_again() -> tuple[float, float]:
            # Sequential attempts without a time limit: the measurement is when the session works, and not how the
            # timers of one connection behave.
            async with asyncio.timeout(60), asyncio.TaskGroup() as attempts:
                asking: set[asyncio.Task[bool]] = set()
                while True:
                    asking.add(attempts.create_task(private()))
                    done, asking = await asyncio.wait(asking, timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
                    if any(attempt.result() for attempt in done):
                        for attempt in asking:
                            attempt.cancel()
                        return loop.time() - start, waited()
                    if done:
                        await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as group:
            status, wiki = group.create_task(status_again()), group.create_task(wiki_again())
    shown = []
    for who, (seconds, without) in (("status", status.result()), ("alice", wiki.result())):
        within(f"{who} after the start, {without:.2f} s without a core not counted", seconds - without, RESTART)
        shown.append(f"{who} after {seconds:.2f} s" + (f" ({without:.2f} s without a core)" if without > 0.1 else ""))
    return f"{', '.join(shown)}, processes started"


async def proxy_stops_during_a_download(stack: Stack) -> str:
    page = await open_outside(stack, STATUS, "/__slow__")
    expect("page", page.status, 200)
    process = stack.proxies["proxy"].process
    first_line = len(process.lines)
    stopping = asyncio.Task(process.stop())
    await process.until_line(r"proxy\.stopping", start=first_line)

    async def closed() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", stack.proxies["proxy"].http)
        except OSError:
            return True
        writer.close()
        return False

    await until("new connections are refused", closed, timeout=2)
    async with asyncio.timeout(20):
        length = int(page.head.lower().split("content-length:", 1)[1].split("\r\n", 1)[0])
        body = await page.reader.readexactly(length)
        page.close()
        code = await stopping
    expect("exit code", code, 0)
    await stack.start_proxy("proxy")
    await serving_inside(stack)
    answer = await overlay(stack, "alice-laptop", f"http://{WIKI}/")
    expect("identity", identity_seen(answer), ALICE_SEEN)
    return f"{len(body)} bytes came whole, new connections were refused, exit code {code}"


CHANGES = (
    Step("bob joins engineering and is served; he leaves, is refused, and his open page is cut", bob_joins_and_leaves),
    Step("a service's upstream changes a hundred times under load: nobody notices", busy_changes_its_upstream),
    Step("a public service turns private under open websockets", board_turns_private),
    Step("management is frozen, and thaws", management_is_frozen),
    Step("management is killed, and comes back", management_is_killed),
    Step("what was deleted meanwhile is gone", deleted_meanwhile),
    Step("the proxy is killed hard, and comes back", proxy_is_killed),
    Step("the proxy is told to stop during a download", proxy_stops_during_a_download),
)
