"""The results as a table: medians, and times the floor of the same run."""

from collections.abc import Mapping, Sequence
from statistics import median

from tests.benchmarks.contenders import Contender
from tests.benchmarks.trial import Cell

Results = dict[tuple[str, str], list[Cell]]
"""The cells of all rounds, by the key of the contender and the column."""


def middle(cells: Sequence[Cell]) -> Cell:
    """Return the medians of the rounds' figures, with all that had to be said."""
    more = tuple(map(median, zip(*(cell.more for cell in cells), strict=True)))
    remarks = dict.fromkeys(cell.remark for cell in cells if cell.remark)
    times = [cell.times for cell in cells if cell.times is not None]
    return Cell(
        median(cell.value for cell in cells),
        more,
        "; ".join(remarks),
        median(times) if times else None,
    )


def table(results: Results, contenders: Sequence[Contender]) -> str:
    """Return the results in Markdown."""
    columns = list(dict.fromkeys(column for _, column in results))
    rows = [["", *columns]]
    for contender in contenders:
        texts = [_text(results, contender, column) for column in columns]
        if any(texts):
            rows.append([contender.title, *texts])
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a table in Markdown, the first as its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def _text(results: Mapping[tuple[str, str], list[Cell]], contender: Contender, column: str) -> str:
    cells = results.get((contender.key, column))
    if not cells:
        return ""
    cell = middle(cells)
    text = number(cell.value)
    if (times := times_floor(results, contender, column)) is not None:
        text += f" = {number(times)}x"
    if cell.more:
        text += f" ({' / '.join(map(number, cell.more))} ms)"
    return f"{text} ({cell.remark})" if cell.remark else text


def times_floor(
    results: Mapping[tuple[str, str], list[Cell]], contender: Contender, column: str
) -> float | None:
    """Return a figure divided by its floor's, or by what else it is compared with."""
    cell = middle(results[contender.key, column])
    if cell.times is not None:
        return cell.times
    floor = contender.floor and results.get((contender.floor, column))
    return cell.value / middle(floor).value if floor else None


def number(value: float) -> str:
    """Return a figure with as many digits as it deserves."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
