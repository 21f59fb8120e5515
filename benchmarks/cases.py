"""The table of cases: one row a norm of one array. Speed, compiled programs, accuracy and memory all read it."""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

import jaxnorm as jn

SPECS = {
    "batch": lambda case: jn.BatchNorm(channel_axis=case.channel_axis),
    "instance": lambda case: jn.InstanceNorm(channel_axis=case.channel_axis),
    "group": lambda case: jn.GroupNorm(groups=case.groups, channel_axis=case.channel_axis),
    "layer": lambda case: jn.LayerNorm(),
    "rms": lambda case: jn.RMSNorm(),
    "batch-instance": lambda case: jn.BatchInstanceNorm(channel_axis=case.channel_axis),
}
"""The kinds of norms. What measures them goes by their specs, and takes one that no other library has."""


@dataclass(frozen=True)
class Case:
    """A norm and an array, and what its time over that of Flax's fast formula should be, forward and with backward.

    A quarter of the positions is masked, or none. `mean` is that of the data, `expected` the running one.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    channel_axis: int = -1
    groups: int = 32
    most: tuple[float, float] | None = None
    masked: bool = False
    mean: float = 0
    expected: float = 0

    @property
    def name(self):
        layout = "" if len(self.shape) < 3 else " channels last" if self.channel_axis == -1 else " channels first"
        dtype = {"float32": "f32", "bfloat16": "bf16"}[self.dtype]
        mean = f", mean {self.mean:g}" + (", as running" if self.expected else "") if self.mean else ""
        return f"{self.kind} {'×'.join(map(str, self.shape))}{layout} {dtype}{', masked' * self.masked}{mean}"

    @property
    def size(self):
        return math.prod(self.shape)

    @property
    def bytes(self):
        """Those of x."""
        return self.size * jnp.dtype(self.dtype).itemsize

    @property
    def channels(self):
        return self.shape[self.channel_axis]

    @property
    def spec(self):
        return SPECS[self.kind](self)

    def data(self, seed=0):
        """A cotangent of y, and what a library takes: x, scale, bias (None for RMS norm), running mean and variance.

        And a mask, if there is one.
        """
        keys = jax.random.split(jax.random.key(seed), 5)
        x, g = (jax.random.normal(k, self.shape, self.dtype) for k in keys[:2])
        scale, bias = (1 + jax.random.uniform(k, (self.channels,)) for k in keys[2:4])
        state = jnp.full(self.channels, self.expected, jnp.float32), jnp.ones(self.channels)
        mask = (jax.random.uniform(keys[4], (*self.shape[:-1], 1)) > 0.25,) if self.masked else ()
        return g, (x + jnp.asarray(self.mean, x.dtype), scale, None if self.kind == "rms" else bias, *state, *mask)


def _channels_first(case):
    n, *positions, c = case.shape
    # Flax has no group norm for channels first, so that a goal over its time says nothing.
    most = None if case.kind == "group" else case.most
    return replace(case, shape=(n, c, *positions), channel_axis=1, most=most)


_IMAGES = [
    Case("batch", (32, 56, 56, 64), most=(1.05, 0.70)),
    Case("batch", (64, 14, 14, 256), most=(1.05, 0.70)),
    Case("instance", (32, 56, 56, 64), most=(1.08, 0.70)),
    Case("instance", (64, 14, 14, 256), most=(1.08, 0.70)),
    Case("group", (32, 56, 56, 64), most=(0.25, 0.40)),
    Case("group", (64, 14, 14, 256), most=(0.55, 0.55)),
]

_ROWS = [
    Case("layer", (4096, 768), most=(1.05, 0.70)),
    Case("layer", (16384, 768), most=(1.05, 0.70)),
    Case("rms", (4096, 768), most=(1.00, 0.65)),
    Case("rms", (16384, 768), most=(1.00, 0.65)),
]

_SMALL = [
    Case("batch", (256, 512), most=(1.2, 0.80)),
    Case("batch", (256, 1, 1, 512), most=(1.2, 0.40)),
]

_MASKED = [Case(kind, (32, 56, 56, 64), masked=True) for kind in ("batch", "instance")]

# Where a look about 0 does not do.
_FAR = [
    Case("batch", (32, 56, 56, 64), mean=30, expected=30),
    *(Case(kind, (32, 56, 56, 64), mean=30) for kind in ("batch", "instance", "group")),
    Case("layer", (4096, 768), mean=30),
]


def _narrow(case):
    return replace(case, dtype="bfloat16", most=(0.45, 0.45) if case.kind == "batch" else None)


CASES = [
    *_IMAGES,
    *map(_channels_first, _IMAGES),
    *_ROWS,
    *_SMALL,
    *(_narrow(case) for case in (*_IMAGES, *_ROWS)),
    *(_narrow(_channels_first(case)) for case in _IMAGES[:2]),
    *_MASKED,
    *_FAR,
]
