"""Loads plugins, checks them, and puts them in order. pluggy is the registry; the calls are made by the hosts' facades.

A plugin that is wrong in any way stops the start: half a plugin would be a guard that nobody asks.

Order, everywhere: implementations marked `tryfirst`, then plain ones, then `trylast`; inside a rank the operator's
`plugins = [...]` list, then the host's own plugins in the host's order. An operator who wants one of the host's own
plugins earlier names it in the list.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

import pluggy
from pydantic import BaseModel

from netbird_host.containment import describe_error, must_pass
from netbird_host.info import Claim, PluginId, PluginInfo

_ID = re.compile(r"[a-z][a-z0-9_]*\Z")


class PluginError(Exception):
    """A plugin cannot be used. `message` says what is wrong and what to change."""

    def __init__(self, plugin: PluginId, message: str) -> None:
        super().__init__(f"plugin {plugin}: {message}")
        self.plugin = plugin
        self.message = message


@dataclass(frozen=True, slots=True)
class LoadedPlugin:
    """One plugin as it runs here.

    Attributes:
        plugin: the instance or module that has the hook implementations.
        distribution: what it was installed as; empty for the host's own and for objects that were handed in.
        version: the distribution's, else what `describe` says.
    """

    id: PluginId
    plugin: object
    info: PluginInfo
    distribution: str = ""
    version: str = "0"


@dataclass(frozen=True, slots=True)
class HookCall:
    """One implementation of one hook. Takes every argument of the hook by name and passes on those it wants."""

    plugin: PluginId
    function: Callable[..., object]
    arguments: tuple[str, ...]

    def __call__(self, **given: object) -> object:
        return self.function(*[given[name] for name in self.arguments])


@dataclass(frozen=True, slots=True)
class Installed:
    """One offer of a plugin in the environment; not imported."""

    id: PluginId
    distribution: str
    version: str


class Plugins:
    """The plugins of one host, checked and in order."""

    def __init__(self, loaded: Sequence[LoadedPlugin], hooks: Mapping[str, tuple[HookCall, ...]]) -> None:
        self._loaded = {plugin.id: plugin for plugin in loaded}
        self._hooks = hooks

    def __iter__(self) -> Iterator[LoadedPlugin]:
        """In the operator's order, the host's own last."""
        return iter(self._loaded.values())

    def __len__(self) -> int:
        return len(self._loaded)

    def __contains__(self, plugin: object) -> bool:
        return plugin in self._loaded

    def __getitem__(self, plugin: PluginId) -> LoadedPlugin:
        return self._loaded[plugin]

    def calls(self, hook: str) -> tuple[tuple[PluginId, HookCall], ...]:
        """Who implements a hook, in the order in which to ask. KeyError for a hook that the host does not have."""
        return tuple((call.plugin, call) for call in self._hooks[hook])

    def implementers(self, hook: str) -> tuple[PluginId, ...]:
        """The same, ids only, each once."""
        return tuple(dict.fromkeys(call.plugin for call in self._hooks[hook]))


def installed(group: str) -> list[Installed]:
    """What the environment offers under an entry-point group, by name. Imports nothing."""
    return sorted(
        (Installed(point.name, *_distribution(point)) for point in entry_points(group=group)),
        key=lambda offer: (offer.id, offer.distribution),
    )


def not_loaded(group: str, allowed: Collection[str]) -> list[PluginId]:
    """Plugins that are installed, and that the operator's list does not name."""
    return [offer.id for offer in installed(group) if offer.id not in allowed]


def load(
    project: str,
    hookspecs: ModuleType,
    *,
    group: str,
    allowed: Sequence[PluginId | tuple[PluginId, object]] = (),
    defaults: Mapping[PluginId, object] | None = None,
    core_claims: Collection[str] = (),
    reserved_ids: Collection[str] = (),
) -> Plugins:
    """Import, make, register and check the plugins of a host.

    Args:
        project: pluggy's project name, which hookspecs and hookimpls are marked with.
        allowed: the operator's list: names of entry points, or `(id, object)` from a program that embeds the host.
            What is not in it is not imported.
        defaults: the host's own plugins in their order: a class, module or object, or `module:attribute` as text.
        core_claims: fields that the host itself understands; no plugin may claim them.
        reserved_ids: names that mean something else to the host, such as sections of its settings file.

    Raises:
        PluginError: the first thing that is wrong.
    """
    loader = _Loader(project, hookspecs, group, defaults or {}, reserved_ids)
    loaded = [loader.load(entry) for entry in loader.in_order(allowed)]
    _check_shared_names(loaded, core_claims)
    return Plugins(loaded, loader.hooks([plugin.id for plugin in loaded]))


class _Loader:
    def __init__(
        self,
        project: str,
        hookspecs: ModuleType,
        group: str,
        defaults: Mapping[PluginId, object],
        reserved_ids: Collection[str],
    ) -> None:
        self._pluggy = pluggy.PluginManager(project)
        self._pluggy.add_hookspecs(hookspecs)
        self._group = group
        self._defaults = defaults
        self._reserved = reserved_ids
        self._hook_names = [name for name in vars(self._pluggy.hook) if not name.startswith("_")]
        self._offers: dict[PluginId, list[EntryPoint]] = {}
        for point in entry_points(group=group):
            self._offers.setdefault(point.name, []).append(point)

    def in_order(self, allowed: Sequence[PluginId | tuple[PluginId, object]]) -> list[tuple[PluginId, object]]:
        """The operator's list, then the host's own plugins that it does not name; each with what to load."""
        entries: dict[PluginId, object] = {}
        for item in allowed:
            name, source = item if isinstance(item, tuple) else (item, None)
            if not isinstance(name, str) or not _ID.match(name):
                raise PluginError(str(name), "is not a plugin's name: write lower-case letters, digits and underscores")
            if name in entries:
                raise PluginError(name, "stands twice in the list of plugins: remove one")
            if name in self._reserved:
                raise PluginError(name, "has a name that is a section of the settings file: rename its entry point")
            entries[name] = source if source is not None else self._offered(name)
        return [*entries.items(), *((name, value) for name, value in self._defaults.items() if name not in entries)]

    def _offered(self, name: PluginId) -> object:
        offers = self._offers.get(name, [])
        names = ", ".join(sorted(_distribution(point)[0] for point in offers))
        if name in self._defaults:
            if offers:
                raise PluginError(name, f"is built in, and {names} offers the same name: uninstall {names}")
            return self._defaults[name]
        if not offers:
            known = sorted({*self._offers, *self._defaults})
            near = _nearest(name, known)
            there = f"installed are: {', '.join(known)}" if known else "none is installed"
            raise PluginError(name, f"is not installed{near}; install what offers it or take it off the list ({there})")
        if len(offers) > 1:
            raise PluginError(name, f"is offered by several distributions ({names}): uninstall all but one")
        return offers[0]

    def load(self, entry: tuple[PluginId, object]) -> LoadedPlugin:
        """Import, make, check and register one plugin, and ask what it is."""
        name, source = entry
        distribution, version = _distribution(source) if isinstance(source, EntryPoint) else ("", "")
        plugin = self._made(name, source)
        self._check_implementations(name, plugin)
        try:
            self._pluggy.register(plugin, name)
        except Exception as error:
            raise PluginError(name, f"cannot be registered: {error}") from error
        info = self._described(name)
        return LoadedPlugin(name, plugin, info, distribution, version or info.version)

    def _made(self, name: PluginId, source: object) -> object:
        where = source.value if isinstance(source, EntryPoint) else source
        try:
            if isinstance(source, EntryPoint):
                target = source.load()
            elif isinstance(source, str):
                module, _, attribute = source.partition(":")
                target = getattr(import_module(module), attribute)
            else:
                target = source
        except BaseException as error:
            if must_pass(error):
                raise
            raise PluginError(
                name, f"importing {where} raised {describe_error(error)}: mend it or take it off the list"
            ) from error
        if isinstance(target, type):
            try:
                return target()
            except BaseException as error:
                if must_pass(error):
                    raise
                raise PluginError(
                    name,
                    f"making {target.__qualname__}() raised {describe_error(error)}: it must be made without arguments",
                ) from error
        if isinstance(source, EntryPoint) and not isinstance(target, ModuleType):
            raise PluginError(name, f"{where} is neither a class nor a module: let the entry point name one of them")
        return target

    def _check_implementations(self, name: PluginId, plugin: object) -> None:
        try:
            attributes = [(attribute, getattr(plugin, attribute)) for attribute in dir(plugin)]
            marks = {attribute: self._pluggy.parse_hookimpl_opts(plugin, attribute) for attribute, _ in attributes}
        except Exception as error:
            raise PluginError(name, f"reading its attributes raised {describe_error(error)}") from error
        for attribute, function in attributes:
            mark = marks[attribute]
            if mark is None:
                if attribute in self._hook_names and _is_own_function(plugin, function):
                    raise PluginError(
                        name, f"{attribute} has a hook's name but is not marked: put @hookimpl over it or rename it"
                    )
                continue
            hook = mark.get("specname") or attribute
            if hook not in self._hook_names:
                if mark.get("optionalhook"):
                    continue
                near = _nearest(hook, self._hook_names)
                raise PluginError(name, f"{hook} is not a hook of this host{near}")
            if mark.get("wrapper") or mark.get("hookwrapper"):
                raise PluginError(name, f"{hook} is a hook wrapper, which this host does not call: write a plain hook")
            if mark.get("tryfirst") and mark.get("trylast"):
                raise PluginError(name, f"{hook} is marked tryfirst and trylast: choose one")
            self._check_signature(name, hook, function)

    def _check_signature(self, name: PluginId, hook: str, function: Callable[..., object]) -> None:
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise PluginError(
                name, f"{hook} is `async def`: hooks are plain `def`; what must wait belongs into the step it returns"
            )
        if inspect.isgeneratorfunction(function):
            raise PluginError(name, f"{hook} is a generator: return the value instead of yielding it")
        spec = getattr(self._pluggy.hook, hook).spec
        offered = [*spec.argnames]
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise PluginError(
                    name, f"{hook} takes `{parameter}`: name the arguments it wants ({', '.join(offered)})"
                )
            if parameter.kind is parameter.KEYWORD_ONLY:
                raise PluginError(name, f"{hook} takes `{parameter.name}` after `*`: remove the `*`")
            if parameter.default is not parameter.empty:
                raise PluginError(
                    name, f"{hook} gives `{parameter.name}` a default, so it would never be filled: remove the default"
                )
            if parameter.name not in offered:
                near = _nearest(parameter.name, offered)
                takes = ", ".join(offered) or "no arguments"
                raise PluginError(
                    name, f"{hook} takes `{parameter.name}`, which the hook does not have{near}; it has: {takes}"
                )

    def _described(self, name: PluginId) -> PluginInfo:
        mine = [call for call in self._implementations("describe") if call.plugin_name == name]
        if len(mine) != 1:
            number = "no" if not mine else str(len(mine))
            raise PluginError(
                name, f"has {number} describe hooks: write exactly one `describe` that returns PluginInfo"
            )
        try:
            info = mine[0].function()
        except BaseException as error:
            if must_pass(error):
                raise
            raise PluginError(name, f"describe raised {describe_error(error)}") from error
        if not isinstance(info, PluginInfo):
            if inspect.iscoroutine(info):
                info.close()
            raise PluginError(name, f"describe returned {type(info).__name__}: return a PluginInfo")
        _check_info(name, info)
        return info

    def _implementations(self, hook: str) -> list[pluggy.HookImpl]:
        caller: pluggy.HookCaller = getattr(self._pluggy.hook, hook)
        return caller.get_hookimpls()

    def hooks(self, order: list[PluginId]) -> dict[str, tuple[HookCall, ...]]:
        """Every hook's implementations in the order this module promises, which is not quite pluggy's own."""
        place = {plugin: index for index, plugin in enumerate(order)}

        def rank(implementation: pluggy.HookImpl) -> tuple[int, int]:
            first_last = 0 if implementation.tryfirst else 2 if implementation.trylast else 1
            return first_last, place[implementation.plugin_name]

        return {
            hook: tuple(
                HookCall(one.plugin_name, one.function, tuple(one.argnames))
                for one in sorted(self._implementations(hook), key=rank)
            )
            for hook in self._hook_names
        }


def _check_info(name: PluginId, info: PluginInfo) -> None:
    """Types do not hold plugins that were never type-checked: a capability text would become its letters."""

    def want(field: str, good: bool, what: str) -> None:
        if not good:
            raise PluginError(name, f"describe: `{field}` is not {what}: {getattr(info, field)!r}")

    want("version", isinstance(info.version, str), "a text")
    want("summary", isinstance(info.summary, str), "a text")
    for field in ("capabilities", "notes", "cookies"):
        value = getattr(info, field)
        want(field, isinstance(value, tuple) and all(isinstance(one, str) and one for one in value), "a tuple of texts")
    want(
        "claims",
        isinstance(info.claims, tuple)
        and all(isinstance(one, Claim) and isinstance(one.field, str) and callable(one.guards) for one in info.claims),
        "a tuple of Claim(field, guards)",
    )
    want(
        "options",
        info.options is None or (isinstance(info.options, type) and issubclass(info.options, BaseModel)),
        "a pydantic model class",
    )
    for field in ("settings", "target_settings"):
        value = getattr(info, field)
        want(field, isinstance(value, tuple) and all(isinstance(one, type) for one in value), "a tuple of classes")


def _check_shared_names(loaded: Sequence[LoadedPlugin], core_claims: Collection[str]) -> None:
    """Names that all plugins share have one owner each."""
    owners: dict[tuple[str, object], PluginId] = {("claim", field): "the host itself" for field in core_claims}
    for plugin in loaded:
        info = plugin.info
        names: list[tuple[str, object]] = [
            *(("claim", claim.field) for claim in info.claims),
            *(("capability", name) for name in info.capabilities),
            *(("note", name) for name in info.notes),
            *(("cookie", name) for name in info.cookies),
        ]
        if info.options is not None:
            names.append(("options model", info.options))
        for kind, value in names:
            owner = owners.setdefault((kind, value), plugin.id)
            shown = value.__name__ if isinstance(value, type) else value
            if owner != plugin.id:
                raise PluginError(
                    plugin.id, f"{kind} {shown} belongs to {owner} already: take one of the two plugins off the list"
                )
            if names.count((kind, value)) > 1:
                raise PluginError(plugin.id, f"describe names {kind} {shown} twice: remove one")


def _distribution(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist is not None else ("an unknown distribution", "0")


def _is_own_function(plugin: object, function: object) -> bool:
    """Whether it is a method of the plugin's, or a function that the plugin's module defines and not imports."""
    if isinstance(plugin, ModuleType):
        return inspect.isfunction(function) and function.__module__ == plugin.__name__
    return inspect.isroutine(function)


def _nearest(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
