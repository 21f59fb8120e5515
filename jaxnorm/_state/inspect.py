"""Running statistics beside those of data: why a network is worse in evaluation than in training."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from jaxnorm import _checks
from jaxnorm._core.numerics import with_offset
from jaxnorm._core.standardize import inverse_root
from jaxnorm._state.moments import merge
from jaxnorm._state.running import begin_recalibrating
from jaxnorm._state.tree import map_stats, stats_by_path
from jaxnorm._types import Affine, Inspection, Moments, Recalibrating, RunningState

State = TypeVar("State")


def inspect(step: Callable[[State, Any], State], state: State, batches: Iterable[Any]) -> dict[str, Inspection]:
    """Running statistics of a network beside those of data that it is given, for each norm.

    mean_distance = |mean − μ| / σ,    var_ratio = var / σ²,    and what single batches are off by

    Nothing changes. Norms use the statistics of each batch meanwhile, as in training and as for `jn.recalibrate`, which
    is the remedy for most of what is found. `jaxnorm.inspection` makes a table and a picture of it.

    Args:
        step, state, batches: as for `jn.recalibrate`. The sizes of the batches should be those of training: how far
            their statistics are from the population's is the noise that training saw.

    Returns:
        A `jn.Inspection` of arrays (channels,) for each norm by its place in the state; a frozen one sees no data.
        `y_mean` and `y_std` are NaN, as a state knows nothing of scale and bias: `jn.linen.inspect` and
        `jn.nnx.inspect` do.

    Raises:
        ValueError: there are no running statistics in `state`, no batches, or no norm saw data. TypeError: the state is
        one of flax.nnx.

    Paper: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm".

    >>> bn = jn.BatchNorm()
    >>> params, state = bn.init(1)
    >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[3.0], [5.0]])]
    >>> found = jn.inspect(lambda state, x: bn.apply(params, state, x, train=False)[1], state, batches)
    >>> print(found[""].mean_distance.round(2), found[""].var_ratio)  # running statistics are still (0, 1)
    [2.12] [0.5]
    """
    return {place: beside_data(*stats) for place, stats in moments_of_batches(step, state, batches).items()}


def moments_of_batches(
    step: Callable[[State, Any], State], state: State, batches: Iterable[Any]
) -> dict[str, tuple[RunningState, list[Moments]]]:
    """The running statistics of each norm that saw data, by their place, and the moments of each batch."""
    _checks.reject_nnx_variables(state, "inspect")
    before = stats_by_path(state)
    _checks.require_stats(before, "inspect")
    run, start = jax.jit(step), map_stats(begin_recalibrating, state)
    seen: dict[str, list[Moments]] = {}
    for batch in batches:
        for place, stats in stats_by_path(jax.block_until_ready(run(start, batch))).items():
            # The count of a norm that is frozen is NaN.
            if isinstance(stats, Recalibrating) and not jnp.isnan(stats.seen.count).all():
                seen.setdefault(place, []).append(stats.seen)
    _checks.saw_data({place: [m.count for m in moments] for place, moments in seen.items()}, "inspect")
    return {place: (before[place], moments) for place, moments in seen.items()}


def beside_data(
    state: RunningState, batches: Sequence[Moments], norm: Any = None, affine: Affine | None = None,
    steps: int | None = None,
) -> Inspection:  # fmt: skip
    """Running statistics of a norm beside moments of batches; with its affine map, what it gives in evaluation."""
    # One after the other: a program that merges hundreds at once takes seconds to compile.
    every = reduce(jax.jit(merge), batches)
    stacked = jax.tree.map(lambda *v: np.stack(v), *batches)
    epsilon, offset = (None, 0.0) if affine is None else (norm.epsilon, norm.scale_offset)
    found = _compared(state, every, stacked, epsilon, affine or Affine(), offset)
    momentum: Any = getattr(norm, "momentum", None)
    if state.weight_sum is None and momentum is not None and steps is not None:
        known = jnp.isfinite(found.start_weight)
        found = found._replace(start_weight=jnp.where(known, found.start_weight, momentum**steps))
    return jax.tree.map(lambda v: np.asarray(v, np.float32), found)


@partial(jax.jit, static_argnames="scale_offset")
def _compared(
    state: RunningState,
    every: Moments,
    batches: Moments,
    epsilon: ArrayLike | None,
    affine: Affine,
    scale_offset: float,
) -> Inspection:
    nan = jnp.full_like(every.m2, jnp.nan)
    # A channel without data has no statistics, and one that is constant no deviation to measure by.
    var = jnp.where((every.count > 0) & (every.m2 > 0), every.var, nan)
    some = batches.count > 0
    of_batches = partial(jnp.mean, axis=0, where=some)
    y_mean, y_std = nan, nan
    if epsilon is not None:
        slope = inverse_root(state.var + epsilon)
        slope = slope if affine.scale is None else slope * with_offset(affine.scale, scale_offset, slope.dtype)
        bias = 0.0 if affine.bias is None else affine.bias
        y_mean = ((every.mean - state.mean) * slope + bias).real
        y_std = abs(slope) * every.std
    weight, untouched = state.weight_sum, ((state.mean == 0) & (state.var == 1)).all()
    return Inspection(
        mean_distance=abs(state.mean - every.mean) / jnp.sqrt(var),
        var_ratio=state.var / var,
        batch_mean_error=jnp.sqrt(of_batches(abs(batches.mean - every.mean[None]) ** 2) / var),
        batch_var_error=jnp.sqrt(of_batches((batches.var / var[None] - 1) ** 2)),
        # With a weight, averages are of data alone from the first update on. Without, no data gives 0 and 1 exactly.
        start_weight=jnp.where(untouched, 1.0, nan) if weight is None else jnp.where(weight > 0, 0.0, 1.0),
        y_mean=jnp.where(every.count > 0, y_mean, nan),
        y_std=jnp.where(every.count > 0, y_std, nan),
        skipped=(~some).sum(0),
    )
