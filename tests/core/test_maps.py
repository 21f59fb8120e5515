"""Maps other than standardizing: what they keep, and what their padding is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm._core.maps import finite_padding, mapped, root
from jaxnorm._core.moments_about import Observations
from jaxnorm._core.numerics import nan_if_infinite
from jaxnorm._core.standardize import Coefficients, Output

X = jax.random.normal(jax.random.key(0), (4, 6), jnp.bfloat16)
SCALE, BIAS = jnp.linspace(1, 2, 6).reshape(1, 6), jnp.ones((1, 6))


def squared(x, affine, factor):
    return affine(factor * x * x)


def run(x, scale=SCALE, bias=BIAS, where=None, dtype=jnp.bfloat16, offset=0.0, factor=3.0):
    coefficients = Coefficients(scale, bias, None)
    return mapped(squared, Output(dtype, offset), Observations(x, where), coefficients, jnp.float32(factor))


def test_the_affine_part_and_one_rounding():
    y = run(X, offset=0.5)
    want = (0.5 + SCALE) * (3 * X.astype(jnp.float32) ** 2) + BIAS
    np.testing.assert_array_equal(y, want.astype(jnp.bfloat16))
    np.testing.assert_array_equal(run(X, None, None, dtype=jnp.float32), 3 * X.astype(jnp.float32) ** 2)


def test_x_is_kept_as_it_is():
    """And no float32 copy of it, nor a square."""
    _, pull = jax.vjp(run, X)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(pull) if leaf.shape == X.shape} == {"bfloat16"}


def test_equal_formulas_are_traced_once():
    traces = []

    def formula(x, affine):
        traces.append(1)
        return affine(x)

    for _ in range(3):
        mapped(formula, Output(jnp.bfloat16), Observations(X), Coefficients(SCALE, None, None))
    assert len(traces) == 1


@pytest.mark.parametrize("padding", [np.nan, np.inf, -np.inf, 3e38])
def test_padding_reaches_no_gradient(padding):
    where = jnp.arange(6).reshape(1, 6) < 4
    x = jnp.where(where, X.astype(jnp.float32), padding)

    def loss(x, scale):
        y = run(x, scale, where=where, dtype=jnp.float32, factor=0.1)
        return jnp.where(where, y, 0).sum(), y

    (dx, dscale), y = jax.grad(loss, (0, 1), has_aux=True)(x, SCALE)
    assert jnp.isfinite(y).all()
    np.testing.assert_array_equal(dx[:, 4:], 0)
    np.testing.assert_array_equal(dscale[:, 4:], 0)


def test_padding_that_is_finite_stays_what_it_is():
    x = jnp.array([2.0**60, -(2.0**60), 5.0, jnp.nan])
    np.testing.assert_array_equal(finite_padding(x, jnp.zeros(4, bool)), [2.0**60, -(2.0**60), 5, 0])
    np.testing.assert_array_equal(finite_padding(x, jnp.ones(4, bool)), x)
    assert finite_padding(x, None) is x


def test_small_functions():
    np.testing.assert_array_equal(nan_if_infinite(jnp.array([0, 1, jnp.inf, jnp.nan])), [0, 1, jnp.nan, jnp.nan])
    np.testing.assert_array_equal(root(jnp.array([0.0, 4.0])), [0, 2])
    np.testing.assert_array_equal(jax.vmap(jax.grad(root))(jnp.array([0.0, 4.0])), [0, 0.25])
    assert jnp.isnan(root(jnp.nan))
