"""What is judged before anything runs: the operator's plugins, the settings whose sections they know, and files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from netbird_host.settings import Settings, Shown
from netbird_proxy.api.errors import SettingsError
from netbird_proxy.defaults import DEFAULTS
from netbird_proxy.listening.tls import ServerTls
from netbird_proxy.process.settings import RESERVED_SECTIONS, ProxySettings, ProxySources
from netbird_proxy.process.state import open_state, proxy_id
from netbird_proxy.routing.hooks import Hooks, load_hooks
from netbird_proxy.sources.decode.claims import CORE_CLAIMS
from netbird_proxy.sources.decode.codec import Codec
from netbird_proxy.sources.file.read import MappingsRefused
from netbird_proxy.sources.file.watch import decode_mappings


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings and plugins, judged together; nothing is running yet."""

    settings: ProxySettings
    given: Settings[ProxySettings]
    """The same with their sources."""
    read_again: Callable[[], Settings[ProxySettings]]
    """Reads the settings once more, for the plugins that are loaded. SettingsError where they cannot be used."""
    options: Mapping[str, BaseModel]
    hooks: Hooks
    codec: Codec
    shown: Sequence[Shown] = ()
    ignored: Sequence[str] = ()


def load(sources: ProxySources) -> Loaded:
    """Load the operator's plugins, then judge the settings, whose sections those plugins know.

    Raises:
        SettingsError, PluginFailed: with what to change. Nothing was started.
    """
    hooks = load_hooks(sources.plugins, defaults=DEFAULTS, core_claims=CORE_CLAIMS, reserved_ids=RESERVED_SECTIONS)
    settings = sources.settings(hooks.options)
    if settings.value.private and not hooks.opens_tunnels:
        raise SettingsError(
            "private = true, but no plugin opens tunnels: add tunnel_netstack to `plugins`, or set private = false"
        )
    return Loaded(
        settings=settings.value,
        given=settings,
        read_again=lambda: sources.again().settings(hooks.options),
        options=settings.options,
        hooks=hooks,
        codec=Codec(hooks),
        shown=settings.show(),
        ignored=sources.ignored,
    )


def judge_files(loaded: Loaded) -> None:
    """Read what a start would read, and start nothing. SettingsError naming the file that cannot be used.

    Of the mappings file this judges everything but what only a running plugin can: whether it compiles.
    """
    settings = loaded.settings
    if settings.management is not None:
        settings.management.read_token()
    if settings.mappings_file is not None:
        try:
            decode_mappings(settings.mappings_file, loaded.codec)
        except MappingsRefused as refused:
            raise SettingsError("\n".join(f"mappings_file: {problem}" for problem in refused.problems)) from refused
    if settings.tls.certificates:
        ServerTls(settings.tls.certificates)
    if settings.state_directory.exists():
        proxy_id(open_state(settings.state_directory))
