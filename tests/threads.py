"""Threads of the tests, with database connections that are closed with them."""

from django_sse.testing.threads import in_thread

__all__ = ["in_thread"]
