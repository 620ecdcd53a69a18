"""The settings of the cycle collector."""

import subprocess
import sys

CODE = """
import gc
from netbird_host.collector import calm_collector
loaded = [[] for _ in range(100_000)]
calm_collector()
assert gc.get_freeze_count() > 100_000
assert gc.get_stats()[2]["collections"] and gc.get_threshold()[0] > 10_000
seen = []
gc.callbacks.append(lambda phase, info: seen.append(info))
made = [[] for _ in range(10_000)]
assert not seen, "it looked already"
one = []; one.append(one); del one
assert gc.collect() >= 1, "a cycle is found"
"""


def test_what_was_loaded_is_never_looked_at_again() -> None:
    """Objects that exist at the start are excluded from collection; later cycles are still collected."""
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=60)
