"""Fixtures for whoever tests a plugin. Loaded by pytest itself through the `pytest11` entry point.

It imports nothing heavy at load: pytest loads it in every run of an environment that has the proxy installed.
"""

from __future__ import annotations
