"""Loads plugins, checks them and orders their hooks. pluggy is the registry; the hosts' facades make the calls.

Any fault in a plugin stops the start, because a plugin that is loaded in part could leave out a guard.

The order of every hook: implementations marked `tryfirst`, then unmarked ones, then `trylast`; within each rank the
order of the operator's list `plugins = [...]`, then the host's own plugins in the host's order. To move one of the
host's own plugins forward, the operator names it in the list.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from types import ModuleType

import pluggy
from pydantic import BaseModel

from netbird_host.containment import describe_error, must_pass
from netbird_host.info import Claim, PluginId, PluginInfo

_ID = re.compile(r"[a-z][a-z0-9_]*\Z")


class PluginError(Exception):
    """A plugin cannot be used. `message` states the fault and the remedy."""

    def __init__(self, plugin: PluginId, message: str) -> None:
        super().__init__(f"plugin {plugin}: {message}")
        self.plugin = plugin
        self.message = message


@dataclass(frozen=True, slots=True)
class LoadedPlugin:
    """One loaded plugin.

    Attributes:
        plugin: the instance or module that contains the hook implementations.
        distribution: the package that installed it; empty for the host's own plugins and for objects passed in.
        version: the distribution's version, else the one that `describe` returns.
    """

    id: PluginId
    plugin: object
    info: PluginInfo
    distribution: str = ""
    version: str = "0"


@dataclass(frozen=True, slots=True)
class HookCall:
    """One implementation of one hook. Accepts all arguments of the hook and passes on those that the function names."""

    plugin: PluginId
    function: Callable[..., object]
    arguments: tuple[str, ...]

    def __call__(self, **given: object) -> object:
        return self.function(*[given[name] for name in self.arguments])


@dataclass(frozen=True, slots=True)
class Installed:
    """A plugin that a distribution in the environment offers; not imported."""

    id: PluginId
    distribution: str
    version: str


class Plugins:
    """The plugins of one host, checked and in order."""

    def __init__(self, loaded: Sequence[LoadedPlugin], hooks: Mapping[str, tuple[HookCall, ...]]) -> None:
        self._loaded = {plugin.id: plugin for plugin in loaded}
        self._hooks = hooks

    def __iter__(self) -> Iterator[LoadedPlugin]:
        """Iterate in the operator's order, the host's own plugins last."""
        return iter(self._loaded.values())

    def __len__(self) -> int:
        return len(self._loaded)

    def __contains__(self, plugin: object) -> bool:
        return plugin in self._loaded

    def __getitem__(self, plugin: PluginId) -> LoadedPlugin:
        return self._loaded[plugin]

    def calls(self, hook: str) -> tuple[tuple[PluginId, HookCall], ...]:
        """Return the implementations of a hook in calling order. Raises KeyError for a hook that the host lacks."""
        return tuple((call.plugin, call) for call in self._hooks[hook])

    def implementers(self, hook: str) -> tuple[PluginId, ...]:
        """Return the ids of the plugins that implement a hook, in calling order, each once."""
        return tuple(dict.fromkeys(call.plugin for call in self._hooks[hook]))


def installed(group: str) -> list[Installed]:
    """List the plugins that the environment offers under an entry-point group, sorted by name. Imports nothing."""
    return sorted(
        (Installed(point.name, *_distribution(point)) for point in _offered(group, tuple(sys.path))),
        key=lambda offer: (offer.id, offer.distribution),
    )


@lru_cache(4)
def _offered(group: str, _path: tuple[str, ...]) -> EntryPoints:
    """The entry points of a group. Cached, because a look-up reads the metadata of every installed distribution."""
    return entry_points(group=group)


def not_loaded(group: str, allowed: Collection[str]) -> list[PluginId]:
    """List the plugins that are installed but missing from the operator's list."""
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
    """Import, instantiate, register and check the plugins of a host.

    Args:
        project: pluggy's project name, with which hookspecs and hookimpls are marked.
        allowed: the operator's list: names of entry points, or `(id, object)` from a program that embeds the host.
            No other plugin is imported.
        defaults: the host's own plugins in order: a class, module or object, or a string `module:attribute`.
        core_claims: fields that the host itself understands; no plugin may claim them.
        reserved_ids: names with another meaning to the host, such as sections of its settings file.

    Raises:
        PluginError: for the first fault.
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
        for point in _offered(group, tuple(sys.path)):
            self._offers.setdefault(point.name, []).append(point)

    def in_order(self, allowed: Sequence[PluginId | tuple[PluginId, object]]) -> list[tuple[PluginId, object]]:
        """Return the id and source of each plugin: the operator's list, then the host's other own plugins."""
        entries: dict[PluginId, object] = {}
        for item in allowed:
            name, source = item if isinstance(item, tuple) else (item, None)
            if not isinstance(name, str) or not _ID.match(name):
                raise PluginError(str(name), "is not a plugin's name: use lower-case letters, digits and underscores")
            if name in entries:
                raise PluginError(name, "is listed twice: remove one")
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
            available = sorted({*self._offers, *self._defaults})
            near = _nearest(name, available)
            listing = f"installed: {', '.join(available)}" if available else "no plugin is installed"
            raise PluginError(name, f"is not installed{near}; install it or remove it from the list ({listing})")
        if len(offers) > 1:
            raise PluginError(name, f"is offered by several distributions ({names}): uninstall all but one")
        return offers[0]

    def load(self, entry: tuple[PluginId, object]) -> LoadedPlugin:
        """Import, instantiate, check and register one plugin, and call its `describe`."""
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
                name, f"importing {where} raised {describe_error(error)}: fix it or remove it from the list"
            ) from error
        if isinstance(target, type):
            try:
                return target()
            except BaseException as error:
                if must_pass(error):
                    raise
                raise PluginError(
                    name,
                    f"{target.__qualname__}() raised {describe_error(error)}: it must take no arguments",
                ) from error
        if isinstance(source, EntryPoint) and not isinstance(target, ModuleType):
            raise PluginError(name, f"{where} is neither a class nor a module: the entry point must name one of them")
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
                        name, f"{attribute} has a hook's name but is not marked: add @hookimpl to it or rename it"
                    )
                continue
            hook = mark.get("specname") or attribute
            if hook not in self._hook_names:
                if mark.get("optionalhook"):
                    continue
                near = _nearest(hook, self._hook_names)
                raise PluginError(name, f"{hook} is not a hook of this host{near}")
            if mark.get("wrapper") or mark.get("hookwrapper"):
                raise PluginError(name, f"{hook} is a hook wrapper, which is not supported: write a plain hook")
            if mark.get("tryfirst") and mark.get("trylast"):
                raise PluginError(name, f"{hook} is marked tryfirst and trylast: choose one")
            self._check_signature(name, hook, function)

    def _check_signature(self, name: PluginId, hook: str, function: Callable[..., object]) -> None:
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise PluginError(
                name, f"{hook} is `async def`: hooks are plain `def`; code that awaits belongs in the step it returns"
            )
        if inspect.isgeneratorfunction(function):
            raise PluginError(name, f"{hook} is a generator: return the value instead of yielding it")
        spec = getattr(self._pluggy.hook, hook).spec
        offered = [*spec.argnames]
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise PluginError(
                    name, f"{hook} takes `{parameter}`: name the arguments that it uses ({', '.join(offered)})"
                )
            if parameter.kind is parameter.KEYWORD_ONLY:
                raise PluginError(name, f"{hook} takes `{parameter.name}` after `*`: remove the `*`")
            if parameter.default is not parameter.empty:
                raise PluginError(
                    name, f"{hook} gives `{parameter.name}` a default, so it is never passed: remove the default"
                )
            if parameter.name not in offered:
                near = _nearest(parameter.name, offered)
                takes = ", ".join(offered) or "no arguments"
                raise PluginError(
                    name, f"{hook} takes `{parameter.name}`, which is not one of its arguments{near}: {takes}"
                )

    def _described(self, name: PluginId) -> PluginInfo:
        mine = [call for call in self._implementations("describe") if call.plugin_name == name]
        if len(mine) != 1:
            number = "no" if not mine else str(len(mine))
            raise PluginError(
                name, f"has {number} describe hooks: define exactly one `describe` that returns PluginInfo"
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
        """Return every hook's implementations in the order that this module promises, which differs from pluggy's."""
        place = {plugin: index for index, plugin in enumerate(order)}

        def rank(implementation: pluggy.HookImpl) -> tuple[int, int]:
            first_last = 0 if implementation.tryfirst else 2 if implementation.trylast else 1
            return first_last, place[implementation.plugin_name]

        return {
            hook: tuple(
                HookCall(implementation.plugin_name, implementation.function, tuple(implementation.argnames))
                for implementation in sorted(self._implementations(hook), key=rank)
            )
            for hook in self._hook_names
        }


def _check_info(name: PluginId, info: PluginInfo) -> None:
    """Check the types at run time, for plugins without type checks: a plain string would be read letter by letter."""

    def require(field: str, valid: bool, expected: str) -> None:
        if not valid:
            raise PluginError(name, f"describe: `{field}` must be {expected}, not {getattr(info, field)!r}")

    require("version", isinstance(info.version, str), "a string")
    require("summary", isinstance(info.summary, str), "a string")
    for field in ("capabilities", "notes", "cookies"):
        value = getattr(info, field)
        valid = isinstance(value, tuple) and all(isinstance(text, str) and text for text in value)
        require(field, valid, "a tuple of strings")
    require(
        "claims",
        isinstance(info.claims, tuple)
        and all(
            isinstance(claim, Claim) and isinstance(claim.field, str) and callable(claim.guards)
            for claim in info.claims
        ),
        "a tuple of Claim(field, guards)",
    )
    require(
        "options",
        info.options is None or (isinstance(info.options, type) and issubclass(info.options, BaseModel)),
        "a pydantic model class",
    )
    for field in ("settings", "target_settings"):
        value = getattr(info, field)
        require(field, isinstance(value, tuple) and all(isinstance(item, type) for item in value), "a tuple of classes")


def _check_shared_names(loaded: Sequence[LoadedPlugin], core_claims: Collection[str]) -> None:
    """Check that each claim, capability, note, cookie and options model belongs to one plugin only."""
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
                    plugin.id, f"{kind} {shown} belongs to {owner} already: remove one of the two plugins from the list"
                )
            if names.count((kind, value)) > 1:
                raise PluginError(plugin.id, f"describe names {kind} {shown} twice: remove one")


def _distribution(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist is not None else ("an unknown distribution", "0")


def _is_own_function(plugin: object, function: object) -> bool:
    """True for a method of the plugin, or a function that the plugin's module defines and does not merely import."""
    if isinstance(plugin, ModuleType):
        return inspect.isfunction(function) and function.__module__ == plugin.__name__
    return inspect.isroutine(function)


def _nearest(name: str, names: Collection[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
