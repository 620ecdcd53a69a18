"""Results as text for people: tables, ratios within the run, goals, and what a reader needs to know."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.goals import GOALS, Goal, added
from bench.measure import Footprint
from bench.openloop import Latency
from bench.results import Results
from bench.rows import CADDY, CADDY_NOW, NGINX, PRODUCT, ROWS, Row

COMPANIONS = {"× nginx": NGINX, "× Caddy": CADDY, "× current": CADDY_NOW}


def table(results: Results) -> str:
    """A table for each row of load that was measured, in the order of `bench.rows`."""
    parts = [_row(ROWS[key], results) for key in ROWS if results.series.get(key)]
    return "\n\n".join(parts)


def _row(row: Row, results: Results) -> str:
    unit = "ms CPU a request" if row.large else "CPU µs a message" if row.message else "CPU µs a request"
    base = results.series.get(row.base or row.key, {})
    names = [] if row.message else [name for name in COMPANIONS if COMPANIONS[name] in base]
    lines = [
        f"| {row.title} | {unit} | spread | {'messages' if row.message else 'requests'}/s |"
        + "".join(f" {name} |" for name in names),
        "|---|---|---|---|" + "---|" * len(names),
    ]
    measured = results.series[row.key]
    for name in [*(each for each in row.subjects if each in measured)]:
        series = measured[name]
        cost = f"{series.cpu:.2f}" if row.large else f"{series.cpu * 1000:.1f}"
        ratios = "".join(f" {series.cpu / base[COMPANIONS[each]].cpu:.2f} |" for each in names)
        lines.append(f"| {name} | {cost} | +{series.spread * 100:.0f} % | {series.rate:,.0f} |{ratios}")
    return "\n".join(lines)


def footprints(held: Mapping[str, Sequence[Footprint]]) -> str:
    lines = ["| process | resident MB, idle → after each round | descriptors | threads |", "|---|---|---|---|"]
    for name, every in held.items():
        lines.append(
            f"| {name} | {' → '.join(f'{step.resident:.0f}' for step in every)}"
            f" | {' → '.join(str(step.descriptors) for step in every)}"
            f" | {' → '.join(str(step.threads) for step in every)} |"
        )
    return "\n".join(lines)


def latency(rounds: Mapping[str, Sequence[Latency]]) -> str:
    """Latencies of the open loop in the best of its rounds, and what each proxy adds to the upstream's own."""
    lines = [
        "| open loop, 500 requests/s | p50 µs | p99 µs | added p50 | added p99 | the generator's own delay, p99 |",
        "|---|---|---|---|---|---|",
    ]
    for name, each in rounds.items():
        p50, p99, late = (min(getattr(figures, part) for figures in each) * 1e6 for part in ("p50", "p99", "late"))
        extra = [None if name == "upstream" else added(rounds, name, part) for part in ("p50", "p99")]
        more = " | ".join("–" if seconds is None else f"{seconds * 1e6:,.0f}" for seconds in extra)
        shown = "the upstream alone" if name == "upstream" else name
        lines.append(f"| {shown} | {p50:,.0f} | {p99:,.0f} | {more} | {late:,.0f} |")
    return "\n".join(lines)


def goals(runs: Mapping[str, Results], every: Sequence[Goal] = GOALS) -> str:
    """Each goal with its figure and whether the figure meets it. A figure that is missing is not met."""
    lines = ["| work | goal | measured | met |", "|---|---|---|---|"]
    for goal in every:
        results = runs.get(goal.run)
        value = None if results is None else goal.value(results)
        if value is None:
            lines.append(f"| {goal.work} | {goal.bound} | not measured | – |")
        else:
            sign = "+" if goal.bound.startswith("≤ +") and value >= 0 else ""
            verdict = "yes" if goal.met(value) else "**no**"
            lines.append(f"| {goal.work} | {goal.bound} | {sign}{value:,.{goal.digits}f} | {verdict} |")
    return "\n".join(lines)


def provenance(results: Results) -> str:
    """Machine, date and releases of a run in one paragraph, then everything that could not be measured."""
    machine = ", ".join(f"{name} {text}" for name, text in results.machine.items())
    lines = [textwrap.fill(f"Run `{results.name}` of {results.date}: {machine}.", 118)]
    if results.failures:
        lines += ["", "Not measured, or in part:", "", *(f"- {sentence}" for sentence in results.failures)]
    return "\n".join(lines)


def method(results: Results) -> str:
    rounds, seconds = (results.settings.get(name, 0) for name in ("rounds", "seconds"))
    text = f"""Interleaved rounds, at most {rounds:g}, of {seconds:g} s for each server under each kind of load,
    after a warm-up. The measured process has one core; wrk, the upstream (nginx with a fixed answer of
    64 bytes), management and the WireGuard client share the other, so requests a second are bounded by
    them where a proxy is cheap: compare the CPU. It is the process's own user and system time with all
    its threads and children, in its best round; the spread states how far the worst round was from it.
    Machines and minutes differ: read the ratios, which are within one run. Goals that name Caddy hold
    for the cheaper of the two releases. Rows over the overlay are compared with the same proxies
    without it."""
    return textwrap.fill(" ".join(text.split()), 118)


def headline(results: Results) -> str:
    """The short table: CPU of one core a request, for the servers that people would pick."""
    lines = ["| CPU µs a request, 64 B | HTTP | a browser's head | HTTPS |", "|---|---|---|---|"]
    for name in ROWS["plain"].subjects:
        costs = [results.cost(row, name) for row in ("plain", "browser", "tls")]
        if costs[0] is None or "fixed" in name:
            continue
        shown = [("–" if cost is None else f"{cost * 1000:,.0f}") for cost in costs]
        label, mark = (f"**{name}**", "**") if name == PRODUCT else (name, "")
        lines.append(f"| {label} | " + " | ".join(f"{mark}{text}{mark}" for text in shown) + " |")
    return "\n".join(lines)


def write(path: Path, text: str, marks: tuple[str, str]) -> None:
    """Replace a generated part of a page, and leave the rest as people wrote it. ValueError where the page has none."""
    begin, end = marks
    head, separator, rest = path.read_text().partition(begin)
    _, closing, tail = rest.partition(end)
    if not separator or not closing:
        raise ValueError(f"{path.name} has no {begin} … {end}")
    path.write_text(f"{head}{begin}\n{text.strip()}\n{end}{tail}")
