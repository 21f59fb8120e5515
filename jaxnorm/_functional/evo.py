"""The verbs that evolution found: normalization and activation in one formula."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, DTypeLike

from jaxnorm import _checks
from jaxnorm._annotations import Axes, Data, Implementation, Names, Result
from jaxnorm._core.maps import inverse_deviation, mapped, root
from jaxnorm._core.numerics import nan_if_infinite
from jaxnorm._core.reduction import Reduction
from jaxnorm._core.sharding import place_like
from jaxnorm._core.statistics import broadcast_stats, pooled, statistics
from jaxnorm._functional.normalize import (
    data_without_kernels,
    observations_and_coefficients,
    running_arguments,
    state_after,
)
from jaxnorm._functional.stateless import per_example
from jaxnorm._functional.tracking import uses_batch_stats
from jaxnorm._types import RunningState


@_checks.in_other_words
def evo_norm_s0(
    x: Data,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    v: ArrayLike = 1.0,
    *,
    groups: int,
    channel_axis: int = -1,
    batch_axis: Axes | None = 0,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    axis_name: Names | None = None,
    scale_offset: float = 0.0,
    dtype: DTypeLike | None = None,
    implementation: Implementation = None,
) -> Result:
    """EvoNorm-S0: swish, divided by the standard deviation of a group; no batch statistics.

    y = (o + γ) x σ(v x) / √(s² + ε) + β,    s² over the positions of an example and C / groups channels, σ the sigmoid,
    o = `scale_offset`

    Args:
        x: real floating point, any layout.
        scale, bias, groups, channel_axis, batch_axis, epsilon, where, axis_name: as for `jn.group_norm`.
        scale_offset, dtype, implementation: as there.
        v: a vector over the channel axis, a scalar, or an array with the dimensions of `x`.

    Returns:
        y, with the shape of `x`. Arithmetic is in float32 at least.

    Raises:
        TypeError: `x` is integer, boolean or complex. ValueError: an argument does not fit `x`, or the groups do not
            divide the channels. NameError: an unbound name.

    Paper: Liu et al. 2020, "Evolving Normalization-Activation Layers".

    >>> print(jn.evo_norm_s0(jnp.array([[[1.0], [3.0]]]), groups=1).squeeze().round(3))
    [0.731 2.858]
    """
    who = "evo_norm_s0"
    x, output = data_without_kernels(x, dtype, scale_offset, implementation, who)
    _checks.real(x, who, "a sigmoid")
    channel, positions = per_example(x, channel_axis, batch_axis, who)
    _checks.divides(groups, x.shape[channel], who)
    data, coefficients = observations_and_coefficients(x, (channel,), scale, bias, epsilon, where, who)
    v = place_like(_checks.affine(_checks.given(v, who, "v"), x, (channel,), who, "v"), x)
    reduction = Reduction(positions, _checks.names(axis_name, who), groups, channel)
    stats = broadcast_stats(reduction, statistics(reduction, data), x)
    return mapped(_swish, output, data, coefficients, stats.var + coefficients.epsilon, v)


def _swish(x: Array, affine: Any, var: Array, v: Array) -> Array:
    return affine(x * jax.nn.sigmoid(x * v.astype(x.dtype)) * inverse_deviation(var))


@_checks.in_other_words
def evo_norm_b0(
    x: Data,
    state: RunningState | None,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    v: ArrayLike = 1.0,
    *,
    train: bool,
    channel_axis: int = -1,
    batch_axis: Axes | None = 0,
    momentum: ArrayLike | None = 0.99,
    epsilon: ArrayLike = 1e-5,
    ddof: int = 0,
    where: ArrayLike | None = None,
    axis_name: Names | None = None,
    scale_offset: float = 0.0,
    dtype: DTypeLike | None = None,
    implementation: Implementation = None,
) -> tuple[Result, RunningState | None]:
    """EvoNorm-B0: division by the larger of the batch's deviation, and of an example's beside x itself.

    y = (o + γ) x / max(√(s² + ε), v x + √(sᵢ² + ε)) + β,    s² over all axes but `channel_axis`, in evaluation the
    running variance, sᵢ² over the positions of an example, o = `scale_offset`

    Args:
        x: real floating point, any layout.
        state, scale, bias, train, channel_axis, momentum, epsilon, ddof, where: as for `jn.batch_norm`. There is a
            running mean, which is not used.
        axis_name, scale_offset, dtype, implementation: as there.
        v: a vector over the channel axis, a scalar, or an array with the dimensions of `x`.
        batch_axis: one axis of examples, several, or None for a single example.

    Returns:
        y, with the shape of `x`, and the new state. Arithmetic is in float32 at least.

    Raises:
        TypeError: `x` is integer, boolean or complex, `state` is not RunningStats. ValueError: an argument does not
            fit `x`. NameError: an unbound name.

    Paper: Liu et al. 2020, "Evolving Normalization-Activation Layers".

    >>> x = jnp.array([[[-2.0], [2.0]], [[-2.0], [2.0]]])  # two examples, two positions, one channel
    >>> y, _ = jn.evo_norm_b0(x, None, train=True)  # the deviation is 2 everywhere, and v x + 2 is 0 and 4
    >>> print(y.squeeze().round(3))
    [[-1.   0.5]
     [-1.   0.5]]
    """
    who = "evo_norm_b0"
    train = uses_batch_stats(train, state, who)
    x, output = data_without_kernels(x, dtype, scale_offset, implementation, who)
    _checks.real(x, who, "a maximum")
    channel, positions = per_example(x, channel_axis, batch_axis, who)
    examples = tuple(a for a in range(x.ndim) if a != channel and a not in positions)
    names = _checks.names(axis_name, who) if train else ()
    reduction = Reduction((*examples, *positions), names)
    m, of_batch = running_arguments(x, where, state, reduction, (channel,), train, momentum, ddof, who)
    data, coefficients = observations_and_coefficients(x, (channel,), scale, bias, epsilon, where, who)
    v = place_like(_checks.affine(_checks.given(v, who, "v"), x, (channel,), who, "v"), x)
    of_examples = statistics(Reduction(positions), data)
    if train:
        # From those of the examples: x is read once.
        of_batch = pooled(Reduction(examples, names), of_examples)
    variances = of_batch.var + coefficients.epsilon, of_examples.var + coefficients.epsilon
    y = mapped(_larger_deviation, output, data, coefficients, *variances, v)
    return y, state_after(state, of_batch, m, ddof) if train else state


def _larger_deviation(x: Array, affine: Any, var: Array, own: Array, v: Array) -> Array:
    own_deviation = x * v.astype(x.dtype) + root(nan_if_infinite(own))
    deviation = jnp.maximum(root(nan_if_infinite(var)), own_deviation)
    return affine(x / jnp.where(deviation == 0, 1, deviation))
