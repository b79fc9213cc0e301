"""Tenants of a project that has them in a context variable."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

tenant: ContextVar[str] = ContextVar("tenant")


def current() -> str:
    """Return the name of the current tenant."""
    return tenant.get()


@contextmanager
def entered(name: str) -> Iterator[None]:
    """Be in a tenant for the length of the block."""
    token = tenant.set(name)
    try:
        yield
    finally:
        tenant.reset(token)


NAMESPACE = {"NAMESPACE": f"{__name__}.current", "NAMESPACE_CONTEXT": f"{__name__}.entered"}
