"""Tasks outside a TaskGroup are started in one place, which says who owns them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("netbird_host", "netbird_proxy", "netbird_management", "netbird_overlay", "plugins")
ALLOWED = {
    "netbird_host/tasks.py",
    "netbird_host/running.py",  # the main task: no loop runs yet
}


def loose_tasks(tree: ast.AST) -> list[int]:
    """Lines that start a task on a loop, or construct `asyncio.Task`."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            on_loop = node.func.attr == "create_task" and owner.endswith(("loop", "loop()"))
            if on_loop or (node.func.attr == "Task" and owner == "asyncio"):
                lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("package", PACKAGES)
def test_every_task_has_an_owner(package: str) -> None:
    """Code of the product starts tasks in a TaskGroup, or through `netbird_host.tasks`."""
    loose = [
        f"{name}:{line}"
        for file in sorted((ROOT / package).rglob("*.py"))
        if (name := str(file.relative_to(ROOT))) not in ALLOWED and not {"tests", "target"} & set(file.parts)
        for line in loose_tasks(ast.parse(file.read_text()))
    ]
    assert loose == []


def test_a_loose_task_is_reported() -> None:
    """The check knows the spellings that ruff does not ban."""
    code = """
asyncio.Task(x())
self._loop.create_task(x())
asyncio.get_running_loop().create_task(x())
group.create_task(x())
"""
    assert loose_tasks(ast.parse(code)) == [2, 3, 4]
