"""Files that are read while another process writes them."""

from pathlib import Path


def whole_lines(path: Path) -> list[bytes]:
    """Return the lines that are written to their end: a line can be seen while it is half there."""
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return whole.splitlines()
