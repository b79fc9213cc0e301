"""The results of all rounds: medians, and times the floor of the same run."""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from tests.benchmarks.trial import Cell


@dataclass
class Results:
    """What was measured, where, and what could not be."""

    machine: dict[str, str]
    floors: dict[str, str | None]
    """By the key of a contender: that of its floor."""
    titles: dict[str, str]
    cells: dict[tuple[str, str], list[Cell]] = field(default_factory=lambda: defaultdict(list))
    """Those of all rounds, by the key of the contender and the column."""
    complaints: list[str] = field(default_factory=list)

    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for _, column in self.cells))

    def cell(self, contender: str, column: str) -> Cell | None:
        """Return the medians of the rounds' figures, with all that had to be said."""
        cells = self.cells.get((contender, column))
        if not cells:
            return None
        more = tuple(map(median, zip(*(cell.more for cell in cells), strict=True)))
        remarks = dict.fromkeys(cell.remark for cell in cells if cell.remark)
        times = [cell.times for cell in cells if cell.times is not None]
        return Cell(
            median(cell.value for cell in cells),
            more,
            "; ".join(remarks),
            median(times) if times else None,
        )

    def value(self, contender: str, column: str) -> float | None:
        cell = self.cell(contender, column)
        return cell.value if cell else None

    def times(self, contender: str, column: str) -> float | None:
        """Return a figure divided by its floor's, or by what else it is compared with."""
        cell = self.cell(contender, column)
        if cell is None:
            return None
        if cell.times is not None:
            return cell.times
        floor = self.floors[contender]
        return quotient(cell.value, self.value(floor, column) if floor else None)

    def save(self, path: Path) -> None:
        """Write them to a file, from which the pages can be written again."""
        cells = [[*key, [asdict(cell) for cell in cells]] for key, cells in self.cells.items()]
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({**vars(self), "cells": cells}, indent=1))

    @classmethod
    def load(cls, path: Path) -> "Results":
        fields = json.loads(path.read_text())
        fields["cells"] = {
            (contender, column): [Cell(**{**cell, "more": tuple(cell["more"])}) for cell in cells]
            for contender, column, cells in fields["cells"]
        }
        return cls(**fields)


def quotient(value: float | None, other: float | None) -> float | None:
    """Return the quotient of two figures, if both were measured."""
    return None if value is None or not other else value / other
