"""Settings from a TOML file, the environment and command-line flags, each with its source.

Flags override the environment, which overrides the file, which overrides the defaults. A list comes from one source as
a whole. Unknown names and invalid values stop the start; all of them are reported at once, and no message shows a
secret.
"""

from __future__ import annotations

import re
import tomllib
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError

M = TypeVar("M", bound=BaseModel)
O = TypeVar("O", bound=BaseModel)  # noqa: E741
SettingPath = tuple[str, ...]

# hand-made because pydantic-settings does not record the source of a value: `check --show` and every message name it.
# Nor can it read the list of plugins first, and judge the plugins' sections once their models are loaded.

# Kubernetes sets such variables in every pod beside a service that is named like the program. They are not settings.
_KUBERNETES = re.compile(r"(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)\Z")


class SettingsError(Exception):
    """The settings cannot be used. `problems` has one sentence for each fault, with the setting's path and source."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Given:
    """One value with its path and source, such as `("limits", "head_timeout"), "5s", "environment NB_…"`."""

    path: SettingPath
    value: object = field(repr=False)
    source: str


@dataclass(frozen=True, slots=True)
class Shown:
    """One line of `check --show`."""

    path: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Renamed:
    """A setting that a source gives under an older name: `listen[0].tls_ahead`, now `listen[0].behind_tls_proxy`."""

    old: str
    new: str


class Sources:
    """The values of all sources, merged but not validated yet: the host needs `plugins` to know the plugins' models."""

    def __init__(self) -> None:
        self._tree: dict[str, Any] = {}
        self._source: dict[SettingPath, str] = {}
        self._texts: set[SettingPath] = set()
        self._absent: frozenset[str] = frozenset()

    def put(self, given: Given) -> None:
        """Add a value, which overrides weaker sources. Raises SettingsError where a section meets a plain value."""
        at = self._tree
        for depth, name in enumerate(given.path[:-1]):
            at = at.setdefault(name, {})
            if not isinstance(at, dict):
                path = dotted(given.path[: depth + 1])
                raise SettingsError([f"{path}: {given.source} treats it as a section, but it is a plain value"])
        if isinstance(at.get(given.path[-1]), dict) and given.value != {}:
            raise SettingsError([f"{dotted(given.path)}: {given.source} gives a plain value, but it is a section"])
        if given.value == {}:  # an empty section sets nothing, but its name is checked
            at.setdefault(given.path[-1], {})
            return
        at[given.path[-1]] = given.value
        self._source[given.path] = given.source
        self._texts.discard(given.path)

    def put_text(self, given: Given) -> None:
        """Add a string from the environment, which is split if the setting is a list."""
        self.put(given)
        self._texts.add(given.path)

    def dump(self) -> dict[str, Any]:
        """Return all values with their sources, secrets included, as JSON for another process of this host."""
        return {
            "tree": self._tree,
            "sources": [[list(path), source] for path, source in self._source.items()],
            "texts": [list(path) for path in self._texts],
        }

    @classmethod
    def restored(cls, dumped: Mapping[str, Any], *, newer: Mapping[str, Any] | None = None, of: str = "") -> Sources:
        """The sources that `dump` returned.

        Args:
            newer: a later dump, from which the top-level names `of`, separated by spaces, are taken.
        """
        names = set(of.split()) if newer is not None else set()
        sources = cls()
        for part, chosen in ((dumped, False), (newer or {}, True)):
            sources._tree |= {name: value for name, value in part.get("tree", {}).items() if (name in names) is chosen}
            for path, source in part.get("sources", ()):
                if (path[0] in names) is chosen:
                    sources._source[tuple(path)] = source
            sources._texts |= {tuple(path) for path in part.get("texts", ()) if (path[0] in names) is chosen}
        return sources

    def get(self, *path: str) -> object:
        """Return the raw value, or None."""
        at: object = self._tree
        for name in path:
            at = at.get(name) if isinstance(at, dict) else None
        return at

    def of(self, path: SettingPath) -> str:
        """Return the source of a value: its own, that of the list or section around it, or of the first value in it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self._source:
                return self._source[path[:end]]
        return next((source for inner, source in self._source.items() if inner[: len(path)] == path), "default")

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a top-level list of strings, such as `plugins`, before the settings are validated."""
        value = _as_list(self._tree.get(name, [])) if (name,) in self._texts else self._tree.get(name, [])
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise SettingsError([f"{name}: expected a list of strings{_from(self.of((name,)))}"])
        return tuple(value)

    def read(
        self, model: type[M], options: Mapping[str, type[BaseModel]] | None = None, *, absent: Collection[str] = ()
    ) -> Settings[M]:
        """Validate all values against the host's model and the plugins' sections.

        Args:
            options: the plugins' models, by section.
            absent: plugins that are installed but not loaded, whose sections get a message of their own.

        Raises:
            SettingsError: with all problems.
        """
        options = options or {}
        self._absent = frozenset(absent)
        renamed = list(self._take_older_names(model, self._tree, ()))
        for name, section in options.items():
            renamed += self._take_older_names(section, self._tree.get(name), (name,))
        self._split_lists({**_fields(model), **options})
        problems: list[str] = []
        core = {name: value for name, value in self._tree.items() if name not in options}
        value = self._validated(model, core, (), sorted({*model.model_fields, *options}), problems)
        sections = {
            name: self._validated(section, self._tree.get(name, {}), (name,), sorted(section.model_fields), problems)
            for name, section in options.items()
        }
        if problems or value is None:
            raise SettingsError(problems)
        return Settings(
            value, {name: section for name, section in sections.items() if section is not None}, self, renamed
        )

    def _take_older_names(self, model: type[BaseModel], tree: object, at: SettingPath) -> Iterator[Renamed]:
        """Move values from settings' older names to their present ones, where only the older name is given."""
        if isinstance(tree, list | tuple):
            for number, item in enumerate(tree):
                yield from self._take_older_names(model, item, (*at[:-1], f"{at[-1]}[{number}]"))
            return
        if not isinstance(tree, dict):
            return
        for old, new in getattr(model, "older_names", {}).items():
            if old in tree and new not in tree:
                tree[new] = tree.pop(old)
                if (*at, old) in self._source:  # a list has one source for all of it
                    self._source[*at, new] = self._source.pop((*at, old))
                yield Renamed(dotted((*at, old)), dotted((*at, new)))
        for name in [name for name in model.model_fields if name in tree]:
            is_list = isinstance(tree[name], list | tuple)
            if (inner := _model_at(model, (name, 0) if is_list else (name,))) is not None:
                yield from self._take_older_names(inner, tree[name], (*at, name))

    def _validated(
        self, model: type[O], tree: object, at: SettingPath, names: list[str], problems: list[str]
    ) -> O | None:
        try:
            return model.model_validate(tree)
        except ValidationError as invalid:
            problems.extend(self._format_error(model, at, names, error) for error in invalid.errors(include_url=False))
            return None

    def _format_error(self, model: type[BaseModel], at: SettingPath, top_names: list[str], error: Any) -> str:
        inside: tuple[str | int, ...] = error["loc"]
        path = (*at, *(str(part) for part in inside))
        name = dotted((*at, *inside))
        source = _from(self.of(path))
        if error["type"] == "extra_forbidden":
            if len(path) == 1 and name in self._absent:
                return f"{name}: the plugin {name} is installed but not in `plugins`: add it there{source}"
            owner = _model_at(model, inside[:-1])
            names = top_names if len(inside) == 1 else sorted(owner.model_fields) if owner else []
            near = get_close_matches(str(inside[-1]), names, n=1)
            hint = f"did you mean {dotted((*at, *inside[:-1], near[0]))}?" if near else f"supported: {', '.join(names)}"
            return f"{name}: unknown setting; {hint}{source}"
        if error["type"] == "missing":
            return f"{name}: this setting is required"
        message = str(error["msg"]).removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        shown = _harmless(error["input"]) if inside and not _may_be_secret(model, inside) else ""
        return f"{name or 'settings'}: {message}{shown}{source}"

    def _split_lists(self, fields: Mapping[str, Any]) -> None:
        for path in self._texts:
            if _is_list(_annotation_at(fields, path)):
                at = self._tree
                for name in path[:-1]:
                    at = at[name]
                at[path[-1]] = _as_list(at[path[-1]])


@dataclass(frozen=True, slots=True)
class Settings(Generic[M]):
    """The validated settings.

    Attributes:
        options: the plugins' sections by name.
        renamed: settings that were given under an older name.
    """

    value: M
    options: Mapping[str, BaseModel]
    sources: Sources
    renamed: Sequence[Renamed] = ()

    def show(self) -> list[Shown]:
        """Return each value with its source, secrets as `***`; the plugins' sections come last, sorted by name."""
        lines = list(self._walk(self.value, ()))
        for name, section in sorted(self.options.items()):
            lines.extend(self._walk(section, (name,)))
        return lines

    def _walk(self, model: BaseModel, at: SettingPath) -> Iterator[Shown]:
        for path, value in _values(model, at):
            yield Shown(dotted(path), _shown(value), self.sources.of(path))


def differences(old: Settings[M], new: Settings[M]) -> list[str]:
    """Return the paths of the settings that differ, secrets included; the plugins' sections come last."""
    before, after = dict(_all_values(old)), dict(_all_values(new))
    return [dotted(path) for path, value in after.items() if path not in before or before[path] != value]


def _all_values(settings: Settings[M]) -> Iterator[tuple[SettingPath, object]]:
    yield from _values(settings.value, ())
    for name, section in sorted(settings.options.items()):
        yield from _values(section, (name,))


def _values(model: BaseModel, at: SettingPath) -> Iterator[tuple[SettingPath, object]]:
    """Yield each setting of a model, with those of its sections; a list is one value."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _values(value, (*at, name))
        else:
            yield (*at, name), value


def read_sources(
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    prefix: str = "",
    ignored: Collection[str] = (),
    aliases: Sequence[Given] = (),
    flags: Sequence[Given] = (),
) -> Sources:
    """Read the file, the environment and the flags, weakest first.

    Args:
        prefix: start of the variables' names, such as `NETBIRD_PROXY_`: `…<SECTION>__<KEY>` or `…<KEY>`. An empty
            variable counts as unset.
        ignored: names with that prefix that are not settings, such as the one that names the file.
        aliases: values from other variables; weaker than the prefixed names.
        flags: values from the command line.

    Raises:
        SettingsError: the file cannot be read, or sources disagree on whether a path is a section.
    """
    sources = Sources()
    if file is not None:
        for given in _from_file(file):
            sources.put(given)
    for given in aliases:
        sources.put_text(given) if isinstance(given.value, str) else sources.put(given)
    for name, text in sorted((environment or {}).items()):
        rest = name.removeprefix(prefix)
        if not text or not prefix or rest == name or name in ignored or _KUBERNETES.match(rest):
            continue
        path = tuple(part.lower() for part in rest.split("__"))
        if not all(path):
            raise SettingsError([f"environment {name}: expected {prefix}<SECTION>__<KEY>"])
        sources.put_text(Given(path, text, f"environment {name}"))
    for given in flags:
        sources.put(given)
    return sources


def dotted(path: Sequence[str | int]) -> str:
    """Format a path: `limits.head_timeout`, `listen[0].address`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _from_file(file: Path) -> list[Given]:
    try:
        tree = tomllib.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        raise SettingsError([f"{file}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise SettingsError([f"{file}: is not UTF-8"]) from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([f"{file}: is not TOML: {error}"]) from error
    return list(_leaves(tree, (), f"file {file}"))


def _leaves(tree: Mapping[str, Any], at: SettingPath, source: str) -> Iterator[Given]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*at, name), source)
        else:
            yield Given((*at, name), value, source)


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    return {name: info.annotation for name, info in model.model_fields.items()}


def _arms(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, else the annotation itself, without `Annotated`."""
    if get_origin(annotation) is Annotated:
        return _arms(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(arm for member in get_args(annotation) for arm in _arms(member))
    return (annotation,)


def _annotation_at(fields: Mapping[str, Any], path: Sequence[str | int]) -> Any:
    annotation: Any = None
    for part in path:
        if isinstance(part, int):  # an index into a list
            items = [arm for arm in _arms(annotation) if _is_list(arm)]
            annotation = get_args(items[0])[0] if items and get_args(items[0]) else None
        else:
            annotation = fields.get(part)
        models = [arm for arm in _arms(annotation) if isinstance(arm, type) and issubclass(arm, BaseModel)]
        fields = _fields(models[0]) if models else {}
    return annotation


def _model_at(model: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel] | None:
    if not path:
        return model
    arms = _arms(_annotation_at(_fields(model), path))
    return next((arm for arm in arms if isinstance(arm, type) and issubclass(arm, BaseModel)), None)


def _is_list(annotation: Any) -> bool:
    return any(get_origin(arm) in (list, tuple, set, frozenset) for arm in _arms(annotation))


def _may_be_secret(model: type[BaseModel], path: Sequence[str | int]) -> bool:
    """True if an invalid value at this path may be a secret: the setting is one, or a section that may contain one."""
    arms = _arms(_annotation_at(_fields(model), path))
    return any(isinstance(arm, type) and issubclass(arm, SecretStr | BaseModel) for arm in arms)


def _as_list(value: object) -> object:
    """Split a string `a, b`, or parse it as a TOML array."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            return value
    return [part.strip() for part in value.split(",") if part.strip()]


def _harmless(value: object) -> str:
    """Format an invalid value for a message; empty for tables and lists, which could contain a secret."""
    if isinstance(value, bool):
        return f", not {str(value).lower()}"
    if isinstance(value, int | float):
        return f", not {value}"
    if isinstance(value, str):
        return f", not {value[:60]!r}"
    return ""


def _shown(value: object) -> str:
    if isinstance(value, SecretStr):
        return "***" if value.get_secret_value() else '""'
    if isinstance(value, tuple | list | frozenset | set) and type(value).__repr__ in (tuple.__repr__, list.__repr__):
        return f"[{', '.join(_shown(item) for item in value)}]"
    if isinstance(value, BaseModel):
        inside = (f"{name} = {_shown(getattr(value, name))}" for name in type(value).model_fields)
        return f"{{{', '.join(inside)}}}"
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "unset"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return f'"{value}"'


def _from(source: str) -> str:
    return "" if source == "default" else f" ({source})"
