"""Ghost batches: groups of examples that are normalized by themselves, whatever devices they are on.

Paper: Hoffer, Hubara & Soudry 2017, "Train longer, generalize better", algorithm 1.
"""

import math

import jax
from jax import lax

from jaxnorm import _checks
from jaxnorm._find import find
from jaxnorm._over import Over
from jaxnorm._placed import joined, split
from jaxnorm._standardize import standardize_by_own
from jaxnorm._statistics import parts_of


def standardize_by_ghosts(ghost, who, over, dtype, x, where, expected, scale, bias, epsilon):
    """As `standardize_by_own`, for each `ghost` examples on their own; the statistics found are those of the batch.

    A reshape before, and back after: x is cut into pieces, each of which belongs to one ghost.
    """
    piece, slots = _pieces(ghost, over, x, who)
    axes = (1, *(a + 1 for a in over.axes if a))
    cut = Over(axes, over.names if slots else (), slots=slots)

    def in_pieces(v):
        return split(v, v.shape[0] // piece if v.shape[0] != 1 else 1)

    args, vectors = jax.tree.map(in_pieces, ((x, where), (expected, scale, bias)))
    y, found = standardize_by_own(cut, dtype, True, *args, *vectors, epsilon)
    y = joined(y, x)
    if expected is None:
        return y, None
    # Of running statistics alone, which have no derivative in x.
    parts = lax.stop_gradient(parts_of(found))
    whole = find(Over((0,), () if slots else over.names), True, parts, lax.stop_gradient(vectors[0]))
    return y, jax.tree.map(lambda v: v.reshape(v.shape[1:]), whole)


def _pieces(ghost, over, x, who):
    """How many examples a piece has, and which ghost each piece of the batch is of, if any is cut across devices."""
    _checks.ghost(ghost, over, x, who)
    share, devices = x.shape[0], lax.psum(1, over.names)
    if not isinstance(share, int):
        return ghost, ()
    piece = math.gcd(ghost, share)
    each = ghost // piece
    return piece, tuple(i // each for i in range(devices * share // piece)) if each > 1 else ()
