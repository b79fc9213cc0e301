"""django_sse with its figures for Prometheus, and a switch for all that counts."""

import ast
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from tests.benchmarks.apps.django_site import ours
from tests.benchmarks.apps.orders import Orders

# ours has set up Django.
from django.urls import path  # isort: skip
from django_sse import apublish  # isort: skip
from django_sse.contrib.prometheus import metrics  # isort: skip
from django_sse.streaming import hub, stream, subscription  # isort: skip

_COUNTS = (".tally.", "tally_of(", "published.note(")

urlpatterns = [*ours.urlpatterns, path("metrics/", metrics)]


class _WithoutCounts(ast.NodeTransformer):
    """Takes the statements that count out of a module."""

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt:
        return self._left_of(node)

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        return self._left_of(node)

    def _left_of(self, node: ast.AugAssign | ast.Expr) -> ast.stmt:
        if any(counts in ast.unparse(node) for counts in _COUNTS):
            return ast.copy_location(ast.Pass(), node)
        return node


def _functions_of(module: ModuleType) -> Iterator[FunctionType]:
    for holder in (module, *vars(module).values()):
        if getattr(holder, "__module__", module.__name__) == module.__name__:
            for value in list(getattr(holder, "__dict__", {}).values()):
                if inspect.isfunction(value) and value.__module__ == module.__name__:
                    yield value


def _codes_within(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes_within(constant)


class Monitored(Orders):
    """Takes orders to count, or not to count."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._codes: list[tuple[FunctionType, CodeType, CodeType]] = []
        for module in (hub, stream, subscription):
            tree = ast.fix_missing_locations(
                _WithoutCounts().visit(ast.parse(inspect.getsource(module)))
            )
            without = {
                code.co_qualname: code
                for code in _codes_within(compile(tree, str(module.__file__), "exec"))
            }
            for function in _functions_of(module):
                code = without.get(function.__qualname__)
                if code is not None and code.co_code != function.__code__.co_code:
                    self._codes.append((function, function.__code__, code))

    async def order_count(self, on: int) -> int:
        """Count from now on, or not. Return in how many functions this makes a difference."""
        for function, counting, without in self._codes:
            function.__code__ = counting if on else without
        return len(self._codes)


application = Monitored(ours.application._application, apublish)
