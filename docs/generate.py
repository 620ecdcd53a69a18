"""Write the generated parts of the pages here: `python docs/generate.py`; `--check` only says whether they are fresh.

A page is written by hand, but for what stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
DOCS: Final = ROOT / "docs"
HEADINGS: Final = ("Called", "Returns", "Order", "Failure", "Used by")

_HEADING = re.compile(rf"^({'|'.join(HEADINGS)}): ", re.MULTILINE)
_PART = re.compile(r"(<!-- begin (\S+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook as its specification tells it.

    Attributes:
        facts: text by heading; a heading that the docstring lacks is not in it.
    """

    host: str
    name: str
    signature: str
    summary: str
    facts: dict[str, str]

    @property
    def arguments(self) -> list[str]:
        return re.findall(r"(\w+):", self.signature.partition(") ->")[0])

    @property
    def call(self) -> str:
        """The form that the page's heading has: `dialer(route, upstream, proxy)`."""
        return f"{self.name}({', '.join(self.arguments)})"

    @property
    def example(self) -> Path:
        return Path("examples", "plugins", self.host, f"{self.name}.py")


def hooks(host: str) -> list[Hook]:
    """Every hook of `netbird_proxy.hookspecs` or `netbird_management.hookspecs`, in the file's order."""
    specs = _hookspecs(host)
    marked = [spec for spec in vars(specs).values() if hasattr(spec, f"{specs.PROJECT}_spec")]
    return [_read(host, spec) for spec in marked]


def _hookspecs(host: str) -> ModuleType:
    from importlib import import_module

    return import_module(f"netbird_{host}.hookspecs")


def _read(host: str, spec: Callable[..., object]) -> Hook:
    source = inspect.getsource(spec)
    found = re.search(r"^def (\w+)(\(.*?\) -> [^:]+):", source, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"{spec}: has no plain signature with a return type")
    signature = " ".join(found[2].split()).replace("( ", "(").replace(" )", ")")
    text = inspect.getdoc(spec) or ""
    summary, _, rest = text.partition("\n\n")
    pieces = _HEADING.split(rest)
    facts = {name: " ".join(said.split()) for name, said in zip(pieces[1::2], pieces[2::2], strict=True)}
    return Hook(host, found[1], signature, summary, facts)


def _definition(hook: Hook) -> str:
    """As the formatter, which also looks into pages, would break it."""
    line = f"def {hook.name}{hook.signature}: ..."
    if len(line) <= 120:
        return line
    arguments, _, returned = hook.signature[1:].partition(") -> ")
    return f"def {hook.name}(\n    {arguments}\n) -> {returned}: ..."


def hook_sections(host: str) -> Iterator[str]:
    for hook in hooks(host):
        yield f"### {hook.call}\n\n{hook.summary}\n"
        yield f"```python\n@hookimpl\n{_definition(hook)}\n```\n"
        yield "| | |\n|---|---|"
        for heading, said in hook.facts.items():
            yield f"| {heading} | {said.replace('|', chr(92) + '|')} |"
        yield f"| Example | [{hook.example}](../{hook.example}) |\n"


PARTS: Final[dict[str, Callable[[], Iterator[str]]]] = {
    "proxy-hooks": lambda: hook_sections("proxy"),
    "management-hooks": lambda: hook_sections("management"),
}


def fresh(page: str) -> str:
    """A page's text as it should be."""

    def part(match: re.Match[str]) -> str:
        return f"{match[1]}\n{chr(10).join(PARTS[match[2]]()).rstrip()}\n\n{match[3]}"

    return _PART.sub(part, page)


def main() -> int:
    stale = [page for page in sorted(DOCS.glob("*.md")) if fresh(page.read_text()) != page.read_text()]
    for page in stale:
        if "--check" not in sys.argv:
            page.write_text(fresh(page.read_text()))
        print(f"{'stale' if '--check' in sys.argv else 'written'}: {page.relative_to(ROOT)}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
