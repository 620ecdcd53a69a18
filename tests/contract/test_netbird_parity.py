"""The comparison with NetBird's proxy: every row names a test, or says that the behavior differs and why."""

from __future__ import annotations

import re

from docs.generate import DOCS

SECTIONS = {
    *(
        "Auth",
        "Restrictions",
        "Rewrite",
        "Identity headers",
        "Errors and loops",
        "Access log",
        "Trusted list",
        "Tunnel cache",
    ),
}


def test_every_line_is_tested_or_deliberately_different() -> None:
    """There is no third kind, and no section is empty."""
    page = (DOCS / "netbird-parity.md").read_text().partition("\n## Proxy\n")[2].partition("\n## ")[0]
    sections = {name: body for name, _, body in (section.partition("\n") for section in page.split("\n### ")[1:])}
    assert set(sections) >= SECTIONS
    for name, body in sections.items():
        rows = [row.strip("| ").split(" | ") for row in body.splitlines() if row.startswith("| ")][1:]
        assert rows, name
        for theirs, ours in rows:
            tested = re.search(r"`(tests|plugins)/[\w/]+\.py(::\w+)?`", ours) is not None
            different = re.match(r"deliberately different: \w+", ours) is not None
            assert tested or different, f"{name}: {theirs}"


def test_rows_of_netbirds_programs_name_tests_that_exist() -> None:
    """Each names a test, and beside it a reason if the behavior differs."""
    page = (DOCS / "netbird-parity.md").read_text().partition("\n## NetBird's agents and proxies")[2]
    tables = [[row for row in section.splitlines() if row.startswith("| ")] for section in page.split("\n## ")]
    assert len(tables) == 2
    for row in (row for table in tables for row in table[1:]):
        named = re.findall(r"`((?:tests|plugins)/[\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            assert f"def {test}(" in (DOCS.parent / file).read_text(), f"{file}::{test}"
