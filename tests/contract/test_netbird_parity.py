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
