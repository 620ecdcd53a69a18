"""Check how the product is written: `python tools/prose.py [PATH…]`; without a path, all of the product.

Two rules. No docstring and no comment begins with a relative or question word, since such a sentence has no actor. No
variable, function or parameter has a name that does not say what it holds.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
OPENERS: Final = frozenset({"Who", "Whom", "Whose", "What", "Which", "Whether", "Of", "That", "Whatever", "How", "Why"})
NAMES: Final = frozenset({"said", "told", "found", "known", "wanted", "one"})
_WORD: Final = re.compile(r"[A-Za-z]+")
_RUST_COMMENT: Final = re.compile(r"^\s*//[/!]?(.*)$")


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file, and the text or name that stands there."""

    file: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}: {self.text}"


def product() -> list[Path]:
    """Every source file of product, bench and examples, tests of plugins included, generated code left out."""
    folders = [
        *ROOT.glob("netbird_*"),
        ROOT / "bench",
        ROOT / "examples",
        ROOT / "plugins",
        ROOT / "proto" / "netbird_wire",
    ]
    files = (file for folder in folders for kind in ("*.py", "*.rs") for file in folder.rglob(kind))
    return sorted(file for file in files if "_pb2" not in file.name and not {"target", "vendor"} & set(file.parts))


def is_test(file: Path) -> bool:
    return "tests" in file.relative_to(ROOT).parts


def prose(file: Path) -> Iterator[Place]:
    """The first line of each docstring, and of each run of comment lines."""
    text = file.read_text("utf-8")
    if file.suffix == ".rs":
        yield from _rust_comments(file, text)
        return
    for node in ast.walk(ast.parse(text)):
        for statement in getattr(node, "body", ()) if not isinstance(node, ast.Lambda | ast.IfExp) else ():
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                yield Place(file, statement.lineno, statement.value.value.strip().partition("\n")[0])
    yield from _comments(file, text)


def _comments(file: Path, text: str) -> Iterator[Place]:
    last = -1
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            words = token.string.lstrip("#").strip()
            if token.start[0] != last + 1 and not words.startswith(("noqa", "type:", "!")):
                yield Place(file, token.start[0], words)
            last = token.start[0]


def _rust_comments(file: Path, text: str) -> Iterator[Place]:
    last = -1
    for number, line in enumerate(text.split("\n"), 1):
        if match := _RUST_COMMENT.match(line):
            if number != last + 1:
                yield Place(file, number, match[1].strip())
            last = number


def begins_badly(place: Place) -> bool:
    word = _WORD.match(place.text.lstrip("`*\"'( "))
    return word is not None and word[0] in OPENERS


def bad_names(file: Path) -> Iterator[Place]:
    """Each place where a forbidden name is bound."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                pass
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                pass
            case ast.Attribute(attr=name, ctx=ast.Store()):
                pass
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                pass
            case _:
                continue
        if name.strip("_") in NAMES:
            yield Place(file, node.lineno, name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, help="files or folders; by default the whole product")
    options = parser.parse_args()
    paths = [path.resolve() for path in options.paths]
    files = [file for file in product() if not paths or any(file.is_relative_to(path) for path in paths)]
    pieces = [place for file in files for place in prose(file)]
    bad = [place for place in pieces if begins_badly(place)]
    names = [place for file in files if file.suffix == ".py" and not is_test(file) for place in bad_names(file)]
    for place in [*bad, *names]:
        print(place)
    print(f"{len(bad)} of {len(pieces)} docstrings and comments begin badly; {len(names)} names say nothing")
    return 1 if bad or names else 0


if __name__ == "__main__":
    sys.exit(main())
