"""A data set whose parts differ, statistics of all of it, and networks to run it through."""

from functools import cache

import flax.linen as nn
import jax
import numpy as np
from hypothesis import strategies as st

import jaxnorm as jn

rng = np.random.default_rng(0)
# Means of 1e4, and parts that differ: their own means and variances are not those of the whole.
X = (rng.standard_normal((24, 5, 3)) + 3 * rng.standard_normal((24, 1, 3)) + [0, 1e4, -20]).astype(np.float32)
WHERE = rng.random((24, 5, 1)) > 0.3
EXACT = np.where(WHERE, X.astype(float), np.nan)
MEAN, VAR = np.nanmean(EXACT, (0, 1)), np.nanvar(EXACT, (0, 1))
BN = jn.BatchNorm(momentum=0.9)
PARAMS, STATE = BN.init(3)
part_of = jax.jit(lambda spec, state, x, where: spec.apply(PARAMS, state, x, train=True, where=where))
cuts = st.lists(st.integers(0, 24), max_size=5).map(lambda c: np.split(np.arange(24), sorted(c)))


def close(state, mean, var, digits=1e-5, weight=None):
    np.testing.assert_allclose(state.mean, mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(state.var, var, rtol=digits)
    np.testing.assert_allclose(
        0 if state.weight_sum is None else state.weight_sum, 0 if weight is None else weight, rtol=1e-6
    )


def masks(parts):
    """The same shapes for any partition: all data, of which each part includes its own."""
    for rows in parts:
        yield WHERE & np.isin(np.arange(24), rows)[:, None, None]


class Net(nn.Module):
    """Both kinds of layers; under `scan`, stacked variables."""

    norm: type = jn.linen.BatchNorm

    @nn.compact
    def __call__(self, x, where=None, *, train):
        x = self.norm(momentum=0.9)(x, use_running_average=not train, mask=where)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = nn.Dense(3)(x)
        layers = nn.scan(
            lambda norm, x, _: (norm(x, train=train, where=where), None),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=2,
        )
        return layers(jn.linen.Norm(BN), x, None)[0]


@cache
def net():
    """The network, and its variables."""
    return Net(), Net().init(jax.random.key(0), X, train=False)
