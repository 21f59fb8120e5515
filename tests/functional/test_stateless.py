"""Laws between the norms, and the tutorial's formulas in its own layout x[n, c, h, w]."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import standard
from hypothesis import given
from hypothesis import strategies as st

import jaxnorm as jn

X = np.random.default_rng(0).standard_normal((4, 6, 5, 3)).astype(np.float32) * 3 + 2
ALIKE = {"rtol": 2e-6, "atol": 2e-6}


def test_instance_norm_literally():
    n, c, h, w = X.shape
    x, y = X.astype(float), np.empty(X.shape)
    gamma, beta, eps = np.arange(1.0, 7), np.arange(6.0), 1e-5
    for i in range(n):
        for j in range(c):
            mu = sum(x[i, j, k, m] for k in range(h) for m in range(w)) / (h * w)
            var = sum((x[i, j, k, m] - mu) ** 2 for k in range(h) for m in range(w)) / (h * w)
            y[i, j] = gamma[j] * (x[i, j] - mu) / np.sqrt(var + eps) + beta[j]
    np.testing.assert_allclose(jn.instance_norm(X, gamma, beta, channel_axis=1), y, rtol=1e-5, atol=1e-5)


def test_batch_norm_literally():
    n, c, h, w = X.shape
    x, y = X.astype(float), np.empty(X.shape)
    gamma, beta, eps = np.arange(1.0, 7), np.arange(6.0), 1e-5
    for j in range(c):
        mu = sum(x[i, j, k, m] for i in range(n) for k in range(h) for m in range(w)) / (n * h * w)
        var = sum((x[i, j, k, m] - mu) ** 2 for i in range(n) for k in range(h) for m in range(w)) / (n * h * w)
        y[:, j] = gamma[j] * (x[:, j] - mu) / np.sqrt(var + eps) + beta[j]
    got, _ = jn.batch_norm(X, None, gamma, beta, train=True, channel_axis=1)
    np.testing.assert_allclose(got, y, rtol=1e-5, atol=1e-5)


def test_gamma_and_beta_can_undo_batch_norm():
    found = jn.moments(X, (0, 2, 3))
    y, _ = jn.batch_norm(X, None, jnp.sqrt(found.var + 1e-5), found.mean, train=True, channel_axis=1)
    np.testing.assert_allclose(y, X, rtol=1e-5, atol=1e-5)


def test_gamma_and_beta_can_undo_instance_norm():
    found = jn.moments(X, (2, 3), keepdims=True)
    y = jn.instance_norm(X, jnp.sqrt(found.var + 1e-5), found.mean, channel_axis=1)
    np.testing.assert_allclose(y, X, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        jn.instance_norm(X, found.std, found.mean, channel_axis=1, epsilon=0.0), X, rtol=1e-5, atol=1e-5
    )


def test_one_group_is_layer_norm_over_all_but_the_batch():
    np.testing.assert_allclose(jn.group_norm(X, groups=1, channel_axis=1), jn.layer_norm(X, axis=(1, 2, 3)), **ALIKE)


def test_a_group_per_channel_is_instance_norm():
    np.testing.assert_allclose(jn.group_norm(X, groups=6, channel_axis=1), jn.instance_norm(X, channel_axis=1), **ALIKE)


def test_instance_norm_of_one_example_is_batch_norm():
    got, _ = jn.batch_norm(X[:1], None, train=True, channel_axis=1)
    np.testing.assert_allclose(jn.instance_norm(X[:1], channel_axis=1), got, **ALIKE)


def test_rms_norm_of_centred_data_is_layer_norm():
    centred = X - X.mean(-1, keepdims=True)
    np.testing.assert_allclose(jn.rms_norm(centred), jn.layer_norm(centred), rtol=1e-5, atol=1e-5)


def test_layouts_are_transposes():
    last = np.moveaxis(X, 1, -1)
    for first, back in (
        (jn.instance_norm(X, channel_axis=1), jn.instance_norm(last)),
        (jn.group_norm(X, groups=3, channel_axis=1), jn.group_norm(last, groups=3)),
        (jn.batch_norm(X, None, train=True, channel_axis=1)[0], jn.batch_norm(last, None, train=True)[0]),
        (jn.layer_norm(X, axis=1), jn.layer_norm(last)),
    ):
        np.testing.assert_allclose(np.moveaxis(first, 1, -1), back, **ALIKE)


@standard
@pytest.mark.parametrize(("factor", "offset"), [(2.0**10, 0.0), (0.25, 3.0), (100.0, -1e4)])
def test_scale_and_shift_of_the_input_leave_the_output(case, factor, offset):
    if isinstance(case.spec, oracle.UNCENTERED) and offset:
        pytest.skip("the mean is part of what it keeps")
    x = np.asarray(case.data())
    moved = (x * factor + offset).astype(np.float32)
    params, state = case.params()
    spec = jax.tree.map(lambda leaf: 0.0, case.spec)
    norm = jax.jit(lambda x: spec.apply(params, state, x, train=True)[0])
    # What float32 rounds off in the moved input shows in the output.
    lost = 4 * np.abs(moved).max() * 2**-24 / (factor * x.std())
    if min(case.shape) > 2:
        np.testing.assert_allclose(norm(moved), norm(x), rtol=1e-5, atol=1e-5 + 10 * lost)


@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple),
    groups=st.sampled_from([1, 2, 3]),
    data=st.data(),
)
def test_any_shape_and_axis(shape, groups, data):
    """Group norm by its definition, for any layout: one label per statistic."""
    channel = data.draw(st.integers(1, len(shape) - 1)) - data.draw(st.sampled_from([0, len(shape)]))
    shape = tuple(n * groups if a == channel % len(shape) else n for a, n in enumerate(shape))
    x = np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)
    spec = jn.GroupNorm(groups=groups, channel_axis=channel)
    assert oracle.ulps(jn.group_norm(x, groups=groups, channel_axis=channel), oracle.normalize(spec, x)) < 64


def test_one_scale_per_example():
    scale = jax.random.uniform(jax.random.key(0), (4, 6))
    got = jn.instance_norm(X, scale.reshape(4, 6, 1, 1), channel_axis=1)
    each = [jn.instance_norm(x[None], s, channel_axis=1)[0] for x, s in zip(X, scale, strict=True)]
    np.testing.assert_allclose(got, np.stack(each), **ALIKE)
    np.testing.assert_allclose(jn.layer_norm(X, 2.0, 1.0), 2 * jn.layer_norm(X) + 1, **ALIKE)
