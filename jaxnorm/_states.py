"""Running statistics wherever they are in a pytree, and what can be done to them between batches."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxnorm._over import wide_dtype
from jaxnorm._stream import unseen
from jaxnorm._trees import Accumulating, RunningStats, committed, fields, recalibrating


def each(change, *trees):
    """The first of these pytrees, of one structure, with all running statistics in them changed."""

    def visit(*nodes):
        if not tracks(nodes[0]):
            return nodes[0]
        below = each(change, *map(_others, nodes))
        return _written(change(*map(_read, nodes)), nodes[0], below)

    return jax.tree.map(visit, *trees, is_leaf=tracks)


def plain(trees, who):
    """Trees without variables of flax.nnx, which would not be found: they are known by their attribute `value`."""
    for path, _ in jax.tree_util.tree_leaves_with_path(trees):
        *_, name, last = (None, *(getattr(key, "name", getattr(key, "key", None)) for key in path))
        if last == "value" and name in ("mean", "var"):
            raise TypeError(
                f"{who}: running statistics are in variables of flax.nnx. For a model, jaxnorm.nnx has accumulate and "
                f"commit; merge_running takes nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)) of each."
            )


def named(tree):
    """All running statistics in a pytree, by their place in it."""
    found = {}
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=tracks):
        if tracks(node):
            name = jax.tree_util.keystr(path)
            found |= {name: _read(node), **{name + below: v for below, v in named(_others(node)).items()}}
    return found


def tracks(node) -> bool:
    """Whether it is running statistics, or the variables that hold them."""
    if not isinstance(node, Mapping):
        return isinstance(node, RunningStats | Accumulating)
    # A model may have layers of these names.
    return all(name in node and jax.tree_util.all_leaves([node[name]]) for name in ("mean", "var"))


def _read(node):
    if not isinstance(node, Mapping):
        return node
    running = RunningStats(node["mean"], node["var"], node.get("weight_sum"))
    return Accumulating(*running, node["before"], node["seen"]) if "seen" in node else running


def _others(node):
    """What else there is beside running statistics: norms below."""
    if not isinstance(node, Mapping):
        return {}
    return {name: value for name, value in node.items() if name not in Accumulating._fields}


def _written(state, node, others):
    if not isinstance(node, Mapping):
        return state
    new = {name: value for name, value in fields(state).items() if name != "weight_sum" or value is not None}
    return type(node)({**others, **new})  # pyright: ignore[reportCallIssue]


def opened(state, start):
    """Running statistics, ready for a whole batch where it starts; as they are while data are to replace them."""
    if recalibrating(state):
        return state
    running, nothing = committed(state), _nothing(state.mean)
    if not isinstance(state, Accumulating):
        # A copy: no buffer can be donated twice.
        return Accumulating(*running, jax.tree.map(jnp.copy, running), nothing)
    begun = jax.tree.map(lambda new, old: jnp.where(start, new, old), (running, nothing), state[3:])
    return Accumulating(*running, *begun)


def emptied(state):
    """Running statistics that data are to replace."""
    return Accumulating(*committed(state), None, _nothing(state.mean))


def as_complex(state, dtype):
    """The same with means of a complex dtype."""
    state = state._replace(mean=state.mean.astype(dtype))
    if not isinstance(state, Accumulating):
        return state
    before = state.before and as_complex(state.before, dtype)
    mean, residual = state.seen.mean.astype(dtype), jnp.asarray(state.seen.mean_residual, dtype)
    seen = state.seen._replace(mean=mean, mean_residual=residual)
    return state._replace(before=before, seen=seen)


def _nothing(mean):
    """Moments of no data, for means of this shape and dtype."""
    return unseen(jnp.zeros_like(mean, dtype=wide_dtype(mean)))
