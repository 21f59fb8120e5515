"""Population statistics that replace running averages."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
from jax.core import Tracer

from jaxnorm import _checks
from jaxnorm._state.running import begin_recalibrating
from jaxnorm._state.tree import map_stats, stats_by_path
from jaxnorm._types import plain

State = TypeVar("State")


def recalibrate(step: Callable[[State, Any], State], state: State, batches: Iterable[Any]) -> State:
    """Population statistics in the place of running averages: for a trained network, or one of averaged weights.

    mean = μ,    var = σ² n / (n − ddof),    of all data that each norm sees, merged over the batches

    Batches may be unequal, and masked; the variance between them counts. Norms use the statistics of the batch in this
    time, whether they are told `train=True` or False: tell them False, and dropout is off, as it will be. A feature
    scaler is used as it is.

    Args:
        step: (state, batch) → state: the network, run on a batch. It is compiled, once for all batches of a shape and
            sharding; over several devices let it be a `jax.shard_map`, or give it sharded batches.
        state: a pytree with `RunningStats` in it; or mappings of `mean` and `var`, as in `batch_stats` of flax.linen.
        batches: any iterable; of an array, each entry along its first axis is a batch. There is one batch in work at a
            time, so a progress bar around it tells the truth.

    Returns:
        The state, with new running statistics; a `weight_sum` is 1, or where the norm has `momentum=None` the number of
        calls with data. Channels without data keep their statistics; a batch with NaN in a channel is no data for it.

    Raises:
        ValueError: there are no running statistics in `state`, no batches, a norm that saw none of them, or one that
            saw one value per statistic in every call, as with the rows of one array for batches.
        TypeError: `step` returns something else; the state is traced, or one of flax.nnx.

    Paper: Ioffe & Szegedy 2015, "Batch Normalization", algorithm 2; Wu & Johnson 2021, "Rethinking 'Batch' in
    BatchNorm", on why these are more precise than averages with a momentum.

    >>> bn = jn.BatchNorm()
    >>> params, state = bn.init(1)
    >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[8.0]])]
    >>> state = jn.recalibrate(lambda state, x: bn.apply(params, state, x, train=False)[1], state, batches)
    >>> print(state.mean, state.var.round(1))
    [4.] [8.7]
    """
    _checks.reject_nnx_variables(state, "recalibrate")
    _checks.require_stats(stats_by_path(state), "recalibrate")
    state, first, number = _run(step, map_stats(begin_recalibrating, state), batches)
    _checks.require_data(stats_by_path(state), stats_by_path(first), number)
    return map_stats(plain, state)


def _run(step: Callable[[State, Any], State], state: State, batches: Iterable[Any]) -> tuple[State, State, int]:
    """The state after all batches, that after the first one, and how many there were."""
    if any(isinstance(v, Tracer) for v in jax.tree.leaves(state)):
        raise TypeError("recalibrate: the state is traced. Call it outside of jit: it compiles the step by itself.")
    step, first, number = jax.jit(step), state, 0
    for batch in batches:
        # Else batches would pile up in a queue of the device.
        jax.block_until_ready(state)
        old, state, number = state, step(state, batch), number + 1
        first = state if number == 1 else first
        if jax.tree.structure(state) != jax.tree.structure(old) and _paths(state) != _paths(old):
            raise TypeError(
                f"recalibrate: step gave a {type(state).__name__} of another structure than the state. It is a "
                f"function (state, batch) → state: return that alone, without y."
            )
    if not number:
        raise ValueError("recalibrate: there are no batches. An iterator that was used up gives none.")
    return state, first, number


def _paths(state: Any) -> list[str]:
    """Where the leaves of a state are, whichever kind of mapping it is."""
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
