"""What the mappings file says, put in force: as a whole or not at all, now and whenever it was edited."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import structlog

from netbird_proxy.api.errors import SettingsError
from netbird_proxy.api.model import ServiceMapping
from netbird_proxy.routing.apply import YIELDING, Routing
from netbird_proxy.sources.decode.codec import Codec
from netbird_proxy.sources.file.read import FileMapping, MappingsRefused, read_mappings

log = structlog.get_logger("netbird_proxy.mappings")

SOURCE = YIELDING
INTERVAL = 0.5
"""Seconds between two looks at the file. An edit is taken once it has stood still from one look to the next."""

Stamp = tuple[int, int, int]


def decode_mappings(file: Path, codec: Codec, *, edited: bool = False) -> list[tuple[FileMapping, ServiceMapping]]:
    """The file's mappings in the model, every one of which this proxy understands.

    Raises:
        MappingsRefused: with every problem, each with its line.
    """
    read = read_mappings(file, edited=edited)
    problems: list[str] = []
    found: list[tuple[FileMapping, ServiceMapping]] = []
    hosts: dict[str, FileMapping] = {}
    for one in read:
        mapping = codec.decode(one.wire, source=SOURCE).mapping
        if mapping.refused:
            problems.append(_located(one, mapping.refused, codec))
            continue
        if mapping.host and hosts.setdefault(mapping.host, one) is not one:
            problems.append(
                one.problem(f"domain {mapping.domain} is mapping {hosts[mapping.host].wire.id!r}'s already")
            )
        found.append((one, mapping))
    if problems:
        raise MappingsRefused(problems)
    return found


def _located(one: FileMapping, reason: str, codec: Codec) -> str:
    """The refusal with the line of the path that it is about, if it is about one of several."""
    paths = range(len(one.wire.path))
    blamed = [path for path in paths if codec.decode(one.part(path), source=SOURCE).mapping.refused == reason]
    return one.problem(reason, path=blamed[0] if 0 < len(blamed) < len(paths) else None)


class FileMappings:
    """Owns the mappings of one file, and no others.

    Attributes:
        refused: why the file as it stands now is not in force; empty when it is.
    """

    def __init__(self, file: Path, codec: Codec, routing: Routing, *, interval: float = INTERVAL) -> None:
        self._file = file
        self._codec = codec
        self._routing = routing
        self._interval = interval
        self._taken: Stamp | None = None
        self.refused: tuple[str, ...] = ()

    def start(self) -> None:
        """Put the file in force for the first time. SettingsError, and nothing is served, where it cannot be."""
        self._taken = self._stamp()
        try:
            self._apply(decode_mappings(self._file, self._codec))
        except MappingsRefused as refused:
            raise SettingsError("\n".join(f"mappings_file: {problem}" for problem in refused.problems)) from refused
        self._routing.in_force(SOURCE)

    async def run(self) -> None:
        """Look for edits until cancelled. A bad one changes nothing: the last good set stays in force."""
        seen = self._taken
        while True:
            await asyncio.sleep(self._interval)
            before, seen = seen, await asyncio.to_thread(self._stamp)
            if seen == self._taken or seen != before:
                continue
            self._taken = seen
            try:
                self._apply(await asyncio.to_thread(decode_mappings, self._file, self._codec, edited=True))
            except MappingsRefused as refused:
                self.refused = refused.problems
                log.error(
                    "mappings_file.refused", file=str(self._file), problems=list(refused.problems), kept=self._count()
                )

    def describe(self) -> dict[str, Any]:
        """For the operator."""
        return {"file": str(self._file), "mappings": self._count(), "refused": list(self.refused)}

    def _apply(self, found: list[tuple[FileMapping, ServiceMapping]]) -> None:
        problems = [one.problem(reason) for one, mapping in found if (reason := self._routing.judge(mapping))]
        if problems:
            raise MappingsRefused(problems)
        reports = self._routing.apply(SOURCE, [mapping for _, mapping in found])
        self.refused = ()
        taken = {report.service: report.refused for report in reports if not report.ok}
        log.info(
            "mappings_file.applied",
            file=str(self._file),
            total=self._count(),
            changed=sum(report.changed for report in reports),
            refused=taken or None,
        )

    def _count(self) -> int:
        return sum(served.mapping.source == SOURCE for served in self._routing)

    def _stamp(self) -> Stamp | None:
        try:
            found = os.stat(self._file)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
