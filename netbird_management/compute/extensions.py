"""What services and targets say to plugins, and to the core, beyond NetBird's own fields: `extensions`.

Judged when a service is saved, by the models that the proxy judges by again when it applies the mapping. An id that no
loaded plugin claims is refused here, and refuses the mapping there.
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

MAX_BYTES: Final = 256 << 10
"""Of all of a service's extensions, as JSON."""

Extensions = Mapping[str, Mapping[str, Any]]


def kept(given: Service, old: Service, sent: frozenset[str]) -> Service:
    """With the stored extensions where the caller left them out: an older client must not take off what guards.

    A target is the one that it was while its id and path are.
    """
    stored = {(target.target_id, target.path or "/"): target.extensions for target in old.targets}

    def target(i: int, one: Target) -> Target:
        if f"targets.{i}.extensions" in sent:
            return one
        return replace(one, extensions=stored.get((one.target_id, one.path or "/"), {}))

    targets = tuple(target(i, one) for i, one in enumerate(given.targets))
    return replace(given, targets=targets, extensions=given.extensions if "extensions" in sent else old.extensions)


def write(service: Service, mapping: ProxyMapping) -> None:
    """Into a mapping with a path for each enabled target. Raises `InvalidArgument` for what the wire cannot carry."""
    _write(mapping, service.extensions, "extensions")
    enabled = [target for target in service.targets if target.enabled]
    for i, (target, path) in enumerate(zip(enabled, mapping.path, strict=True)):
        _write(path, target.extensions, f"target {i}: extensions")


def check(service: Service, mapping: ProxyMapping, hooks: Hooks) -> None:
    """Judges all of them.

    Args:
        mapping: what proxies would get of the service with every target enabled.

    Raises:
        InvalidArgument: one of them is nobody's, too large, or not as its plugin wants it. No message quotes a value.
        HookError: a plugin could not judge.
    """
    said = [service.extensions, *(target.extensions for target in service.targets)]
    if sum(len(json.dumps(one)) for one in said) > MAX_BYTES:
        raise InvalidArgument(f"extensions must be at most {MAX_BYTES} bytes together")
    whole = replace(service, targets=tuple(replace(target, enabled=True) for target in service.targets))
    if missing := unclaimed(whole, hooks):
        raise InvalidArgument(f"no plugin of this management understands {', '.join(missing)}: add it to plugins")
    write(whole, mapping)
    _check_core(service, mapping)
    for plugin, model in hooks.settings:
        _read("extensions", plugin, model, mapping)
    for plugin, model in hooks.target_settings:
        for i, path in enumerate(mapping.path):
            _read(f"target {i}: extensions", plugin, model, mapping, path)


def unclaimed(service: Service, hooks: Hooks) -> tuple[str, ...]:
    """The fields of the mapping that no plugin gives meaning to."""
    return tuple(field for field, _ in _fields(service) if field not in hooks.claims and not field.endswith(f".{CORE}"))


def guarding(mapping: ProxyMapping, hooks: Hooks) -> frozenset[str]:
    """The fields that a proxy must enforce or not have the mapping. A predicate that fails has not said otherwise."""
    found: set[str] = set()
    if read_settings(mapping, CORE).get("ask_for_both"):
        found.add(ASK_FOR_BOTH)
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
                found.add(field)
    return frozenset(found)


def _fields(service: Service) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for plugin, said in service.extensions.items():
        yield f"plugin_settings.{plugin}", said
    for target in service.targets:
        if target.enabled:
            for plugin, said in target.extensions.items():
                yield f"path.plugin_settings.{plugin}", said


def _write(message: ProxyMapping | PathMapping, extensions: Extensions, where: str) -> None:
    for plugin, said in extensions.items():
        try:
            write_settings(message, plugin, said)
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidArgument(f"{where}.{plugin}: a value cannot be sent to proxies") from error


def _check_core(service: Service, mapping: ProxyMapping) -> None:
    try:
        said = CoreSettings.model_validate(read_settings(mapping, CORE))
    except ValidationError as error:
        raise InvalidArgument(f"extensions.{CORE}: {_wrong(error)}") from None
    auth = mapping.auth
    if said.ask_for_both and (service.private or not (auth.password or auth.pin or auth.oidc or auth.header_auths)):
        raise InvalidArgument(f"extensions.{CORE}: ask_for_both is for public services with a way to log in")
    for i, (target, path) in enumerate(zip(service.targets, mapping.path, strict=True)):
        try:
            core = CoreTargetSettings.model_validate(read_settings(path, CORE))
        except ValidationError as error:
            raise InvalidArgument(f"target {i}: extensions.{CORE}: {_wrong(error)}") from None
        if (core.ca or core.server_name) and target.protocol != "https":
            raise InvalidArgument(f"target {i}: extensions.{CORE}: ca and server_name are for https targets")
        if core.ca and target.options.skip_tls_verify:
            raise InvalidArgument(f"target {i}: extensions.{CORE}: choose between ca and skip_tls_verify")


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
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_input=False))
