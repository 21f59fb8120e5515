"""Running statistics: conventions, conditions, dtypes, derivatives."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import jaxnorm as jn

X = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32) * [1, 2, 3] + [5, 0, -1]
X = X.astype(np.float32)
STATE = jn.RunningStats(jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 5.0, 6.0]))


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0, None])
def test_update(momentum, ddof):
    state = STATE._replace(weight_sum=jnp.full(3, 7.0)) if momentum is None else STATE
    _, new = jn.batch_norm(X, state, train=True, momentum=momentum, ddof=ddof)
    keep = 7 / 8 if momentum is None else momentum
    exact = X.astype(float)
    np.testing.assert_allclose(new.mean, keep * np.array(STATE.mean) + (1 - keep) * exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(new.var, keep * np.array(STATE.var) + (1 - keep) * exact.var(0, ddof=ddof), rtol=1e-6)
    np.testing.assert_array_equal(0 if new.weight_sum is None else new.weight_sum, 8 if momentum is None else 0)


def test_no_momentum_is_the_average_of_all_updates():
    _, state = jn.BatchNorm(momentum=None).init(3)
    batches = np.stack([X, 2 * X, X - 4])
    for x in batches:
        _, state = jn.batch_norm(x, state, train=True, momentum=None)
    exact = batches.astype(float)
    np.testing.assert_allclose(state.mean, exact.mean(1).mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.var, exact.var(1).mean(0), rtol=1e-5)


def test_evaluation_uses_the_state_and_keeps_it():
    y, new = jn.batch_norm(X, STATE, train=False, epsilon=0.5)
    want = (X.astype(float) - [1, 2, 3]) / np.sqrt(np.array([4.5, 5.5, 6.5]))
    assert oracle.ulps(y, want) < 4
    chex.assert_trees_all_equal(new, STATE)
    alone = np.stack([jn.batch_norm(x[None], STATE, train=False, epsilon=0.5)[0][0] for x in X])
    np.testing.assert_array_equal(alone, y)


def test_evaluation_before_training_is_near_the_identity():
    for momentum in (0.9, None):
        params, state = jn.BatchNorm(momentum=momentum).init(3)
        y, _ = jn.BatchNorm(momentum=momentum).apply(params, state, X, train=False)
        np.testing.assert_allclose(y, X, rtol=1e-5)


def test_no_state_in_training():
    y, state = jn.batch_norm(X, None, train=True)
    assert state is None
    assert oracle.ulps(y, oracle.normalize(jn.BatchNorm(), X)) < 16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("x_dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_the_state_keeps_its_dtype(dtype, x_dtype):
    """In less than float32 it is not trained at all: tests/state/test_running.py."""
    with jax.enable_x64(True):
        mean, var = (jnp.asarray(np.asarray(v), dtype) for v in STATE[:2])
        y, new = jn.batch_norm(jnp.asarray(X, x_dtype), jn.RunningStats(mean, var), train=True)
    assert y.dtype == x_dtype
    assert [v.dtype for v in new[:2]] == [dtype, dtype]


def test_a_batch_too_small_for_its_variance_moves_the_mean_alone():
    _, new = jn.batch_norm(X[:1], STATE, train=True, ddof=1)
    np.testing.assert_array_equal(new.var, STATE.var)
    assert (new.mean != STATE.mean).all()
    # As weights that are known, these are an error.
    _, new = jax.jit(lambda w: jn.batch_norm(X, STATE, train=True, ddof=1, where=w))(jnp.full((16, 1), 1 / 16))
    np.testing.assert_array_equal(new.var, STATE.var)


def test_nan_in_a_batch_does_not_reach_the_state():
    x = X.copy()
    x[3, 1] = np.nan
    y, new = jn.batch_norm(x, STATE, train=True)
    assert np.isnan(y[:, 1]).all()
    assert np.isfinite(y[:, ::2]).all()
    assert (new.mean[1], new.var[1]) == (STATE.mean[1], STATE.var[1])
    assert new.mean[0] != STATE.mean[0]


def test_what_the_new_state_depends_on():
    def total(x, mean, momentum):
        state = STATE._replace(mean=mean)
        return sum(v.sum() for v in jn.batch_norm(x, state, train=True, momentum=momentum)[1][:2])

    dx, dmean, dmomentum = jax.grad(total, (0, 1, 2))(X, STATE.mean, 0.9)
    np.testing.assert_array_equal(dx, 0)
    np.testing.assert_allclose(dmean, 0.9, rtol=1e-6)
    exact = X.astype(float)
    want = sum(np.array(STATE.mean) - exact.mean(0) + np.array(STATE.var) - exact.var(0))
    np.testing.assert_allclose(dmomentum, want, rtol=1e-5)


def test_evaluation_is_differentiable_in_the_state():
    loss = lambda mean, var: jn.batch_norm(X, STATE._replace(mean=mean, var=var), train=False)[0].sum()
    dmean, dvar = jax.grad(loss, (0, 1))(STATE.mean, STATE.var)
    exact, var = X.astype(float), np.array([4.0, 5, 6]) + 1e-5
    np.testing.assert_allclose(dmean, -16 / np.sqrt(var), rtol=1e-5)
    np.testing.assert_allclose(dvar, -0.5 * (exact - [1, 2, 3]).sum(0) * var**-1.5, rtol=1e-4)


def test_a_grid_of_configurations():
    grid = jn.BatchNorm(epsilon=jnp.array([1e-5, 1e-2]), momentum=jnp.array([0.9, 0.5]))
    params, state = jn.BatchNorm().init(3)
    ys, states = jax.vmap(lambda bn: bn.apply(params, state, X, train=True))(grid)
    for i, momentum in enumerate((0.9, 0.5)):
        np.testing.assert_allclose(states.mean[i], (1 - momentum) * X.astype(float).mean(0), rtol=1e-5, atol=1e-6)
    assert (np.abs(ys[0]) > np.abs(ys[1])).mean() > 0.9
