"""Listen ports of tcp, udp and tls services: free ports of a cluster, and checks of requested ports."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from netbird_management.model.errors import Conflict, InvalidArgument, PreconditionFailed
from netbird_management.model.services import Service
from netbird_management.store.state import State

PORT_MIN: Final = 10_000
PORT_MAX: Final = 49_151
_TRIES: Final = 100


def with_port(state: State, service: Service, previous: Service | None, *, custom_ports: bool | None) -> Service:
    """The service with its listen port: the stored one, the requested one after a check, or a free one if it is 0.

    `custom_ports` is the capability that the cluster's proxies report; TLS does not need it, as proxies distinguish TLS
    services by server name. Call this inside the account's transaction, so that no other service can take the port
    meanwhile. Raises `InvalidArgument`, `Conflict`, and `PreconditionFailed` if the cluster has no free port.
    """
    if service.mode == "http":
        return replace(service, port_auto_assigned=False)
    same_cluster = previous is not None and previous.proxy_cluster == service.proxy_cluster
    if previous is not None and same_cluster and not service.listen_port and previous.listen_port:
        service = replace(service, listen_port=previous.listen_port, port_auto_assigned=previous.port_auto_assigned)
    kept = previous is not None and same_cluster and service.listen_port == previous.listen_port
    if service.listen_port and not kept and service.mode != "tls" and not custom_ports:
        raise InvalidArgument(f"custom ports are not supported on cluster {service.proxy_cluster}")

    def others(port: int) -> Iterator[Service]:
        for snapshot in state.snapshots.all():
            services = snapshot.index.on_port(service.proxy_cluster, port).values()
            yield from (other for other in services if other.id != service.id)

    if not service.listen_port:
        port = _free_port(lambda port: next(others(port), None) is None)
        return replace(service, listen_port=port, port_auto_assigned=True)
    for other in others(service.listen_port):
        if other.mode == service.mode and (service.mode != "tls" or other.domain == service.domain):
            raise Conflict(f"{service.mode} port {service.listen_port} is already in use by another service")
    return service


def _free_port(is_free: Callable[[int], bool]) -> int:
    for _ in range(_TRIES):
        port = PORT_MIN + secrets.randbelow(PORT_MAX - PORT_MIN + 1)
        if is_free(port):
            return port
    for port in range(PORT_MIN, PORT_MAX + 1):
        if is_free(port):
            return port
    raise PreconditionFailed("no free listen port is left on the cluster")
