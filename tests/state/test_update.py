"""Updates of running statistics by moments: the same as by a norm that sees the data."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import says

import jaxnorm as jn

X = 2 * jax.random.normal(jax.random.key(0), (6, 5, 3)) + jnp.array([[[0.0, 5.0, -100.0]]])
MASK = jax.random.uniform(jax.random.key(1), (6, 5, 1)) < 0.6
AXES = (0, 1)


def close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), got, want)
    assert jax.tree.map(jnp.result_type, got) == jax.tree.map(jnp.result_type, want)


SPECS = {
    "plain": jn.BatchNorm(momentum=0.9),
    "unbiased": jn.BatchNorm(momentum=0.5, ddof=1),
    "debiased": jn.BatchNorm(momentum=0.9, debias=True, ddof=1),
    "cumulative": jn.BatchNorm(momentum=None),
}


@pytest.mark.parametrize("where", [None, MASK, jnp.zeros_like(MASK)], ids=["all", "masked", "nothing"])
@pytest.mark.parametrize("name", SPECS)
def test_the_state_is_that_of_a_norm(name, where):
    spec = SPECS[name]
    params, state = spec.init(3)
    update = jax.jit(lambda s, m: jn.update_running(s, m, momentum=spec.momentum, ddof=spec.ddof))
    mine = state
    for x in (X, X + 1, 3 * X):
        _, state = spec.apply(params, state, x, train=True, where=where)
        mine = update(mine, jn.moments(x, AXES, where=where))
        close(mine, state)


def test_moments_of_parts_make_one_update():
    _, state = jn.BatchNorm().init(3)
    whole = jn.merge(*(jn.moments(part, AXES) for part in (X[:1], X[1:])))
    _, want = jn.batch_norm(X, state, train=True, momentum=0.9)
    close(jn.update_running(state, whole, momentum=0.9), want)


def test_moments_without_residuals_and_in_several_axes():
    _, state = jn.BatchNorm().init(3)
    m = jn.moments(X, AXES)
    close(jn.update_running(state, jn.Moments(m.count, m.mean, m.m2)), jn.update_running(state, m))
    square = jax.tree.map(lambda v: jnp.stack([v, v]), state)
    both = jn.update_running(square, jax.tree.map(lambda v: jnp.stack([v, 2 * v]), m))
    close(jax.tree.map(lambda v: v[0], both), jn.update_running(state, m))


def test_while_it_accumulates_or_is_recalibrated():
    _, state = jn.BatchNorm().init(3)
    want = got = jn.accumulate(state)
    for part in (X[:2], X[2:]):
        _, want = jn.batch_norm(part, want, train=True)
        got = jn.update_running(got, jn.moments(part, AXES))
    close(jn.commit(got), jn.commit(want))
    step = lambda state, x: jn.update_running(state, jn.moments(x, AXES))
    found = jn.recalibrate(step, state, [X[:2], X[2:]])
    np.testing.assert_allclose(found.var, np.asarray(X, float).var(AXES), rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_changes_nothing(bad):
    _, state = jn.BatchNorm().init(3)
    new = jn.update_running(state, jn.moments(X.at[0, 0, 1].set(bad), AXES))
    assert (new.mean[1], new.var[1]) == (0, 1)
    close(
        jax.tree.map(lambda v: v[::2], new),
        jax.tree.map(lambda v: v[::2], jn.update_running(state, jn.moments(X, AXES))),
    )


def test_derivatives():
    """In the momentum and the old state, and none in the moments."""
    _, state = jn.BatchNorm().init(3)

    def total(state, x, momentum):
        return jn.update_running(state, jn.moments(x, AXES), momentum=momentum).var.sum()

    by_state, by_x, by_momentum = jax.grad(total, argnums=(0, 1, 2))(state, X, 0.75)
    np.testing.assert_array_equal(by_state.var, 0.75)
    np.testing.assert_array_equal(by_x, 0)
    np.testing.assert_allclose(by_momentum, (1 - np.asarray(X, float).var(AXES)).sum(), rtol=1e-5)


STATE = jn.BatchNorm().init(3)[1]
REFUSED = {
    "data": (lambda: jn.update_running(STATE, X), TypeError, "moments is a ArrayImpl, not Moments: jaxnorm.moments("),
    "shape": (
        lambda: jn.update_running(STATE, jn.moments(X, AXES, keepdims=True)),
        ValueError,
        "update_running: moments.mean has shape (1, 1, 3) and state.mean has shape (3,). Take moments of each channel",
    ),
    "state": (lambda: jn.update_running(None, jn.moments(X, AXES)), TypeError, "state is a NoneType, not RunningStats"),
    "momentum": (
        lambda: jn.update_running(STATE, jn.moments(X, AXES), momentum=2.0),
        ValueError,
        "momentum=2.0 is not between 0 and 1",
    ),
    "no weight": (
        lambda: jn.update_running(STATE, jn.moments(X, AXES), momentum=None),
        ValueError,
        "momentum=None averages all updates equally",
    ),
    "ddof": (lambda: jn.update_running(STATE, jn.moments(X, AXES), ddof=-1), ValueError, "ddof=-1 is not an int"),
    "narrow": (
        lambda: jn.update_running(jax.tree.map(lambda v: v.astype(jnp.bfloat16), STATE), jn.moments(X, AXES)),
        TypeError,
        "an average stands still",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, error, words = REFUSED[name]
    says(call, re.escape(words), error=error)
