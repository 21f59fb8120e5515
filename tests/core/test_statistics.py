"""Derivatives of statistics are those of their definition, and statistics of parts make those of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxnorm._core.moments_about import Observations, Statistics
from jaxnorm._core.reduction import Reduction
from jaxnorm._core.statistics import averaged, pooled, statistics, statistics_tangent

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((6, 4, 3)) + 2, jnp.float32)
W = jnp.asarray(RNG.random((6, 4, 1)) + 0.5, jnp.float32)
REDUCTIONS = {
    "channels": Reduction((0, 1)),
    "rows": Reduction((2,)),
    "groups": Reduction((1,), groups=3, group_axis=2),
    "mean 0": Reduction((0, 1), centered=False),
}
each = pytest.mark.parametrize("name", REDUCTIONS)


def numbers(stats):
    """Count, mean and variance; the mean in one number."""
    return [v for v in (stats.count, stats.delta if stats.pivot is None else stats.mean, stats.var) if v is not None]


@each
@pytest.mark.parametrize("where", [None, W, W > 0.9], ids=["all", "weights", "mask"])
def test_derivatives_in_data_to_second_order(name, where):
    f = lambda x: numbers(statistics(REDUCTIONS[name], Observations(x, where)))[1:]
    check_grads(f, (X,), 2, rtol=0.02, atol=0.02)


@each
def test_derivatives_in_weights_and_in_parts(name):
    """Of positive weights, of the variances within parts, and of residuals of their means."""
    f = lambda w, within, residual: numbers(statistics(REDUCTIONS[name], Observations(X, w, within, residual)))
    check_grads(f, (W, jnp.ones_like(X), 0.1 * X), 1, rtol=0.02, atol=0.02)


@each
def test_the_tangent_is_linear_and_of_nothing_is_zero(name):
    reduction, data = REDUCTIONS[name], Observations(X, W)
    stats = statistics(reduction, data)
    tangent = lambda dx, dw: statistics_tangent(reduction, data, stats, Observations(dx, dw))
    zero = tangent(None, None)
    jax.tree.map(lambda v: np.testing.assert_array_equal(v, np.zeros_like(v)), zero)
    assert jax.tree.structure(zero) == jax.tree.structure(stats)
    one, other = tangent(X, None), tangent(None, W)
    both = tangent(X, W)
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a + b, c, rtol=1e-5, atol=1e-5), one, other, both)


def test_parts_make_the_whole_and_their_variances_an_average():
    parts = np.asarray(X, float).reshape(6, 4, 3)
    n = jnp.full((6, 3), 4.0)
    means, within = parts.mean(1), parts.var(1)
    stats = Statistics(n, jnp.asarray(means, jnp.float32), None, jnp.asarray(within, jnp.float32))
    whole, average = pooled(Reduction((0,)), stats), averaged(Reduction((0,)), stats)
    for found in (whole, average):
        assert found.count.tolist() == [[24] * 3]
        np.testing.assert_allclose(found.mean[0], parts.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(whole.var[0], parts.var((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(average.var[0], within.mean(0), rtol=1e-5)


def test_a_part_without_data_has_no_say_whatever_it_holds():
    stats = Statistics(jnp.array([[2.0], [0.0]]), jnp.array([[1.0], [np.nan]]), None, jnp.array([[3.0], [np.nan]]))
    for found in (pooled(Reduction((0,)), stats), averaged(Reduction((0,)), stats)):
        np.testing.assert_array_equal([found.count[0], found.mean[0], found.var[0]], [[2], [1], [3]])
