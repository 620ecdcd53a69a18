"""Write the generated parts of the pages here: `python docs/generate.py`; `--check` only says whether they are fresh.

A page is written by hand, but for what stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, SecretStr
from pydantic.fields import FieldInfo

ROOT: Final = Path(__file__).resolve().parent.parent
DOCS: Final = ROOT / "docs"
HEADINGS: Final = ("Called", "Returns", "Order", "Failure", "Used by")

_HEADING = re.compile(rf"^({'|'.join(HEADINGS)}): ", re.MULTILINE)
HOOKSPECS = {"proxy": "netbird_proxy.api.hookspecs", "management": "netbird_management.plugins.hookspecs"}
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
    """Every hook that a host specifies, in the file's order."""
    specs = _hookspecs(host)
    marked = [spec for spec in vars(specs).values() if hasattr(spec, f"{specs.PROJECT}_spec")]
    return [_read(host, spec) for spec in marked]


def _hookspecs(host: str) -> ModuleType:
    from importlib import import_module

    return import_module(HOOKSPECS[host])


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


# Settings ------------------------------------------------------------------------------------------------------------


def settings_rows(model: type[BaseModel], at: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Path, kind, default and meaning of each setting of a model, those of the sections in it included."""
    said = _meanings(model)
    for name, field in model.model_fields.items():
        path = f"{at}{name}"
        section = _section(field.annotation)
        if section is None:
            yield path, _kind(field), _default(field), said.get(name, "")
        else:
            many = get_origin(field.annotation) in (list, tuple)
            for inner, kind, default, meaning in settings_rows(section, f"{path}[]." if many else f"{path}."):
                optional = default == "required" and not many and field.default is None
                yield inner, kind, f"required in `[{path}]`" if optional else default, meaning


def _section(annotation: object) -> type[BaseModel] | None:
    """The model of a section, or of the items of a list of sections."""
    for one in (annotation, *get_args(annotation)):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """The text under each field, which Python itself forgets, or the field's entry in the model's own text."""
    meanings: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, BaseModel) or cls.__module__.startswith("pydantic"):
            continue
        listed = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
        pieces = re.split(r"^    (\w+): ", listed, flags=re.MULTILINE)
        meanings |= {name: _sentence(said) for name, said in zip(pieces[1::2], pieces[2::2], strict=True)}
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(body, ast.ClassDef)  # noqa: S101 - a class's source is a class
        for statement, after in itertools.pairwise(body.body):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                meanings[statement.target.id] = _sentence(str(after.value.value))
    return meanings


def _sentence(text: str) -> str:
    said = " ".join(text.split())
    return said[:1].upper() + said[1:]


_KINDS: Final = ((bool, "yes or no"), (int, "number"), (float, "number"), (str, "text"), (Path, "path"))


def _kind(field: FieldInfo) -> str:
    annotation = field.annotation
    parse = [getattr(one.func, "__name__", "") for one in field.metadata if isinstance(one, BeforeValidator)]
    for one in get_args(annotation):  # an optional `Annotated` keeps its validators to itself
        parse += [getattr(two.func, "__name__", "") for two in get_args(one) if isinstance(two, BeforeValidator)]
    if "_seconds" in parse:
        return "seconds"
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{one}`" for one in get_args(annotation))
    if get_origin(annotation) in (tuple, list, frozenset, dict):
        return "table" if get_origin(annotation) is dict else "list"
    arms = [one for one in (annotation, *get_args(annotation)) if isinstance(one, type) and one is not type(None)]
    if any(issubclass(one, SecretStr) for one in arms):
        return "secret"
    if "_address" in parse or any(one.__name__ == "Address" for one in arms):
        return "`host:port`"
    return next((word for kind, word in _KINDS if any(issubclass(one, kind) for one in arms)), "value")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "see below"
    value = field.default
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value is None or value in ("", (), {}):
        return ""
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


def settings_table(rows: Iterable[tuple[str, str, str, str]]) -> Iterator[str]:
    yield "| setting | kind | default | meaning |\n|---|---|---|---|"
    for path, kind, default, meaning in rows:
        yield f"| `{path}` | {kind} | {default} | {meaning.replace('|', chr(92) + '|')} |"


def _proxy_settings() -> Iterator[str]:
    from netbird_proxy.process.settings import ProxySettings

    return settings_table(settings_rows(ProxySettings))


def _plugin_settings() -> Iterator[str]:
    from netbird_proxy.defaults import DEFAULTS
    from netbird_proxy.routing.hooks import load_hooks
    from netbird_proxy.sources.decode.claims import CORE_CLAIMS

    hooks = load_hooks(FIRST_PARTY, defaults=DEFAULTS, core_claims=CORE_CLAIMS)
    for section, model in sorted(hooks.options.items(), key=lambda pair: pair[0]):
        yield f"`[{section}]`{', built in' if section in DEFAULTS else ''}\n"
        yield from settings_table(settings_rows(model))
        yield ""


FIRST_PARTY: Final = (
    "private_service",
    "identity_headers",
    "response_headers",
    "load_balancing",
    "direct_upstream",
    "tunnel_netstack",
    "peer",
)


def _environment() -> Iterator[str]:
    from netbird_proxy.process.settings import _CERTIFICATE, _NETBIRD

    yield "| NetBird's name | setting here |\n|---|---|"
    for name, (path, _) in sorted(_NETBIRD.items()):
        yield f"| `{name}` | `{'.'.join(path)}` |"
    yield f"| {', '.join(f'`{name}`' for name in sorted(_CERTIFICATE))} | `tls.certificates` |"


# Log events -----------------------------------------------------------------------------------------------------------

_EVENT = re.compile(r"\b_?log\.(debug|info|warning|error|exception)\(\s*\"([a-z_]+(?:\.[a-z_]+)+)\"")


OF_MANAGEMENT: Final = ("plugins/relay", "plugins/signal")
"""Plugins of management that have no half in the proxy."""
PACKAGES: Final = {
    "proxy": (
        "netbird_host",
        "netbird_overlay",
        "netbird_proxy",
        *sorted(
            plugin
            for plugin in (f"plugins/{folder.name}" for folder in (ROOT / "plugins").iterdir())
            if plugin not in OF_MANAGEMENT
        ),
    ),
    "management": ("netbird_management", *OF_MANAGEMENT),
}
"""Packages whose events are listed for a host. Management logs those of netbird_host too."""
EVENT_MEANINGS: Final[dict[str, dict[str, str]]] = tomllib.loads((DOCS / "event_meanings.toml").read_text())
"""Meaning of each warning and error, by host and event."""


def logged(host: str) -> dict[str, set[str]]:
    """Return the levels of each event that the host's packages log."""
    levels_of: dict[str, set[str]] = {}
    for package in PACKAGES[host]:
        for file in sorted((ROOT / package).rglob("*.py")):
            if "tests" not in file.parts and "testing" not in file.parts:
                for level, event in _EVENT.findall(file.read_text()):
                    levels_of.setdefault(event, set()).add("error" if level == "exception" else level)
    return levels_of


def needs_meaning(levels: set[str]) -> bool:
    return bool(levels & {"warning", "error"})


def events(host: str) -> Iterator[str]:
    """Warnings and errors with their meanings, then the other events with their levels."""
    levels_of, meanings = sorted(logged(host).items()), EVENT_MEANINGS[host]
    yield "| event | level | meaning |\n|---|---|---|"
    for event, levels in levels_of:
        if needs_meaning(levels):
            yield f"| `{event}` | {', '.join(sorted(levels))} | {meanings.get(event, '')} |"
    for level, title in (("info", "Information"), ("debug", 'Only with `log.level = "debug"`')):
        names = [f"`{event}`" for event, levels in levels_of if level in levels and not needs_meaning(levels)]
        yield f"\n{title}: {', '.join(names)}."


PARTS: Final[dict[str, Callable[[], Iterator[str]]]] = {
    "proxy-hooks": lambda: hook_sections("proxy"),
    "management-hooks": lambda: hook_sections("management"),
    "proxy-settings": _proxy_settings,
    "plugin-settings": _plugin_settings,
    "environment": _environment,
    "proxy-events": lambda: events("proxy"),
    "management-events": lambda: events("management"),
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
