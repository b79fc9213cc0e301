"""Threads for tests, with database connections that are closed with them."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from django.db import connections

Result = TypeVar("Result")


async def in_thread(function: Callable[[], Result]) -> Result:
    """Run a function in a thread, with connections of its own."""

    def run() -> Result:
        try:
            return function()
        finally:
            connections.close_all()

    return await asyncio.to_thread(run)
