"""The table of norms: one row a norm in one layout. It drives the transform, numerics and memory tests alike."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from conftest import AS_USERS

optimized = partial(jax.jit, compiler_options=AS_USERS)
"""Compiled as users have it: optimization changes the order of sums, and with it their rounding."""


@dataclass(frozen=True)
class Case:
    """A norm and data for it."""

    name: str
    spec: jn.BatchNorm | jn.InstanceNorm | jn.LayerNorm | jn.RMSNorm | jn.GroupNorm
    shape: tuple[int, ...]

    @property
    def axes(self):
        """The axes along which a scale lies."""
        axes = self.spec.axis if hasattr(self.spec, "axis") else self.spec.channel_axis
        return tuple(sorted(a % len(self.shape) for a in (axes if isinstance(axes, tuple) else (axes,))))

    def data(self, dtype=jnp.float32, seed=0):
        return jax.random.normal(jax.random.key(seed), self.shape, dtype)

    def params(self, dtype=None):
        """Parameters that differ from channel to channel, and the initial state."""
        params, state = self.spec.init(self.spec.features(self.shape), dtype)
        keys = jax.random.split(jax.random.key(7), 2)
        draw = lambda key, v: v if v is None else 1 + jax.random.uniform(key, v.shape, v.dtype)
        return jn.Affine(*map(draw, keys, params)), state

    def broadcast(self, v):
        """A parameter as NumPy, in the dimensions of x."""
        return (
            0.0
            if v is None
            else np.asarray(v, float).reshape([n if a in self.axes else 1 for a, n in enumerate(self.shape)])
        )

    def norm(self, params=None, state=None, **kwargs):
        """The norm as a compiled function of x: compiling one program is faster than dispatching fifty operations."""
        if params is None:
            params, state = self.params()
        return jax.jit(lambda x: self.spec.apply(params, state, x, train=True, **kwargs)[0])


CASES = [
    Case("batch NHWC", jn.BatchNorm(), (4, 3, 2, 6)),
    Case("batch NCHW", jn.BatchNorm(channel_axis=1), (4, 6, 3, 2)),
    Case("batch features", jn.BatchNorm(), (8, 6)),
    Case("batch volume", jn.BatchNorm(), (3, 2, 3, 2, 4)),
    Case("instance NHWC", jn.InstanceNorm(), (3, 4, 3, 4)),
    Case("instance NCHW", jn.InstanceNorm(channel_axis=1), (3, 4, 4, 3)),
    Case("instance time", jn.InstanceNorm(), (3, 7, 4)),
    Case("instance single", jn.InstanceNorm(batch_axis=None, channel_axis=0), (4, 5, 3)),
    Case("instance video", jn.InstanceNorm(batch_axis=(0, 1)), (2, 3, 4, 2, 3)),
    Case("layer", jn.LayerNorm(), (4, 3, 8)),
    Case("layer NCHW", jn.LayerNorm(axis=1), (4, 8, 3)),
    Case("layer whole", jn.LayerNorm(axis=(1, 2, 3)), (3, 4, 2, 3)),
    Case("rms", jn.RMSNorm(use_bias=True), (4, 3, 8)),
    Case("rms two axes", jn.RMSNorm(axis=(-1, 1)), (3, 4, 2, 3)),
    Case("group NHWC", jn.GroupNorm(groups=2), (3, 3, 2, 6)),
    Case("group NCHW", jn.GroupNorm(groups=3, channel_axis=1), (3, 6, 3, 2)),
    Case("group features", jn.GroupNorm(groups=2), (4, 8)),
]

norms = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
"""Run a test for every row."""

one_each = pytest.mark.parametrize(
    "case",
    [next(c for c in CASES if c.name == n) for n in ("batch NHWC", "instance NHWC", "layer", "rms", "group NHWC")],
    ids=lambda c: c.name,
)
"""Run a test once for every kind of norm."""
