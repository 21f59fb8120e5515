"""Moments of data, and the moments of all data from those of its parts: a commutative monoid."""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from jaxnorm import _checks
from jaxnorm._annotations import Axes, Data, Names
from jaxnorm._core.reduction import Reduction
from jaxnorm._core.sharding import stack
from jaxnorm._state.stream import merge_by_halves, merge_over_devices, moments_of, with_residuals
from jaxnorm._types import Moments


def moments(
    x: Data,
    axis: Axes | None = None,
    *,
    where: ArrayLike | None = None,
    axis_name: Names | None = None,
    keepdims: bool = False,
    extremes: bool = False,
) -> Moments:
    """Moments of data over some axes, and over devices.

    n = Σ wᵢ,    μ = Σ wᵢ xᵢ / n,    M2 = Σ wᵢ |xᵢ − μ|²

    Accurate however large the mean is beside the deviation. Differentiable in `x` and in weights, to any order.

    Args:
        x: floating point or complex, any shape.
        axis: the axes to reduce; None for all.
        where: booleans or non-negative weights, with the dimensions of `x`, each of the same size or 1.
            What is excluded may be NaN.
        axis_name: the mapped axes (of vmap, pmap, shard_map) to merge over.
        keepdims: keep reduced axes, with size 1.
        extremes: the least and the greatest value, too.

    Returns:
        `Moments` in float32 (float64 for float64; for complex `x` the mean is complex).

    Raises:
        TypeError: `x` is integer or boolean.
        ValueError: `axis` or `where` does not fit `x`; a weight is negative.
        NameError: `axis_name` is not bound.

    Paper: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

    >>> count, mean, m2, *_ = jn.moments(jnp.array([[1.0, 2.0], [3.0, 6.0]]), axis=0)
    >>> print(count, mean, m2)
    [2. 2.] [2. 4.] [2. 8.]
    """
    x = _checks.data(x, "moments")
    axes = tuple(range(x.ndim)) if axis is None else _checks.axes(axis, x.ndim, "moments: axis")
    reduction = Reduction(axes, _checks.names(axis_name, "moments"))
    if extremes and jnp.iscomplexobj(x):
        raise TypeError(f"moments: extremes=True, but x has dtype {x.dtype}. Complex numbers have no order.")
    whole = moments_of(reduction, x, _checks.where(where, x, "moments"), extremes)
    return whole if keepdims else jax.tree.map(lambda v: v.squeeze(axes), whole)


def merge(
    *parts: Moments,
    axis: Axes | None = None,
    axis_name: Names | None = None,
) -> Moments:
    """Moments of all data, from the moments of its parts.

    n = Σ nᵢ,    μ = Σ nᵢ μᵢ / n,    M2 = Σ (M2ᵢ + nᵢ |μᵢ − μ|²)

    These are the moments of the means, weighted by the counts, plus what lies within the parts. Parts may have
    different counts, 0 too. Their order and grouping do not matter, up to rounding.

    Args:
        parts: Moments of one shape, all with extremes or all without; or, with `axis`, a single one in which they are
            stacked. States of feature scalers are such.
        axis: the axes along which they are stacked.
        axis_name: mapped axes (of vmap, pmap, shard_map): parts on other devices are merged in, in one collective.

    Returns:
        Moments, of the shape of one part. A part without data changes no bit of the others.

    Raises:
        TypeError: there is nothing to merge, something else than Moments, or those with and without extremes.
        ValueError: shapes differ, or `axis` is given with several parts.
        NameError: `axis_name` is not bound.

    Paper: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

    >>> a, b = jn.moments(jnp.arange(3.0)), jn.moments(jnp.arange(3.0, 10.0))
    >>> count, mean, m2, *_ = jn.merge(a, b)
    >>> print(count, mean, f"{m2:.1f}")
    10.0 4.5 82.5
    """
    _checks.parts(parts, axis)
    numbers = [with_residuals(part) for part in parts]
    parts_stack = jax.tree.map(_stack, *numbers) if axis is None else numbers[0]
    shape = parts_stack.mean.shape
    axes = _checks.axes(0 if axis is None else axis, len(shape), "merge: axis", "a stack of moments")
    _checks.weights(parts_stack.count, "merge: count")
    names = _checks.names(axis_name, "merge")
    if names or 0 in (shape[a] for a in axes):
        return jax.tree.map(lambda v: v.squeeze(axes), merge_over_devices(Reduction(axes, names), parts_stack))
    kept = [n for a, n in enumerate(shape) if a not in axes]
    in_front = jax.tree.map(lambda v: jnp.moveaxis(v, axes, range(len(axes))).reshape(-1, *kept), parts_stack)
    return jax.tree.map(lambda v: v[0], merge_by_halves(in_front))


def _stack(*values: Any) -> Array:
    dtype = reduce(jnp.promote_types, (jnp.asarray(v).dtype for v in values))
    return stack(*(jnp.asarray(v, dtype) for v in values))
