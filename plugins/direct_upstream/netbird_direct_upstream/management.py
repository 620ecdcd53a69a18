"""Management's half: which targets may be flagged, and the flag in what proxies get."""

from __future__ import annotations

from importlib.metadata import version

from netbird_direct_upstream.settings import FIELD, DirectUpstreamSettings
from netbird_management import Claim, PluginInfo, Service, TargetType, Violation, hookimpl
from netbird_wire.proxy_service_pb2 import ProxyMapping


class DirectUpstream:
    """A flagged target is dialed from the proxy's network, so it names an address there."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            version=version("netbird-direct-upstream"),
            summary="targets dialed from the proxy's own network, where its operator allows the address",
            claims=(Claim(FIELD),),
        )

    @hookimpl
    def validate_service(self, service: Service) -> list[Violation]:
        found: list[Violation] = []
        for i, target in enumerate(service.targets):
            if target.options.direct_upstream:
                if service.mode not in ("", "http"):
                    found.append(
                        Violation(
                            f"target {i}: direct_upstream needs mode http", f"targets.{i}.options.direct_upstream"
                        )
                    )
                if target.target_type in (TargetType.CLUSTER, TargetType.SUBNET) and not target.host:
                    found.append(Violation(f"target {i}: a direct upstream needs a host", f"targets.{i}.host"))
            elif target.target_type is TargetType.CLUSTER:
                found.append(
                    Violation(f"target {i}: {target.host} has direct upstream disabled", f"targets.{i}.target_type")
                )
        return found

    @hookimpl
    def build_mapping(self, service: Service, mapping: ProxyMapping) -> None:
        enabled = [target for target in service.targets if target.enabled]
        for target, path in zip(enabled, mapping.path, strict=True):
            DirectUpstreamSettings(direct=target.options.direct_upstream).to_wire(path)
