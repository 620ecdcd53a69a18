"""The limit on descriptors, raised in a child process that starts with a low one."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHILD = """
import resource
from netbird_host.descriptors import raise_limit
hard = {hard}
resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
print(raise_limit(), raise_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize("hard", [200, 999])
def test_the_hard_limit_is_taken(hard: int) -> None:
    """The soft limit is raised to the hard limit, which stays unchanged."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(hard=hard)], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.split() == [str(hard)] * 4
