"""Accurate statistics: looks at the data about one pivot or another, until that is near enough to the mean."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._compilers import after, by_platform
from jaxnorm._look import Statistics, look, size
from jaxnorm._over import deviation, dot, no_more, wide_dtype
from jaxnorm._placed import places

# A pivot is poor beyond √3 standard deviations from the mean: within, the variance loses two bits at most. Each trip
# brings it some 10⁶ times nearer, and eight are more than any float can need.
_POOR = 3
_TRIPS = 8
# A pivot that is as near as this to the mean, beside its own size, comes no nearer: what overflows about it always
# will.
_NEAR = 2**-10
# What surely fits into the memory on the chip of a TPU beside all else that is there.
_ON_CHIP = 32 * 2**20
# A pilot looks at one in so many data, along one axis.
_PILOT = 64


def _far(delta, var):
    """Where δ² > K var: there the pivot is poor. NaN is poor: both squares have overflowed."""
    return ~(dot(delta, delta) <= _POOR * var)


def _overflown(first, pivot, delta, var):
    """Where squares overflow about a pivot, and need not about the mean: on the first look, or if that is far off."""
    return jnp.isinf(var) & (first | (abs(delta) > _NEAR * abs(pivot)))


def _settle(over, data, pivot, found, bare=False):
    """Statistics about a pivot, as found; where that is poor, again about the mean just found, and there alone.

    What is not poor keeps its bits: they depend on no other statistic.
    """

    def poor(s):
        trips, pivot, delta, var = s
        return jnp.isfinite(delta) & (_far(delta, var) | _overflown(trips == 0, pivot, delta, var))

    def go_on(s):
        return (s[0] < _TRIPS) & jnp.any(poor(s))

    def move(s):
        trips, pivot, delta, var = s
        moved = pivot + delta
        _, new_delta, new_var = look(over, data._replace(x=after(moved, data.x)), moved, n)
        again = poor(s)
        return trips + 1, *(jnp.where(again, *v) for v in ((moved, pivot), (new_delta, delta), (new_var, var)))

    n, delta, var = found
    # The zeros give the pivot the sharding of delta, and make it vary over a mesh as delta does.
    first = (jnp.int32(0), pivot + jnp.zeros_like(delta), delta, var)
    # The loop alone would do; a conditional around it is cheaper where x is large.
    if bare:
        return n, *lax.while_loop(go_on, move, first)[1:]
    return n, *lax.cond(go_on(first), partial(lax.while_loop, go_on, move), lambda s: s, first)[1:]


def _about_zero(over, data):
    """About 0, and again where that was poor."""
    return _settle(over, data, jnp.zeros((), wide_dtype(data.x)), look(over, data, None))


def _about_zero_or(over, expected, data):
    """The same, but straight about the expected mean if 0 is expected to be poor."""
    mean = _finite_mean(expected)
    far = jnp.any(_far(mean, expected.var))

    def unknown(data):
        # What makes the guard move to pivot + 0.
        delta, var = (jnp.zeros_like(data.x, v.dtype).sum(over.axes, keepdims=True) for v in expected)
        n = size(over, data.x) if data.where is None else over.weight(data.x, data.where)
        return n, delta, var + jnp.inf

    n, delta, var = lax.cond(far, unknown, lambda data: look(over, data, None), data)
    # A count that is known is not carried along: what depends on it would be computed for every element.
    n = size(over, data.x) if data.where is None else n
    return _settle(over, data, jnp.where(far, mean, 0), (n, delta, var))


def _about_expected(over, expected, data):
    """About the expected mean, and again where that was poor."""
    mean = _finite_mean(expected)
    # On a TPU, a conditional would keep a small x from staying on the chip.
    bare = not over.names and no_more(data.x.nbytes, _ON_CHIP)
    return _settle(over, data, mean, look(over, data, mean), bare)


def _finite_mean(expected):
    """0 where it is not finite: about that, nothing would ever settle."""
    return jnp.where(jnp.isfinite(expected.mean), expected.mean, 0)


def _about_pilot(over, data):
    """About the mean of a part of the data, without a branch.

    A part that holds a fraction f of the data, with its mean at p, adds f (p − μ)²/(1 − f) at least to the variance.
    Of three parts, that with the median counts: one that is unlike the rest has no say.
    """
    # Along positions rather than examples: these may be on other devices, and a TPU may have them in lanes.
    x = data.x
    axis = max(over.axes, key=lambda a: (x.shape[a] >= _PILOT, a > 0, -a))
    n = max(1, x.shape[axis] // (3 * _PILOT))
    last = x.shape[axis] - n
    parts = [lax.slice_in_dim(x, i, i + n, axis=axis).astype(wide_dtype(x)) for i in (0, last // 2, last)]
    channels = over._replace(groups=None)
    # The others about the first: the pivot of a constant is that constant.
    first, *others = parts
    first = _mean(channels, first)
    pivot = over.mean(first)
    each = over.repeated(pivot, x)
    pivot += over.mean(_median(first - each, *(_mean(channels, part - each) for part in others)))
    n, delta, var = look(over, data, pivot)
    return n, pivot, delta, var


def _mean(over, v):
    """⟨v⟩, where nothing is masked and all of it is on this device."""
    return over.sum(v) * (1 / over.size(v))


def _median(a, b, c):
    """Of three numbers; of complex ones, in each direction."""
    if jnp.iscomplexobj(a):
        return lax.complex(_median(a.real, b.real, c.real), _median(a.imag, b.imag, c.imag))
    return jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))


def _about_first_mean(over, data):
    """About the mean that a first look at the data gave, without a branch: where no part of them is a pilot for all."""
    n, first, _ = look(over, data, None)
    first = first + jnp.zeros((), wide_dtype(data.x))
    _, delta, var = look(over, data._replace(x=after(first, data.x)), first, None if data.where is None else n)
    return n, first, delta, var


def _about_mean(over, data):
    """About the mean, from looks at rows that a GPU holds in registers."""
    x = data.x
    first = _mean(over, x.astype(wide_dtype(x)))
    pivot = first + _mean(over, deviation(x, first))
    delta = _mean(over, deviation(x, pivot))
    d = deviation(x, pivot, delta)
    return size(over, x), pivot, delta, _mean(over, dot(d, d))


def _one_gpu():
    """Whether all there is is one GPU.

    There a branch waits for the host (40 to 60 µs on an H200, as long as a norm of 25 MB takes), and a pilot costs no
    collective. Between several devices, it would cost one.
    """
    return jax.default_backend() == "gpu" and jax.device_count() == 1


def _ways(over, kept, data, expected):
    """How to find statistics, by platform. This is the one place that chooses.

    On a CPU a branch is cheap, and to subtract a pivot is not: one look about 0, and more where that was poor. On a
    TPU or GPU it is the other way round: one look about the running mean, which is seldom poor; or about a pilot,
    where any part of the data is at hand, without a branch; on a single GPU for batch norm, too. With masks no part is:
    a second look there. A GPU that holds a row in registers looks at it again for nothing, unless the statistics are to
    be kept.
    """
    x, where, *_ = data
    zero, pilot = partial(_about_zero, over), partial(_about_pilot, over)
    axes, placed = over.axes, places(x)
    known = 0 not in x.shape and all(isinstance(x.shape[a], int) and placed[a] is None for a in axes)
    at_hand = axes and known and where is None and not over.names
    if expected is not None:
        running = partial(_about_expected, over, expected)
        gpu = pilot if at_hand and _one_gpu() else running
        cpu = zero if over.names else partial(_about_zero_or, over, expected)
        return {"cpu": cpu, "cuda": gpu, "rocm": gpu, "default": running}
    if over.names:
        return {"default": zero}
    if not at_hand:
        return {"cpu": zero, "default": partial(_about_first_mean, over)}
    rows = over.groups is None and set(axes) == set(range(min(axes), x.ndim))
    gpu = partial(_about_mean, over) if rows and not kept else pilot
    return {"cpu": zero, "cuda": gpu, "rocm": gpu, "default": pilot}


def find(over, kept, data, expected=None) -> Statistics:
    """Statistics of data to the precision of their dtype, and (0, 1) where nothing is included.

    `kept`: they are wanted besides y. `expected`: what they are likely to be near.
    """
    if over.centered:
        n, pivot, delta, var = by_platform(data, **_ways(over, kept, data, expected))
        pivot, delta = (jnp.where(n == 0, 0, v) for v in (pivot, delta))
    else:
        n, pivot, var = look(over, data, None)
        delta = None
    return Statistics(n, pivot, delta, jnp.where(n == 0, 1, var))
