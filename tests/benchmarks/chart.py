"""The chart of ``docs/benchmarks.md``, as SVG that is readable on light and dark pages."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

from tests.benchmarks.results import Results
from tests.benchmarks.table import number

_OURS = "ours"
_LEFT, _WIDTH, _ROW, _BAR, _GAP, _HEAD = 230, 900, 22, 14, 26, 46
# Bars end at so many times bare ASGI; the figure says how far the value goes on.
_MOST_TIMES = 4.0

_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .panel { font-weight: 600 }
  .paper { fill: #ffffff }
  .bar { fill: #9aa4b2 }
  .ours { fill: #0b7a5c }
  .floor { stroke: #57606a; stroke-dasharray: 3 3 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .paper { fill: #161b22 }
    .bar { fill: #6e7681 }
    .ours { fill: #3fb68b }
    .floor { stroke: #8b949e }
  }
"""


def chart(results: Results, contenders: Sequence[str], panels: Sequence[tuple[str, str]]) -> str:
    """Return the SVG.

    Args:
        contenders: The keys of those that have a bar.
        panels: Pairs of a column and what is written above its bars.
    """
    parts, top = [], 10
    for column, title in panels:
        shown = [key for key in contenders if results.value(key, column) is not None]
        if shown:
            parts.append(_panel(results, shown, column, title, top))
            top += _HEAD + _ROW * len(shown) + _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" role="img" '
        f'aria-label="What a delivered event costs, beside peers">\n<style>{_STYLE}</style>\n'
        f'<rect class="paper" width="{_WIDTH}" height="{top}"/>\n{"".join(parts)}</svg>\n'
    )


def _panel(results: Results, keys: Sequence[str], column: str, title: str, top: int) -> str:
    values = {key: results.value(key, column) or 0.0 for key in keys}
    floor = values.get("bare")
    room = _WIDTH - _LEFT - 170
    longest = max(values.values())
    if floor:
        longest = min(longest, floor * _MOST_TIMES)
    lines = [f'<text class="panel" x="12" y="{top + 24}">{escape(title)}</text>\n']
    for row, (key, value) in enumerate(values.items()):
        y = top + _HEAD + row * _ROW
        length = max(1.0, min(value / longest, 1.0) * room) if longest else 1.0
        kind = "ours" if key == _OURS else "bar"
        # Beyond the end of the panel.
        sign = " »" if value > longest else ""
        cell = results.cell(key, column)
        sign += " (events lost)" if cell and "lost" in cell.remark else ""
        lines += [
            f'<text x="{_LEFT - 8}" y="{y}" text-anchor="end">'
            f"{escape(results.titles[key])}</text>\n",
            f'<rect class="{kind}" x="{_LEFT}" y="{y - _BAR + 3}" width="{length:.1f}" '
            f'height="{_BAR}" rx="2"/>\n',
            f'<text x="{_LEFT + length + 6:.1f}" y="{y}">{number(value)}{sign}</text>\n',
        ]
    if floor:
        x = _LEFT + floor / longest * room
        bottom = top + _HEAD + _ROW * (len(keys) - 1) + 6
        lines.append(
            f'<line class="floor" x1="{x:.1f}" x2="{x:.1f}" y1="{top + _HEAD - 14}" '
            f'y2="{bottom}"/>\n'
        )
    return "".join(lines)
