"""What is no number stays visible: in all that shares a statistic with it, and nowhere else."""

from contextlib import nullcontext
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import CASES, EACH, WIDER, table
from flax import nnx
from platforms import on_every_platform, programs_for

import jaxnorm as jn

pytestmark = pytest.mark.long

DTYPES = {"float32": 1e30, "bfloat16": 1e30, "float16": None, "float64": 1e200}
"""With what overflows when it is squared, in the dtype of arithmetic: float16 holds nothing of that size."""

BAD = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
PROGRAMS = [("float32", "cpu"), ("float32", "cuda"), ("float32", "tpu"), ("bfloat16", "cuda"), ("bfloat16", "tpu")]
PROGRAMS += [("bfloat16", "cpu"), ("float16", "cuda"), ("float16", "cpu"), ("float64", "cpu")]
"""What is run where."""

in_programs = pytest.mark.parametrize(("dtype", "platform"), PROGRAMS)
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.03, "float16": 4e-3, "float64": 1e-12}


def wide(dtype):
    return jax.enable_x64(True) if dtype == "float64" else nullcontext()


def spoilt(spec, shape, x):
    """Data in which one statistic holds what is no number or overflows, and which positions share that statistic."""
    label = oracle.labels(spec, shape)
    chosen = label == label.flat[label.size // 2]
    one = np.flatnonzero(chosen)[-1]
    for name, bad in BAD.items():
        found = np.array(x)
        found.flat[one] = bad
        yield name, found, chosen
    if (large := DTYPES[str(x.dtype)]) is not None:
        # Neither a mean square nor, with both signs, a variance that a number holds.
        found = np.array(x)
        found[chosen] = large * np.where(np.arange(chosen.sum()) % 2, 1, -1)
        yield "overflow", found, chosen


def check(y, want, chosen, dtype, what):
    """NaN in all that is chosen, and the right values in all else."""
    y = np.asarray(y, float)
    np.testing.assert_array_equal(np.isnan(y), chosen, err_msg=what)
    np.testing.assert_allclose(y[~chosen], want[~chosen], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], err_msg=what)


def several(shape, spec, seed=4):
    """A mask in which every statistic has positions that count and, where it has three, one that does not."""
    where = np.ones(shape, bool)
    label = oracle.labels(spec, shape)
    for one in np.unique(label):
        positions = np.flatnonzero(label == one)
        where.flat[positions[:-2][:1]] = False
    return where


def run(case, dtype):
    """y and new state, without a mask and with one, compiled; and the parameters."""
    params, state = case.params(dtype)

    @jax.jit
    def both(x, where):
        apply = partial(case.spec.apply, params, state, train=True)
        return apply(x), apply(x, where=where)

    return params, state, both


@in_programs
def test_all_that_shares_a_statistic_and_nothing_else(dtype, platform):
    """For every norm, with a mask and without; in every layout in float32."""
    with programs_for(platform), wide(dtype):
        for case in [
            c for c in CASES if (dtype, platform) in (("float32", "cpu"), ("float32", "tpu")) or c.name in EACH
        ]:
            params, _, both = run(case, dtype)
            x = np.asarray(case.data(dtype))
            everything = np.ones(case.shape, bool)
            where = several(case.shape, case.spec)
            want, masked = case.exact(x, params), case.exact(x, params, where=where)
            for name, bad, chosen in spoilt(case.spec, case.shape, x):
                what = f"{case.name}, {name}"
                check(both(bad, everything)[0][0], want, chosen, dtype, what)
                # The last position of a statistic counts, and is the bad one.
                check(both(bad, where)[1][0], masked, chosen, dtype, f"{what}, masked")
                # The same position, but it does not count.
                if name == "overflow" or not (~where & chosen).any():
                    continue
                hidden = np.where(~where & chosen, bad[chosen].flat[-1], x).astype(x.dtype)
                seen = np.array(both(hidden, where)[1][0], float)
                tolerance = TOLERANCE[dtype]
                np.testing.assert_allclose(seen[where], masked[where], rtol=tolerance, atol=tolerance, err_msg=what)
                assert np.isfinite(seen).all(), what


@table([case for case in CASES + WIDER if case.name in EACH and case.name not in ("local response", "dynamic tanh")])
def test_gradients_of_all_that_shares_it_and_of_nothing_else(case):
    """A gradient of 0 in a spoilt example would be a plausible number, too."""
    params, state = case.params()
    g = case.data(seed=9)
    pull = jax.jit(lambda x: jax.vjp(lambda x: case.spec.apply(params, state, x, train=True)[0], x)[1](g)[0])
    x = np.asarray(case.data())
    clean = np.asarray(pull(x))
    for name, bad, chosen in spoilt(case.spec, case.shape, x):
        dx = np.asarray(pull(bad))
        np.testing.assert_array_equal(np.isnan(dx), chosen, err_msg=name)
        np.testing.assert_allclose(dx[~chosen], clean[~chosen], rtol=1e-5, atol=1e-5, err_msg=name)


@on_every_platform
def test_the_examples_of_the_report(platform):
    with programs_for(platform):
        row = jnp.array([1, 2, jnp.nan, 4])
        assert jnp.isnan(jn.rms_norm(row)).all()
        assert jnp.isnan(jax.jit(jn.rms_norm)(row)).all()
        both = jax.jit(jn.rms_norm)(jnp.stack([row, jnp.arange(4.0)]))
        np.testing.assert_array_equal(jnp.isnan(both), [[True] * 4, [False] * 4])
        for norm in (jn.rms_norm, jn.layer_norm):
            y = jax.jit(norm)(jnp.array([[1e30, -1e30, 1e30, -2e30], [1.0, -1.0, 1.0, -1.0]]))
            np.testing.assert_array_equal(jnp.isnan(y), [[True] * 4, [False] * 4])
            np.testing.assert_allclose(y[1], [1, -1, 1, -1], rtol=1e-5)


@on_every_platform
@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_a_weighted_nan_counts_and_one_of_weight_zero_does_not(weight, platform):
    with programs_for(platform):
        x = jnp.array([[1.0, jnp.nan, 3.0, 5.0], [1.0, 2.0, 3.0, 4.0]])
        for norm in (jn.rms_norm, jn.layer_norm):
            run = jax.jit(lambda x, where, norm=norm: norm(x, where=where))
            y = run(x, jnp.full(x.shape, weight))
            np.testing.assert_array_equal(jnp.isnan(y), [[True] * 4, [False] * 4])
            y = run(x, jnp.full(x.shape, weight).at[0, 1].set(0))
            assert jnp.isfinite(y).all()
            np.testing.assert_allclose(y[0, jnp.array([0, 2, 3])], norm(jnp.array([1.0, 3.0, 5.0])), rtol=1e-5)


@on_every_platform
def test_one_ghost_and_no_other(platform):
    spec, shape = jn.BatchNorm(virtual_batch_size=2), (6, 5, 4)
    params, state = spec.init(4)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    index = np.indices(shape)
    with programs_for(platform):
        apply = jax.jit(lambda x: spec.apply(params, state, x, train=True))
        clean, _ = apply(x)
        for value in (*BAD.values(), None):
            bad, chosen = x.copy(), (index[0] // 2 == 1) & (index[2] == 3)
            if value is None:
                bad[chosen] = 1e30 * np.where(np.arange(chosen.sum()) % 2, 1, -1)
            else:
                bad[3, 2, 3] = value
            y, new = apply(bad)
            np.testing.assert_array_equal(np.isnan(y), chosen)
            np.testing.assert_allclose(y[~chosen], clean[~chosen], rtol=1e-5, atol=1e-6)
            # The state is of the whole batch.
            assert (new.mean[3], new.var[3]) == (0, 1)
            assert (np.asarray(new.mean[:3]) != 0).all()


def test_a_gate_between_two_norms_shows_what_either_holds():
    spec, shape = jn.BatchInstanceNorm(), (3, 5, 4)
    params, state = spec.init(4)
    params = params._replace(gate=jnp.full(4, 0.5))
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for value in BAD.values():
        bad = x.copy()
        bad[1, 2, 3] = value
        y, new = jax.jit(lambda x: spec.apply(params, state, x, train=True))(bad)
        np.testing.assert_array_equal(np.isnan(y), np.indices(shape)[2] == 3)
        assert (new.mean[3], new.var[3]) == (0, 1)


@in_programs
def test_the_state_keeps_its_value_where_a_batch_was_not_finite(dtype, platform):
    with programs_for(platform), wide(dtype):
        for spec, shape in ((jn.BatchNorm(momentum=0.9), (8, 3, 4)), (jn.BatchNorm(channel_axis=1), (8, 4, 3))):
            params, state = spec.init(4, jnp.float64 if dtype == "float64" else None)
            state = state._replace(mean=state.mean + jnp.arange(1, 5, dtype=state.mean.dtype))
            apply = jax.jit(lambda s, x, spec=spec, params=params: spec.apply(params, s, x, train=True)[1])
            x = np.asarray(jax.random.normal(jax.random.key(0), shape, dtype))
            clean = apply(state, x)
            for name, bad, chosen in spoilt(spec, shape, x):
                new = apply(state, bad)
                where = np.unique(np.indices(shape)[spec.channel_axis][chosen])
                assert len(where) == 1
                for got, old, other in zip(new[:2], state[:2], clean[:2], strict=True):
                    want = np.array(other)
                    want[where] = np.asarray(old)[where]
                    np.testing.assert_allclose(got, want, rtol=1e-5, err_msg=name)
                    np.testing.assert_array_equal(np.asarray(got)[where], want[where], err_msg=name)


# Evaluation


CORRUPT = {
    "negative": (0.0, -0.5),
    "slightly negative": (0.0, -1e-7),
    "nan": (0.0, np.nan),
    "inf": (0.0, np.inf),
    "mean nan": (np.nan, 1.0),
}


def corrupt_state(spec, kind, dtype=None):
    """Running statistics of four channels, of which the third is corrupt."""
    state = spec.init(4, dtype)[1]
    mean, var = CORRUPT[kind]
    dtype = state.mean.dtype
    return state._replace(
        mean=jnp.array([1.0, -2.0, mean, 0.5], dtype), var=jnp.array([4.0, 0.25, var, 1.0], state.var.dtype)
    )


TRACKING = {
    "batch NHWC": (jn.BatchNorm(), (3, 5, 2, 4)),
    "batch NCHW": (jn.BatchNorm(channel_axis=1), (3, 4, 5, 2)),
    "batch ghosts": (jn.BatchNorm(virtual_batch_size=2), (4, 4)),
    "instance tracked": (jn.InstanceNorm(track=True), (3, 5, 4)),
    "gate": (jn.BatchInstanceNorm(), (3, 5, 4)),
}


@in_programs
def test_a_corrupt_running_statistic_is_no_bias(dtype, platform):
    """A variance below 0, be it above −ε, NaN, or infinite: its channel is NaN, and the others are what they were."""
    with programs_for(platform), wide(dtype):
        for name, (spec, shape) in TRACKING.items():
            if dtype != "float32" and not name.startswith("batch N"):
                continue
            param_dtype = jnp.float64 if dtype == "float64" else None
            params, _ = spec.init(4, param_dtype)
            apply = jax.jit(lambda s, x, spec=spec, params=params: spec.apply(params, s, x, train=False)[0])
            x = np.asarray(jax.random.normal(jax.random.key(0), shape, dtype))
            channel = np.indices(shape)[spec.channel_axis]
            mean, var = np.array([1.0, -2.0, 0, 0.5])[channel], np.array([4, 0.25, 1, 1.0])[channel]
            want = (np.asarray(x, float) - mean) / np.sqrt(var + 1e-5)
            for kind in CORRUPT:
                y = apply(corrupt_state(spec, kind, param_dtype), x)
                check(y, want, channel == 2, dtype, f"{name}, {kind}")


def test_no_mask_and_no_epsilon_hides_a_corrupt_running_statistic():
    x = jax.random.normal(jax.random.key(0), (6, 4))
    where = jnp.arange(6)[:, None] < 3
    for epsilon in (0.0, 1e-5, 10.0):
        run = jax.jit(lambda s, x, e, w: jn.batch_norm(x, s, train=False, epsilon=e, where=w)[0])
        for kind in CORRUPT:
            for mask in (where, jnp.zeros_like(where)):
                y = run(corrupt_state(jn.BatchNorm(), kind), x, epsilon, mask)
                np.testing.assert_array_equal(np.isnan(y), np.broadcast_to(np.arange(4) == 2, (6, 4)), err_msg=kind)


@pytest.mark.parametrize("kind", CORRUPT)
def test_gradients_of_other_channels_are_right_beside_a_corrupt_one(kind):
    x, g = jax.random.normal(jax.random.key(0), (2, 6, 4))
    run = jax.jit(lambda s: jax.vjp(lambda x: jn.batch_norm(x, s, train=False)[0], x)[1](g)[0])
    dx = np.asarray(run(corrupt_state(jn.BatchNorm(), kind)))
    want = np.asarray(g) / np.sqrt(np.array([4, 0.25, 1, 1]) + 1e-5)
    np.testing.assert_allclose(dx[:, [0, 1, 3]], want[:, [0, 1, 3]], rtol=1e-5)
    if CORRUPT[kind][1] != 1:
        assert not np.isfinite(dx[:, 2]).any()


@in_programs
def test_a_nan_in_evaluation_is_there_alone(dtype, platform):
    with programs_for(platform), wide(dtype):
        for name in ("batch NHWC", "instance tracked") if dtype == "float32" else ("batch NCHW",):
            spec, shape = TRACKING[name]
            params, state = spec.init(4, jnp.float64 if dtype == "float64" else None)
            x = np.array(jax.random.normal(jax.random.key(0), shape, dtype))
            clean = np.asarray(x, float) / np.sqrt(1 + 1e-5)
            there = np.zeros(shape, bool)
            there.flat[x.size // 2] = True
            x[there] = np.nan
            y = jax.jit(lambda x, spec=spec, params=params, s=state: spec.apply(params, s, x, train=False)[0])(x)
            check(y, clean, there, dtype, str(spec))


@pytest.mark.parametrize("kind", CORRUPT)
def test_training_is_by_the_batch_whatever_the_running_statistics_are(kind):
    x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32) + 3
    y, _ = jax.jit(lambda s: jn.batch_norm(x, s, train=True))(corrupt_state(jn.BatchNorm(), kind))
    assert oracle.ulps(y, oracle.normalize(jn.BatchNorm(), x)) < 16


@pytest.mark.parametrize("var", [-0.5, -1e-7, np.nan])
def test_replicas_with_a_corrupt_variance_do_not_merge_into_a_plausible_one(var):
    state = jn.BatchNorm().init(3)[1]
    other = state._replace(mean=jnp.array([1.0, 2.0, 3.0]), var=jnp.array([1.0, 2.0, 3.0]))
    corrupt = other._replace(var=jnp.array([1.0, var, 3.0]))
    for states in ((corrupt, other), (other, corrupt), (corrupt,), (corrupt, corrupt)):
        merged = jn.merge_running(*states)
        np.testing.assert_array_equal(np.isnan(merged.var), [False, True, False])
        np.testing.assert_allclose(merged.var[::2], [1, 3], rtol=1e-6)
        stacked = jax.tree.map(lambda *v: jnp.stack(v), *states)
        np.testing.assert_array_equal(np.isnan(jn.merge_running(stacked, axis=0).var), [False, True, False])


def test_replicas_with_an_infinite_variance_merge_into_no_number():
    state = jn.BatchNorm().init(2)[1]
    corrupt = state._replace(var=jnp.array([1.0, jnp.inf]))
    merged = jn.merge_running(corrupt, state)
    np.testing.assert_array_equal(np.isfinite(merged.var), [True, False])


# A constant is no corruption


@in_programs
def test_a_constant_still_gives_the_bias_beside_what_is_nan(dtype, platform):
    """Also with ε = 0, where the factor would be infinite."""
    with programs_for(platform), wide(dtype):
        for norm, constants in ((jn.layer_norm, (0.0, 0.5, 3.0)), (jn.rms_norm, (0.0,))):
            bias = jnp.arange(1, 9, dtype=dtype)

            @jax.jit
            def run(x, epsilon, norm=norm, bias=bias):
                loss = lambda x: norm(x, bias=bias, epsilon=epsilon)[1:].sum()
                return norm(x, bias=bias, epsilon=epsilon), jax.grad(loss)(x)

            for constant in constants:
                for epsilon in (0.0, 1e-5):
                    x = jnp.full((3, 8), constant, dtype).at[0, 3].set(jnp.nan)
                    y, dx = run(x, epsilon)
                    assert jnp.isnan(y[0]).all()
                    np.testing.assert_array_equal(y[1:], jnp.broadcast_to(bias, (2, 8)))
                    assert jnp.isfinite(dx[1:]).all()


def test_a_running_variance_of_zero_is_no_corruption():
    x = jax.random.normal(jax.random.key(0), (6, 3))
    state = jn.BatchNorm().init(3)[1]._replace(var=jnp.zeros(3))
    y, _ = jn.batch_norm(x, state, train=False)
    np.testing.assert_allclose(y, np.asarray(x) / np.sqrt(1e-5), rtol=1e-5)
    y, _ = jn.batch_norm(x, state, bias=2.0, train=False, epsilon=0.0)
    np.testing.assert_array_equal(y, 2)


# Drop-ins


KEY = jax.random.key(0)
SPECS = {
    "BatchNorm": jn.BatchNorm(),
    "LayerNorm": jn.LayerNorm(),
    "RMSNorm": jn.RMSNorm(),
    "GroupNorm": jn.GroupNorm(groups=2),
    "InstanceNorm": jn.InstanceNorm(),
}


def drop_in(library, name, dtype):
    """A function of data and mask in training, with y alone."""
    extra = {"num_groups": 2} if name == "GroupNorm" else {}
    if library == "nnx":
        module = getattr(jn.nnx, name)(4, **extra, rngs=nnx.Rngs(0))
        graph, state = nnx.split(module)
        # Statistics are those of the batch, and new running ones are dropped.
        return jax.jit(lambda x, mask: nnx.merge(graph, state, copy=True)(x, mask=mask))
    train = {"use_running_average": False} if name == "BatchNorm" else {}
    module = getattr(jn.linen, name)(**extra, **train)
    variables = module.init(KEY, jnp.zeros((3, 5, 4), dtype))
    return jax.jit(lambda x, mask: module.apply(variables, x, mask=mask, mutable=["batch_stats"])[0])


@pytest.mark.parametrize(("dtype", "platform"), [("float32", "cpu"), ("float32", "tpu"), ("bfloat16", "cuda")])
@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_drop_ins(dtype, library, platform):
    shape = (3, 5, 4)
    with programs_for(platform), jax.numpy_dtype_promotion("standard"):
        for name, spec in SPECS.items():
            run = drop_in(library, name, dtype)
            x = np.asarray(jax.random.normal(KEY, shape, dtype))
            where = several(shape, spec)
            for mask in (None, where):
                want = oracle.normalize(spec, x, where=mask, epsilon=1e-5 if name == "BatchNorm" else 1e-6)
                for kind, bad, chosen in spoilt(spec, shape, x):
                    check(run(bad, mask), want, chosen, dtype, f"{name}, {kind}")


@pytest.mark.parametrize("kind", CORRUPT)
def test_drop_ins_in_evaluation(kind):
    x = jax.random.normal(KEY, (6, 4))
    state = corrupt_state(jn.BatchNorm(), kind)
    stats = {"mean": state.mean, "var": state.var}
    theirs = nn.BatchNorm(use_running_average=True)
    variables = {**theirs.init(KEY, x), "batch_stats": stats}
    clean = theirs.apply({**variables, "batch_stats": {"mean": jnp.nan_to_num(state.mean), "var": jnp.ones(4)}}, x)
    assert jnp.isfinite(clean).all()
    linen = jn.linen.BatchNorm(use_running_average=True)
    module = jn.nnx.BatchNorm(4, use_running_average=True, rngs=nnx.Rngs(0))
    module.mean[...], module.var[...] = state.mean, state.var
    norm = jn.nnx.Norm(jn.BatchNorm(), 4, use_running_average=True)
    norm.mean[...], norm.var[...] = state.mean, state.var
    for y in (linen.apply(variables, x), module(x), norm(x)):
        np.testing.assert_array_equal(np.isnan(y), np.broadcast_to(np.arange(4) == 2, (6, 4)))
        want = (np.asarray(x) - np.asarray(state.mean)) / np.sqrt(np.asarray([4, 0.25, 1, 1]) + 1e-5)
        np.testing.assert_allclose(y[:, [0, 1, 3]], want[:, [0, 1, 3]], rtol=1e-5)
