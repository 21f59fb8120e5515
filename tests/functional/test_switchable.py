"""Switchable norm: each of its three alone, and shares of them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import close

import jaxnorm as jn

pytestmark = pytest.mark.long
X = jax.random.normal(jax.random.key(0), (4, 5, 6)) * jnp.linspace(1, 3, 4).reshape(-1, 1, 1)
X += jnp.arange(6.0).reshape(1, 1, 6)
NORM = jn.SwitchableNorm()
ALONE = {"instance": 0, "layer": 1, "batch": 2}


def step(params, x, state=None, train=True, norm=NORM, **kw):
    return jax.jit(lambda p, s, x: norm.apply(p, s, x, train=train, **kw))(params, state or norm.init(6)[1], x)


def only(name, large=100.0):
    logits = large * jax.nn.one_hot(ALONE[name], 3)
    return NORM.init(6)[0]._replace(mean_logits=logits, var_logits=logits)


@pytest.mark.parametrize("name", ALONE)
def test_each_alone(name):
    y, state = step(only(name), X)
    want = {
        "instance": lambda x: jn.instance_norm(x),
        "layer": lambda x: jn.layer_norm(x, axis=(1, 2)),
        "batch": lambda x: jn.batch_norm(x, None, train=True)[0],
    }[name](X)
    close(y, want, 2e-6)
    close(state.mean, jn.batch_norm(X, NORM.init(6)[1], train=True)[1].mean, 1e-6)


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_shares_are_accurate_beside_a_large_mean(mean):
    params = NORM.init(6)[0]._replace(mean_logits=jnp.array([0.3, -1.0, 0.5]), var_logits=jnp.array([1.0, 0.0, 2.0]))
    x = np.float32(np.asarray(X) - np.arange(6) + mean)
    exact = np.asarray(x, float)
    shares = [np.exp(np.asarray(v, float)) / np.exp(np.asarray(v, float)).sum() for v in params[2:]]
    over = [(1,), (1, 2), (0, 1)]
    center = sum(s * exact.mean(axes, keepdims=True) for s, axes in zip(shares[0], over, strict=True))
    var = sum(s * exact.var(axes, keepdims=True) for s, axes in zip(shares[1], over, strict=True))
    close(step(params, x)[0], (exact - center) / np.sqrt(var + 1e-5), 5e-6)


def test_evaluation_has_the_running_statistics_of_the_batch():
    state = jn.RunningStats(jnp.arange(6.0), jnp.linspace(1, 2, 6))
    y, same = NORM.apply(only("batch"), state, X, train=False)
    close(y, jn.batch_norm(X, state, train=False)[0], 1e-6)
    assert same is state


def test_logits_learn():
    g = jax.grad(lambda p: jnp.sin(step(p, X)[0]).sum())(NORM.init(6)[0])
    # A softmax does not see what all logits have in common.
    for logits in (g.mean_logits, g.var_logits):
        assert np.abs(logits).max() > 1e-3
        np.testing.assert_allclose(logits.sum(), 0, atol=1e-5 * np.abs(logits).max() + 1e-6)


def test_masked_as_if_deleted():
    where = jnp.arange(5)[:, None] < 3
    where = jnp.broadcast_to(where, (4, 5, 1))
    y, state = step(NORM.init(6)[0], jnp.where(where, X, jnp.nan), where=where)
    want, want_state = step(NORM.init(6)[0], X[:, :3])
    close(y[:, :3], want, 2e-6)
    chex.assert_trees_all_close(state, want_state, rtol=1e-6, atol=1e-6)


def test_a_batch_over_devices():
    norm = jn.SwitchableNorm(axis_name="d")
    params, state = norm.init(6)
    y, new = jax.vmap(lambda x: norm.apply(params, state, x, train=True), axis_name="d")(X.reshape(2, 2, 5, 6))
    want, want_new = step(params, X)
    close(y.reshape(X.shape), want, 2e-6)
    close(new.mean[0], want_new.mean, 1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_stays_visible(bad):
    x = np.array(X)
    x[1, 2, 3] = bad
    y, state = step(NORM.init(6)[0], x)
    spoilt = np.zeros(x.shape, bool)
    spoilt[1], spoilt[..., 3] = True, True
    np.testing.assert_array_equal(np.isnan(y), spoilt)
    assert state.mean[3] == 0


@pytest.mark.parametrize("name", ["mean_logits", "var_logits"])
def test_errors(name):
    params, state = NORM.init(6)
    for bad in (jnp.ones(2), jnp.ones((3, 1)), jnp.ones(3, int)):
        with pytest.raises(ValueError, match=f"SwitchableNorm: {name} has shape .*3 real numbers"):
            NORM.apply(params._replace(**{name: bad}), state, X, train=True)
    with pytest.raises(ValueError, match="was initialised for 6 features"):
        NORM.apply(params, state, X[..., :4], train=True)
