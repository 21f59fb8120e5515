"""Sums over what shares a statistic are those of NumPy over equal labels, on one device and on several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import totals

from jaxnorm._core.reduction import Reduction, all_but, broadcast_in_stages

shapes = st.lists(st.integers(1, 9), min_size=1, max_size=5).map(tuple)


def labels(reduction, shape):
    """Which statistic each position has a part in, by the definition alone."""
    index, flat = np.indices(shape), np.zeros(shape, int)
    for a, n in enumerate(shape):
        if reduction.groups and a == reduction.group_axis:
            flat = flat * reduction.groups + index[a] // (n // reduction.groups)
        elif a not in reduction.axes:
            flat = flat * n + index[a]
    return flat


@st.composite
def reductions(draw):
    shape = draw(shapes)
    axes = draw(st.sets(st.integers(0, len(shape) - 1)))
    channel = draw(st.integers(0, len(shape) - 1))
    groups = draw(st.sampled_from([None, *(g for g in range(1, shape[channel] + 1) if shape[channel] % g == 0)]))
    return Reduction(tuple(sorted(axes - {channel} if groups else axes)), groups=groups, group_axis=channel), shape


@pytest.mark.long
@given(reductions())
def test_sums_counts_and_weights(drawn):
    """And what broadcasts them to the data again, whose transpose is the sum."""
    reduction, shape = drawn
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 9, shape).astype(np.float32)
    label = labels(reduction, shape)
    total = reduction.sum(jnp.asarray(x))
    assert total.shape == reduction.shape(x)
    met = np.broadcast_to(reduction.broadcast_groups(total, x), shape)
    np.testing.assert_array_equal(met, totals(label, x))
    np.testing.assert_array_equal(reduction.size(x), np.bincount(label.ravel())[0])
    for mask in (rng.random(shape) > 0.5, rng.integers(0, 3, shape).astype(np.float32)):
        for where in (mask, mask[..., :1]):
            weight = reduction.broadcast_groups(reduction.weight(jnp.asarray(x), jnp.asarray(where)), x)
            want = totals(label, np.broadcast_to(where, shape).astype(float))
            np.testing.assert_array_equal(np.broadcast_to(weight, shape), want)


@given(shapes, st.data())
def test_a_vector_is_repeated_and_its_cotangent_summed(shape, data):
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1)))
    small = [1 if a in axes else n for a, n in enumerate(shape)]
    v = jnp.asarray(np.random.default_rng(0).integers(-9, 9, small), jnp.float32)
    y, pull = jax.vjp(lambda v: broadcast_in_stages(v, jnp.ones(shape)), v)
    np.testing.assert_array_equal(y, np.broadcast_to(v, shape))
    np.testing.assert_array_equal(pull(y)[0], y.sum(tuple(axes), keepdims=True))


def test_a_weight_below_zero_shows_where_it_counts():
    where = jnp.array([[1.0, -1.0], [0.0, 2.0]])
    np.testing.assert_array_equal(Reduction((1,)).weight(where, where), [[np.nan], [2]])


def test_sums_over_devices_take_one_collective():
    reduction = Reduction((0,), ("i",))
    f = jax.vmap(lambda *v: reduction.psum(*v), axis_name="i")
    x, z = jnp.arange(4.0).reshape(4, 1), jnp.asarray(1j * np.arange(4).reshape(4, 1), jnp.complex64)
    np.testing.assert_array_equal(f(x, 2 * x)[1], np.full((4, 1), 12))
    np.testing.assert_array_equal(f(x, z)[1], np.full((4, 1), 6j))
    assert f(x, z)[0].dtype == jnp.float32
    jaxpr = jax.make_jaxpr(lambda *v: reduction.psum(*v), axis_env=[("i", 4)])(x[0], x[0], x[0])
    assert str(jaxpr).count("psum") == 1


@pytest.mark.parametrize("ids", [(0, 0, 1, 1), (0, 1, 0, 1), (1, 0, 0, 1)])
def test_ghosts_over_devices_sum_their_own(ids):
    """Two devices with two indices each; NaN of one ghost stays out of the other."""
    reduction = Reduction((1,), ("i",), ghost_ids=ids)
    x = jnp.array([1.0, 2.0, np.nan, 8.0]).reshape(2, 2, 1)

    def run(x):
        (total,) = reduction.psum(x)
        return reduction.broadcast_groups(total, x), reduction.size(x)

    totals_, size = jax.vmap(run, axis_name="i")(x)
    want = [sum(v for v, other in zip(x.ravel(), ids, strict=True) if other == i) for i in ids]
    np.testing.assert_array_equal(totals_.ravel(), np.array(want))
    assert size.tolist() == [2, 2]


def test_all_axes_but_one():
    assert all_but(1, 4) == (0, 2, 3)
