"""Reductions: what shares a statistic, on one device and on several, and sums over it."""

import math
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxnorm._core.barriers import Copy, barrier_copy
from jaxnorm._core.numerics import at_most, real_dtype
from jaxnorm._core.sharding import broadcast_like, gather_axis, place_like, stack

# On a CPU, XLA sums as little as this over several axes in one loop, whose roundings add up: to 300 ulp, measured.
_SMALL = 4096
# Along an axis of so few, it does not stride far.
_FEW = 7


def all_but(axis: int, ndim: int) -> tuple[int, ...]:
    """All axes but one: those that share a statistic of each channel."""
    return tuple(a for a in range(ndim) if a != axis)


class Reduction(NamedTuple):
    """Everything that shares a statistic: positions along `axes`, then blocks of `group_axis`, then mapped axes.

    A statistic has one number for all that share it; `broadcast_groups` and broadcasting make it meet the data again.

    With `groups`, channels lie along `group_axis`. Not `centered`: the mean is held at 0, as in RMS norm.
    `axis_index_groups` are lists of devices, by their index along a single name: each device shares with its own list
    alone. `ghost_ids` has, device after device, a number for each index along axis 0: those of one number share.
    """

    axes: tuple[int, ...]
    axis_names: tuple[Hashable, ...] = ()
    groups: int | None = None
    group_axis: int = 0
    centered: bool = True
    axis_index_groups: tuple[tuple[int, ...], ...] | None = None
    ghost_ids: tuple[int, ...] = ()

    def shape(self, x: Array) -> tuple[Any, ...]:
        """The shape of a statistic of `x`: 1 along what shares it, one number a group, and one a ghost."""
        shape = [1 if a in self.axes else n for a, n in enumerate(x.shape)]
        if self.groups:
            shape[self.group_axis] = self.groups
        if self.ghost_ids:
            shape[0] = 1 + max(self.ghost_ids)
        return tuple(shape)

    def sum(self, v: Array) -> Array:
        """The sum of `v` over everything on this device that shares a statistic."""
        first, *later = _stages(self.axes, v.shape) or [()]
        v = v.sum(first, keepdims=True)
        for stage in later:
            v = barrier_copy(Copy.PARTIAL_SUM, v).sum(stage, keepdims=True)
        return self._by_group(v, jnp.sum)

    def group_mean(self, v: Array) -> Array:
        """The mean, over the channels of each group, of what there is for each channel."""
        return self._by_group(v, jnp.mean)

    def size(self, x: Array) -> Any:
        """How many elements share a statistic, on all devices."""
        n = math.prod(x.shape[a] for a in self.axes)
        return self._sharers() * (n * x.shape[self.group_axis] // self.groups if self.groups else n)

    def full_count(self, x: Array) -> Array:
        """How many elements share it, for each statistic: the count where nothing is masked."""
        return lax.full(self.shape(x), self.size(x), real_dtype(x))

    def weight(self, x: Array, where: Array) -> Array:
        """The weight on this device of everything that shares a statistic."""
        # A mask is summed as it is, not once per channel that it is broadcast to; a boolean one in integers, but along
        # the first axis: if that is over devices, this sum goes along with others in one collective.
        boolean = where.dtype == jnp.bool_
        w = where.astype(jnp.int32 if boolean else real_dtype(x))
        # A weight below 0 is none. Where it is traced, that shows in all that shares the statistic.
        w = w if boolean else jnp.where(w >= 0, w, jnp.nan)
        axes = tuple(sorted(self.axes))
        total = w.sum(axes[1:], keepdims=True).astype(real_dtype(x)).sum(axes[:1], keepdims=True)
        repeats = math.prod(x.shape[a] for a in self.axes if where.shape[a] == 1)
        shape = [1 if a in self.axes else n for a, n in enumerate(x.shape)]
        return self._by_group(jnp.broadcast_to(total * repeats, shape), jnp.sum)

    def broadcast_groups(self, v: Array | None, x: Array) -> Any:
        """A statistic with one number for each channel of a group, and for each index of a ghost; else as it is."""
        if v is None:
            return None
        if self.ghost_ids and v.shape[0] != 1:
            v = _pick(self._members().T, v)
        if not self.groups:
            return v
        c, v = self.group_axis, gather_axis(v, self.group_axis)
        channels = x.shape[c] // self.groups
        each = jnp.broadcast_to(jnp.expand_dims(v, c + 1), (*v.shape[: c + 1], channels, *v.shape[c + 1 :]))
        return place_like(each.reshape(*v.shape[:c], x.shape[c], *v.shape[c + 1 :]), x)

    def psum(self, *sums: Array) -> Sequence[Array]:
        """Each sum over all devices, in one collective for all of them."""
        if not self.axis_names:
            return sums
        dtype = next((v.dtype for v in sums if jnp.iscomplexobj(v)), sums[0].dtype)
        packed = stack(*((_pick(self._members(), v) if self.ghost_ids else v).astype(dtype) for v in sums))
        try:
            packed = lax.psum(packed, self.axis_names, axis_index_groups=self.axis_index_groups)
        except NotImplementedError:
            raise NotImplementedError(
                f"axis_index_groups={self.axis_index_groups}: JAX has no collective for groups under vmap, or under "
                f"shard_map with check_vma=True. Give check_vma=False, or name the axis of a sub-mesh."
            ) from None
        return [p if jnp.iscomplexobj(v) else p.real for p, v in zip(packed, sums, strict=True)]

    def _sharers(self) -> Any:
        """How many devices share a statistic, or how many indices along axis 0 do."""
        if self.ghost_ids:
            return len(self.ghost_ids) // (1 + max(self.ghost_ids))
        if self.axis_index_groups is None:
            return lax.psum(1, self.axis_names)
        sizes = {device: len(group) for group in self.axis_index_groups for device in group}
        return jnp.array([sizes[device] for device in sorted(sizes)])[lax.axis_index(self.axis_names)]

    def _members(self) -> Array:
        """Which ghost each index along axis 0 on this device belongs to: booleans, an index by a ghost."""
        ids = np.reshape(self.ghost_ids, (lax.psum(1, self.axis_names), -1))
        return jnp.asarray(ids)[lax.axis_index(self.axis_names), :, None] == np.arange(1 + max(self.ghost_ids))[None]

    def _by_group(self, v: Array, pool: Callable[..., Array]) -> Array:
        # Channels were summed before groups of them are: this array is tiny, and x itself is never reshaped.
        if not self.groups:
            return v
        c, v = self.group_axis, gather_axis(v, self.group_axis)
        blocks = v.reshape(*v.shape[:c], self.groups, v.shape[c] // self.groups, *v.shape[c + 1 :])
        return pool(blocks, c + 1)


def broadcast_in_stages(v: Array, x: Array) -> Array:
    """A vector repeated to the shape of `x`, in stages, for the sake of the transpose: a sum in the same ones.

    Its axes of size 1 are left out first: the transpose sums over them, too, where XLA is slow to keep them.
    """
    stages = _stages([a for a, n in enumerate(v.shape) if n != x.shape[a]], x.shape)
    for i, stage in enumerate(reversed(stages)):
        v = barrier_copy(Copy.PARTIAL_SUM, v) if i else v
        kept = [a for a, n in enumerate(v.shape) if n != 1]
        shape = [x.shape[a] if a in stage else n for a, n in enumerate(v.shape)]
        v = broadcast_like(v.reshape([v.shape[a] for a in kept]), shape, kept, x)
    return v


def _pick(members: Array, v: Array) -> Array:
    """For each column of `members`, the sum of the rows of `v` that it has. NaN stays within its own column."""
    members = members.reshape(*members.shape, *[1] * (v.ndim - 1))
    return jnp.where(members, v[:, None], 0).sum(0)


def _stages(axes: Sequence[int], shape: Sequence[Any]) -> list[list[int]]:
    """Lists of axes to sum one after the other, innermost first, which is what CPUs are fast at.

    Each run of adjacent axes is a stage. Between axes that are kept, XLA would stride through memory once per result:
    there each axis is a stage by itself; and where there is little to sum, for the sake of its rounding.
    """
    axes = sorted(axes)
    cuts = [i for i in range(1, len(axes)) if axes[i] > axes[i - 1] + 1]
    runs = [axes[i:j] for i, j in pairwise([0, *cuts, len(axes)])]
    small = at_most(math.prod(shape), _SMALL)
    stages = []
    for run in reversed([run for run in runs if run]):
        strided = run[0] > 0 and run[-1] < len(shape) - 1 and not at_most(shape[run[-1]], _FEW)
        stages += [[a] for a in reversed(run)] if small or strided else [run]
    return stages
