"""Standardize and affine: the one map of data that all norms share, and its derivative."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxnorm._core.barriers import Copy, barrier_copies, by_platform, sum_as
from jaxnorm._core.moments_about import Observations, Statistics
from jaxnorm._core.numerics import MaybeArray, deviation, included, nan_if_infinite, narrow, wide_dtype, with_offset
from jaxnorm._core.pivot import Expected, accurate_stats
from jaxnorm._core.reduction import Reduction, broadcast_in_stages
from jaxnorm._core.statistics import broadcast_stats, statistics_tangent
from jaxnorm._core.tangents import nonzero_tangent, plus, recomputing, times


class Coefficients(NamedTuple):
    """Scale γ, bias β and ε in the dimensions of the data; ε is a scalar. None leaves a scale or bias out."""

    scale: Any
    bias: Any
    epsilon: Any


class Output(NamedTuple):
    """The dtype of y, and an offset that is added to the scale in the dtype of arithmetic."""

    dtype: Any
    scale_offset: float = 0.0


class InputTangents(NamedTuple):
    """Tangents of all that y depends on; None for one that is zero."""

    x: Any
    mean: Any
    var: Any
    scale: Any
    bias: Any
    epsilon: Any


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0)
def standardize_by_given_stats(
    output: Output, data: Observations, stats: Statistics, coefficients: Coefficients
) -> Array:
    """y = (x − μ) · scale / √(var + ε) + bias by given statistics.

    The dtype of y is no wider than the dtype of arithmetic on `x`. All broadcasts to `x`; where, the mean, scale and
    bias may be None. Padding that is not finite gives the bias.
    """
    # No statistic shares x − μ with y: it needs no copy.
    return _value(output, data, stats, coefficients, None)


@partial(standardize_by_given_stats.defjvp, symbolic_zeros=True)
def _standardize_by_given_stats_jvp(output: Output, primals: Any, tangents: Any) -> tuple[Array, Array]:
    data, stats, coefficients = primals
    # Weights act through the statistics only.
    (dx, *_), (_, dpivot, ddelta, dvar), dcoefficients = jax.tree.map(nonzero_tangent, tangents)
    # Without the bias, which the derivative has no use for: it would be kept.
    kept = data, stats, coefficients._replace(bias=None)
    dy = recomputing(_y_tangent, output)(*kept, InputTangents(dx, plus(dpivot, ddelta), dvar, *dcoefficients))
    return standardize_by_given_stats(output, *primals), dy


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
@partial(jax.jit, static_argnums=(0, 1, 2))
def standardize_by_own_stats(
    reduction: Reduction,
    output: Output,
    need_stats: bool,
    data: Observations,
    expected: Expected | None,
    coefficients: Coefficients,
) -> tuple[Array, Statistics]:
    """y by the accurate statistics of the data themselves, and these statistics.

    With g the cotangent of y, r = 1/√(var + ε) and x̂ = (x − μ) r, what JAX makes of the derivative for the backward
    pass is, where nothing is masked:

    dx = r (γ g − ⟨γ g⟩ − x̂ ⟨γ g x̂⟩)        dγ = Σ g x̂        dβ = Σ g

    It keeps x, where, pivot, δ, var, γ and ε; the count, too, for masked data over devices.
    """
    stats = accurate_stats(reduction, need_stats, data, expected)
    return _value(output, data, broadcast_stats(reduction, stats, data.x), coefficients, Copy.VALUE), stats


@partial(standardize_by_own_stats.defjvp, symbolic_zeros=True)
def _standardize_by_own_stats_jvp(
    reduction: Reduction, output: Output, need_stats: bool, primals: Any, tangents: Any
) -> tuple[Any, Any]:
    data, _, coefficients = primals
    ddata, _, dcoefficients = jax.tree.map(nonzero_tangent, tangents)
    y, stats = standardize_by_own_stats(reduction, output, True, *primals)
    kept = data, stats, coefficients._replace(bias=None)
    return (y, stats), recomputing(_tangents_by_own_stats, reduction, output)(*kept, ddata, dcoefficients)


def _tangents_by_own_stats(
    reduction: Reduction,
    output: Output,
    data: Observations,
    stats: Statistics,
    coefficients: Coefficients,
    ddata: Observations,
    dcoefficients: Coefficients,
) -> tuple[Array, Statistics]:
    """The tangents of y and of the statistics."""
    x, dx = data.x, ddata.x
    # Widened once, so that the two cotangents of x, through the statistics and through y, are added and then rounded,
    # and not rounded each.
    dx = dx if dx is None else dx.astype(wide_dtype(x))
    dstats = statistics_tangent(reduction, data, stats, ddata._replace(x=dx))
    _, _, dmean, dvar = broadcast_stats(reduction, dstats, x)
    tangents = InputTangents(dx, dmean, dvar, *dcoefficients)
    return _y_tangent(output, data, broadcast_stats(reduction, stats, x), coefficients, tangents), dstats


def _value(
    output: Output, data: Observations, stats: Statistics, coefficients: Coefficients, copy: int | None
) -> Array:
    """y = (x − μ) · scale / √(var + ε) + bias, of statistics that broadcast to `x`."""
    scale, bias, epsilon = coefficients
    wide = wide_dtype(data.x)
    a = _inverse_std(stats.pivot, stats.var + epsilon).astype(wide)
    e = _deviation(copy, data, stats)
    if scale is None:
        y = e * a
    else:
        s = with_offset(scale, output.scale_offset, wide)
        # In this order, XLA for GPUs keeps a row of RMS norm in registers also with a bfloat16 scale: two passes, not
        # three. With a mean it does anyway.
        y = e * a * s if stats.pivot is None else e * (a * s)
    return narrow(y if bias is None else y + bias.astype(wide), data.where, output.dtype)


def inverse_root(v: Array) -> Array:
    """1/√v; 0 where v = 0, as a constant has no deviation to divide, also with ε = 0; NaN where v is no number or ∞."""
    v = nan_if_infinite(v)
    return jax.lax.rsqrt(jnp.where(v == 0, jnp.inf, v))


def _inverse_std(pivot: MaybeArray, v: Array) -> Array:
    """1/√v; without a pivot, as in RMS norm, v is a mean square."""
    if pivot is not None:
        return inverse_root(v)

    # Where the mean square of x is 0, so is x, and any number does: this one lets a GPU keep a row in registers.
    # The remainder of ∞ is NaN: a select, or a second use of v, would keep the row from staying in registers.
    def some(v: Array) -> Array:
        limits = jnp.finfo(v.dtype)
        return jax.lax.rsqrt(jnp.maximum(jax.lax.rem(v, limits.max.astype(v.dtype)), limits.tiny))

    return by_platform(v, cpu=inverse_root, default=some, portable=inverse_root)


def _finite(d: Array, x: Array, where: MaybeArray) -> Array:
    """`d`, and 0 where padding is NaN or Inf: what follows would turn a cotangent of 0 into 0 · NaN."""
    return d if where is None else jnp.where(included(where) | jnp.isfinite(x), d, 0)


def _deviation(copy: int | None, data: Observations, stats: Statistics) -> Array:
    """x − μ, in a copy of its own where others take it, too."""
    x, *pivot_and_delta = data.x, stats.pivot, stats.delta
    if copy is not None:
        x, *pivot_and_delta = barrier_copies(copy, x, *pivot_and_delta)
    return _finite(deviation(x, *pivot_and_delta), x, data.where)


def _y_tangent(
    output: Output, data: Observations, stats: Statistics, coefficients: Coefficients, tangents: InputTangents
) -> Array:
    """With r = 1/√(var + ε), a = scale · r and e = x − μ:

    dr = −½ r³ (dvar + dε)        dy = a dx + (dbias − a dμ) + e (r dscale + scale dr)
    """
    wide = wide_dtype(data.x)
    tangents = jax.tree.map(lambda t: t.astype(wide), tangents)
    scale, _, epsilon = coefficients
    r = inverse_root(stats.var + epsilon).astype(wide)
    s = jnp.ones((), wide) if scale is None else with_offset(scale, output.scale_offset, wide)
    # Not r³: that overflows before the product does.
    dr = times(-r / 2, times(r, times(r, plus(tangents.var, tangents.epsilon))))
    of_vectors = jnp.broadcast_shapes(r.shape, s.shape) != data.x.shape
    terms = (_terms_of_vectors if of_vectors else _terms_each)(data, stats, r, s, dr, tangents)
    present = [t for t in terms if t is not None]
    # By given statistics, y does not depend on weights.
    return sum_as(output.dtype, *present) if present else jax.lax.full_like(data.x, 0, output.dtype)


def _terms_of_vectors(
    data: Observations, stats: Statistics, r: Array, s: Array, dr: MaybeArray, tangents: InputTangents
) -> tuple[Any, ...]:
    """The terms with vectors shift = dbias − a dμ and slope = r dscale + scale dr.

    They transpose to Σ g and Σ e g, all reductions of the backward pass. Where nothing is masked, e is x − p, and what
    δ takes from it goes into the shift.
    """
    x, where, delta = data.x, data.where, stats.delta
    slope = plus(times(r, tangents.scale), times(s, dr))
    shift = plus(tangents.bias, times(-r * s, tangents.mean))
    if where is None and delta is not None and slope is not None:
        # e · slope = (x − p) · slope − δ · slope: the second is a vector, and one fewer is left to read beside x.
        shift, delta = plus(shift, times(-delta, slope)), None
    x_, *pivot_and_delta, a = barrier_copies(Copy.Y_BY_SLOPE, x, stats.pivot, delta, r * s)
    e = _finite(deviation(x_, *pivot_and_delta), x_, where)
    return times(a, tangents.x), _full_size(shift, x), times(e, _full_size(slope, x))


def _terms_each(
    data: Observations, stats: Statistics, r: Array, s: Array, dr: MaybeArray, tangents: InputTangents
) -> tuple[Any, ...]:
    """The terms where scale lies along the reduced axes: no product of r and s is a vector, each term has copies."""
    x = data.x

    def copies(copy: int) -> tuple[Array, Array, Array]:
        x_, *pivot_and_delta, r_, s_ = barrier_copies(copy, x, stats.pivot, stats.delta, r, s)
        return _finite(deviation(x_, *pivot_and_delta), x_, data.where), r_, s_

    e_factor, _, s_factor = copies(Copy.Y_BY_SLOPE)
    e_scale, r_scale, _ = copies(Copy.Y_BY_SCALE)
    _, r_x, s_x = copies(Copy.Y_BY_X)
    _, _, s_mean = copies(Copy.Y_BY_MEAN)
    return (
        times(s_x, times(r_x, tangents.x)),
        times(s_mean, _full_size(times(-r, tangents.mean), x)),
        _full_size(tangents.bias, x),
        times(s_factor, times(e_factor, _full_size(dr, x))),
        times(e_scale, times(r_scale, _full_size(tangents.scale, x))),
    )


def _full_size(t: MaybeArray, x: Array) -> Any:
    """A vector as large as `x`."""
    # A zero of x makes the vector vary over a mesh as x does, before it is broadcast: the transpose, which sums over
    # devices there, then sends vectors. After, it would send full-size arrays.
    return t if t is None else broadcast_in_stages(t + jax.lax.full_like(x, 0, t.dtype, shape=()), x)
