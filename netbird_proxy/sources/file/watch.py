"""Applies the mappings file at the start and after each edit, as a whole or not at all."""

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
"""Seconds between two checks of the file. An edit is applied once the file is the same at two checks."""

Stamp = tuple[int, int, int]


def decode_mappings(file: Path, codec: Codec, *, edited: bool = False) -> list[tuple[FileMapping, ServiceMapping]]:
    """Read and decode the file's mappings.

    Raises:
        MappingsRefused: with every problem and its line.
    """
    read = read_mappings(file, edited=edited)
    problems: list[str] = []
    decoded: list[tuple[FileMapping, ServiceMapping]] = []
    hosts: dict[str, FileMapping] = {}
    for item in read:
        mapping = codec.decode(item.wire, source=SOURCE).mapping
        if mapping.refused:
            problems.append(_located(item, mapping.refused, codec))
            continue
        if mapping.host and hosts.setdefault(mapping.host, item) is not item:
            owner = hosts[mapping.host].wire.id
            problems.append(item.problem(f"domain {mapping.domain} is already the domain of mapping {owner!r}"))
        decoded.append((item, mapping))
    if problems:
        raise MappingsRefused(problems)
    return decoded


def _located(item: FileMapping, reason: str, codec: Codec) -> str:
    """Format a refusal with the line of the path that it is about, if that is one of several."""
    paths = range(len(item.wire.path))
    blamed = [path for path in paths if codec.decode(item.part(path), source=SOURCE).mapping.refused == reason]
    return item.problem(reason, path=blamed[0] if 0 < len(blamed) < len(paths) else None)


class FileMappings:
    """Owns the mappings of one file.

    Attributes:
        refused: problems for which the current file is not in force; empty if it is in force.
    """

    def __init__(self, file: Path, codec: Codec, routing: Routing, *, interval: float = INTERVAL) -> None:
        self._file = file
        self._codec = codec
        self._routing = routing
        self._interval = interval
        self._taken: Stamp | None = None
        self.refused: tuple[str, ...] = ()

    def start(self) -> None:
        """Apply the file for the first time. Raises SettingsError, and applies nothing, if the file cannot be used."""
        self._taken = self._stamp()
        try:
            self._apply(decode_mappings(self._file, self._codec))
        except MappingsRefused as refused:
            raise SettingsError("\n".join(f"mappings_file: {problem}" for problem in refused.problems)) from refused
        self._routing.in_force(SOURCE)

    async def run(self) -> None:
        """Apply edits until cancelled. A bad edit changes nothing: the last good mappings stay in force."""
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
        """The file's state, as the admin socket shows it."""
        return {"file": str(self._file), "mappings": self._count(), "refused": list(self.refused)}

    def _apply(self, decoded: list[tuple[FileMapping, ServiceMapping]]) -> None:
        problems = [item.problem(reason) for item, mapping in decoded if (reason := self._routing.judge(mapping))]
        if problems:
            raise MappingsRefused(problems)
        reports = self._routing.apply(SOURCE, [mapping for _, mapping in decoded])
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
            status = os.stat(self._file)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
