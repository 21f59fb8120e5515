"""Running statistics are found wherever they are in a pytree, and nothing else is."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from parts import BN, X, close

import jaxnorm as jn


def test_other_norms_have_nothing_to_accumulate():
    """So that one can stand where another stood."""
    for spec in (jn.LayerNorm(), BN):
        params, state = spec.init(3)
        _, state = spec.apply(params, jn.accumulate(state), X, train=True)
        assert jax.tree.structure(jn.commit(state)) == jax.tree.structure(spec.init(3)[1])
    jn.nnx.commit(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))


class Heads(nn.Module):
    """Layers that are called as statistics are, and statistics of another kind above a norm."""

    @nn.compact
    def __call__(self, x, train):
        for name in ("mean", "var"):
            self.variable("batch_stats", name, jnp.zeros, 3)
        x = jn.linen.Norm(BN, name="below")(x, train=train)
        return jn.linen.Norm(BN, name="heads_mean")(x, train=train), Named(name="named")(x, train)


class Named(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return [jn.linen.Norm(BN, name=name)(x, train=train) for name in ("mean", "var")]


def test_names_of_layers_and_norms_below_other_statistics():
    model = Named()
    variables = model.init(jax.random.key(0), X, train=False)
    stats = jn.accumulate(variables["batch_stats"])
    for rows in (slice(5), slice(5, 24)):
        _, updates = model.apply({**variables, "batch_stats": stats}, X[rows], train=True, mutable=["batch_stats"])
        stats = updates["batch_stats"]
    for name in ("mean", "var"):
        found = jn.RunningStats(**jn.commit(stats)[name])
        close(found, 0.1 * X.astype(float).mean((0, 1)), 0.9 + 0.1 * X.astype(float).var((0, 1)))
    assert jax.tree.structure(jn.merge_running(stats, stats)) == jax.tree.structure(variables["batch_stats"])
    model = Heads()
    variables = model.init(jax.random.key(0), X, train=False)
    stats = jn.commit(jn.accumulate(variables["batch_stats"]))
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
    with pytest.raises(ValueError, match="came to the state"):  # the statistics of another kind, which no norm moves
        jn.linen.recalibrate(model, variables, [X])
