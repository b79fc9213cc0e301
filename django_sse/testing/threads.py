"""Threads for tests, whose database connections are closed at the end."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from django.db import connections

Result = TypeVar("Result")


async def in_thread(function: Callable[[], Result]) -> Result:
    """Run a function in a thread with separate database connections."""

    def run() -> Result:
        try:
            return function()
        finally:
            connections.close_all()

    return await asyncio.to_thread(run)
