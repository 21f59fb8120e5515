"""Averages that know for how much data they stand: debiased ones, and cumulative ones, against weights by hand."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxnorm as jn

KEY = jax.random.key(0)


def normal(*shape, mean=0.0, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) + mean).astype(np.float32)


XS = normal(6, 8, 3) * np.array([1, 2, 3], np.float32) + normal(6, 1, 3, mean=[0, 100, -20], seed=1)
X = XS[0]
PARAMS = jn.Affine(jnp.ones(3), jnp.zeros(3))

specs_with = pytest.mark.parametrize("kwargs", [{"debias": True}, {"momentum": None}], ids=["debias", "cumulative"])
step = jax.jit(lambda spec, state, x, where=None: spec.apply(PARAMS, state, x, train=True, where=where)[1])


def average(start, weight, found, momenta, cumulative=False):
    """Every value with its weight, in float64; NaN in `found`: this channel had no data. Returns it and their sum.

    Without the recursion: batch i has weight (1 − mᵢ) Π m of the batches with data after it, and the old value `weight`
    times the product of all; in a cumulative average all have weight 1. Where nothing has weight, the start remains.
    """
    start, found = np.asarray(start, float), np.asarray(found, float)
    value, sums = start.copy(), np.zeros_like(start)
    for c in range(start.size):
        rows = [i for i in range(len(found)) if not np.isnan(found[i, c])]
        m = [1.0 if cumulative else float(momenta[i]) for i in rows]
        after = [np.prod(m[j + 1 :]) for j in range(len(m))]
        new = [1.0 if cumulative else (1 - m[j]) * after[j] for j in range(len(m))]
        old = float(np.broadcast_to(weight, start.shape)[c]) * np.prod(m)
        sums[c] = old + sum(new)
        if sums[c] > 0:
            value[c] = (old * start[c] + sum(w * found[i, c] for w, i in zip(new, rows, strict=True))) / sums[c]
    return value, sums


def of_batches(xs, wheres=None, ddof=0):
    """Means and variances of batches, in float64; NaN where there are no more than ddof, or data are not finite."""
    means, variances = [], []
    for i, x in enumerate(np.asarray(xs, float)):
        where = np.ones(x.shape, bool) if wheres is None else np.broadcast_to(wheres[i], x.shape)
        n = where.sum(0)
        some = np.where(n > ddof, n, 1)
        mean = np.where(where, x, 0).sum(0) / some
        var = np.where(where, (x - mean) ** 2, 0).sum(0) / np.where(n > ddof, n - ddof, 1)
        known = (n > ddof) & np.isfinite(mean) & np.isfinite(var)
        means.append(np.where(known, mean, np.nan))
        variances.append(np.where(known, var, np.nan))
    return np.array(means), np.array(variances)


def check(state, start, xs, momentum, wheres=None, ddof=0, rtol=2e-5):
    """The state after these batches is that of the oracle."""
    momenta = np.broadcast_to(0.0 if momentum is None else momentum, len(xs))
    for name, found in zip(("mean", "var"), of_batches(xs, wheres, ddof), strict=True):
        want, weight = average(getattr(start, name), start.weight_sum, found, momenta, momentum is None)
        np.testing.assert_allclose(getattr(state, name), want, rtol=rtol, atol=1e-5)
        np.testing.assert_allclose(state.weight_sum, weight, rtol=1e-5, atol=1e-7)
    assert state.weight_sum.dtype == jnp.float32


def some_state(weight=2.0):
    weight = jnp.broadcast_to(jnp.asarray(weight, jnp.float32), 3)
    return jn.RunningStats(jnp.array([1.0, 90.0, -30.0]), jnp.array([2.0, 3.0, 4.0]), weight)


# What is made.


@specs_with
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16, jnp.complex64])
@pytest.mark.parametrize("make", [jn.BatchNorm, jn.BatchInstanceNorm, lambda **kw: jn.InstanceNorm(track=True, **kw)])
def test_init_makes_zeros_of_the_shape_of_the_mean(make, kwargs, dtype):
    _, state = make(**kwargs).init(3, dtype)
    assert (state.weight_sum.dtype, state.weight_sum.shape) == (jnp.float32, state.mean.shape)
    np.testing.assert_array_equal(state.weight_sum, 0)
    assert (state.mean.sum(), state.var.sum()) == (0, 3)


def test_there_is_none_where_averages_need_not_know():
    for spec in (jn.BatchNorm(), jn.BatchNorm(momentum=jnp.float32(0.5)), jn.BatchNorm(debias=False)):
        assert spec.init(3)[1].weight_sum is None
        assert step(spec, spec.init(3)[1], X).weight_sum is None
    assert jn.InstanceNorm().init(3)[1] is None


def test_debias_is_structure():
    assert jax.tree.leaves(jn.BatchNorm(debias=True)) == jax.tree.leaves(jn.BatchNorm())
    assert jax.tree.structure(jn.BatchNorm(debias=True)) != jax.tree.structure(jn.BatchNorm())


# Values.


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99, 0.999999, 1 - 2**-24, None])
def test_the_first_update_gives_the_statistics_of_the_batch(momentum):
    """However near to 1 the momentum is."""
    spec = jn.BatchNorm(momentum=momentum, debias=momentum is not None)
    state = step(spec, spec.init(3)[1], X)
    np.testing.assert_allclose(state.mean, X.mean(0, dtype=float), rtol=3e-7)
    np.testing.assert_allclose(state.var, X.var(0, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(state.weight_sum, 1 if momentum is None else 1 - np.float32(momentum), rtol=1e-6)


def test_evaluation_is_right_from_the_first_update_on():
    """Where a plain average is 0.99 of what it began with."""
    for spec in (jn.BatchNorm(debias=True), jn.BatchNorm(momentum=None)):
        y, _ = spec.apply(PARAMS, step(spec, spec.init(3)[1], X), X, train=False)
        exact = (X - X.mean(0, dtype=float)) / np.sqrt(X.var(0, dtype=float) + 1e-5)
        np.testing.assert_allclose(y, exact, rtol=1e-4, atol=1e-4)


def test_evaluation_before_any_update_is_by_mean_0_and_variance_1():
    for spec in (jn.BatchNorm(debias=True), jn.BatchNorm(momentum=None)):
        y, state = spec.apply(PARAMS, spec.init(3)[1], X, train=False)
        np.testing.assert_allclose(y, X / np.sqrt(1 + 1e-5), rtol=1e-6)
        np.testing.assert_array_equal(state.weight_sum, 0)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99, 1.0, None])
@pytest.mark.parametrize("start", [0.0, 1.0, 2.0, 1e-3])
def test_many_updates(momentum, start):
    spec, state = jn.BatchNorm(momentum=momentum, debias=True), some_state(start)
    got = jax.jit(lambda spec, state: lax.scan(lambda s, x: (step(spec, s, x), None), state, XS)[0])(spec, state)
    check(got, state, XS, momentum)


def test_momentum_1_keeps_all():
    """Also where there is nothing yet: 0 / 0 elsewhere."""
    spec = jn.BatchNorm(momentum=1.0, debias=True)
    for state in (spec.init(3)[1], some_state()):
        chex.assert_trees_all_equal(step(spec, state, X), state)


def test_momentum_0_keeps_nothing():
    """Not even a NaN."""
    spec = jn.BatchNorm(momentum=0.0, debias=True)
    for state in (some_state(), some_state()._replace(mean=jnp.full(3, jnp.nan))):
        new = step(spec, state, X)
        np.testing.assert_allclose(new.mean, X.mean(0, dtype=float), rtol=1e-6)
        np.testing.assert_array_equal(new.weight_sum, 1)


def test_a_momentum_that_changes():
    """As a schedule has it: each batch weighs what its own momentum said, and later ones left."""
    momenta = np.array([0.0, 0.9, 1.0, 0.5, 0.99, 0.25], np.float32)
    spec = lambda m: jn.BatchNorm(momentum=m, debias=True)
    state = some_state(3.0)
    got, _ = jax.jit(lambda s: lax.scan(lambda s, xm: (step(spec(xm[1]), s, xm[0]), None), s, (XS, momenta)))(state)
    check(got, state, XS, momenta)


@pytest.mark.parametrize("weight", [0.0, 2.0**24])
def test_thousands_of_updates_of_a_cumulative_average(weight):
    """At 2²⁴ one more is nothing in float32: what is known may stand still there, and never drifts."""
    xs = normal(4096, 4, 3, mean=[10, 0, 1000])
    means, variances = of_batches(xs)
    state = jn.BatchNorm(momentum=None).init(3)[1]
    if weight:
        state = jn.RunningStats(*(jnp.asarray(v.mean(0), jnp.float32) for v in (means, variances)), jnp.full(3, weight))
    run = jax.jit(lambda s: lax.scan(lambda s, x: (step(jn.BatchNorm(momentum=None), s, x), None), s, xs)[0])
    state = run(state)
    np.testing.assert_allclose(state.mean, means.mean(0), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(state.var, variances.mean(0), rtol=2e-5)
    np.testing.assert_allclose(state.weight_sum, weight + 4096, rtol=3e-4)


def test_thousands_of_debiased_updates():
    """The weight settles at 1, and a constant stays what it is."""
    x = jnp.stack([X] * 2).reshape(16, 3)
    spec = jn.BatchNorm(debias=True)
    run = jax.jit(lambda s: lax.scan(lambda s, _: (step(spec, s, x), None), s, None, length=4096)[0])
    for weight in (0.0, 1.0, 2.0**24):
        start = spec.init(3)[1]._replace(weight_sum=jnp.full(3, weight))
        if weight:
            start = step(jn.BatchNorm(momentum=0.0, debias=True), start, x)._replace(weight_sum=jnp.full(3, weight))
        state = run(start)
        np.testing.assert_allclose(state.mean, X.mean(0, dtype=float), rtol=2e-5)
        np.testing.assert_allclose(state.var, X.var(0, dtype=float), rtol=2e-5)
        np.testing.assert_allclose(state.weight_sum, 1, rtol=1e-3)


@specs_with
@pytest.mark.parametrize("ddof", [0, 1])
def test_channels_without_data_keep_value_and_weight(kwargs, ddof):
    """By masks of each channel, by NaN, and by too little for a variance; the others go on."""
    wheres = np.random.default_rng(0).random((6, 8, 3)) > 0.4
    wheres[0, :, 1] = wheres[1:3, :, 2] = wheres[:, :, 0] = False
    wheres[2, 3, 0] = True  # one alone: enough for ddof=0
    wheres[4, :, 0] = True
    xs = XS.copy()
    xs[3, :, 1] = np.where(wheres[3, :, 1], np.nan, 0)
    spec = jn.BatchNorm(ddof=ddof, **{"momentum": 0.75, **kwargs})
    for start in (spec.init(3)[1], some_state()):
        state = start
        for i, (x, where) in enumerate(zip(xs, wheres, strict=True)):
            old, state = state, step(spec, state, x, where)
            means, _ = of_batches(xs[i : i + 1], wheres[i : i + 1], ddof)
            for v, was in zip(state, old, strict=True):
                np.testing.assert_array_equal(np.where(np.isnan(means[0]), v, 0), np.where(np.isnan(means[0]), was, 0))
        check(state, start, xs, kwargs.get("momentum", 0.75), wheres, ddof)
    assert (np.asarray(spec.init(3)[1].weight_sum) == 0).all()


@specs_with
def test_a_batch_without_any_data_changes_nothing(kwargs):
    spec = jn.BatchNorm(**kwargs)
    for state in (spec.init(3)[1], some_state()):
        for x, where in ((X, np.zeros((8, 1), bool)), (np.full_like(X, np.nan), None), (np.full_like(X, np.inf), None)):
            chex.assert_trees_all_equal(step(spec, state, x, where), state)


@specs_with
def test_weights_of_positions_do_not_weigh_the_update(kwargs):
    """One batch is one update, however much is in it: a hundredfold mask gives the same."""
    spec = jn.BatchNorm(**kwargs)
    where = (np.arange(8.0, dtype=np.float32) % 3 + 1)[:, None]
    one, other = (step(spec, some_state(), X, w) for w in (where, 100 * where))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6)
    np.testing.assert_array_equal(one.weight_sum, other.weight_sum)


@specs_with
def test_other_norms_with_running_statistics(kwargs):
    """By the same rule, also where statistics are those of each example, averaged."""
    xs = normal(4, 2, 5, 3, mean=3)
    batch, instance = jn.BatchInstanceNorm(**kwargs), jn.InstanceNorm(track=True, **kwargs)
    a, b = batch.init(3)[1], instance.init(3)[1]
    for x in xs:
        a = batch.apply(batch.init(3)[0], a, x, train=True)[1]
        b = instance.apply(PARAMS, b, x, train=True)[1]
    m = kwargs.get("momentum", 0.99)
    check(a, batch.init(3)[1], xs.reshape(4, 10, 3), m)
    exact = xs.astype(float)
    for name, found in (("mean", exact.mean((1, 2))), ("var", exact.var(2).mean(1))):
        start = getattr(instance.init(3)[1], name)
        want, weight = average(start, 0, found, [m or 0] * 4, m is None)
        np.testing.assert_allclose(getattr(b, name), want, rtol=1e-5)
        np.testing.assert_allclose(b.weight_sum, weight, rtol=1e-5)


# Derivatives and transformations.


def test_a_grid_of_momenta():
    """One of them 1, which keeps: no NaN among the others."""
    momenta = jnp.array([0.0, 0.5, 0.9, 1.0])
    grid = jn.BatchNorm(momentum=momenta, epsilon=jnp.full(4, 1e-5), debias=True)
    for start in (jn.BatchNorm(debias=True).init(3)[1], some_state()):
        run = lambda spec, start=start: lax.scan(lambda s, x: (step(spec, s, x), None), start, XS)[0]
        states = jax.jit(jax.vmap(run))(grid)
        for i, m in enumerate(np.asarray(momenta)):
            check(jax.tree.map(lambda v, i=i: v[i], states), start, XS, m)


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("momentum", [0.0, 0.25, 0.9, 1.0])
def test_derivatives_in_momentum_and_in_the_old_state(momentum, weight):
    """keep = m w / w′ with w′ = m w + 1 − m: d keep / dm = w / w′², d keep / dw = m (1 − m) / w′²."""
    state = some_state(weight)
    of = lambda m, s: step(jn.BatchNorm(momentum=m, debias=True), s, X)
    m, w = momentum, weight
    total = m * w + 1 - m
    for name, found in (("mean", X.mean(0, dtype=float)), ("var", X.var(0, dtype=float))):
        by_m, by_s = jax.jacrev(lambda m, s, name=name: getattr(of(m, s), name), (0, 1))(momentum, state)
        apart = np.asarray(getattr(state, name), float) - found
        np.testing.assert_allclose(by_m, apart * w / total**2, rtol=1e-4)
        np.testing.assert_allclose(by_s.weight_sum, np.diag(apart) * m * (1 - m) / total**2, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(getattr(by_s, name), np.eye(3) * m * w / total, rtol=1e-5)
    by_m, by_s = jax.jacrev(lambda m, s: of(m, s).weight_sum, (0, 1))(momentum, state)
    np.testing.assert_allclose(by_m, w - 1, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_s.weight_sum, np.eye(3) * m, rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
def test_derivatives_where_nothing_has_weight_are_0(momentum):
    """The first update is the batch, whatever the momentum; with momentum 1 nothing changes. Nowhere is 0 / 0."""
    spec = lambda m: jn.BatchNorm(momentum=m, debias=True)
    state = spec(0.5).init(3)[1]
    for transform in (jax.jacrev, jax.jacfwd):
        of = lambda m, mean, var: step(spec(m), state._replace(mean=mean, var=var), X)
        by_m, by_mean, by_var = (transform(of, i)(momentum, state.mean, state.var) for i in range(3))
        np.testing.assert_array_equal(by_m.mean, 0)
        np.testing.assert_array_equal(by_m.var, 0)
        np.testing.assert_array_equal(by_mean.mean, np.eye(3) * (momentum == 1))
        np.testing.assert_array_equal(by_var.var, np.eye(3) * (momentum == 1))
        chex.assert_tree_all_finite((by_m, by_mean, by_var))
        by_weight = transform(lambda w: step(spec(momentum), state._replace(weight_sum=w), X))(state.weight_sum)
        chex.assert_tree_all_finite(by_weight)


@specs_with
def test_derivatives_in_channels_without_data_are_0(kwargs):
    """They give the old state back; through NaN, too."""
    cumulative = "momentum" in kwargs
    x = np.where([False, True, False], np.nan, X).astype(np.float32)
    where = np.ones((8, 3), bool)
    where[:, 2] = False

    def of(m, state, x):
        spec = jn.BatchNorm(**kwargs) if cumulative else jn.BatchNorm(momentum=m, **kwargs)
        return step(spec, state, x, where)

    by_m, by_state, by_x = (jax.jacrev(of, i)(0.5, some_state(), x) for i in range(3))
    for name in ("mean", "var", "weight_sum"):
        np.testing.assert_array_equal(getattr(by_m, name)[1:], 0)
        np.testing.assert_array_equal(getattr(getattr(by_state, name), name)[1:], np.eye(3)[1:])
        np.testing.assert_array_equal(getattr(by_x, name), 0)
    np.testing.assert_array_equal(by_state.mean.weight_sum[1:], 0)
    chex.assert_tree_all_finite((by_m, by_state))


@specs_with
@pytest.mark.parametrize("x", [XS, XS.astype(jnp.bfloat16), XS.astype(np.float16)], ids=lambda x: str(x.dtype))
def test_the_state_is_a_carry(kwargs, x):
    spec = jn.BatchNorm(**kwargs)
    start = spec.init(3)[1]
    state, weights = jax.jit(lambda s: lax.scan(lambda s, x: (step(spec, s, x), s.weight_sum), s, jnp.asarray(x)))(
        start
    )
    assert jax.tree.map(lambda v: (v.shape, v.dtype), state) == jax.tree.map(lambda v: (v.shape, v.dtype), start)
    check(state, start, np.asarray(x, np.float32), kwargs.get("momentum", 0.99), rtol=1e-4)
    assert (np.diff(weights[:, 0]) > 0).all()


@specs_with
def test_shards_of_a_batch_make_one_update(kwargs):
    spec = jn.BatchNorm(axis_name="shards", **kwargs)
    run = jax.vmap(lambda x: spec.apply(PARAMS, some_state(), x, train=True)[1], axis_name="shards")
    states = jax.jit(run)(X.reshape(2, 4, 3))
    for i in range(2):
        check(jax.tree.map(lambda v, i=i: v[i], states), some_state(), XS[:1], kwargs.get("momentum", 0.99))


@specs_with
def test_parts_of_a_batch_make_one_update(kwargs):
    """accumulate, then commit: the weight moves once, also while nothing has come to a channel yet."""
    spec = jn.BatchNorm(**kwargs)
    where = np.ones((8, 3), bool)
    where[:5, 0] = where[:, 1] = False
    for start in (spec.init(3)[1], some_state()):
        state = jn.accumulate(start)
        for rows in (slice(5), slice(5, 8)):
            state = step(spec, state, X[rows], where[rows])
        got = jn.commit(state)
        assert jax.tree.structure(got) == jax.tree.structure(start)
        check(got, start, XS[:1], kwargs.get("momentum", 0.99), where[None])
        again = jn.accumulate(state)
        for rows in (slice(2), slice(2, 8)):
            again = step(spec, again, XS[1][rows])
        check(jn.commit(again), got, XS[1:2], kwargs.get("momentum", 0.99))


# The state decides.


def test_verbs_go_by_the_state():
    mean, var = X.mean(0, dtype=float), X.var(0, dtype=float)
    plain = jn.RunningStats(jnp.zeros(3), jnp.ones(3))
    _, new = jn.batch_norm(X, plain, train=True, momentum=0.75)
    assert new.weight_sum is None
    np.testing.assert_allclose(new.mean, 0.25 * mean, rtol=1e-5)
    np.testing.assert_allclose(new.var, 0.75 + 0.25 * var, rtol=1e-5)
    _, new = jn.batch_norm(X, plain._replace(weight_sum=jnp.zeros(3)), train=True, momentum=0.75)
    np.testing.assert_allclose(new.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(new.weight_sum, 0.25, rtol=1e-6)
    _, new = jn.batch_norm(X, some_state(), train=True, momentum=None)
    check(new, some_state(), XS[:1], None)


def test_specs_go_by_the_state_too():
    """A state of another spec: debias says what init makes, and no more."""
    plain = jn.BatchNorm().init(3)[1]
    missing = step(jn.BatchNorm(momentum=0.75, debias=True), plain, X)
    assert missing.weight_sum is None
    np.testing.assert_allclose(missing.mean, 0.25 * X.mean(0, dtype=float), rtol=1e-5)
    check(step(jn.BatchNorm(momentum=0.75), some_state(), X), some_state(), XS[:1], 0.75)


@pytest.mark.parametrize("what", ["verb", "spec", "instance", "batch instance", "linen", "nnx"])
def test_a_cumulative_average_without_weights_is_an_error(what):
    """Which says what is missing, and how to get it."""
    plain = jn.RunningStats(jnp.zeros(3), jnp.ones(3))
    x = X[:, None]
    calls = {
        "verb": lambda: jn.batch_norm(x, plain, train=True, momentum=None),
        "spec": lambda: jn.BatchNorm(momentum=None).apply(PARAMS, plain, x, train=True),
        "instance": lambda: jn.InstanceNorm(track=True, momentum=None).apply(PARAMS, plain, x, train=True),
        "batch instance": lambda: jn.BatchInstanceNorm(momentum=None).apply(
            jn.BatchInstanceNorm().init(3)[0], plain, x, train=True
        ),
        "linen": lambda: jn.linen.Norm(jn.BatchNorm(momentum=None)).apply(
            nn.BatchNorm(use_running_average=False).init(KEY, x), x, train=True, mutable="batch_stats"
        ),
    }
    if what == "nnx":
        norm = jn.nnx.Norm(jn.BatchNorm(), 3)
        norm.spec = nnx.data(jn.BatchNorm(momentum=None))
        calls["nnx"] = lambda: norm(x)
    with pytest.raises((TypeError, ValueError), match=r"momentum=None.*weight_sum|weight_sum.*momentum=None"):
        calls[what]()


# Merging, and statistics of a data set.


def merged(states, weights=None):
    """In float64: values by the weights of replicas among those that know the channel; the sum by all."""
    a = np.ones(len(states)) if weights is None else np.asarray(weights, float)
    a = a / a.sum()
    mean, var, w = (np.stack([np.asarray(v, float) for v in values]) for values in zip(*states, strict=True))
    share = a[:, None] * np.where((w > 0).any(0), w > 0, True)
    share = share / share.sum(0)
    total = (share * mean).sum(0)
    return total, (share * (var + (mean - total) ** 2)).sum(0), (a[:, None] * w).sum(0)


def three_states(weight=(2.0, 2.0, 2.0)):
    means, variances = np.random.default_rng(0).random((2, 3, 3)).astype(np.float32)
    zipped = zip(10 * means, variances + 1, weight, strict=True)
    return [jn.RunningStats(jnp.asarray(m), jnp.asarray(v), jnp.full(3, w)) for m, v, w in zipped]


@pytest.mark.parametrize("weights", [None, [1, 1, 1], [0.5, 0.25, 0.25], [6.0, 1.0, 3.0], [0, 1, 0]], ids=str)
@pytest.mark.parametrize("own", [(2.0, 2.0, 2.0), (1.0, 5.0, 100.0)], ids=str)
def test_replicas_merge_by_the_weights_that_are_given(weights, own):
    """For how much data each average stands has no say: a common past would count once per replica."""
    states = three_states(own)
    kwargs = {} if weights is None else {"weights": weights}
    stacked = jax.tree.map(lambda *v: jnp.stack(v), *states)
    behind = jax.tree.map(lambda *v: jnp.stack(v, -1), *states)
    as_array = {} if weights is None else {"weights": jnp.asarray(weights, jnp.float32)}
    for got in (
        jn.merge_running(*states, **kwargs),
        jn.merge_running(*states, **as_array),
        jn.merge_running(stacked, axis=0, **kwargs),
        jn.merge_running(behind, axis=-1, **kwargs),
        jax.jit(lambda s: jn.merge_running(s, axis=0, **kwargs))(stacked),
    ):
        for v, want in zip(got, merged(states, weights), strict=True):
            np.testing.assert_allclose(v, want, rtol=1e-5)
        assert got.weight_sum.dtype == jnp.float32
    plain = [s._replace(weight_sum=None) for s in states]
    got = jn.merge_running(*plain, **kwargs)
    assert got.weight_sum is None
    for v, want in zip(got[:2], merged(states, weights), strict=False):
        np.testing.assert_allclose(v, want, rtol=1e-5)


def test_weights_of_replicas_may_be_traced_and_differentiated():
    states = three_states()
    of = lambda a: jn.merge_running(*states, weights=a).mean
    means = np.stack([np.asarray(s.mean, float) for s in states])
    a = np.array([1.0, 2.0, 5.0])
    want = (means - (a[:, None] * means).sum(0) / 8).T / 8
    np.testing.assert_allclose(jax.jit(jax.jacrev(of))(jnp.asarray(a, jnp.float32)), want, rtol=1e-4, atol=1e-5)


def test_replicas_of_a_mesh_axis_have_equal_weights():
    states = three_states((1.0, 5.0, 100.0))
    stacked = jax.tree.map(lambda *v: jnp.stack(v), *states)
    got = jax.vmap(lambda s: jn.merge_running(s, axis_name="host"), axis_name="host")(stacked)
    for v, want in zip(got, merged(states), strict=True):
        np.testing.assert_allclose(v, np.broadcast_to(want, (3, 3)), rtol=1e-5)


def test_a_channel_without_weight_has_no_say():
    """In that channel alone, whatever stands there; and where nobody knows, what all began with remains."""
    one, two, three = three_states()
    one = one._replace(weight_sum=jnp.array([0.0, 2.0, 2.0]), mean=one.mean.at[0].set(1e6), var=one.var.at[0].set(1e9))
    two = two._replace(weight_sum=jnp.array([2.0, 2.0, 0.0]), mean=two.mean.at[2].set(jnp.nan))
    for weights in (None, [5.0, 1.0, 2.0]):
        got = jn.merge_running(one, two, three, weights=weights)
        finite = [one, two._replace(mean=two.mean.at[2].set(0)), three]
        for v, want in zip(got, merged(finite, weights), strict=True):
            np.testing.assert_allclose(v, want, rtol=1e-5)
    new = jn.BatchNorm(debias=True).init(3)[1]
    chex.assert_trees_all_equal(jn.merge_running(new, new, new), new)


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0], [[1.0, 2.0, 3.0]], 2.0], ids=str)
def test_another_number_of_weights_than_replicas(weights):
    with pytest.raises((TypeError, ValueError), match="weights"):
        jn.merge_running(*three_states(), weights=weights)


@pytest.mark.parametrize("kwargs", [{"momentum": None}, {"debias": True}, {}], ids=["cumulative", "debias", "plain"])
@pytest.mark.parametrize("weights", [None, np.arange(1, 11)], ids=["equal", "unequal"])
def test_a_hundred_rounds_of_ten_replicas(kwargs, weights):
    """Each begins where all ended. By numbers of updates, ten replicas pass 2³¹ in ten rounds."""
    spec = jn.BatchNorm(**{"momentum": 0.9, **kwargs})
    xs = normal(100, 10, 8, 3, mean=np.arange(10)[:, None, None] + np.array([0, 100, 0]))
    a = None if weights is None else jnp.asarray(weights, jnp.float32)

    def a_round(state, x):
        apart = jax.vmap(lambda x: step(spec, state, x))(x)
        state = jn.merge_running(apart, axis=0, weights=a)
        return state, state

    start = spec.init(3)[1]
    _, states = jax.jit(lambda s: lax.scan(a_round, s, xs))(start)

    share = np.ones(10) / 10 if weights is None else weights / weights.sum()
    mean, var, w = np.zeros(3), np.ones(3), 0.0
    for i, x in enumerate(xs.astype(float)):
        m = spec.momentum
        total = w + 1 if m is None else m * w + 1 - m
        keep = m if not kwargs else (w if m is None else m * w) / total
        means, variances = (keep * old + (1 - keep) * v for old, v in ((mean, x.mean(1)), (var, x.var(1))))
        mean = share @ means
        var, w = share @ (variances + (means - mean) ** 2), total
        if i in (0, 1, 9, 15, 99):
            np.testing.assert_allclose(states.mean[i], mean, rtol=1e-4)
            np.testing.assert_allclose(states.var[i], var, rtol=1e-3)
            if kwargs:
                np.testing.assert_allclose(states.weight_sum[i], w, rtol=1e-4)
    # Replicas differ by their means, and weigh what was said, in the last round as in the first.
    np.testing.assert_allclose(states.mean[-1], share @ np.arange(10) + [0, 100, 0], rtol=0.02, atol=0.1)
    assert (states.weight_sum is None) == (not kwargs)


@pytest.mark.parametrize("kwargs", [{"momentum": None}, {"debias": True}, {}], ids=["cumulative", "debias", "plain"])
def test_recalibrating_leaves_a_weight_of_one_or_of_all_calls(kwargs):
    """And from there on training goes on: the next batch is one of four, or moves the average by 1 − m."""
    spec = jn.BatchNorm(**{"momentum": 0.75, **kwargs})
    recalibrated = lambda state, batches: jn.recalibrate(lambda s, x: step(spec, s, x), state, batches)
    parts = [XS[0], XS[1][:3], XS[2]]
    whole = np.concatenate(parts).astype(float)
    old = spec.init(3)[1]
    if kwargs:
        old = old._replace(weight_sum=jnp.full(3, 7.0))
    state = recalibrated(old, parts)
    np.testing.assert_allclose(state.mean, whole.mean(0), rtol=1e-6)
    np.testing.assert_allclose(state.var, whole.var(0), rtol=1e-5)
    assert jax.tree.structure(state) == jax.tree.structure(old)
    after = step(spec, state, XS[3])
    if not kwargs:
        np.testing.assert_allclose(after.mean, 0.75 * whole.mean(0) + 0.25 * XS[3].mean(0, dtype=float), rtol=1e-5)
        return
    cumulative = "momentum" in kwargs
    np.testing.assert_array_equal(state.weight_sum, 3 if cumulative else 1)
    keep = 0.75
    np.testing.assert_allclose(after.mean, keep * whole.mean(0) + (1 - keep) * XS[3].mean(0, dtype=float), rtol=1e-5)
    np.testing.assert_allclose(after.weight_sum, 4 if cumulative else 1, rtol=1e-6)


def test_recalibrating_counts_the_calls_with_data_of_each_channel():
    where = np.ones((2, 8, 3), bool)
    where[0, :, 1] = False
    spec = jn.BatchNorm(momentum=None)
    state = jn.recalibrate(lambda s, xw: step(spec, s, *xw), spec.init(3)[1], list(zip(XS[:2], where, strict=True)))
    np.testing.assert_array_equal(state.weight_sum, [2, 1, 2])
    np.testing.assert_allclose(state.mean[1], XS[1, :, 1].mean(dtype=float), rtol=1e-6)


# Layers.


@pytest.mark.parametrize("kwargs", [{"momentum": None}, {"debias": True}, {}], ids=["cumulative", "debias", "plain"])
@pytest.mark.parametrize("layer", ["linen", "nnx"])
def test_layers_have_the_variable_exactly_where_the_state_has_it(layer, kwargs):
    spec = jn.BatchNorm(**kwargs)
    names = {"mean", "var", "weight_sum"} if kwargs else {"mean", "var"}
    want = step(spec, step(spec, spec.init(3)[1], X), XS[1])
    if layer == "linen":
        module = jn.linen.Norm(spec)
        variables = module.init(KEY, X, train=True)
        assert variables["batch_stats"].keys() == names
        for x in (X, XS[1]):
            variables = {**variables, **module.apply(variables, x, train=True, mutable="batch_stats")[1]}
        stats = variables["batch_stats"]
        found = jn.linen.recalibrate(module, variables, [X, XS[1]])["batch_stats"]
    else:
        norm = jn.nnx.Norm(spec, 3)
        read = lambda: nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat))
        assert read().keys() == names
        for x in (X, XS[1]):
            norm(x)
        stats = read()
        jn.nnx.accumulate(norm)
        jn.nnx.commit(norm)
        chex.assert_trees_all_equal(read(), stats)
        jn.nnx.recalibrate(norm, [X, XS[1]])
        found = read()
    assert stats.keys() == found.keys() == names
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), stats, {n: getattr(want, n) for n in names})
    if kwargs:
        np.testing.assert_array_equal(found["weight_sum"], 2 if "momentum" in kwargs else 1)
    np.testing.assert_allclose(found["mean"], XS[:2].mean((0, 1), dtype=float), rtol=1e-6)


def test_variables_without_weights_stay_without_them():
    """Those of Flax in a debiased norm of linen: plain averages, in the same tree."""
    variables = nn.BatchNorm(use_running_average=False).init(KEY, X)
    module = jn.linen.Norm(jn.BatchNorm(momentum=0.75, debias=True))
    _, updates = module.apply(variables, X, train=True, mutable="batch_stats")
    assert jax.tree.structure(updates["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.25 * X.mean(0, dtype=float), rtol=1e-5)


def test_states_of_networks_merge_by_weights_wherever_they_are():
    """Mappings of linen, with and without weights, beside what is none."""
    one, two, _ = three_states()
    tree = lambda s, other: {"a": {"norm": s._asdict()}, "b": s._replace(weight_sum=None), "rest": other}
    got = jn.merge_running(tree(one, 1), tree(two, 2), weights=[3, 1])
    want = merged([one, two], [3, 1])
    for v, exact in zip(got["a"]["norm"].values(), want, strict=True):
        np.testing.assert_allclose(v, exact, rtol=1e-5)
    assert got["b"].weight_sum is None
    np.testing.assert_allclose(got["b"].var, want[1], rtol=1e-5)
    assert got["rest"] == 1


# Narrow states.


def narrow(state, dtype, fields):
    return state._replace(**{name: getattr(state, name).astype(dtype) for name in fields})


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        (["mean", "var"], jnp.bfloat16),
        (["mean", "var"], jnp.float16),
        (["mean"], jnp.float16),
        (["var"], jnp.bfloat16),
        (["weight_sum"], jnp.bfloat16),
    ],
    ids=["bfloat16", "float16", "mean", "var", "weight_sum"],
)
@pytest.mark.parametrize("where", ["verb", "BatchNorm", "InstanceNorm", "BatchInstanceNorm", "accumulating"])
def test_training_with_a_narrow_state_is_an_error_that_says_float32(where, fields, dtype):
    """Its average stands still. That of bfloat16 data, too."""
    state = narrow(some_state(), dtype, fields)
    x = jnp.asarray(X[:, None], dtype)
    gated = jn.BatchInstanceNorm()
    call = {
        "verb": lambda s: jn.batch_norm(x, s, train=True),
        "BatchNorm": lambda s: jn.BatchNorm().apply(PARAMS, s, x, train=True),
        "InstanceNorm": lambda s: jn.InstanceNorm(track=True).apply(PARAMS, s, x, train=True),
        "BatchInstanceNorm": lambda s: gated.apply(gated.init(3)[0], s, x, train=True),
        "accumulating": lambda s: jn.BatchNorm().apply(PARAMS, jn.accumulate(s), x, train=True),
    }[where]
    with pytest.raises(TypeError, match="float32"):
        call(state)
    with pytest.raises(TypeError, match="float32"):
        jax.jit(call)(state)
    call(some_state())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_evaluation_with_a_narrow_state_works(dtype):
    """By its values, in the arithmetic of the data; the state comes back as it was."""
    state = narrow(some_state(), dtype, ["mean", "var"])
    wide = jax.tree.map(lambda v: v.astype(jnp.float32), state)
    gated = jn.BatchInstanceNorm()
    x = X[:, None]
    for of in (
        lambda s: jn.batch_norm(x, s, train=False),
        lambda s: jn.BatchNorm().apply(PARAMS, s, x, train=False),
        lambda s: jn.InstanceNorm(track=True).apply(PARAMS, s, x, train=False),
        lambda s: gated.apply(gated.init(3)[0], s, x, train=False),
    ):
        y, same = of(state)
        np.testing.assert_array_equal(y, of(wide)[0])
        assert np.ptp(y) > 1
        assert jax.tree.map(lambda v: v.dtype, same) == jax.tree.map(lambda v: v.dtype, state)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parameters_of_half_precision_have_a_state_of_float32(dtype):
    spec = jn.BatchNorm(momentum=0.5)
    params, state = spec.init(3, dtype)
    assert params.scale.dtype == dtype
    for x in XS.astype(dtype):
        _, state = spec.apply(params, state, x, train=True)
    assert state.mean.dtype == state.var.dtype == jnp.float32
    exact = 0
    for x in XS.astype(dtype).astype(float):
        exact = 0.5 * exact + 0.5 * x.mean(0)
    np.testing.assert_allclose(state.mean, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", ["linen", "nnx"])
def test_layers_with_narrow_variables(layer):
    """Cast as a whole, as for inference: they evaluate, and say in training what to do."""
    narrowed = lambda v: v.astype(jnp.bfloat16)
    exact = (X - np.array([2.0, 100, -20])) / np.sqrt(np.array([4.0, 4, 9]) + 1e-5)
    stats = {"mean": jnp.array([2.0, 100, -20]), "var": jnp.array([4.0, 4, 9])}
    if layer == "linen":
        module = jn.linen.Norm(jn.BatchNorm())
        variables = jax.tree.map(narrowed, {**module.init(KEY, X, train=False), "batch_stats": stats})
        evaluate = lambda: module.apply(variables, X, train=False)
        train = lambda: module.apply(variables, X, train=True, mutable="batch_stats")
    else:
        norm = jn.nnx.Norm(jn.BatchNorm(), 3)
        norm.mean[...], norm.var[...] = stats["mean"], stats["var"]
        nnx.update(norm, jax.tree.map(narrowed, nnx.state(norm)))
        evaluate, train = lambda: norm(X, use_running_average=True), lambda: norm(X, use_running_average=False)
    np.testing.assert_allclose(evaluate(), exact, rtol=1e-5, atol=1e-5)
    with pytest.raises(TypeError, match="float32"):
        train()


@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types:FutureWarning")  # Flax's own
@jax.numpy_dtype_promotion("standard")  # as Flax wants it
@jax.numpy_rank_promotion("allow")
@pytest.mark.parametrize("layer", ["linen", "nnx"])
def test_drop_ins_keep_narrow_statistics_as_flax_does(layer):
    """Its dtypes, and its values to what they hold."""
    x, found = jnp.asarray(X, jnp.bfloat16), []
    for library in (jn, None):
        if layer == "linen":
            make = jn.linen.BatchNorm if library else nn.BatchNorm
            norm = make(
                use_running_average=False, momentum=0.5, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16,
                force_float32_reductions=False,
            )  # fmt: skip
            variables = norm.init(KEY, x)
            for _ in range(3):
                y, updates = norm.apply(variables, x, mutable="batch_stats")
                variables = {**variables, **updates}
            stats = variables["batch_stats"]
        else:
            make = jn.nnx.BatchNorm if library else nnx.BatchNorm
            norm = make(3, momentum=0.5, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
            nnx.update(norm, jax.tree.map(lambda v: v.astype(jnp.bfloat16), nnx.state(norm)))
            for _ in range(3):
                y = norm(x)
            stats = nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat))
        found.append({"y": y, **stats})
    assert jax.tree.map(lambda v: v.dtype, found[0]) == jax.tree.map(lambda v: v.dtype, found[1])
    exact = np.asarray(x, float)
    np.testing.assert_allclose(np.asarray(found[0]["mean"], float), 0.875 * exact.mean(0), rtol=0.02)
    np.testing.assert_allclose(np.asarray(found[0]["var"], float), 0.125 + 0.875 * exact.var(0), rtol=0.02)
