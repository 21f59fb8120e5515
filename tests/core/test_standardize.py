"""Standardize and affine, by statistics that are given: the formula, its derivatives, and what is no number."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxnorm._core.moments_about import Observations, Statistics
from jaxnorm._core.reduction import Reduction
from jaxnorm._core.standardize import Coefficients, Output, standardize_by_given_stats, standardize_by_own_stats

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((5, 4, 3)) + 2, jnp.float32)
MEAN = jnp.asarray(RNG.standard_normal((1, 1, 3)) + 2, jnp.float32)
VAR = jnp.asarray(RNG.random((1, 1, 3)) + 0.5, jnp.float32)
EPSILON = jnp.float32(1e-2)
SHAPES = {"channels": (1, 1, 3), "examples": (5, 1, 3), "positions": (1, 4, 3), "each": (5, 4, 3), "none": None}


def coefficients(shape):
    if shape is None:
        return Coefficients(None, None, EPSILON)
    return Coefficients(jnp.asarray(RNG.random(shape) + 0.5, jnp.float32), jnp.ones(shape, jnp.float32), EPSILON)


def by_given(x, mean, var, coefficients, where=None, dtype=jnp.float32):
    return standardize_by_given_stats(
        Output(dtype), Observations(x, where), Statistics(None, mean, None, var), coefficients
    )


@pytest.mark.parametrize("name", SHAPES)
def test_the_formula_and_its_derivatives(name):
    given = coefficients(SHAPES[name])
    scale, bias = (1, 0) if given.scale is None else map(np.asarray, given[:2])
    want = (np.asarray(X, float) - MEAN) / np.sqrt(np.asarray(VAR, float) + 1e-2) * scale + bias
    np.testing.assert_allclose(by_given(X, MEAN, VAR, given), want, rtol=1e-5, atol=1e-6)
    check_grads(by_given, (X, MEAN, VAR, given), 2, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", SHAPES)
def test_by_the_batch_it_is_that_by_the_statistics_of_the_batch(name):
    given, axes = coefficients(SHAPES[name]), (0, 1)

    def by_batch(x, given):
        return standardize_by_own_stats(
            Reduction(axes), Output(jnp.dtype("float32")), True, Observations(x), None, given
        )[0]

    def in_two_steps(x, given):
        mean = x.mean(axes, keepdims=True)
        return by_given(x, mean, ((x - mean) ** 2).mean(axes, keepdims=True), given)

    g = jnp.asarray(RNG.standard_normal(X.shape), jnp.float32)
    (y, pull), (want, pull_want) = (jax.vjp(f, X, given) for f in (by_batch, in_two_steps))
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    jax.tree.map(compare, pull(g), pull_want(g))


def test_a_tangent_that_is_not_taken_is_not_computed():
    """Of the bias alone: a sum, without x."""
    given = coefficients((1, 1, 3))
    f = lambda bias: by_given(X, MEAN, VAR, given._replace(bias=bias))
    kept = jax.tree.leaves(jax.vjp(f, given.bias)[1])
    assert all(v.shape != X.shape for v in kept)


@pytest.mark.parametrize(("var", "want"), [(0.0, 0), (np.nan, np.nan), (np.inf, np.nan), (-1.0, np.nan)])
def test_what_is_no_variance_is_no_factor(var, want):
    x, mean, given = jnp.ones((1, 2)), jnp.zeros((1, 2)), Coefficients(None, None, jnp.float32(0))
    np.testing.assert_array_equal(by_given(x, mean, jnp.full((1, 2), var), given), np.full((1, 2), want))


def test_padding_gives_the_bias_and_no_gradient():
    x = X.at[0].set(np.nan).at[1, 0].set(np.inf)
    where = jnp.isfinite(x)
    given = coefficients((1, 1, 3))
    y, pull = jax.vjp(lambda x, given: by_given(x, MEAN, VAR, given, where), x, given)
    np.testing.assert_array_equal(y[0], np.ones((4, 3)))
    dx, dgiven = pull(jnp.where(where, 1.0, 0.0))
    assert jnp.isfinite(dx).all()
    assert not dx[0].any()
    chex.assert_tree_all_finite(dgiven)
