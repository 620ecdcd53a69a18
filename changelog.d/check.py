"""Judge the fragments here, or those named: `python changelog.d/check.py [FILE…]`. Says each problem on a line."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
OWN: Final = frozenset({"README.md", "check.py"})
KINDS: Final = ("added", "changed", "fixed", "removed", "security")

_NAME = re.compile(rf"[a-z0-9]+(?:-[a-z0-9]+)*\.(?:{'|'.join(KINDS)})\.md")


def problems(file: Path) -> Iterator[str]:
    """Return the faults of a fragment."""
    if not _NAME.fullmatch(file.name):
        yield f"{file.name}: a fragment is called WHAT.KIND.md, KIND one of {', '.join(KINDS)}"
    text = file.read_text("utf-8")
    if not text.strip():
        yield f"{file.name}: is empty"
    elif not text.rstrip().endswith((".", "`")) or not text.endswith("\n"):
        yield f"{file.name}: is not whole sentences with a line's end"
    if re.search(r"^\s*[-*#]\s", text, re.MULTILINE) or re.search(r"#\d", text):
        yield f"{file.name}: has list marks, headings or numbers of issues"


def fragments() -> list[Path]:
    return sorted(file for file in HERE.iterdir() if file.is_file() and file.name not in OWN)


def main() -> int:
    named = [Path(name) for name in sys.argv[1:]]
    found = [one for file in named or fragments() if file.name not in OWN for one in problems(file)]
    print(*found, sep="\n", end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
