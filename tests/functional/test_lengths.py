"""Vectors of length 1 beside PyTorch and ONNX, division by the deviation beside timm, and dynamic tanh."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from references import close, under

import jaxnorm as jn

pytestmark = pytest.mark.long
X = jax.random.normal(jax.random.key(0), (3, 4, 6))
ORDERS = (1, 1.5, 2, 3.5, math.inf)
orders = pytest.mark.parametrize("order", ORDERS)


@pytest.mark.parametrize("order", [1, 2, 3.5, math.inf])
def test_lengths_as_torch(order):
    torch = under("timm_norms", "torch")
    close(jn.unit_norm(jnp.float32(torch["x"]), axis=1, order=order), torch[f"normalize {order}"], 1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "l2normalization_axis_0", "l2normalization_axis_1", "l1normalization_axis_0", "l1normalization_axis_1",
        "l1normalization_axis_last", "lpnormalization_default",
    ],
)  # fmt: skip
def test_lengths_as_onnx(name):
    case = under("onnx_norms", f"test_{name}")
    axis, order = (int(case.get(f"LpNormalization {key}", v)) for key, v in (("axis", -1), ("p", 2)))
    close(jn.unit_norm(case["x"], axis=axis, order=order), case["y"], 1e-6)


@orders
def test_lengths_are_one_at_any_size(order):
    """No power overflows or vanishes on the way: to the limits of a square in float32."""
    for size in (1e-15, 1.0, 1e15):
        y = np.asarray(jn.unit_norm(size * X, order=order), float)
        np.testing.assert_allclose(np.linalg.norm(y, order, -1), 1, rtol=1e-6)


@orders
def test_zero_has_no_direction_and_no_derivative(order):
    f = lambda x: jn.unit_norm(x, order=order)
    x = X.at[0, 0].set(0).at[1, :, 2].set(0)
    y, pull = jax.vjp(f, x)
    (dx,) = pull(jnp.ones_like(y))
    np.testing.assert_array_equal(y[0, 0], 0)
    np.testing.assert_array_equal(dx[0, 0], 0)
    curved = jax.jvp(jax.grad(lambda x: jnp.sin(f(x)).sum()), (x,), (X,))[1]
    assert jnp.isfinite(dx).all()
    assert jnp.isfinite(curved).all()


@orders
def test_a_length_does_not_change_along_a_gradient(order):
    """y does not depend on the length of x: its derivative along x is 0."""
    y, dy = jax.jvp(lambda x: jn.unit_norm(x, order=order), (X,), (X,))
    np.testing.assert_allclose(dy, 0, atol=1e-6)
    assert jnp.abs(y).max() <= 1 + 1e-6


@orders
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_stays_visible(order, bad):
    x = np.array(X)
    x[1, 2, 3] = bad
    spoilt = np.zeros(x.shape, bool)
    spoilt[1, 2] = True
    np.testing.assert_array_equal(np.isnan(jn.unit_norm(x, order=order)), spoilt)


@orders
def test_features_over_devices(order):
    halves = jnp.stack(jnp.split(X, 2, -1))
    f = lambda x: jn.unit_norm(x, order=order, axis_name="d")
    y = jax.vmap(f, axis_name="d")(halves)
    close(jnp.concatenate(y, -1), jn.unit_norm(X, order=order), 1e-6)
    whole = jax.grad(lambda x: jnp.sin(jn.unit_norm(x, order=order)).sum())(X)
    parts = jax.grad(lambda x: jnp.sin(jax.vmap(f, axis_name="d")(x)).sum())(halves)
    close(jnp.concatenate(parts, -1), whole, 1e-6)


def test_several_that_are_the_largest_share_the_derivative():
    x = jnp.array([2.0, -2.0, 1.0])
    dx = jax.grad(lambda x: jn.unit_norm(x, order=math.inf)[2])(x)
    close(dx, [-1 / 8, 1 / 8, 1 / 2], 1e-6)


@given(order=st.sampled_from(ORDERS), weights=st.lists(st.integers(0, 3), min_size=6, max_size=6).filter(any))
def test_integer_weights_are_repetitions(order, weights):
    x = np.asarray(X[0, 0])
    y = jn.unit_norm(x, order=order, where=np.array(weights, np.float32))
    length = np.linalg.norm(np.repeat(x.astype(float), weights), order)
    np.testing.assert_allclose(np.asarray(y) * length, x, rtol=1e-5)


def test_division_by_the_deviation_as_timm():
    """Theirs is the unbiased one, and ε 1e-6 both times."""
    case = under("timm_norms", "SimpleNorm")
    y, pull = jax.vjp(lambda x: jn.simple_norm(x, case["param weight"], ddof=1), jnp.float32(case["x"]))
    close(y, case["y"])
    close(pull(jnp.cos(y))[0], case["dx"])


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_a_deviation_is_accurate_beside_a_large_mean(mean):
    x = np.float32(np.asarray(X) + mean)
    exact = np.asarray(x, float)
    close(jn.simple_norm(x), exact / np.sqrt(exact.var(-1, keepdims=True) + 1e-6), 2e-6)


def test_a_constant_has_no_deviation_to_divide_by():
    f = lambda x: jn.simple_norm(x, bias=2.0, epsilon=0.0)
    x = jnp.full((2, 4), 7.5)
    np.testing.assert_array_equal(f(x), 2)
    assert jnp.isfinite(jax.grad(lambda x: f(x).sum())(x)).all()


def test_dynamic_tanh_is_its_formula():
    scale, bias = jnp.linspace(0.5, 2, 6), jnp.linspace(-1, 1, 6)
    y = jn.dynamic_tanh(X, scale, bias, 0.7)
    close(y, np.asarray(scale) * np.tanh(0.7 * np.asarray(X, float)) + np.asarray(bias), 1e-6)
    per_channel = jn.dynamic_tanh(X, alpha=scale)
    close(per_channel, np.tanh(np.asarray(scale) * np.asarray(X, float)), 1e-6)
    assert jn.DynamicTanh(initial_alpha=0.8).init(6)[0].alpha == jnp.float32(0.8)


def test_dynamic_tanh_keeps_x_alone():
    x = X.astype(jnp.bfloat16)
    _, pull = jax.vjp(lambda x: jn.dynamic_tanh(x), x)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(pull) if leaf.size > 1} == {"bfloat16"}
