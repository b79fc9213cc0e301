"""A plugin of pytest: the first run notes what each test takes, later ones begin with the fastest.

They leave out what has failed in the first one.
"""

import json
import os
from pathlib import Path

import pytest

_NOTES = Path(os.environ["MUTANTS_SECONDS"])
# None for one that has failed.
_seconds: dict[str, float | None] = json.loads(_NOTES.read_text()) if _NOTES.exists() else {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seconds = {item: _seconds.get(item.nodeid, 0.0) for item in items}
    items[:] = [item for item in items if seconds[item] is not None]
    items.sort(key=lambda item: seconds[item] or 0.0)
    config.hook.pytest_deselected(items=list(seconds.keys() - items))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _seconds[report.nodeid] = None
    elif report.when == "call":
        _seconds.setdefault(report.nodeid, report.duration)


def pytest_sessionfinish() -> None:
    if not _NOTES.exists():
        _NOTES.write_text(json.dumps(_seconds))
