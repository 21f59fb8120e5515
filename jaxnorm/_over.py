"""What shares a statistic, sums over it, and the arithmetic around."""

import math
from collections.abc import Hashable
from itertools import pairwise
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxnorm._compilers import own

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


def no_more(size, limit):
    """Whether a size is known to be within a limit: one of an exported program may be a symbol."""
    return isinstance(size, int) and size <= limit


def dot(a, b):
    """Re(ā b), elementwise."""
    return (a.conj() * b).real if jnp.iscomplexobj(a) else a * b


def fill(v, x):
    """A vector repeated to the shape of `x`, in stages, for the sake of the transpose: a sum in the same ones.

    Its axes of size 1 are left out first: the transpose sums over them, too, where XLA is slow to keep them.
    """
    stages = _stages([a for a, n in enumerate(v.shape) if n != x.shape[a]], x.shape)
    for i, stage in enumerate(reversed(stages)):
        v = own(1, v) if i else v
        kept = [a for a, n in enumerate(v.shape) if n != 1]
        shape = [x.shape[a] if a in stage else n for a, n in enumerate(v.shape)]
        v = lax.broadcast_in_dim(v.reshape([v.shape[a] for a in kept]), shape, kept)
    return v


def deviation(x, pivot=None, delta=None):
    """(x − pivot) − delta: in this order the digits of x − μ survive a large mean."""
    d = x.astype(wide_dtype(x))
    d = d if pivot is None else d - pivot
    return d if delta is None else d - delta


def included(where):
    """The positions that count: those of positive weight."""
    return where if where.dtype == jnp.bool_ else where > 0


def inverse(n):
    """1/n, and 1 where n = 0."""
    return 1 / jnp.where(n == 0, 1, n)


class Expected(NamedTuple):
    """What mean and variance are expected to be: the running ones. Statistics do not depend on it, their price does."""

    mean: Array
    var: Array


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
        """The shape of a statistic of `x`: 1 along what shares it. That of a group is repeated for its channels."""
        return tuple(1 if a in self.axes else n for a, n in enumerate(x.shape))

    def sum(self, v):
        """The sum of `v` over everything on this device that shares a statistic."""
        first, *rest = _stages(self.axes, v.shape) or [()]
        v = v.sum(first, keepdims=True)
        for stage in rest:
            v = own(1, v).sum(stage, keepdims=True)
        return self._pool(v)

    def mean(self, v):
        """The mean over the channels of a group of a statistic of each."""
        return self._pool(v, jnp.mean)

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
        return self._pool(jnp.broadcast_to(total * copies, self.shape(x)))

    def once(self, v):
        """A statistic once a group, as it is kept and sent."""
        if not self.groups:
            return v
        size = max(1, v.shape[self.channel] // self.groups)
        return lax.slice_in_dim(v, 0, None, size, self.channel)

    def repeated(self, v, x):
        """The same for each channel of `x`, as it is computed with."""
        return jnp.repeat(v, x.shape[self.channel] // self.groups, self.channel) if self.groups else v

    def across(self, *sums):
        """Each sum over all devices: one collective for all of them."""
        if not self.names:
            return sums
        dtype = next((v.dtype for v in sums if jnp.iscomplexobj(v)), sums[0].dtype)
        stack = jnp.stack([self.once(v).astype(dtype) for v in sums])
        packed = lax.psum(stack, self.names, axis_index_groups=self.teams)
        pairs = ((self.repeated(p, v), v) for p, v in zip(packed, sums, strict=True))
        return [p if jnp.iscomplexobj(v) else p.real for p, v in pairs]

    def _devices(self):
        if self.teams is None:
            return lax.psum(1, self.names)
        sizes = {device: len(team) for team in self.teams for device in team}
        return jnp.array([sizes[device] for device in sorted(sizes)])[lax.axis_index(self.names)]

    def _pool(self, v, pool=jnp.sum):
        # Channels were summed before groups of them are: this array is tiny, and x itself is never reshaped.
        if not self.groups:
            return v
        c = self.channel
        blocks = v.reshape(*v.shape[:c], self.groups, v.shape[c] // self.groups, *v.shape[c + 1 :])
        return self.repeated(pool(blocks, c + 1), v)


def _stages(axes, shape):
    """Lists of axes to sum one after the other, innermost first, which is what CPUs are fast at.

    Each run of adjacent axes is a stage. Between axes that are kept, XLA would stride through memory once per result:
    there each axis is a stage by itself; and where there is little to sum, for the sake of its rounding.
    """
    axes = sorted(axes)
    cuts = [i for i in range(1, len(axes)) if axes[i] > axes[i - 1] + 1]
    runs = [axes[i:j] for i, j in pairwise([0, *cuts, len(axes)])]
    small = no_more(math.prod(shape), _SMALL)
    stages = []
    for run in reversed([run for run in runs if run]):
        strided = run[0] > 0 and run[-1] < len(shape) - 1 and not no_more(shape[run[-1]], 7)
        stages += [[a] for a in reversed(run)] if small or strided else [run]
    return stages
