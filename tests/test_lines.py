"""What reads a file beside its writer takes whole lines alone."""

from pathlib import Path

from tests.lines import whole_lines


def test_a_line_that_is_half_written_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes('["a\u2028b"]\n["ü'.encode()[:-1])

    assert whole_lines(path) == ['["a\u2028b"]'.encode()]
