"""The verbs that divide by a length or a deviation alone, and the one that has no statistics at all."""

import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, DTypeLike

from jaxnorm import _checks
from jaxnorm._annotations import Axes, Data, Implementation, Names, Result
from jaxnorm._core.maps import finite_padding, mapped
from jaxnorm._core.moments_about import Observations, Statistics
from jaxnorm._core.numerics import masked, nan_if_infinite, weighted, wide_dtype
from jaxnorm._core.reduction import Reduction
from jaxnorm._core.sharding import place_like
from jaxnorm._core.standardize import standardize_by_given_stats
from jaxnorm._core.statistics import statistics
from jaxnorm._core.tangents import recomputing
from jaxnorm._functional.normalize import data_without_kernels, observations_and_coefficients
from jaxnorm._state.running import unbiased


@_checks.in_other_words
def unit_norm(
    x: Data,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    order: float = 2,
    epsilon: ArrayLike = 0.0,
    where: ArrayLike | None = None,
    axis_name: Names | None = None,
    scale_offset: float = 0.0,
    dtype: DTypeLike | None = None,
    implementation: Implementation = None,
) -> Result:
    """Vectors of length 1, in the norm of any order; a vector of zeros stays one.

    y = (o + γ) x / √(ℓ² + ε) + β,    ℓ = (Σ |x|^p)^(1/p),    p = `order`, o = `scale_offset`, the sum over `axis`

    Args:
        x: floating point or complex, any layout.
        scale, bias, axis, where, axis_name, scale_offset, dtype: as for `jn.layer_norm`. A sum is weighted by `where`.
        order: p > 0, a static number; `math.inf` is the largest.
        epsilon: ε, a number of at least 0.
        implementation: None or "xla"; kernels are for layer and RMS norm.

    Returns:
        y, with the shape of `x`. Arithmetic is in float32 at least, and squares have to be numbers of it: lengths
        from about 1e-19 to 1e19. Where all of a vector is 0, so is its derivative.

    Raises:
        TypeError: `x` is integer or boolean. ValueError: an argument does not fit `x`. NameError: an unbound name.

    Paper: Wang et al. 2017, "NormFace: L2 Hypersphere Embedding for Face Verification".

    >>> print(jn.unit_norm(jnp.array([[3.0, 4.0], [0.0, 0.0]])).round(3))
    [[0.6 0.8]
     [0.  0. ]]
    """
    who = "unit_norm"
    order = _checks.order(order, who)
    x, output = data_without_kernels(x, dtype, scale_offset, implementation, who)
    axes = _checks.axes(axis, x.ndim, f"{who}: axis")
    data, coefficients = observations_and_coefficients(x, axes, scale, bias, epsilon, where, who)
    reduction = Reduction(axes, _checks.names(axis_name, who), centered=False)
    return standardize_by_given_stats(output, data, squared_length(reduction, data, order), coefficients)


def squared_length(reduction: Reduction, data: Observations, order: float = 2) -> Statistics:
    """ℓ² in the place of a variance."""
    if order == 2:
        stats = statistics(reduction, data)
        return Statistics(None, None, None, stats.count * stats.var)
    return Statistics(None, None, None, recomputing(_squared_length, reduction, order)(data))


def _squared_length(reduction: Reduction, order: float, data: Observations) -> Array:
    """ℓ² = m² (Σ (|x|/m)^p)^(2/p), with m the largest: no power of it overflows."""
    size = masked(jnp.abs(finite_padding(data.x.astype(wide_dtype(data.x)), data.where)), data.where)
    largest = lax.stop_gradient(size.max(reduction.axes, keepdims=True, initial=0))
    largest = lax.pmax(largest, reduction.axis_names) if reduction.axis_names else largest
    unit = jnp.where(largest > 0, largest, 1)
    if order == math.inf:
        # Of several that are the largest, each has an equal part in the derivative.
        powers = jnp.where((size == largest) & (size > 0), size / unit, 0)
        ties = jnp.where((size == largest) & (size > 0), 1.0, 0.0)
        total, n = reduction.psum(reduction.sum(powers), reduction.sum(ties.astype(size.dtype)))
        length = total / jnp.where(n > 0, n, 1)
    else:
        positive = jnp.where(size > 0, size, 1) / unit
        powers = jnp.where(size > 0, positive**order, 0)
        (total,) = reduction.psum(reduction.sum(weighted(powers, data.where)))
        length = jnp.where(total > 0, jnp.where(total > 0, total, 1) ** (1 / order), 0)
    return jnp.where(jnp.isfinite(largest), nan_if_infinite((unit * length) ** 2), jnp.nan)


@_checks.in_other_words
def simple_norm(
    x: Data,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    epsilon: ArrayLike = 1e-6,
    ddof: int = 0,
    where: ArrayLike | None = None,
    axis_name: Names | None = None,
    scale_offset: float = 0.0,
    dtype: DTypeLike | None = None,
    implementation: Implementation = None,
) -> Result:
    """Division by the standard deviation, where the mean stays.

    y = (o + γ) x / √(σ² n / (n − ddof) + ε) + β,    o = `scale_offset`, σ² and n, the number of data, over `axis`

    Args:
        x: floating point or complex, any layout.
        scale, bias, axis, epsilon, where, axis_name, scale_offset, dtype: as for `jn.layer_norm`.
        ddof: 1 divides by the unbiased deviation, as `timm.layers.SimpleNorm` does.
        implementation: None or "xla"; kernels are for layer and RMS norm.

    Returns:
        y, with the shape of `x`. Arithmetic is in float32 at least.

    Raises:
        TypeError: `x` is integer or boolean. ValueError: an argument does not fit `x`. NameError: an unbound name.

    Paper: Ba, Kiros & Hinton 2016, "Layer Normalization", of which it leaves the centring out.

    >>> print(jn.simple_norm(jnp.array([[4.0, 8.0]])).round(3))
    [[2. 4.]]
    """
    who = "simple_norm"
    x, output = data_without_kernels(x, dtype, scale_offset, implementation, who)
    axes = _checks.axes(axis, x.ndim, f"{who}: axis")
    data, coefficients = observations_and_coefficients(x, axes, scale, bias, epsilon, where, who)
    _checks.ddof(ddof, who)
    reduction = Reduction(axes, _checks.names(axis_name, who))
    _checks.more_data(reduction.size(x), ddof, who)
    stats = statistics(reduction, data)
    origin = jnp.zeros((1,) * x.ndim, wide_dtype(x))
    var = unbiased(stats.count, stats.var, ddof)
    return standardize_by_given_stats(output, data, Statistics(None, origin, None, var), coefficients)


@_checks.in_other_words
def dynamic_tanh(
    x: Data,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    alpha: ArrayLike = 0.5,
    *,
    axis: Axes = -1,
    where: ArrayLike | None = None,
    scale_offset: float = 0.0,
    dtype: DTypeLike | None = None,
    implementation: Implementation = None,
) -> Result:
    """Dynamic tanh, in the place of layer norm: no statistics are taken.

    y = (o + γ) tanh(α x) + β,    o = `scale_offset`

    Args:
        x: real floating point, any layout.
        scale, bias: γ and β, of the shape of `axis`, as for `jn.layer_norm`.
        alpha: α, a scalar as in the paper, or what a scale may be.
        axis: the axes that scale and bias lie along.
        where: has an effect on padding alone: an excluded NaN gives the bias.
        scale_offset, dtype: as for `jn.layer_norm`.
        implementation: None or "xla"; kernels are for layer and RMS norm.

    Returns:
        y, with the shape of `x`. Arithmetic is in float32 at least.

    Raises:
        TypeError: `x` is integer, boolean or complex. ValueError: an argument does not fit `x`.

    Paper: Zhu et al. 2025, "Transformers without Normalization".

    >>> print(jn.dynamic_tanh(jnp.array([[-100.0, 0.0, 1.0]])).round(3))
    [[-1.     0.     0.462]]
    """
    who = "dynamic_tanh"
    x, output = data_without_kernels(x, dtype, scale_offset, implementation, who)
    _checks.real(x, who, "tanh")
    axes = _checks.axes(axis, x.ndim, f"{who}: axis")
    data, coefficients = observations_and_coefficients(x, axes, scale, bias, 0.0, where, who)
    alpha = place_like(_checks.affine(_checks.given(alpha, who, "alpha"), x, axes, who, "alpha"), x)
    return mapped(_tanh, output, data, coefficients, alpha)


def _tanh(x: Array, affine: Any, alpha: Array) -> Array:
    return affine(jnp.tanh(x * alpha.astype(x.dtype)))
