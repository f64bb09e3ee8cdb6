"""What a benchmark found: rows of figures, and the one table they are printed in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

NONE = "–"
WHOLE_RATIO = 20  # from here on nobody cares about the decimals
HEADINGS = ("", "measured", "figure", "control", "ratio", "aim", "met")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. `values` are the same figures as numbers, in the units of their names."""

    part: str
    measured: str
    figure: str
    control: str = NONE
    ratio: float | None = None
    aim: str = NONE
    met: bool | None = None
    values: Mapping[str, float] = field(default_factory=dict)

    def cells(self) -> tuple[str, ...]:
        ratio = NONE if self.ratio is None else f"{self.ratio:.{0 if self.ratio >= WHOLE_RATIO else 2}f}"
        met = NONE if self.met is None else ("yes" if self.met else "no")
        return (self.part, self.measured, self.figure, self.control, ratio, self.aim, met)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What one benchmark brings home: its rows, and what a reader must know to judge them."""

    rows: Sequence[Row]
    remarks: Sequence[str] = ()


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that `share` of them do not exceed (the nearest-rank method)."""
    if not values:
        raise ValueError("no values")
    rank = max(1, math.ceil(share * len(values)))
    return sorted(values)[rank - 1]


def milliseconds(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table whose columns are in line for people too."""
    lines = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    shown = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([shown[0], rule, *shown[1:]])
