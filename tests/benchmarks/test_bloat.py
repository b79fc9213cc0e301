"""The program that measures PostgreSQL's tables prints what is published."""

import pytest

from tests import postgresql
from tests.benchmarks.bloat import main
from tests.live.servers import unavailable

pytestmark = pytest.mark.once


def test_rows_of_the_table_show_what_is_published(capsys: pytest.CaptureFixture[str]) -> None:
    if not postgresql.binaries():
        unavailable("PostgreSQL is not installed")
    assert main(["--minutes", "0.1", "--every", "3", "--rate", "1000"]) == 0
    head, _, first, second = capsys.readouterr().out.splitlines()[1:]
    assert head.startswith("| minute | events a second | kept ")
    rows = [
        [float(cell.replace(",", "")) for cell in row.strip("| ").split(" | ")]
        for row in (first, second)
    ]
    assert [row[0] for row in rows] == [0.05, 0.1]
    # PostgreSQL counts late.
    assert 0 < rows[1][1] < 2000
    assert 0 < rows[0][2] < rows[1][2]
    assert 0 < rows[0][5] <= rows[1][5]
