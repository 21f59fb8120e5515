"""Running statistics are found wherever they are in a pytree, and changed there."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from jaxnorm._types import Accumulating, RunningState, running_fields, running_of

Tree = TypeVar("Tree")


def map_stats(change: Callable[..., RunningState], *trees: Tree) -> Tree:
    """The first of these pytrees, of one structure, with all running statistics in them changed."""

    def visit(*nodes: Any) -> Any:
        if not has_stats(nodes[0]):
            return nodes[0]
        below = map_stats(change, *map(_others, nodes))
        return _written(change(*map(_read, nodes)), nodes[0], below)

    return jax.tree.map(visit, *trees, is_leaf=has_stats)


def stats_by_path(tree: Any) -> dict[str, RunningState]:
    """All running statistics in a pytree, by their place in it."""
    stats = {}
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=has_stats):
        if has_stats(node):
            name = jax.tree_util.keystr(path)
            stats |= {name: _read(node), **{name + below: v for below, v in stats_by_path(_others(node)).items()}}
    return stats


def has_stats(node: Any) -> bool:
    """Whether it is running statistics, or the variables that hold them."""
    if not isinstance(node, Mapping):
        return isinstance(node, RunningState)
    # A model may have layers of these names.
    return all(name in node and jax.tree_util.all_leaves([node[name]]) for name in ("mean", "var"))


def _read(node: Any) -> RunningState:
    return running_of(node) if isinstance(node, Mapping) else node


def _others(node: Any) -> dict[str, Any]:
    """Everything beside running statistics: norms below them."""
    if not isinstance(node, Mapping):
        return {}
    return {name: value for name, value in node.items() if name not in Accumulating._fields}


def _written(state: RunningState, node: Any, others: Mapping[str, Any]) -> Any:
    if not isinstance(node, Mapping):
        return state
    return type(node)({**others, **running_fields(state)})  # pyright: ignore[reportCallIssue]
