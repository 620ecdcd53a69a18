"""The figures of a run as percentiles, ratios, goals, tables, pictures and pages."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bench import bulk, goals, openloop, page, plot, report, results, schemes
from bench.goals import GOALS, Goal
from bench.measure import Footprint, LoadFailed, Sample
from bench.openloop import Latency
from bench.results import Results, Series
from bench.rows import BROWSER, CADDY, CADDY_NOW, HAPROXY, HTTP, NGINX, PRODUCT, ROWS

SVG = "{http://www.w3.org/2000/svg}"


def run(**costs: dict[str, float]) -> Results:
    """A run whose rows have these CPU seconds per 1,000."""
    made = Results("http", "2026-01-01T00:00+00:00", {"cores": "2"}, {"rounds": 3, "seconds": 2})
    for row, subjects in costs.items():
        for name, cost in subjects.items():
            made.add(row.replace("_", "-"), name, Sample(1000, 1.0, cost))
    return made


def test_best_round_counts_and_the_spread_tells_of_the_others() -> None:
    """Neighbors on a machine can only make a request dearer."""
    series = Series("x", "plain", [Sample(1000, 1.0, 0.2), Sample(2000, 1.0, 0.2), Sample(1000, 1.0, 0.15)])
    assert series.cpu == pytest.approx(0.1)
    assert series.spread == pytest.approx(1.0)
    assert series.rate == 2000


@pytest.mark.parametrize(("part", "value"), [(0.0, 1), (0.5, 50), (0.99, 99), (0.995, 100), (1.0, 100)])
def test_a_percentile_is_a_value_that_was_measured(part: float, value: int) -> None:
    """The smallest value that the part does not exceed; nothing is interpolated."""
    assert openloop.percentile(range(1, 101), part) == value
    assert openloop.percentile([7.0], part) == 7.0


def test_an_open_loop_without_answers_is_no_figure() -> None:
    """It would have the best latency of all."""
    with pytest.raises(LoadFailed):
        openloop.summary(500, [], [])
    assert openloop.summary(500, [0.3, 0.1, 0.2], [0.0]) == Latency(500, 3, 0.2, 0.3, 0.3, 0.0)


def test_goals_name_the_cheaper_caddy() -> None:
    """A new release that got cheaper makes the goal harder, never a dearer one easier."""
    value = goals.ratio("plain", CADDY, CADDY_NOW)

    assert value(run(plain={CADDY: 0.1, CADDY_NOW: 0.08, PRODUCT: 0.04})) == pytest.approx(0.5)
    assert value(run(plain={CADDY_NOW: 0.16, PRODUCT: 0.04})) == pytest.approx(0.25)
    assert value(run(plain={PRODUCT: 0.04})) is None
    assert value(run(plain={CADDY: 0.1})) is None


def test_added_latency_leaves_out_the_upstreams_own() -> None:
    """And the generator's, which is part of both; the best round of each stands."""
    made = Results("http")
    for name, p50 in (("upstream", 1.0), (HAPROXY, 1.5), (HAPROXY, 1.2), (PRODUCT, 1.4)):
        made.latencies.setdefault(name, []).append(Latency(500, 10, p50, 2 * p50, 9, 0))

    assert goals.latency("p50")(made) == pytest.approx(2.0)
    del made.latencies["upstream"]
    assert goals.latency("p50")(made) is None


def test_a_goal_is_met_at_its_limit_and_missing_figures_meet_none() -> None:
    """`at_least` turns it around."""
    most = Goal("http", "a", "≤ 2", 2, goals.figure("a"))
    least = Goal("http", "b", "≥ 0.8", 0.8, goals.figure("b"), at_least=True)
    none = Goal("overlay", "c", "≤ 1", 1, goals.figure("a"))
    more = Goal("http", "d", "≤ +20", 20, goals.figure("d"), digits=0)
    made = Results("http", figures={"a": 2.0, "b": 0.79, "d": 30})

    lines = report.goals({"http": made}, [most, least, none, more]).splitlines()[2:]

    assert lines == [
        "| a | ≤ 2 | 2.00 | yes |",
        "| b | ≥ 0.8 | 0.79 | **no** |",
        "| c | ≤ 1 | not measured | – |",
        "| d | ≤ +20 | +30 | **no** |",
    ]


def test_every_goal_reads_rows_that_exist() -> None:
    """A run that measured every row, everybody at the same cost, leaves no goal without a figure but for the extras."""
    made = run(**{key.replace("-", "_"): dict.fromkeys(row.subjects, 0.1) for key, row in ROWS.items()})

    missing = [goal.work for goal in GOALS if goal.value(made) is None]

    assert all(goal.value(made) == pytest.approx(1.0) for goal in GOALS if goal.value(made) is not None)
    assert len(GOALS) - len(missing) == 16


def test_a_browsers_head_has_fifteen_fields() -> None:
    """Host, which the load generator adds, is one of them."""
    assert len({line.partition(":")[0].lower() for line in BROWSER}) == 14


def test_tables_compare_rows_of_the_overlay_with_the_row_without_it() -> None:
    """Peers have no overlay."""
    made = run(plain={NGINX: 0.02, CADDY: 0.1, PRODUCT: 0.05}, private={PRODUCT: 0.2})

    lines = report.table(made).splitlines()

    assert "| netbird-proxy | 50.0 | +0 % | 1,000 | 2.50 | 0.50 |" in lines
    assert "| netbird-proxy | 200.0 | +0 % | 1,000 | 10.00 | 2.00 |" in lines


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Pages can be made again from the file alone."""
    made = run(plain={NGINX: 0.02})
    made.directory = tmp_path
    made.latencies[NGINX] = [Latency(500, 10, 0.1, 0.2, 0.3, 0.0)]
    made.footprints[NGINX] = [Footprint(8.5, 9, 1)]
    made.figures["idle: connections"] = 5276.88
    made.fail("Caddy", RuntimeError("Caddy ended:\n first\n  last"))
    made.fail("Caddy", RuntimeError("Caddy ended:\n first\n  last"))

    made.save()

    assert results.load("http", tmp_path) == made
    assert made.failures == ["Caddy: Caddy ended: … last"]
    assert results.load("overlay", tmp_path) is None
    assert not list(tmp_path.glob("*.partial"))


def test_failures_are_named_on_the_page() -> None:
    """A peer that did not start is missing with its reason, not in silence."""
    made = run(plain={NGINX: 0.02})
    made.failures.append("mitmproxy: no such file")

    assert "- mitmproxy: no such file" in report.provenance(made)


def test_only_the_generated_part_of_the_page_is_replaced(tmp_path: Path) -> None:
    """Text around the generated part stays; a page without a place for it is an error."""
    file = tmp_path / "performance.md"
    begin, end = page.GOALS
    file.write_text(f"# Mine\n\n{begin}\nold\n{end}\n\nmine too\n")
    report.write(file, "new", page.GOALS)
    assert file.read_text() == f"# Mine\n\n{begin}\nnew\n{end}\n\nmine too\n"
    with pytest.raises(ValueError, match=r"performance\.md has no"):
        report.write(file, "new", page.OVERLAY)


def test_pictures_show_every_bar_with_its_number_and_the_goal() -> None:
    """Bars are as long as their values; the goal's line stands where the goal is."""
    made = run(plain={NGINX: 0.02, CADDY: 0.08, PRODUCT: 0.04})

    found = ElementTree.fromstring(page.pictures(made)["cost.svg"])
    bars = [float(one.attrib["width"]) for one in found.iter(f"{SVG}rect")][1:]
    texts = [one.text for one in found.iter(f"{SVG}text")]

    assert bars[1] == pytest.approx(2 * bars[0], rel=0.01)
    assert bars[2] == pytest.approx(4 * bars[0], rel=0.01)
    assert [text for text in texts if text and text.endswith(" µs")] == ["20.0 µs", "40.0 µs", "80.0 µs"]
    (line,) = found.iter(f"{SVG}line")
    assert float(line.attrib["x1"]) - plot.LABEL == pytest.approx(0.45 * bars[2], rel=0.01)


def test_one_bar_that_is_far_longer_is_cut() -> None:
    """The others could not be compared otherwise; its number is true."""
    assert plot.scale([10, 20, 30]) == 30
    assert plot.scale([10, 20, 1500]) == 25
    assert plot.scale([0.0]) == 1.0
    picture = plot.svg("t", [plot.Group("g", [plot.Bar("a", 20, "20"), plot.Bar("<b>", 1500, "1,500")])])
    assert "&lt;b&gt;" in picture
    assert "1,500" in picture
    assert "<path" in picture


def test_openssls_rate_is_read() -> None:
    """Bytes a second, as `-mr` prints them."""
    assert bulk.rate("+H:1420\n+F:25:ChaCha20-Poly1305:2129317047.62\n") == pytest.approx(2_129_317_047.62)
    with pytest.raises(LookupError):
        bulk.rate("speed: Unknown option")


def test_schemes_stand_beside_a_public_route_of_the_same_listener() -> None:
    """A row that was not measured has no figure."""
    overlay = {"scheme: session cookie": 0.24, "scheme ratio: session cookie": 1.2}
    http = {"instructions: public route": 200_000, "instructions: session cookie": 230_000}

    lines = schemes.table(overlay, http).splitlines()

    assert "| public route | – | – | 200,000 | +0 | 1.00 |" in lines
    assert "| session cookie | 0.2400 | 1.20 | 230,000 | +30,000 | 1.15 |" in lines
    assert "| private route | – | – | – | – | – |" in lines


def test_the_headline_leaves_out_servers_that_forward_nothing() -> None:
    """A fixed answer is a floor, not a proxy."""
    made = run(plain=dict.fromkeys(HTTP[0].subjects, 0.1), tls={PRODUCT: 0.2})

    lines = report.headline(made).splitlines()

    assert "| **netbird-proxy** | **100** | **–** | **200** |" in lines
    assert not any("fixed" in line for line in lines)


def test_the_pages_show_the_result_files() -> None:
    """Nobody edits a figure on a page: it is the file's."""
    runs = {name: made for name in page.RUNS if (made := results.load(name)) is not None}
    text = page.PAGE.read_text()

    assert report.goals(runs) in text
    if made := runs.get("http"):
        assert report.table(made) in text
        assert report.headline(made) in page.README.read_text()
        assert all((page.PLOTS / name).read_text() == picture for name, picture in page.pictures(made).items())
