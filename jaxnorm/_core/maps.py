"""Maps of data other than standardizing: they share its affine part, its padding, and how little it keeps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxnorm._core.moments_about import Observations
from jaxnorm._core.numerics import MaybeArray, included, narrow, wide_dtype, with_offset
from jaxnorm._core.standardize import Coefficients, Output, inverse_root
from jaxnorm._core.tangents import recomputing

Formula = Callable[..., Array]
"""y of the data in the dtype of arithmetic, of the affine part as a function, and of more arrays."""


def mapped(formula: Formula, output: Output, data: Observations, coefficients: Coefficients, *arrays: Any) -> Array:
    """y by a formula, which is a function of a module: equal norms then share one trace.

    For the backward pass only the arguments are kept, `x` in its own dtype; all else is computed again.
    """
    return recomputing(_value, formula, output)(data, coefficients, *arrays)


def _value(formula: Formula, output: Output, data: Observations, coefficients: Coefficients, *arrays: Any) -> Array:
    wide = wide_dtype(data.x)
    scale, bias, _ = coefficients

    def affine(v: Array) -> Array:
        v = v if scale is None else v * with_offset(scale, output.scale_offset, wide)
        return v if bias is None else v + bias.astype(wide)

    x = finite_padding(data.x.astype(wide), data.where)
    return narrow(formula(x, affine, *arrays), data.where, output.dtype)


def finite_padding(x: Array, where: MaybeArray) -> Array:
    """`x`, and 0 where padding is NaN or Inf: a cotangent of 0 would become 0 · NaN there.

    Beyond the root of the largest float, where squares overflow, padding is that: else its products would be ∞.
    """
    if where is None:
        return x
    padding = jnp.where(jnp.isfinite(x), x, 0)
    if not jnp.iscomplexobj(x):
        most = jnp.finfo(x.dtype).max ** 0.5
        padding = jnp.clip(padding, -most, most)
    return jnp.where(included(where), x, padding)


def root(v: Array) -> Array:
    """√v, with derivative 0 where v = 0."""
    return jnp.where(v == 0, 0, jnp.sqrt(jnp.where(v == 0, 1, v)))


@jax.custom_jvp
def inverse_deviation(v: Array) -> Array:
    """1/√v, as `inverse_root` has it, and a derivative in which no power overflows before the product does."""
    return inverse_root(v)


@inverse_deviation.defjvp
def _inverse_deviation_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    r = inverse_deviation(*primals)
    return r, -0.5 * r * (r * (r * tangents[0]))
