"""Management's half: validates flagged targets, and sends the flag to proxies."""

from __future__ import annotations

from importlib.metadata import version

from netbird_direct_upstream.settings import FIELD, DirectUpstreamSettings
from netbird_management import Claim, PluginInfo, Service, TargetType, Violation, hookimpl
from netbird_wire.proxy_service_pb2 import ProxyMapping


class DirectUpstream:
    """Requires a host for a flagged target, which the proxy dials from its own network."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            version=version("netbird-direct-upstream"),
            summary="targets dialed from the proxy's own network, where its operator allows the address",
            claims=(Claim(FIELD),),
        )

    @hookimpl
    def validate_service(self, service: Service) -> list[Violation]:
        violations: list[Violation] = []
        for i, target in enumerate(service.targets):
            if target.options.direct_upstream:
                if service.mode not in ("", "http"):
                    violations.append(
                        Violation(
                            f"target {i}: direct_upstream needs mode http", f"targets.{i}.options.direct_upstream"
                        )
                    )
                if target.target_type in (TargetType.CLUSTER, TargetType.SUBNET) and not target.host:
                    violations.append(Violation(f"target {i}: a direct upstream needs a host", f"targets.{i}.host"))
            elif target.target_type is TargetType.CLUSTER:
                violations.append(
                    Violation(f"target {i}: {target.host} has direct upstream disabled", f"targets.{i}.target_type")
                )
        return violations

    @hookimpl
    def build_mapping(self, service: Service, mapping: ProxyMapping) -> None:
        enabled = [target for target in service.targets if target.enabled]
        for target, path in zip(enabled, mapping.path, strict=True):
            DirectUpstreamSettings(direct=target.options.direct_upstream).to_wire(path)
