"""Fragments of the changelog have names that a release can sort, and words that people can read."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECK = runpy.run_path(str(ROOT / "changelog.d" / "check.py"))
problems = cast(Callable[[Path], Iterator[str]], CHECK["problems"])


def test_fragments_are_good() -> None:
    """Every fragment that is there."""
    assert [one for file in CHECK["fragments"]() for one in problems(file)] == []


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("thing.md", "It does.\n", "is called"),
        ("thing.new.md", "It does.\n", "is called"),
        ("Thing.added.md", "It does.\n", "is called"),
        ("thing.added.txt", "It does.\n", "is called"),
        ("thing.added.md", "", "is empty"),
        ("thing.added.md", "It does", "whole sentences"),
        ("thing.added.md", "- It does.\n", "list marks"),
        ("thing.fixed.md", "It does (#12).\n", "numbers of issues"),
    ],
)
def test_what_is_no_fragment_is_told(tmp_path: Path, name: str, text: str, says: str) -> None:
    """The name, the end, the marks."""
    file = tmp_path / name
    file.write_text(text)

    assert any(says in one for one in problems(file))


def test_commit_hooks_are_local() -> None:
    """Whoever commits downloads nothing: every hook runs what the virtual environment has."""
    text = (ROOT / ".pre-commit-config.yaml").read_text()

    assert "://" not in text
    assert text.count("- repo:") == text.count("- repo: local") == 1
    for line in text.splitlines():
        if line.strip().startswith("entry:"):
            assert line.split("entry:")[1].strip().startswith(".venv/bin/")
