"""Rows on an NVIDIA GPU, one kernel each way: a row is read once, and all that follows happens in registers.

The grid is (segments, programs); a program normalizes one block of rows after the other. Blocks are cut into tiles of
128 elements a warp, 4 a thread: so much of float32 is one load, and narrower floats then lie in registers as float32
does. With 8 a thread, as 16 bytes of bfloat16 would suggest, scale and bias are moved between threads for every row
(measured on an H200, 8192 features in bfloat16: 0.60 instead of 0.91 of the bandwidth of a copy).
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from jaxnorm._core.kernels.arithmetic import WIDEST, add, inverse_root, like, scaled, variance

# Multiprocessors of an H100 and an H200. With fewer or more of them the last wave of programs is not full, no more.
_PROCESSORS = 132
WIDEST_BACKWARD = 8192
"""Features of a row, with the sums for dscale and dbias and the next row on its way: what registers hold."""


class Tiling(NamedTuple):
    """How rows are cut: rows of a block, columns of a tile, warps of a program, and programs."""

    block: int
    width: int
    warps: int
    programs: int


def tiling(features: int, backward: bool) -> Tiling:
    """The tiling for rows of so many features.

    A thread holds 32 elements of a row, 16 forward where a row takes several warps; narrow rows share a program of four
    warps. Backward, as many programs run as fit at once, eight warps of 256 registers a thread on a multiprocessor:
    each has sums of its own to write.
    """
    wide = pl.next_power_of_2(features)
    if features <= 512:
        warps, block = 4, 2048 // wide
    else:
        warps, block = min(16, max(1, wide // (1024 if backward or features <= 1024 else 512))), 1
    return Tiling(block, max(128 * warps // block, min(wide, 32)), warps, _PROCESSORS * max(1, 8 // warps))


class _Tile(NamedTuple):
    """Some columns of a block of rows. What is outside of the array reads as 0 and is not written."""

    rows: Any
    columns: Any
    some_rows: Array | None
    some_columns: Array | None

    @property
    def mask(self) -> Array | None:
        masks = [mask for mask in (self.some_rows, self.some_columns) if mask is not None]
        shape = self.rows.size, self.columns.size
        return jnp.broadcast_to(masks[0] & masks[-1], shape) if masks else None

    def load(self, ref: jax.Ref) -> Array:
        return _load(ref.at[self.rows, self.columns], self.mask)

    def vector(self, ref: jax.Ref) -> Array:
        some = self.some_columns
        return _load(ref.at[self.columns], some if some is None else some[0])[None].astype(jnp.float32)

    def store(self, ref: jax.Ref, value: Array) -> None:
        triton.store(ref.at[self.rows, self.columns], value.astype(ref.dtype), mask=self.mask)

    def deviation(self, x: Array, pivot: Array | None) -> Array:
        """x − pivot, 0 outside of the array."""
        d = x.astype(jnp.float32)
        if pivot is None:
            return d
        return d - pivot if self.mask is None else jnp.where(self.mask, d - pivot, 0)


def _load(view: Any, mask: Array | None) -> Array:
    return triton.load(view, mask=mask, other=None if mask is None else 0)


def _tiles(shape: tuple[int, int], first: Array, cut: Tiling, end: Array | None = None) -> list[_Tile]:
    """The tiles of a block of rows from `first` on, but none from the row `end` on."""
    (rows, features), block, width = shape, cut.block, cut.width
    some_rows = None
    if rows % block or end is not None:
        some_rows = (first + jnp.arange(block) < (rows if end is None else end))[:, None]
    tiles = []
    for start in range(0, features, width):
        inside = start + width <= features
        some_columns = None if inside else (start + jnp.arange(width) < features)[None]
        # A start that is not known is not held against the bounds: past them there is the mask.
        columns = pl.ds(start if inside else jnp.int32(start), width)
        tiles.append(_Tile(pl.ds(first, block), columns, some_rows, some_columns))
    return tiles


def _row_sums(terms: Iterable[Sequence[Array]]) -> list[Array]:
    """The sums over each row of several terms, which come tile by tile."""
    total, *others = terms
    for term in others:
        total = [a + b for a, b in zip(total, term, strict=True)]
    return [v.sum(1, keepdims=True) for v in total]


def _mean(xs: list[Array], features: int) -> Array:
    """The mean in one number. That is off by some units in its last place, which δ makes good."""
    (total,) = _row_sums([x.astype(jnp.float32)] for x in xs)
    return total / features


def _forward(
    addend_refs: tuple[jax.Ref, jax.Ref | None], scale_ref: jax.Ref | None, bias_ref: jax.Ref | None,
    epsilon_ref: jax.Ref, *result_refs: jax.Ref, cut: Tiling, centered: bool,
) -> None:  # fmt: skip
    (x_ref, residual_ref), (y_ref, *h_refs) = addend_refs, result_refs
    features = x_ref.shape[1]
    tiles = _tiles(x_ref.shape, pl.program_id(1) * cut.block, cut)
    xs = [tile.load(x_ref) for tile in tiles]
    if residual_ref is not None:
        xs = [add(x, tile.load(residual_ref)) for tile, x in zip(tiles, xs, strict=True)]
        for tile, h in zip(tiles, xs, strict=True):
            tile.store(h_refs[0], h)
    pivot = _mean(xs, features) if centered else None
    deviations = (tile.deviation(x, pivot) for tile, x in zip(tiles, xs, strict=True))
    square, *delta = (v / features for v in _row_sums([d * d, d] if centered else [d * d] for d in deviations))
    delta = delta[0] if centered else None
    r = inverse_root(variance(square, delta) + epsilon_ref[0])
    for tile, x in zip(tiles, xs, strict=True):
        d = tile.deviation(x, pivot)
        y = (d if delta is None else d - delta) * r
        y = y if scale_ref is None else y * tile.vector(scale_ref)
        tile.store(y_ref, y if bias_ref is None else y + tile.vector(bias_ref))


class _Plan(NamedTuple):
    """The plan of a program of the backward pass: how rows are cut, and how many blocks are its own."""

    cut: Tiling
    centered: bool
    steps: int


def _gradients(
    tiles: list[_Tile],
    block: list[tuple[Array, Array]],
    scales: list[Any],
    epsilon: Array,
    centered: bool,
    features: int,
) -> Iterator[tuple[_Tile, Array, tuple[Array, Array]]]:
    """Tile by tile of a block of x and g: dx, and the terms x̂ g and g of dscale and dbias."""
    pivot = _mean([x for x, _ in block], features) if centered else None

    def terms(tile: _Tile, x: Array, g: Array, scale: Array | None) -> list[Array]:
        d, w = tile.deviation(x, pivot), scaled(g, scale)
        return [d * d, w * d, d, w] if centered else [d * d, w * d]

    every = zip(tiles, block, scales, strict=True)
    square, slope, *means = (v / features for v in _row_sums(terms(tile, x, g, s) for tile, (x, g), s in every))
    delta, shift = means if centered else (None, None)
    r = inverse_root(variance(square, delta) + epsilon)
    slope = r * (slope if delta is None or shift is None else slope - delta * shift)
    for tile, (x, g), scale in zip(tiles, block, scales, strict=True):
        d = tile.deviation(x, pivot)
        normal = (d if delta is None else d - delta) * r
        dx = scaled(g, scale) - normal * slope
        dx = r * (dx if shift is None else dx - shift)
        g = g.astype(jnp.float32)
        yield tile, dx, (g * normal, g)


def _backward(
    x_ref: jax.Ref, scale_ref: jax.Ref | None, epsilon_ref: jax.Ref,
    cotangent_refs: tuple[jax.Ref, jax.Ref | None], dx_ref: jax.Ref, *sum_refs: jax.Ref, plan: _Plan,
) -> None:  # fmt: skip
    g_ref, direct_ref = cotangent_refs
    (rows, features), cut = x_ref.shape, plan.cut
    epsilon, start = epsilon_ref[0], pl.program_id(1) * plan.steps
    mine = jnp.minimum(plan.steps, pl.cdiv(rows, cut.block) - start)
    end = jnp.minimum(rows, (start + mine) * cut.block)
    columns = _tiles(x_ref.shape, start, cut)
    scales = [None if scale_ref is None else tile.vector(scale_ref) for tile in columns]

    def load(i: Any) -> list[tuple[Array, Array]]:
        return [(tile.load(x_ref), tile.load(g_ref)) for tile in _tiles(x_ref.shape, (start + i) * cut.block, cut, end)]

    def step(i: Array, carry: Any) -> Any:
        totals, block = carry
        # The next rows are on their way while these are computed (measured: 0.78 instead of 0.58 of a copy).
        following = load(i + 1)
        tiles, new = _tiles(x_ref.shape, (start + i) * cut.block, cut), []
        found = _gradients(tiles, block, scales, epsilon, plan.centered, features)
        for (tile, dx, terms), total in zip(found, totals, strict=True):
            tile.store(dx_ref, dx if direct_ref is None else dx + tile.load(direct_ref).astype(jnp.float32))
            new.append(tuple(a + b for a, b in zip(total, terms, strict=False)))
        return new, following

    zero = jnp.zeros((cut.block, cut.width), jnp.float32)
    totals, _ = lax.fori_loop(0, mine, step, ([(zero,) * len(sum_refs) for _ in columns], load(0)))
    for tile, total in zip(columns, totals, strict=True):
        some = tile.some_columns
        for ref, v in zip(sum_refs, total, strict=True):
            triton.store(ref.at[tile.columns], v.sum(0), mask=some if some is None else some[0])


def _segment(*shape: int) -> pl.BlockSpec:
    """All of one segment of an array."""
    return pl.BlockSpec((None, *shape), lambda i, j: (i, *[0] * len(shape)))


def _call(
    kernel: Callable[..., None], name: str, grid: tuple[int, int], cut: Tiling, results: list[Any], *args: Any
) -> list[Array]:
    """The results of a kernel, each given as its specification and its shape, of arrays and tuples of arrays."""
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=jax.tree.map(lambda v: _segment(*v.shape[1:]), list(args)),
        out_specs=[spec for spec, _ in results],
        out_shape=[shape for _, shape in results],
        compiler_params=triton.CompilerParams(num_warps=cut.warps, num_stages=1),
        name=name,
    )(*args)


def serves(features: int, backward: bool, dtypes: Collection[Any] = ()) -> bool:
    """Whether there are kernels for rows of so many features, of any dtype."""
    return features <= (WIDEST_BACKWARD if backward else WIDEST)


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
    cut = tiling(x.shape[2], backward=False)
    kernel = partial(_forward, cut=cut, centered=centered)
    segments, rows, features = x.shape
    results = [(_segment(rows, features), like(x, x.shape, d)) for d in dtypes]
    grid = segments, pl.cdiv(rows, cut.block)
    return _call(kernel, "jaxnorm_rows", grid, cut, results, (x, residual), scale, bias, epsilon)


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
    cut = tiling(features, backward=True)
    # So many programs in all: with as many for each of 64 segments, partial sums would be 4 of 9 passes over x.
    steps = pl.cdiv(rows, cut.block * max(1, cut.programs // segments))
    programs = pl.cdiv(rows, cut.block * steps)
    kernel = partial(_backward, plan=_Plan(cut, centered, steps))
    partial_sum = like(x, (segments, programs, features), jnp.float32)
    one = pl.BlockSpec((None, None, features), lambda i, j: (i, j, 0))
    results = [(_segment(rows, features), like(x, x.shape, x.dtype)), *[(one, partial_sum)] * sums]
    grid = segments, programs
    dx, *found = _call(kernel, "jaxnorm_rows_transposed", grid, cut, results, x, scale, epsilon, (g, direct))
    return dx, *(v.sum(1) for v in found)
