"""Arithmetic that kernels of several platforms share, of rows that are on the chip."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxnorm._core.numerics import dtype_of_sum

WIDEST = 2**16
"""Features of a row that kernels take.

Beyond, a GPU's thread holds more numbers than it has registers; on a TPU, as few rows as are stored together are 2 or
4 MiB then.
"""

WIDEST_SUM = 2**14
"""Features where a residual is added: a TPU's kernel holds four blocks then, and two of each."""


def inverse_root(v: Array) -> Array:
    """1/√v, 0 for a constant, and NaN where the square of a deviation has overflowed.

    As `standardize.inverse_root`, by what compilers of kernels take.
    """
    return jnp.where(v == 0, 0, jnp.where(v < jnp.inf, lax.rsqrt(v), jnp.nan))


def variance(square: Array, delta: Array | None) -> Array:
    """⟨(d − δ)²⟩ of the mean square and the mean δ of d."""
    # No maximum: that of 0 and NaN may be 0.
    var = square if delta is None else square - delta * delta
    return jnp.where(var < 0, 0, var)


def scaled(g: Array, scale: Array | None) -> Array:
    """γ g in float32."""
    g = g.astype(jnp.float32)
    return g if scale is None else g * scale


def add(x: Array, residual: Array) -> Array:
    """h = x + residual, in the dtype that holds both."""
    return (x.astype(jnp.float32) + residual.astype(jnp.float32)).astype(dtype_of_sum(x, residual))


def like(x: Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """A result that varies over a mesh as `x` does, under shard_map."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)
