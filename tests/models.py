"""Small models of linen and nnx, and how tests of messages read them."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jaxnorm as jn

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (4, 5, 8))
ROWS = jax.random.normal(KEY, (16, 8)) * 2 + 3
BN = jn.BatchNorm()
SPECS = {
    "BatchNorm": jn.BatchNorm,
    "InstanceNorm": jn.InstanceNorm,
    "LayerNorm": jn.LayerNorm,
    "RMSNorm": jn.RMSNorm,
    "GroupNorm": partial(jn.GroupNorm, groups=2),
}
NAMES = list(SPECS)


def says(call, *words, error=(TypeError, ValueError), never=()):
    """It raises, and says all of these."""
    with pytest.raises(error) as caught:
        call()
    said = str(caught.value) + "".join(f"\n{note}" for note in getattr(caught.value, "__notes__", ()))
    for word in words:
        assert re.search(word, said, re.DOTALL), f"{word!r} is not in {said!r}"
    for word in never:
        assert not re.search(word, said), f"{word!r} is in {said!r}"


each_name = pytest.mark.parametrize("name", NAMES)


class Net(nn.Module):
    """A network as public ones are, that asks in one way or another whether it trains."""

    @nn.compact
    def run(self, x, evaluating):
        x = nn.Dense(8)(x)
        x = jn.linen.BatchNorm(use_running_average=evaluating)(x)
        return nn.Dropout(0.5, deterministic=evaluating)(x)


MASK = jnp.arange(16)[:, None] < 10


def norms_of_linen():
    """A drop-in, and a spec as a module, whose second argument by position is a flag."""
    model = jn.linen.BatchNorm()
    yield model, model.init(KEY, ROWS, use_running_average=True), "mask"
    model = jn.linen.Norm(BN)
    yield model, model.init(KEY, ROWS, train=False), "where"


def norms_of_nnx():
    yield jn.nnx.BatchNorm(8, rngs=nnx.Rngs(0)), "mask"
    yield jn.nnx.Norm(BN, 8), "where"


class Plain(Net):
    def __call__(self, x):
        return self.run(x, True)
