"""The typed hooks of the proxy, through which compiler, server and command line call plugins.

RouteRefused passes through. Any other exception of a hook, and a result of a wrong type, becomes PluginFailed, which
names the plugin. The route is then refused, and never served without the plugin.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar, get_args

import structlog
from pydantic import BaseModel

from netbird_host.containment import describe_error, must_pass
from netbird_host.info import Claim, PluginId
from netbird_host.plugins import LoadedPlugin, PluginError, Plugins, load
from netbird_host.tasks import start_owned
from netbird_proxy.api import hookspecs
from netbird_proxy.api.endpoints import Endpoint
from netbird_proxy.api.errors import PluginFailed, RouteRefused
from netbird_proxy.api.host import AccountHandle, Proxy
from netbird_proxy.api.model import Kind, RouteSpec, ServiceMapping, Upstream
from netbird_proxy.api.steps import (
    PHASES,
    Authenticator,
    Guard,
    MappingSettings,
    Observer,
    Pages,
    RequestTransform,
    ResponseTransform,
    Selector,
    TargetSettings,
)
from netbird_proxy.api.tunnels import Dialer, Tunnel

if TYPE_CHECKING:
    import typer

log = structlog.get_logger("netbird_proxy.plugins")

GROUP = "netbird_proxy"
"""The entry-point group of this host's plugins."""

T = TypeVar("T")
_KINDS = frozenset(get_args(Kind))


def load_hooks(
    allowed: Sequence[PluginId | tuple[PluginId, object]] = (),
    *,
    defaults: Mapping[PluginId, object] | None = None,
    core_claims: Collection[str] = (),
    reserved_ids: Collection[str] = (),
) -> Hooks:
    """Load the operator's plugins and the proxy's own.

    Args:
        allowed: entry-point names, or `(id, object)` pairs from a program or a test.
        defaults: the proxy's own plugins by id; a running proxy passes `netbird_proxy.defaults.DEFAULTS`.

    Raises:
        PluginFailed: a plugin is missing or wrong; the message names the necessary change.
    """
    try:
        plugins = load(
            hookspecs.PROJECT,
            hookspecs,
            group=GROUP,
            allowed=allowed,
            defaults=defaults,
            core_claims=core_claims,
            reserved_ids=reserved_ids,
        )
    except PluginError as error:
        raise PluginFailed(error.plugin, error.message) from error
    hooks = Hooks(plugins)
    for section in hooks.options:
        if section in reserved_ids:
            raise PluginFailed(section, "its options use a section of the proxy's own settings: choose another name")
    return hooks


class Hooks:
    """A method for each hook, and the declarations of all plugins.

    Attributes:
        claims: wire field → the plugin that supports it, and its claim.
        capabilities: capabilities to report to management, sorted.
        notes: declared keys of notes.
        cookies: declared cookie name → plugin.
        options: section of the settings file → the plugin's model. A section is named after its plugin's id, unless the
            model declares a name: `section: ClassVar[str] = "tunnel"`.
        settings, target_settings: models to read from each mapping and each target, with their plugins.
    """

    def __init__(self, plugins: Plugins) -> None:
        self.plugins = plugins
        self.claims: Mapping[str, tuple[PluginId, Claim]] = {
            claim.field: (plugin.id, claim) for plugin in plugins for claim in plugin.info.claims
        }
        self.capabilities: tuple[str, ...] = tuple(
            sorted(name for plugin in plugins for name in plugin.info.capabilities)
        )
        self.notes: frozenset[str] = frozenset(name for plugin in plugins for name in plugin.info.notes)
        self.cookies: Mapping[str, PluginId] = {name: plugin.id for plugin in plugins for name in plugin.info.cookies}
        self.options: Mapping[str, type[BaseModel]] = _sections(plugins)
        self.settings: tuple[tuple[PluginId, type[MappingSettings]], ...] = tuple(
            (plugin.id, _readable(plugin, model)) for plugin in plugins for model in plugin.info.settings
        )
        self.target_settings: tuple[tuple[PluginId, type[TargetSettings]], ...] = tuple(
            (plugin.id, _readable(plugin, model)) for plugin in plugins for model in plugin.info.target_settings
        )

    def restrict(self, route: RouteSpec, proxy: Proxy) -> list[tuple[PluginId, Guard]]:
        return self._guards_of("restrict", route, proxy)

    def authorize(self, route: RouteSpec, proxy: Proxy) -> list[tuple[PluginId, Guard]]:
        return self._guards_of("authorize", route, proxy)

    def authenticate(self, route: RouteSpec, proxy: Proxy) -> list[tuple[PluginId, Authenticator]]:
        """All authenticators by phase, inside a phase in plugin order, then in the order of a plugin's list."""
        steps: list[tuple[PluginId, Authenticator]] = []
        for plugin, answer in self._answers("authenticate", route=route, proxy=proxy):
            for item in answer if isinstance(answer, list | tuple) else [answer]:
                step = _typed(plugin, "authenticate", item, Authenticator)
                if step.phase not in PHASES:
                    raise PluginFailed(plugin, f"authenticate: phase {step.phase!r} is not one of {', '.join(PHASES)}")
                _check_step(plugin, "authenticate", step.identify, step.kinds, step.body_bytes)
                steps.append((plugin, step))
        return sorted(steps, key=lambda pair: PHASES.index(pair[1].phase))

    def endpoint(self, host: ServiceMapping, proxy: Proxy) -> list[tuple[PluginId, Endpoint]]:
        steps: list[tuple[PluginId, Endpoint]] = []
        for plugin, answer in self._answers("endpoint", host=host, proxy=proxy):
            step = _typed(plugin, "endpoint", answer, Endpoint)
            if not callable(step.app):
                raise PluginFailed(plugin, f"endpoint: the application is {type(step.app).__name__}")
            steps.append((plugin, step))
        return steps

    def pages(self, proxy: Proxy) -> tuple[PluginId, Pages] | None:
        """The page maker, and its plugin; None leaves browsers with plain text."""
        for plugin, answer in self._answers("pages", proxy=proxy):
            if not callable(answer):
                raise PluginFailed(plugin, f"pages returned {type(answer).__name__}, which cannot be called")
            _check_sync(plugin, "pages", answer)
            return plugin, answer
        return None

    def transform_request(self, route: RouteSpec, proxy: Proxy) -> list[tuple[PluginId, RequestTransform]]:
        steps: list[tuple[PluginId, RequestTransform]] = []
        for plugin, answer in self._answers("transform_request", route=route, proxy=proxy):
            step = _typed(plugin, "transform_request", answer, RequestTransform)
            _check_transform(plugin, "transform_request", step)
            steps.append((plugin, step))
        return steps

    def transform_response(self, route: RouteSpec, proxy: Proxy) -> list[tuple[PluginId, ResponseTransform]]:
        steps: list[tuple[PluginId, ResponseTransform]] = []
        for plugin, answer in self._answers("transform_response", route=route, proxy=proxy):
            step = _typed(plugin, "transform_response", answer, ResponseTransform)
            _check_transform(plugin, "transform_response", step)
            steps.append((plugin, step))
        return steps

    def select(self, route: RouteSpec, proxy: Proxy) -> tuple[PluginId, Selector] | None:
        """The first selector that a plugin returns; None lets the route's upstreams take turns."""
        for plugin, answer in self._answers("select", route=route, proxy=proxy):
            step = _typed(plugin, "select", answer, Selector)
            _check_sync(plugin, "select", step.pick)
            if step.outcome is not None:
                _check_sync(plugin, "select", step.outcome)
            return plugin, step
        return None

    def observe(self, route: RouteSpec | None, proxy: Proxy) -> list[tuple[PluginId, Observer]]:
        steps: list[tuple[PluginId, Observer]] = []
        for plugin, answer in self._answers("observe", route=route, proxy=proxy):
            if not callable(answer):
                raise PluginFailed(plugin, f"observe returned {type(answer).__name__}, which cannot be called")
            _check_sync(plugin, "observe", answer)
            steps.append((plugin, answer))
        return steps

    def dialer(self, route: RouteSpec, upstream: Upstream, proxy: Proxy) -> tuple[PluginId, Dialer] | None:
        """The first dialer that a plugin returns. If it is None, no plugin reaches the upstream: refuse the route."""
        for plugin, answer in self._answers("dialer", route=route, upstream=upstream, proxy=proxy):
            if not callable(getattr(answer, "dial", None)):
                raise PluginFailed(plugin, f"dialer returned {type(answer).__name__}, which has no `dial`")
            return plugin, answer  # type: ignore[return-value]  # it has the protocol's method
        return None

    def open_tunnel(
        self, account: AccountHandle, proxy: Proxy
    ) -> tuple[PluginId, AbstractAsyncContextManager[Tunnel]] | None:
        for plugin, answer in self._answers("open_tunnel", account=account, proxy=proxy):
            return plugin, _context(plugin, "open_tunnel", answer)
        return None

    @property
    def opens_tunnels(self) -> bool:
        """True if a plugin can open tunnels, which `private` requires."""
        return bool(self.plugins.calls("open_tunnel"))

    def lifespans(self, proxy: Proxy) -> list[tuple[PluginId, AbstractAsyncContextManager[None]]]:
        """The plugins' lifespans in order; `running` enters and leaves them."""
        return [
            (plugin, _context(plugin, "lifespan", answer)) for plugin, answer in self._answers("lifespan", proxy=proxy)
        ]

    @asynccontextmanager
    async def running(
        self, proxy: Proxy, *, on_failure: Callable[[PluginFailed], None] | None = None
    ) -> AsyncIterator[None]:
        """Enter all plugins' lifespans in order, and leave them in reverse, each in a task of its own.

        Every lifespan is left, even if others fail.

        Args:
            on_failure: called when a lifespan's background work has failed, so that the process can end properly.
                Without it, the calling task is cancelled, as a TaskGroup does.

        Raises:
            PluginFailed: a lifespan raised on entering or leaving, or its background work failed.
        """
        entered: list[_Lifespan] = []
        failed: PluginFailed | None = None
        owner, ended = asyncio.current_task(), False

        def end(_failed: PluginFailed) -> None:
            nonlocal ended
            if owner is not None and not ended:
                ended = True
                owner.cancel()

        try:
            for plugin, context in self.lifespans(proxy):
                lifespan = _Lifespan(plugin, context, on_failure or end)
                entered.append(lifespan)
                await lifespan.enter()
            yield
        except asyncio.CancelledError:
            if owner is None or not ended or owner.uncancel():
                raise
        finally:
            for lifespan in reversed(entered):
                failed = await lifespan.leave() or failed
        if failed is not None:
            raise failed

    def commands(self) -> list[tuple[PluginId, typer.Typer]]:
        import typer

        return [
            (plugin, _typed(plugin, "commands", answer, typer.Typer)) for plugin, answer in self._answers("commands")
        ]

    def _guards_of(self, hook: str, route: RouteSpec, proxy: Proxy) -> list[tuple[PluginId, Guard]]:
        steps: list[tuple[PluginId, Guard]] = []
        for plugin, answer in self._answers(hook, route=route, proxy=proxy):
            guard = _typed(plugin, hook, answer, Guard)
            _check_step(plugin, hook, guard.check, guard.kinds, guard.body_bytes)
            steps.append((plugin, guard))
        return steps

    def _answers(self, hook: str, **arguments: object) -> list[tuple[PluginId, object]]:
        """The results of a hook's implementations, without None; only the first one for a `first` hook."""
        first = hook in ("dialer", "open_tunnel", "pages", "select")
        answers: list[tuple[PluginId, object]] = []
        for plugin, call in self.plugins.calls(hook):
            try:
                answer = call(**arguments)
            except RouteRefused:
                raise
            except BaseException as error:
                if must_pass(error):
                    raise
                raise PluginFailed(plugin, f"{hook} raised {describe_error(error)}") from error
            if answer is None:
                continue
            if inspect.iscoroutine(answer):
                answer.close()
                raise PluginFailed(plugin, f"{hook} returned a coroutine: hooks are plain `def`")
            answers.append((plugin, answer))
            if first:
                break
        return answers


class _Lifespan:
    """A plugin's lifespan in a task of its own. A failure ends that task, and is reported with the plugin's id.

    `leave` may be called whether or not `enter` succeeded.
    """

    def __init__(
        self,
        plugin: PluginId,
        context: AbstractAsyncContextManager[None],
        on_failure: Callable[[PluginFailed], None],
    ) -> None:
        self._plugin = plugin
        self._context = context
        self._on_failure = on_failure
        self._entered = asyncio.Event()
        self._leaving = asyncio.Event()
        self._failed: PluginFailed | None = None
        self._task: asyncio.Task[None] | None = None

    async def enter(self) -> None:
        """Start the lifespan. PluginFailed if it could not start."""
        # Not in a group: a failing or hanging lifespan of a plugin must not end the process.
        self._task = start_owned(self._run(), name=f"lifespan of {self._plugin}")
        entering = start_owned(self._entered.wait())
        try:
            await asyncio.wait((self._task, entering), return_when=asyncio.FIRST_COMPLETED)
        finally:
            entering.cancel()
        if not self._entered.is_set():
            failed, self._failed = self._failed, None
            raise failed or PluginFailed(self._plugin, "lifespan could not start: it was cancelled")

    async def leave(self) -> PluginFailed | None:
        """End the lifespan, and return its failure, if any."""
        self._leaving.set()
        if self._task is not None:
            if not self._entered.is_set():
                self._task.cancel()
            await asyncio.wait((self._task,))
        return self._failed

    async def _run(self) -> None:
        try:
            async with self._context:
                self._entered.set()
                await self._leaving.wait()
        except BaseException as error:
            if must_pass(error):
                raise
            what = "failed" if self._entered.is_set() else "could not start"
            self._failed = PluginFailed(self._plugin, f"lifespan {what}: {describe_error(error)}")
            self._failed.__cause__ = error
            if self._entered.is_set():
                for leaf in _leaves(error):
                    log.error("plugin.failed", plugin=self._plugin, error=describe_error(leaf), exc_info=leaf)
                if not self._leaving.is_set():
                    self._on_failure(self._failed)
        else:
            if not self._leaving.is_set():  # the lifespan swallowed an exception or a cancellation
                self._failed = PluginFailed(self._plugin, "lifespan ended by itself")
                self._on_failure(self._failed)


def _leaves(error: BaseException) -> list[BaseException]:
    """The raised exceptions in a group, with their own tracebacks, which the traceback of the group does not show."""
    if isinstance(error, BaseExceptionGroup) and all(part.__traceback__ for part in error.exceptions):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]


def _typed(plugin: PluginId, hook: str, answer: object, kind: type[T]) -> T:
    if not isinstance(answer, kind):
        raise PluginFailed(plugin, f"{hook} returned {type(answer).__name__}: return {kind.__name__} or None")
    return answer


def _context(plugin: PluginId, hook: str, answer: object) -> AbstractAsyncContextManager[T]:
    if not isinstance(answer, AbstractAsyncContextManager):  # structural check: both methods are present
        raise PluginFailed(plugin, f"{hook} returned {type(answer).__name__}: return an async context manager or None")
    return answer


def _check_step(plugin: PluginId, hook: str, run: Callable[..., object], kinds: Collection[str], body: int) -> None:
    if not callable(run):
        raise PluginFailed(plugin, f"{hook}: the step is {type(run).__name__}, which cannot be called")
    if not isinstance(kinds, frozenset) or not kinds or not kinds <= _KINDS:
        raise PluginFailed(plugin, f"{hook}: kinds {kinds!r} is not a frozenset out of {', '.join(sorted(_KINDS))}")
    if not isinstance(body, int) or body < 0:
        raise PluginFailed(plugin, f"{hook}: body_bytes {body!r} is not a number of bytes")


def _check_sync(plugin: PluginId, hook: str, run: Callable[..., object]) -> None:
    if not callable(run):
        raise PluginFailed(plugin, f"{hook}: the step is {type(run).__name__}, which cannot be called")
    if inspect.iscoroutinefunction(run) or inspect.isasyncgenfunction(run):
        raise PluginFailed(plugin, f"{hook}: the step is `async def`, and nobody would await it: write plain `def`")


def _check_transform(plugin: PluginId, hook: str, step: RequestTransform | ResponseTransform) -> None:
    _check_sync(plugin, hook, step.apply)
    if not isinstance(step.owns, tuple) or not all(isinstance(name, bytes) and name for name in step.owns):
        raise PluginFailed(plugin, f"{hook}: `owns` is not a tuple of header names in bytes")


def _sections(plugins: Plugins) -> dict[str, type[BaseModel]]:
    sections: dict[str, type[BaseModel]] = {}
    for plugin in plugins:
        model = plugin.info.options
        if model is None:
            continue
        section = getattr(model, "section", plugin.id)
        if not isinstance(section, str) or sections.setdefault(section, model) is not model:
            raise PluginFailed(plugin.id, f"its section [{section}] belongs to another plugin: choose another name")
    return sections


def _readable(plugin: LoadedPlugin, model: type[T]) -> type[T]:
    if not callable(getattr(model, "from_wire", None)):
        raise PluginFailed(plugin.id, f"settings model {model.__name__} has no `from_wire`: add the classmethod")
    return model
