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
        The state, with new running statistics; a `weight_sum` is 1, or where the norm has `momentum=None` the number of
        calls with data. Channels without data keep their statistics.

    Raises:
        ValueError: there are no running statistics in `state`, no batches, a norm that saw none of them, or one that
            saw one value per statistic in every call, as with the rows of one array for batches.
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
    state, calls = run(step, each(emptied, state), batches)
    came(named(state), calls)
    return each(committed, state)


def run(step, state, batches):
    """The state after all batches, and how many there were."""
    if any(isinstance(v, Tracer) for v in jax.tree.leaves(state)):
        raise TypeError("recalibrate: the state is traced. Call it outside of jit: it compiles the step by itself.")
    step, calls = jax.jit(step), 0
    for batch in batches:
        # Else batches would pile up in a queue of the device.
        jax.block_until_ready(state)
        old, state, calls = state, step(state, batch), calls + 1
        if jax.tree.structure(state) != jax.tree.structure(old) and _places(state) != _places(old):
            raise TypeError(
                f"recalibrate: step gave a {type(state).__name__} of another structure than the state. It is a "
                f"function (state, batch) → state: return that alone, without y."
            )
    if not calls:
        raise ValueError("recalibrate: there are no batches. An iterator that was used up gives none.")
    return state, calls


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


def came(states, calls):
    """To all of these, and more than one value per statistic in some of the calls."""
    counts = {name: state.seen.count if isinstance(state, Accumulating) else 0 for name, state in states.items()}
    if missed := [name or "the state" for name, count in counts.items() if not jnp.any(count > 0)]:
        raise ValueError(
            f"recalibrate: no data came to {', '.join(missed)}. Is the norm called, with the state that the step was "
            f"given, does where include something, and is the norm one of jaxnorm? flax.linen.BatchNorm has a drop-in "
            f"replacement: jaxnorm.linen.BatchNorm."
        )
    single = [name or "the state" for name, count in counts.items() if calls > 1 and jnp.all(count == calls)]
    if single:
        raise ValueError(
            f"recalibrate: each of {calls} batches gave {', '.join(single)} one value per statistic, which has no "
            f"variance. Of one array x, each entry along its first axis is a batch: to make all of it one, write [x]."
        )


def arguments(batch):
    """Positional and keyword arguments of a model, from a batch of either, or of one."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch) if isinstance(batch, tuple | list) else (batch,)), {}


_FLAGS = {"train": False, "training": False, "is_training": False, "deterministic": True}
"""How models are told to evaluate."""


def told(call, args, kwargs):
    """Keyword arguments with which a model evaluates these inputs, where they fit it. `call` is a bound method."""
    every = inspect.signature(call).parameters
    kinds = {p.kind for p in every.values()}
    parameters = {n: p for n, p in every.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    by_position = [n for n, p in parameters.items() if p.kind is not p.KEYWORD_ONLY]
    taken = dict(zip(by_position, args, strict=False))
    most = len(args) if inspect.Parameter.VAR_POSITIONAL in kinds else len(by_position)
    _check_positions(taken, len(args), most)
    evaluate = {name: value for name, value in _FLAGS.items() if _asks(parameters.get(name)) and name not in taken}
    kwargs = {**evaluate, **kwargs}
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in taken and n not in kwargs]
    if missing:
        raise TypeError(
            f"recalibrate: the model requires {', '.join(missing)}. Give it to recalibrate, as {missing[0]}=..., or in "
            f"each batch: {{'x': x, {missing[0]!r}: ...}}."
        )
    return kwargs


def _check_positions(taken, count, most):
    """Says where arguments by position can't mean what was meant."""
    flags = {"use_running_average", *_FLAGS}
    misplaced = [name for name, value in taken.items() if name in flags and not _is_flag(value)]
    if count > most or misplaced:
        where = f"one of which is {misplaced[0]}" if misplaced else f"and it takes {most}"
        raise TypeError(
            f"recalibrate: a batch gives the model {count} arguments by position, {where}. Leave labels out: "
            f"(x for x, _ in batches). Give a mask by its name, as in {{'x': x, 'mask': mask}}."
        )


def _is_flag(value):
    """Whether it says yes or no: within the compiled step, a flag of a batch is an array of that."""
    return jnp.shape(value) == () and jnp.result_type(value) == jnp.bool_


def _asks(flag):
    """Whether a parameter wants to be told: it is required, or True or False by default."""
    return flag is not None and (flag.default is flag.empty or isinstance(flag.default, bool))
