"""Masks and weights: what is excluded changes nothing, and what is included counts by its weight."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import norms, one_each, standard
from hypothesis import given
from hypothesis import strategies as st

import jaxnorm as jn

PADDING = [np.nan, np.inf, -np.inf, np.finfo(np.float32).max]


def masked(case, seed=4):
    """A mask in which every statistic includes something."""
    where = np.random.default_rng(seed).uniform(size=case.shape) > 0.4
    label = oracle.labels(case.spec, case.shape)
    _, first = np.unique(label, return_index=True)
    where.flat[first] = True
    return where


@norms
def test_padding_changes_nothing(case):
    """Values and gradients are those of the same data with anything else in the excluded positions."""
    params, state = case.params()
    where = masked(case)

    @jax.jit
    def run(x):
        def loss(x, params):
            y, new = case.spec.apply(params, state, x, train=True, where=where)
            return jnp.where(where, jnp.sin(y), 0).sum(), (jnp.where(where, y, 0), new)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(x, params)

    x = np.asarray(case.data())
    clean = run(np.where(where, x, 0))
    for padding in PADDING:
        dirty = run(np.where(where, x, padding).astype(np.float32))
        chex.assert_trees_all_close(clean, dirty, rtol=1e-5, atol=2e-6)
        np.testing.assert_array_equal(dirty[1][0][~where], 0)


@norms
def test_y_is_finite_wherever_x_is(case):
    params, state = case.params()
    where = masked(case)
    for nothing in (where, np.zeros_like(where)):
        x = np.where(where, case.data(), np.finfo(np.float32).max).astype(np.float32)
        assert np.isfinite(case.norm(params, state, where=nothing)(x)).all()


@one_each
def test_masking_equals_deleting(case):
    """Along an axis that is reduced, the last positions."""
    over_features = hasattr(case.spec, "axis") or isinstance(case.spec, jn.LocalResponseNorm | jn.BatchInstanceNorm)
    axis = 0 if isinstance(case.spec, jn.BatchNorm) else 2 if over_features else 1
    keep = case.shape[axis] - 1
    where = jnp.arange(case.shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(case.shape))]) < keep
    x = jnp.where(where, case.data(), jnp.nan)
    short = jax.lax.slice_in_dim(x, 0, keep, axis=axis)
    params, state = case.params()
    # A scale along that axis would have another length.
    params = params._replace(scale=None, bias=None)
    run = lambda x, **kw: jax.jit(lambda x: case.spec.apply(params, state, x, train=True, **kw))(x)
    (y, new), (want, want_new) = run(x, where=where), run(short)
    np.testing.assert_allclose(jax.lax.slice_in_dim(y, 0, keep, axis=axis), want, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(new, want_new, rtol=1e-6, atol=1e-7)


@norms
def test_excluded_positions_with_no_cotangent_add_exactly_nothing(case):
    params, state = case.params()
    where = masked(case)
    x = jnp.where(where, case.data(), jnp.nan)
    g = jnp.where(where, case.data(seed=9), 0)
    pull = jax.jit(
        lambda x, p: jax.vjp(lambda x, p: case.spec.apply(p, state, x, train=True, where=where)[0], x, p)[1](g)
    )
    dx, dparams = pull(x, params)
    np.testing.assert_array_equal(np.asarray(dx)[~where], 0)
    chex.assert_tree_all_finite((dx, dparams))


@standard
def test_nothing_included(case):
    params, state = case.params()
    where = jnp.zeros(case.shape, bool)
    y, new = jax.jit(lambda x: case.spec.apply(params, state, x, train=True, where=where))(case.data())
    np.testing.assert_allclose(
        y,
        case.data() / np.sqrt(1 + case.spec.epsilon) * case.broadcast(params.scale) + case.broadcast(params.bias),
        rtol=1e-6,
        atol=1e-6,
    )
    chex.assert_trees_all_equal(new, state)


def test_a_channel_without_data_keeps_its_state():
    x = jax.random.normal(jax.random.key(0), (8, 3))
    state = jn.RunningStats(jnp.array([0.1, 0.2, 0.3]), jnp.array([1.0, 2.0, 3.0]))
    where = jnp.array([[True, False, True]])
    _, new = jn.batch_norm(x, state, train=True, where=where, momentum=0.9)
    assert new.mean[1] == state.mean[1]
    assert new.var[1] == state.var[1]
    assert (new.mean[::2] != state.mean[::2]).all()


def test_the_mask_is_ignored_in_evaluation_but_checked():
    x, state = jnp.ones((8, 3)), jn.BatchNorm().init(3)[1]
    y, _ = jn.batch_norm(x, state, train=False, where=jnp.zeros((8, 1), bool))
    np.testing.assert_array_equal(y, jn.batch_norm(x, state, train=False)[0])
    with pytest.raises(ValueError, match="where has shape"):
        jn.batch_norm(x, state, train=False, where=jnp.ones(8, bool))


@given(repeats=st.lists(st.integers(0, 4), min_size=6, max_size=6).filter(any))
def test_integer_weights_are_repetitions(repeats):
    x = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    found = jn.moments(x, 0, where=np.array(repeats, np.float32)[:, None])
    want = np.repeat(x.astype(float), repeats, axis=0)
    np.testing.assert_allclose(found.count, len(want))
    np.testing.assert_allclose(found.mean, want.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.var, want.var(0), rtol=1e-5, atol=1e-6)


def test_weights_beyond_sixteen_million_are_counted():
    where = jnp.ones((1 << 24) + 3, bool)
    assert jn.moments(jnp.zeros(where.shape), where=where).count == (1 << 24) + 4


def test_weights_that_do_not_matter_have_a_derivative_of_zero():
    """In evaluation and of a frozen norm; and of the largest of a vector, whatever else weighs."""
    x = jax.random.normal(jax.random.key(0), (8, 3))
    params, state = jn.BatchNorm().init(3)
    for f in (
        lambda w: jn.batch_norm(x, state, train=False, where=w)[0],
        lambda w: jn.freeze(jn.BatchNorm()).apply(params, state, x, train=True, where=w)[0],
        lambda w: jn.batch_renorm(x, state, train=False, where=w)[0],
        lambda w: jn.unit_norm(x, order=np.inf, where=w),
    ):
        np.testing.assert_array_equal(jax.grad(lambda w, f=f: f(w).sum())(jnp.ones((8, 3))), 0)
