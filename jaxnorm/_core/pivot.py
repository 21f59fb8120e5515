"""Accurate statistics: moments about one pivot or another, until that is near enough to the mean."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxnorm._core.barriers import after, by_platform
from jaxnorm._core.moments_about import Observations, Statistics, moments_about, weighted_means
from jaxnorm._core.numerics import at_most, deviation, real_product, wide_dtype
from jaxnorm._core.portable import is_portable
from jaxnorm._core.reduction import Reduction
from jaxnorm._core.sharding import places
from jaxnorm._core.sizes import by_size

# A pivot is poor where δ² is more than so many variances: beyond √3 standard deviations from the mean. Within, the
# variance loses two bits at most.
_POOR = 3
# Each trip of the guard brings a pivot some 10⁶ times nearer, and eight are more than any float can need.
_TRIPS = 8
# Where |δ| is a smaller part of the pivot than this, moving the pivot by δ hardly changes it.
_NEAR = 2**-10
# What surely fits into the memory on the chip of a TPU beside all else that is there.
_ON_CHIP = 32 * 2**20
# A pilot looks at one in so many data, along one axis.
_PILOT = 64
# Of so few bytes, another look takes no longer than a branch does.
_SMALL = 2**15


class Expected(NamedTuple):
    """The mean and variance that are expected: the running ones. Statistics do not depend on them, their price does."""

    mean: Array
    var: Array


def accurate_stats(
    reduction: Reduction, need_stats: bool, data: Observations, expected: Expected | None = None
) -> Statistics:
    """Statistics of data to the precision of their dtype, and (0, 1) where nothing is included.

    `need_stats`: they are wanted besides y. `expected`: what they are likely to be near.
    """
    if reduction.centered:
        count, pivot, delta, var = _centered_stats(reduction, need_stats, data, expected)
        pivot, delta = (jnp.where(count == 0, 0, v) for v in (pivot, delta))
    else:
        count, pivot, delta, var = moments_about(reduction, data, None)
    return Statistics(count, pivot, delta, jnp.where(count == 0, 1, var))


def _centered_stats(
    reduction: Reduction, need_stats: bool, data: Observations, expected: Expected | None
) -> Statistics:
    """Statistics in one way or another: of few data without a branch, else as it is best on a platform.

    On a CPU, what has no branch takes 0.6 to 1.0 of the time of the guard up to 32 KiB, and half the time to compile;
    at 6 MiB it would take 1.5 to 2 times as long.
    """
    ways = _ways_by_platform(reduction, need_stats, data, expected)
    own = partial(_about_own_mean, reduction)
    if is_portable() and _any_part_is_at_hand(reduction, data):
        return own(data)
    # Under plain jit the first axis may lie on several devices: then each look is a collective.
    alone = 0 not in reduction.axes or _one_device()
    if not (alone and _any_part_is_at_hand(reduction, data) and at_most(data.x.nbytes, _SMALL)):
        return by_platform(data, **ways)
    return by_size(data.x, _SMALL, own, lambda data: by_platform(data, **ways), data)


def _ways_by_platform(
    reduction: Reduction, need_stats: bool, data: Observations, expected: Expected | None
) -> dict[str, Callable[[Observations], Statistics]]:
    """The ways to find statistics, by platform. This is the one place that chooses.

    CPU: a branch is cheap, and to subtract a pivot is not. With running statistics about their mean where 0 is expected
        to be poor, else about 0. The guard looks again.
    TPU and GPU, with running statistics: about their mean, which is seldom poor. The guard looks again.
    A single GPU, with running statistics: about a pilot, for a branch waits for the host there.
    TPU and GPU, without: about a pilot, without a branch. Of masked data no part is a pilot for all: two looks.
    GPU, rows whose statistics are not needed besides y: about the mean itself, as a row stays in registers.
    Over mapped axes about 0 on a CPU; elsewhere about the running mean, or 0 without one. The guard looks again.
    """
    zero, pilot = partial(_about_zero, reduction), partial(_about_pilot, reduction)
    at_hand = _any_part_is_at_hand(reduction, data)
    if expected is not None:
        running = partial(_about_expected, reduction, expected)
        gpu = pilot if at_hand and _one_gpu() else running
        cpu = zero if reduction.axis_names else partial(_about_zero_or_expected, reduction, expected)
        return {"cpu": cpu, "cuda": gpu, "rocm": gpu, "default": running}
    if reduction.axis_names:
        return {"default": zero}
    if not at_hand:
        return {"cpu": zero, "default": partial(_about_first_mean, reduction)}
    axes = reduction.axes
    rows = reduction.groups is None and set(axes) == set(range(min(axes), data.x.ndim))
    gpu = partial(_about_row_mean, reduction) if rows and not need_stats else pilot
    return {"cpu": zero, "cuda": gpu, "rocm": gpu, "default": pilot}


def _any_part_is_at_hand(reduction: Reduction, data: Observations) -> bool:
    """Whether a fixed part of the data has a mean that counts, and lies on this device."""
    x, axes, placed = data.x, reduction.axes, places(data.x)
    known = 0 not in x.shape and all(isinstance(x.shape[a], int) and placed[a] is None for a in axes)
    return bool(axes) and known and data.where is None and not reduction.axis_names


def _one_gpu() -> bool:
    """Whether all there is is one GPU.

    There a branch waits for the host (40 to 60 µs on an H200, as long as a norm of 25 MB takes), and a pilot costs no
    collective. Between several devices, it would cost one.
    """
    return jax.default_backend() == "gpu" and _one_device()


def _one_device() -> bool:
    return jax.device_count() == 1


# Ways with a guard: where a pivot was poor, it moves to the mean that was found about it.


def _is_poor(delta: Array, var: Array) -> Array:
    """Where δ² is more than `_POOR` variances. NaN is poor: both squares have overflowed."""
    return ~(real_product(delta, delta) <= _POOR * var)


def _overflows(first: Array, pivot: Array, delta: Array, var: Array) -> Array:
    """Where squares overflow about a pivot, and a look about the mean may help.

    It may on the first look, or if the pivot would move. Else the next look would be the same, up to the last trip.
    """
    return jnp.isinf(var) & (first | (abs(delta) > _NEAR * abs(pivot)))


def _refine_pivot(reduction: Reduction, data: Observations, first: Statistics, without_cond: bool) -> Statistics:
    """Statistics that a first look gave; where its pivot is poor, those about the mean just found.

    All of x is read again, and what comes of it is taken where the pivot is poor. What is not poor keeps its bits: they
    depend on no other statistic.
    """
    count, pivot, delta, var = first

    def poor(s: Any) -> Array:
        trips, pivot, delta, var = s
        return jnp.isfinite(delta) & (_is_poor(delta, var) | _overflows(trips == 0, pivot, delta, var))

    def go_on(s: Any) -> Array:
        return (s[0] < _TRIPS) & jnp.any(poor(s))

    def move(s: Any) -> Any:
        trips, pivot, delta, var = s
        mean = pivot + delta
        look = moments_about(reduction, data._replace(x=after(mean, data.x)), mean, count)
        again = poor(s)
        return trips + 1, *(jnp.where(again, *v) for v in ((mean, pivot), (look.delta, delta), (look.var, var)))

    # The zeros give the pivot the sharding of delta, and make it vary over a mesh as delta does.
    start = (jnp.int32(0), pivot + jnp.zeros_like(delta), delta, var)
    # The loop alone would do; a conditional around it is cheaper where x is large.
    if without_cond:
        return Statistics(count, *lax.while_loop(go_on, move, start)[1:])
    return Statistics(count, *lax.cond(go_on(start), partial(lax.while_loop, go_on, move), lambda s: s, start)[1:])


def _about_zero(reduction: Reduction, data: Observations) -> Statistics:
    """About 0, and again where that was poor."""
    return _refine_pivot(reduction, data, moments_about(reduction, data, None), without_cond=False)


def _about_zero_or_expected(reduction: Reduction, expected: Expected, data: Observations) -> Statistics:
    """About 0; but straight about the expected mean, for all channels, if 0 is expected to be poor for one."""
    mean = _finite_mean(expected)
    poor = jnp.any(_is_poor(mean, expected.var))

    def force_refinement(data: Observations) -> tuple[Array, Array, Array]:
        # No look yet: δ = 0 and var = ∞ count as an overflow, so that the guard looks about the expected mean. The
        # zeros are a sum over x, for both branches to lie alike on a mesh.
        delta, var = (jnp.zeros_like(data.x, v.dtype).sum(reduction.axes, keepdims=True) for v in expected)
        count = reduction.full_count(data.x) if data.where is None else reduction.weight(data.x, data.where)
        return count, delta, var + jnp.inf

    def look(data: Observations) -> tuple[Array, Array, Array]:
        count, _, delta, var = moments_about(reduction, data, None)
        return count, delta, var

    count, delta, var = lax.cond(poor, force_refinement, look, data)
    # A count that is known is not carried along: what depends on it would be computed for every element.
    count = reduction.full_count(data.x) if data.where is None else count
    first = Statistics(count, jnp.where(poor, mean, 0), delta, var)
    return _refine_pivot(reduction, data, first, without_cond=False)


def _about_expected(reduction: Reduction, expected: Expected, data: Observations) -> Statistics:
    """About the expected mean, and again where that was poor."""
    mean = _finite_mean(expected)
    # On a TPU, a conditional would keep a small x from staying on the chip.
    without_cond = not reduction.axis_names and at_most(data.x.nbytes, _ON_CHIP)
    return _refine_pivot(reduction, data, moments_about(reduction, data, mean), without_cond)


def _finite_mean(expected: Expected) -> Array:
    """The expected mean, and 0 where that is not finite: about NaN, no loop would ever end."""
    return jnp.where(jnp.isfinite(expected.mean), expected.mean, 0)


# Ways without a branch.


def _about_pilot(reduction: Reduction, data: Observations) -> Statistics:
    """About the mean of a part of the data.

    A part that holds a fraction f of the data, with its mean at p, adds f (p − μ)²/(1 − f) at least to the variance.
    Of three parts, that with the median counts: one that is unlike the others has no say.
    """
    # Along positions rather than examples: these may be on other devices, and a TPU may have them in lanes.
    x = data.x
    axis = max(reduction.axes, key=lambda a: (x.shape[a] >= _PILOT, a > 0, -a))
    n = max(1, x.shape[axis] // (3 * _PILOT))
    last = x.shape[axis] - n
    parts = [lax.slice_in_dim(x, i, i + n, axis=axis).astype(wide_dtype(x)) for i in (0, last // 2, last)]
    channels = reduction._replace(groups=None)
    # The others about the first: the pivot of a constant is that constant.
    first, *others = parts
    first = _local_mean(channels, first)
    pivot = reduction.group_mean(first)
    each = reduction.broadcast_groups(pivot, x)
    pivot += reduction.group_mean(_median(first - each, *(_local_mean(channels, part - each) for part in others)))
    return moments_about(reduction, data, pivot)


def _local_mean(reduction: Reduction, v: Array) -> Array:
    """⟨v⟩, where nothing is masked and all of it is on this device."""
    return reduction.sum(v) * (1 / reduction.size(v))


def _median(a: Array, b: Array, c: Array) -> Array:
    """The median of three numbers; of complex ones, in each direction."""
    if jnp.iscomplexobj(a):
        return lax.complex(_median(a.real, b.real, c.real), _median(a.imag, b.imag, c.imag))
    return jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))


def _about_own_mean(reduction: Reduction, data: Observations) -> Statistics:
    """About the mean that a look about the first of the data gave.

    One of n data lies within √n standard deviations of the mean, so that the mean found about it is right to some units
    of the deviation's last place; and the pivot of a constant is that constant.
    """
    x = data.x
    first = x[tuple(slice(0, 1) if a in reduction.axes else slice(None) for a in range(x.ndim))]
    pivot = reduction.group_mean(first.astype(wide_dtype(x)))
    _, (delta,) = weighted_means(reduction, data, None, deviation(x, reduction.broadcast_groups(pivot, x)))
    return moments_about(reduction, data, pivot + delta)


def _about_first_mean(reduction: Reduction, data: Observations) -> Statistics:
    """About the mean that a first look gave: for data of which no part is a pilot for all."""
    count, _, mean, _ = moments_about(reduction, data, None)
    mean = mean + jnp.zeros((), wide_dtype(data.x))
    again = data._replace(x=after(mean, data.x))
    return moments_about(reduction, again, mean, None if data.where is None else count)


def _about_row_mean(reduction: Reduction, data: Observations) -> Statistics:
    """About the mean, from looks at rows that a GPU holds in registers.

    The variance is that of x − μ itself. `moments_about` takes it of sums about a pivot that is known before, as it
    reads data once: here each sum waits for the one before, and XLA for GPUs keeps the row in between.
    """
    x = data.x
    first = _local_mean(reduction, x.astype(wide_dtype(x)))
    pivot = first + _local_mean(reduction, deviation(x, first))
    delta = _local_mean(reduction, deviation(x, pivot))
    d = deviation(x, pivot, delta)
    return Statistics(reduction.full_count(x), pivot, delta, _local_mean(reduction, real_product(d, d)))
