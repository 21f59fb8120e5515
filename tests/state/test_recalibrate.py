"""A data set gives its own statistics, however it is cut into batches."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from parts import BN, MEAN, PARAMS, STATE, VAR, WHERE, X, close, cuts, masks, net, part_of, rng

import jaxnorm as jn


@pytest.mark.parametrize("as_batch", [lambda x, w: {"x": x, "where": w}, lambda x, w: (x, w)], ids=["dict", "tuple"])
def test_recalibrating_in_linen(as_batch):
    """Unequal batches, masks, dropout off without being told, a scan over layers."""
    model, variables = net()
    spoilt = jax.tree.map(lambda v: v * jnp.nan if v.dtype == jnp.float32 else v, variables["batch_stats"])
    batches = (as_batch(X[rows], WHERE[rows]) for rows in (slice(1), slice(1, 10), slice(10, 24)))
    stats = jn.linen.recalibrate(model, {**variables, "batch_stats": spoilt}, batches)["batch_stats"]
    first, stacked = stats["BatchNorm_0"], stats["Norm_0"]
    close(jn.RunningStats(first["mean"], first["var"]), MEAN, VAR)
    assert stacked.keys() == {"mean", "var"}
    chex.assert_tree_all_finite(stats)


@given(cuts)
def test_recalibration_is_exact_for_any_batches(parts):
    step = lambda state, where: {**state, "norm": part_of(BN, state["norm"], X, where)[1]}
    batches = list(masks(parts))
    state = jn.recalibrate(step, {"norm": STATE, "else": jnp.ones(2)}, iter(batches))
    close(state["norm"], MEAN, VAR)
    np.testing.assert_array_equal(state["else"], 1)


def test_a_long_stream_keeps_its_digits():
    """Increments far below the last digit of a mean of 1e4 add up."""
    x = (rng.standard_normal((2000, 64, 2)) + 1e4).astype(np.float32)
    one = lambda state, x: (BN.apply(jn.Affine(), state, x, train=False)[1], None)
    state = jn.recalibrate(lambda state, xs: jax.lax.scan(one, state, xs)[0], BN.init(2)[1], [x])
    np.testing.assert_allclose(state.mean, x.mean((0, 1), dtype=float), rtol=2**-24)
    np.testing.assert_allclose(state.var, x.var((0, 1), dtype=float), rtol=4 * 2**-24)


def test_a_channel_without_data_keeps_its_statistics():
    where = np.ones((24, 5, 3), bool)
    where[..., 1] = False
    old = STATE._replace(mean=jnp.array([1.0, 2.0, 3.0]))
    state = jn.recalibrate(lambda s, x: part_of(BN, s, x, where)[1], old, [X])
    assert (state.mean[1], state.var[1]) == (2, 1)
    np.testing.assert_allclose(state.mean[0], X[..., 0].mean(dtype=float), rtol=1e-5)


def test_a_training_step_recalibrates():
    """Though it asks to begin or to go on with a whole batch: data are to replace the state."""
    for start in (True, False):
        step = lambda state, x, start=start: jn.accumulate(BN.apply(PARAMS, state, x, train=True)[1], start)
        state = jn.recalibrate(step, STATE, [X[:5], X[5:]])
        close(state, X.astype(float).mean((0, 1)), X.astype(float).var((0, 1)), 2)


def test_a_batch_norm_of_flax_is_told_from_ours():
    model = nn.Sequential([jn.linen.BatchNorm(use_running_average=True), nn.BatchNorm(use_running_average=True)])
    with pytest.raises(ValueError, match=r"came to \['layers_1'\]\. .*replacement in jaxnorm\.linen"):
        jn.linen.recalibrate(model, model.init(jax.random.key(0), X), [X])


def test_what_fails_leaves_a_model_of_nnx_as_it_was():
    class Net(nnx.Module):
        def __init__(self):
            self.norm, self.unused = jn.nnx.Norm(BN, 3), jn.nnx.Norm(BN, 3)

        def __call__(self, x):
            return self.norm(x)

    def broken():
        yield X
        raise OSError("disk")

    net = Net()
    net(X)
    before = nnx.to_pure_dict(nnx.state(net))
    for batches, error in (([], ValueError), (broken(), OSError), ([X], ValueError)):
        with pytest.raises(error):
            jn.nnx.recalibrate(net, batches)
        chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(net)), before)


def test_recalibrating_what_writes_elsewhere_or_is_called_by_a_method():
    class Net(nn.Module):
        def setup(self):
            self.norm = jn.linen.Norm(BN)
            self.calls = self.variable("cache", "calls", jnp.zeros, ())

        def __call__(self, x, train):
            self.calls.value = self.calls.value + 1
            return self.norm(x, train=train)

        def features(self, x):
            return self.norm(x, train=False)

    variables = Net().init(jax.random.key(0), X, train=False)
    for batch, kwargs in ((X, {"mutable": "cache"}), ({"x": X, "train": False}, {"mutable": ["cache"]}),
                          (X, {"method": "features"}), (X, {"method": Net.features})):  # fmt: skip
        found = jn.linen.recalibrate(Net(), variables, [batch], **kwargs)
        np.testing.assert_allclose(found["batch_stats"]["norm"]["var"], X.astype(float).var((0, 1)), rtol=1e-5)
        assert found["cache"] is variables["cache"]


def test_weights_that_add_up_to_one_in_each_batch_are_no_single_values():
    """Nor are masks that include as many as there are batches, some of them nothing."""
    x = jnp.array([[1.0], [3.0]])
    bn = jn.BatchNorm()
    params, state = bn.init(1)
    step = lambda state, batch: bn.apply(params, state, batch[0], train=False, where=batch[1])[1]
    halves, all_, none = jnp.full((2, 1), 0.5), jnp.ones((2, 1)), jnp.zeros((2, 1))
    for wheres in ((halves, halves), (all_, none), (none, all_)):
        new = jn.recalibrate(step, state, [(x, where) for where in wheres])
        np.testing.assert_allclose([new.mean, new.var], [[2], [1]], rtol=1e-6)
    with pytest.raises(ValueError, match="each of 2 batches gave the state one value per statistic"):
        jn.recalibrate(step, state, [(x[:1], all_[:1]), (x[1:], all_[:1])])


def test_a_batch_brings_random_numbers_of_its_own():
    """What `apply` takes may be in a batch, too; it was lost there."""

    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x + jax.random.normal(self.make_rng("noise"), x.shape)
            return jn.linen.BatchNorm()(x, use_running_average=True)

    model, x = Noisy(), jnp.zeros((4, 1))
    keys = jax.random.split(jax.random.key(1), 2)
    variables = model.init({"params": jax.random.key(0), "noise": keys[0]}, x)
    new = jn.linen.recalibrate(model, variables, [{"x": x, "rngs": {"noise": key}} for key in keys])
    again = jn.linen.recalibrate(model, variables, [{"x": x}] * 2, rngs={"noise": keys[0]})
    assert new["batch_stats"] != again["batch_stats"]
    noise = jnp.concatenate([model.apply(variables, x, rngs={"noise": key}) for key in keys])
    np.testing.assert_allclose(new["batch_stats"]["BatchNorm_0"]["mean"], noise.mean(0) * jnp.sqrt(1 + 1e-5), rtol=1e-5)


def test_a_batch_norm_of_flax_beside_ours_is_no_silent_one():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.ours = jn.nnx.BatchNorm(3, rngs=rngs)
            self.theirs = nnx.BatchNorm(3, rngs=rngs)

        def __call__(self, x):
            return self.theirs(self.ours(x))

    with pytest.raises(ValueError, match=r"no data came to \['theirs'\]"):
        jn.nnx.recalibrate(Net(nnx.Rngs(0)), [X[:, 0]])


def test_a_state_of_nnx_is_refused():
    state = nnx.state(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), nnx.BatchStat)
    with pytest.raises(TypeError, match=r"recalibrate: running statistics are in variables of flax\.nnx"):
        jn.recalibrate(lambda state, x: state, state, [X])
