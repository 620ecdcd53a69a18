"""What management is told of services: all of it, the latest word, some at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from netbird_proxy.api.errors import ManagementRefused, ManagementUnavailable
from netbird_proxy.api.model import AccountId, ServiceId
from netbird_proxy.sources.management.statuses import AT_ONCE, Status, StatusReports
from netbird_proxy.testing.fakes import FakeManagement
from netbird_wire.proxy_service_pb2 import (
    PROXY_STATUS_ACTIVE,
    PROXY_STATUS_ERROR,
    SendStatusUpdateRequest,
    SendStatusUpdateResponse,
)

SECONDS = 10


def word(name: str, *, error: str = "") -> Status:
    return Status(ServiceId(name), AccountId("acme"), PROXY_STATUS_ERROR if error else PROXY_STATUS_ACTIVE, error=error)


class Heard:
    """A management whose answers wait until they are let go."""

    def __init__(self) -> None:
        self.requests: list[SendStatusUpdateRequest] = []
        self.some = asyncio.Condition()
        self.open = asyncio.Event()
        self.failures: list[Exception] = []
        self.management = FakeManagement({"SendStatusUpdate": self.answer})

    async def answer(self, request: SendStatusUpdateRequest) -> SendStatusUpdateResponse:
        async with self.some:
            self.requests.append(request)
            self.some.notify_all()
        await self.open.wait()
        if self.failures:
            raise self.failures.pop()
        return SendStatusUpdateResponse()

    async def has(self, count: int) -> list[str]:
        async with asyncio.timeout(SECONDS), self.some:
            await self.some.wait_for(lambda: len(self.requests) >= count)
        return [request.service_id for request in self.requests]


@asynccontextmanager
async def running(heard: Heard) -> AsyncIterator[StatusReports]:
    reports = StatusReports(heard.management)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(reports.run())
        yield reports
        task.cancel()


async def test_many_words_are_on_their_way_together() -> None:
    """After a snapshot there is one about each service: none waits for another's answer, and not all go at once."""
    heard = Heard()
    async with running(heard) as reports:
        for number in range(AT_ONCE + 5):
            reports.report(word(f"s{number}"))
        assert len(await heard.has(AT_ONCE)) == AT_ONCE
        heard.open.set()
        assert await heard.has(AT_ONCE + 5) == [f"s{number}" for number in range(AT_ONCE + 5)]


async def test_nothing_is_told_while_mappings_are_put_in_force() -> None:
    """What is in force comes first; the words are sent as soon as it is, also where that failed."""
    heard = Heard()
    heard.open.set()
    async with running(heard) as reports:
        with suppress(LookupError), reports.paused():
            reports.report(word("app"))
            for _ in range(20):
                await asyncio.sleep(0)
            assert heard.requests == []
            raise LookupError
        assert await heard.has(1) == ["app"]


async def test_a_newer_word_goes_after_the_older_one_was_heard() -> None:
    """Two words about one service could overtake each other: the second waits, and the last one is management's."""
    heard = Heard()
    async with running(heard) as reports:
        reports.report(word("app"))
        await heard.has(1)
        reports.report(word("app", error="first"))
        reports.report(word("app", error="second"))
        heard.open.set()
        assert await heard.has(2) == ["app", "app"]
        assert heard.requests[1].error_message == "second"


async def test_what_could_not_be_told_is_told_again_and_what_is_refused_is_not() -> None:
    """Management may be away; what it does not want to know is dropped."""
    heard = Heard()
    heard.failures = [ManagementRefused("no such service"), ManagementUnavailable("away")]
    heard.open.set()
    async with running(heard) as reports:
        reports.report(word("again"))
        reports.report(word("gone"))
        assert await heard.has(3) == ["again", "gone", "again"]
        reports.report(word("later"))
        assert await heard.has(4) == ["again", "gone", "again", "later"]
