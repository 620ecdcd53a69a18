"""One schedule: people ask, things change, lines fail; then everything heals, and what upstreams saw is judged.

Truth is kept as a list of moments at which what is allowed changed. A change holds at the proxy from its beginning at
the earliest, and what it took away is gone a stated time after its end at the latest; in between either may be true.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from netbird_management.model.accounts import Role
from netbird_management.operations.users import update_user
from netbird_proxy.api.model import ExchangeId
from netbird_proxy.testing.faults import Fault, play, schedule
from tests.schedules.house import (
    ACCESS_LOG,
    ALICE,
    BOB,
    CACHE,
    CLUSTER,
    COOKIE,
    LOGS,
    QUERY,
    REVALIDATE,
    RPC,
    House,
)

LENGTH = 1.0
"""Seconds of a schedule before it heals."""
SLACK = 2.0
"""For a machine that is busy with other things; every bound below contains it."""
LATE = CACHE + RPC + SLACK
"""After which nobody is served who may not be, whatever became of the line to management."""
CUT = REVALIDATE + LATE
"""After which nothing is open of who may not be served."""
BACK = 15.0
"""After healing, by when everything is as it should be."""
LINES = [("management", "grpc"), ("people", "udp"), ("site-0", "tcp"), ("site-1", "tcp"), ("store", "store")]
FORGED = (
    "X-NetBird-User: mallory",
    "x_netbird_user: mallory",
    "X.NetBird.Groups: admins",
    f"Cookie: nb_session={COOKIE}",
)
EMAIL = {"alice": ALICE, "bob": BOB}


@dataclass(slots=True)
class Asked:
    """One request, and what came of it. `status` is 0 where nothing did."""

    id: str
    who: str
    service: str
    target: str
    start: float
    end: float = 0.0
    status: int = 0
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Truth:
    """What is allowed: engineering's members, blocked people, public services."""

    members: frozenset[str]
    blocked: bool
    board_private: bool

    def answers(self, who: str) -> bool:
        """A blocked person's peer is in nobody's map: the proxy's overlay does not answer it, public pages included."""
        return not (who == "bob" and self.blocked)

    def admits(self, who: str, service: str) -> bool:
        if not self.answers(who):
            return False
        if service == "site":
            return True
        if service == "closed":
            return False
        if service == "board" and not self.board_private:
            return True
        return who != "outside" and who in self.members


@dataclass(slots=True)
class Moment:
    """A change of what is true: under way from `begin`, done at `end`."""

    begin: float
    end: float
    truth: Truth


@dataclass(slots=True)
class Verdict:
    """What went wrong, if anything, and some figures."""

    seed: int
    faults: list[Fault]
    wrong: list[str] = field(default_factory=list)
    asked: int = 0
    served: int = 0
    refused: int = 0
    back: float = 0.0
    cuts: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        faults = "; ".join(map(str, self.faults)) or "none"
        return f"seed {self.seed} (faults: {faults}):\n  " + "\n  ".join(self.wrong)


async def run(house: House, seed: int) -> Verdict:
    """Play one schedule in a house, which is as good afterwards as before."""
    return await Schedule(house, seed).run()


class Schedule:
    def __init__(self, house: House, seed: int) -> None:
        self._house = house
        self._dice = random.Random(seed)
        self._faults = schedule(seed, LINES, length=LENGTH)
        self._asked: dict[str, Asked] = {}
        self._moments: list[Moment] = []
        self._seed = seed
        self._clock = asyncio.get_running_loop().time
        self._version = 0
        self._streams: dict[str, tuple[str, float]] = {}
        self._verdict = Verdict(seed, self._faults)
        self._count = 0
        self._over = False
        self._garbled = {fault.line for fault in self._faults if fault.kind == "garble"}

    def _wrong(self, promise: int, what: str) -> None:
        self._verdict.wrong.append(f"promise {promise}: {what}")

    # Playing

    async def run(self) -> Verdict:
        house = self._house
        self._begin()
        start = self._clock()
        healed = 0.0
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._ask_forever(who)) for who in ("alice", "bob", "outside", "outside")]
            tasks += [group.create_task(self._stream(who)) for who in ("alice", "bob", "outside")]
            changing = group.create_task(self._change_forever())
            await play(self._faults, house.lines)
            await asyncio.sleep(max(0.0, start + LENGTH - self._clock()))
            # One that is under way is not given up: it would be committed without us.
            self._over = True
            await changing
            healed = self._clock()
            await self._settle(healed)
            await self._cut_is_done()
            for task in tasks:
                task.cancel()
        self._judge(healed)
        self._verdict.asked = len(self._asked)
        self._verdict.served = sum(one.status == 200 for one in self._asked.values())
        self._verdict.refused = sum(one.status >= 400 for one in self._asked.values())
        return self._verdict

    def _begin(self) -> None:
        self._house.seen.clear()
        for upstream in self._house.upstreams.values():
            upstream.dripping.clear()
        start = self._clock()
        self._moments = [Moment(start - 60, start - 60, self._truth())]
        self._version = self._site_version()

    def _forget_moments(self) -> None:
        """Of long ago, with the pages that ended then."""
        since = self._clock() - 4 * CUT
        while len(self._moments) > 1 and self._moments[1].end < since:
            del self._moments[0]
        for upstream in self._house.upstreams.values():
            for target, ended in list(upstream.dripping.items()):
                if ended is not None and ended < since:
                    del upstream.dripping[target]
                    self._streams.pop(target, None)

    def _truth(self) -> Truth:
        snapshot = self._house.snapshot
        group = snapshot.groups[self._house.engineering.id]
        members = frozenset(name for name, peer in self._house.laptops.items() if peer.id in group.peers)
        board = snapshot.services[self._house.services["board"].id]
        return Truth(members, snapshot.users[self._house.bob.id].blocked, board.private)

    def _site_version(self) -> int:
        service = self._house.snapshot.services[self._house.services["site"].id]
        return int(dict(service.targets[0].options.custom_headers)["X-Version"])

    async def _change_forever(self) -> None:
        while not self._over:
            await self._change()
            await asyncio.sleep(self._dice.uniform(0.02, 0.3))

    async def _change(self) -> None:
        house, dice = self._house, self._dice
        begin, truth = self._clock(), self._truth()
        try:
            match dice.choice(("members", "members", "board", "site", "site", "block")):
                case "members":
                    wanted = [name for name in ("alice", "bob") if (name in truth.members) != (dice.random() < 0.6)]
                    await house.set_members(*wanted)
                case "board":
                    groups = (house.engineering.id,)
                    if truth.board_private:
                        await house.change("board", private=False, access_groups=())
                    else:
                        await house.change("board", private=True, access_groups=groups)
                case "site":
                    version = self._version + 1
                    target = house.target(f"site-{version % 2}", version=version)
                    await house.change("site", targets=(target,))
                case "block":
                    await update_user(
                        house.management.state,
                        house.account,
                        house.bob.id,
                        role=Role.USER,
                        auto_groups=[],
                        blocked=not truth.blocked,
                    )
        except Exception as exc:
            if "disk is full" not in str(exc) and "locked" not in str(exc):
                raise
        finally:
            now = self._truth()
            if now != truth:
                self._moments.append(Moment(begin, self._clock(), now))
            self._version = self._site_version()

    async def _ask_forever(self, who: str) -> None:
        while True:
            service = self._dice.choice(("wiki", "board", "site", "site", "closed"))
            with suppress(OSError, EOFError, TimeoutError, Exception):
                await self._ask(who, service)
            await asyncio.sleep(self._dice.uniform(0.005, 0.05))

    async def _ask(self, who: str, service: str, *, timeout: float = 4.0) -> Asked:
        self._count += 1
        id_ = f"{self._seed}-{self._count}"
        target = f"/r/{id_}/%41b~%7E;p?q={QUERY}"
        one = self._asked[id_] = Asked(id_, who, service, target, self._clock())
        transport: Any = None
        try:
            async with asyncio.timeout(timeout):
                reader, transport = await self._connect(who)
                head = f"GET {target} HTTP/1.1\r\nHost: {service}.{CLUSTER}\r\nConnection: close\r\n"
                transport.write((head + "".join(f"{line}\r\n" for line in FORGED) + "\r\n").encode())
                answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                one.status = int(answer.split(" ", 2)[1])
                length = re.search(r"(?i)content-length: (\d+)", answer)
                one.body = await (reader.readexactly(int(length[1])) if length else reader.read())
        finally:
            one.end = self._clock()
            if transport is not None:
                transport.close()
        return one

    async def _connect(self, who: str) -> tuple[asyncio.StreamReader, Any]:
        return await (self._house.outside() if who == "outside" else self._house.people[who].open())

    async def _stream(self, who: str) -> None:
        """An endless page, opened again whenever it ends."""
        service = "board" if who == "outside" else "wiki"
        while True:
            self._count += 1
            target = f"/drip/{self._seed}-{self._count}"
            self._streams[target] = (who, self._clock())
            transport: Any = None
            try:
                async with asyncio.timeout(3.0):
                    reader, transport = await self._connect(who)
                    transport.write(f"GET {target} HTTP/1.1\r\nHost: {service}.{CLUSTER}\r\n\r\n".encode())
                    ok = (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                if ok:
                    while await reader.read(4096):
                        pass
            except Exception:  # whatever ended it, it is tried again
                pass
            finally:
                if transport is not None:
                    transport.close()
            await asyncio.sleep(0.1)

    async def _settle(self, healed: float) -> None:
        """Wait until everybody gets what they may have, and no more; promise 7 (nothing is lost) bounds the wait."""
        truth = self._truth()
        expected = {
            (who, service): 200 if truth.admits(who, service) else None
            for who in ("alice", "bob", "outside")
            if truth.answers(who)
            for service in ("wiki", "board", "site")
        }
        missing: dict[tuple[str, str], Any] = {}
        try:
            async with asyncio.timeout(BACK):
                if not truth.answers("bob"):
                    missing["bob", "any"] = "in the proxy's map"
                    while self._house.in_map("bob"):  # noqa: ASYNC110 - nothing reports it
                        await asyncio.sleep(0.02)
                    missing.clear()
                for (who, service), status in expected.items():
                    while True:
                        asked: Asked | None = None
                        with suppress(OSError, EOFError, TimeoutError, Exception):
                            asked = await self._ask(who, service, timeout=2.0)
                        if asked is not None and self._is_right(asked, status):
                            break
                        missing[who, service] = asked and (asked.status, asked.body[:120])
                        await asyncio.sleep(0.02)
                    missing.pop((who, service), None)
        except TimeoutError:
            self._wrong(7, f"not back {BACK:g} s after healing: {missing}")
        self._verdict.back = self._clock() - healed

    def _is_right(self, asked: Asked, status: int | None) -> bool:
        if status is None:
            return asked.status in (403, 404)
        if asked.service == "site" and asked.status == 200:
            return json.loads(asked.body)["version"] == [str(self._version)]
        return asked.status == status

    async def _cut_is_done(self) -> None:
        """Wait for what has to be cut; `_judge` says what was too late."""
        truth = self._truth()
        with suppress(TimeoutError):
            async with asyncio.timeout(CUT + 1):
                while any(  # noqa: ASYNC110 - nothing tells of it
                    ended is None and target in self._streams and not self._may_drip(truth, upstream.name, target)
                    for upstream in self._house.upstreams.values()
                    for target, ended in upstream.dripping.items()
                ):
                    await asyncio.sleep(0.02)

    def _may_drip(self, truth: Truth, service: str, target: str) -> bool:
        return truth.admits(self._streams[target][0], service)

    # Judging

    def _allowed(self, who: str, service: str, start: float, end: float, late: float) -> bool:
        """Whether at some time in which this request may have been judged it was allowed."""
        for index, moment in enumerate(self._moments):
            over = self._moments[index + 1].end + late if index + 1 < len(self._moments) else float("inf")
            if moment.begin <= end and start <= over and moment.truth.admits(who, service):
                return True
        return False

    def _late(self, service: str, healed: float, end: float) -> float:
        """How long what was taken away may last."""
        told = any(fault.line in ("management", "store") for fault in self._faults)
        if service in ("board", "site") and told:
            # Management reports a service's privacy and a peer's place in the map, and nobody asks about either for a
            # public service: until the line is there again, the last report holds.
            return max(0.0, healed - end) + BACK
        return LATE

    def _judge(self, healed: float) -> None:
        self._judge_upstreams(healed)
        self._judge_answers()
        self._judge_streams(healed)
        with (self._house.directory / ACCESS_LOG).open() as log:
            log.seek(self._house.log_read)
            lines = log.read()
            self._house.log_read = log.tell()
        LOGS.found += [line[:200] for line in lines.splitlines() if any(secret in line for secret in LOGS.forbidden)]
        if LOGS.found:
            self._wrong(5, f"in the log: {LOGS.found[:3]}")
            LOGS.found.clear()

    def _judge_upstreams(self, healed: float) -> None:
        for seen in self._house.seen:
            if not seen.target.startswith("/r/") or seen.upstream in self._garbled:
                continue  # what is between us and an upstream may say anything
            one = self._asked.get(seen.target.split("/")[2])
            if one is None:
                if not seen.target.startswith(f"/r/{self._seed}-"):
                    continue  # of the schedule before, on its way when that ended
                self._wrong(4, f"{seen.upstream} saw {seen.target}, which nobody asked")
                continue
            end = one.end or self._clock()
            if seen.target != one.target:
                self._wrong(4, f"{one.target} arrived as {seen.target}")
            if seen.upstream.split("-")[0] != one.service:
                self._wrong(7, f"{one.service} of {one.who} was served by {seen.upstream}")
            if not self._allowed(one.who, one.service, one.start, end, self._late(one.service, healed, one.start)):
                number = 1 if one.who == "outside" else 6 if one.service == "closed" else 3
                self._wrong(number, f"{one.service} saw {one.who} at {one.start:.2f}-{end:.2f}; {self._moments}")
            users, groups = seen.values("x-netbird-user"), seen.values("x-netbird-groups")
            known = one.who != "outside" and one.service == "wiki"
            if users not in ([], [EMAIL.get(one.who)]) or (known and not users) or "admins" in str(groups):
                self._wrong(2, f"{one.service} was told of {one.who}: {users} {groups}")
            if one.who == "outside" and (users or groups):
                self._wrong(2, f"{one.service} was told {users} {groups} of an outsider")
            said = str(seen.headers)
            if any(secret in said for secret in self._house.secrets):
                self._wrong(5, f"a secret reached {seen.upstream}: {said}")
            if seen.upstream.startswith("site"):
                versions = seen.values("x-version")
                if len(versions) != 1 or int(versions[0]) % 2 != int(seen.upstream[-1]):
                    self._wrong(7, f"{seen.upstream} got version {versions}")

    def _judge_answers(self) -> None:
        upstream_faults = any(fault.line.startswith("site") for fault in self._faults)
        for one in self._asked.values():
            if one.status == 200 or not one.status or (one.service == "site" and self._garbled & {"site-0", "site-1"}):
                continue
            if one.service == "site" and one.who == "outside" and not upstream_faults:
                self._wrong(7, f"site answered {one.status}: {one.body[:200]!r}")
            text = one.body.decode("latin-1")
            found = re.search(r"\b[0-9a-f]{32}\b", text)
            if found is None or self._house.decisions.find(ExchangeId(found[0])) is None:
                self._wrong(9, f"{one.service} {one.status} cannot be explained: {text[:200]!r}")
            for told in ("engineering", "127.0.0.", "100.", ALICE, BOB, QUERY, *self._house.secrets):
                if told in text:
                    self._wrong(9 if told not in self._house.secrets else 5, f"{one.who} was told {told!r}: {text!r}")

    def _judge_streams(self, healed: float) -> None:
        now = self._clock()
        for upstream in self._house.upstreams.values():
            for target, ended in upstream.dripping.items():
                if target not in self._streams:
                    continue
                who, opened = self._streams[target]
                until = ended or now
                for index, moment in enumerate(self._moments):
                    over = self._moments[index + 1].begin if index + 1 < len(self._moments) else now
                    if moment.truth.admits(who, upstream.name) or over < opened:
                        continue
                    bound = CUT if upstream.name != "board" else CUT + self._late("board", healed, moment.end)
                    open_ = min(until, over) - max(moment.end, opened)
                    if open_ > bound:
                        self._wrong(8, f"{upstream.name}: {who}'s page was open {open_:.2f} s after it had to end")
                    elif moment.end > opened and ended is not None and moment.end <= ended < over:
                        self._verdict.cuts.append(ended - moment.end)
