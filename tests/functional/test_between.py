"""Between batch and instance norm: running statistics of instances, and a gate from one norm to the other."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import jaxnorm as jn

X = np.random.default_rng(0).normal(size=(6, 4, 3, 5)) * np.arange(1, 6) + np.arange(6).reshape(6, 1, 1, 1)
X = jnp.asarray(X, jnp.float32)
WHERE = jax.random.uniform(jax.random.key(1), (6, 4, 3, 1)) < 0.7
WHERE = WHERE.at[2].set(False)


@partial(jax.jit, static_argnames="train")
def step(spec, params, state, x, where=None, train=True):
    return spec.apply(params, state, x, train=train, where=where)


def of_instances(x, where=None, ddof=0):
    """The averages over examples of their means and variances, in float64."""
    x = np.asarray(x, float)
    w = np.broadcast_to(1.0 if where is None else np.asarray(where, float), x.shape)
    n = w.sum((1, 2))
    x = np.where(w > 0, x, 0)
    mean = (w * x).sum((1, 2)) / np.maximum(n, 1e-30)
    var = (w * (x - mean[:, None, None]) ** 2).sum((1, 2)) / np.maximum(n - ddof, 1e-30)
    some = n > ddof
    count = np.maximum(some.sum(0), 1)
    return np.where(some, mean, 0).sum(0) / count, np.where(some, var, 0).sum(0) / count


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("where", [None, WHERE, 3 * WHERE.astype(jnp.float32)], ids=["all", "mask", "weights"])
def test_running_statistics_of_instances(where, ddof):
    norm = jn.InstanceNorm(track=True, momentum=0.9, ddof=ddof)
    params, state = norm.init(5)
    y, state = step(norm, params, state, X, where)
    untracked, _ = step(jn.InstanceNorm(), params, None, X, where)
    np.testing.assert_allclose(y, untracked, rtol=1e-6, atol=1e-6)
    mean, var = of_instances(X, where, ddof)
    np.testing.assert_allclose(state.mean, 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(state.var, 0.9 + 0.1 * var, rtol=1e-5)
    assert state.weight_sum is None
    y, after = step(norm, params, state, X, where, train=False)
    want = (np.asarray(X, float) - np.asarray(state.mean)) / np.sqrt(np.asarray(state.var) + 1e-5)
    assert oracle.ulps(y, want) < 16
    chex.assert_trees_all_equal(after, state)


def test_momentum_none_averages_all_updates():
    norm = jn.InstanceNorm(track=True, momentum=None)
    params, state = norm.init(5)
    for x in (X, 2 * X, 3 * X):
        _, state = step(norm, params, state, x)
    mean, var = of_instances(X)
    np.testing.assert_allclose(state.mean, 2 * mean, rtol=1e-5)
    np.testing.assert_allclose(state.var, (1 + 4 + 9) / 3 * var, rtol=1e-5)


def test_as_torch():
    torch = pytest.importorskip("torch")
    x = np.asarray(X).transpose(0, 3, 1, 2)
    theirs = torch.nn.InstanceNorm2d(5, momentum=0.1, track_running_stats=True)
    norm = jn.InstanceNorm(track=True, momentum=0.9, ddof=1, channel_axis=1)
    params, state = norm.init(5)
    for scale in (1, 2):
        y, state = step(norm, params, state, scale * x)
        np.testing.assert_allclose(y, theirs(torch.tensor(scale * x)).numpy(), atol=1e-5)
    np.testing.assert_allclose(state.mean, theirs.running_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(state.var, theirs.running_var.numpy(), rtol=1e-5)
    y, _ = step(norm, params, state, x, train=False)
    np.testing.assert_allclose(y, theirs.eval()(torch.tensor(x)).numpy(), atol=1e-5)


def test_examples_without_a_variance_are_left_out():
    """One position has no unbiased variance, and no position has none at all."""
    norm = jn.InstanceNorm(track=True, momentum=0.0, ddof=1)
    params, fresh = norm.init(5)
    one = jnp.zeros((6, 4, 3, 1), bool).at[1, 0, 0].set(True).at[4].set(True)
    _, state = step(norm, params, fresh, X, one)
    mean, var = of_instances(X[4:5], ddof=1)
    np.testing.assert_allclose(state.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(state.var, var, rtol=1e-5)
    for where in (jnp.zeros((6, 1, 1, 1), bool), one & (jnp.arange(6) == 1).reshape(6, 1, 1, 1)):
        y, state = step(norm, params, fresh, X, where)
        chex.assert_trees_all_equal(state, fresh)
        assert np.isfinite(y).all()


def test_nan_keeps_the_channel():
    norm = jn.InstanceNorm(track=True, momentum=0.5)
    params, fresh = norm.init(5)
    _, state = step(norm, params, fresh, X.at[0, 0, 0, 3].set(jnp.nan))
    assert (state.mean[3], state.var[3]) == (0, 1)
    np.testing.assert_allclose(state.mean[:3], 0.5 * of_instances(X)[0][:3], rtol=1e-5)


def test_examples_one_by_one():
    """Without an axis of examples: as many parts of one batch, of which each is an example."""
    one, many = jn.InstanceNorm(track=True, momentum=0.9, batch_axis=None), jn.InstanceNorm(track=True, momentum=0.9)
    params, fresh = one.init(5)
    state = jn.accumulate(fresh)
    for x in X:
        _, state = step(one, params, state, x)
    _, whole = step(many, params, fresh, X)
    chex.assert_trees_all_close(jn.commit(state), whole, rtol=1e-5)
    exact = jn.recalibrate(lambda state, x: step(one, params, state, x, train=False)[1], fresh, X)
    for found, want in zip(exact[:2], of_instances(X), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5)


@pytest.mark.parametrize("cuts", [[3], [1, 2], [1, 2, 3, 4, 5]])
def test_parts_of_a_batch_make_one_update(cuts):
    """Accumulated, or replaced in recalibration: how far the means of parts lie apart is no part of the variance."""
    norm = jn.InstanceNorm(track=True, momentum=0.9)
    params, fresh = norm.init(5)
    _, whole = step(norm, params, fresh, X, WHERE)
    parts = [(x, w) for x, w in zip(np.split(X, cuts), np.split(WHERE, cuts), strict=True)]
    state = jn.accumulate(fresh)
    for x, w in parts:
        _, state = step(norm, params, state, x, w)
    chex.assert_trees_all_close(jn.commit(state), whole, rtol=1e-5)
    run = lambda state, batch: step(norm, params, state, batch[0], batch[1], train=False)[1]
    state = jn.recalibrate(run, fresh, parts)
    for found, want in zip(state[:2], of_instances(X, WHERE), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5)


def test_a_state_only_where_it_is_tracked():
    params, state = jn.InstanceNorm().init(5)
    assert state is None
    with pytest.raises(TypeError, match="InstanceNorm has none"):
        jn.InstanceNorm().apply(params, jn.InstanceNorm(track=True).init(5)[1], X, train=True)
    with pytest.raises(ValueError, match="needs running statistics"):
        jn.InstanceNorm(track=True).apply(params, None, X, train=False)
    # A momentum that means nothing is no leaf: a vmap over epsilon alone goes through.
    grid = jn.InstanceNorm(epsilon=jnp.array([1e-5, 1.0]))
    ys = jax.vmap(lambda norm: norm.apply(params, None, X, train=True)[0])(grid)
    np.testing.assert_allclose(ys[1], jn.instance_norm(X, epsilon=1.0), rtol=1e-5)


def test_tracking_is_switched_on_and_off():
    """By dataclasses.replace, also of what went through a program: a momentum that means nothing is not lost."""
    for untracked, momentum in ((jn.InstanceNorm(), 0.99), (jn.InstanceNorm(momentum=0.9), 0.9)):
        assert jax.tree.leaves(untracked) == [1e-5]
        assert dataclasses.replace(untracked, track=True) == jn.InstanceNorm(track=True, momentum=momentum)
    through = jax.tree.map(lambda v: v, jn.InstanceNorm())
    assert dataclasses.replace(through, track=True) == jn.InstanceNorm(track=True)
    assert dataclasses.replace(jn.InstanceNorm(track=True, momentum=0.9), track=False) == jn.InstanceNorm()


GATE = jnp.array([0.0, 0.2, 0.5, 0.9, 1.0])


def gated(gate=GATE):
    (_, *rest), state = jn.BatchInstanceNorm().init(5)
    return jn.GatedAffine(gate, *(1 + jax.random.uniform(jax.random.key(2), v.shape, v.dtype) for v in rest)), state


@pytest.mark.parametrize("where", [None, WHERE], ids=["all", "mask"])
def test_a_gate_between_two_norms(where):
    params, state = gated()
    y, new = step(jn.BatchInstanceNorm(), params, state, X, where)
    ends = [oracle.normalize(spec, X, where=where) for spec in (jn.InstanceNorm(), jn.BatchNorm())]
    want = (1 - np.asarray(GATE, float)) * ends[0] + np.asarray(GATE, float) * ends[1]
    want = want * np.asarray(params.scale, float) + np.asarray(params.bias, float)
    assert oracle.ulps(y, want) < 32
    _, expected = step(jn.BatchNorm(), jn.Affine(), state, X, where)
    chex.assert_trees_all_equal(new, expected)
    y, _ = step(jn.BatchInstanceNorm(), params, new, X, where, train=False)
    mean, var = (np.asarray(v, float) for v in new[:2])
    want = (1 - np.asarray(GATE)) * ends[0] + np.asarray(GATE) * (np.asarray(X) - mean) / np.sqrt(var + 1e-5)
    want = want * np.asarray(params.scale) + np.asarray(params.bias)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)


def test_one_vmap_sweeps_from_one_norm_to_the_other():
    params, state = gated()
    gates = jnp.repeat(jnp.linspace(-0.5, 1.5, 9)[:, None], 5, 1)
    ys = jax.vmap(lambda gate: step(jn.BatchInstanceNorm(), params._replace(gate=gate), state, X)[0])(gates)
    own = jn.instance_norm(X, params.scale, params.bias)
    of_batch, _ = jn.batch_norm(X, None, params.scale, params.bias, train=True)
    for y, gate in zip(ys, gates[:, 0].clip(0, 1), strict=True):
        np.testing.assert_allclose(y, (1 - gate) * own + gate * of_batch, rtol=1e-5, atol=1e-5)


@pytest.mark.once
def test_derivatives_of_the_gate():
    params, state = gated(gate=jnp.linspace(0.1, 0.9, 5))
    loss = lambda params, x: jnp.sin(step(jn.BatchInstanceNorm(), params, state, x)[0])
    check_grads(loss, (params, X[:3, :2]), 1, atol=0.02, rtol=0.02)
    slope = jax.grad(lambda gate: loss(params._replace(gate=gate), X).sum())
    inside, out = slope(GATE), slope(jnp.array([-0.1, 0.2, 0.5, 0.9, 1.1]))
    # As one moves in from an end, and none beyond it.
    np.testing.assert_allclose(inside, slope(GATE.clip(1e-4, 1 - 1e-4)), rtol=1e-2, atol=1e-2)
    np.testing.assert_array_equal(np.asarray(out)[[0, 4]], 0)
    np.testing.assert_array_equal(out[1:4], inside[1:4])


def test_padding_does_not_reach_a_gate():
    params, state = gated()
    padded = jnp.where(WHERE, X, jnp.nan)

    def loss(params, x):
        y, _ = step(jn.BatchInstanceNorm(), params, state, x, WHERE)
        return jnp.where(WHERE, y**2, 0).sum()

    found, want = jax.grad(loss, (0, 1))(params, padded), jax.grad(loss, (0, 1))(params, jnp.where(WHERE, X, 0))
    chex.assert_trees_all_close(found, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "large"), [(jnp.float16, 6e4), (jnp.float32, 3.4028235e38)])
def test_padding_that_is_large_stays_finite(dtype, large):
    norm, x = jn.BatchInstanceNorm(epsilon=1e-8), jnp.array([[[1.0], [1.01], [large]]] * 2, dtype)
    where = jnp.array([[[True], [True], [False]]] * 2)
    params, state = norm.init(1)

    def loss(weight, gate):
        y, _ = norm.apply(params._replace(gate=gate), state, x, train=True, where=where)
        return jnp.where(where, y * weight, 0).sum(), y

    for gate in (0.5, 1.0):
        (slope, _), y = jax.grad(loss, (0, 1), has_aux=True)(jnp.ones((), dtype), jnp.full(1, gate))
        assert jnp.isfinite(y).all()
        assert jnp.isfinite(slope)


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_batch_over_devices(check_vma):
    params, state = gated()
    mesh = jax.make_mesh((2,), ("batch",), devices=jax.devices()[:2], axis_types=(AxisType.Auto,))
    run = partial(step, jn.BatchInstanceNorm(axis_name="batch"), params, state)
    run = jax.shard_map(
        run, mesh=mesh, in_specs=P("batch"), out_specs=(P("batch"), P()), check_vma=check_vma
    )  # fmt: skip
    found, want = jax.jit(run)(X, WHERE), step(jn.BatchInstanceNorm(), params, state, X, WHERE)
    chex.assert_trees_all_close(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_one_rounding_in_narrow_data(dtype):
    params, state = gated()
    x = X.astype(dtype)
    y, _ = step(jn.BatchInstanceNorm(), params, state, x)
    wide, _ = step(jn.BatchInstanceNorm(), params, state, x.astype(jnp.float32))
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, wide.astype(dtype))


@pytest.mark.parametrize("leave", ["use_scale", "use_bias"])
def test_without_scale_or_bias(leave):
    norm = jn.BatchInstanceNorm(**{leave: False})
    params, state = norm.init(5)
    assert getattr(params, leave.removeprefix("use_")) is None
    y, _ = step(norm, params, state, X)
    np.testing.assert_allclose(y, jn.batch_norm(X, None, train=True)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda n, p, s: n.apply(jn.Affine(), s, X, train=True), TypeError, "must be a jaxnorm.GatedAffine"),
        (lambda n, p, s: n.apply(p._asdict(), s, X, train=True), TypeError, r"GatedAffine\(\*\*params\)"),
        (lambda n, p, s: n.apply(s, p, X, train=True), TypeError, "swapped"),
        (lambda n, p, s: n.apply(p._replace(gate=None), s, X, train=True), TypeError, "gate is None"),
        (lambda n, p, s: n.apply(p._replace(gate=jnp.ones(4)), s, X, train=True), ValueError, "4 features"),
        (lambda n, p, s: n.apply(p, None, X, train=False), ValueError, "needs running statistics"),
        (
            lambda n, p, s: dataclasses.replace(n, ddof=-1).apply(p, s, X, train=True),
            ValueError,
            "ddof=-1 is not an int",
        ),
        (lambda n, p, s: n.apply(p, s, X.astype(int), train=True), TypeError, "dtype int32"),
        (lambda n, p, s: n.apply(p, s, X.swapaxes(1, 3), train=True), ValueError, "use channel_axis=1"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call(jn.BatchInstanceNorm(), *gated())


@pytest.mark.parametrize("spec", [jn.BatchInstanceNorm(momentum=0.9), jn.InstanceNorm(track=True, momentum=0.9)])
def test_as_a_module(spec):
    from flax import nnx

    params, state = spec.init(5)
    y, state = step(spec, params, state, X)
    module = jn.linen.Norm(spec)
    variables = module.init(jax.random.key(0), X, train=False)
    chex.assert_trees_all_equal(variables["params"], params._asdict())
    found, updates = module.apply(variables, X, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(found, y, rtol=1e-6, atol=1e-6)
    layer = jn.nnx.Norm(spec, 5)
    np.testing.assert_allclose(layer(X), y, rtol=1e-6, atol=1e-6)
    for name, value in (("mean", state.mean), ("var", state.var)):
        np.testing.assert_allclose(updates["batch_stats"][name], value, rtol=1e-6)
        np.testing.assert_allclose(getattr(layer, name)[...], value, rtol=1e-6)
    assert {*nnx.to_pure_dict(nnx.state(layer, nnx.Param))} == {*params._fields}
    exact = jn.linen.recalibrate(module, variables, [X[:1], X[1:]])["batch_stats"]
    mean = of_instances(X)[0] if isinstance(spec, jn.InstanceNorm) else np.asarray(X).mean((0, 1, 2))
    np.testing.assert_allclose(exact["mean"], mean, rtol=1e-5)
    jn.nnx.recalibrate(layer, [X[:1], X[1:]])
    np.testing.assert_allclose(layer.mean[...], mean, rtol=1e-5)
