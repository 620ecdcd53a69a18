"""No module imports itself by way of others, imports for type checkers included."""

from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

PACKAGES = ("netbird_host", "netbird_management", "netbird_wire")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_by_way_of_others(package: str) -> None:
    """Layers allow what lies on one of them to be a tangle; modules without cycles are read, tested and moved alone."""
    graph = grimp.build_graph(package, exclude_type_checking_imports=False, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}

    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))
