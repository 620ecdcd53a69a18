"""Comparison of the guards of a host's routes: a path that can be read in two ways must be guarded alike in both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from netbird_proxy.api.model import RouteSpec
from netbird_proxy.api.steps import Authenticator, Guard, RequestTransform, ResponseTransform
from netbird_proxy.api.tunnels import Dialer

_RUNS = frozenset(("check", "identify", "apply"))
Step = Guard | Authenticator | RequestTransform | ResponseTransform


@dataclass(frozen=True, slots=True)
class Protection:
    """All that may refuse a request on a route, or decide how it reaches the upstream.

    Attributes:
        steps: for each stage, plugin ids and steps in order.
        dialers: plugin ids and dialers of the route's upstreams.
    """

    spec: RouteSpec
    steps: tuple[Sequence[tuple[str, Step]], ...]
    dialers: Sequence[tuple[str, Dialer]]

    def equals(self, other: Protection) -> bool:
        """True if both routes are certainly guarded alike. Values that cannot be compared count as different."""
        try:
            return (
                _settings(self.spec) == _settings(other.spec)
                and all(_are_equal(mine, its) for mine, its in zip(self.steps, other.steps, strict=True))
                and _same_set(self.dialers, other.dialers)
                and _same_set(
                    [upstream.values for upstream in self.spec.upstreams],
                    [upstream.values for upstream in other.spec.upstreams],
                )
            )
        except BaseException:  # from a plugin's `__eq__`: sync code, which cannot be cancelled
            return False


def _settings(spec: RouteSpec) -> tuple[object, ...]:
    return spec.guarding, spec.values, spec.kind, spec.same_origin, spec.preflight_origins, spec.ask_for_both


def _are_equal(some: Sequence[tuple[str, Step]], others: Sequence[tuple[str, Step]]) -> bool:
    return len(some) == len(others) and all(
        plugin == owner and is_equal_step(step, other)
        for (plugin, step), (owner, other) in zip(some, others, strict=True)
    )


def is_equal_step(step: Step, other: Step) -> bool:
    """True if two steps decide alike: they have the same callable, or declare that they depend on equal values."""
    if type(step) is not type(other) or step.depends_on is None:
        return step == other
    compared = [field.name for field in fields(step) if field.name not in _RUNS]
    return all(getattr(step, name) == getattr(other, name) for name in compared)


def _same_set(some: Iterable[object], others: Iterable[object]) -> bool:
    """True if both collections contain equal values, which may be unhashable."""
    mine, its = list(some), list(others)
    return all(value in its for value in mine) and all(value in mine for value in its)
