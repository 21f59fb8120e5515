"""Frozen norms are applied as deployed: their state stays, whatever they are told."""

import copy
import pickle
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CASES
from flax import linen as nn
from flax import nnx

import jaxnorm as jn

X = jax.random.normal(jax.random.key(0), (8, 5, 3)) * 2 + 1
STATE = jn.RunningStats(jnp.array([0.5, -1.0, 2.0]), jnp.array([1.5, 0.5, 3.0]))
PARAMS = jn.Affine(jnp.array([1.0, 2.0, 3.0]), jnp.array([0.0, 1.0, -1.0]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_training_is_evaluation_and_the_state_is_the_same(case):
    frozen = jn.freeze(case.spec)
    params, state = frozen.init(frozen.features(case.shape))
    x = case.data()
    want, _ = case.spec.apply(params, state, x, train=False)
    for train in (True, False):
        y, new = frozen.apply(params, state, x, train=train)
        assert new is state
        np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("trained", [False, True])
def test_gradients_reach_x_and_what_is_trained(trained):
    norm = jn.freeze(jn.BatchNorm(), trained=trained)
    grads = jax.grad(lambda params, x: (norm.apply(params, STATE, x, train=True)[0] ** 2).sum(), (0, 1))(PARAMS, X)
    thawed = jax.grad(lambda params, x: (norm.spec.apply(params, STATE, x, train=False)[0] ** 2).sum(), (0, 1))(
        PARAMS, X
    )
    np.testing.assert_array_equal(grads[1], thawed[1])
    for got, want in zip(grads[0], thawed[0], strict=True):
        np.testing.assert_array_equal(got, want if trained else 0 * want)


def test_it_is_a_value_with_the_leaves_of_the_norm():
    spec = jn.BatchNorm(momentum=0.9, channel_axis=1)
    frozen = jn.freeze(spec)
    assert isinstance(frozen, jn.Spec)
    assert jax.tree.leaves(frozen) == jax.tree.leaves(spec)
    assert frozen == jn.freeze(jn.BatchNorm(momentum=0.9, channel_axis=1)) != jn.freeze(spec, trained=True)
    assert hash(frozen) == hash(jn.freeze(spec))
    assert frozen.spec is spec
    assert jn.freeze(frozen, trained=True) == jn.freeze(spec, trained=True)
    assert (frozen.momentum, frozen.channel_axis, frozen.use_scale) == (0.9, 1, True)
    for other in (pickle.loads(pickle.dumps(frozen)), copy.deepcopy(frozen)):
        assert other == frozen
    with pytest.raises(AttributeError, match="nothing"):
        _ = frozen.nothing


def test_epsilon_is_vmapped_and_differentiated():
    apply = lambda norm: norm.apply(PARAMS, STATE, X, train=True)[0]
    many = jn.freeze(jn.BatchNorm(epsilon=jnp.array([1e-5, 0.1, 1.0])))
    ys = jax.vmap(apply, in_axes=(many.in_axes(),))(many)
    for y, epsilon in zip(ys, (1e-5, 0.1, 1.0), strict=True):
        np.testing.assert_allclose(
            y,
            apply(jn.freeze(jn.BatchNorm(epsilon=epsilon))),
            rtol=1e-6,
        )
    slope = jax.grad(lambda norm: apply(norm).sum())(jn.freeze(jn.BatchNorm(epsilon=0.1)))
    assert slope.spec.epsilon != 0
    assert slope.spec.momentum == 0


def test_a_users_norm_can_be_frozen():
    @dataclass
    class Halve:
        axis_name: str | None = "no such axis"

        def init(self, features, param_dtype=None):
            return None, jn.RunningStats(jnp.zeros(features), jnp.ones(features))

        def apply(self, params, state, x, *, train, where=None):
            return x / (1 if train else 2), state._replace(mean=state.mean + 1)

    norm = jn.freeze(Halve())
    _, state = norm.init(3)
    y, new = norm.apply(None, state, X, train=True)
    np.testing.assert_array_equal(y, X / 2)
    assert new is state
    model = jn.linen.Norm(norm, train=True)
    np.testing.assert_array_equal(model.apply(model.init(jax.random.key(0), X), X), X / 2)


@pytest.mark.parametrize("value", [jn.BatchNorm, nn.BatchNorm(), 3])
def test_what_is_no_spec_is_an_error(value):
    with pytest.raises(TypeError, match="freeze: spec"):
        jn.freeze(value)


def test_accumulating_and_recalibrating_leave_it_alone():
    """Beside a norm that is recalibrated, and by itself."""
    norms = {"frozen": jn.freeze(jn.BatchNorm()), "free": jn.BatchNorm()}

    def step(states, x):
        return {name: norm.apply(PARAMS, states[name], x, train=False)[1] for name, norm in norms.items()}

    states = dict.fromkeys(norms, STATE)
    new = jn.recalibrate(step, states, [X, X + 1])
    np.testing.assert_allclose(new["free"].mean, X.mean((0, 1)) + 0.5, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, new["frozen"], STATE)
    alone = jn.recalibrate(lambda state, x: norms["frozen"].apply(PARAMS, state, x, train=True)[1], STATE, [X])
    jax.tree.map(np.testing.assert_array_equal, alone, STATE)
    part = jn.accumulate(STATE)
    y, same = norms["frozen"].apply(PARAMS, part, X, train=True)
    assert same is part
    np.testing.assert_array_equal(y, norms["free"].apply(PARAMS, STATE, X, train=False)[0])


def test_recalibrate_within_a_scan_and_a_conditional():
    """What a frozen norm gives back has the structure of what it was given."""
    frozen, free = jn.freeze(jn.BatchNorm()), jn.BatchNorm()

    def step(states, x):
        once = lambda state, x: (frozen.apply(PARAMS, state, x, train=True)[1], 0)
        state, _ = jax.lax.scan(once, states["frozen"], jnp.stack([x, x]))
        state = jax.lax.cond(x.sum() > 0, lambda s: once(s, x)[0], lambda s: s, state)
        return {"frozen": state, "free": free.apply(PARAMS, states["free"], x, train=False)[1]}

    new = jn.recalibrate(step, {"frozen": STATE, "free": STATE}, [X, X + 1])
    jax.tree.map(np.testing.assert_array_equal, new["frozen"], STATE)
    np.testing.assert_allclose(new["free"].mean, X.mean((0, 1)) + 0.5, rtol=1e-5)


class Pair(nn.Module):
    """A norm that is frozen, called twice, and one that is not."""

    @nn.compact
    def __call__(self, x, train):
        frozen = jn.linen.Norm(jn.freeze(jn.BatchNorm(axis_name="no such axis")), train=train)
        return jn.linen.Norm(jn.BatchNorm(), train=train)(frozen(frozen(x)))


def test_linen_needs_no_mutable_collection_and_recalibrates_the_others():
    frozen = jn.linen.Norm(jn.freeze(jn.BatchNorm()), train=True)
    variables = frozen.init(jax.random.key(0), X)
    np.testing.assert_allclose(frozen.apply(variables, X), X, rtol=1e-4)
    model = Pair()
    variables = model.init(jax.random.key(0), X, False)
    new = jn.linen.recalibrate(model, variables, [X, X + 1])
    jax.tree.map(np.testing.assert_array_equal, new["batch_stats"]["Norm_0"], dict(variables["batch_stats"]["Norm_0"]))
    np.testing.assert_allclose(new["batch_stats"]["Norm_1"]["mean"], X.mean((0, 1)) + 0.5, rtol=1e-4)
    with pytest.raises(ValueError, match="scale is given in the call"):
        frozen.apply(variables, X, scale=jnp.ones(3))


def test_nnx_is_closed_over_in_jit_and_recalibrates_the_others():
    class Net(nnx.Module):
        def __init__(self):
            self.frozen = jn.nnx.Norm(jn.freeze(jn.BatchNorm()), 3)
            self.free = jn.nnx.Norm(jn.BatchNorm(), 3)

        def __call__(self, x):
            return self.free(self.frozen(x))

    model = Net()
    model.train()
    np.testing.assert_allclose(nnx.jit(lambda x: model.frozen(x))(X), X, rtol=1e-4)
    jn.nnx.recalibrate(model, [X, X + 1])
    np.testing.assert_array_equal(model.frozen.mean[...], 0)
    np.testing.assert_allclose(model.free.mean[...], X.mean((0, 1)) + 0.5, rtol=1e-4)
    jn.nnx.accumulate(model)
    model(X)
    jn.nnx.commit(model)
    np.testing.assert_array_equal(model.frozen.mean[...], 0)


def test_an_optimizer_with_decay_wants_a_mask():
    """`stop_gradient` does not stop weight decay: the docs say so, and show this mask."""
    norm = jn.freeze(jn.BatchNorm())
    loss = lambda params: norm.apply(params, STATE, X, train=True)[0].sum()
    grads = jax.grad(loss)(PARAMS)

    def step(optimizer):
        with jax.numpy_dtype_promotion("standard"):
            updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
        return optax.apply_updates(PARAMS, updates)

    assert (step(optax.adamw(0.1, weight_decay=0.1)).scale != PARAMS.scale).all()
    jax.tree.map(
        np.testing.assert_array_equal, step(optax.adamw(0.1, weight_decay=0.1, mask=jn.Affine(False, False))), PARAMS
    )
