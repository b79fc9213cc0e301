"""What an answer consists of, and the notes of each of its runs."""

import os
import secrets
import time
from pathlib import Path


class Run:
    """A run of what produces an answer, noted in the group's file as soon as it has begun.

    Its words are ``GROUP RUN NUMBER MILLISECONDS``, as the events of a publisher are.
    """

    def __init__(self, group: str) -> None:
        self._group = group
        self._name = secrets.token_hex(4)
        self._note("begun 0")

    def word(self, number: int) -> str:
        """Return a word; they are numbered from 1 on."""
        return f"{self._group} {self._name} {number} {round(time.time() * 1000)}"

    def said(self, words: int) -> None:
        """Note that this was all, and how much."""
        self._note(f"said {words}")

    def _note(self, what: str) -> None:
        with runs_of(Path(os.environ["LIVE_DATABASE"]).parent, self._group).open("a") as file:
            file.write(f"{self._name} {what}\n")


def runs_of(directory: Path, group: str) -> Path:
    """Return the file that notes the runs of a group."""
    return directory / f"{group}.runs"


def read_runs(path: Path) -> dict[str, int]:
    """Return the runs of a group, and how many words each has said; 0 if it was not at its end."""
    runs: dict[str, int] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        run, _, words = line.split()
        runs[run] = int(words)
    return runs
