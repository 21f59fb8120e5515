"""Batch renormalization: the batch's statistics, corrected towards running ones."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, DTypeLike

from jaxnorm import _checks
from jaxnorm._annotations import Data, Implementation, Names, Result
from jaxnorm._core.maps import inverse_deviation, mapped, root
from jaxnorm._core.moments_about import Statistics
from jaxnorm._core.numerics import deviation, nan_if_infinite
from jaxnorm._core.reduction import Reduction, all_but
from jaxnorm._core.standardize import standardize_by_given_stats
from jaxnorm._core.statistics import statistics
from jaxnorm._functional.normalize import data_without_kernels, observations_and_coefficients, running_arguments
from jaxnorm._functional.tracking import uses_batch_stats
from jaxnorm._state.running import advance
from jaxnorm._types import Accumulating, Recalibrating, RunningState


@_checks.in_other_words
def batch_renorm(
    x: Data,
    state: RunningState,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    train: bool,
    channel_axis: int = -1,
    momentum: ArrayLike | None = 0.99,
    epsilon: ArrayLike = 1e-5,
    r_max: ArrayLike = 3.0,
    d_max: ArrayLike = 5.0,
    ddof: int = 0,
    where: ArrayLike | None = None,
    axis_name: Names | None = None,
    scale_offset: float = 0.0,
    dtype: DTypeLike | None = None,
    implementation: Implementation = None,
) -> tuple[Result, RunningState]:
    """Batch renormalization: in training as in evaluation, as far as r and d may go.

    y = (o + γ) (x̂ r + d) + β,    x̂ = (x − μ_B) / σ_B,    r = clip(σ_B / σ, 1/r_max, r_max),
    d = clip((μ_B − μ) / σ, −d_max, d_max),    σ_B = √(σ_B² + ε),    σ = √(var + ε),    o = `scale_offset`

    μ and var are running statistics as they come in, and averages as those of `jn.batch_norm`; r and d have no
    derivative. With r_max = 1 and d_max = 0 it is batch norm, which is how the paper begins, to let go later; without
    limits (`math.inf`) y in training is y in evaluation.

    Args:
        x: floating point or complex, any layout.
        state, scale, bias, train, channel_axis, momentum, epsilon, ddof, where: as for `jn.batch_norm`.
        axis_name, scale_offset, dtype, implementation: as there.
        r_max: the largest ratio of deviations, a number of at least 1.
        d_max: the largest distance of means in deviations, a number of at least 0.

    Returns:
        y, with the shape of `x`, and the new state. Arithmetic is in float32 at least.

    Raises:
        TypeError, ValueError, NameError: as `jn.batch_norm`. ValueError: `state` is None, or r_max is less than 1.

    Paper: Ioffe 2017, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models".

    >>> x = jnp.array([[1.0], [3.0]])  # mean 2 and deviation 1, beside running ones of 0 and 1
    >>> y, _ = jn.batch_renorm(x, jn.BatchRenorm().init(1)[1], train=True, d_max=1.0)
    >>> print(y.squeeze().round(3))
    [0. 2.]
    """
    who = "batch_renorm"
    train = uses_batch_stats(train, state, who)
    _checks.needs_state(state, who)
    x, output = data_without_kernels(x, dtype, scale_offset, implementation, who)
    channel = _checks.axis(channel_axis, x.ndim, f"{who}: channel_axis")
    reduction = Reduction(all_but(channel, x.ndim), _checks.names(axis_name, who) if train else ())
    before = state.before if isinstance(state, Accumulating) else state
    m, running = running_arguments(x, where, before, reduction, (channel,), train, momentum, ddof, who)
    data, coefficients = observations_and_coefficients(x, (channel,), scale, bias, epsilon, where, who)
    if not train:
        return standardize_by_given_stats(output, data, running, coefficients), state
    r_max, d_max = _checks.number(r_max, x, who, "r_max", least=1), _checks.number(d_max, x, who, "d_max")
    stats = statistics(reduction, data)
    if isinstance(state, Recalibrating):
        y = standardize_by_given_stats(output, data, stats, coefficients)
    else:
        correction = lax.stop_gradient(_correction(stats, running, coefficients.epsilon, r_max, d_max))
        var = stats.var + coefficients.epsilon
        y = mapped(_renormed, output, data, coefficients, stats.pivot, stats.delta, var, *correction)
    return y, advance(state, lax.stop_gradient(stats), m, ddof)


def _renormed(x: Array, affine: Any, pivot: Array, delta: Array, var: Array, r: Array, d: Array) -> Array:
    a = (inverse_deviation(var) * r).astype(x.dtype)
    return affine(deviation(x, pivot, delta) * a + d.astype(x.dtype))


def _correction(
    stats: Statistics, running: Statistics, epsilon: Array, r_max: Array, d_max: Array
) -> tuple[Array, Array]:
    """r and d."""
    sigma = root(nan_if_infinite(running.var + epsilon))
    none = sigma == 0
    inverse = 1 / jnp.where(none, 1, sigma)
    distance = (stats.pivot - running.pivot) + stats.delta
    size = jnp.abs(distance)
    # Beside a running deviation of 0 all others are infinite, up to the limits; without limits y is the bias, as in
    # evaluation.
    r_most, d_most = (jnp.where(jnp.isfinite(limit), limit, 0) for limit in (r_max, d_max))
    ratio = jnp.clip(root(stats.var + epsilon) * inverse, 1 / r_max, r_max)
    ratio = jnp.where(none, r_most, ratio)
    length = jnp.where(none, d_most, jnp.minimum(size * inverse, d_max))
    # In the direction of the distance, and not by its sign: means may be complex.
    share = jnp.where(size > 0, length / jnp.where(size > 0, size, 1), jnp.where(size == 0, 0, jnp.nan))
    return ratio, distance * share.astype(distance.dtype)
