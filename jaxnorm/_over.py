"""What shares a statistic, sums over it, and the arithmetic around."""

import math
from collections.abc import Hashable
from itertools import pairwise
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxnorm._compilers import own
from jaxnorm._placed import along, gathered, stacked

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


def wider(*dtypes):
    """Of several dtypes of one kind, the widest."""
    return max(dtypes, key=lambda dtype: dtype.itemsize)


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

    A statistic is one number for all that share it; `repeated` makes it meet the data again.

    `teams` are lists of devices, by their index along a single name: each device shares with its own team alone.
    `slots` says which index along axis 0 shares with which, device after device: those in the same slot.
    """

    axes: tuple[int, ...]
    names: tuple[Hashable, ...] = ()
    groups: int | None = None
    channel: int = 0
    centered: bool = True
    teams: tuple[tuple[int, ...], ...] | None = None
    slots: tuple[int, ...] = ()

    def shape(self, x):
        """The shape of a statistic of `x`: 1 along what shares it, one number a group, and one a slot."""
        shape = [1 if a in self.axes else n for a, n in enumerate(x.shape)]
        if self.groups:
            shape[self.channel] = self.groups
        if self.slots:
            shape[0] = 1 + max(self.slots)
        return tuple(shape)

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
        return self._sharers() * (n * x.shape[self.channel] // self.groups if self.groups else n)

    def weight(self, x, where):
        """The weight on this device of everything that shares a statistic."""
        # A mask is summed as it is, not once per channel that it is broadcast to; a boolean one in integers, but along
        # the first axis: if that is over devices, this sum goes along with others in one collective.
        boolean = where.dtype == jnp.bool_
        w = where.astype(jnp.int32 if boolean else real_dtype(x))
        # A weight below 0 is none. Where it is traced, that shows in all that shares the statistic.
        w = w if boolean else jnp.where(w >= 0, w, jnp.nan)
        axes = tuple(sorted(self.axes))
        total = w.sum(axes[1:], keepdims=True).astype(real_dtype(x)).sum(axes[:1], keepdims=True)
        copies = math.prod(x.shape[a] for a in self.axes if where.shape[a] == 1)
        shape = [1 if a in self.axes else n for a, n in enumerate(x.shape)]
        return self._pool(jnp.broadcast_to(total * copies, shape))

    def repeated(self, v, x):
        """A statistic for each channel of its group in `x`, and for each index of its slot."""
        if v is None:
            return None
        if self.slots and v.shape[0] != 1:
            v = _pick(self._members().T, v)
        if not self.groups:
            return v
        c, v = self.channel, gathered(v, self.channel)
        each = jnp.broadcast_to(
            jnp.expand_dims(v, c + 1), (*v.shape[: c + 1], x.shape[c] // self.groups, *v.shape[c + 1 :])
        )
        return along(each.reshape(*v.shape[:c], x.shape[c], *v.shape[c + 1 :]), x)

    def across(self, *sums):
        """Each sum over all devices: one collective for all of them."""
        if not self.names:
            return sums
        dtype = next((v.dtype for v in sums if jnp.iscomplexobj(v)), sums[0].dtype)
        stack = stacked(*((_pick(self._members(), v) if self.slots else v).astype(dtype) for v in sums))
        try:
            packed = lax.psum(stack, self.names, axis_index_groups=self.teams)
        except NotImplementedError:
            raise NotImplementedError(
                f"axis_index_groups={self.teams}: JAX has no collective for groups under vmap, or under shard_map with "
                f"check_vma=True. Give check_vma=False, or name the axis of a sub-mesh."
            ) from None
        return [p if jnp.iscomplexobj(v) else p.real for p, v in zip(packed, sums, strict=True)]

    def _sharers(self):
        """How many devices share a statistic, or how many indices along axis 0 do."""
        if self.slots:
            return len(self.slots) // (1 + max(self.slots))
        if self.teams is None:
            return lax.psum(1, self.names)
        sizes = {device: len(team) for team in self.teams for device in team}
        return jnp.array([sizes[device] for device in sorted(sizes)])[lax.axis_index(self.names)]

    def _members(self):
        """Which slot each index along axis 0 on this device belongs to: booleans, an index by a slot."""
        slots = np.reshape(self.slots, (lax.psum(1, self.names), -1))
        return jnp.asarray(slots)[lax.axis_index(self.names), :, None] == np.arange(1 + max(self.slots))[None]

    def _pool(self, v, pool=jnp.sum):
        # Channels were summed before groups of them are: this array is tiny, and x itself is never reshaped.
        if not self.groups:
            return v
        c, v = self.channel, gathered(v, self.channel)
        blocks = v.reshape(*v.shape[:c], self.groups, v.shape[c] // self.groups, *v.shape[c + 1 :])
        return pool(blocks, c + 1)


def _pick(members, v):
    """For each column of `members`, the sum of the rows of `v` that it has. NaN stays within its own column."""
    members = members.reshape(*members.shape, *[1] * (v.ndim - 1))
    return jnp.where(members, v[:, None], 0).sum(0)


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
