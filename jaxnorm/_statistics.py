"""Accurate statistics: how they are found, and their derivative.

For any pivot p, with d = x − p:    δ = ⟨d⟩      μ = p + δ      var = ⟨|d|²⟩ − |δ|²

One look at the data gives both sums. They lose no more than a factor 1 + |δ|²/var of the dtype's precision, so a pivot
within a few standard deviations of the mean is as good as the mean itself.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxnorm._compilers import after, by_platform, own
from jaxnorm._over import deviation, dot, included, inverse, no_more, real_dtype, wide_dtype
from jaxnorm._tangents import moving, plus

# A pivot is poor beyond √3 standard deviations from the mean: within, the variance loses two bits at most. Each trip
# brings it some 10⁶ times nearer, and eight are more than any float can need.
_POOR = 3
_TRIPS = 8
# What surely fits into the memory on the chip of a TPU beside all else that is there.
_ON_CHIP = 32 * 2**20
# A pilot looks at one in so many data, along one axis.
_PILOT = 64


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


def own_copies(copy, x, *vectors) -> tuple[Any, ...]:
    """What a deviation is computed from, as copies that no other deviation has."""
    # To convert x would be shared, to read it is not.
    x = x if x.dtype == wide_dtype(x) else own(copy, x)
    return x, *(v if v is None else own(copy, v) for v in vectors)


def _about(over, x, where, pivot, n=None) -> tuple[Any, Any, Any]:
    """count, δ and var of `x` about a pivot, from one look at it and one collective. The count may be known."""
    d, d_ = (_among(deviation(*operands), where) for operands in ((x, pivot), own_copies(1, x, pivot)))
    sums = [over.sum(_weigh(v, where)) for v in ([d, dot(d_, d_)] if over.centered else [dot(d_, d_)])]
    if n is None and where is not None:
        n, *sums = over.across(over.weight(x, where), *sums)
    else:
        n, sums = _size(over, x) if n is None else n, over.across(*sums)
    *delta, square = (v * inverse(n).astype(v.dtype) for v in sums)
    if not over.centered:
        return n, None, square
    return n, delta[0], jnp.maximum(square - dot(delta[0], delta[0]), 0)


def _size(over, x):
    """The count where nothing is masked."""
    return jnp.full(over.shape(x), over.size(x), real_dtype(x))


def _far(delta, var):
    """Where δ² > K var: there the pivot is poor."""
    # An overflow is poor, too: a nearer pivot cures it.
    near = (dot(delta, delta) <= _POOR * var) & jnp.isfinite(var)
    return ~near & jnp.isfinite(delta)


def _settle(over, x, where, pivot, found, bare=False):
    """Statistics about a pivot, as found; while that is poor anywhere, again about the mean just found."""

    def poor(s):
        trips, _, delta, var = s
        return (trips < _TRIPS) & jnp.any(_far(delta, var))

    def move(s):
        trips, pivot, delta, _ = s
        pivot = pivot + delta
        _, delta, var = _about(over, after(pivot, x), where, pivot, n)
        return trips + 1, pivot, delta, var

    n, delta, var = found
    # The zeros give the pivot the sharding of delta, and make it vary over a mesh as delta does.
    first = (jnp.int32(0), pivot + jnp.zeros_like(delta), delta, var)
    # The loop alone would do; a conditional around it is cheaper where x is large.
    if bare:
        return n, *lax.while_loop(poor, move, first)[1:]
    return n, *lax.cond(poor(first), partial(lax.while_loop, poor, move), lambda s: s, first)[1:]


def _about_zero(over, x, where):
    """About 0, and again where that was poor."""
    return _settle(over, x, where, jnp.zeros((), wide_dtype(x)), _about(over, x, where, None))


def _about_zero_or(over, expected, x, where):
    """The same, but straight about the expected mean if 0 is expected to be poor."""
    mean = _finite_mean(expected)
    far = jnp.any(_far(mean, expected.var))
    n = _size(over, x) if where is None else over.weight(x, where)
    # What makes the guard move to pivot + 0.
    delta, var = (jnp.zeros_like(x, v.dtype).sum(over.axes, keepdims=True) for v in expected)
    unknown = delta, var + jnp.inf
    found = lax.cond(far, lambda x: unknown, lambda x: _about(over, x, where, None, n)[1:], x)
    return _settle(over, x, where, jnp.where(far, mean, 0), (n, *found))


def _about_expected(over, expected, x, where):
    """About the expected mean, and again where that was poor."""
    mean = _finite_mean(expected)
    # On a TPU, a conditional would keep a small x from staying on the chip.
    bare = not over.names and no_more(x.nbytes, _ON_CHIP)
    return _settle(over, x, where, mean, _about(over, x, where, mean), bare)


def _finite_mean(expected):
    """0 where it is not finite: about that, nothing would ever settle."""
    return jnp.where(jnp.isfinite(expected.mean), expected.mean, 0)


def _about_pilot(over, x, where):
    """About the mean of a part of the data, without a branch.

    A part that holds a fraction f of the data, with its mean at p, adds f (p − μ)²/(1 − f) at least to the variance.
    Of three parts, that with the median counts: one that is unlike the rest has no say.
    """
    # Along positions rather than examples: these may be on other devices, and a TPU may have them in lanes.
    axis = max(over.axes, key=lambda a: (x.shape[a] >= _PILOT, a > 0, -a))
    size = max(1, x.shape[axis] // (3 * _PILOT))
    last = x.shape[axis] - size
    parts = [lax.slice_in_dim(x, i, i + size, axis=axis).astype(wide_dtype(x)) for i in (0, last // 2, last)]
    channels = over._replace(groups=None)
    # The others about the first: the pivot of a constant is that constant.
    first, *others = parts
    first = _mean(channels, first)
    pivot = over.mean(first)
    pivot += over.mean(_median(first - pivot, *(_mean(channels, part - pivot) for part in others)))
    n, delta, var = _about(over, x, where, pivot)
    return n, pivot, delta, var


def _mean(over, v):
    """⟨v⟩, where nothing is masked and all of it is on this device."""
    return over.sum(v) * (1 / over.size(v))


def _median(a, b, c):
    """Of three numbers; of complex ones, in each direction."""
    if jnp.iscomplexobj(a):
        return lax.complex(_median(a.real, b.real, c.real), _median(a.imag, b.imag, c.imag))
    return jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))


def _about_mean(over, x, where):
    """About the mean, from looks at rows that a GPU holds in registers."""
    first = _mean(over, x.astype(wide_dtype(x)))
    pivot = first + _mean(over, deviation(x, first))
    delta = _mean(over, deviation(x, pivot))
    d = deviation(x, pivot, delta)
    return _size(over, x), pivot, delta, _mean(over, dot(d, d))


def _ways(over, kept, x, where, expected):
    """How to find statistics, by platform. This is the one place that chooses.

    On a CPU a branch is cheap, and to subtract a pivot is not: one look about 0, and more where that was poor. On a
    TPU or GPU it is the other way round: one look about the running mean, which is seldom poor; or about a pilot,
    where any part of the data is at hand, without a branch. A GPU that holds a row in registers looks at it again for
    nothing, unless the statistics are to be kept.
    """
    zero = partial(_about_zero, over)
    if expected is not None:
        running = partial(_about_expected, over, expected)
        return {"cpu": zero if over.names else partial(_about_zero_or, over, expected), "default": running}
    known = 0 not in x.shape and all(isinstance(x.shape[a], int) for a in over.axes)
    sliceable = over.axes and known and jax.typeof(x).sharding.is_fully_replicated
    if where is not None or over.names or not sliceable:
        return {"default": zero}
    pilot = partial(_about_pilot, over)
    rows = over.groups is None and set(over.axes) == set(range(min(over.axes), x.ndim))
    gpu = partial(_about_mean, over) if rows and not kept else pilot
    return {"cpu": zero, "cuda": gpu, "rocm": gpu, "default": pilot}


def find(over, kept, x, where, expected=None) -> Statistics:
    """Statistics of `x` to the precision of its dtype, and (0, 1) where nothing is included.

    `kept`: they are wanted besides y. `expected`: what they are likely to be near.
    """
    if over.centered:
        n, pivot, delta, var = by_platform(x, where, **_ways(over, kept, x, where, expected))
        pivot, delta = (jnp.where(n == 0, 0, v) for v in (pivot, delta))
    else:
        n, pivot, var = _about(over, x, where, None)
        delta = None
    return Statistics(n, pivot, delta, jnp.where(n == 0, 1, var))


def change(over, x, where, found, dx, dw):
    """The change of what was `found`, linear in the tangents of data and weights, either of which may be None.

    All of dμ is dδ: the pivot is a constant of the computation.
    """
    changes = []
    if dx is not None:
        changes.append(_by_data(over, x, where, found, dx))
    if dw is not None:
        changes.append(_by_weight(over, x, where, found, dw))
    changes = zip(*changes, strict=True) if changes else [()] * 3
    dn, dmean, dvar = (
        plus(*terms) if any(t is not None for t in terms) or v is None else jnp.zeros_like(v)
        for terms, v in zip(changes, (found.count, found.delta, found.var), strict=True)
    )
    dpivot = None if found.pivot is None else jnp.zeros_like(found.pivot)
    return Statistics(dn, dpivot, dmean, dvar)


def _by_data(over, x, where, found, dx):
    """dμ = ⟨dx⟩ and dvar = 2⟨(x − p)·dx⟩ − 2 δ·dμ, a vector less to read than 2⟨(x − μ)·dx⟩."""
    d = _among(deviation(*own_copies(3, x, found.pivot)), where)
    dx = _among(dx.astype(d.dtype), where)
    terms = [dx, dot(d, dx)] if over.centered else [dot(d, dx)]
    sums = over.across(*(over.sum(_weigh(v, where)) for v in terms))
    if where is None:
        n = _size(over, x)
    elif over.names:
        n = found.count
    else:
        # Without collectives it is cheaper to count again than to keep.
        n = over.weight(x, where)
    share = inverse(n)
    *dmean, dvar = (v * share.astype(v.dtype) for v in sums)
    if not over.centered:
        return None, None, 2 * dvar
    return None, dmean[0], 2 * (dvar - dot(found.delta, dmean[0]))


def _by_weight(over, x, where, found, dw):
    """dn = Σ dw, dμ = ⟨dw (x − μ)⟩ and dvar = ⟨dw (|x − μ|² − var)⟩, over the positions that count."""
    n, pivot, delta, var = found
    d = _among(deviation(x, pivot, delta), where)
    dw = jnp.broadcast_to(dw, x.shape).astype(var.dtype)
    excess = dot(d, d) - var
    terms = [dw, dw.astype(d.dtype) * d, dw * excess] if over.centered else [dw, dw * excess]
    dn, *sums = over.across(*(over.sum(_among(v, where)) for v in terms))
    dmean, dvar = (None, *(v * inverse(n).astype(v.dtype) for v in sums))[-2:]
    return dn, dmean, dvar


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0, inline=True)
def statistics(over, x, where):
    """What `find` finds, with its derivative."""
    return find(over, True, x, where)


@partial(statistics.defjvp, symbolic_zeros=True)
def _statistics_jvp(over, primals, tangents):
    x, where = primals
    found = statistics(over, *primals)
    # Keeps x and vectors for the transpose, and computes x − μ again.
    linear = jax.checkpoint(partial(change, over), prevent_cse=False)
    return found, linear(x, where, found, *map(moving, tangents))
