"""What the database is asked."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

from django.db.backends.utils import CursorWrapper


def queries_for_events() -> AbstractContextManager[list[str]]:
    """Collect the SQL that is about groups and events, in any thread."""
    return queries_about("django_sse_")


@contextmanager
def queries_about(table: str) -> Iterator[list[str]]:
    """Collect the SQL that names a table, or the beginning of tables' names, in any thread."""
    queries: list[str] = []
    execute = CursorWrapper.execute

    def collect(cursor: CursorWrapper, sql: Any, params: Any = None) -> Any:
        if table in sql:
            queries.append(sql)
        return execute(cursor, sql, params)

    with patch.object(CursorWrapper, "execute", collect):
        yield queries
