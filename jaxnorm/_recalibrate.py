"""Population statistics in the place of running averages."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxnorm._states import each, emptied, named
from jaxnorm._trees import Accumulating, committed

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
        The state, with new running statistics; `count` is the number of calls with data. Channels without data keep
        their statistics.

    Raises:
        ValueError: there are no running statistics in `state`, no batches, or a norm that saw none of them.
        TypeError: `step` returns something else; the state is traced.

    Paper: Ioffe & Szegedy 2015, "Batch Normalization", algorithm 2; Wu & Johnson 2021, "Rethinking 'Batch' in
    BatchNorm", on why these are more precise than averages with a momentum.

    >>> bn = jn.BatchNorm()
    >>> params, state = bn.init(1)
    >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[8.0]])]
    >>> state = jn.recalibrate(lambda state, x: bn.apply(params, state, x, train=False)[1], state, batches)
    >>> print(state.mean, state.var.round(1))
    [4.] [8.7]
    """
    some(named(state))
    state = run(step, each(emptied, state), batches)
    came(named(state))
    return each(committed, state)


def run(step, state, batches):
    """The state after all batches."""
    if any(isinstance(v, Tracer) for v in jax.tree.leaves(state)):
        raise TypeError("recalibrate: the state is traced. Call it outside of jit: it compiles the step by itself.")
    step, empty = jax.jit(step), True
    for batch in batches:
        # Else batches would pile up in a queue of the device.
        jax.block_until_ready(state)
        old, state, empty = state, step(state, batch), False
        if jax.tree.structure(state) != jax.tree.structure(old) and _places(state) != _places(old):
            raise TypeError(
                f"recalibrate: step gave a {type(state).__name__} of another structure than the state. It is a "
                f"function (state, batch) → state: return that alone, without y."
            )
    if empty:
        raise ValueError("recalibrate: there are no batches. An iterator that was used up gives none.")
    return state


def _places(state):
    """Where the leaves of a state are, whichever kind of mapping it is."""
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]


def some(states):
    """Running statistics to replace."""
    if not states:
        raise ValueError(
            "recalibrate: there are no running statistics of jaxnorm: no norm has a state to replace. In variables of "
            "linen, they are batch_stats."
        )


def came(states):
    """To all of these."""
    counts = {name: state.seen.count if isinstance(state, Accumulating) else 0 for name, state in states.items()}
    if missed := [name or "the state" for name, count in counts.items() if not jnp.any(count > 0)]:
        raise ValueError(
            f"recalibrate: no data came to {', '.join(missed)}. Is the norm called, with the state that the step was "
            f"given, does where include something, and is the norm one of jaxnorm? flax.linen.BatchNorm has a drop-in "
            f"replacement: jaxnorm.linen.BatchNorm."
        )


def arguments(batch):
    """Positional and keyword arguments of a model, from a batch of either, or of one."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch) if isinstance(batch, tuple | list) else (batch,)), {}


def told(call, kwargs):
    """Keyword arguments that a model is called with: in evaluation, where it wants to know."""
    train = inspect.signature(call).parameters.get("train")
    wants = train is not None and train.default is train.empty
    return {"train": False, **kwargs} if wants else kwargs
