"""No file of the product grows past 500 lines, and a test file that does says why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 500
REASON = re.compile(r"^# Over 500 lines: \S.*", re.MULTILINE)


def _lines(file: Path) -> int:
    return file.read_text("utf-8").count("\n")


def _name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def _written(*folders: str) -> list[Path]:
    """Source files that people write: no generated code, no migrations, nothing that was built or installed."""
    files = (file for folder in folders for top in ROOT.glob(folder) for file in top.rglob("*.*"))
    left_out = {"target", "vendor", "migrations", "log_migrations", "node_modules"}
    return [
        file
        for file in files
        if file.suffix in (".py", ".rs") and "_pb2" not in file.name and not left_out & set(file.parts)
    ]


def test_product_files_are_short() -> None:
    """A longer file has a seam."""
    product = [file for file in _written("netbird_*", "plugins", "proto") if "tests" not in file.parts]
    long = {_name(file) for file in product if _lines(file) > LIMIT}

    assert long == set()


@pytest.mark.parametrize(
    "file", [file for file in _written("tests", "plugins/*/tests") if _lines(file) > LIMIT], ids=_name
)
def test_long_test_files_give_a_reason(file: Path) -> None:
    """The reason stands under the file's docstring."""
    assert REASON.search(file.read_text("utf-8"))
