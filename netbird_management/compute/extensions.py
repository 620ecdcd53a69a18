"""Extensions: settings of services and targets for plugins and the core, beyond NetBird's own fields.

Management validates them when a service is saved; the proxy validates them by the same models when it applies the
mapping. Management refuses a plugin id that no loaded plugin claims; a proxy refuses a mapping with such an id.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from pydantic import ValidationError

from netbird_management.model.errors import InvalidArgument
from netbird_management.model.services import Service, Target
from netbird_management.plugins.hooks import HookError, Hooks
from netbird_wire.core_settings import ASK_FOR_BOTH, CoreSettings, CoreTargetSettings
from netbird_wire.plugin_settings import CORE, read_settings, write_settings
from netbird_wire.proxy_service_pb2 import PathMapping, ProxyMapping

# Maximum size of all extensions of a service together, as JSON.
MAX_BYTES: Final = 256 << 10

Extensions = Mapping[str, Mapping[str, Any]]


def keep_unsent(given: Service, old: Service, sent: frozenset[str]) -> Service:
    """The service with its stored extensions where the client sent none, so that an older client does not remove a
    protection that it does not support.

    A target keeps its extensions as long as its id and path stay equal.
    """
    stored = {(target.target_id, target.path or "/"): target.extensions for target in old.targets}

    def merged(i: int, target: Target) -> Target:
        if f"targets.{i}.extensions" in sent:
            return target
        return replace(target, extensions=stored.get((target.target_id, target.path or "/"), {}))

    targets = tuple(merged(i, target) for i, target in enumerate(given.targets))
    return replace(given, targets=targets, extensions=given.extensions if "extensions" in sent else old.extensions)


def write(service: Service, mapping: ProxyMapping) -> None:
    """Writes the extensions into a mapping with one path per enabled target. Raises `InvalidArgument` for a value that
    the wire format cannot represent."""
    _write(mapping, service.extensions, "extensions")
    enabled = [target for target in service.targets if target.enabled]
    for i, (target, path) in enumerate(zip(enabled, mapping.path, strict=True)):
        _write(path, target.extensions, f"target {i}: extensions")


def check(service: Service, mapping: ProxyMapping, hooks: Hooks) -> None:
    """Validates all extensions of a service.

    Args:
        mapping: the mapping that proxies would get if every target were enabled.

    Raises:
        InvalidArgument: no plugin claims an extension, or it is too large or invalid. No message quotes a value.
        HookError: a plugin's model failed.
    """
    extensions = [service.extensions, *(target.extensions for target in service.targets)]
    if sum(len(json.dumps(settings)) for settings in extensions) > MAX_BYTES:
        raise InvalidArgument(f"extensions must be at most {MAX_BYTES} bytes in total")
    whole = replace(service, targets=tuple(replace(target, enabled=True) for target in service.targets))
    if missing := unclaimed(whole, hooks):
        raise InvalidArgument(f"no plugin of this management supports {', '.join(missing)}: add it to plugins")
    write(whole, mapping)
    _check_core(service, mapping)
    for plugin, model in hooks.settings:
        _read("extensions", plugin, model, mapping)
    for plugin, model in hooks.target_settings:
        for i, path in enumerate(mapping.path):
            _read(f"target {i}: extensions", plugin, model, mapping, path)


def unclaimed(service: Service, hooks: Hooks) -> tuple[str, ...]:
    """The extension fields of the mapping that no loaded plugin claims."""
    return tuple(field for field, _ in _fields(service) if field not in hooks.claims and not field.endswith(f".{CORE}"))


def guarding(mapping: ProxyMapping, hooks: Hooks) -> frozenset[str]:
    """The fields that a proxy must enforce to get the mapping. A field whose `guards` predicate fails is included."""
    fields: set[str] = set()
    if read_settings(mapping, CORE).get("ask_for_both"):
        fields.add(ASK_FOR_BOTH)
    messages: list[tuple[ProxyMapping | PathMapping, str]] = [(mapping, "")]
    messages += [(path, "path.") for path in mapping.path]
    for message, prefix in messages:
        for plugin in message.plugin_settings:
            field = f"{prefix}plugin_settings.{plugin}"
            claim = hooks.by_field.get(field)
            if claim is None:
                continue
            try:
                harmless = claim.guards(message.plugin_settings[plugin]) is False
            except Exception:
                harmless = False
            if not harmless:
                fields.add(field)
    return frozenset(fields)


def _fields(service: Service) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for plugin, settings in service.extensions.items():
        yield f"plugin_settings.{plugin}", settings
    for target in service.targets:
        if target.enabled:
            for plugin, settings in target.extensions.items():
                yield f"path.plugin_settings.{plugin}", settings


def _write(message: ProxyMapping | PathMapping, extensions: Extensions, where: str) -> None:
    for plugin, settings in extensions.items():
        try:
            write_settings(message, plugin, settings)
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidArgument(f"{where}.{plugin}: a value cannot be sent to proxies") from error


def _check_core(service: Service, mapping: ProxyMapping) -> None:
    try:
        settings = CoreSettings.model_validate(read_settings(mapping, CORE))
    except ValidationError as error:
        raise InvalidArgument(f"extensions.{CORE}: {_wrong(error)}") from None
    auth = mapping.auth
    can_log_in = auth.password or auth.pin or auth.oidc or auth.header_auths
    if settings.ask_for_both and (service.private or not can_log_in):
        raise InvalidArgument(f"extensions.{CORE}: ask_for_both is only supported for public services with a login")
    for i, (target, path) in enumerate(zip(service.targets, mapping.path, strict=True)):
        try:
            core = CoreTargetSettings.model_validate(read_settings(path, CORE))
        except ValidationError as error:
            raise InvalidArgument(f"target {i}: extensions.{CORE}: {_wrong(error)}") from None
        if (core.ca or core.server_name) and target.protocol != "https":
            raise InvalidArgument(f"target {i}: extensions.{CORE}: ca and server_name need an https target")
        if core.ca and target.options.skip_tls_verify:
            raise InvalidArgument(f"target {i}: extensions.{CORE}: ca cannot be combined with skip_tls_verify")


def _read(where: str, plugin: str, model: type[Any], *arguments: ProxyMapping | PathMapping) -> None:
    try:
        model.from_wire(*arguments)
    except ValidationError as error:
        raise InvalidArgument(f"{where}.{plugin}: {_wrong(error)}") from None
    except ValueError as error:
        raise InvalidArgument(f"{where}.{plugin}: {error}") from error
    except Exception as error:
        raise HookError(plugin, model.__name__, f"from_wire raised {type(error).__name__}") from error


def _wrong(error: ValidationError) -> str:
    errors = error.errors(include_input=False)
    return "; ".join(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in errors)
