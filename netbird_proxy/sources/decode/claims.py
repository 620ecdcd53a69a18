"""Checks that each field which a mapping sets is claimed by the core or by a loaded plugin.

An unclaimed field may be the one that keeps clients out, so a mapping that sets one is refused. A field that guards is
recorded under the plugin that must enforce it, so that compiling can check that the plugin does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from netbird_host.info import Claim, PluginId
from netbird_proxy.api.errors import PluginFailed, RouteRefused
from netbird_wire import middlewares
from netbird_wire.plugin_settings import CORE
from netbird_wire.proxy_service_pb2 import (
    AccessRestrictions,
    Authentication,
    HeaderAuth,
    PathMapping,
    PathTargetOptions,
    ProxyMapping,
)

Parts = tuple[str, ...]

CORE_CLAIMS: Final = frozenset(
    {
        "type",
        "id",
        "account_id",
        "domain",
        "mode",
        "listen_port",
        "auth_token",
        "auth.session_key",
        "auth.max_session_age_seconds",
        "pass_host_header",
        "rewrite_redirects",
        "path.path",
        "path.target",
        "path.options.skip_tls_verify",
        "path.options.request_timeout",
        "path.options.path_rewrite",
        "path.options.custom_headers",
        "path.options.proxy_protocol",
        "path.options.session_idle_timeout",
        "path.options.capture_max_request_bytes",
        "path.options.capture_max_response_bytes",
        "path.options.capture_content_types",
        "path.options.agent_network",
        "path.options.disable_access_log",
        f"plugin_settings.{CORE}",
        f"path.plugin_settings.{CORE}",
    }
)
"""Fields that the core understands. None of them guards."""

_SPELLINGS: Final = {"direct_upstream_11": "direct_upstream"}
_SETTINGS: Final = "plugin_settings"
# Messages that no plugin may claim whole, because other plugins guard with fields in them.
_CONTAINERS: Final = frozenset({"path", "path.options", _SETTINGS, f"path.{_SETTINGS}"})

# Messages in which an unknown field or enum value may be a guard.
_STRICT: Final = frozenset(
    kind.DESCRIPTOR.full_name for kind in (ProxyMapping, Authentication, HeaderAuth, AccessRestrictions)
)


@dataclass(frozen=True, slots=True)
class ClaimedFields:
    """The fields that one message sets.

    Attributes:
        unclaimed: dotted names of set fields that neither the core nor a plugin claims.
        guarding: dotted names of set fields that guard, by the plugin that must enforce them.
    """

    unclaimed: tuple[str, ...]
    guarding: Mapping[PluginId, tuple[str, ...]]


class Claims:
    """The claims of the core and of the loaded plugins."""

    def __init__(self, claims: Mapping[str, tuple[PluginId, Claim]]) -> None:
        """Raises PluginFailed for a claim of a field that does not exist: a misspelt one would guard nothing."""
        self._core = frozenset(_parts(name) for name in CORE_CLAIMS)
        self._claims = {_parts(name): owned for name, owned in claims.items()}
        for name, (plugin, _) in claims.items():
            if name in CORE_CLAIMS:
                raise PluginFailed(plugin, f"claims {name}, which is the core's")
            if name in _CONTAINERS:
                raise PluginFailed(plugin, f"claims {name} whole: claim its fields one by one")
            if not _exists(_parts(name)):
                raise PluginFailed(plugin, f"claims {name}, which is not a field of a mapping")
        self.names: tuple[str, ...] = tuple(sorted(claims))

    def judge(self, mapping: ProxyMapping) -> ClaimedFields:
        """Check all fields but those of targets. Raises RouteRefused if a plugin's predicate fails."""
        return self._judge(mapping, (), skip=frozenset({"path"}))

    def judge_path(self, path: PathMapping) -> ClaimedFields:
        """Check the fields of one target. Raises RouteRefused if a plugin's predicate fails."""
        return self._judge(path, ("path",))

    def _judge(self, message: Message, prefix: Parts, *, skip: Collection[str] = ()) -> ClaimedFields:
        unclaimed: list[str] = []
        claimed: dict[Parts, Any] = {}
        for parts, value, owners in _set_fields(message, prefix, skip):
            cover = self._cover(parts)
            if cover is None:
                unclaimed.append(".".join(parts))
            elif cover in self._claims:
                # The predicate gets the value at the level of the claim: the message, or the field.
                claimed[cover] = value if cover == parts else owners[cover]
        guarding: dict[PluginId, list[str]] = {}
        for parts, value in claimed.items():
            plugin, claim = self._claims[parts]
            if _guards(plugin, claim, value):
                guarding.setdefault(plugin, []).append(claim.field)
        return ClaimedFields(tuple(unclaimed), {plugin: tuple(fields) for plugin, fields in guarding.items()})

    def _cover(self, parts: Parts) -> Parts | None:
        """The closest claim: of the field itself, else of the nearest message around it."""
        for length in range(len(parts), 0, -1):
            around = parts[:length]
            if around in self._claims or around in self._core:
                return around
        return None


def unknown_in(mapping: ProxyMapping, *, tolerate: Collection[int] = ()) -> tuple[list[str], list[str]]:
    """Find fields and values that our declarations lack. Returns those that refuse the mapping, and those ignored.

    Args:
        tolerate: field numbers of ProxyMapping itself that the operator declared harmless.
    """
    refusing: list[str] = []
    ignored: list[str] = []
    for where, kind, number in _unknown(mapping, ""):
        name = f"{where}#{number}"
        if kind in _STRICT and not (where == "" and number in tolerate):
            refusing.append(name)
        elif not (where == "path.options" and number == middlewares.NUMBER):
            ignored.append(name)
    for where, kind, value in _unknown_enums(mapping, ""):
        (refusing if kind in _STRICT else ignored).append(f"{where}={value}")
    for path in mapping.path:
        _judge_middlewares(path.options, refusing, ignored)
    return refusing, ignored


def _judge_middlewares(options: PathTargetOptions, refusing: list[str], ignored: list[str]) -> None:
    try:
        present = middlewares.middlewares_of(options)
    except middlewares.BadMiddlewares:
        refusing.append("path.options.middlewares (unreadable)")
        return
    for middleware in present:
        names = refusing if middlewares.guards(middleware) else ignored
        names.append(f"path.options.middlewares ({middleware.id or 'unnamed'})")


def _guards(plugin: PluginId, claim: Claim, value: Any) -> bool:
    try:
        verdict: object = claim.guards(value)
    except Exception as error:
        # A plugin's code may raise any exception, and then the field has not been declared harmless.
        raise RouteRefused(f"plugin {plugin} could not judge {claim.field}: {type(error).__name__}") from error
    return verdict is not False


def _parts(name: str) -> Parts:
    """Split a dotted name. The text after `plugin_settings.` is one key, even if it contains dots."""
    head, mark, key = name.partition(f"{_SETTINGS}.")
    return (*filter(None, head.split(".")), *((_SETTINGS, key) if mark else ()))


def _exists(parts: Parts) -> bool:
    if _SETTINGS in parts:
        return parts[:-1] in ((_SETTINGS,), ("path", _SETTINGS)) and bool(parts[-1])
    kind = ProxyMapping.DESCRIPTOR
    for position, name in enumerate(parts):
        field = kind.fields_by_name.get(name)
        if field is None or name in _SPELLINGS:
            return False
        if position == len(parts) - 1:
            return True
        if field.message_type is None or not (_is_ours(field) and (name == "path" or not field.is_repeated)):
            return False
        kind = field.message_type
    return False


def _is_ours(field: FieldDescriptor) -> bool:
    kind = field.message_type
    return kind is not None and kind.full_name.startswith("management.") and not kind.GetOptions().map_entry


def _set_fields(
    message: Message, prefix: Parts, skip: Collection[str] = ()
) -> Iterator[tuple[Parts, Any, dict[Parts, Any]]]:
    """Yield each field with a value: its path, the value, and the messages around it by their paths."""
    yield from _walk(message, prefix, {prefix: message}, skip)


def _walk(
    message: Message, prefix: Parts, around: dict[Parts, Any], skip: Collection[str] = ()
) -> Iterator[tuple[Parts, Any, dict[Parts, Any]]]:
    for field, value in message.ListFields():
        if field.name in skip:
            continue
        parts = (*prefix, _SPELLINGS.get(field.name, field.name))
        if field.name == _SETTINGS:
            for key in sorted(value):
                yield (*parts, key), value[key], around
        elif _is_ours(field) and not field.is_repeated:
            yield from _walk(value, parts, {**around, parts: value})
        elif value != "off":
            yield parts, value, around


def _unknown(message: Message, where: str) -> Iterator[tuple[str, str, int]]:
    unknown = UnknownFieldSet(message)
    for position in range(len(unknown)):
        yield where, message.DESCRIPTOR.full_name, unknown[position].field_number
    for field, value in message.ListFields():
        if _is_ours(field):
            for child in value if field.is_repeated else (value,):
                yield from _unknown(child, f"{where}.{field.name}" if where else field.name)


def _unknown_enums(message: Message, where: str) -> Iterator[tuple[str, str, int]]:
    for field, value in message.ListFields():
        name = f"{where}.{field.name}" if where else field.name
        if _is_ours(field):
            for child in value if field.is_repeated else (value,):
                yield from _unknown_enums(child, name)
        elif field.enum_type is not None and value not in field.enum_type.values_by_number:
            yield name, message.DESCRIPTOR.full_name, value
