"""Kernels for norms of rows: which data they serve, and how these are laid out for them."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxnorm._core.kernels.arithmetic import WIDEST, WIDEST_SUM
from jaxnorm._core.kernels.platforms import chosen
from jaxnorm._core.kernels.rows import Rows, standardize_rows
from jaxnorm._core.standardize import Coefficients, Output

_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


def unserved(
    axes: tuple[int, ...], x: Array, where: Array | None, dtype: Any, *vectors: Array | None, widest: int = WIDEST
) -> str | None:
    """Why kernels can't normalize `x` over these axes, in words; None where they can."""
    lead = x.ndim - len(axes)
    if set(axes) != set(range(lead, x.ndim)):
        return f"normalizes the last axes of x, in their order, not axes {axes} of {x.ndim}"
    if where is not None:
        return "takes no where"
    if x.dtype not in _DTYPES or dtype not in _DTYPES:
        return f"is for float32, bfloat16 and float16, not {x.dtype} to {jnp.dtype(dtype)}"
    if not all(isinstance(n, int) for n in x.shape) or not x.size:
        return f"needs sizes that are known and not 0, and x has shape {x.shape}"
    if math.prod(x.shape[lead:]) > widest:
        return f"holds {widest} features of a row at most, and x has shape {x.shape}"
    if any(jax.typeof(x).sharding.spec):
        return "does not know meshes with explicit axes: use it within shard_map"
    for v in vectors:
        if v is not None and _varying_axes(v, x, lead) is None:
            return (
                f"wants a scale or bias along the features, and along leading axes of x, not one of shape {v.shape} "
                f"for x of shape {x.shape}"
            )
    return None


def _varying_axes(v: Array, x: Array, lead: int) -> int | None:
    """How many of the leading axes of `x` a vector lies along: the first ones. None: others than these."""
    first = max((a for a in range(lead) if v.shape[a] != 1), default=-1) + 1
    whole = v.shape[lead:] == x.shape[lead:] or all(n == 1 for n in v.shape[lead:])
    return first if whole and v.shape[:first] == x.shape[:first] else None


def normalize_rows(
    axes: tuple[int, ...], x: Array, residual: Array | None, coefficients: Coefficients,
    *, centered: bool, output: Output, named: bool,
) -> list[Array]:  # fmt: skip
    """y = (h − μ) · scale / √(σ² + ε) + bias over the last axes, by kernels where the platform has them.

    h is x, or x + residual, which then is the second result.
    """
    lead = x.ndim - len(axes)
    scale, bias, epsilon = coefficients
    vectors = [v for v in (scale, bias) if v is not None]
    first = max((_varying_axes(v, x, lead) or 0 for v in vectors), default=0)
    flat = [v.reshape(*x.shape[:lead], -1) for v in (x, residual) if v is not None]

    def laid_out(v: Array) -> Array:
        v = jnp.broadcast_to(v, (*x.shape[:first], *v.shape[first:lead], *x.shape[lead:]))
        return v.reshape(*x.shape[:first], flat[0].shape[-1])

    epsilon = jnp.broadcast_to(epsilon.astype(jnp.float32), (*x.shape[:first], 1))
    args = _alike(*flat, *map(laid_out, vectors), epsilon)
    rows = Rows(
        centered, jnp.dtype(output.dtype), named,
        scale is not None, bias is not None, output.scale_offset, residual is not None,
    )  # fmt: skip
    return [v.reshape(x.shape) for v in standardize_rows(rows, *args)]


def _alike(*arrays: Array) -> tuple[Array, ...]:
    """Arrays that vary along the same axes of a mesh, under shard_map."""
    varying = [jax.typeof(v).manual_axis_type.varying for v in arrays]
    most = frozenset().union(*varying)
    if all(v == most for v in varying):
        return arrays
    zeros = [lax.full_like(v, 0, jnp.float32, shape=()) for v in arrays]
    zero = sum(zeros[1:], zeros[0])
    return tuple(v if axes == most else v + zero.astype(v.dtype) for v, axes in zip(arrays, varying, strict=True))


__all__ = ["WIDEST_SUM", "Rows", "chosen", "normalize_rows", "standardize_rows", "unserved"]
