"""Results as tables in Markdown."""

from collections.abc import Sequence

from tests.benchmarks.results import Results


def table(
    results: Results, contenders: Sequence[str], columns: Sequence[str], titles: Sequence[str] = ()
) -> str:
    """Return a row for each contender that was measured, a column for each column."""
    rows = [["", *(titles or columns)]]
    for contender in contenders:
        texts = [text(results, contender, column) for column in columns]
        if any(texts):
            rows.append([results.titles[contender], *texts])
    return markdown(rows)


def text(results: Results, contender: str, column: str) -> str:
    """Return what a cell of a table says."""
    cell = results.cell(contender, column)
    if not cell:
        return ""
    said = number(cell.value)
    if (times := results.times(contender, column)) is not None:
        said += f" = {number(times)}x"
    if cell.more:
        said += f" ({' / '.join(map(number, cell.more))} ms)"
    return f"{said} ({cell.remark})" if cell.remark else said


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a table in Markdown, the first as its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def number(value: float) -> str:
    """Return a figure with as many digits as it deserves."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
