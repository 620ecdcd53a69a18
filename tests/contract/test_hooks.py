"""A hook is specified, typed, documented, exemplified, tested and used, or it is not there."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import netbird_management.defaults
import netbird_management.plugins.hooks
import netbird_proxy.routing.hooks
from docs.generate import DOCS, HEADINGS, HOOKSPECS, ROOT, Hook, fresh, hooks
from netbird_host.plugins import Plugins
from netbird_proxy.defaults import DEFAULTS
from netbird_proxy.sources.decode.claims import CORE_CLAIMS

FOREIGN_NAMES = {"APIRouter", "AbstractAsyncContextManager", "Mapping", "None", "ProxyMapping", "Sequence", "Typer"}
"""What signatures may name beside the host's public names: standard library, wire, and the command line's and the API's
libraries."""

HOOKS = [*hooks("proxy"), *hooks("management")]


@pytest.fixture(scope="module")
def first_party() -> dict[str, Plugins]:
    """All plugins of this repository, loaded into their hosts."""
    mine = {
        "private_service",
        "identity_headers",
        "response_headers",
        "load_balancing",
        "direct_upstream",
        "tunnel_netstack",
        "peer",
        "relay",
        "signal_server",
    }

    def named(group: str) -> list[str]:
        return sorted(point.name for point in entry_points(group=group) if point.name in mine)

    proxy = netbird_proxy.routing.hooks.load_hooks(named("netbird_proxy"), defaults=DEFAULTS, core_claims=CORE_CLAIMS)
    management = netbird_management.plugins.hooks.load_hooks(
        named("netbird_management"), defaults=netbird_management.defaults.DEFAULTS
    )
    return {"proxy": proxy.plugins, "management": management.plugins}


@pytest.mark.parametrize("hook", HOOKS, ids=[f"{hook.host}-{hook.name}" for hook in HOOKS])
def test_a_hook_has_everything(hook: Hook, first_party: dict[str, Plugins]) -> None:
    """Docstring headings, types that plugins can import, a section, an example, a test, and a user of our own."""
    missing = [
        *_unspecified(hook),
        *_untyped(hook),
        *_undocumented(hook),
        *_without_example(hook),
        *_untested(hook),
        *_unused(hook, first_party[hook.host].implementers(hook.name)),
    ]

    assert missing == []


def test_every_hook_is_seen() -> None:
    """The reader of the specifications finds what pluggy finds."""
    for host, load in (
        ("proxy", netbird_proxy.routing.hooks.load_hooks),
        ("management", netbird_management.plugins.hooks.load_hooks),
    ):
        loaded = load()
        for hook in (one for one in HOOKS if one.host == host):
            assert loaded.plugins.calls(hook.name) == ()
        specs = import_module(HOOKSPECS[host])
        plain = [name for name, one in vars(specs).items() if getattr(one, "__module__", "") == specs.__name__]
        assert plain == [hook.name for hook in HOOKS if hook.host == host]


def _unspecified(hook: Hook) -> list[str]:
    problems = [f"its docstring has no {heading}" for heading in HEADINGS if not hook.facts.get(heading)]
    if not re.fullmatch(r"[A-Z][^\n]*\.", hook.summary):
        problems.append("its docstring does not begin with one sentence")
    if "*" in hook.signature or "=" in hook.signature:
        problems.append("its arguments are not plain")
    return problems


def _untyped(hook: Hook) -> list[str]:
    public = set(import_module(f"netbird_{hook.host}").__all__) | FOREIGN_NAMES
    named = set(re.findall(r"\b[A-Z]\w+", hook.signature))
    return [f"its signature names {name}, which plugins cannot import" for name in sorted(named - public)]


def _undocumented(hook: Hook) -> list[str]:
    page = (DOCS / "hooks.md").read_text()
    return [] if f"\n### {hook.call}\n" in page else [f"docs/hooks.md has no section `### {hook.call}`"]


def _without_example(hook: Hook) -> list[str]:
    file = ROOT / hook.example
    if not file.is_file():
        return [f"{hook.example} is missing"]
    for cls in (one for one in ast.parse(file.read_text()).body if isinstance(one, ast.ClassDef)):
        for function in (one for one in cls.body if isinstance(one, ast.FunctionDef)):
            marks = {ast.unparse(mark).partition("(")[0] for mark in function.decorator_list}
            if function.name == hook.name and "hookimpl" in marks:
                return []
    return [f"{hook.example} does not implement it"]


def _untested(hook: Hook) -> list[str]:
    file = ROOT / "tests" / "contract" / f"test_{hook.host}_hooks.py"
    tree = ast.parse(file.read_text())
    names = {one.name for one in tree.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
    imported = {one.module for one in tree.body if isinstance(one, ast.ImportFrom)}
    problems = [] if f"test_{hook.name}" in names else [f"{file.name} has no test_{hook.name}"]
    if f"examples.plugins.{hook.host}.{hook.name}" not in imported:
        problems.append(f"{file.name} does not run its example")
    return problems


def _unused(hook: Hook, users: Collection[str]) -> list[str]:
    said = hook.facts.get("Used by", "")
    if not users:
        return ["no plugin of ours uses it"]
    if said == "all.":
        return []
    named = set(
        re.findall(r"[a-z]+_[a-z_]+|telemetry|session|peer|forwarding|health|relay", re.sub(r"`.*?`|\(.*?\)", "", said))
    )
    liars = sorted(named - set(users))
    if named and not liars:
        return []
    return [f"it is used by {', '.join(users)}, not by {', '.join(liars) or 'nobody'}"]


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_pages_are_fresh(page: Path) -> None:
    """What is generated says what the code says; `make docs` writes it."""
    assert fresh(page.read_text()) == page.read_text()
