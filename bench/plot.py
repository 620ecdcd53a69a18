"""Horizontal bars as SVG, written as text: the pages need no library for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

WIDTH, LABEL, RIGHT = 760, 190, 90
BAR, GAP, HEAD, GROUP, SPACE = 16, 5, 46, 24, 16
CUT = 2.5
"""A bar longer than this many times the next shorter one is cut, so that the others can be compared."""
OURS, THEIRS = "#1f6feb", "#9aa4b2"


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar; `ours` ones have another color. `text` stands at its end."""

    label: str
    value: float
    text: str
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Bars that are compared with one another, under a title. They share a scale of their own.

    Attributes:
        mark: a value at which a dashed line stands, the goal; 0 for none.
    """

    title: str
    bars: Sequence[Bar]
    mark: float = 0.0


def scale(values: Sequence[float]) -> float:
    """The value that a full bar stands for: the largest that is not cut. At least one value, none negative."""
    ordered = sorted(values)
    for shorter, longer in pairwise(ordered):
        if shorter > 0 and longer > CUT * shorter and longer == ordered[-1]:
            return shorter * 1.25
    return ordered[-1] or 1.0


def svg(title: str, groups: Sequence[Group]) -> str:
    """A picture with a text for those who do not see it."""
    height = HEAD + sum(GROUP + len(group.bars) * (BAR + GAP) + SPACE for group in groups)
    room = WIDTH - LABEL - RIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' role="img" aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="28" font-size="16" font-weight="600" fill="#1b1f24">{escape(title)}</text>',
    ]
    y = HEAD
    for group in groups:
        lines.append(
            f'<text x="16" y="{y + 16}" font-weight="600" fill="#1b1f24">{escape(group.title)}</text>',
        )
        y += GROUP
        full = scale([max(bar.value, 0.0) for bar in group.bars])
        bottom = y + len(group.bars) * (BAR + GAP)
        texts = []
        for index, bar in enumerate(group.bars):
            top = y + index * (BAR + GAP)
            length = max(1.0, min(1.0, bar.value / full) * room)
            lines += [
                f'<text x="{LABEL - 8}" y="{top + 12}" text-anchor="end" fill="#1b1f24">{escape(bar.label)}</text>',
                f'<rect x="{LABEL}" y="{top}" width="{length:.1f}" height="{BAR}" rx="2"'
                f' fill="{OURS if bar.ours else THEIRS}"/>',
            ]
            texts.append(
                f'<text x="{LABEL + length + 6:.1f}" y="{top + 12}" fill="#1b1f24" stroke="#ffffff" stroke-width="4"'
                f' paint-order="stroke">{escape(bar.text)}</text>'
            )
            if bar.value > full:  # two gaps show that the bar goes on
                lines.append(
                    f'<path d="M{LABEL + room - 22} {top - 1} l-5 {BAR + 2} m7 0 l5 -{BAR + 2}" stroke="#ffffff"'
                    ' stroke-width="3" fill="none"/>'
                )
        if 0 < group.mark <= full:
            x = LABEL + group.mark / full * room
            lines += [
                f'<line x1="{x:.1f}" y1="{y - 3}" x2="{x:.1f}" y2="{bottom - 2}" stroke="#1a7f37" stroke-width="1.5"'
                ' stroke-dasharray="4 3"/>',
                f'<text x="{x:.1f}" y="{bottom + 9}" text-anchor="middle" font-size="11" fill="#1a7f37">goal</text>',
            ]
        lines += texts
        y = bottom + SPACE
    return "\n".join([*lines, "</svg>"]) + "\n"
