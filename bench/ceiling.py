"""The instruction ceiling: how many instructions a public exchange may take, and what a count says about it."""

from __future__ import annotations

import sys
import sysconfig
import tomllib
from dataclasses import dataclass
from pathlib import Path

CEILINGS = Path(__file__).with_name("ceiling.toml")
GROWTH = 0.05
STRANGER = 1.16
"""An interpreter without a table of its own may take so many times the dearest figure: versions and builds differ by
a tenth either way."""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The figure of one interpreter, in instructions an exchange; `own` is False where another one's was taken."""

    interpreter: str
    instructions: float
    own: bool = True


def interpreter() -> str:
    """The name of this interpreter's table: version, and whether it was built with profile-guided optimization."""
    built = "optimized" if "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "") else "plain"
    return f"{sys.implementation.name}-{sys.version_info.major}.{sys.version_info.minor}-{built}"


def read(name: str, file: Path = CEILINGS) -> Ceiling:
    """The ceiling of the interpreter `name`. Raises ValueError where a table gives no reason for its figure."""
    tables = tomllib.loads(file.read_text())
    if silent := [key for key, table in tables.items() if not table.get("reason", "").strip()]:
        raise ValueError(f"{file.name}: {', '.join(silent)} has no reason")
    if name in tables:
        return Ceiling(name, tables[name]["instructions"])
    return Ceiling(name, STRANGER * max(table["instructions"] for table in tables.values()), own=False)


def verdict(ceiling: Ceiling, counted: float, file: Path = CEILINGS) -> str:
    """The reason for refusing a count, and the remedy; "" for a count that is accepted."""
    place = f'["{ceiling.interpreter}"] in {file.parent.name}/{file.name}'
    if counted > ceiling.instructions * (1 + GROWTH):
        return (
            f"A public exchange takes {counted:,.0f} instructions, {counted / ceiling.instructions - 1:.0%} more than"
            f" the ceiling of {ceiling.instructions:,.0f}. Find the growth (docs/performance.md, Profiling) and remove"
            f" it. If the exchange needs it, write the count into {place}, and its use into `reason`."
        )
    return ""
