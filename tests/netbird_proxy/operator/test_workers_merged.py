"""Answers of several workers as those of one proxy."""

from __future__ import annotations

from netbird_proxy.operator.workers import latest, merged_gauges, merged_report, merged_rows, merged_story


def test_gauges_are_summed_unless_each_worker_has_them_in_full() -> None:
    """A worker without a report changes nothing."""
    first = {"services": 7, "tunnels": 2, "exchanges_open": 3, "management_connected": 1}
    second = {"services": 6, "tunnels": 2, "exchanges_open": 4, "management_connected": 0}
    assert merged_gauges([first, {}, second]) == {
        "services": 7,
        "tunnels": 4,
        "exchanges_open": 7,
        "management_connected": 0,
    }
    assert merged_gauges([]) == {}


def test_rows_of_all_are_shown_once_and_others_name_their_workers() -> None:
    """In the order of the first worker that has them."""
    both, mine = {"host": "a", "refused": ""}, {"host": "b", "refused": "no port"}
    assert merged_rows({1: [both], 2: [mine, both]}) == [both, mine | {"workers": [2]}]
    assert merged_rows({2: [both]}) == [both]
    assert merged_rows({}) == []


def test_equal_dry_runs_are_one() -> None:
    """A worker that would do something else is shown beside the first."""
    story, other = {"outcome": "service a"}, {"outcome": "no route"}
    assert merged_story({1: story, 2: story}) == story
    assert merged_story({1: story, 2: story, 3: other}) == story | {"workers": {"1": story, "3": other}}


def test_the_last_refusals_are_ordered_by_time() -> None:
    """Over all workers, bounded, each with its worker."""
    answers = {1: [{"at": "2026-01-01T00:00:03"}, {"at": "2026-01-01T00:00:01"}], 2: [{"at": "2026-01-01T00:00:02"}]}
    assert latest(answers, 2) == [
        {"at": "2026-01-01T00:00:03", "worker": 1},
        {"at": "2026-01-01T00:00:02", "worker": 2},
    ]


def test_lines_of_a_reload_that_not_all_report_name_their_workers() -> None:
    """A worker that does not answer keeps its old state, as far as anybody can tell."""
    first = {"done": ["log: level debug"], "kept": ["a"], "needs_restart": ["limits.drain"]}
    second = {"done": ["log: level debug"], "kept": [], "needs_restart": ["limits.drain"]}
    assert merged_report({1: first, 2: second}, [3]) == {
        "done": ["log: level debug"],
        "kept": ["worker 1: a", "worker 3: did not answer"],
        "needs_restart": ["limits.drain"],
    }
