"""Batch renormalization beside Keras's, its limits, and a critic that is trained with it."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from references import close, under

import jaxnorm as jn

pytestmark = pytest.mark.long
X = 2 * jax.random.normal(jax.random.key(0), (16, 6)) + 3
STATE = jn.RunningStats(jnp.linspace(-1, 4, 6), jnp.linspace(0.5, 6, 6))


@pytest.mark.parametrize(("name", "r_max", "d_max"), [("tight", 1.5, 0.5), ("loose", 3, 5), ("none", np.inf, np.inf)])
def test_as_keras(name, r_max, d_max):
    case = {key: jnp.float32(v) for key, v in under("keras_renorm", name).items()}
    state = jn.RunningStats(case["renorm_mean"], case["renorm_stddev"] ** 2 - 1e-3)

    def f(x, scale, bias):
        return jn.batch_renorm(x, state, scale, bias, train=True, epsilon=1e-3, r_max=r_max, d_max=d_max)[0]

    y, pull = jax.vjp(f, case["x"], case["gamma"], case["beta"])
    close(y, case["y"])
    for got, name in zip(pull(jnp.cos(y)), ("dx", "dgamma", "dbeta"), strict=True):
        close(got, case[name], 2e-5)


def test_between_batch_norm_and_evaluation():
    """Without a correction it is batch norm, and without limits what evaluation gives."""
    as_batch, new = jn.batch_renorm(X, STATE, train=True, r_max=1.0, d_max=0.0)
    want, want_new = jn.batch_norm(X, STATE, train=True)
    chex.assert_trees_all_close((as_batch, new), (want, want_new), rtol=1e-5, atol=1e-6)
    free, _ = jn.batch_renorm(X, STATE, train=True, r_max=np.inf, d_max=np.inf)
    evaluated, same = jn.batch_renorm(X, STATE, train=False)
    close(free, evaluated)
    close(evaluated, jn.batch_norm(X, STATE, train=False)[0], 1e-6)
    assert same is STATE


def test_limits_are_numbers_to_schedule():
    """One program for all of them, and a vmap over them."""
    norm = jn.BatchRenorm()
    params, state = norm.init(6)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(r_max, d_max):
        return dataclasses.replace(norm, r_max=r_max, d_max=d_max).apply(params, state, X, train=True)[0]

    grid = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.0, 1.0, 5.0])
    each = [step(r, d) for r, d in zip(*grid, strict=True)]
    chex.assert_trees_all_close(jax.vmap(step)(*grid), jnp.stack(each), rtol=1e-6, atol=1e-6)
    assert not np.allclose(each[0], each[2])


def test_a_batch_far_away_is_as_accurate_as_its_statistics():
    x = np.float32(np.asarray(X) + 1e4)
    state = STATE._replace(mean=STATE.mean + 1e4)
    exact, mean, var = np.asarray(x, float), np.asarray(state.mean, float), np.asarray(state.var, float)
    free = {"r_max": np.inf, "d_max": np.inf}
    close(jn.batch_renorm(x, state, train=True, **free)[0], (exact - mean) / np.sqrt(var + 1e-5), 1e-5)


def test_parts_of_a_batch_are_corrected_towards_the_statistics_before_it():
    norm = jn.BatchRenorm(r_max=1.1, d_max=0.1)
    params, _ = norm.init(6)
    state = jn.accumulate(STATE)
    for part in jnp.split(X, 2):
        y, state = norm.apply(params, state, part, train=True)
    close(y, norm.apply(params, STATE, X[8:], train=True)[0], 1e-6)
    close(state.mean, jn.batch_norm(X, STATE, train=True)[1].mean)


def test_recalibrated_it_uses_the_batch():
    norm = jn.BatchRenorm()
    params, state = norm.init(6)
    found = jn.recalibrate(lambda state, x: norm.apply(params, state, x, train=False)[1], state, jnp.split(X, 4))
    close(found.mean, np.asarray(X).mean(0))
    close(found.var, np.asarray(X).var(0))


def test_a_batch_over_devices():
    run = lambda x: jn.batch_renorm(x, STATE, train=True, axis_name="d")
    y, new = jax.vmap(run, axis_name="d")(X.reshape(4, 4, 6))
    want, want_new = jn.batch_renorm(X, STATE, train=True)
    close(y.reshape(16, 6), want)
    close(new.var[0], want_new.var)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_a_running_variance_that_is_none_stays_visible(bad):
    y, _ = jn.batch_renorm(X, STATE._replace(var=STATE.var.at[2].set(bad)), train=True)
    np.testing.assert_array_equal(np.isnan(y).any(0), np.arange(6) == 2)


def test_beside_a_running_deviation_of_zero():
    """The limits; and without them the bias, as in evaluation."""
    x, state = jnp.array([[1.0, 2.0], [3.0, 2.0]]), jn.RunningStats(jnp.zeros(2), jnp.zeros(2))
    y, _ = jn.batch_renorm(x, state, train=True, epsilon=0.0, r_max=3.0, d_max=5.0)
    np.testing.assert_allclose(y, [[2, 5], [8, 5]], rtol=1e-6)
    for train in (True, False):
        y, _ = jn.batch_renorm(x, state, train=train, epsilon=0.0, r_max=np.inf, d_max=np.inf)
        np.testing.assert_array_equal(y, 0)


def test_scales_of_each_position_are_kept_as_they_are():
    x, scale = jax.random.normal(jax.random.key(2), (2, 16, 6), jnp.bfloat16)
    _, pull = jax.vjp(lambda x, s: jn.batch_renorm(x, STATE, s, train=True)[0], x, scale)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(pull) if leaf.shape == x.shape} == {"bfloat16"}


def test_a_critic_without_a_target_network():
    """CrossQ (Bhatt et al. 2024): both batches of a step in one call, so that targets are normalized as what they
    are compared with. The value of a chain of states, to its definition."""
    gamma, states = 0.9, 8
    exact = np.linalg.solve(np.eye(states) - gamma * np.roll(np.eye(states), 1, 1), np.arange(states) / states)
    features = 5 * jax.random.normal(jax.random.key(1), (states, 12)) + 20
    norm = jn.BatchRenorm(r_max=3.0, d_max=5.0, momentum=0.99)
    keys = jax.random.split(jax.random.key(2), 2)
    params = {
        "in": norm.init(12)[0],
        "hidden": jax.random.normal(keys[0], (12, 32)) / 12**0.5,
        "between": norm.init(32)[0],
        "out": jax.random.normal(keys[1], (32, 1)) / 32**0.5,
    }
    optimizer = optax.adam(3e-3)

    def value(params, running, x, train):
        y, first = norm.apply(params["in"], running[0], x, train=train)
        y, second = norm.apply(params["between"], running[1], jax.nn.relu(y @ params["hidden"]), train=train)
        return (y @ params["out"])[:, 0], (first, second)

    @jax.jit
    def step(carry, key):
        params, running, moments = carry
        here = jax.random.randint(key, (32,), 0, states)
        there = (here + 1) % states

        def loss(params):
            both, new = value(params, running, features[jnp.concatenate([here, there])], True)
            now, after = jnp.split(both, 2)
            return ((now - jax.lax.stop_gradient(here.astype(float) / states + gamma * after)) ** 2).mean(), new

        grads, new = jax.grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(params, updates), new, moments), None

    start = params, (norm.init(12)[1], norm.init(32)[1]), optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        (params, running, _), _ = jax.lax.scan(step, start, jax.random.split(jax.random.key(3), 4000))
    found, _ = value(params, running, features, False)
    # Values lie between 3.5 and 5.5.
    np.testing.assert_allclose(found, exact, atol=0.15)
