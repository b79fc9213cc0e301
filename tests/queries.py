"""What the database is asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from django.db.backends.utils import CursorWrapper


@contextmanager
def queries_for_events() -> Iterator[list[str]]:
    """Collect the SQL that is about groups and events, in any thread."""
    queries: list[str] = []
    execute = CursorWrapper.execute

    def collect(cursor: CursorWrapper, sql: Any, params: Any = None) -> Any:
        if "django_sse_" in sql:
            queries.append(sql)
        return execute(cursor, sql, params)

    with patch.object(CursorWrapper, "execute", collect):
        yield queries
