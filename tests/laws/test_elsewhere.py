"""Defects known from other libraries (Flax, Haiku, Equinox, Keras, PyTorch), as they would show here."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import one_each

import jaxnorm as jn

LARGE_MEAN = (np.random.default_rng(0).standard_normal((256, 4)) + 1e4).astype(np.float32)


def test_local_means_are_merged_by_their_counts():
    """Flax averages them: shards {1, 2, 3, 4} and {100} give 51.25, and an empty shard makes all NaN."""
    x = jnp.array([[1.0, 2, 3, 4], [100, 0, 0, 0], [0, 0, 0, 0]])
    where = jnp.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    found = jax.vmap(lambda x, w: jn.moments(x, where=w, axis_name="shard"), axis_name="shard")(x, where)
    np.testing.assert_allclose(found.mean, 22.0)
    np.testing.assert_allclose(found.var, np.var([1, 2, 3, 4, 100]), rtol=1e-6)


def test_variance_beside_a_large_mean():
    """E[x²] − E[x]² gives 0, 16, or less than nothing (Flax by default; Haiku, with NaN to follow)."""
    naive = (LARGE_MEAN**2).mean(0) - LARGE_MEAN.mean(0) ** 2
    assert (np.abs(naive - 1) > 0.5).any()
    y, state = jn.batch_norm(LARGE_MEAN, jn.BatchNorm().init(4)[1], train=True, momentum=0.0)
    np.testing.assert_allclose(state.var, LARGE_MEAN.astype(float).var(0), rtol=1e-6)
    assert oracle.ulps(y, oracle.normalize(jn.BatchNorm(), LARGE_MEAN)) < 16


def test_a_batch_of_padding_does_not_poison_the_running_statistics():
    """Flax: NaN for good."""
    state = jn.BatchNorm().init(4)[1]
    y, new = jn.batch_norm(LARGE_MEAN, state, train=True, where=np.zeros((256, 1), bool))
    assert np.isfinite(y).all()
    chex.assert_trees_all_equal(new, state)
    sample = jn.instance_norm(jnp.ones((2, 5, 3)), where=jnp.array([True, False]).reshape(2, 1, 1))
    assert np.isfinite(sample).all()


@one_each
def test_nan_in_the_padding_leaves_the_gradient_alone(case):
    """Flax: NaN at valid positions, by 0 · NaN."""
    where = np.ones(case.shape, bool)
    where.flat[-1] = False
    x = jnp.where(where, case.data(), jnp.nan)
    loss = lambda x: jnp.where(where, case.norm(where=where)(x) ** 2, 0).sum()
    assert np.isfinite(jax.jit(jax.grad(loss))(x)).all()


def test_a_mask_without_channels_is_an_error():
    """Flax: (N, H, W) broadcasts along the wrong axes of (N, H, W, C) where sizes agree."""
    with pytest.raises(ValueError, match="where has shape"):
        jn.batch_norm(jnp.ones((4, 4, 4, 4)), None, train=True, where=jnp.ones((4, 4, 4), bool))


def test_weights_are_not_booleans():
    """Flax casts them."""
    x = jnp.array([0.0, 1.0])
    np.testing.assert_allclose(jn.moments(x, where=jnp.array([0.25, 0.75])).mean, 0.75)


def test_the_first_updates_are_not_extrapolated():
    """Equinox: with true variance 4.07, evaluation uses 103 after one step."""
    x = 2 * jax.random.normal(jax.random.key(0), (512, 1))
    _, one = jn.batch_norm(x, jn.BatchNorm().init(1)[1], train=True, momentum=0.99)
    np.testing.assert_allclose(one.var, 0.99 + 0.01 * np.var(np.asarray(x, float)), rtol=1e-5)
    for spec in (jn.BatchNorm(momentum=None), jn.BatchNorm(debias=True)):
        _, first = spec.apply(*spec.init(1), x, train=True)
        np.testing.assert_allclose(first.var, np.var(np.asarray(x, float)), rtol=1e-5)


def test_a_narrow_batch_moves_wide_averages():
    """Haiku: averages in bfloat16, where 0.999 rounds to 1 and nothing moves."""
    params, state = jn.BatchNorm(momentum=0.999).init(4, jnp.bfloat16)
    x = LARGE_MEAN.astype(jnp.bfloat16)
    _, new = jn.BatchNorm(momentum=0.999).apply(params, state, x, train=True)
    np.testing.assert_allclose(new.mean, 0.001 * np.asarray(x, float).mean(0), rtol=1e-4)


def test_evaluation_in_bfloat16_does_not_round_the_running_mean():
    """Flax nnx rounds it to bfloat16 before it subtracts."""
    x = jnp.array([[1000.0], [1004.0]], jnp.bfloat16)
    state = jn.RunningStats(jnp.array([1001.3]), jnp.array([4.0]))
    y, _ = jn.batch_norm(x, state, train=False, epsilon=0.0)
    np.testing.assert_allclose(np.asarray(y, float), [[-0.65], [1.35]], rtol=2**-8)


@pytest.mark.parametrize("axis", [1, -1])
def test_groups_lie_along_the_channel_axis(axis):
    """Flax nnx repeats a group's statistics along axis 1."""
    spec = jn.GroupNorm(groups=2, channel_axis=axis)
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 4)).astype(np.float32)
    y = jn.group_norm(x, groups=2, channel_axis=axis)
    assert oracle.ulps(y, oracle.normalize(spec, x)) < 16


def test_cumulative_averages_do_update():
    """PyTorch's InstanceNorm with momentum=None never does."""
    _, state = jn.batch_norm(LARGE_MEAN, jn.BatchNorm(momentum=None).init(4)[1], train=True, momentum=None)
    np.testing.assert_allclose(state.mean, LARGE_MEAN.astype(float).mean(0), rtol=1e-7)


def test_evaluation_beside_a_large_mean():
    """Keras folds it into x · a + (b − mean · a), which cancels."""
    state = jn.batch_norm(LARGE_MEAN, jn.BatchNorm().init(4)[1], train=True, momentum=0.0)[1]
    y, _ = jn.batch_norm(LARGE_MEAN, state, train=False)
    mean, var = np.asarray(state.mean, float), np.asarray(state.var, float)
    assert oracle.ulps(y, (LARGE_MEAN - mean) / np.sqrt(var + 1e-5)) < 4
