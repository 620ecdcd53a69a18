"""Reads the access logs that proxies report, and logs a warning when a service fails often."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from netbird_management import AccessLogEntry, Management, PluginInfo, hookimpl

log = logging.getLogger(__name__)


class Threshold(BaseModel):
    """The plugin's section of the settings file, which has the plugin's name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    failures: int = 10
    """Number of failures in one batch that causes a warning."""


class Failures:
    """Counts failures. It must be fast, because the next batch waits for it."""

    def __init__(self) -> None:
        self.threshold = Threshold()

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="warns of services that fail often", options=Threshold)

    @hookimpl
    def lifespan(self, management: Management) -> None:
        self.threshold = management.options(Threshold)

    @hookimpl
    def record_access(self, entries: Sequence[AccessLogEntry]) -> None:
        failed = Counter(entry.service_id for entry in entries if entry.status_code >= 500)
        for service, number in failed.items():
            if number >= self.threshold.failures:
                log.warning("service %s failed %d times", service, number)
