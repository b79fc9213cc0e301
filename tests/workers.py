"""Deals the tests out to the workers of pytest-xdist."""

import re

import pytest
from xdist.scheduler import LoadFileScheduling

_BROWSER = re.compile(r"[\[-](chromium|firefox|webkit)\b")
# With tests that take a minute.
_LONG = ("tests/soak", "tests/live", "tests/docs", "tests/test_channel_layer.py", "tests/stores")


class ByFileOrBrowser(LoadFileScheduling):  # type: ignore[misc]
    """A worker runs all tests of a file, or all in a browser: each browser is started once."""

    def _split_scope(self, nodeid: str) -> str:
        browser = _BROWSER.search(nodeid)
        return browser[1] if browser else str(super()._split_scope(nodeid))


def put_long_ones_first(items: list[pytest.Item]) -> None:
    """Reorder tests so that no worker is alone with a long file at the end."""
    items.sort(key=lambda item: (not _BROWSER.search(item.nodeid), not _is_long(item)))


def _is_long(item: pytest.Item) -> bool:
    return item.nodeid.startswith(_LONG)
