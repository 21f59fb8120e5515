"""Moments are a commutative monoid, and merging is the same as never having cut."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

import jaxnorm as jn

DATA = np.random.default_rng(0).standard_normal((24, 3)).astype(np.float32) * [1, 10, 0.1] + [0, 1e3, -5]
DATA = DATA.astype(np.float32)

cuts = st.lists(st.integers(0, len(DATA)), max_size=4).map(lambda c: [0, *sorted(c), len(DATA)])


def pieces(bounds):
    """Moments of the rows between bounds; some may be empty."""
    rows = np.arange(len(DATA))[:, None]
    take = jax.jit(lambda lo, hi: jn.moments(DATA, 0, where=(lo <= rows) & (rows < hi)))
    return [take(lo, hi) for lo, hi in itertools.pairwise(bounds)]


def close(a, b):
    np.testing.assert_allclose(a.count, b.count, rtol=1e-6)
    np.testing.assert_allclose(a.mean, b.mean, rtol=3e-7, atol=1e-6)
    np.testing.assert_allclose(a.m2, b.m2, rtol=2e-5, atol=1e-4)


WHOLE = jn.moments(DATA, 0)


def test_against_numpy():
    exact = DATA.astype(float)
    close(WHOLE, jn.Moments(np.full(3, 24.0), exact.mean(0), exact.var(0) * 24))
    np.testing.assert_allclose(WHOLE.std, exact.std(0), rtol=1e-5)
    kept = jn.moments(DATA, (0, -1), keepdims=True)
    assert kept.mean.shape == (1, 1)
    np.testing.assert_allclose(jn.moments(DATA).mean, exact.mean(), rtol=1e-6)


@given(cuts)
def test_any_partition_gives_the_whole(bounds):
    close(jn.merge(*pieces(bounds)), WHOLE)


@given(cuts, st.randoms(use_true_random=False))
def test_the_order_does_not_matter(bounds, random):
    parts = pieces(bounds)
    shuffled = random.sample(parts, len(parts))
    close(jn.merge(*parts), jn.merge(*shuffled))


@given(cuts)
def test_grouping_does_not_matter(bounds):
    first, *rest = pieces(bounds)
    one_by_one = first
    for part in rest:
        one_by_one = jn.merge(one_by_one, part)
    close(one_by_one, WHOLE)


@given(cuts)
def test_stacked_is_the_same_as_several(bounds):
    parts = pieces(bounds)
    stacked = jax.tree.map(lambda *vs: jnp.stack(vs, 1), *parts)
    close(jn.merge(stacked, axis=1), jn.merge(*parts))


def test_zeros_is_the_identity():
    zeros = jn.Moments.zeros(3)
    close(jn.merge(zeros, WHOLE), WHOLE)
    close(jn.merge(WHOLE, zeros), WHOLE)
    nothing = jn.merge(zeros, zeros)
    chex.assert_trees_all_equal(nothing, zeros)
    np.testing.assert_array_equal(nothing.var, 1)


def test_merging_streams_in_a_scan():
    step = lambda total, rows: (jn.merge(total, jn.moments(rows, 0)), None)
    total, _ = jax.lax.scan(step, jn.Moments.zeros(3), DATA.reshape(6, 4, 3))
    close(total, WHOLE)


def test_merging_keeps_the_variance_beside_a_large_mean():
    x = (np.random.default_rng(1).standard_normal((4, 1000)) + 1e4).astype(np.float32)
    merged = jn.merge(jn.moments(x, 1), axis=0)
    np.testing.assert_allclose(merged.var, x.astype(float).var(), rtol=1e-5)


def test_dtypes():
    assert jn.moments(DATA.astype(jnp.bfloat16), 0).mean.dtype == jnp.float32
    found = jn.moments(DATA.astype(np.complex64) * (1 + 1j), 0)
    assert (found.mean.dtype, found.m2.dtype, found.count.dtype) == (jnp.complex64, jnp.float32, jnp.float32)
    np.testing.assert_allclose(found.var, 2 * DATA.astype(float).var(0), rtol=1e-5)
    identity = jn.Moments.zeros(3, jnp.complex64)
    merged = jn.merge(identity, found)
    assert merged.mean.dtype == jnp.complex64
    np.testing.assert_allclose(merged.mean, found.mean, rtol=1e-6)


def test_weights_of_any_dtype_are_summed_widely():
    assert jn.moments(np.ones((1001, 1), np.float32), where=jnp.ones((1001, 1), jnp.bfloat16)).count == 1001
    heavy = jn.moments(np.arange(3, dtype=np.float32), where=np.full(3, 10**9, np.int32))
    np.testing.assert_allclose(heavy[:3], (3e9, 1.0, 2e9), rtol=1e-6)


def test_parts_without_data_do_not_matter_whatever_they_hold():
    merged = jn.merge(jn.Moments(2.0, 3.0, 4.0), jn.Moments(0.0, np.nan, np.nan))
    np.testing.assert_array_equal(merged[:3], (2.0, 3.0, 4.0))


@pytest.mark.once
def test_derivatives():
    with jax.enable_x64(True):
        x, w = jnp.asarray(DATA[:5], jnp.float64), jnp.linspace(0.5, 2, 15, dtype=jnp.float64).reshape(5, 3)
        check_grads(jax.jit(lambda x, w: jn.moments(x, 0, where=w)), (x, w), order=2, rtol=1e-5, atol=1e-5)
        parts = jn.moments(x.reshape(5, 3, 1), 0), jn.moments(x[:2].reshape(2, 3, 1), 0)
        check_grads(jax.jit(jn.merge), parts, order=2, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(jax.grad(lambda x: jn.moments(x).std)(jnp.ones(4)), 0)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: jn.merge(), TypeError, "there is nothing to merge"),
        (lambda: jn.merge(DATA), TypeError, "got ndarray, not Moments"),
        (lambda: jn.merge(WHOLE, jn.Moments.zeros(4)), ValueError, r"shapes differ: \[\(3,\), \(4,\)\]"),
        (lambda: jn.merge(WHOLE, WHOLE, axis=0), ValueError, "axis=0 goes with one, in which all are stacked; got 2"),
        (lambda: jn.moments(np.arange(3)), TypeError, "x has dtype int"),
        (lambda: jn.moments(DATA, 2), ValueError, "axis=2 is out of range: x has 2 dimensions"),
        (lambda: jn.moments(DATA, (0, -2)), ValueError, "twice"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()
