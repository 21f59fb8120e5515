"""Messages about states and moments that are not what they should be."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxnorm._checks.arguments import known, weights
from jaxnorm._types import Moments, RunningState

_OF_FLAX = (
    "Flax's own BatchNorm has a drop-in replacement in jaxnorm.linen and jaxnorm.nnx; for a model that can't be "
    "changed, it is in place within `with jaxnorm.linen.patched():`, or jaxnorm.nnx.patched()."
)


def averages(state: RunningState | None, who: str) -> None:
    """Raises where running statistics are so narrow that what is added to an average is lost in its rounding."""
    if state is None:
        return
    for name in ("mean", "var", "weight_sum"):
        dtype = getattr(getattr(state, name, None), "dtype", None)
        if dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
            raise TypeError(
                f"{who}: state.{name} has dtype {dtype}, in which an average stands still: updates get lost in its "
                f"rounding. Keep the state in float32 while training: state.{name}.astype(jnp.float32)."
            )


def running(state: Any, x: Array, axes: Sequence[int], train: bool, momentum: Any, who: str) -> None:
    """Raises unless a state has running statistics of the channels of `x`, along `axes`, or there need be none."""
    if state is None:
        if not train:
            raise ValueError(f"{who}: state is None, but evaluation needs running statistics: those that init makes.")
        return
    if not isinstance(state, RunningState):
        hint = " Make it one: jaxnorm.RunningStats(**state)." if isinstance(state, dict) else ""
        raise TypeError(f"{who}: state is a {type(state).__name__}, not RunningStats.{hint}")
    if train and momentum is None and state.weight_sum is None:
        raise ValueError(
            f"{who}: momentum=None averages all updates equally, and has to know how many there were, but "
            f"state.weight_sum is None. A spec with momentum=None makes it in init; for a state that is there, "
            f"state._replace(weight_sum=jnp.zeros_like(state.var)) begins to count."
        )
    for name, value, kind in (("mean", state.mean, jnp.inexact), ("var", state.var, jnp.floating)):
        found = getattr(value, "dtype", type(value).__name__)
        if isinstance(found, str) or not jnp.issubdtype(found, kind):
            raise TypeError(f"{who}: state.{name} is of {found}. It is an array of {kind.__name__} numbers.")
        channels = tuple(x.shape[a] for a in axes)
        if np.shape(value) != channels:
            raise ValueError(
                f"{who}: state.{name} has shape {np.shape(value)}, but axis {', '.join(map(str, axes))} of x, of "
                f"shape {x.shape}, holds {' by '.join(map(str, channels))} channels."
            )
    if jnp.iscomplexobj(state.mean) != jnp.iscomplexobj(x):
        raise TypeError(
            f"{who}: x has dtype {x.dtype} and state.mean has {jnp.asarray(state.mean).dtype}. Initialise with "
            f"param_dtype={x.dtype.name!r}: a state keeps its dtype."
        )


def same_channels(state: Any, moments: Any, who: str) -> None:
    """Raises unless these are a state and moments of the same channels."""
    if not isinstance(state, RunningState):
        raise TypeError(f"{who}: state is a {type(state).__name__}, not RunningStats.")
    if not isinstance(moments, Moments):
        raise TypeError(f"{who}: moments is a {type(moments).__name__}, not Moments: jaxnorm.moments(x, axis).")
    if np.shape(moments.mean) != np.shape(state.mean):
        raise ValueError(
            f"{who}: moments.mean has shape {np.shape(moments.mean)} and state.mean has shape "
            f"{np.shape(state.mean)}. Take moments of each channel, over all other axes, without keepdims."
        )


def several(given: Sequence[Any], axis: Any, who: str) -> None:
    """Raises unless there is something to merge, and one way to say what."""
    if not given:
        raise TypeError(f"{who}: there is nothing to merge.")
    if axis is not None and len(given) > 1:
        raise ValueError(f"{who}: axis={axis} goes with one, in which all are stacked; got {len(given)}.")


def parts(given: Sequence[Any], axis: Any) -> None:
    """Raises unless these are moments, all of one kind and shape."""
    several(given, axis, "merge")
    for part in given:
        if not isinstance(part, Moments):
            raise TypeError(f"merge: got {type(part).__name__}, not Moments. Moments of data are jaxnorm.moments(x).")
    if len({(part.min is None, part.max is None) for part in given}) > 1:
        raise TypeError("merge: moments with and without extremes do not merge. Take all with extremes=True, or none.")
    shapes = {np.shape(part.mean) for part in given}
    if len(shapes) > 1:
        raise ValueError(f"merge: shapes differ: {sorted(shapes)}. Take all moments over the same axes.")


def shares(value: Array, mean: Array, who: str) -> None:
    """Raises unless there is a weight for each of a stack of states."""
    if value.shape != mean.shape[:1]:
        raise ValueError(
            f"{who}: weights has shape {value.shape}, and there are {mean.shape[0]} states. Give one number for each."
        )
    weights(value, f"{who}: weights")
    numbers = known(value)
    if numbers is not None and not numbers.any():
        raise ValueError(f"{who}: weights are all 0. Leave them out to weigh all states the same.")


def require_stats(states: Mapping[str, RunningState], who: str) -> None:
    """Raises where there are no running statistics."""
    if not states:
        raise ValueError(
            f"{who}: there are no running statistics of jaxnorm: no norm has such a state. In variables of linen, they "
            f"are batch_stats. {_OF_FLAX}"
        )


def saw_data(counts: Mapping[str, Any], who: str) -> None:
    """Raises where no norm saw data; `counts` are those of each batch, by the place of a norm."""
    if missed := [place or "the state" for place, each in counts.items() if not any(np.any(n > 0) for n in each)]:
        raise ValueError(
            f"{who}: no data came to {', '.join(missed)}. Is the norm called, and one of jaxnorm? {_OF_FLAX}"
        )
    if not counts:
        raise ValueError(
            f"{who}: there are no batches, or no norm but frozen ones. An iterator that was used up is none."
        )


def require_data(states: Mapping[str, Any], first: Mapping[str, Any], batches: int) -> None:
    """Raises where some statistics saw no data, or one value in each batch. `first`: they after the first batch.

    Those of frozen norms have a count of NaN.
    """
    counts = {name: state.seen.count for name, state in states.items()}
    if missed := [name or "the state" for name, count in counts.items() if jnp.all(count == 0)]:
        raise ValueError(
            f"recalibrate: no data came to {', '.join(missed)}. Is the norm called, with the state that the step was "
            f"given, does where include something, and is the norm one of jaxnorm? {_OF_FLAX}"
        )
    # One value has a weight of 1 and no deviation; so many weights may add up to 1, too.
    alone = [name for name, state in first.items() if jnp.all((state.seen.count == 1) & (state.seen.m2 == 0))]
    single = [name or "the state" for name in alone if batches > 1 and jnp.all(counts[name] == batches)]
    if single:
        raise ValueError(
            f"recalibrate: each of {batches} batches gave {', '.join(single)} one value per statistic, which has no "
            f"variance. Of one array x, each entry along its first axis is a batch: to make all of it one, write [x]."
        )


def reject_nnx_variables(trees: Any, who: str) -> None:
    """Raises where trees hold variables of flax.nnx, which would not be found.

    They are known by their attribute `value`.
    """
    for path, _ in jax.tree_util.tree_leaves_with_path(trees):
        *_, name, last = (None, *(getattr(key, "name", getattr(key, "key", None)) for key in path))
        if last == "value" and name in ("mean", "var"):
            raise TypeError(
                f"{who}: running statistics are in variables of flax.nnx. For a model, jaxnorm.nnx has accumulate, "
                f"commit and recalibrate. merge_running takes "
                f"nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)) of each. If these are boxes of flax.linen, "
                f"flax.linen.meta.unbox opens them."
            )
