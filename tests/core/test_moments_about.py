"""Moments about any pivot: as accurate as it is near to the mean, and no less."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm._core.moments_about import Observations, moments_about, weighted_means
from jaxnorm._core.reduction import Reduction

RNG = np.random.default_rng(0)
X = (100 + 3 * RNG.standard_normal((512, 4))).astype(np.float32)
WEIGHTS = RNG.integers(0, 4, X.shape).astype(np.float32)
ROWS = Reduction((0,))


@pytest.mark.parametrize("where", [None, WEIGHTS > 0, WEIGHTS], ids=["all", "mask", "weights"])
@pytest.mark.parametrize("pivot", [None, 99.0, 100.0, 130.0, 1000.0])
def test_the_error_is_what_the_distance_of_the_pivot_costs(pivot, where):
    x = X if where is None else np.where(where > 0, X, np.nan)
    data = Observations(jnp.asarray(x), None if where is None else jnp.asarray(where))
    about = None if pivot is None else jnp.full((1, 4), pivot, jnp.float32)
    count, _, delta, var = moments_about(ROWS, data, about)
    w = np.ones(X.shape) if where is None else where.astype(float)
    exact_mean = (w * X.astype(float)).sum(0) / w.sum(0)
    exact = (w * (X - exact_mean) ** 2).sum(0) / w.sum(0)
    np.testing.assert_array_equal(count[0], w.sum(0))
    distance = exact_mean - (pivot or 0)
    np.testing.assert_allclose(np.asarray(delta[0], float), distance, rtol=1e-6, atol=1e-5)
    # A sum of 512 terms in some order loses four units more than one rounding.
    assert (abs(var[0] / exact - 1) < 8 * 2.0**-24 * (1 + distance**2 / exact)).all()


def test_a_mean_held_at_zero_has_no_delta():
    count, pivot, delta, square = moments_about(ROWS._replace(centered=False), Observations(jnp.asarray(X)), None)
    assert pivot is delta is None
    assert count.tolist() == [[512] * 4]
    np.testing.assert_allclose(square[0], (X.astype(float) ** 2).mean(0), rtol=1e-6)


def test_parts_count_with_what_is_within_them_and_with_their_residuals():
    """Means of parts as data: pairs of rows, whose means are kept in two numbers."""
    pairs = X.reshape(256, 2, 4).astype(float)
    means, within = pairs.mean(1), pairs.var(1).astype(np.float32)
    near = means.astype(np.float32)
    data = Observations(*map(jnp.asarray, (near, np.full_like(near, 2), within, (means - near).astype(np.float32))))
    count, _, delta, var = moments_about(ROWS, data, jnp.full((1, 4), 100, jnp.float32))
    np.testing.assert_array_equal(count, [[512] * 4])
    np.testing.assert_allclose(delta[0], X.astype(float).mean(0) - 100, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(var[0], X.astype(float).var(0), rtol=1e-6)


def test_a_known_count_is_taken_as_it_is():
    data = Observations(jnp.asarray(X), jnp.asarray(WEIGHTS))
    count, means = weighted_means(ROWS, data, jnp.full((1, 4), 10.0), data.x)
    np.testing.assert_array_equal(count, [[10] * 4])
    np.testing.assert_allclose(means[0][0], (WEIGHTS * X).sum(0) / 10, rtol=1e-6)
    assert not jax.make_jaxpr(lambda d: weighted_means(ROWS, d, d.x[:1], d.x)[1])(Observations(data.x)).consts
