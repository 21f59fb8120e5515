"""Moments keep their digits: those of parts, merged however often, are those of the whole."""

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxnorm as jn

BOUND = 16 * 2**-24
FIELDS = ("count", "mean", "m2", "count_residual", "mean_residual", "m2_residual", "min", "max")
MEANS = [0.0, 1.0, 1e4, -1e5, 1e6]
means = pytest.mark.parametrize("mean", MEANS)

merge = jax.jit(jn.merge)
by_rows = jax.jit(lambda x: jn.moments(x, 0))


def data(mean, shape, seed=0):
    """Of two features, one three times as wide as the other."""
    return (np.random.default_rng(seed).standard_normal(shape) * [1, 3] + mean).astype(np.float32)


def check(found, x, where=None):
    """As of the whole, in float64: numbers and what rounding took from them, together."""
    x = np.asarray(x, float).reshape(-1, np.shape(x)[-1])
    w = np.ones((len(x), 1)) if where is None else np.asarray(where, float).reshape(len(x), -1)
    n = np.broadcast_to(w.sum(0), x.shape[-1:])
    mean = (w * x).sum(0) / n
    m2 = (w * (x - mean) ** 2).sum(0)
    whole = {name: np.asarray(getattr(found, name), float) for name in FIELDS[:3]}
    rest = {name: np.asarray(getattr(found, f"{name}_residual"), float) for name in FIELDS[:3]}
    both = {name: whole[name] + rest[name] for name in whole}
    np.testing.assert_allclose(both["count"], n, rtol=1e-7)
    np.testing.assert_allclose((both["mean"] - mean) / np.sqrt(m2 / n), 0, atol=BOUND)
    np.testing.assert_allclose(both["m2"], m2, rtol=BOUND)
    np.testing.assert_allclose(found.var, m2 / n, rtol=BOUND)
    np.testing.assert_allclose(found.std, np.sqrt(m2 / n), rtol=BOUND)
    # The first three are the nearest numbers alone, too.
    np.testing.assert_allclose(found.mean, mean, rtol=2**-23, atol=2**-23)
    np.testing.assert_allclose(found.count, n, rtol=2**-23)


def stacked(parts):
    return jax.tree.map(lambda *v: jnp.stack(v), *parts)


# What they are


def test_the_fields_and_what_unpacks():
    assert jn.Moments._fields == FIELDS
    assert not hasattr(jn, "FeatureStats")
    x = jnp.array([[1.0, 2.0], [3.0, 6.0]])
    count, mean, m2, *_ = jn.moments(x, 0)
    np.testing.assert_array_equal(count, [2, 2])
    np.testing.assert_array_equal(mean, [2, 4])
    np.testing.assert_array_equal(m2, [2, 8])
    found = jn.moments(x, 0)
    for value in found[:6]:
        assert (value.shape, value.dtype) == ((2,), jnp.float32)
    assert found.min is None
    assert found.max is None


def test_the_mean_of_data_has_a_residual():
    """0.1 + 1e6 is no float32: what is left of the mean is in the residual."""
    x = np.array([[1e6], [1e6 + 0.125], [1e6 + 0.125]], np.float32)
    found = jn.moments(x, 0)
    exact = x.astype(float).mean()
    assert abs(float(found.mean[0]) + float(found.mean_residual[0]) - exact) < 1e-6
    assert abs(float(found.mean[0]) - exact) > 1e-3


@pytest.mark.parametrize("extremes", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
def test_zeros(dtype, extremes):
    if extremes and dtype == jnp.complex64:
        pytest.skip("order is of real numbers")
    zeros = jn.Moments.zeros((2, 3), dtype, extremes=extremes)
    for name, value in zip(FIELDS[:6], zeros[:6], strict=True):
        np.testing.assert_array_equal(value, np.zeros((2, 3)))
        assert value.dtype == (dtype if name.startswith("mean") else jnp.float32), name
    if extremes:
        np.testing.assert_array_equal(zeros.min, np.full((2, 3), np.inf))
        np.testing.assert_array_equal(zeros.max, np.full((2, 3), -np.inf))
    else:
        assert zeros[6:] == (None, None)
    np.testing.assert_array_equal(zeros.var, np.ones((2, 3)))
    np.testing.assert_array_equal(jn.Moments.zeros(4).count, np.zeros(4))
    assert jn.Moments.zeros().mean.shape == ()


def test_zeros_may_be_donated():
    add = jax.jit(lambda total, x: jn.merge(total, jn.moments(x, 0, extremes=True)), donate_argnums=0)
    check(add(jn.Moments.zeros(2, extremes=True), data(1e4, (20, 2))), data(1e4, (20, 2)))


@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_the_identity(mean):
    """To the last bit, on either side, stacked and mapped."""
    same = lambda a, b: chex.assert_trees_all_equal(a, b)
    for extremes in (False, True):
        zeros = jn.Moments.zeros(2, extremes=extremes)
        found = jn.moments(data(mean, (30, 2)), 0, extremes=extremes)
        same(jn.merge(zeros, found), found)
        same(jn.merge(found, zeros), found)
        same(jn.merge(found), found)
        same(jn.merge(zeros, found, zeros), found)
        same(jn.merge(stacked([zeros, found]), axis=0), found)
        same(jn.merge(zeros, zeros), zeros)


def test_parts_of_which_nothing_counts_are_the_identity_whatever_they_hold():
    x = data(1e5, (30, 2))
    found = by_rows(x)
    nothing = jn.moments(np.full((5, 2), np.nan, np.float32), 0, where=np.zeros((5, 1), bool))
    hand_made = jn.Moments(jnp.zeros(2), jnp.full(2, jnp.nan), jnp.full(2, jnp.nan))
    for empty in (nothing, hand_made):
        for merged in (jn.merge(found, empty), jn.merge(empty, found)):
            chex.assert_trees_all_equal(merged, found)
    chex.assert_trees_all_equal(jn.merge(stacked([nothing, found]), axis=0), found)
    partly = jn.moments(x, 0, where=np.array([[True, False]]))
    merged = jn.merge(partly, found)
    check(jax.tree.map(lambda v: v[1:], merged), x[:, 1:])
    check(jax.tree.map(lambda v: v[:1], merged), np.concatenate([x, x])[:, :1])


def test_numbers_made_by_hand_have_no_residuals_and_merge():
    merged = jn.merge(jn.Moments(2.0, 3.0, 4.0), jn.Moments(2.0, 5.0, 4.0))
    np.testing.assert_allclose(merged[:3], (4, 4, 12))
    assert all(v is not None for v in merged[:6])
    assert merged[6:] == (None, None)
    assert jn.Moments(2.0, 3.0, 4.0).var == 2
    assert jn.Moments(2.0, 3.0, 4.0)[3:] == (None,) * 5
    both = jn.merge(jn.Moments(2.0, 3.0, 4.0), jn.moments(jnp.array([4.0, 6.0])))
    np.testing.assert_allclose(both[:3], (4, 4, 10))
    stack = jn.Moments(jnp.array([2.0, 2.0]), jnp.array([3.0, 5.0]), jnp.array([4.0, 4.0]))
    np.testing.assert_allclose(jn.merge(stack, axis=0)[:3], (4, 4, 12))


def test_residuals_made_by_hand_count():
    """What is given as left over is part of the number."""
    a = jn.Moments(*map(jnp.float32, (1, 1e6, 0, 0, 0.01, 0)))
    b = jn.Moments(*map(jnp.float32, (1, 1e6, 0, 0, 0.03, 0)))
    merged = jn.merge(a, b)
    np.testing.assert_allclose(float(merged.mean) - 1e6 + float(merged.mean_residual), 0.02, rtol=1e-5)
    np.testing.assert_allclose(merged.m2 + merged.m2_residual, 2e-4, rtol=1e-5)
    np.testing.assert_allclose(merged.var, 1e-4, rtol=1e-5)


# Digits


@means
def test_many_parts_at_once(mean):
    x = data(mean, (200, 16, 2))
    parts = jax.jit(jax.vmap(lambda x: jn.moments(x, 0)))(x)
    check(jax.jit(lambda p: jn.merge(p, axis=0))(parts), x)
    check(jax.jit(lambda p: jn.merge(p, axis=-2))(parts), x)
    some = [jax.tree.map(lambda v, i=i: v[i], parts) for i in range(24)]
    check(merge(*some), x[:24])
    square = jax.tree.map(lambda v: v.reshape(10, 20, 2), parts)
    check(jax.jit(lambda p: jn.merge(p, axis=(0, 1)))(square), x)


@means
@pytest.mark.parametrize("size", [1, 16])
def test_thousands_of_merges_in_a_chain(mean, size):
    """A stream of pairs: the total, and one more batch."""
    x = data(mean, (4000, size, 2))
    step = lambda total, x: (jn.merge(total, jn.moments(x, 0)), None)
    total = jax.jit(lambda x: jax.lax.scan(step, jn.Moments.zeros(2), x)[0])(x)
    check(total, x)


def test_thousands_of_merges_where_batches_drift():
    """What lies between batches is most of the variance."""
    drift = np.linspace(0, 1000, 4000)[:, None, None]
    x = (data(1e6, (4000, 3, 2)) + drift).astype(np.float32)
    step = lambda total, x: (jn.merge(jn.moments(x, 0), total), None)
    check(jax.jit(lambda x: jax.lax.scan(step, jn.Moments.zeros(2), x)[0])(x), x)


@means
def test_a_tree_of_pairs(mean):
    x = data(mean, (1024, 3, 2))

    @jax.jit
    def whole(x):
        parts = jax.vmap(lambda x: jn.moments(x, 0))(x)
        while parts.count.shape[0] > 1:
            left, right = (jax.tree.map(lambda v, i=i: v[i::2], parts) for i in (0, 1))
            parts = jn.merge(left, right)
        return jax.tree.map(lambda v: v[0], parts)

    check(whole(x), x)


@means
def test_chains_of_totals_of_chains(mean):
    """The three ways after one another: merging what was merged."""
    x = data(mean, (60, 50, 4, 2))
    step = lambda total, x: (jn.merge(total, jn.moments(x, 0)), None)
    chain = lambda x: jax.lax.scan(step, jn.Moments.zeros(2), x)[0]
    totals = jax.jit(jax.vmap(chain))(x)
    check(jax.jit(lambda t: jn.merge(t, axis=0))(totals), x)
    pairs = lambda total, one: (jn.merge(total, one), None)
    check(jax.jit(lambda t: jax.lax.scan(pairs, jn.Moments.zeros(2), t)[0])(totals), x)


@jax.jit
def of_halves(x, *halves):
    """Each half merged for itself, and then both."""
    half = lambda of: jax.vmap(lambda x, of: jn.moments(x, 0, where=jnp.full((1, 1), of)))(x, of)
    return jn.merge(*(jn.merge(half(of), axis=0) for of in halves))


@hypothesis.settings(max_examples=8)
@given(st.permutations(range(12)), st.sampled_from(MEANS), st.integers(1, 11))
def test_order_and_grouping_do_not_matter(order, mean, cut):
    x = data(mean, (12, 5, 2))
    # In one program for all of them: what belongs to the other half does not count.
    first = np.isin(np.arange(12), np.arange(cut))
    for halves in ((first, ~first), (~first, first)):
        check(of_halves(x[np.array(order)], *halves), x)


@means
def test_weights(mean):
    x = data(mean, (100, 16, 2))
    w = np.random.default_rng(3).random((100, 16, 1)).astype(np.float32)
    step = lambda total, xw: (jn.merge(total, jn.moments(xw[0], 0, where=xw[1])), None)
    check(jax.jit(lambda xw: jax.lax.scan(step, jn.Moments.zeros(2), xw)[0])((x, w)), x, w)


@means
def test_mapped_axes(mean):
    x = data(mean, (8, 20, 2))
    share = lambda x: jn.merge(jn.moments(x, 0), axis_name="parts")
    shared = jax.jit(jax.vmap(share, axis_name="parts"))(x)
    for part in (0, 7):
        check(jax.tree.map(lambda v, part=part: v[part], shared), x)
    shared = jax.jit(jax.vmap(lambda x: jn.moments(x, 0, axis_name="parts"), axis_name="parts"))(x)
    check(jax.tree.map(lambda v: v[3], shared), x)


def test_a_count_beyond_sixteen_million_goes_on():
    """To 2²⁴ one more is nothing in float32."""
    many = jn.Moments(*map(jnp.float32, (2**24, 5, 2**24)))
    one = jn.moments(jnp.array([5.0]))
    total = jax.jit(lambda t: jax.lax.scan(lambda t, _: (jn.merge(t, one), None), t, length=1000)[0])(merge(many))
    assert float(total.count) + float(total.count_residual) == 2**24 + 1000
    at_once = jn.merge(many, *[one] * 7)
    assert float(at_once.count) + float(at_once.count_residual) == 2**24 + 7


def test_float64_and_complex():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).standard_normal((300, 8, 2)) + 1e12
        step = lambda total, x: (jn.merge(total, jn.moments(x, 0)), None)
        total = jax.jit(lambda x: jax.lax.scan(step, jn.Moments.zeros(2, jnp.float64), x)[0])(x)
        assert {v.dtype for v in jax.tree.leaves(total)} == {np.dtype("float64")}
        exact = (x - 1e12).reshape(-1, 2)
        np.testing.assert_allclose(total.var, exact.var(0), rtol=64 * 2**-53)  # NumPy rounds, too
    z = (data(1e5, (100, 8, 2)) + 1j * data(-1e5, (100, 8, 2), seed=1)).astype(np.complex64)
    parts = jax.jit(jax.vmap(lambda z: jn.moments(z, 0)))(z)
    exact = z.astype(complex).reshape(-1, 2)
    for total in (
        jax.jit(lambda p: jn.merge(p, axis=0))(parts),
        jax.jit(lambda p: jax.lax.scan(lambda t, m: (jn.merge(t, m), None), jn.Moments.zeros(2, jnp.complex64), p)[0])(
            parts
        ),
    ):
        assert (total.mean_residual.dtype, total.m2_residual.dtype) == (jnp.complex64, jnp.float32)
        np.testing.assert_allclose(total.var, exact.var(0), rtol=BOUND)


@means
def test_derivatives_through_merging_are_those_of_the_whole(mean):
    x = data(mean, (6, 5, 2))
    weigh = lambda m: (m.var * jnp.array([1.0, 2.0])).sum() + (m.mean * jnp.array([0.5, -1.0])).sum()
    step = lambda total, x: (jn.merge(total, jn.moments(x, 0)), None)
    of_whole = jax.grad(lambda x: weigh(jn.moments(x, (0, 1))))
    at_once = jax.grad(lambda x: weigh(jn.merge(jax.vmap(lambda x: jn.moments(x, 0))(x), axis=0)))
    chain = jax.grad(lambda x: weigh(jax.lax.scan(step, jn.Moments.zeros(2), x)[0]))
    exact = x.astype(float)
    want = (2 * (exact - exact.mean((0, 1))) * [1, 2] + [0.5, -1]) / 30
    for grad in (of_whole, at_once, chain):
        np.testing.assert_allclose(jax.jit(grad)(x), want, rtol=1e-4, atol=1e-5)


# Extremes


def test_extremes_of_data():
    x = data(1e4, (40, 3, 2))
    found = jn.moments(x, (0, 1), extremes=True)
    np.testing.assert_array_equal(found.min, x.min((0, 1)))
    np.testing.assert_array_equal(found.max, x.max((0, 1)))
    check(found, x)
    kept = jn.moments(x, 1, keepdims=True, extremes=True)
    np.testing.assert_array_equal(kept.max, x.max(1, keepdims=True))
    narrow = jn.moments(jnp.asarray(x).astype(jnp.bfloat16), (0, 1), extremes=True)
    assert narrow.min.dtype == jnp.float32
    np.testing.assert_array_equal(narrow.min, np.asarray(jnp.asarray(x).astype(jnp.bfloat16), np.float32).min((0, 1)))


def test_extremes_of_what_counts():
    x = data(0.0, (40, 2))
    where = np.abs(x) < 1
    hidden = np.where(where, x, np.array([np.nan, np.inf])).astype(np.float32)
    found = jn.moments(hidden, 0, where=where, extremes=True)
    np.testing.assert_array_equal(found.min, np.where(where, x, np.inf).min(0))
    np.testing.assert_array_equal(found.max, np.where(where, x, -np.inf).max(0))
    nothing = jn.moments(hidden, 0, where=np.zeros_like(where), extremes=True)
    np.testing.assert_array_equal(nothing.min, [np.inf, np.inf])
    np.testing.assert_array_equal(nothing.max, [-np.inf, -np.inf])


def test_extremes_merge():
    x = data(3.0, (8, 20, 2))
    each = jax.jit(jax.vmap(lambda x: jn.moments(x, 0, extremes=True)))(x)
    step = lambda total, m: (jn.merge(total, m), None)
    zeros = jn.Moments.zeros(2, extremes=True)
    shared = jax.vmap(lambda x: jn.moments(x, 0, extremes=True, axis_name="parts"), axis_name="parts")(x)
    ways = [jn.merge(each, axis=0), jax.lax.scan(step, zeros, each)[0], jax.tree.map(lambda v: v[2], shared)]
    ways.append(jn.merge(*(jax.tree.map(lambda v, i=i: v[i], each) for i in range(8))))
    for total in ways:
        np.testing.assert_array_equal(total.min, x.min((0, 1)))
        np.testing.assert_array_equal(total.max, x.max((0, 1)))
        check(total, x)


@pytest.mark.parametrize("swap", [False, True])
def test_with_and_without_extremes_do_not_merge(swap):
    x = data(0.0, (5, 2))
    kinds = jn.moments(x, 0), jn.moments(x, 0, extremes=True)
    with pytest.raises((TypeError, ValueError), match=r"merge: .*extremes"):
        jn.merge(*(kinds[::-1] if swap else kinds))
    with pytest.raises((TypeError, ValueError), match=r"merge: .*extremes"):
        jn.merge(jn.Moments.zeros(2, extremes=True), jn.Moments(*kinds[0][:3]))


# No number


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_stays_visible_in_its_feature(value):
    x = data(0.0, (4, 5, 2))
    x[2, 3, 1] = value
    parts = [by_rows(v) for v in x]
    step = lambda total, x: (jn.merge(total, jn.moments(x, 0)), None)
    chain = jax.jit(lambda x: jax.lax.scan(step, jn.Moments.zeros(2), x)[0])
    for total in (merge(*parts), jn.merge(stacked(parts), axis=0), chain(x), chain(x[::-1])):
        np.testing.assert_array_equal(np.isfinite(total.mean), [True, False])
        np.testing.assert_array_equal(np.isnan(total.var), [False, True])
        check(jax.tree.map(lambda v: v[:1], total), x[..., :1])
        np.testing.assert_array_equal(total.count, [20, 20])


# Scalers


@pytest.mark.parametrize("kind", ["standard", "minmax"])
def test_what_a_scaler_has_seen_are_moments(kind):
    x = data(1e5, (6, 20, 2))
    scaler = jn.FeatureScaler(kind=kind)
    learn = jax.jit(lambda state, x: scaler.apply(None, state, x, train=True)[1])
    empty = scaler.init(2)[1]
    assert type(empty) is jn.Moments
    one, other = empty, empty
    for batch in x[:2]:
        one = learn(one, batch)
    for batch in x[2:]:
        other = learn(other, batch)
    merged = jn.merge(one, other)
    assert type(merged) is jn.Moments
    assert (merged.min is None) == (kind == "standard")
    check(merged, x)
    check(jn.merge(one, jn.moments(x[2:], (0, 1), extremes=kind == "minmax")), x)
    # Moments of data are what a scaler may be given for the stream that it has seen.
    given = jn.moments(x, (0, 1), extremes=kind == "minmax")
    y = [scaler.apply(None, state, x[0], train=False)[0] for state in (given, merged)]
    np.testing.assert_allclose(*y, rtol=1e-5, atol=1e-5)
