"""The table of norms: one row a norm in one layout. It drives the transform, numerics and memory tests alike."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import wider
from flags import AS_USERS

import jaxnorm as jn

optimized = partial(jax.jit, compiler_options=AS_USERS)
"""Compiled as users have it: optimization changes the order of sums, and with it their rounding."""


FROM = {"gate": 0, "threshold": -0.5}
"""Where random parameters of this name begin, if not at 1; they end 1 further."""


@dataclass(frozen=True)
class Case:
    """A norm and data for it."""

    name: str
    spec: Any
    shape: tuple[int, ...]

    @property
    def wider(self):
        """Whether it is of the wider family, with formulas of its own."""
        return self.name in wider.ROWS

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
        keys = jax.random.split(jax.random.key(7), len(params))
        draw = lambda key, name, v: v if v is None else FROM.get(name, 1) + jax.random.uniform(key, v.shape, v.dtype)
        return type(params)(*map(draw, keys, params._fields, params)), state

    def broadcast(self, v):
        """A parameter as NumPy, in the dimensions of x."""
        return (
            0.0
            if v is None
            else np.asarray(v, float).reshape([n if a in self.axes else 1 for a, n in enumerate(self.shape)])
        )

    def exact(self, x, params, **kwargs):
        """y in training, as the oracle says."""
        given = {
            name: np.asarray(v) if name in self.spec._shared else self.broadcast(v)
            for name, v in params._asdict().items()
            if v is not None
        }
        return (wider if self.wider else oracle).normalize(self.spec, x, **given, **kwargs)

    def with_epsilon(self, epsilon):
        """The spec with another epsilon, if it has one."""
        return dataclasses.replace(self.spec, epsilon=epsilon) if hasattr(self.spec, "epsilon") else self.spec

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
    Case("batch-instance", jn.BatchInstanceNorm(), (4, 3, 2, 6)),
]

WIDER = [Case(name, *row) for name, row in wider.ROWS.items()]


def table(cases):
    """Run a test for each of these rows; those of the wider family in `make long`."""
    rows = [pytest.param(c, marks=pytest.mark.long) if c.wider else c for c in cases]
    return pytest.mark.parametrize("case", rows, ids=[c.name for c in cases])


standard = table(CASES)
"""Run a test for every norm that standardizes by own statistics."""

norms = table(CASES + WIDER)
"""Run a test for every row."""

EACH = (
    "batch NHWC", "instance NHWC", "layer", "rms", "group NHWC", "batch-instance", "renorm NHWC", "switchable",
    "filter response", "global response", "local response", "unit", "unit of order 3", "unit of the largest", "simple",
    "dynamic tanh", "evo S0", "evo B0",
)  # fmt: skip
one_each = table([c for c in CASES + WIDER if c.name in EACH])
"""Run a test once for every kind of norm: a new kind goes into `EACH` with one of its rows."""

HOSTILE = {
    "batch": jn.BatchNorm(),
    "instance": jn.InstanceNorm(),
    "instance channels first": jn.InstanceNorm(channel_axis=1),
    "layer": jn.LayerNorm(),
    "layer whole": jn.LayerNorm(axis=(1, 2, 3)),
    "group": jn.GroupNorm(groups=2),
}
"""Norms that take a mean, to try with hostile data of shape (32, 28, 28, 8)."""


SPECS = [
    jn.BatchNorm(),
    jn.InstanceNorm(),
    jn.InstanceNorm(track=True),
    jn.BatchInstanceNorm(),
    jn.LayerNorm(),
    jn.RMSNorm(),
    jn.GroupNorm(groups=2),
    jn.Identity(),
]
"""One spec of each norm, and of each way in which it has another state."""

FAMILY = [
    jn.BatchRenorm(),
    jn.DynamicTanh(),
    jn.EvoNormB0(),
    jn.EvoNormS0(groups=2),
    jn.FilterResponseNorm(),
    jn.GlobalResponseNorm(),
    jn.LocalResponseNorm(size=3),
    jn.SimpleNorm(),
    jn.SwitchableNorm(),
    jn.UnitNorm(),
]
"""The same of the wider family."""

EVERY_SPEC = [*SPECS, *(pytest.param(spec, marks=pytest.mark.long) for spec in FAMILY)]


class CountingScale:
    """A norm of a user's own, whose parameters and state are dicts: y = scale · x, and the number of updates."""

    def init(self, features, dtype=None):
        return {"scale": jnp.full(features, 2.0, dtype)}, {"updates": jnp.zeros(())}

    def apply(self, params, state, x, *, train, where=None):
        return params["scale"].reshape(1, -1) * x, {"updates": state["updates"] + 1} if train else state
