"""No module imports itself by way of others. Imports for type checking count: they tie modules together as well."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

PACKAGES = (
    "netbird_host",
    "netbird_wire",
    "netbird_http",
    "netbird_overlay",
    "netbird_proxy",
    "netbird_private_service",
    "netbird_identity_headers",
    "netbird_response_headers",
    "netbird_load_balancing",
    "netbird_direct_upstream",
    "netbird_tunnel_netstack",
    "netbird_peer",
    "netbird_signal",
    "netbird_relay",
)


def cycle(graph: grimp.ImportGraph) -> list[str]:
    """One circle of modules, first and last the same; empty where there is none."""
    sorter = TopologicalSorter({module: graph.find_modules_directly_imported_by(module) for module in graph.modules})
    try:
        sorter.prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle
    return []


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_import_one_another_in_one_direction(package: str) -> None:
    """The imports of a package's modules form no circle."""
    graph = grimp.build_graph(package, exclude_type_checking_imports=False, cache_dir=None)

    assert graph.modules
    assert cycle(graph) == []


def test_a_circle_is_reported() -> None:
    """A circle of three modules does not pass."""
    graph = grimp.ImportGraph()
    for importer, imported in (("a", "b"), ("b", "c"), ("c", "a")):
        graph.add_module(importer)
        graph.add_module(imported)
        graph.add_import(importer=importer, imported=imported)

    assert set(cycle(graph)) == {"a", "b", "c"}
