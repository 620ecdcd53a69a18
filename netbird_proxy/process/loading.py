"""Loads and validates plugins, settings and files before any part of the proxy starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from netbird_host.settings import Settings, Shown
from netbird_proxy.api.errors import SettingsError
from netbird_proxy.api.share import WHOLE, Share
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
    """Validated settings and loaded plugins of a proxy that is not started."""

    settings: ProxySettings
    given: Settings[ProxySettings]
    """The same settings, each with its source."""
    read_again: Callable[[], Settings[ProxySettings]]
    """Reads the settings again for the loaded plugins. SettingsError if they cannot be used."""
    options: Mapping[str, BaseModel]
    hooks: Hooks
    codec: Codec
    shown: Sequence[Shown] = ()
    ignored: Sequence[str] = ()
    share: Share = WHOLE
    """The share that this process has, if it is a worker; its `settings` are that share already, `given` is not."""


def load(sources: ProxySources) -> Loaded:
    """Load the operator's plugins, then validate the settings, sections of the plugins included.

    Raises:
        SettingsError, PluginFailed: the message names the change to make. No part is started.
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
    """Read all files that a start reads. SettingsError names the file that cannot be used.

    The mappings file is decoded but not compiled, because only a running plugin can compile its routes.
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
