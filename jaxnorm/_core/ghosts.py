"""Ghost batches: groups of examples that are normalized by themselves, whatever devices they are on.

Paper: Hoffer, Hubara & Soudry 2017, "Train longer, generalize better", algorithm 1.
"""

import math

import jax
from jax import lax
from jaxtyping import Array

from jaxnorm._core.moments_about import Observations, Statistics
from jaxnorm._core.pivot import Expected, accurate_stats
from jaxnorm._core.reduction import Reduction
from jaxnorm._core.sharding import split, unsplit
from jaxnorm._core.standardize import Coefficients, Output, standardize_by_own_stats
from jaxnorm._core.statistics import as_observations


def standardize_by_ghosts(
    size: int,
    reduction: Reduction,
    output: Output,
    data: Observations,
    expected: Expected | None,
    coefficients: Coefficients,
) -> tuple[Array, Statistics | None]:
    """y of each `size` examples by their own statistics, and the statistics of the whole batch.

    A reshape before, and back after: x is cut into pieces, each of which belongs to one ghost.
    """
    piece, ghost_ids = _pieces(size, reduction, data.x)
    axes = (1, *(a + 1 for a in reduction.axes if a))
    ghosts = Reduction(axes, reduction.axis_names if ghost_ids else (), ghost_ids=ghost_ids)

    def in_pieces(v: Array) -> Array:
        return split(v, v.shape[0] // piece if v.shape[0] != 1 else 1)

    scale, bias, epsilon = coefficients
    pieces, expected, (scale, bias) = jax.tree.map(in_pieces, (data, expected, (scale, bias)))
    y, stats = standardize_by_own_stats(ghosts, output, True, pieces, expected, Coefficients(scale, bias, epsilon))
    y = unsplit(y, data.x)
    if expected is None:
        return y, None
    # Of running statistics alone, which have no derivative in x.
    parts = lax.stop_gradient(as_observations(stats))
    over_ghosts = Reduction((0,), () if ghost_ids else reduction.axis_names)
    whole = accurate_stats(over_ghosts, True, parts, lax.stop_gradient(expected))
    return y, jax.tree.map(lambda v: v.reshape(v.shape[1:]), whole)


def _pieces(size: int, reduction: Reduction, x: Array) -> tuple[int, tuple[int, ...]]:
    """How many examples a piece has, and which ghost each piece of the batch is of, if any is cut across devices."""
    share, devices = x.shape[0], lax.psum(1, reduction.axis_names)
    if not isinstance(share, int):
        return size, ()
    piece = math.gcd(size, share)
    each = size // piece
    return piece, tuple(i // each for i in range(devices * share // piece)) if each > 1 else ()
