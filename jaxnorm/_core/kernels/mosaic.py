"""Rows on a TPU, one kernel each way: a block of rows is read into VMEM once, and all that follows happens there.

Never run on a TPU: it is compiled for TPU v5e, v6e and v5p ahead of time (tests/programs/test_compilers.py), and
interpreted on a CPU (tests/core/test_kernels.py). So `implementation=None` leaves rows to XLA there, and sizes below
come from what compiles.

The grid is (segments, blocks) and runs in order, so sums over rows are kept in a result that all blocks of a segment
share. The last block may reach beyond the rows: what is read there is anything, and what is written goes nowhere.

Where features are no multiple of 128, XLA may lay arguments out the other way round and copy them for a kernel (v5e,
1000 features: 6 + 7 passes, not 2 + 3).
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu
from jaxtyping import Array, Float

from jaxnorm._core.kernels.arithmetic import WIDEST, add, inverse_root, like, scaled, variance

_LANES = 128
_BLOCK = 2**18
"""Elements of a block, its features filled up to lanes: 1 MiB of float32.

Backward, two blocks each of x, g and dx are held, one that is computed and one on its way, and values in between. A v5e
and a v5p give 16 MiB to a kernel: one and a half times this compiles there, and twice does not.
"""
WIDEST_BACKWARD = 2**15
"""Features of a row, with g and dx."""


def block(rows: int, features: int, dtype: Any) -> int:
    """The rows of a block: what fits, by eights or whatever lies in 32 bits by eights, and not more than there are."""
    together = 32 // jnp.dtype(dtype).itemsize
    fits = _BLOCK // (pl.cdiv(features, _LANES) * _LANES)
    return min(rows, max(1, fits // together) * together)


def _mean(v: Array) -> Array:
    return v.mean(1, keepdims=True)


def _deviation(x: Array, centered: bool) -> tuple[Array, Array | None]:
    """x − pivot, where the pivot is the mean in one number, and its mean δ."""
    d = x.astype(jnp.float32)
    if not centered:
        return d, None
    d = d - _mean(d)
    return d, _mean(d)


def _normal(d: Array, delta: Array | None, epsilon: Array) -> tuple[Array, Array]:
    """x̂ and r."""
    r = inverse_root(variance(_mean(d * d), delta) + epsilon)
    return (d if delta is None else d - delta) * r, r


def _float32(ref: Any) -> Array:
    return ref[...].astype(jnp.float32)


def _forward(
    addend_refs: tuple[jax.Ref, jax.Ref | None], scale_ref: jax.Ref | None, bias_ref: jax.Ref | None,
    epsilon_ref: jax.Ref, y_ref: jax.Ref, *h_refs: jax.Ref, centered: bool,
) -> None:  # fmt: skip
    x_ref, residual_ref = addend_refs
    h = x_ref[...]
    if residual_ref is not None:
        h = add(h, residual_ref[...])
        h_refs[0][...] = h
    y, _ = _normal(*_deviation(h, centered), epsilon_ref[...])
    y = y if scale_ref is None else y * _float32(scale_ref)
    y_ref[...] = (y if bias_ref is None else y + _float32(bias_ref)).astype(y_ref.dtype)


def _backward(
    x_ref: jax.Ref, scale_ref: jax.Ref | None, epsilon_ref: jax.Ref, cotangent_refs: tuple[jax.Ref, jax.Ref | None],
    *result_refs: jax.Ref, rows: int, centered: bool,
) -> None:  # fmt: skip
    (g_ref, direct_ref), (dx_ref, *sum_refs) = cotangent_refs, result_refs
    normal, r = _normal(*_deviation(x_ref[...], centered), epsilon_ref[...])
    g = _float32(g_ref)
    w = scaled(g, None if scale_ref is None else _float32(scale_ref))
    dx = w - normal * _mean(w * normal)
    dx = r * (dx - _mean(w) if centered else dx)
    dx_ref[...] = (dx if direct_ref is None else dx + _float32(direct_ref)).astype(dx_ref.dtype)
    here, j = x_ref.shape[0], pl.program_id(1)
    inside = None
    if rows % here:
        inside = j * here + jax.lax.broadcasted_iota(jnp.int32, (here, 1), 0) < rows
    for ref, terms in zip(sum_refs, (g * normal, g), strict=False):
        # Beyond the rows there may be NaN, which no product with 0 removes.
        total = (terms if inside is None else jnp.where(inside, terms, 0)).sum(0, keepdims=True)

        @pl.when(j == 0)
        def _(ref: Any = ref, total: Array = total) -> None:
            ref[...] = total

        @pl.when(j > 0)
        def _(ref: Any = ref, total: Array = total) -> None:
            ref[...] += total


def _spec(v: Any, size: int) -> pl.BlockSpec:
    """Blocks of the rows of a segment, or its one row of numbers for all blocks."""
    several = v.shape[1] > 1
    return pl.BlockSpec((None, size if several else 1, v.shape[2]), lambda i, j: (i, j if several else 0, 0))


def _call(kernel: Callable[..., None], name: str, found: list[jax.ShapeDtypeStruct], *args: Any) -> list[Array]:
    """The results of a kernel of arrays and tuples of arrays, of which the very first is x, block by block of x.

    Results that are not like x are sums over blocks.
    """
    x, *others = jax.tree.leaves(args)
    segments, rows, features = x.shape
    like_x = [v for v in (x, *others, *found) if v.shape == x.shape]
    size = block(rows, features, min((v.dtype for v in like_x), key=lambda dtype: dtype.itemsize))
    sums = any(v.shape != x.shape for v in found)
    values = jax.tree.map(lambda v: v if v.ndim == 3 else v[:, None], list(args))
    return pl.pallas_call(
        kernel,
        grid=(segments, pl.cdiv(rows, size)),
        in_specs=jax.tree.map(lambda v: _spec(v, size), values),
        out_specs=[_spec(v, size) for v in found],
        out_shape=found,
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "arbitrary" if sums else "parallel")),
        name=name,
    )(*values)


def serves(features: int, backward: bool, dtypes: Collection[Any] = ()) -> bool:
    """Whether there are kernels for rows of so many features. Mosaic compiles no loads of float16."""
    return features <= (WIDEST_BACKWARD if backward else WIDEST) and jnp.dtype("float16") not in dtypes


def forward(
    x: Float[Array, "segments rows features"],
    residual: Float[Array, "segments rows features"] | None,
    scale: Float[Array, "segments features"] | None,
    bias: Float[Array, "segments features"] | None,
    epsilon: Float[Array, "segments 1"],
    *,
    centered: bool,
    dtypes: Sequence[Any],
) -> list[Array]:
    """y of rows, and x + residual where there is one, in these dtypes."""
    kernel = partial(_forward, centered=centered)
    results = [like(x, x.shape, d) for d in dtypes]
    return _call(kernel, "jaxnorm_rows", results, (x, residual), scale, bias, epsilon)


def backward(
    x: Float[Array, "segments rows features"],
    scale: Float[Array, "segments features"] | None,
    epsilon: Float[Array, "segments 1"],
    g: Float[Array, "segments rows features"],
    direct: Float[Array, "segments rows features"] | None,
    *,
    centered: bool,
    sums: int,
) -> tuple[Array, ...]:
    """dx, to which `direct` is added, and as many of dscale and dbias as `sums` says, of each segment."""
    segments, rows, features = x.shape
    kernel = partial(_backward, rows=rows, centered=centered)
    found = [like(x, x.shape, x.dtype), *[like(x, (segments, 1, features), jnp.float32)] * sums]
    dx, *totals = _call(kernel, "jaxnorm_rows_transposed", found, x, scale, epsilon, (g, direct))
    return dx, *(v[:, 0] for v in totals)
