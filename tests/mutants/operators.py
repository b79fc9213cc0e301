"""A change that cosmic-ray has not got."""

from collections.abc import Iterator
from typing import Any

from cosmic_ray.ast import get_ast


class LeaveOutStatement:
    """Leaves out a call, an assignment to an attribute or an item, or one such as ``+=``."""

    @staticmethod
    def arguments() -> tuple[()]:
        return ()

    def mutation_positions(self, node: Any) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        if node.type == "simple_stmt" and _has_an_effect(node.children[0]):
            yield node.children[0].start_pos, node.children[0].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        nothing = get_ast("pass").children[0]
        nothing.prefix = node.get_first_leaf().prefix
        node.children[0] = nothing
        return node


def _has_an_effect(statement: Any) -> bool:
    if statement.type == "expr_stmt":
        # Without one that binds a name, nothing would run.
        target, sign = statement.children[0], statement.children[1].get_first_leaf().value
        return target.type == "atom_expr" or sign not in ("=", ":")
    return bool(statement.type == "atom_expr" and statement.get_last_leaf().value == ")")
