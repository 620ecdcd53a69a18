"""The comparison with NetBird's management: every line has tests that exist, and says so where it is different."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "management-coverage.md").read_text()
ROWS = [
    row.strip("| ").split(" | ", 1)
    for row in PAGE.splitlines()
    if row.startswith("| ") and not row.startswith("| NetBird's |")
]


def _missing(ours: str) -> list[str]:
    """The tests that are named and not there."""
    wrong = []
    for file, _, name in re.findall(r"`((?:tests|plugins)/[\w/]+\.py)(::(\w+))?`", ours):
        path = ROOT / file
        if not path.exists() or (name and f"def {name}(" not in path.read_text()):
            wrong.append(f"{file}::{name}")
    return wrong


def test_every_line_is_tested_or_deliberately_different() -> None:
    """There is no third kind, and what is different names what is there instead."""
    assert len(ROWS) > 60
    for theirs, ours in ROWS:
        assert re.search(r"`(tests|plugins)/[\w/]+\.py(::\w+)?`", ours), theirs
        assert not _missing(ours), (theirs, _missing(ours))


def test_no_section_is_empty() -> None:
    """Each heading has lines."""
    for section in PAGE.split("\n## ")[1:]:
        assert section.count("\n| ") > 1, section.splitlines()[0]
