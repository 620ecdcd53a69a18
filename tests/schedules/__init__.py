"""Seeded schedules: the house in one process, faults on every line, and the promises checked on what upstreams saw."""
