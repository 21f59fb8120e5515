"""Scaling input features: exact statistics of a stream, however it is cut, against float64 and scikit-learn."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from devices import mesh
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from sklearn.datasets import load_diabetes, load_wine
from sklearn.preprocessing import MinMaxScaler, StandardScaler

import jaxnorm as jn

KINDS = ("standard", "minmax")
kinds = pytest.mark.parametrize("kind", KINDS)
SKEWED = np.random.default_rng(0).gamma(2.0, size=(60, 4)).astype(np.float32) * [1, 10, 1e3, 1e-3] + [0, 5, 1e4, 0]
SKEWED = SKEWED.astype(np.float32)


@partial(jax.jit, static_argnames="train")
def step(scaler, state, x, where=None, train=True):
    return scaler.apply(None, state, x, train=train, where=where)


def seen(scaler, parts, masks=None):
    """The state after a stream, and what its last part was scaled to."""
    _, state = scaler.init(scaler.features(parts[0].shape))
    y = None
    for part, mask in zip(parts, masks or [None] * len(parts), strict=True):
        y, state = step(scaler, state, part, mask)
    return state, y


def same(state, other, rtol=1e-5, atol=1e-4):
    """The same was seen: what a sum is, and what is left of it, together."""
    numbers = lambda s: (*(np.asarray(s[i], float) + np.asarray(s[i + 3]) for i in range(3)), *s[6:])
    chex.assert_trees_all_close(numbers(state), numbers(other), rtol=rtol, atol=atol)


def measure(kind, x, where=None):
    """Origin and unit of features along the last axis, in float64."""
    x = np.asarray(x, float)
    w = np.broadcast_to(np.ones(()) if where is None else np.asarray(where, float), x.shape)
    axes = tuple(range(x.ndim - 1))
    if kind == "standard":
        x = np.where(w > 0, x, 0)
        origin = (w * x).sum(axes) / w.sum(axes)
        unit = np.sqrt((w * (x - origin) ** 2).sum(axes) / w.sum(axes))
    else:
        origin = np.where(w > 0, x, np.inf).min(axes)
        unit = np.where(w > 0, x, -np.inf).max(axes) - origin
    return origin, np.where(unit > 0, unit, 1)


def scaled(kind, x, where=None):
    origin, unit = measure(kind, x, where)
    return (np.asarray(x, float) - origin) / unit


@kinds
@pytest.mark.parametrize("shape", [(60, 4), (5, 12, 4), (3, 2, 10, 4)])
def test_the_oracle(kind, shape):
    x = SKEWED.reshape(shape)
    scaler = jn.FeatureScaler(kind=kind)
    state, y = seen(scaler, [x])
    assert oracle.ulps(y, scaled(kind, x)) < 16
    y, after = step(scaler, state, 3 * x, train=False)
    origin, unit = measure(kind, x)
    np.testing.assert_allclose(y, (3 * x.astype(float) - origin) / unit, rtol=1e-5)
    chex.assert_trees_all_equal(after, state)
    np.testing.assert_allclose(scaler.inverse(state, y), 3 * x, rtol=1e-6)
    first = jn.FeatureScaler(kind=kind, channel_axis=0)
    moved = seen(first, [np.moveaxis(x, -1, 0)])[1]
    np.testing.assert_allclose(moved, np.moveaxis(seen(scaler, [x])[1], -1, 0), rtol=1e-6, atol=2e-6)


@kinds
@pytest.mark.parametrize("load", [load_wine, load_diabetes], ids=lambda load: load.__name__)
def test_scikit_learn(kind, load):
    data = load(scaled=False) if load is load_diabetes else load()
    x = data.data.astype(np.float32)
    theirs = {"standard": StandardScaler, "minmax": MinMaxScaler}[kind]()
    for part in np.split(x, [10, 11, 90]):
        theirs.partial_fit(part.astype(float))
    scaler = jn.FeatureScaler(kind=kind)
    state, _ = seen(scaler, np.split(x, [50, 130]))
    y, _ = step(scaler, state, x, train=False)
    exact = theirs.transform(x.astype(float))
    assert oracle.ulps(y, exact) < 16
    np.testing.assert_allclose(scaler.inverse(state, y), theirs.inverse_transform(exact), rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(state.count, len(x))
    if kind == "standard":
        np.testing.assert_allclose(state.var, theirs.var_, rtol=1e-6)
    else:
        np.testing.assert_array_equal(state.min, theirs.data_min_.astype(np.float32))


@kinds
@given(st.permutations(range(24)), st.lists(st.integers(0, 24), max_size=5), st.sampled_from([0.0, 1e4, 1e6]))
def test_order_and_cuts_do_not_matter(kind, order, cuts, mean):
    x = np.random.default_rng(1).normal(mean, 1, (24, 3)).astype(np.float32)
    parts = np.split(x[np.array(order)], sorted(cuts))
    scaler = jn.FeatureScaler(kind=kind)
    # Batches of one shape, filled up with what does not count: one program for all cuts.
    filled = [np.concatenate([part, np.full((24 - len(part), 3), np.nan, np.float32)]) for part in parts]
    masks = [np.arange(24)[:, None] < len(part) for part in parts]
    state, _ = seen(scaler, filled, masks)
    np.testing.assert_array_equal(state.count, 24)
    y, _ = step(scaler, state, x, train=False)
    assert oracle.ulps(y, scaled(kind, x)) < 16


@kinds
def test_each_batch_is_scaled_by_all_seen_so_far(kind):
    scaler = jn.FeatureScaler(kind=kind)
    _, y = seen(scaler, [SKEWED[:7], SKEWED[7:8], SKEWED[8:30]])
    origin, unit = measure(kind, SKEWED[:30])
    np.testing.assert_allclose(y, (SKEWED[8:30] - origin) / unit, rtol=2e-5, atol=1e-6)


@kinds
def test_a_large_mean_costs_no_digits(kind):
    x = (1e6 + np.random.default_rng(2).normal(size=(500, 3))).astype(np.float32)
    state, _ = seen(jn.FeatureScaler(kind=kind), np.split(x, [1, 3, 100, 400]))
    y, _ = step(jn.FeatureScaler(kind=kind), state, x, train=False)
    assert oracle.ulps(y, scaled(kind, x)) < 16


@pytest.mark.parametrize(("mean", "size"), [(1e6, 3), (0.0, 1), (100.0, 200)])
def test_a_long_stream_costs_no_digits(mean, size):
    """Fifty thousand batches, the last of which are small beside what was seen before."""
    keys = jax.random.split(jax.random.key(0), 50_000)
    batch = lambda key: jax.random.normal(key, (size, 1)) + jnp.float32(mean)
    _, fresh = jn.FeatureScaler().init(1)
    run = lambda state, key: (step(jn.FeatureScaler(), state, batch(key))[1], None)
    state, _ = jax.jit(lambda keys: jax.lax.scan(run, fresh, keys))(keys)
    x = np.asarray(jax.jit(jax.vmap(batch))(keys), float)
    assert state.count == x.size
    np.testing.assert_allclose(float(state.mean[0]) + float(state.mean_residual[0]), x.mean(), atol=2**-24 * x.std())
    np.testing.assert_allclose(state.var, x.var(), rtol=4 * 2**-24)


def test_a_count_goes_beyond_what_a_float_counts():
    """Where one example more is nothing to a float32."""
    _, fresh = jn.FeatureScaler().init(1)
    x = jnp.array([1.0, -1.0] * 5000)[:, None, None]
    many = fresh._replace(count=jnp.full(1, 2.0**24), m2=jnp.full(1, 2.0**24))
    state, _ = jax.lax.scan(lambda state, x: (step(jn.FeatureScaler(), state, x)[1], None), many, x)
    assert float(state.count[0]) + float(state.count_residual[0]) == 2**24 + 10_000
    np.testing.assert_allclose(state.var, 1, rtol=2**-23)


@kinds
def test_what_was_seen_may_be_donated(kind):
    scaler = jn.FeatureScaler(kind=kind)
    donating = jax.jit(lambda state, x: scaler.apply(None, state, x, train=True)[1], donate_argnums=0)
    state = donating(donating(scaler.init(4)[1], SKEWED[:7]), SKEWED[7:])
    y, _ = step(scaler, state, SKEWED, train=False)
    assert oracle.ulps(y, scaled(kind, SKEWED)) < 16


@kinds
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("dtype", "large"), [(jnp.float16, 6e4), (jnp.float32, -3.4028235e38)])
def test_padding_that_is_large_stays_finite(kind, train, dtype, large):
    """As a value that stands for none, beside small deviations: what comes after would make NaN of 0 · ∞."""
    scaler, x = jn.FeatureScaler(kind=kind), jnp.array([[1.0], [1.01], [large]], dtype)
    where = jnp.array([[True], [True], [False]])
    state, _ = seen(scaler, [x[:2]])
    y, _ = step(scaler, state, x, where, train=train)
    assert jnp.isfinite(y).all()
    np.testing.assert_allclose(np.asarray(y[:2], float), scaled(kind, x[:2]), rtol=1e-2, atol=1e-2)
    loss = lambda w: jnp.where(where, step(scaler, state, x, where, train=train)[0] * w, 0).sum()
    assert jnp.isfinite(jax.grad(loss)(jnp.ones((), dtype)))


@pytest.mark.parametrize("cuts", [[], [1], [1, 2]])
def test_squares_beyond_the_largest_float(cuts):
    """However it is cut: by their extremes such features are scaled, else divided by 1."""
    x = np.array([[1e20], [3e20], [2e20]], np.float32)
    for kind, want in (("minmax", [0, 1, 0.5]), ("standard", [-1e20, 1e20, 0])):
        scaler = jn.FeatureScaler(kind=kind)
        state, _ = seen(scaler, np.split(x, cuts))
        y, _ = step(scaler, state, x, train=False)
        np.testing.assert_allclose(y[:, 0], want, rtol=1e-6, atol=1e13)
        np.testing.assert_allclose(scaler.inverse(state, y), x, rtol=1e-6)
        np.testing.assert_array_equal(state.count, 3)


@pytest.mark.parametrize("sigma", [1e-17, 1e15])
def test_small_and_large_units(sigma):
    x = (np.random.default_rng(8).normal(3, 1, (600, 1)) * sigma).astype(np.float32)
    state, _ = seen(jn.FeatureScaler(), np.split(x, 60))
    y, _ = step(jn.FeatureScaler(), state, x, train=False)
    np.testing.assert_allclose(y, scaled("standard", x), rtol=1e-5, atol=1e-5)


@kinds
@given(
    st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False), st.lists(st.integers(1, 9), min_size=1, max_size=6)
)
def test_a_constant_feature_is_divided_by_one(kind, value, sizes):
    x = np.full((9, 1), value, np.float32)
    masks = [np.arange(9)[:, None] < n for n in sizes]
    scaler = jn.FeatureScaler(kind=kind)
    state, y = seen(scaler, [x] * len(sizes), masks)
    np.testing.assert_allclose(y, np.zeros((9, 1)), atol=1e-12 * abs(value))
    y, _ = step(scaler, state, x / 2, train=False)
    np.testing.assert_allclose(y, x / 2 - x, rtol=1e-6)


@kinds
def test_missing_entries(kind):
    """As scikit-learn's, which leaves NaN out; and an entry that is missing is scaled as a mean."""
    missing = np.random.default_rng(3).random(SKEWED.shape) < 0.3
    x = np.where(missing, np.nan, SKEWED).astype(np.float32)
    theirs = {"standard": StandardScaler, "minmax": MinMaxScaler}[kind]().fit(x.astype(float))
    scaler = jn.FeatureScaler(kind=kind)
    state, _ = seen(scaler, [x[:20], x[20:]], [~missing[:20], ~missing[20:]])
    for train in (False, True):
        y, _ = step(scaler, state, x, ~missing, train=train)
        exact = theirs.transform(x.astype(float))
        np.testing.assert_allclose(np.asarray(y)[~missing], exact[~missing], rtol=1e-5, atol=1e-6)
        mean = np.broadcast_to(theirs.transform(np.nanmean(x, 0, keepdims=True)), x.shape)
        np.testing.assert_allclose(np.asarray(y)[missing], mean[missing], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(state.count, (~missing).sum(0))


@kinds
def test_weights_are_repetitions(kind):
    repeat = np.array([0, 1, 2, 5] * 15)
    state, _ = seen(jn.FeatureScaler(kind=kind), [SKEWED], [repeat[:, None].astype(np.float32)])
    want, _ = seen(jn.FeatureScaler(kind=kind), [np.repeat(SKEWED, repeat, 0)])
    same(state, want, atol=1e-3)


@kinds
def test_nothing_included(kind):
    scaler = jn.FeatureScaler(kind=kind)
    _, fresh = scaler.init(4)
    for state, origin, unit in ((fresh, 0, 1), (seen(scaler, [SKEWED])[0], *measure(kind, SKEWED))):
        for x, where in ((SKEWED, np.zeros((60, 1), bool)), (SKEWED[:0], None)):
            y, after = step(scaler, state, x, where)
            chex.assert_trees_all_equal(after, state)
            np.testing.assert_allclose(y, (x - origin) / unit, rtol=1e-5, atol=1e-6)


@kinds
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_does_not_reach_the_state(kind, bad):
    scaler = jn.FeatureScaler(kind=kind)
    before, _ = seen(scaler, [SKEWED])
    x = SKEWED.copy()
    x[3, 1] = bad
    y, state = step(scaler, before, x)
    assert not np.isfinite(y[3, 1])
    assert np.isfinite(np.delete(y, 3, 0)).all()
    np.testing.assert_array_equal(state.count, [120, 60, 120, 120])
    for new, old in zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(new[1], old[1])


@pytest.mark.once
@kinds
def test_scan_vmap_and_grad(kind):
    scaler = jn.FeatureScaler(kind=kind)
    _, fresh = scaler.init(4)
    run = lambda x: jax.lax.scan(lambda state, part: step(scaler, state, part)[::-1], fresh, x)
    state, _ = run(SKEWED.reshape(6, 10, 4))
    want, _ = seen(scaler, np.split(SKEWED, 6))
    same(state, want, rtol=1e-6)
    states, _ = jax.vmap(run)(np.stack([SKEWED, 2 * SKEWED]).reshape(2, 6, 10, 4))
    np.testing.assert_allclose(states.mean, [state.mean, 2 * state.mean], rtol=1e-6)
    x = jax.random.normal(jax.random.key(0), (6, 4))
    check_grads(lambda x: step(scaler, state, x)[0], (x,), 2, atol=0.02, rtol=0.02)
    moved = jax.grad(lambda x: sum(v.sum() for v in step(scaler, state, x)[1]._replace(min=x[0], max=x[0])[:4]))(x)
    np.testing.assert_array_equal(moved, 0)
    assert jax.grad(lambda m: step(scaler, state._replace(mean=m), x)[1].mean.sum())(state.mean).min() > 0.5


@pytest.mark.once
@kinds
def test_padding_adds_nothing_to_gradients(kind):
    x, where = SKEWED.copy(), np.random.default_rng(4).random(SKEWED.shape) < 0.6
    x[~where] = np.nan
    scaler = jn.FeatureScaler(kind=kind)
    _, fresh = scaler.init(4)
    cotangent = np.where(where, np.random.default_rng(5).normal(size=x.shape), 0).astype(np.float32)
    grad = jax.grad(lambda x: (step(scaler, fresh, x, where)[0] * cotangent).sum())(jnp.asarray(x))
    assert np.isfinite(grad).all()
    np.testing.assert_array_equal(np.asarray(grad)[~where], 0)
    for c in range(4):
        column = jnp.asarray(x[where[:, c], c][:, None])
        _, one = scaler.init(1)
        alone = jax.grad(lambda x: (step(scaler, one, x)[0] * cotangent[where[:, c], c][:, None]).sum())(column)  # noqa: B023
        np.testing.assert_allclose(grad[where[:, c], c], alone[:, 0], rtol=1e-3, atol=1e-3 * np.abs(alone).max())


@pytest.mark.once
@kinds
@pytest.mark.parametrize(("devices", "check_vma"), [(2, True), (8, True), (8, False)])
def test_devices_see_all_data(kind, devices, check_vma):
    """Uneven masks, and a shard with nothing in it; values and gradients are those of the whole batch."""
    x, where = np.tile(SKEWED, (2, 1))[:64], np.random.default_rng(6).random((64, 4)) < 0.7
    where[: 64 // devices] = False
    g = np.random.default_rng(7).normal(size=x.shape).astype(np.float32)

    def run(scaler, x, where, g):
        _, state = scaler.init(4)
        state = step(scaler, state, 2 * x, where)[1]
        y, pull, state = jax.vjp(lambda x: step(scaler, state, x, where), x, has_aux=True)
        return y, state, pull(g)[0]

    split = P("batch")
    local = partial(run, jn.FeatureScaler(kind=kind, axis_name="batch"))
    over = jax.shard_map(
        local, mesh=mesh(batch=devices), in_specs=split, out_specs=(split, P(), split), check_vma=check_vma
    )
    found, want = jax.jit(over)(x, where, g), run(jn.FeatureScaler(kind=kind), x, where, g)
    same(found[1], want[1])
    for a, b in zip(found[::2], want[::2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    each = jax.tree.map(lambda v: v.reshape(devices, -1, 4), (x, where, g))
    y, state, grad = jax.jit(jax.vmap(local, axis_name="batch"))(*each)
    np.testing.assert_allclose(y.reshape(-1, 4), want[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grad.reshape(-1, 4), want[2], rtol=1e-4, atol=1e-4)
    same(jax.tree.map(lambda v: v[-1], state), want[1])


@kinds
@pytest.mark.parametrize("split", [P("batch"), P(None, "batch")])
@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
def test_sharded_arrays_need_no_name(kind, split, axes):
    scaler = jn.FeatureScaler(kind=kind)
    at = mesh(axes, batch=4)
    with jax.set_mesh(at):
        x = jax.device_put(SKEWED, NamedSharding(at, split))
        where = jax.device_put(SKEWED > 0.5, NamedSharding(at, split))
        state = scaler.init(4)[1]
        found = step(scaler, step(scaler, state, x, where)[1], 2 * x)
        y, state, back = jax.device_get((*found, jax.jit(scaler.inverse)(found[1], found[0])))
    _, want = step(scaler, scaler.init(4)[1], SKEWED, SKEWED > 0.5)
    exact, want = step(scaler, want, 2 * SKEWED)
    same(state, want)
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(back, 2 * SKEWED, rtol=1e-5)


@kinds
def test_states_merge(kind):
    scaler = jn.FeatureScaler(kind=kind)
    parts = [1e6 + SKEWED[:10], 1e6 + SKEWED[10:12], 1e6 + SKEWED[12:]]
    states = [seen(scaler, [part])[0] for part in parts]
    want, _ = seen(scaler, [np.concatenate(parts)])
    stacked = jax.tree.map(lambda *v: jnp.stack(v), *states)
    run = jax.vmap(lambda state: jn.merge(jax.tree.map(lambda v: v[None], state), axis=0, axis_name="host"),
                   axis_name="host")  # fmt: skip
    nothing = scaler.init(4)[1]
    mapped = jax.tree.map(lambda v: v[0], run(stacked))
    for whole in (jn.merge(*states, nothing), jn.merge(stacked, axis=0), mapped):
        y, _ = step(scaler, whole, parts[2], train=False)
        exact, _ = step(scaler, want, parts[2], train=False)
        np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(whole.count, 60)


@kinds
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_data(kind, dtype):
    x = jnp.asarray(SKEWED[:, :2], dtype)
    state, y = seen(jn.FeatureScaler(kind=kind), [x[:20], x])
    assert y.dtype == dtype
    assert {v.dtype for v in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}
    origin, unit = measure(kind, np.concatenate([x[:20], x]).astype(float))
    np.testing.assert_allclose(np.asarray(y, float), (np.asarray(x, float) - origin) / unit, rtol=8e-3, atol=1e-5)


@kinds
def test_double_precision(kind):
    with jax.enable_x64(True):
        x = SKEWED.astype(float) + 1e6
        for given, dtype in ((x, jnp.float64), (x, None), (SKEWED, jnp.float64)):
            scaler = jn.FeatureScaler(kind=kind)
            _, state = scaler.init(4, dtype)
            before = jax.tree.map(lambda v: v.dtype, state)
            y, state = scaler.apply(None, state, jnp.asarray(given), train=True)
            assert y.dtype == given.dtype
            assert jax.tree.map(lambda v: v.dtype, state) == before
            exact = scaled(kind, given)
            # Data in float64 with a state in float32: its extremes have steps of 1/16 at 1e6.
            if kind == "standard" or dtype is not None:
                np.testing.assert_allclose(y, exact, rtol=1e-4 if dtype is None else 1e-5, atol=1e-5)


def test_complex_data():
    x = SKEWED[:, :2] + 1j * SKEWED[:, 2:]
    scaler = jn.FeatureScaler()
    y, state = scaler.apply(None, scaler.init(2, jnp.complex64)[1], x, train=True)
    exact = (x - x.mean(0)) / np.sqrt((np.abs(x - x.mean(0)) ** 2).mean(0))
    np.testing.assert_allclose(y, exact, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scaler.inverse(state, y), x, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s: jn.FeatureScaler(kind="robust"), ValueError, "kind='robust' is none of"),
        (lambda s: jn.FeatureScaler().init((3, 4)), ValueError, "2 sizes"),
        (lambda s: s.apply(None, s.init(3)[1], np.ones((2, 3), int), train=True), TypeError, "dtype int"),
        (lambda s: s.apply(s.init(4)[1], None, SKEWED, train=True), TypeError, "swapped"),
        (lambda s: s.apply(jn.Affine(), s.init(4)[1], SKEWED, train=True), TypeError, "pass None"),
        (lambda s: s.apply(None, s.init(4)[1]._asdict(), SKEWED, train=True), TypeError, r"Moments\(\*\*state\)"),
        (lambda s: s.apply(None, None, SKEWED, train=True), TypeError, "as init makes it"),
        (lambda s: s.apply(None, s.init(60)[1], SKEWED, train=True), ValueError, "use channel_axis=0"),
        (lambda s: s.apply(None, s.init(4)[1], SKEWED, train=True, where=np.ones(4, bool)), ValueError, "where has"),
        (lambda s: s.inverse(s.init(3)[1], SKEWED), ValueError, "3 features"),
        (lambda s: jn.FeatureScaler(kind="minmax").apply(None, s.init(4)[1], SKEWED, train=True), ValueError, "extrem"),
        (lambda s: jn.FeatureScaler(channel_axis=2).apply(None, s.init(4)[1], SKEWED, train=True), ValueError, "range"),
        (lambda s: s.apply(None, s.init(4)[1], SKEWED.astype(complex), train=True), TypeError, "complex"),
        (lambda s: s.apply(None, s.init(4)[1]._replace(count=0.0), SKEWED, train=True), ValueError, "count is of"),
        (lambda s: s.apply(None, s.init(4)[1]._replace(m2=None), SKEWED, train=True), ValueError, "m2 is None"),
        (lambda s: jn.FeatureScaler(kind="minmax").init(2, jnp.complex64), TypeError, "have no order"),
        (lambda s: jn.FeatureScaler(axis_name="x").apply(None, s.init(4)[1], SKEWED, train=True), NameError, "bound"),
        (lambda s: jn.merge(jn.FeatureScaler(kind="minmax").init(4)[1], s.init(4)[1]), TypeError, "do not merge"),
        (lambda s: jax.jit(lambda t: s.apply(None, s.init(4)[1], SKEWED, train=t))(True), TypeError, "static_argnames"),
    ],
)  # fmt: skip
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call(jn.FeatureScaler())


@kinds
def test_the_first_layer_of_a_model_of_linen(kind):
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train, where=None):
            x = jn.linen.Norm(jn.FeatureScaler(kind=kind), name="scaler")(x, train=train, where=where)
            return x, jn.linen.Norm(jn.BatchNorm(), name="norm")(nn.Dense(3)(x), train=train)

    variables = Net().init(jax.random.key(0), SKEWED, train=True)
    assert "scaler" not in variables["params"]
    apply = jax.jit(partial(Net().apply, train=True, mutable=["batch_stats"]))
    for part in np.split(SKEWED, 3):
        _, updates = apply(variables, part)
        variables = {**variables, **updates}
    (y, _), _ = Net().apply(variables, SKEWED, train=False, mutable=["batch_stats"])
    assert oracle.ulps(y, scaled(kind, SKEWED)) < 16
    state = jn.Moments(**variables["batch_stats"]["scaler"])
    np.testing.assert_allclose(jn.FeatureScaler(kind=kind).inverse(state, y), SKEWED, rtol=1e-5)
    # What batch norms do between batches is not for it: it has seen all of them as one anyway.
    assert set(variables["batch_stats"]["scaler"]) == set(jn.accumulate(variables["batch_stats"])["scaler"])
    again = jn.linen.recalibrate(Net(), variables, np.split(SKEWED, 2))
    chex.assert_trees_all_equal(again["batch_stats"]["scaler"], variables["batch_stats"]["scaler"])


@kinds
def test_the_first_layer_of_a_model_of_nnx(kind):
    from flax import nnx

    layer = jn.nnx.Norm(jn.FeatureScaler(kind=kind), 4)
    step = nnx.jit(lambda layer, x: layer(x))
    for part in np.split(SKEWED, 3):
        step(layer, part)
    layer.eval()
    assert oracle.ulps(layer(SKEWED), scaled(kind, SKEWED)) < 16
    np.testing.assert_array_equal(layer.count[...], 60)
    assert nnx.state(layer, nnx.Param) == nnx.State({})


OBSERVATIONS = {"image": SKEWED.reshape(5, 3, 4, 4), "nested": {"speed": SKEWED[:5, :2]}}


def test_several_feature_axes_are_one_feature_each():
    """As one axis of all of them: brax's running statistics of images."""
    scaler = jn.FeatureScaler(channel_axis=(-2, -1))
    x = SKEWED.reshape(5, 3, 4, 4)
    y, state = step(scaler, scaler.init((4, 4))[1], x, train=True)
    flat, flat_state = step(jn.FeatureScaler(), jn.FeatureScaler().init(16)[1], x.reshape(5, 3, 16), train=True)
    assert state.mean.shape == (4, 4)
    np.testing.assert_allclose(y, flat.reshape(x.shape), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state.var.ravel(), flat_state.var, rtol=1e-5)
    np.testing.assert_allclose(scaler.inverse(state, y), x, rtol=1e-5, atol=1e-3)
    apart = jn.FeatureScaler(channel_axis=(0, 2))
    y, state = step(apart, apart.init((5, 4))[1], x, train=True)
    np.testing.assert_allclose(state.mean, x.mean((1, 3)), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(y).mean((1, 3)), 0, atol=1e-5)


@kinds
def test_mappings_of_observations(kind):
    scaler = jn.FeatureScaler(kind=kind, channel_axis=-1)
    sizes = {"image": 4, "nested": {"speed": 2}}
    params, state = scaler.init(sizes)
    masks = {"nested": {"speed": OBSERVATIONS["nested"]["speed"] > 1}}
    run = jax.jit(lambda state, x, where: scaler.apply(params, state, x, train=True, where=where))
    y, new = run(state, OBSERVATIONS, masks)
    chex.assert_trees_all_equal_structs(new, state)
    for x, got, got_state, mask in (
        (OBSERVATIONS["image"], y["image"], new["image"], None),
        (OBSERVATIONS["nested"]["speed"], y["nested"]["speed"], new["nested"]["speed"], masks["nested"]["speed"]),
    ):
        want, want_state = scaler.apply(None, scaler.init(x.shape[-1])[1], x, train=True, where=mask)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got_state.mean, want_state.mean, rtol=1e-6)
    back = scaler.inverse(new, y)
    np.testing.assert_allclose(back["image"], OBSERVATIONS["image"], rtol=1e-5, atol=1e-3)


def test_returns_keep_their_sign():
    """Scale without centring, as VecNormalize has it for rewards."""
    scaler = jn.FeatureScaler(center=False)
    y, state = step(scaler, scaler.init(4)[1], SKEWED, train=True)
    np.testing.assert_allclose(y, SKEWED / SKEWED.std(0, dtype=float), rtol=1e-5)
    np.testing.assert_allclose(scaler.inverse(state, y), SKEWED, rtol=1e-5)


@kinds
def test_clipped(kind):
    scaler = jn.FeatureScaler(kind=kind, clip=0.75)
    free = jn.FeatureScaler(kind=kind)
    y, state = step(scaler, scaler.init(4)[1], SKEWED, train=True)
    want, want_state = step(free, free.init(4)[1], SKEWED, train=True)
    np.testing.assert_array_equal(y, np.clip(want, -0.75, 0.75))
    chex.assert_trees_all_equal(state, want_state)
    assert np.isnan(step(scaler, state, SKEWED * np.nan, train=False)[0]).all()
    many = jn.FeatureScaler(kind=kind, clip=jnp.array([0.5, 1.0]))
    ys = jax.vmap(lambda s: s.apply(None, state, SKEWED, train=False)[0])(many)
    np.testing.assert_allclose(ys.max((1, 2)), [0.5, 1.0])


SCALER_MISTAKES = {
    "center=False goes with": lambda: jn.FeatureScaler(kind="minmax", center=False),
    "clip=-1 is not 0 or more": lambda: jn.FeatureScaler(clip=-1).apply(
        *jn.FeatureScaler().init(4), SKEWED, train=False
    ),
    "clip is for real numbers": lambda: step(
        jn.FeatureScaler(clip=1.0), jn.FeatureScaler().init(4, "complex64")[1], SKEWED.astype(complex), train=False
    ),
    r"x has entries \['image', 'nested'\], and the state is \['image'\]": lambda: step(
        jn.FeatureScaler(), jn.FeatureScaler().init({"image": 4})[1], OBSERVATIONS, train=False
    ),
    "the state is a Moments": lambda: step(
        jn.FeatureScaler(), jn.FeatureScaler().init(4)[1], OBSERVATIONS, train=False
    ),
    "where is a mapping of masks": lambda: jn.FeatureScaler().apply(
        None, jn.FeatureScaler().init({"a": 4})[1], {"a": SKEWED}, train=True, where=SKEWED > 1
    ),
    "2 normalized axes, but there are 1 sizes": lambda: jn.FeatureScaler(channel_axis=(1, 2)).init(4),
}


@pytest.mark.parametrize("message", SCALER_MISTAKES)
def test_mistakes(message):
    with pytest.raises((TypeError, ValueError), match=message):
        SCALER_MISTAKES[message]()


def test_evaluation_gives_back_the_very_state():
    """Else a module would want to write it, in evaluation, too."""
    scaler = jn.FeatureScaler()
    _, state = scaler.init(4)
    assert scaler.apply(None, state, SKEWED, train=False)[1] is state
    model = jn.linen.Norm(scaler)
    variables = model.init(jax.random.key(0), SKEWED, train=False)
    np.testing.assert_array_equal(model.apply(variables, SKEWED, train=False), SKEWED)
