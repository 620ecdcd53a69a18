"""The instruction ceiling: an exchange does not become dearer unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import ceiling, inmemory, instructions
from bench.ceiling import Ceiling


@pytest.mark.live
async def test_a_public_exchange_stays_under_its_ceiling(tmp_path: Path) -> None:
    """Counted by callgrind, so that a busy machine gives the same number as an idle one."""
    counted = await instructions.count(tmp_path, [inmemory.PUBLIC], exchanges=10 * inmemory.CONNECTIONS)

    assert ceiling.verdict(ceiling.read(ceiling.interpreter()), counted[inmemory.PUBLIC]) == ""


@pytest.mark.parametrize(
    ("counted", "advice"),
    [(104_900, ""), (105_100, "`reason`"), (60_000, "")],
)
def test_growth_needs_a_reason(counted: float, advice: str) -> None:
    """5 % more fails, and the message says where the reason belongs; less is welcome."""
    verdict = ceiling.verdict(Ceiling("cpython-3.11-plain", 100_000), counted)

    assert (advice in verdict) if advice else verdict == ""


def test_an_interpreter_that_was_not_counted_has_a_wider_ceiling(tmp_path: Path) -> None:
    """Builds differ by a tenth either way."""
    file = tmp_path / "ceiling.toml"
    file.write_text('[a]\ninstructions = 100_000\nreason = "x"\n[b]\ninstructions = 90_000\nreason = "x"\n')

    stranger = ceiling.read("c", file)

    assert stranger == Ceiling("c", ceiling.STRANGER * 100_000, own=False)
    assert ceiling.read("b", file) == Ceiling("b", 90_000)


def test_a_figure_without_a_reason_is_refused(tmp_path: Path) -> None:
    """The reason is what a reviewer judges."""
    file = tmp_path / "ceiling.toml"
    file.write_text('[a]\ninstructions = 100_000\nreason = " "\n')

    with pytest.raises(ValueError, match="a has no reason"):
        ceiling.read("a", file)


def test_every_figure_of_the_repository_has_a_reason() -> None:
    """The file as it is."""
    assert ceiling.read(ceiling.interpreter()).instructions > 0
