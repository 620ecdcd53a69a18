"""The figures of one run, with machine and date, as a JSON file that pages are made from."""

from __future__ import annotations

import datetime
import json
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.ceiling import interpreter
from bench.measure import Footprint, Sample
from bench.openloop import Latency

DIRECTORY = Path(__file__).with_name("results")


@dataclass(slots=True)
class Series:
    """All rounds of one subject under one kind of load."""

    subject: str
    kind: str
    samples: list[Sample] = field(default_factory=list)

    @property
    def cpu(self) -> float:
        """CPU seconds per 1,000 requests in the best round: neighbors on a machine can only make a request dearer."""
        return min(each.cpu_per_thousand for each in self.samples)

    @property
    def spread(self) -> float:
        """The excess of the worst round over the best, as a part of the best."""
        return max(each.cpu_per_thousand for each in self.samples) / self.cpu - 1

    @property
    def rate(self) -> float:
        return max(each.rate for each in self.samples)


@dataclass(slots=True)
class Results:
    """A run.

    Attributes:
        name: the target: `http`, `quick`, `overlay` or `management`.
        series: rounds by row and subject.
        latencies: a round each, by subject; `upstream` is the upstream without a proxy.
        figures: single numbers by a name that `bench.goals` knows.
        footprints: a process's memory and descriptors before load and after each round of it.
        failures: sentences about everything that was to be measured and could not be.
        directory: the place of its file; not a part of it.
    """

    name: str
    date: str = ""
    machine: dict[str, str] = field(default_factory=dict)
    settings: dict[str, float] = field(default_factory=dict)
    series: dict[str, dict[str, Series]] = field(default_factory=dict)
    latencies: dict[str, list[Latency]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    footprints: dict[str, list[Footprint]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    directory: Path = DIRECTORY

    def add(self, row: str, subject: str, sample: Sample) -> None:
        self.series.setdefault(row, {}).setdefault(subject, Series(subject, row)).samples.append(sample)

    def fail(self, subject: str, error: BaseException) -> None:
        """Note in one sentence why something is missing; the same sentence is noted once."""
        lines = str(error).strip().splitlines() or [type(error).__name__]
        sentence = f"{subject}: {lines[0][:200]}" + (f" … {lines[-1].strip()[:120]}" if len(lines) > 1 else "")
        if sentence not in self.failures:
            self.failures.append(sentence)

    def cost(self, row: str, subject: str) -> float | None:
        """CPU seconds per 1,000 in the best round, where it was measured."""
        series = self.series.get(row, {}).get(subject)
        return series.cpu if series else None

    def save(self) -> Path:
        """Write the file, over an earlier run of the same name."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"{self.name}.json"
        partial = path.with_suffix(".partial")
        content = {name: value for name, value in asdict(self).items() if name != "directory"}
        partial.write_text(json.dumps(_rounded(content), indent=1, sort_keys=True) + "\n")
        partial.replace(path)
        return path


def load(name: str, directory: Path = DIRECTORY) -> Results | None:
    """An earlier run, or None."""
    path = directory / f"{name}.json"
    if not path.exists():
        return None
    read = json.loads(path.read_text())
    read["series"] = {
        row: {
            name: Series(name, row, [Sample(**sample) for sample in series["samples"]])
            for name, series in subjects.items()
        }
        for row, subjects in read["series"].items()
    }
    read["latencies"] = {name: [Latency(**each) for each in rounds] for name, rounds in read["latencies"].items()}
    read["footprints"] = {name: [Footprint(**each) for each in steps] for name, steps in read["footprints"].items()}
    return Results(**read, directory=directory)


def begun(name: str, **settings: float) -> Results:
    """Nothing measured yet, on this machine, now."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    return Results(name, now, machine(), settings)


def machine() -> dict[str, str]:
    """Words about the machine and the interpreter, for the people who read the figures."""
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{int(memory) / 1e6:.0f} GB",
        "kernel": platform.release(),
        "python": f"{platform.python_version()} ({interpreter().rpartition('-')[2]} build)",
        "load before": f"{os.getloadavg()[1]:.1f}",
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _rounded(value: Any) -> Any:
    """Six significant digits: more is noise, and hides a change of the file."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return value
