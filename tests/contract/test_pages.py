"""The pages say what is there: links lead somewhere, tests and counters that they name exist, every setting is told."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

import netbird_management.cli
import netbird_proxy.operator.cli
from docs.generate import DOCS, EVENT_MEANINGS, FIRST_PARTY, ROOT, logged, needs_meaning, settings_rows
from netbird_management.model.services import TargetType
from netbird_management.rest.service_json import OptionsBody, ServiceBody, TargetBody
from netbird_management.settings import ManagementSettings
from netbird_management.settings import read_settings as read_management_settings
from netbird_proxy.defaults import DEFAULTS
from netbird_proxy.operator.admin import application
from netbird_proxy.process.loading import load
from netbird_proxy.process.settings import ProxySettings, read_settings
from netbird_proxy.routing.hooks import load_hooks
from netbird_proxy.sources.decode.claims import CORE_CLAIMS
from netbird_proxy.sources.decode.codec import Codec
from netbird_proxy.sources.file.watch import decode_mappings

PAGES = [
    ROOT / "README.md",
    *sorted(DOCS.glob("*.md")),
    *sorted((ROOT / "plugins").glob("*/README.md")),
    ROOT / "netbird_overlay" / "README.md",
    ROOT / "proto" / "README.md",
]
PROMISES = 11


@cache
def known_tests() -> frozenset[str]:
    """Every test function of the repository, as `file::name`, and every file of tests."""

    def found() -> Iterator[str]:
        for place in ("tests", "plugins"):
            for file in (ROOT / place).rglob("test_*.py"):
                name = str(file.relative_to(ROOT))
                yield name
                for node in ast.walk(ast.parse(file.read_text())):
                    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                        yield f"{name}::{node.name}"

    return frozenset(found())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page is a file or folder here."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())

    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]

    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_tests_exist(page: Path) -> None:
    """A test that a page leans on is there, and still called so."""
    named = set(re.findall(r"`((?:tests|plugins)/[\w/]+\.py(?:::\w+)?)`", page.read_text()))

    assert named - known_tests() == set()
    listed = re.findall(r"\[`(test_\w+)`\]\(\.\./([\w/]+\.py)\)", page.read_text())
    assert [name for name, file in listed if f"{file}::{name}" not in known_tests()] == []


def test_every_promise_has_tests() -> None:
    """The page of promises names tests for each."""
    page = (DOCS / "security.md").read_text()
    sections = re.split(r"^## (?=\d)", page, flags=re.MULTILINE)[1:]
    assert [section.split(".")[0] for section in sections] == [str(n + 1) for n in range(PROMISES)]
    named = {n + 1: set(re.findall(r"\[`(test_\w+)`\]", section)) for n, section in enumerate(sections)}

    assert [n for n, tests in named.items() if not tests] == []


def test_every_setting_is_told() -> None:
    """Each has a word on what it means; management's page names all of management's."""
    hooks = load_hooks(FIRST_PARTY, defaults=DEFAULTS, core_claims=CORE_CLAIMS)
    untold = [path for path, _, _, meaning in settings_rows(ProxySettings) if not meaning]
    for section, model in hooks.options.items():
        untold += [f"{section}.{path}" for path, _, _, meaning in settings_rows(model) if not meaning]
    assert untold == []
    page = (DOCS / "management.md").read_text()
    names = {path.rpartition(".")[2] for path, _, _, _ in settings_rows(ManagementSettings)}
    assert sorted(name for name in names if not re.search(rf"`[^`]*\b{name}\b[^`]*`", page)) == []


@pytest.mark.parametrize("host", ["proxy", "management"])
def test_every_warning_has_a_meaning(host: str) -> None:
    """The pages explain each event of level warning or error, and no event that nothing logs."""
    assert set(EVENT_MEANINGS[host]) == {event for event, levels in logged(host).items() if needs_meaning(levels)}


def test_counters_are_told() -> None:
    """Every counter that something counts is explained, and none that nothing counts."""
    counted: set[str] = set()
    for package in ("netbird_proxy", "plugins"):
        for file in (ROOT / package).rglob("*.py"):
            if not {"tests", "testing"} & set(file.parts):
                counted |= set(re.findall(r"\bcount\(\s*f?\"([a-z_{}]+)\"", file.read_text()))
    page = (DOCS / "operations.md").read_text().partition("## Counters")[2]
    told = set(re.findall(r"^\| `([a-z_*]+)` \|", page, flags=re.MULTILINE))

    assert {re.sub(r"\{\w+\}", "*", name) for name in counted} == told


def test_the_admin_socket_is_told() -> None:
    """Every path that it answers on is on the page."""

    class Server:
        decisions: object

    page = (DOCS / "operations.md").read_text()
    paths = [route.path for route in application(Server()).routes]  # type: ignore[arg-type, attr-defined]

    assert [path for path in paths if f"`{path}" not in page] == []


BASE = """
[management]
url = "https://management.example"
token_file = "token"
domain = "proxy.example"
"""
LISTEN = '[[listen]]\naddress = "127.0.0.1:0"\n'


def blocks(language: str) -> list[tuple[str, str]]:
    """Every fenced block of a language, with its page and its number there."""
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [
        (f"{page.relative_to(ROOT)}-{number}", text)
        for page in PAGES
        for number, text in enumerate(fence.findall(page.read_text()), 1)
    ]


MAPPINGS = [(where, text) for where, text in blocks("toml") if "[[mapping]]" in text]
OF_MANAGEMENT = [(where, text) for where, text in blocks("toml") if text.startswith("# management.toml\n")]
SETTINGS = [
    block
    for block in blocks("toml")
    if not re.search(r"\[project|\[\[mapping\]\]", block[1]) and block not in OF_MANAGEMENT
]


@pytest.mark.parametrize("text", [text for _, text in MAPPINGS], ids=[where for where, _ in MAPPINGS])
def test_mappings_on_pages_are_good(text: str, tmp_path: Path) -> None:
    """What a page shows of a mappings file is what a proxy with the first-party plugins takes."""
    file = tmp_path / "mappings.toml"
    file.write_text(text)
    hooks = load_hooks(FIRST_PARTY, defaults=DEFAULTS, core_claims=CORE_CLAIMS)
    assert decode_mappings(file, Codec(hooks))


@pytest.mark.parametrize("text", [text for _, text in SETTINGS], ids=[where for where, _ in SETTINGS])
def test_settings_on_pages_are_good(text: str, tmp_path: Path) -> None:
    """What a page tells people to write is what the models take."""
    file = tmp_path / "settings.toml"
    whole = "[management]" in text
    file.write_text(text if whole else f"{text}\n{BASE}\n{LISTEN}")

    loaded = load(read_settings(file, environment={}))

    assert loaded.settings.plugins


@pytest.mark.parametrize("text", [text for _, text in OF_MANAGEMENT], ids=[where for where, _ in OF_MANAGEMENT])
def test_managements_settings_on_pages_are_good(text: str, tmp_path: Path) -> None:
    """A block whose first line says so is a file of management's."""
    file = tmp_path / "management.toml"
    file.write_text(text)

    assert read_management_settings(file, {})[0].value


@pytest.mark.parametrize("text", [text for _, text in blocks("json")], ids=[where for where, _ in blocks("json")])
def test_services_on_pages_are_good(text: str) -> None:
    """Every member of a service on a page is one that the API knows, and its targets are such as it takes."""
    body = json.loads(text)

    def known(value: object, model: type[BaseModel]) -> list[str]:
        assert isinstance(value, dict)
        return sorted(set(value) - set(model.model_fields))

    assert known(body, ServiceBody) == []
    for target in body.get("targets", []):
        assert known(target, TargetBody) == []
        assert known(target.get("options", {}), OptionsBody) == []
        assert target["target_type"] in set(TargetType)
    ServiceBody.model_validate(body)


def _commands() -> list[tuple[str, str]]:
    found = []
    for language in ("sh", "console", ""):
        for where, text in blocks(language):
            lines = (line.removeprefix("$ ").split("  #")[0] for line in text.splitlines())
            found += [(where, line) for line in lines if line.startswith(("netbird-proxy ", "netbird-management "))]
    return [(where, line) for where, line in found if "|" not in line]


@pytest.mark.parametrize(("where", "line"), _commands(), ids=[line for _, line in _commands()])
def test_commands_on_pages_are_good(where: str, line: str) -> None:
    """A command that a page tells people to type is understood, options and all."""
    program, *arguments = shlex.split(line)
    hooks = load_hooks(["peer"], core_claims=CORE_CLAIMS)
    proxy = typer.Typer()
    for command in netbird_proxy.operator.cli.app.registered_commands:
        proxy.registered_commands.append(command)
    for name, command in hooks.commands():
        proxy.add_typer(command, name=name)
    app = typer.main.get_command(proxy if program == "netbird-proxy" else netbird_management.cli.app)

    name, resolved = program, app
    while (commands := getattr(resolved, "commands", None)) is not None:
        name, *arguments = arguments
        resolved = commands[name]

    resolved.make_context(name, arguments)
