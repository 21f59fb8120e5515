"""Switchable normalization: instance, layer and batch norm in learned shares."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, DTypeLike

from jaxnorm import _checks
from jaxnorm._annotations import Axes, Data, Implementation, Names, Result
from jaxnorm._core.moments_about import Statistics
from jaxnorm._core.numerics import real_dtype
from jaxnorm._core.reduction import Reduction
from jaxnorm._core.standardize import standardize_by_given_stats
from jaxnorm._core.statistics import pooled, statistics
from jaxnorm._functional.normalize import (
    data_without_kernels,
    observations_and_coefficients,
    running_arguments,
    state_after,
)
from jaxnorm._functional.stateless import per_example
from jaxnorm._functional.tracking import uses_batch_stats
from jaxnorm._types import RunningState


def switchable_norm(
    x: Data, state: RunningState | None, scale: ArrayLike | None, bias: ArrayLike | None, mean_logits: ArrayLike,
    var_logits: ArrayLike, *, train: bool, channel_axis: int, batch_axis: Axes | None, momentum: ArrayLike | None,
    epsilon: ArrayLike, ddof: int, where: ArrayLike | None, axis_name: Names | None, scale_offset: float,
    dtype: DTypeLike | None, implementation: Implementation,
) -> tuple[Result, RunningState | None]:  # fmt: skip
    """y = (o + γ) (x − Σ w μ) / √(Σ w′ σ² + ε) + β, over the statistics of instance, layer and batch norm."""
    who = "SwitchableNorm"
    train = uses_batch_stats(train, state, who)
    x, output = data_without_kernels(x, dtype, scale_offset, implementation, who)
    channel, positions = per_example(x, channel_axis, batch_axis, who)
    examples = tuple(a for a in range(x.ndim) if a != channel and a not in positions)
    names = _checks.names(axis_name, who) if train else ()
    reduction = Reduction((*examples, *positions), names)
    m, of_batch = running_arguments(x, where, state, reduction, (channel,), train, momentum, ddof, who)
    data, coefficients = observations_and_coefficients(x, (channel,), scale, bias, epsilon, where, who)
    # The statistics of all three are those of instances, pooled: x is read once.
    of_instances = statistics(Reduction(positions), data)
    of_layer = pooled(Reduction((channel,)), of_instances)
    if train:
        of_batch = pooled(Reduction(examples, names), of_instances)
    shares = [_shares(logits, x, name) for logits, name in ((mean_logits, "mean_logits"), (var_logits, "var_logits"))]
    stats = _weighted_stats([of_instances, of_layer, of_batch], *shares)
    y = standardize_by_given_stats(output, data, stats, coefficients)
    return y, state_after(state, of_batch, m, ddof) if train else state


def _shares(logits: Any, x: Array, name: str) -> Array:
    """Their softmax."""
    logits = jnp.asarray(_checks.given(logits, "SwitchableNorm", name))
    if logits.shape != (3,) or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"SwitchableNorm: {name} has shape {logits.shape} and dtype {logits.dtype}. It holds 3 real numbers, for "
            f"instance, layer and batch norm."
        )
    return jax.nn.softmax(logits.astype(real_dtype(x)))


def _weighted_stats(each: Sequence[Statistics], of_means: Array, of_vars: Array) -> Statistics:
    """Their averages, about the pivot of the first: the digits of x − μ survive, as shares add up to 1."""
    pivot = each[0].pivot
    delta: Any = 0
    for share, stats in zip(of_means, each, strict=True):
        beyond = stats.pivot - pivot
        delta += share.astype(beyond.dtype) * (beyond if stats.delta is None else beyond + stats.delta)
    return Statistics(None, pivot, delta, sum(share * stats.var for share, stats in zip(of_vars, each, strict=True)))
