"""Accurate statistics: what shares them, how they are found, and their derivative.

For any pivot p, with d = x − p:    δ = ⟨d⟩      μ = p + δ      var = ⟨|d|²⟩ − |δ|²

One look at the data gives both sums. They lose no more than a factor 1 + |δ|²/var of the dtype's precision, so a pivot
within a few standard deviations of the mean is as good as the mean itself.
"""

import math
from collections.abc import Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxnorm._tangents import moving, plus

# A pivot is poor beyond √3 standard deviations from the mean: within, the variance loses two bits at most. Each trip
# brings it some 10⁶ times nearer, and eight are more than any float can need.
_POOR = 3
_TRIPS = 8
# On a CPU, XLA sums as little as this over several axes in one loop, whose roundings add up: to 300 ulp, measured.
_SMALL = 4096


def wide_dtype(x):
    """The dtype of arithmetic on `x`: float32 at least."""
    if jnp.iscomplexobj(x):
        return x.dtype
    return jnp.dtype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def real_dtype(x):
    """The dtype of variances and counts of `x`."""
    return jnp.finfo(wide_dtype(x)).dtype


def dot(a, b):
    """Re(ā b), elementwise."""
    return (a.conj() * b).real if jnp.iscomplexobj(a) else a * b


def spread(v, x):
    """A statistic in the dimensions of `x`: that of a group of channels is repeated over them."""
    for a, (m, n) in enumerate(zip(v.shape, x.shape, strict=True)):
        if m not in (1, n):
            blocks = jnp.broadcast_to(jnp.expand_dims(v, a + 1), (*v.shape[: a + 1], n // m, *v.shape[a + 1 :]))
            v = blocks.reshape(*v.shape[:a], n, *v.shape[a + 1 :])
    return v


def deviation(x, pivot, delta):
    """(x − pivot) − delta: in this order the digits of x − μ survive a large mean."""
    d = x.astype(wide_dtype(x))
    d = d if pivot is None else d - spread(pivot, x)
    return d if delta is None else d - spread(delta, x)


def included(where):
    """The positions that count: those of positive weight."""
    return where if where.dtype == jnp.bool_ else where > 0


def inverse(n):
    """1/n, and 1 where n = 0."""
    return 1 / jnp.where(n == 0, 1, n)


class Over(NamedTuple):
    """What shares a statistic: positions along `axes`, then blocks of `channel`, then devices along `names`.

    `teams` are lists of devices, by their index along a single name: each device shares with its own team alone.
    """

    axes: tuple[int, ...]
    names: tuple[Hashable, ...] = ()
    groups: int | None = None
    channel: int = 0
    centered: bool = True
    teams: tuple[tuple[int, ...], ...] | None = None

    def shape(self, x):
        """The shape of a statistic of `x`: 1 along what shares it, the number of groups along their channels."""
        shape = [1 if a in self.axes else n for a, n in enumerate(x.shape)]
        if self.groups:
            shape[self.channel] = self.groups
        return tuple(shape)

    def sum(self, v):
        """The sum of `v` over everything on this device that shares a statistic."""
        if v.size > _SMALL or len(self.axes) < 2 or not jax.typeof(v).sharding.is_fully_replicated:
            return self._pool(v.sum(self.axes, keepdims=True))
        # The barrier keeps the flattened axes flat: several small ones would be summed in a single loop.
        kept = [a for a in range(v.ndim) if a not in self.axes]
        rows = v.transpose(*self.axes, *kept)
        rows = rows.reshape(math.prod(rows.shape[: len(self.axes)]), *rows.shape[len(self.axes) :])
        total = lax.optimization_barrier(rows).sum(0)
        return self._pool(jnp.expand_dims(total, self.axes))

    def size(self, x):
        """How many elements share a statistic, on all devices."""
        n = math.prod(x.shape[a] for a in self.axes)
        return self._devices() * (n * x.shape[self.channel] // self.groups if self.groups else n)

    def weight(self, x, where):
        """The weight on this device of everything that shares a statistic."""
        # A mask is summed as it is, not once per channel that it is broadcast to; a boolean one exactly, in integers.
        boolean = where.dtype == jnp.bool_
        w = where.astype(jnp.int32 if boolean else real_dtype(x))
        w = w if boolean else jnp.where(included(where), w, 0)
        total = w.sum(self.axes, keepdims=True).astype(real_dtype(x))
        copies = math.prod(x.shape[a] for a in self.axes if where.shape[a] == 1)
        return self._pool(jnp.broadcast_to(total * copies, Over(self.axes).shape(x)))

    def across(self, *sums):
        """Each sum over all devices: one collective for all of them."""
        if not self.names:
            return sums
        dtype = next((v.dtype for v in sums if jnp.iscomplexobj(v)), sums[0].dtype)
        stack = jnp.stack([v.astype(dtype) for v in sums])
        packed = lax.psum(stack, self.names, axis_index_groups=self.teams)
        return [p if jnp.iscomplexobj(v) else p.real for p, v in zip(packed, sums, strict=True)]

    def _devices(self):
        if self.teams is None:
            return lax.psum(1, self.names)
        sizes = {device: len(team) for team in self.teams for device in team}
        return jnp.array([sizes[device] for device in sorted(sizes)])[lax.axis_index(self.names)]

    def _pool(self, v):
        # Channels were summed before groups of them are: this array is tiny, and x itself is never reshaped.
        if not self.groups:
            return v
        c, size = self.channel, v.shape[self.channel] // self.groups
        return v.reshape(*v.shape[:c], self.groups, size, *v.shape[c + 1 :]).sum(c + 1)


class Statistics(NamedTuple):
    """Count, mean and variance; the mean as `pivot + delta`, two numbers that hold more digits than one."""

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    pivot: Array | None
    delta: Array | None
    var: Array


def _among(d, where):
    """`d` where it counts, and 0 elsewhere: a weight of 0 would leave 0 · NaN, forward or in the transpose."""
    return d if where is None else jnp.where(included(where), d, 0)


def _weigh(v, where):
    """`v` by its weights."""
    return v if where is None or where.dtype == jnp.bool_ else v * where.astype(v.dtype)


def _about(over, x, where, pivot) -> tuple[Any, Any, Any]:
    """count, δ and var of `x` about a pivot, from one look at it and one collective."""
    d = _among(deviation(x, pivot, None), where)
    terms = [d, dot(d, d)] if over.centered else [dot(d, d)]
    sums = [over.sum(_weigh(v, where)) for v in terms]
    if where is None:
        n, sums = jnp.full(over.shape(x), over.size(x), real_dtype(x)), over.across(*sums)
    else:
        n, *sums = over.across(over.weight(x, where), *sums)
    *delta, square = (v * inverse(n).astype(v.dtype) for v in sums)
    if not over.centered:
        return n, None, square
    return n, delta[0], jnp.maximum(square - dot(delta[0], delta[0]), 0)


def _settle(over, x, where, pivot):
    """Statistics about `pivot`; while it is far from the mean anywhere, again about the mean just found."""

    def poor(s):
        trips, _, _, delta, var = s
        # An overflow is poor too: a nearer pivot cures it.
        near = (dot(delta, delta) <= _POOR * var) & jnp.isfinite(var)
        return (trips < _TRIPS) & jnp.any(~near & jnp.isfinite(delta))

    def move(s):
        trips, _, pivot, delta, _ = s
        pivot = pivot + delta
        n, delta, var = _about(over, x, where, pivot)
        return trips + 1, n, pivot, delta, var

    n, delta, var = _about(over, x, where, pivot)
    # The zeros give the pivot the sharding of delta, and make it vary over a mesh as delta does.
    pivot = pivot + jnp.zeros_like(delta)
    first = (jnp.int32(0), n, pivot, delta, var)
    # The loop alone would do; a conditional around it is cheaper on a TPU.
    return lax.cond(poor(first), partial(lax.while_loop, poor, move), lambda s: s, first)[1:]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0, inline=True)
def statistics(over, x, where, pivot=None):
    """Statistics of `x` to the precision of its dtype, and (0, 1) where nothing is included.

    This is the one place that chooses how: one pass about the given pivot (or 0), and more only if that was poor.
    """
    if over.centered:
        start = jnp.zeros(over.shape(x), wide_dtype(x)) if pivot is None else jnp.where(jnp.isfinite(pivot), pivot, 0)
        n, pivot, delta, var = _settle(over, x, where, start)
    else:
        pivot = None
        n, delta, var = _about(over, x, where, pivot)
    pivot, delta = (v if v is None else jnp.where(n == 0, 0, v) for v in (pivot, delta))
    return Statistics(n, pivot, delta, jnp.where(n == 0, 1, var))


def _by_data(over, x, where, n, pivot, delta, var, dx):
    """dμ = ⟨dx⟩ and dvar = 2⟨(x − μ)·dx⟩."""
    d = _among(deviation(x, pivot, delta), where)
    dx = dx.astype(d.dtype)
    terms = [dx, 2 * dot(d, dx)] if over.centered else [2 * dot(d, dx)]
    sums = over.across(*(over.sum(_weigh(_among(v, where), where)) for v in terms))
    if where is None:
        n = jnp.full((1,) * x.ndim, over.size(x), real_dtype(x))
    elif not over.names:
        n = over.weight(x, where)  # cheaper to count again than to keep
    share = inverse(n)
    return None, *(v * share.astype(v.dtype) for v in sums)


def _by_weight(over, x, where, n, pivot, delta, var, dw):
    """dn = Σ dw, dμ = ⟨dw (x − μ)⟩ and dvar = ⟨dw (|x − μ|² − var)⟩, over the positions that count."""
    d = _among(deviation(x, pivot, delta), where)
    dw = jnp.broadcast_to(dw, x.shape).astype(var.dtype)
    excess = dot(d, d) - spread(var, x)
    terms = [dw, dw.astype(d.dtype) * d, dw * excess] if over.centered else [dw, dw * excess]
    dn, *sums = over.across(*(over.sum(_among(v, where)) for v in terms))
    return dn, *(v * inverse(n).astype(v.dtype) for v in sums)


@partial(statistics.defjvp, symbolic_zeros=True)
def _statistics_jvp(over, primals, tangents):
    """The pivot is a constant of the computation: all of dμ is dδ."""
    x, where, _ = primals
    out = statistics(over, *primals)
    changes = []
    for rule, tangent in zip((_by_data, _by_weight), map(moving, tangents[:2]), strict=True):
        if tangent is not None:
            # Keeps x and vectors for the transpose, and computes x − μ again.
            linear = jax.checkpoint(partial(rule, over, x, where, *out), prevent_cse=False)
            changes.append(linear(tangent))
    dn, *dmean, dvar = (plus(*terms) for terms in zip(*changes, strict=True))
    dn = jnp.zeros_like(out.count) if dn is None else dn
    if not over.centered:
        return out, Statistics(dn, None, None, dvar)
    return out, Statistics(dn, jnp.zeros_like(out.pivot), dmean[0], dvar)
