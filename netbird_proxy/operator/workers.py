"""All workers as one proxy, for its operator: health, merged metrics, and answers of all admin sockets together."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import httpx

from netbird_proxy.operator.health import ALL_CHECKS
from netbird_proxy.process.settings import ProxySettings
from netbird_proxy.process.workers.division import parent_socket, worker_socket
from netbird_proxy.process.workers.parent import Parent

ANSWER_TIMEOUT = 3.0
"""Seconds for all workers' answers; a worker that hangs is left out."""
RELOAD_TIMEOUT = 30.0
_ALL_HAVE = ("services",)
"""Gauges that each worker has in full, so that their sum would count everything several times."""
_LEAST = ("management_connected",)
"""Gauges that hold for the proxy only if they hold for all workers."""

_NONE = object()

Answers = dict[int, Any]
"""Worker → its answer, in the order of their numbers; without workers that did not answer."""


class WorkersView:
    """Implements `health.Watched` from the workers' last reports, so that no probe waits for a worker."""

    def __init__(self, parent: Parent) -> None:
        self._parent = parent

    @property
    def unready(self) -> str:
        """Empty if any worker is ready: it serves all connections."""
        if self._parent.stopping:
            return "stopping"
        reasons = [seat.unready for seat in self._parent.seats]
        return "" if "" in reasons else reasons[0]

    def checks(self) -> dict[str, bool]:
        reports = [checks for seat in self._parent.seats if (checks := seat.report.get("checks"))]
        return {name: bool(reports) and all(checks[name] for checks in reports) for name in ALL_CHECKS}

    def numbers(self) -> tuple[dict[str, int], dict[str, int]]:
        seats = self._parent.seats
        counters = sum((seat.counters() for seat in seats), Counter(self._parent.counters))
        gauges = merged_gauges(seat.report.get("gauges", {}) for seat in seats)
        gauges |= {"ready": int(not self.unready), "workers": len(seats), "workers_ready": self._parent.ready}
        return dict(counters), gauges


def merged_gauges(gauges: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The gauges of several workers as those of one proxy; a worker without a report has none."""
    merged: dict[str, int] = {}
    for worker in gauges:
        for name, value in worker.items():
            before = merged.get(name)
            if before is None:
                merged[name] = value
            elif name in _ALL_HAVE:
                merged[name] = max(before, value)
            else:
                merged[name] = min(before, value) if name in _LEAST else before + value
    return merged


class AskedWorkers:
    """Requests to the admin sockets of all workers at once."""

    def __init__(self, settings: ProxySettings) -> None:
        self._sockets = {
            number: worker_socket(parent_socket(settings), number) for number in range(1, settings.process.workers + 1)
        }

    async def ask(
        self, path: str, query: Mapping[str, str] | None = None, *, method: str = "GET", timeout: float = ANSWER_TIMEOUT
    ) -> tuple[Answers, list[int]]:
        """Return the answers, and the numbers of workers that did not answer in time. A 404 is the answer None."""

        async def ask_worker(number: int) -> Any:
            transport = httpx.AsyncHTTPTransport(uds=str(self._sockets[number]))
            async with httpx.AsyncClient(transport=transport, timeout=timeout) as client:
                answer = await client.request(method, f"http://worker{path}", params=query)
                if answer.status_code == 404:
                    return None
                answer.raise_for_status()
                return answer.json()

        async def bounded(number: int) -> Any:
            try:
                async with asyncio.timeout(timeout):
                    return await ask_worker(number)
            except (httpx.HTTPError, OSError, TimeoutError, ValueError):
                return _NONE

        results = await asyncio.gather(*(bounded(number) for number in self._sockets))
        answers = {number: result for number, result in zip(self._sockets, results, strict=True) if result is not _NONE}
        return answers, [number for number in self._sockets if number not in answers]


def merged_rows(answers: Answers) -> list[dict[str, Any]]:
    """The rows of all workers, each once. A row that not all workers have names those that have it: `workers`."""
    rows: dict[str, tuple[dict[str, Any], list[int]]] = {}
    for number, answer in answers.items():
        for row in answer or ():
            rows.setdefault(json.dumps(row, sort_keys=True), (row, []))[1].append(number)
    return [row if len(numbers) == len(answers) else row | {"workers": numbers} for row, numbers in rows.values()]


def merged_story(answers: Answers) -> dict[str, Any]:
    """The first worker's dry run; `workers` has those of other workers that differ from it."""
    (first, story), *others = answers.items()
    different = {str(number): other for number, other in others if other != story}
    return {**story, "workers": {str(first): story, **different}} if different else dict(story)


def latest(answers: Answers, count: int = 20) -> list[dict[str, Any]]:
    """The last refusals of all workers, newest first."""
    stories = [story | {"worker": number} for number, answer in answers.items() for story in answer or ()]
    return sorted(stories, key=lambda story: str(story["at"]), reverse=True)[:count]


def merged_report(answers: Answers, silent: Sequence[int]) -> dict[str, list[str]]:
    """The result of a reload. A line that not all workers report names its worker."""
    merged: dict[str, list[str]] = {}
    for kind in ("done", "kept", "needs_restart"):
        lines: dict[str, list[int]] = {}
        for number, report in answers.items():
            for line in report[kind]:
                lines.setdefault(line, []).append(number)
        merged[kind] = [
            line if len(numbers) == len(answers) else f"worker {', '.join(map(str, numbers))}: {line}"
            for line, numbers in lines.items()
        ]
    merged["kept"] += [f"worker {number}: did not answer" for number in silent]
    return merged
